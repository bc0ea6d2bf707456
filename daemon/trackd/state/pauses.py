"""Decides when dials pause and when they go on (rule 17), from what agents report. No I/O.

The pauses are durable; who probes and which claims may end them is not, and a restart finds it in
the leases. While nobody has reported a failure there is no pause, and nothing here is called.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from typing import Final

from trackd.rules.backoff import (
    ADDRESS_REASONS,
    HOST_REASONS,
    PROVEN_SECONDS,
    Backoff,
    pause_seconds,
)
from trackd.sessions.sessions import Session
from trackd.state.changes import By, Change, DialFailed, Paused, Resumed
from trackd.state.sources import source_of
from trackd.state.state import State

#: Dials of which `explain` says how they ended; so many that failed are kept.
MOST_DIALS: Final = 40


class Pauses:
    """The pauses of one state: that of the host, and those of sessions.

    Attributes:
        failures: when the last dials failed, and why.
    """

    def __init__(
        self,
        state: State,
        do: Callable[[Change], None],
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Begin, after a restart in the midst of a pause too.

        Args:
            state: what to read.
            do: makes a change.
            jitter: returns a random number from 0 to 1.
        """
        self.failures: deque[tuple[float, str]] = deque(maxlen=MOST_DIALS)
        self._state = state
        self._do = do
        self._jitter = jitter
        # When a session may be served again, or its pause ends, and its number: a heap.
        self._moments: list[tuple[float, int]] = []
        if state.backoff.pause is not None:
            self._find_probes(state.backoff, sorted(state.leases))
        for session in state.paused.values():
            assert session.backoff is not None
            assert session.backoff.pause is not None
            moments = [session.backoff.pause.until]
            moments += self._find_probes(session.backoff, sorted(session.leases))
            for moment in moments:
                heappush(self._moments, (moment, session.id))

    def _find_probes(self, backoff: Backoff, leases: list[int]) -> list[float]:
        """Find the probes of a pause; return when their claims may end it."""
        assert backoff.pause is not None
        moments = []
        for lease in leases:
            if lease > backoff.pause.after:
                granted = self._state.leases[lease].granted
                backoff.begin_probe(lease, granted)
                if lease not in self._state.in_flight:
                    backoff.note_claim(lease, granted)
                    moments.append(granted + PROVEN_SECONDS)
        return moments

    def report(
        self, session: Session, lease: int, reason: str, retry_after: float | None, now: float
    ) -> None:
        """Take in how the dial of a lease ended, while the lease is still there.

        Args:
            session: which has the lease.
            lease: its id.
            reason: why the dial failed; `held`: it reached a proxy that another lease holds.
            retry_after: the seconds that its other end asked for, or None.
            now: seconds of CLOCK_BOOTTIME.
        """
        if reason == "held":
            self.end_by(session, "held")
            return
        self._do(DialFailed(lease, session.id, reason, retry_after))
        self.failures.append((now, reason))
        if reason in ADDRESS_REASONS and lease in self._state.tracker.targets.aims:
            return  # it says nothing of the balancer: rule 16 pauses dials of this address alone
        token = None if reason in HOST_REASONS else session.token
        backoff = self._state.backoff if token is None else session.backoff or Backoff()
        if backoff.counts(lease):
            failures = backoff.next_failures()
            until = now + pause_seconds(failures, retry_after, self._jitter())
            who = source_of(session)
            self._do(Paused(token, session.id, failures, until, reason, retry_after, *who))

    def held_until(self, session: Session | None, now: float) -> float | None:
        """Return until when nothing is granted to a session (None: to any), or None for now."""
        host = self._state.backoff.held_until(now)
        if session is None or session.backoff is None:
            return host
        own = session.backoff.held_until(now)
        return own if host is None else host if own is None else max(host, own)

    def set_aside(self, session: Session, now: float) -> bool:
        """Pass over the first waiter if its session pauses; return whether it does."""
        until = None if session.backoff is None else session.backoff.held_until(now)
        if until is None:
            return False
        self._state.queue.set_aside()
        heappush(self._moments, (until, session.id))
        return True

    def granted(self, session: Session, lease: int, now: float) -> None:
        """Note a grant: a probe, where a pause has ended and no dial has shown anything yet."""
        for backoff in self._backoffs(session):
            backoff.begin_probe(lease, now)

    def claimed(self, session: Session, lease: int) -> None:
        """Note a claim, which ends a pause when its lease has lived for some seconds."""
        granted = self._state.leases[lease].granted
        for backoff in self._backoffs(session):
            backoff.note_claim(lease, granted)
        if session.backoff is not None:
            heappush(self._moments, (granted + PROVEN_SECONDS, session.id))
            self._state.queue.bring_back(session.id)

    def released(self, session: Session, lease: int) -> None:
        """Note that a lease is gone."""
        for backoff in self._backoffs(session):
            backoff.end_lease(lease)
        if session.backoff is not None:
            self._state.queue.bring_back(session.id)

    def end_by(self, session: Session, why: str) -> None:
        """End the pauses of the host and of a session: one of its dials reached a proxy."""
        if self._state.backoff.pause is not None:
            self._do(Resumed(None, session.id, why, None))
        if session.backoff is not None:
            self.end_own(session, why)

    def end_own(self, session: Session, why: str, by: By = None) -> None:
        """End the pause of a session."""
        self._do(Resumed(session.token, session.id, why, by))
        self._state.queue.bring_back(session.id)

    def resume(self, by: By) -> int:
        """End all pauses, because an administrator asks; return how many there were."""
        paused = list(self._state.paused.values())
        host = self._state.backoff.pause is not None
        if host:
            self._do(Resumed(None, None, "asked", by))
        for session in paused:
            self.end_own(session, "asked", by)
        return host + len(paused)

    def sweep(self, now: float) -> None:
        """End the pauses that claims have ended by now, and let the sessions wait for a turn."""
        state = self._state
        if state.backoff.is_proven(now):
            self._do(Resumed(None, None, "stayed_up", None))
        while self._moments and self._moments[0][0] < now:
            session = state.sessions.by_id.get(heappop(self._moments)[1])
            if session is None:
                continue
            if session.backoff is not None and session.backoff.is_proven(now):
                self.end_own(session, "stayed_up")
            state.queue.bring_back(session.id)

    def due(self, now: float) -> float | None:
        """Return when the next sweep has something to do here, or None."""
        host = self._state.backoff.due(now) if self._state.backoff.pause is not None else None
        first = self._moments[0][0] if self._moments else None
        return min((each for each in (host, first) if each is not None), default=None)

    def _backoffs(self, session: Session) -> Iterator[Backoff]:
        """Yield those of the host and of a session that have a pause."""
        if self._state.backoff.pause is not None:
            yield self._state.backoff
        if session.backoff is not None:
            yield session.backoff
