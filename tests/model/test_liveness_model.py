"""Rule 18 against a naive model: a list of when each lease was last given its whole time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trackd.rules.liveness import Lives

picks = st.integers(0, 9)
seconds = st.sampled_from((0.0, 0.5, 1.0, 4.0, 8.0, 30.0))
timeouts = st.sampled_from((0.0, 8.0, 40.0))


@dataclass
class Known:
    """What the model knows of a lease: whether it is stale, and when its time began."""

    stale: bool
    since: float


class Liveness(RuleBasedStateMachine):
    """Sweeps are never late here; tests of `Lives` say what follows then."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.lives = Lives()
        self.known: dict[int, Known] = {}
        self.timeout = 0.0
        self.last = 0

    @initialize(timeout=timeouts)
    def begin(self, timeout: float) -> None:
        self.configure(timeout)

    @rule(timeout=timeouts)
    def configure(self, timeout: float) -> None:
        if timeout == self.timeout:
            return
        self.timeout = timeout
        self.lives.set_timeout(timeout, self.now)
        self.restart()

    @rule()
    def grant(self) -> None:
        """Let a new lease report; ids are never used again."""
        self.last += 1
        self.lives.begin(self.last)
        self.report_of(self.last)

    @precondition(lambda self: self.known)
    @rule(pick=picks)
    def report(self, pick: int) -> None:
        lease = sorted(self.known)[pick % len(self.known)]
        if not self.known[lease].stale:  # what is stale is refused before
            self.report_of(lease)

    def report_of(self, lease: int) -> None:
        self.known[lease] = Known(False, self.now)
        self.lives.report(self.lives.by_lease[lease], None, self.now)

    @precondition(lambda self: self.known)
    @rule(pick=picks)
    def release(self, pick: int) -> None:
        lease = sorted(self.known)[pick % len(self.known)]
        del self.known[lease]
        self.lives.end(lease)

    @rule()
    def restart(self) -> None:
        self.lives.restart(self.now)
        for known in self.known.values():
            known.since = self.now

    @rule(passed=seconds)
    def sweep(self, passed: float) -> None:
        self.now += passed
        due = [lease for lease, known in sorted(self.known.items()) if self.is_due(known)]
        found = self.lives.due(self.now)
        assert [life.lease for life in found] == due
        for life in found:
            known = self.known[life.lease]
            assert life.stale == known.stale
            if known.stale:
                self.lives.end(life.lease)
                del self.known[life.lease]
            else:
                self.lives.mark_stale(life.lease)
                self.lives.begin_grace(life, self.now)
                self.known[life.lease] = Known(True, self.now)

    def time_of(self, known: Known) -> float:
        return max(5.0, self.timeout / 4) if known.stale else self.timeout

    def is_due(self, known: Known) -> bool:
        time = self.time_of(known)
        return time > 0 and self.now > known.since + time

    @invariant()
    def the_next_end_is_the_earliest(self) -> None:
        ends = [
            known.since + self.time_of(known)
            for known in self.known.values()
            if self.time_of(known) > 0
        ]
        assert self.lives.next() == min(ends, default=None)

    @invariant()
    def the_counts_are_true(self) -> None:
        assert set(self.lives.by_lease) == set(self.known)
        assert self.lives.stale == sum(known.stale for known in self.known.values())


TestLiveness: Any = pytest.mark.rule(18)(Liveness.TestCase)
