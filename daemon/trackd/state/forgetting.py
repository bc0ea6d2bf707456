"""How an administrator makes the daemon forget a whole group, or one generation of it.

For a group that is gone although old gossip names it, and for a generation that nobody deployed:
one message with the largest generation of all makes everything else of its group undesired.
"""

from __future__ import annotations

from typing import NamedTuple

from trackd.rules.tombstones import GroupTombstone
from trackd.sessions.identity import Peer
from trackd.state.state import State, act_of


class ForgottenGroup(NamedTuple):
    """What was forgotten.

    Attributes:
        names: the proxies that are not tracked any more.
        until: until when gossip of these generations is ignored, in seconds of CLOCK_BOOTTIME.
    """

    names: list[str]
    until: float


def forget_group(
    state: State, group: str, generation: int | None, by: Peer
) -> ForgottenGroup | None:
    """Drop the proxies of a group, and keep old gossip from bringing them back.

    Args:
        state: of the daemon.
        group: its name.
        generation: drop this one only, and ignore no other; None: the whole group, and then
            gossip up to its present generation is ignored.
        by: the administrator.

    Returns:
        What was dropped; None when there was nothing.
    """
    tracker = state.tracker
    largest = tracker.largest(group)
    if largest is None:
        return None
    low, high = (0, largest) if generation is None else (generation, generation)
    names = tracker.names_of(group, low, high)
    if not names:
        return None
    until = state.effects.now() + max(tracker.ttl_of(name) for name in names)
    dropped = state.tombstones.add_group(group, GroupTombstone(low, high, until))
    state.changes.record(["forget_group", group, low, high, until], ("forgotten_group", group))
    state.changes.touched += [("forgotten_group", each) for each in dropped]
    for name in names:
        place = tracker.forget(name)
        assert place is not None
        state.mentions.pop(name, None)
        state.changes.touched.append(("proxy", name))
        fields = {"name": name, "group": group, "generation": place.generation}
        state.changes.emit("proxy_forgotten", **fields, **act_of(by))
    state.topology_changed()
    return ForgottenGroup(names, until)
