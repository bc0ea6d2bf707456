"""Which agents flap: start again and again. It is read from the daemon's events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final, NamedTuple

from trackd_client.core.event import Event

#: Starts of one agent within so many seconds from which it counts as flapping.
STARTS: Final = 3
WINDOW: Final = 600.0


class Flapping(NamedTuple):
    """An agent that starts again and again.

    Attributes:
        command: what its processes ran; `""` when that is hidden.
        name: what it calls itself.
        uid: its user id.
        starts: how many sessions it opened within the window.
        running: how many of those have not ended.
        last: when the last one was opened, in Unix time.
        ended: how many of those ended, by the reason.
        host: the host that it runs on, in a fleet, or "".
    """

    command: str
    name: str
    uid: int
    starts: int
    running: int
    last: float
    ended: dict[str, int]
    host: str = ""


def find_flapping(events: Iterable[Event], since: float) -> list[Flapping]:
    """Return the agents that flap, the worst one first.

    Agents are the same when host, user, command and name are. One process that opens many sessions
    at once, as a program with many trackers does, is one start.

    Args:
        events: of the daemon, oldest first.
        since: Unix time at which the window begins.
    """
    opened: dict[tuple[str, int, str, str], list[Event]] = {}
    ended: dict[int, str] = {}
    for event in events:
        if event.wall < since:
            continue
        fields = event.fields
        if event.kind == "session_opened":
            key = fields.get("host", ""), fields["uid"], fields["command"], fields["name"]
            opened.setdefault(key, []).append(event)
        elif event.kind == "session_ended":
            ended[fields["session"]] = fields["reason"]
    found = []
    for (host, uid, command, name), starts in opened.items():
        processes = {event.fields["pid"]: event.fields["session"] for event in starts}
        if len(processes) < STARTS:
            continue
        reasons = Counter(ended[each] for each in processes.values() if each in ended)
        running = len(processes) - reasons.total()
        if running < len(processes) - 1:  # several that only run at the same time do not flap
            last = starts[-1].wall
            counts = len(processes), running, last, dict(reasons)
            found.append(Flapping(command, name, uid, *counts, host))
    return sorted(found, key=lambda each: (-each.starts, each.command, each.name))
