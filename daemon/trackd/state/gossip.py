"""Decides what gossip changes: which proxies exist, where they belong, when they expire. No I/O.

An agent repeats itself: nearly all messages only move expiries, which is one small change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from trackd.rules.gossip import Run, last_rows, runs
from trackd.rules.mentions import GossipRow
from trackd.rules.registry import Place
from trackd.sessions.sessions import Session
from trackd.state import aiming, changes, marking
from trackd.state.decide import Decisions

#: What a message of gossip without words on termination says.
NOTHING: Final[Mapping[str, bool]] = MappingProxyType({})
#: What one without addresses says.
NOWHERE: Final[Mapping[str, str]] = MappingProxyType({})


def mention(
    decide: Decisions,
    session: Session,
    rows: Sequence[GossipRow],
    said: Mapping[str, bool] = NOTHING,
    parts: Iterable[Run] | None = None,
) -> None:
    """Take in gossip that only moves expiries: `Tracker.unknown` has found nothing in it.

    Args:
        decide: reads the state, and makes the changes.
        session: who sent it.
        rows: the message, as it was received.
        said: the names of which it says whether they are terminating.
        parts: its runs, where they are known already.
    """
    _count_gossip(decide, session, rows)
    _move_expiries(decide, session, runs(rows) if parts is None else parts)
    decide.lone.note(decide.state.tracker.mentions, session.id)
    if said:
        _mark_by_gossip(decide, session, rows, {}, said)


def track(
    decide: Decisions,
    session: Session,
    rows: Sequence[GossipRow],
    said: Mapping[str, bool] = NOTHING,
    addresses: Mapping[str, str] = NOWHERE,
) -> int:
    """Take in checked gossip; return how many proxies changed their group or generation.

    Args:
        decide: reads the state, and makes the changes.
        session: who sent it.
        rows: the message.
        said: the names of which it says whether they are terminating.
        addresses: what it says of addresses, by name; "" withdraws one.
    """
    _count_gossip(decide, session, rows)
    tracker, tombstones = decide.state.tracker, decide.state.tombstones
    if tombstones:
        rows = [row for row in rows if not tombstones.keeps_away(row, decide.now)]
    rows = last_rows(rows)
    changed = tracker.changed_by(rows)
    if not changed:
        if rows:
            _move_expiries(decide, session, runs(rows))
            decide.lone.note(tracker.mentions, session.id)
        if said:
            _mark_by_gossip(decide, session, rows, {}, said)
        if addresses:
            _address_by_gossip(decide, session, rows, {}, addresses)
        return 0
    for i, before in changed:
        decide.metrics.lowered_generations += (
            before is not None and before.group == rows[i][1] and rows[i][2] < before.generation
        )
    mentions = tracker.mentions
    decide.do(
        changes.Tracked(
            mentions.last + 1,
            session.id,
            tracker.proxy_expiry,
            rows,
            [i if before is None else (i, *before) for i, before in changed],
            mentions.left_by([row[0] for row in rows]),
        )
    )
    for i, before in changed:
        if before is None:
            decide.lone.begin(rows[i][0], decide.now)
    decide.lone.note(mentions, session.id)
    if said or tracker.marks.by_name:
        moved = {rows[i][0]: before for i, before in changed}
        _mark_by_gossip(decide, session, rows, moved, said)
    if addresses or tracker.targets.by_name:
        moved = {rows[i][0]: before for i, before in changed}
        _address_by_gossip(decide, session, rows, moved, addresses)
    if decide.state.aliases.by_lease:
        decide.follow(rows[i][0] for i, before in changed if before is None)
    decide.topology_changed()
    return len(changed)


def _count_gossip(decide: Decisions, session: Session, rows: Sequence[GossipRow]) -> None:
    session.live.gossip += 1
    decide.metrics.gossip_messages += 1
    decide.metrics.gossip_proxies += len(rows)


def _move_expiries(decide: Decisions, session: Session, parts: Iterable[Run]) -> None:
    tracker = decide.state.tracker
    mentions = tracker.mentions
    numbers: list[int] = []  # to renew, in one change: there may be as many TTLs as proxies
    ttls: list[float] = []
    for ttl, names in parts:
        used = tracker.ttl_used(ttl)
        renewed = mentions.renewable(names)
        if renewed is not None:
            numbers.append(renewed.number)
            ttls.append(used)
            continue
        _renew(decide, session, numbers, ttls)
        numbers, ttls = [], []
        number, leaves = mentions.last + 1, mentions.left_by(names)
        decide.do(changes.Mentioned(number, session.id, used, names, leaves))
    _renew(decide, session, numbers, ttls)


def _renew(decide: Decisions, session: Session, numbers: list[int], ttls: list[float]) -> None:
    if len(numbers) == 1:
        decide.do(changes.Renewed(numbers[0], session.id, ttls[0]))
    elif numbers:
        decide.do(changes.RenewedEach(numbers, session.id, ttls))


def _mark_by_gossip(
    decide: Decisions,
    session: Session,
    rows: Sequence[GossipRow],
    moved: Mapping[str, Place | None],
    said: Mapping[str, bool],
) -> None:
    tracker, flips, by = decide.state.tracker, decide.flips, session.id
    if flips.waiting:
        for name in moved:
            flips.waiting.pop(name, None)
    if said:
        known = {name: word for name, word in said.items() if name not in moved}
        at_once = flips.admit(tracker.marks, rows, known, decide.now, tracker.proxy_expiry, by)
        said = {name: word for name, word in said.items() if name in moved or name in at_once}
    decide.mark(marking.mark_by_gossip(tracker, rows, moved, said, decide.now, by))


def _address_by_gossip(
    decide: Decisions,
    session: Session,
    rows: Sequence[GossipRow],
    moved: Mapping[str, Place | None],
    said: Mapping[str, str],
) -> None:
    tracker, by = decide.state.tracker, (session.id, session.peer.user)
    decide.do_all(aiming.address_by_gossip(tracker, rows, moved, said, decide.now, by))
