"""What dials of the whole host that met held proxies say of the load balancer. Pure.

An agent by itself sees a few dials, and each one would have to learn anew what the others know. So
the daemon counts for all of them, and hints at it in its replies. Nothing here is stored: after a
restart the next dials say it again.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from typing import Final, NamedTuple

#: Dials in a row that met a held proxy from which on there may be a hint.
LEAST: Final = 20
#: Chance explains what an even balancer brings more often than this.
_RARE: Final = 0.01
#: The last dials of a row whose proxies are compared.
_WINDOW: Final = 128
#: Seconds without any such dial that end a row: what it has shown may have changed.
_FORGET: Final = 60.0


class Hint(NamedTuple):
    """What a row of dials that met held proxies says of the load balancer.

    Attributes:
        balancer: `sticky` (the same few proxies were met again and again), or `even` (nearly all
            proxies were met; those that are missing are away, or the balancer does not know them).
        in_a_row: how many dials in a row met a held proxy.
        met: the proxies that the last ones met, the most frequent first.
    """

    balancer: str
    in_a_row: int
    met: list[str]


class Luck:
    """The dials in a row that met a held proxy, since one claimed its proxy.

    Times are seconds of the caller's clock, which never goes back.

    Attributes:
        in_a_row: how many there are.
    """

    __slots__ = ("_expected", "_last", "_met", "in_a_row")

    def __init__(self) -> None:
        self._met: deque[str] = deque(maxlen=_WINDOW)
        self._last = -math.inf
        self.claimed()

    def claimed(self) -> None:
        """Note that a dial has claimed its proxy."""
        self.in_a_row = 0
        self._met.clear()
        self._expected = 0.0

    def met(self, name: str, chance: float, now: float) -> None:
        """Note that a dial through the balancer has met a held proxy.

        Args:
            name: of the proxy.
            chance: the probability that a dial through an even balancer meets a missing one.
            now: the time.
        """
        if now - self._last > _FORGET:
            self.claimed()
        self._last = now
        self.in_a_row += 1
        self._met.append(name)
        self._expected += chance

    def hint(self, known: int, now: float) -> Hint | None:
        """Return what the row says; None when chance explains it, or it is over.

        Args:
            known: how many proxies the balancer may send to.
            now: the time.
        """
        rare = self.in_a_row >= LEAST and math.exp(-self._expected) < _RARE
        if not rare or now - self._last > _FORGET:
            return None
        times = Counter(self._met)
        # An even balancer meets so many different proxies with so many dials, on average.
        even = round(known * (1 - (1 - 1 / max(known, 1)) ** len(self._met)))
        balancer = "sticky" if len(times) == 1 or 2 * len(times) <= even else "even"
        return Hint(balancer, self.in_a_row, [name for name, _ in times.most_common()])
