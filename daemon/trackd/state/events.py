"""Derives the events of a change. Pure: the living daemon and a restart get the same events.

Each event has a revision of its own, and the revisions have no gap. docs/protocol.md describes the
kinds and their fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import msgpack

from trackd.state import changes
from trackd.state.changes import By, Change, Moment

#: An event without its revision and time: its kind and its fields.
Event = tuple[str, dict[str, Any]]


def count_events(change: Change) -> int:
    """Return how many events a change has."""
    kind = type(change)
    if kind in _ONE:
        return 1
    several = _SEVERAL.get(kind)
    return 0 if several is None else several(change)


def pack_events(batch: Iterable[Moment], first: int) -> list[bytes]:
    """Return the events of a batch, packed for the history, subscribers and replies.

    Args:
        batch: the changes.
        first: the revision of the first event.
    """
    packed: list[bytes] = []
    pack = msgpack.Packer().pack
    for at, wall, made in batch:
        for change in made:
            if not count_events(change):  # as with half of all changes: a reply is kept
                continue
            for kind, fields in derive_events(change):
                packed.append(pack((first + len(packed), at, wall, kind, fields)))
    return packed


def derive_events(change: Change) -> Iterator[Event]:
    """Yield the events of a change, in order."""
    match change:
        case changes.SessionOpened():
            yield (
                "session_opened",
                {
                    "session": change.number,
                    "uid": change.uid,
                    "pid": change.pid,
                    "name": change.name,
                    "command": change.command,
                    **_host_of(change),
                },
            )
        case changes.SessionEnded():
            yield (
                "session_ended",
                {
                    "session": change.number,
                    "reason": change.reason,
                    "name": change.name,
                    "pid": change.pid,
                    **_host_of(change),
                    **_act_of(change.by),
                },
            )
        case changes.Granted():
            yield (
                "lease_granted",
                {"lease": change.lease, "session": change.number, "reason": change.reason},
            )
        case changes.Claimed():
            yield (
                "proxy_claimed",
                {"name": change.name, "lease": change.lease, "session": change.number},
            )
        case changes.Renamed():
            yield (
                "lease_renamed",
                {
                    "lease": change.lease,
                    "session": change.number,
                    "name": change.name,
                    "before": change.before,
                },
            )
        case changes.GroupForgotten():
            for name, generation in change.rows:
                place = {"name": name, "group": change.group, "generation": generation}
                yield "proxy_forgotten", {**place, **_act_of(change.by)}
        case changes.Released():
            yield (
                "lease_released",
                {
                    "lease": change.lease,
                    "session": change.number,
                    "name": change.name,
                    "cause": change.cause,
                    **_act_of(change.by),
                },
            )
        case changes.Tracked():
            yield from _events_of_gossip(change)
        case changes.Expired():
            for name, group, generation in change.rows:
                yield (
                    "proxy_expired",
                    {"name": name, "group": group, "generation": generation},
                )
        case changes.Forgotten():
            yield (
                "proxy_forgotten",
                {
                    "name": change.name,
                    "group": change.group,
                    "generation": change.generation,
                    **_act_of(change.by),
                },
            )
        case changes.Marked():
            for name, terminating in change.flipped:
                fields = {"name": name, "terminating": terminating, "session": change.by}
                yield "proxy_marked", fields
        case changes.Addressed():
            for name, address in change.changed:
                yield (
                    "proxy_addressed",
                    {"name": name, "address": address, "session": change.by},
                )
        case changes.DialFailed():
            yield (
                "dial_failed",
                {
                    "lease": change.lease,
                    "session": change.number,
                    "reason": change.reason,
                    **_retry_after_of(change),
                },
            )
        case changes.Paused():
            yield (
                "dials_paused",
                {
                    "scope": _scope_of(change),
                    "session": change.number,
                    "reason": change.reason,
                    "failures": change.failures,
                    "until": change.until,
                    **_retry_after_of(change),
                },
            )
        case changes.Resumed():
            yield (
                "dials_resumed",
                {
                    "scope": _scope_of(change),
                    "session": change.number,
                    "why": change.why,
                    **_act_of(change.by),
                },
            )
        case changes.LeaseStale():
            yield (
                "lease_stale",
                {"lease": change.lease, "session": change.number, "name": change.name},
            )
        case changes.Offered():
            yield (
                "lease_offered",
                {"lease": change.lease, "session": change.number, "name": change.name},
            )
        case changes.CountSet():
            yield "connection_count", {"count": change.connections, "before": change.before}
        case changes.EpochBegan():
            yield (
                "daemon_started",
                {"epoch": change.epoch, "server": change.server, "pid": change.pid},
            )
            if change.before not in (None, change.connections):
                yield "connection_count", {"count": change.connections, "before": change.before}
        case _:
            pass


def _events_of_gossip(change: changes.Tracked) -> Iterator[Event]:
    for each in change.changed:
        index = each if isinstance(each, int) else each[0]
        name, group, generation, _ = change.rows[index]
        place = {"name": name, "group": group, "generation": generation}
        if isinstance(each, int):
            yield "proxy_tracked", {**place, "session": change.by}
        else:
            old = {"old_group": each[1], "old_generation": each[2]}
            yield "proxy_changed", {**place, **old, "session": change.by}


def _scope_of(change: changes.Paused | changes.Resumed) -> str:
    return "host" if change.token is None else "session"


def _retry_after_of(change: changes.DialFailed | changes.Paused) -> dict[str, Any]:
    return {} if change.retry_after is None else {"retry_after": change.retry_after}


def _host_of(change: changes.SessionOpened | changes.SessionEnded) -> dict[str, Any]:
    return {"host": change.host} if change.host else {}


def _act_of(by: By) -> dict[str, Any]:
    """Return the fields of an event that name the administrator, or none."""
    if by is None:
        return {}
    uid, pid, *host = by
    fields: dict[str, Any] = {"by_uid": uid, "by_pid": pid}
    return {**fields, "by_host": host[0]} if host else fields


#: The kinds that always have one event.
_ONE: Final = frozenset(
    {
        changes.SessionOpened,
        changes.SessionEnded,
        changes.Granted,
        changes.Claimed,
        changes.Renamed,
        changes.Released,
        changes.Forgotten,
        changes.CountSet,
        changes.DialFailed,
        changes.Paused,
        changes.Resumed,
        changes.LeaseStale,
        changes.Offered,
    }
)

#: How many events a change has of the kinds where that differs.
_SEVERAL: Final[dict[type[Any], Callable[[Any], int]]] = {
    changes.Tracked: lambda change: len(change.changed),
    changes.Expired: lambda change: len(change.rows),
    changes.GroupForgotten: lambda change: len(change.rows),
    changes.Marked: lambda change: len(change.flipped),
    changes.Addressed: lambda change: len(change.changed),
    changes.EpochBegan: lambda change: 1 + (change.before not in (None, change.connections)),
}
