"""The pause after failed dials (rule 17): until when nobody dials, and who tries first. Pure.

The host has one pause for all of its agents, and each session has one of its own. Each failure
that counts makes it longer. When it has ended, one dial at a time may try, until one of them shows
that dials succeed again. Until a failure is reported there is no pause.
"""

from __future__ import annotations

from typing import Final, NamedTuple

#: Failures that pause the whole host, and those that pause only the session that reports them.
HOST_REASONS: Final = frozenset({"refused", "timeout", "tls", "rate"})
#: Those that say nothing of other proxies when the dial was aimed at one by its address.
ADDRESS_REASONS: Final = frozenset({"refused", "timeout", "tls"})
SESSION_REASONS: Final = frozenset({"auth", "other"})
#: Seconds of the first pause at most; it doubles with each failure that counts, up to a bound.
BASE: Final = 0.5
LONGEST: Final = 15.0
#: Seconds after which a probe without an outcome makes room for another one.
PROBE_SECONDS: Final = 5.0
#: Seconds that the lease of a claim lives before it ends the pause.
PROVEN_SECONDS: Final = 10.0
#: Claims of one pause that are watched for that.
_MOST_CLAIMS: Final = 16


class Pause(NamedTuple):
    """A pause; the store keeps it.

    Attributes:
        failures: those in a row that counted.
        until: when it ends; at that moment it still holds.
        after: the lease that was granted last before it began; of earlier ones no failure counts.
        reason: why the last dial that counted has failed.
        retry_after: the seconds that its other end asked for, or None.
        session: the number of the session that reported it.
        uid: the user of that session.
        pid: its process.
        agent: what it calls itself, or its command.
        host: the host of that user; "" for the daemon's own.
    """

    failures: int
    until: float
    after: int
    reason: str
    retry_after: float | None
    session: int
    uid: int
    pid: int
    agent: str
    host: str = ""


class Backoff:
    """The pause of a host or of a session. Times are seconds of the caller's clock.

    Attributes:
        pause: the pause, also after its end, until a dial shows that dials succeed; or None.
    """

    __slots__ = ("_claims", "_probe", "_probe_until", "pause")

    def __init__(self, pause: Pause | None = None) -> None:
        """Begin with a pause of which no probe is known, or without any."""
        self.pause = pause
        self._probe: int | None = None
        self._probe_until = 0.0
        self._claims: dict[int, float] = {}  # leases of probes, and when they were granted

    def counts(self, lease: int) -> bool:
        """Return whether a failure counts: its lease was granted after the last one that did."""
        return self.pause is None or lease > self.pause.after

    def next_failures(self) -> int:
        """Return the number of failures in a row, with another one."""
        return 1 if self.pause is None else self.pause.failures + 1

    def begin(self, pause: Pause) -> None:
        """Begin a pause, or a longer one."""
        self.pause = pause
        self._probe = None
        self._claims.clear()

    def end(self) -> None:
        """End the pause: failures count from 1 again."""
        self.pause = None
        self._claims.clear()

    def begin_probe(self, lease: int, granted: float) -> None:
        """Note a lease that was granted after the end of the pause."""
        self._probe = lease
        self._probe_until = granted + PROBE_SECONDS

    def note_claim(self, lease: int, granted: float) -> None:
        """Note that a lease has claimed: it is no probe any longer, and may end the pause."""
        if lease == self._probe:
            self._probe = None
        if self.pause is not None and lease > self.pause.after and len(self._claims) < _MOST_CLAIMS:
            self._claims[lease] = granted

    def end_lease(self, lease: int) -> None:
        """Note that a lease is gone."""
        if lease == self._probe:
            self._probe = None
        self._claims.pop(lease, None)

    def held_until(self, now: float) -> float | None:
        """Return until when no lease may be granted, or None when one may be granted now."""
        if self.pause is None or self.is_proven(now):
            return None
        if now <= self.pause.until:
            return self.pause.until
        return self._probe_until if self._probe is not None and now <= self._probe_until else None

    def is_proven(self, now: float) -> bool:
        """Return whether the lease of a claim has lived so long that the pause ends."""
        proven = self._proven_at()
        return proven is not None and proven < now

    def due(self, now: float) -> float | None:
        """Return when something changes by itself, or None."""
        moments = (self.held_until(now), self._proven_at())
        return min((moment for moment in moments if moment is not None), default=None)

    def _proven_at(self) -> float | None:
        return min(self._claims.values()) + PROVEN_SECONDS if self._claims else None


def pause_seconds(failures: int, retry_after: float | None, jitter: float) -> float:
    """Return how long a pause lasts.

    Args:
        failures: those in a row that counted.
        retry_after: the seconds that the other end asked for, or None; it is never shorter.
        jitter: from 0 to 1, drawn at random, so that hosts do not come back in step.
    """
    bound = min(LONGEST, BASE * 2.0 ** min(failures - 1, 32))
    return max(bound * (1.0 + jitter) / 2.0, retry_after or 0.0)
