"""Which tunnels are stale (rule 18): what was reported, and until when they may be silent. Pure.

A lease is judged only once it has reported. Whoever dials reports, and nobody else can: that a
process lives says nothing of its tunnels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from trackd.rules.deadlines import Deadlines

#: The least grace in seconds between the notice to a stale lease and its release.
LEAST_GRACE: Final = 5.0
#: The grace as a share of the timeout, when that is longer.
GRACE_SHARE: Final = 0.25
#: The weight of the newest round-trip time in a smoothed one.
_NEWEST: Final = 1 / 8
#: Seconds by which a look comes too late after a suspend; a busy host causes less.
_SUSPEND: Final = 1.0
#: Seconds that an overdue lease gets when a look comes a little too late.
_MORE_SECONDS: Final = 1.0


def grace_of(timeout: float) -> float:
    """Return the seconds between the notice to a stale lease and its release.

    Args:
        timeout: the seconds for which it was silent.
    """
    return max(LEAST_GRACE, GRACE_SHARE * timeout)


def smooth(before: float | None, rtt: float) -> float:
    """Return a smoothed round-trip time, in seconds.

    Args:
        before: what it was; None: this is the first.
        rtt: the newest.
    """
    return rtt if before is None else before + _NEWEST * (rtt - before)


@dataclass(slots=True, eq=False)
class Life:
    """What is known of a lease that has reported. That it has, and `stale`, survive a restart.

    Attributes:
        lease: its id.
        stale: whether its holder was notified that it is stale.
        reported: when it reported last; None: not since this daemon started.
        rtt: the smoothed round-trip time of its tunnel in seconds; None: it has not said.
        deadline: when it becomes stale, or is released when it is; None: never, or it is gone.
        overdue: whether its deadline has passed once without a look at what waits in the socket.
    """

    lease: int
    stale: bool = False
    reported: float | None = None
    rtt: float | None = None
    deadline: float | None = None
    overdue: bool = False


class Lives:
    """The leases that have reported. Times are seconds of the caller's clock.

    Attributes:
        by_lease: what is known of each.
        timeout: seconds of silence after which one is stale; 0: never.
        stale: how many are stale, and not yet released.
        reported: when any of them reported last, or None.
        rtt: their smoothed round-trip time in seconds, all reports taken together, or None.
    """

    def __init__(self) -> None:
        self.by_lease: dict[int, Life] = {}
        self.timeout = 0.0
        self.stale = 0
        self.reported: float | None = None
        self.rtt: float | None = None
        self._deadlines = Deadlines[Life](lambda life: life.deadline)

    def begin(self, lease: int, *, stale: bool = False) -> None:
        """Add a lease that has reported, without a deadline: only a report or a start sets that."""
        self.by_lease[lease] = Life(lease, stale)
        self.stale += stale

    def mark_stale(self, lease: int) -> None:
        """Mark a lease as stale; KeyError when it has never reported."""
        life = self.by_lease[lease]
        self.stale += not life.stale
        life.stale = True

    def end(self, lease: int) -> None:
        """Forget a lease that is gone."""
        life = self.by_lease.pop(lease, None)
        if life is not None:
            self.stale -= life.stale
            life.deadline = None

    def report(self, life: Life, rtt: float | None, now: float) -> None:
        """Take in a report of a lease that is not stale.

        Args:
            life: of the lease.
            rtt: the round-trip time of its tunnel in seconds, or None.
            now: the time.
        """
        self.reported = life.reported = now
        if rtt is not None:
            life.rtt = smooth(life.rtt, rtt)
            self.rtt = smooth(self.rtt, rtt)
        self._set_deadline(life, now)

    def restart(self, now: float) -> None:
        """Give each lease its whole time again: nobody was heard for a while."""
        for life in self.by_lease.values():
            self._set_deadline(life, now)

    def set_timeout(self, timeout: float, now: float) -> None:
        """Change the timeout; each lease gets its whole time again."""
        self.timeout = timeout
        self._deadlines.clear()
        for life in self.by_lease.values():
            life.deadline = None
            self._set_deadline(life, now)

    def due(self, now: float, late: float = 0.0) -> list[Life]:
        """Return the leases whose time has passed: to notify, or to release those that are stale.

        Args:
            now: the time.
            late: seconds by which this look comes too late. Reports of that time may still lie in
                the socket, so what seems overdue gets more time, once; after a suspend each lease
                gets its whole time.
        """
        due = self._deadlines.past(now)
        if late > 0:
            suspended = late >= _SUSPEND
            for life in list(self.by_lease.values()) if suspended else due:
                if not life.overdue:
                    self._set_deadline(life, now, None if suspended else _MORE_SECONDS)
                    life.overdue = True
            due = self._deadlines.past(now)
        return due

    def begin_grace(self, life: Life, now: float) -> None:
        """Let a lease that has become stale be released after the grace."""
        self._set_deadline(life, now)

    def next(self) -> float | None:
        """Return when the first of them is due, or None."""
        return self._deadlines.next()

    def _set_deadline(self, life: Life, now: float, most: float | None = None) -> None:
        """Give a lease its whole time from now on, or at most so many seconds."""
        life.overdue = False
        seconds = grace_of(self.timeout) if life.stale else self.timeout
        if seconds <= 0:
            return
        deadline = now + (seconds if most is None else min(seconds, most))
        if life.deadline is None:
            life.deadline = deadline
            self._deadlines.add(deadline, life.lease, life)
        else:
            life.deadline = max(life.deadline, deadline)
