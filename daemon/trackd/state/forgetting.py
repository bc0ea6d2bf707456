"""How an administrator makes the daemon forget a proxy, a whole group, or one generation of it.

A whole group: when it is gone although old gossip names it. One generation: when nobody deployed
it; one message with the largest generation of all makes everything else of its group undesired.
"""

from __future__ import annotations

from typing import NamedTuple

from trackd.rules.tombstones import Tombstone
from trackd.sessions.identity import Peer
from trackd.state import aiming
from trackd.state.changes import Forgotten, GroupForgotten
from trackd.state.decide import Decisions, peer_of
from trackd.state.marking import unmark


class ForgottenGroup(NamedTuple):
    """What was forgotten.

    Attributes:
        names: the proxies that are not tracked any more.
        until: until when gossip of these generations is ignored, in seconds of CLOCK_BOOTTIME.
    """

    names: list[str]
    until: float


def forget_proxy(decide: Decisions, name: str, by: Peer) -> Tombstone | None:
    """Drop a proxy, and keep old gossip from bringing it back until its TTL has passed.

    Args:
        decide: makes the change.
        name: of the proxy.
        by: the administrator.

    Returns:
        Its tombstone; None when it is not tracked.
    """
    tracker, tombstones = decide.state.tracker, decide.state.tombstones
    if tracker.get(name) is None:
        return None
    mention = tracker.mentions.of(name)
    place = tracker.place(name)
    until = decide.now + mention.ttl
    dropped = tombstones.too_many(name)
    decide.mark(unmark(tracker, [name]))
    decide.do_all(aiming.forget(tracker, [name]))
    decide.do(Forgotten(name, *place, until, [mention.number], dropped, peer_of(by)))
    decide.follow_from([name])
    decide.topology_changed()
    return tombstones.get(name)


def forget_group(
    decide: Decisions, group: str, generation: int | None, by: Peer
) -> ForgottenGroup | None:
    """Drop the proxies of a group, and keep old gossip from bringing them back.

    Args:
        decide: makes the change.
        group: its name.
        generation: drop this one only, and ignore no other; None: the whole group, and then
            gossip up to its present generation is ignored.
        by: the administrator.

    Returns:
        What was dropped; None when there was nothing.
    """
    tracker, tombstones = decide.state.tracker, decide.state.tombstones
    largest = tracker.newest(group)
    if largest is None:
        return None
    low, high = (0, largest) if generation is None else (generation, generation)
    names = tracker.names_of(group, low, high)
    if not names:
        return None
    until = decide.now + max(tracker.ttl_of(name) for name in names)
    rows = [(name, tracker.place(name).generation) for name in names]
    decide.mark(unmark(tracker, names))
    decide.do_all(aiming.forget(tracker, names))
    leaves, dropped = tracker.mentions.left_by(names), tombstones.too_many_groups(group)
    decide.do(GroupForgotten(group, low, high, until, rows, leaves, dropped, peer_of(by)))
    decide.follow_from(names)
    decide.topology_changed()
    return ForgottenGroup(names, until)
