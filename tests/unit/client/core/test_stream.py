"""The stream of events, step by step, against a daemon of a few lines."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import msgpack
import pytest

from helpers.fake_daemon import Watcher, World, facts_of
from trackd_client.core.event import Event
from trackd_client.core.event_sockets import event_endpoint
from trackd_client.core.mirror import Mirror
from trackd_client.core.stream import (
    Ask,
    History,
    Listen,
    Pause,
    Rows,
    Stream,
    Subscribe,
    read_log,
    read_published,
    read_rows,
)
from trackd_client.errors import NoAnswer


def watched(world: World, **options: Any) -> Watcher:
    """Return a watcher that has told its snapshot, and listens next."""
    watcher = Watcher(world, **options)
    watcher.settle()
    watcher.step()  # it has heard nothing, and asked
    world.asked.clear()
    return watcher


def change(world: World, times: int = 1) -> None:
    for _ in range(times):
        world.track("p", "", world.revision)


# -- what is published ------------------------------------------------------------------------


def test_the_first_event_is_a_snapshot_and_then_each_change_comes_once() -> None:
    world = World()
    session = world.open()
    watcher = watched(world)
    lease = world.grant(session)
    world.claim(lease, "p1")
    told = watcher.settle()
    assert watcher.kinds == ["snapshot", "lease_granted", "proxy_claimed"]
    assert told[1] == Event(4, 4.0, 1e9, "proxy_claimed", told[1].fields)
    assert told[1].fields == {"name": "p1", "lease": lease, "session": session}
    assert watcher.settle() == []


def test_what_is_published_in_order_costs_no_request() -> None:
    world = World()
    watcher = watched(world)
    change(world, 50)
    while len(watcher.told) < 51:
        watcher.step()
    assert world.asked == []


def test_without_snapshots_it_begins_with_the_next_change() -> None:
    world = World()
    change(world, 3)
    watcher = watched(world, snapshot=False)
    assert watcher.told == []
    change(world, 2)
    assert [event.revision for event in watcher.settle()] == [5, 6]
    assert "snapshot" not in world.asked


def test_messages_of_a_daemon_that_published_before_the_snapshot_are_not_told_again() -> None:
    world = World()
    watcher = Watcher(world)
    while not watcher.waits and len(world.asked) < 2:
        watcher.step()
    change(world, 5)  # published, and in the snapshot
    watcher.settle()
    assert watcher.kinds == ["snapshot"]
    assert watcher.told[0].revision == world.revision


# -- what was lost ----------------------------------------------------------------------------


def test_lost_messages_are_fetched_as_soon_as_the_next_one_shows_it() -> None:
    world = World()
    watcher = watched(world)
    change(world, 5)
    del world.published[1], world.published[1]
    while len(watcher.told) < 6:
        watcher.step()
        assert not watcher.waits
    assert [event.revision for event in watcher.told] == [1, 2, 3, 4, 5, 6]


def test_a_lost_tail_is_fetched_when_nothing_was_heard_for_a_while() -> None:
    world = World()
    watcher = watched(world)
    change(world, 3)
    world.published.clear()
    assert [event.revision for event in watcher.settle()] == [2, 3, 4]


def test_what_is_published_while_it_asks_whether_there_is_more_costs_no_page() -> None:
    world = World()
    watcher = watched(world)
    while not watcher.waits:
        watcher.step()
    world.asked.clear()
    change(world, 3)  # after it has heard nothing, and before it asks
    while len(watcher.told) < 4:
        watcher.step()
        assert not watcher.waits
    assert world.asked == ["hello"]


def test_losses_longer_than_a_page_are_fetched_page_by_page() -> None:
    world = World()
    watcher = watched(world, page=2)
    change(world, 7)
    world.published.clear()
    assert [event.revision for event in watcher.settle()] == list(range(2, 9))


def test_what_the_history_has_no_more_is_a_gap_and_a_fresh_snapshot() -> None:
    world = World(history=3)
    watcher = watched(world)
    change(world, 5)
    world.published.clear()
    gap, snapshot = watcher.settle()
    assert (gap.kind, gap.fields) == ("gap", {"after": 1, "newest": 6})
    assert (snapshot.kind, snapshot.revision) == ("snapshot", 6)
    change(world)
    assert [event.revision for event in watcher.settle()] == [7]


def test_without_snapshots_a_gap_says_where_it_goes_on() -> None:
    world = World(history=3)
    watcher = watched(world, snapshot=False)
    change(world, 5)
    world.published.clear()
    (gap,) = watcher.settle()
    assert gap.fields == {"after": 1, "newest": 6}
    change(world)
    assert [event.revision for event in watcher.settle()] == [7]


def test_rubbish_and_foreign_messages_tell_nothing_and_hide_nothing() -> None:
    world = World()
    watcher = watched(world)
    event = [2, 2.0, 1e9, "proxy_tracked", {}]
    for frame in (
        b"",
        b"\xc1",
        msgpack.packb([1, 2, {}]),
        msgpack.packb([2, 3, {}]),
        msgpack.packb([1, 9, {}]),
        msgpack.packb([1, 3, {"tracker_id": 1, "revision": 2, "events": []}]),
    ):
        assert read_published(frame) is None
        world.published.append(frame)
    world.publish([event], tracker_id="another")
    broken: Any
    for broken in (
        [2, 2.0, 1e9, "x"],
        [True, 2.0, 1e9, "x", {}],
        [2, "now", 1e9, "x", {}],
        [2, 2.0, 1e9, 5, {}],
        [2, 2.0, 1e9, "x", []],
        {},
    ):
        world.publish([broken], revision=2)
    world.publish([[9, 9.0, 9.0, "x", {}]], revision=2**62)
    change(world, 2)
    assert [told.revision for told in watcher.settle()] == [2, 3]
    assert watcher.kinds == ["snapshot", "proxy_tracked", "proxy_changed"]


def test_a_history_that_is_off_makes_no_gap_of_what_is_only_on_its_way() -> None:
    world = World(history=0)
    watcher = watched(world)
    world.greet()  # another subscriber; it makes this one ask, which finds a change
    change(world, 2)
    world.greet()
    change(world, 2)
    assert [event.revision for event in watcher.settle()] == [2, 3, 4, 5]


def test_a_daemon_that_publishes_nothing_is_asked_again_and_again() -> None:
    world = World(publishes=False)
    watcher = watched(world)
    change(world, 2)
    assert [event.revision for event in watcher.settle()] == [2, 3]


# -- restarts ---------------------------------------------------------------------------------


def test_a_restart_is_told_once_as_it_stands_in_the_history() -> None:
    world = World()
    watcher = watched(world)
    change(world)
    world.restart()
    change(world)
    assert [event.revision for event in watcher.settle()] == [2, 3, 4]
    assert watcher.kinds == ["snapshot", "proxy_tracked", "daemon_started", "proxy_changed"]
    assert watcher.told[2].fields["epoch"] == 2


def test_a_lost_state_is_a_gap_and_a_snapshot_of_the_new_one() -> None:
    world = World()
    watcher = watched(world)
    change(world, 5)
    watcher.settle()
    world.begin()
    gap, snapshot = watcher.settle()
    assert gap.fields == {"after": 6, "newest": 1}
    assert snapshot.kind == "snapshot"
    change(world)
    assert [event.revision for event in watcher.settle()] == [2]


@pytest.mark.parametrize("minor", [0, 1])
def test_a_mirror_follows_a_lost_state_though_its_revisions_are_smaller(minor: int) -> None:
    """With the state lost between any two requests."""
    for step in range(8):
        world = World(publishes=False, minor=minor)
        change(world, 30)
        watcher = Watcher(world, page=10)
        watcher.settle()
        asked = len(world.asked)
        change(world, 25)
        while len(world.asked) < asked + step:
            watcher.step()
        world.begin()
        change(world)
        watcher.settle()
        assert watcher.mirror is not None
        assert watcher.mirror.revision == world.revision == 2, f"lost after {step} requests"
        assert facts_of(watcher.mirror) == world.facts[world.tracker_id, 2]


def test_a_snapshot_of_a_state_that_is_lost_is_given_up_at_the_next_page() -> None:
    world = World()
    world.open()
    watcher = Watcher(world)
    while world.asked.count("snapshot") < 1:
        watcher.step()
    world.begin()
    while world.asked.count("snapshot") < 2:
        watcher.step()
    world.asked.clear()
    watcher.settle()
    assert world.asked[:2] == ["hello", "hello"], "what it had is of no use"
    assert watcher.told[0].fields["sessions"] == []


def test_a_state_that_went_back_is_a_gap_too() -> None:
    world = World()
    watcher = watched(world)
    change(world, 5)
    watcher.settle()
    del world.log[3:]
    world.revision = 3
    world.proxies["p"] = ("", 2)
    world.greet()
    with pytest.raises(AssertionError, match="nothing was lost"):
        watcher.settle()


# -- snapshots --------------------------------------------------------------------------------


@pytest.mark.parametrize("history", [10_000, 0])
def test_changes_while_a_snapshot_is_read_are_in_it_or_after_it(history: int) -> None:
    chance = random.Random(7)
    for _ in range(30):
        world = World(history=history)
        for _ in range(30):
            world.happen(chance)
        watcher = Watcher(world, page=2)
        while not watcher.told:
            watcher.step()
            if chance.randrange(2):
                world.happen(chance)
        watcher.settle()  # whatever it tells is compared with what was so
        assert watcher.mirror is not None
        assert watcher.mirror.revision == world.revision
        assert "gap" not in watcher.kinds


def test_a_listing_that_is_forgotten_is_begun_again() -> None:
    world = World()
    for i in range(5):
        world.track(f"p{i}", "", 1)
    watcher = Watcher(world, page=2)
    while world.asked.count("snapshot") < 4:
        watcher.step()
    world.restart()
    watcher.settle()
    assert watcher.kinds[0] == "snapshot"
    assert len(watcher.told[0].fields["proxies"]) == 5


def once(world: World, *, busy: bool) -> tuple[list[Event], int]:
    """Take one snapshot; return it, and how often it subscribed."""
    steps, subscribed = Stream().once(), 0
    told: list[Event] = []
    answer: Any = None
    while True:
        try:
            step = steps.send(answer)
        except StopIteration:
            return told, subscribed
        answer = None
        match step:
            case Event():
                told.append(step)
            case Ask():
                answer = world.answer(step)
                if busy:
                    change(world)
            case Subscribe():
                subscribed += 1
                world.published.clear()
                world.greet()
                answer = world.publishes
            case Listen():
                answer = world.published.popleft() if world.published else None


@pytest.mark.parametrize(
    ("history", "busy", "subscribes"), [(0, False, 0), (100, True, 0), (0, True, 1)]
)
def test_one_snapshot_subscribes_when_nothing_else_tells_the_changes(
    history: int, busy: bool, subscribes: int
) -> None:
    world = World(history=history)
    told, subscribed = once(world, busy=busy)
    assert subscribed == subscribes
    (event,) = told
    assert facts_of(Mirror(event.fields)) == world.facts[world.tracker_id, event.revision]


def test_one_snapshot_gives_up_when_nothing_at_all_tells_the_changes() -> None:
    with pytest.raises(NoAnswer, match="history"):
        once(World(history=0, publishes=False), busy=True)


def test_a_listing_of_rows_that_is_forgotten_tells_each_row_once() -> None:
    world = World()
    for i in range(6):
        world.track(f"p{i}", "", 1)
    told: list[str] = []
    pauses: list[float] = []
    steps, answer = read_rows("proxies"), None
    with contextlib.suppress(StopIteration):
        while True:
            step = steps.send(answer)
            answer = None
            match step:
                case Ask():
                    if world.asked.count("snapshot") in {2, 4}:
                        world.restart()
                    answer = world.answer(step._replace(fields={**step.fields, "limit": 2}))
                    assert answer is not None or step.refusable
                case Rows(rows):
                    told += [row["name"] for row in rows]
                case Pause(seconds):
                    pauses.append(seconds)
    assert told == [f"p{i}" for i in range(6)]
    assert len(pauses) == 2
    assert all(0.0 <= pause <= 0.1 for pause in pauses)


# -- the history ------------------------------------------------------------------------------


def logged(world: World, after: int) -> dict[str, Any]:
    steps = read_log(after)
    step = next(steps)
    while isinstance(step, Ask):
        answer = world.answer(step._replace(fields={**step.fields, "limit": 2}))
        assert answer is not None
        change(world)  # a busy daemon is not read forever
        step = steps.send(answer)
    assert isinstance(step, History)
    assert next(steps, None) is None
    return step.fields


@pytest.mark.parametrize(("after", "first"), [(0, 4), (3, 4), (5, 6)])
def test_the_history_is_read_as_a_whole(after: int, first: int) -> None:
    world = World()
    change(world, 7)
    del world.log[:3]
    log = logged(world, after)
    revisions = [event.revision for event in log["events"]]
    assert revisions == list(range(first, revisions[-1] + 1))
    assert 8 <= revisions[-1] <= 10
    assert log["oldest"] == 4


def test_a_history_is_of_one_state() -> None:
    world = World()
    change(world, 7)
    steps = read_log(2)
    first = next(steps)
    assert isinstance(first, Ask)
    page = world.answer(first._replace(fields={**first.fields, "limit": 2}))
    assert page is not None
    second = steps.send(page)
    assert isinstance(second, Ask)
    world.begin()
    change(world, 3)
    page = world.answer(second)
    assert page is not None
    third = steps.send(page)
    assert isinstance(third, Ask)
    page = world.answer(third)
    assert page is not None
    history = steps.send(page)
    assert isinstance(history, History)
    log = history.fields
    assert [event.revision for event in log["events"]] == [3, 4]
    assert (log["newest"], log["tracker_id"]) == (4, world.tracker_id)


def test_rows_of_a_new_state_follow_though_they_have_the_keys_of_old_ones() -> None:
    world = World()
    for _ in range(3):
        world.open()
    numbers = []
    steps, answer = read_rows("sessions"), None
    with contextlib.suppress(StopIteration):
        while True:
            step = steps.send(answer)
            answer = None
            if isinstance(step, Rows):
                numbers += [row["session"] for row in step.rows]
            elif isinstance(step, Ask):
                if world.asked.count("snapshot") == 1:
                    world.begin()
                    world.open()
                answer = world.answer(step._replace(fields={**step.fields, "limit": 2}))
    assert numbers == [1, 2, 1]


def test_a_history_that_is_empty_or_unreadable_says_so() -> None:
    assert logged(World(history=0), 0)["events"] == []
    steps = read_log(0)
    next(steps)
    with pytest.raises(NoAnswer, match="history"):
        steps.send({"events": [5], "newest": 9})


# -- where to listen ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "told", "found"),
    [
        ("ipc:///a/s", "ipc:///b/s.events", "ipc:///a/s.events"),
        ("ipc:///a/s", "ipc:///b/other", "ipc:///b/other"),
        ("ipc:///a/s", "", None),
        (f"ipc:///{'a' * 100}", "ipc:///b/s.events", None),
    ],
)
def test_the_event_socket_is_beside_that_of_the_daemon_as_it_is_seen_from_here(
    endpoint: str, told: str, found: str | None
) -> None:
    assert event_endpoint(endpoint, told) == found
