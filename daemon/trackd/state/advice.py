"""Which connection beyond the target is advised to close, and when. Pure.

When the count shrinks or a roll-out ends, there are more connections than are wanted. Once nothing
has changed for a while, one of them at a time is advised to close, and never one that the desired
set needs. A client that keeps its connection all the same is passed over after a while, and advised
again when all others were.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from trackd.rules.tracker import Tracker
from trackd.sessions.sessions import Lease

#: Seconds until the next try when no holder of a candidate has a parked watch.
_RETRY_SECONDS: Final = 1.0
#: Thresholds that an advised client has to release its lease, and the least of that in seconds.
_PATIENCE_THRESHOLDS: Final = 10
_LEAST_PATIENCE: Final = 10.0


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
        self._patience = max(_LEAST_PATIENCE, _PATIENCE_THRESHOLDS * threshold)
        self._advised: list[int] = []  # leases whose holders were advised, in that order
        self._wait_until = 0.0  # when the holder that was last advised is passed over

    def changed(self, now: float) -> None:
        """Restart the wait for `threshold` seconds without a change."""
        self.at = now + self._threshold

    def due(self) -> float | None:
        """Return when the next advice may be given, or None while no connection is in excess."""
        tracker = self._tracker
        excess = tracker.claimed_count - tracker.target
        if (
            self._threshold <= 0
            or tracker.tracked_count == 0
            or excess <= 0
            or tracker.claimed_desired_count < tracker.target
        ):
            return None
        slow = sum(lease in self._leases for lease in self._advised)
        # Those that are slow to close are enough, or the last one may still be about to.
        if slow >= excess or (slow and self._advised[-1] in self._leases):
            return max(self.at, self._wait_until)
        return self.at

    def choose(self, now: float) -> int | None:
        """Return the lease to advise: one that is not desired, or one of too many that are.

        None before it is due, and when no holder of a candidate has a parked watch.
        """
        due = self.due()
        if due is None or now < due:
            return None
        self._advised = [lease for lease in self._advised if lease in self._leases]
        chosen = self._candidate(self._advised)
        if chosen is None and self._advised:
            self._advised = []  # all were advised: begin again
            chosen = self._candidate(())
        if chosen is None:
            self.at = now + _RETRY_SECONDS
        else:
            self._advised.append(chosen)
            self._wait_until = now + self._patience
        return chosen

    def _candidate(self, passed_over: Collection[int]) -> int | None:
        tracker = self._tracker
        chosen: int | None = None
        for lease, name in tracker.leases.items():
            if (
                name is None
                or lease in passed_over
                or self._leases[lease].session.live.watch is None
            ):
                continue
            if not tracker.is_desired(name):
                return lease
            if chosen is None and tracker.claimed_desired_count > tracker.target:
                chosen = lease
        return chosen
