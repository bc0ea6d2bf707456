"""The names that claims presented, so that gossip finds a tunnel by each of them. Pure.

A proxy presents several names (principals), and which of them gossip uses is not known before it
comes. A claim that came first holds the first name, as rule 7 says. When gossip then tracks another
one of its names, it is the same proxy: the lease holds that name from then on, or a second tunnel
would be dialled to it. See "Another name for a claim" in `docs/rules.md`.
"""

from __future__ import annotations

from collections.abc import Iterator

from trackd.rules.tracker import Tracker
from trackd.sessions.sessions import Lease

#: Principals kept of a claim.
MOST_ALIASES = 8


class Presented:
    """Which leases presented which names with their claims."""

    def __init__(self, tracker: Tracker) -> None:
        """Begin without any.

        Args:
            tracker: which names are tracked and held.
        """
        self._tracker = tracker
        self._ending = f".{tracker.cluster_name}"
        self._leases: dict[str, dict[int, None]] = {}  # by name; the oldest claim first

    def add(self, lease: int, held: Lease) -> None:
        """Note what a lease presented that has claimed."""
        for name in self._names(held):
            self._leases.setdefault(name, {})[lease] = None

    def remove(self, lease: int, held: Lease) -> None:
        """Forget what a lease presented."""
        for name in self._names(held):
            leases = self._leases.get(name, {})
            leases.pop(lease, None)
            if not leases:
                self._leases.pop(name, None)

    def of(self, name: str) -> list[int]:
        """Return the leases that presented a name, the oldest claim first."""
        return list(self._leases.get(name, ()))

    def right_name(self, lease: int, held: Lease) -> str | None:
        """Return the name that a lease should hold instead of its own; None to keep that.

        It keeps a name that is tracked. Otherwise it is the first name that it presented which is
        tracked and which no lease holds.
        """
        tracker = self._tracker
        own = tracker.lease_name(lease)
        if own is None or tracker.is_tracked(own):
            return None
        return next(
            (
                name
                for name in self._names(held)
                if tracker.is_tracked(name) and tracker.holder(name) is None
            ),
            None,
        )

    def _names(self, held: Lease) -> Iterator[str]:
        """Yield what the claim may mean: its principals, and what rule 7 makes of the first."""
        yield from held.principals
        if held.principals and (short := held.principals[0].removesuffix(self._ending)):
            yield short
