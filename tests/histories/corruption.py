"""One wrong thing in a right history, at random: the checker must find nearly all of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from histories.vocabulary import Call
from trackd_client import Event

Corruption = Callable[[random.Random, list[Call], list[Event]], object]


def corrupt(chance: random.Random, history: list[Call], events: list[Event]) -> str:
    """Change one thing in a history; return what. Some changes are no lie, but few."""
    kind = chance.choice(sorted(_KINDS))
    _KINDS[kind](chance, history, events)
    return kind


def _pick(chance: random.Random, calls: list[Call], *ops: str) -> int:
    """Return the place of a call with a reply that is no error, of one of these operations."""
    places = [
        place
        for place, call in enumerate(calls)
        if call.op in ops and call.reply is not None and "error" not in call.reply
    ]
    return chance.choice(places)


def _say(calls: list[Call], place: int, **reply: Any) -> None:
    calls[place] = replace(calls[place], reply={**(calls[place].reply or {}), **reply})


def _pick_event(chance: random.Random, events: list[Event], *kinds: str) -> int:
    return chance.choice([place for place, event in enumerate(events) if event.kind in kinds])


def _drop_event(chance: random.Random, _: list[Call], events: list[Event]) -> None:
    """Leave an event out, and number the others as if there had been none."""
    place = chance.randrange(1, len(events))
    events[place:] = [event._replace(revision=event.revision - 1) for event in events[place + 1 :]]


def _repeat_event(chance: random.Random, _: list[Call], events: list[Event]) -> None:
    place = chance.randrange(1, len(events))
    events[place:] = [
        events[place],
        *(event._replace(revision=event.revision + 1) for event in events[place:]),
    ]


def _swap_events(chance: random.Random, _: list[Call], events: list[Event]) -> None:
    """Exchange two events that are some apart."""
    first = chance.randrange(1, len(events) - 10)
    second = first + chance.randrange(3, 10)
    one, other = events[first], events[second]
    events[first] = other._replace(revision=one.revision)
    events[second] = one._replace(revision=other.revision)


def _other_lease(chance: random.Random, _: list[Call], events: list[Event]) -> None:
    place = _pick_event(chance, events, "lease_granted", "lease_released", "proxy_claimed")
    fields = events[place].fields
    lease = fields["lease"] + chance.choice([-2, -1, 1, 2])
    events[place] = events[place]._replace(fields={**fields, "lease": lease})


def _other_session(chance: random.Random, _: list[Call], events: list[Event]) -> None:
    kinds = ("lease_granted", "lease_released", "proxy_claimed", "session_ended")
    place = _pick_event(chance, events, *kinds)
    fields = events[place].fields
    session = fields["session"] + chance.choice([-1, 1])
    events[place] = events[place]._replace(fields={**fields, "session": session})


def _other_name(chance: random.Random, _: list[Call], events: list[Event]) -> None:
    place = _pick_event(chance, events, "proxy_claimed", "proxy_tracked", "proxy_expired")
    fields = events[place].fields
    events[place] = events[place]._replace(fields={**fields, "name": f"{fields['name']}x"})


def _flip_claimed(chance: random.Random, calls: list[Call], _: list[Event]) -> None:
    place = _pick(chance, calls, "is_claimed", "claim")
    claimed = not (calls[place].reply or {})["claimed"]
    _say(calls, place, claimed=claimed)


def _flip_released(chance: random.Random, calls: list[Call], _: list[Event]) -> None:
    place = _pick(chance, calls, "release")
    _say(calls, place, released=not (calls[place].reply or {})["released"])


def _other_grant(chance: random.Random, calls: list[Call], _: list[Event]) -> None:
    place = _pick(chance, calls, "try_acquire", "acquire", "adopt")
    lease = (calls[place].reply or {})["lease"]
    _say(calls, place, lease=1 if lease is None else chance.choice([None, lease + 1, lease - 1]))


def _other_revision(chance: random.Random, calls: list[Call], _: list[Event]) -> None:
    """Move a reply that acknowledges a change by some revisions."""
    place = _pick(chance, calls, "claim", "release", "try_acquire", "acquire", "adopt", "status")
    _say(calls, place, revision=max(1, calls[place].revision + chance.choice([-9, -5, 5, 9])))


def _other_count(chance: random.Random, calls: list[Call], _: list[Event]) -> None:
    place = _pick(chance, calls, "status")
    field = chance.choice(["tracked", "desired", "claimed", "inflight", "sessions", "last_lease"])
    _say(calls, place, **{field: (calls[place].reply or {})[field] + chance.choice([-1, 1])})


def _drop_row(chance: random.Random, calls: list[Call], _: list[Event]) -> None:
    place = chance.choice(
        [n for n, call in enumerate(calls) if call.op == "snapshot" and (call.reply or {})["rows"]]
    )
    rows = [*(calls[place].reply or {})["rows"]]
    rows.pop(chance.randrange(len(rows)))
    _say(calls, place, rows=rows)


def _late(chance: random.Random, calls: list[Call], _: list[Event]) -> None:
    """Move a call that changed something behind all others."""
    changes = [
        place
        for place, call in enumerate(calls)
        if call.reply is not None
        and (call.reply.get("claimed") or call.reply.get("released") or call.reply.get("lease"))
        and call.op != "is_claimed"
    ]
    place = chance.choice(changes)
    last = max(call.end for call in calls if call.reply is not None)
    calls[place] = replace(calls[place], start=last + 1, end=last + 2)


def _drop_call(chance: random.Random, calls: list[Call], _: list[Event]) -> None:
    """Leave a call out that changed something."""
    place = _pick(chance, calls, "claim", "release", "adopt", "close")
    reply = calls[place].reply or {}
    if calls[place].op == "close" or reply.get(
        "claimed", reply.get("released", reply.get("lease"))
    ):
        del calls[place]
    else:
        _drop_call(chance, calls, _)


_KINDS: dict[str, Corruption] = {
    function.__name__.strip("_"): function
    for function in (
        *(_drop_event, _repeat_event, _swap_events, _other_lease, _other_session, _other_name),
        *(_flip_claimed, _flip_released, _other_grant, _other_revision, _other_count),
        *(_drop_row, _late, _drop_call),
    )
}
