"""Which agents count as flapping, from events made by hand."""

from __future__ import annotations

from typing import Any

from trackd_client.cli.output.flapping import STARTS, find_flapping
from trackd_client.core.event import Event


class Story:
    """Events, one a second."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def add(self, kind: str, **fields: Any) -> None:
        moment = float(len(self.events))
        self.events.append(Event(len(self.events) + 1, moment, moment, kind, fields))

    def opened(self, session: int, pid: int, name: str = "", command: str = "agent") -> None:
        self.add("session_opened", session=session, uid=7, pid=pid, name=name, command=command)

    def ended(self, session: int, reason: str = "process_exited") -> None:
        self.add("session_ended", session=session, reason=reason, name="", pid=0)


def crashing(times: int) -> Story:
    story = Story()
    for number in range(1, times + 1):
        story.opened(number, 100 + number)
        if number < times:
            story.ended(number)
    return story


def test_an_agent_that_crashes_again_and_again_flaps() -> None:
    (found,) = find_flapping(crashing(STARTS).events, 0.0)
    assert (found.command, found.uid, found.starts, found.running) == ("agent", 7, STARTS, 1)
    assert found.last == crashing(STARTS).events[-1].wall
    assert found.ended == {"process_exited": STARTS - 1}
    assert find_flapping(crashing(STARTS - 1).events, 0.0) == []


def test_the_same_agent_of_two_hosts_is_two_agents() -> None:
    def on(*hosts: str) -> list[Event]:
        where = iter(hosts)
        return [
            event._replace(fields={**event.fields, "host": next(where)})
            if event.kind == "session_opened"
            else event
            for event in crashing(STARTS).events
        ]

    assert find_flapping(on("a", *["b"] * (STARTS - 1)), 0.0) == []
    (found,) = find_flapping(on(*["a"] * STARTS), 0.0)
    assert (found.host, found.starts) == ("a", STARTS)


def test_only_starts_within_the_window_count() -> None:
    story = crashing(STARTS)
    assert find_flapping(story.events, 0.5) == []


def test_agents_that_run_side_by_side_do_not_flap() -> None:
    story = Story()
    for number in range(1, 10):
        story.opened(number, 100 + number)
    assert find_flapping(story.events, 0.0) == []
    story.ended(1, "closed")
    assert find_flapping(story.events, 0.0) == []


def test_the_sessions_of_one_process_are_one_start() -> None:
    story = Story()
    for number in range(1, 10):
        story.opened(number, 100)
        story.ended(number, "closed")
    assert find_flapping(story.events, 0.0) == []


def test_agents_are_told_apart_by_user_command_and_name_the_worst_first() -> None:
    story = Story()
    for number in range(1, 8):
        story.opened(number, 100 + number, name="b" if number > 3 else "a")
        story.ended(number)
    assert [(each.name, each.starts) for each in find_flapping(story.events, 0.0)] == [
        ("b", 4),
        ("a", 3),
    ]
