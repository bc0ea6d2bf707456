"""Whether enough of the wanted tunnels are there, and how long to wait for them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from trackd_client.core.arguments import check_number
from trackd_client.errors import BadArgument

#: Seconds between two looks, at first and at most.
_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 0.5


def count_missing(counts: Mapping[str, Any]) -> int:
    """Return how many wanted connections are missing, given a status or an explanation.

    One to a terminating proxy counts for as long as it is there.
    """
    there: int = counts["claimed_desired"] + counts.get("claimed_terminating", 0)
    target: int = counts["target"]
    return max(0, target - there)


class Wanted(NamedTuple):
    """How many tunnels are enough.

    Attributes:
        at_least: so many desired proxies have a tunnel; None: `missing_at_most` decides.
        missing_at_most: so many wanted tunnels are missing at most: `3`, or a share: `"10%"`.
        allow_none: whether it is enough when no tunnel is wanted.
    """

    at_least: int | None = None
    missing_at_most: int | str = 0
    allow_none: bool = False

    def check(self) -> None:
        """Refuse what is no number of tunnels.

        Raises:
            BadArgument: `at_least` or `missing_at_most` is none.
        """
        least, most = self.at_least, self.missing_at_most
        if least is not None and not (_is_int(least) and least > 0):
            raise BadArgument(f"at_least must be a positive number, not {least!r:.100}")
        if isinstance(most, str):
            number = most.removesuffix("%")
            if not (number != most and number.isascii() and number.isdecimal()):
                raise BadArgument(f"missing_at_most must be a share like '10%', not {most!r:.100}")
            if len(number) > 3 or int(number) > 100:
                raise BadArgument(f"missing_at_most is more than 100%: {most!r:.100}")
        elif not (_is_int(most) and most >= 0):
            raise BadArgument(f"missing_at_most must be 0 or more, not {most!r:.100}")

    def is_enough(self, status: Mapping[str, Any]) -> bool:
        """Return whether a status shows enough tunnels."""
        target: int = status["target"]
        if self.at_least is not None:
            return bool(status["claimed_desired"] >= self.at_least)
        most = self.missing_at_most
        allowed = target * int(most[:-1]) // 100 if isinstance(most, str) else most
        return count_missing(status) <= allowed and (self.allow_none or target > 0)


def pauses(timeout: float | None) -> Iterator[float]:
    """Yield the seconds to wait before each further look, until the time is up.

    Args:
        timeout: seconds from now, or None for no limit.

    Raises:
        BadArgument: it is no number of seconds.
    """
    if timeout is not None:
        check_number(timeout, "timeout")
    return _pauses(None if timeout is None else time.monotonic() + timeout)


def _pauses(deadline: float | None) -> Iterator[float]:
    pause = _PAUSE
    while deadline is None or (left := deadline - time.monotonic()) > 0:
        yield pause if deadline is None else min(pause, left)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
