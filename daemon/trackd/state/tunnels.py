"""Decides which tunnels are stale (rule 18), from what their leases report. No I/O.

That a lease reports and that it is stale are durable; what it reported last is not. While nobody
has reported, nothing here is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from trackd.sessions.sessions import Session
from trackd.state.changes import Change, LeaseStale, ReportsBegan
from trackd.state.state import State


class Tunnels:
    """The tunnels of one state whose leases report."""

    def __init__(
        self,
        state: State,
        do: Callable[[Change], None],
        notify: Callable[[Session, dict[str, Any]], None],
        free: Callable[[Session, int, str], None],
    ) -> None:
        """Begin to decide.

        Args:
            state: what to read.
            do: makes a change.
            notify: notifies a session.
            free: takes a lease back from a session, for a cause.
        """
        self._state = state
        self._do = do
        self._notify = notify
        self._free = free

    def report(self, session: Session, reports: Iterable[Sequence[Any]], now: float) -> list[int]:
        """Take in signs of life of tunnels.

        Args:
            session: which sent them.
            reports: leases, and the round-trip times of their tunnels in seconds, or None.
            now: seconds of CLOCK_BOOTTIME.

        Returns:
            The leases that the session does not have, or not for long: their tunnels must close.
        """
        lives, gone = self._state.lives, list[int]()
        for lease, rtt in reports:
            life = lives.by_lease.get(lease)
            if lease not in session.leases or (life is not None and life.stale):
                gone.append(lease)
                continue
            if life is None:
                self._do(ReportsBegan(lease))
                life = lives.by_lease[lease]
            lives.report(life, rtt, now)
        return gone

    def sweep(self, now: float, late: float) -> None:
        """Notify the holders of leases that have become stale, and release those of before.

        Args:
            now: seconds of CLOCK_BOOTTIME.
            late: seconds by which this comes too late.
        """
        state = self._state
        for life in state.lives.due(now, late):
            lease = life.lease
            session = state.leases[lease].session
            if life.stale:
                self._free(session, lease, "stale")
                continue
            self._do(LeaseStale(lease, session.id, state.tracker.lease_name(lease)))
            state.lives.begin_grace(life, now)
            self._notify(session, {"notice": "lease_revoked", "lease": lease, "cause": "stale"})
