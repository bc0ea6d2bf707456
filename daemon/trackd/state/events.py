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
    return 0 if several is None else several[0](change)


def derive_events(change: Change) -> Iterable[Event]:
    """Return the events of a change, in order."""
    kind = type(change)
    if kind in _ONE:
        return (_ONE[kind](change),)
    several = _SEVERAL.get(kind)
    return () if several is None else several[1](change)


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
            for kind, fields in derive_events(change):
                packed.append(pack((first + len(packed), at, wall, kind, fields)))
    return packed


def _of_session_opened(change: changes.SessionOpened) -> Event:
    return "session_opened", {
        "session": change.number,
        "uid": change.uid,
        "pid": change.pid,
        "name": change.name,
        "command": change.command,
        **_host_of(change),
    }


def _of_session_ended(change: changes.SessionEnded) -> Event:
    return "session_ended", {
        "session": change.number,
        "reason": change.reason,
        "name": change.name,
        "pid": change.pid,
        **_host_of(change),
        **_act_of(change.by),
    }


def _of_granted(change: changes.Granted) -> Event:
    return "lease_granted", {
        "lease": change.lease,
        "session": change.number,
        "reason": change.reason,
    }


def _of_claimed(change: changes.Claimed) -> Event:
    return "proxy_claimed", {
        "name": change.name,
        "lease": change.lease,
        "session": change.number,
    }


def _of_renamed(change: changes.Renamed) -> Event:
    return "lease_renamed", {
        "lease": change.lease,
        "session": change.number,
        "name": change.name,
        "before": change.before,
    }


def _of_released(change: changes.Released) -> Event:
    return "lease_released", {
        "lease": change.lease,
        "session": change.number,
        "name": change.name,
        "cause": change.cause,
        **_act_of(change.by),
    }


def _of_forgotten(change: changes.Forgotten) -> Event:
    return "proxy_forgotten", {
        "name": change.name,
        "group": change.group,
        "generation": change.generation,
        **_act_of(change.by),
    }


def _of_count_set(change: changes.CountSet) -> Event:
    return "connection_count", {"count": change.connections, "before": change.before}


def _of_dial_failed(change: changes.DialFailed) -> Event:
    return "dial_failed", {
        "lease": change.lease,
        "session": change.number,
        "reason": change.reason,
        **_retry_after_of(change),
    }


def _of_paused(change: changes.Paused) -> Event:
    return "dials_paused", {
        "scope": _scope_of(change),
        "session": change.number,
        "reason": change.reason,
        "failures": change.failures,
        "until": change.until,
        **_retry_after_of(change),
    }


def _of_resumed(change: changes.Resumed) -> Event:
    return "dials_resumed", {
        "scope": _scope_of(change),
        "session": change.number,
        "why": change.why,
        **_act_of(change.by),
    }


def _of_stale(change: changes.LeaseStale) -> Event:
    return "lease_stale", {"lease": change.lease, "session": change.number, "name": change.name}


def _of_offered(change: changes.Offered) -> Event:
    return "lease_offered", {"lease": change.lease, "session": change.number, "name": change.name}


def _of_tracked(change: changes.Tracked) -> Iterator[Event]:
    for each in change.changed:
        index = each if isinstance(each, int) else each[0]
        name, group, generation, _ = change.rows[index]
        place = {"name": name, "group": group, "generation": generation}
        if isinstance(each, int):
            yield "proxy_tracked", {**place, "session": change.by}
        else:
            old = {"old_group": each[1], "old_generation": each[2]}
            yield "proxy_changed", {**place, **old, "session": change.by}


def _of_expired(change: changes.Expired) -> Iterator[Event]:
    for name, group, generation in change.rows:
        yield "proxy_expired", {"name": name, "group": group, "generation": generation}


def _of_group_forgotten(change: changes.GroupForgotten) -> Iterator[Event]:
    for name, generation in change.rows:
        place = {"name": name, "group": change.group, "generation": generation}
        yield "proxy_forgotten", {**place, **_act_of(change.by)}


def _of_marked(change: changes.Marked) -> Iterator[Event]:
    for name, terminating in change.flipped:
        fields = {"name": name, "terminating": terminating, "session": change.by}
        yield "proxy_marked", fields


def _of_addressed(change: changes.Addressed) -> Iterator[Event]:
    for name, address in change.changed:
        yield "proxy_addressed", {"name": name, "address": address, "session": change.by}


def _of_epoch_began(change: changes.EpochBegan) -> Iterator[Event]:
    started = {"epoch": change.epoch, "server": change.server, "pid": change.pid}
    yield "daemon_started", started
    if _sets_count(change):
        yield "connection_count", {"count": change.connections, "before": change.before}


def _sets_count(change: changes.EpochBegan) -> bool:
    return change.before not in (None, change.connections)


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
_ONE: Final[dict[type[Any], Callable[[Any], Event]]] = {
    changes.SessionOpened: _of_session_opened,
    changes.SessionEnded: _of_session_ended,
    changes.Granted: _of_granted,
    changes.Claimed: _of_claimed,
    changes.Renamed: _of_renamed,
    changes.Released: _of_released,
    changes.Forgotten: _of_forgotten,
    changes.CountSet: _of_count_set,
    changes.DialFailed: _of_dial_failed,
    changes.Paused: _of_paused,
    changes.Resumed: _of_resumed,
    changes.LeaseStale: _of_stale,
    changes.Offered: _of_offered,
}

#: The other kinds that have events: how many a change has, and which.
_SEVERAL: Final[dict[type[Any], tuple[Callable[[Any], int], Callable[[Any], Iterable[Event]]]]] = {
    changes.Tracked: (lambda change: len(change.changed), _of_tracked),
    changes.Expired: (lambda change: len(change.rows), _of_expired),
    changes.GroupForgotten: (lambda change: len(change.rows), _of_group_forgotten),
    changes.Marked: (lambda change: len(change.flipped), _of_marked),
    changes.Addressed: (lambda change: len(change.changed), _of_addressed),
    changes.EpochBegan: (lambda change: 1 + _sets_count(change), _of_epoch_began),
}
