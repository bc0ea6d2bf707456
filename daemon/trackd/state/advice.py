"""Which connection beyond the target is advised to close, and when. Pure.

When the count shrinks or a roll-out ends, there are more connections than are wanted. Once nothing
has changed for a while, one of them at a time is advised to close, and never one that the desired
set needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from trackd.rules.tracker import Tracker
from trackd.sessions.sessions import Lease

#: Seconds until the next try when no holder of a candidate has a parked watch.
_RETRY_SECONDS: Final = 1.0


class Advice:
    """Chooses the connection that should close. Times are seconds of the caller's clock.

    Attributes:
        at: when the next advice may be given.
    """

    def __init__(self, tracker: Tracker, leases: Mapping[int, Lease], threshold: float) -> None:
        """Begin without any advice given.

        Args:
            tracker: which proxies are claimed and desired.
            leases: who owns which lease.
            threshold: seconds without a change before an advice; 0 for no advice.
        """
        self.at = 0.0
        self._tracker = tracker
        self._leases = leases
        self._threshold = threshold
        self._advised: int | None = None  # the lease whose holder was last advised

    def changed(self, now: float) -> None:
        """Restart the wait for `threshold` seconds without a change."""
        self.at = now + self._threshold

    def due(self) -> float | None:
        """Return when the next advice may be given, or None while no connection is in excess."""
        tracker = self._tracker
        surplus = (
            self._threshold > 0
            and tracker.tracked_count > 0
            and tracker.claimed_count > tracker.target
            and tracker.claimed_desired_count >= tracker.target
            and (self._advised is None or self._advised not in self._leases)
        )
        return self.at if surplus else None

    def choose(self, now: float) -> int | None:
        """Return the lease to advise: one that is not desired, or one of too many that are.

        None before it is due, and when no holder of a candidate has a parked watch.
        """
        due = self.due()
        if due is None or now < due:
            return None
        tracker = self._tracker
        chosen: int | None = None
        for lease, name in tracker.leases.items():
            if name is None or self._leases[lease].session.live.watch is None:
                continue
            if not tracker.is_desired(name):
                chosen = lease
                break
            if chosen is None and tracker.claimed_desired_count > tracker.target:
                chosen = lease
        if chosen is None:
            self.at = now + _RETRY_SECONDS
        else:
            self._advised = chosen
        return chosen
