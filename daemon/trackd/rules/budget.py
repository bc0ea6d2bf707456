"""The dial budget: a token bucket over all agents of the host. Pure; a grant takes a token.

After an outage every agent wants to dial at once. The budget lets `burst` of them begin, and
then `rate` a second, so that the proxies are not flooded. A rate of 0 turns it off.
"""

from __future__ import annotations


class Budget:
    """A token bucket. Times are seconds of the caller's clock, which never goes back."""

    __slots__ = ("_at", "_tokens", "burst", "rate")

    def __init__(self, rate: float, burst: int) -> None:
        """Begin with a full bucket.

        Args:
            rate: tokens a second; 0 or less for no limit.
            burst: most tokens that it holds.
        """
        self.rate = rate
        self.burst = burst
        self._tokens = float(burst)
        self._at = 0.0

    @property
    def limited(self) -> bool:
        """Whether the rate is limited."""
        return self.rate > 0

    def wait(self, now: float) -> float:
        """Return the seconds until there is a token; 0 when there is one now."""
        if self.rate <= 0:
            return 0.0
        self._fill(now)
        return max(0.0, (1.0 - self._tokens) / self.rate)

    def take(self, now: float) -> None:
        """Take a token. Call it only after `wait` has returned 0."""
        if self.rate > 0:
            self._fill(now)
            self._tokens -= 1.0

    def level(self) -> tuple[float, float]:
        """Return the number of tokens, and the time at which it was that; for the store."""
        return self._tokens, self._at

    def restore(self, tokens: float, at: float) -> None:
        """Continue from the number of tokens and the time that `level` returned."""
        self._tokens = min(tokens, float(self.burst))
        self._at = at

    def change(self, rate: float, burst: int, now: float) -> None:
        """Change the rate and the size; a bucket that had no limit before begins full."""
        if self.limited:
            self._fill(now)
            self._tokens = min(self._tokens, float(burst))
        else:
            self._tokens, self._at = float(burst), now
        self.rate, self.burst = rate, burst

    def _fill(self, now: float) -> None:
        self._tokens = min(float(self.burst), self._tokens + (now - self._at) * self.rate)
        self._at = now
