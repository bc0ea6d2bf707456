"""Which connection beyond the target is advised to close, and when (rule 19). Pure.

When the count shrinks or a roll-out ends, there are more connections than are wanted. Once nothing
has changed for a while, one of them at a time is advised to close: the slowest of the desired ones,
and much later those that are not desired. A client that keeps its connection all the same is passed
over after a while, and advised again when all others were.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

from trackd.rules.liveness import Lives
from trackd.rules.tracker import Tracker
from trackd.sessions.sessions import Lease

#: Seconds until the next look when no holder of a candidate has a parked watch.
_RETRY_SECONDS: Final = 1.0
#: Seconds until the next look when figures are missing.
_FIGURES_RETRY: Final = 5.0
#: Seconds that missing figures are waited for.
_FIGURES_SECONDS: Final = 60.0
#: Seconds that an advised client has to release its lease.
_PATIENCE: Final = 30.0
#: Thresholds without a change after which what is not desired is advised to close.
_UNDESIRED_THRESHOLDS: Final = 10
#: Seconds by which two round-trip times may differ and count as the same.
_SAME_RTT: Final = 0.01


class _Found(NamedTuple):
    """What a look at all claims has found.

    Attributes:
        desired: those that may be advised, each with the round-trip time of its tunnel, or None.
        undesired: the first one of the others that may be, or None.
        complete: whether all claimed desired leases have such a time.
    """

    desired: list[tuple[int, float | None]]
    undesired: int | None
    complete: bool


class Advice:
    """Chooses the connection that should close. Times are seconds of the caller's clock.

    Attributes:
        threshold: seconds without a change before an advice; 0 for no advice. May be set.
    """

    def __init__(
        self, tracker: Tracker, leases: Mapping[int, Lease], lives: Lives, threshold: float
    ) -> None:
        """Begin without any advice given.

        Args:
            tracker: which proxies are claimed and desired.
            leases: who owns which lease.
            lives: the round-trip times of tunnels.
            threshold: see above.
        """
        self.threshold = threshold
        self._tracker = tracker
        self._leases = leases
        self._lives = lives
        self._changed = 0.0  # when connections or topology changed last
        self._look_at = 0.0  # not before this time
        self._advised: list[int] = []  # leases whose holders were advised, in that order
        self._wait_until = 0.0  # when the holder that was last advised is passed over

    def changed(self, now: float) -> None:
        """Restart the wait for `threshold` seconds without a change."""
        self._changed = now

    def due(self) -> float | None:
        """Return when the next look is due, or None while no connection is in excess."""
        tracker = self._tracker
        excess = tracker.claimed_count - tracker.claimed_terminating_count - tracker.target
        desired = self._desired_excess()
        if self.threshold <= 0 or tracker.tracked_count == 0 or excess <= 0 or desired < 0:
            return None
        thresholds = 1 if desired > 0 else _UNDESIRED_THRESHOLDS
        at = max(self._changed + thresholds * self.threshold, self._look_at)
        slow = sum(lease in self._leases for lease in self._advised)
        # Those that are slow to close are enough, or the last one may still be about to.
        if slow >= (desired or excess) or (slow and self._advised[-1] in self._leases):
            return max(at, self._wait_until)
        return at

    def choose(self, now: float) -> int | None:
        """Return the lease to advise; None: none for now.

        A tunnel to a terminating proxy is left to that proxy, and one that is offered to who takes
        it over.
        """
        due = self.due()
        if due is None or now < due:
            return None
        self._advised = [lease for lease in self._advised if lease in self._leases]
        found = self._look(self._advised)
        if self._desired_excess() > 0 and self._lacks_figures(found, now):
            self._look_at = now + _FIGURES_RETRY
            return None
        chosen = self._pick(found, now)
        if chosen is None and self._advised:
            self._advised = []  # all were advised: begin again
            chosen = self._pick(self._look(()), now)
        if chosen is None:
            self._look_at = now + _RETRY_SECONDS
        else:
            self._advised.append(chosen)
            self._wait_until = now + _PATIENCE
        return chosen

    def _desired_excess(self) -> int:
        """Return how many more desired connections there are than wanted; negative: fewer."""
        tracker = self._tracker
        return tracker.claimed_desired_count - tracker.offered_desired_count - tracker.target

    def _lacks_figures(self, found: _Found, now: float) -> bool:
        """Return whether to wait for round-trip times; not where nobody reports."""
        if found.complete or not self._lives.by_lease:
            return False
        return now < self._changed + self.threshold + _FIGURES_SECONDS

    def _pick(self, found: _Found, now: float) -> int | None:
        if self._desired_excess() > 0 and found.desired:
            return slowest(found.desired)
        if now < self._changed + _UNDESIRED_THRESHOLDS * self.threshold:
            return None
        return found.undesired

    def _look(self, passed_over: Collection[int]) -> _Found:
        tracker, lives = self._tracker, self._lives.by_lease
        desired: list[tuple[int, float | None]] = []
        undesired, complete = None, True
        for lease, name in tracker.leases.items():
            if name is None:
                continue
            life = lives.get(lease)
            rtt, is_desired = None if life is None else life.rtt, tracker.is_desired(name)
            complete = complete and (rtt is not None or not is_desired)
            if (
                lease in passed_over
                or tracker.is_terminating(name)  # its proxy ends it
                or tracker.is_offered(lease)
                or self._leases[lease].session.live.watch is None
            ):
                continue
            if is_desired:
                desired.append((lease, rtt))
            elif undesired is None:
                undesired = lease
        return _Found(desired, undesired, complete)


def slowest(leases: Collection[tuple[int, float | None]]) -> int:
    """Return the lease of the slowest tunnel; of those that are as slow, the youngest.

    One whose round-trip time is not known comes last. There must be one lease at least.
    """
    highest = max((rtt for _, rtt in leases if rtt is not None), default=None)
    if highest is None:
        return max(lease for lease, _ in leases)
    return max(lease for lease, rtt in leases if rtt is not None and highest - rtt <= _SAME_RTT)
