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
        return max(0.0, (1.0 - self.tokens(now)) / self.rate)

    def take(self, now: float) -> None:
        """Take a token. Call it only after `wait` has returned 0."""
        if self.rate > 0:
            self.restore(self.tokens(now) - 1.0, now)

    def tokens(self, now: float) -> float:
        """Return the number of tokens at a moment, of a rate that is limited."""
        return min(float(self.burst), self._tokens + (now - self._at) * self.rate)

    def level(self) -> tuple[float, float]:
        """Return a number of tokens, and the time at which it was that; for the store."""
        return self._tokens, self._at

    def restore(self, tokens: float, at: float) -> None:
        """Continue from the number of tokens and the time that `level` returned."""
        self._tokens = min(tokens, float(self.burst))
        self._at = at

    def change(self, rate: float, burst: int, now: float) -> None:
        """Change the rate and the size; a bucket that had no limit before begins full."""
        tokens = self.tokens(now) if self.limited else float(burst)
        self.rate, self.burst = rate, burst
        self.restore(tokens, now)
