"""The numbers of requests that a session is done with, as ranges."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

from trackd_client.errors import Code
from trackd_client.wire.errors import ProtocolError

#: The array of all empty sets.
_NO_RANGES: Final[list[int]] = []


class Done:
    """A set of request numbers, kept as ranges: the numbers that are done with.

    On the wire it is a flat array ``[first, last, first, last, …]``, ascending, with a gap
    between one range and the next. It is short: one range that starts at 1, and another for
    each request that waits. Such an array is never edited: several sets may share one.
    """

    __slots__ = ("ranges",)

    def __init__(self, ranges: Sequence[int] = ()) -> None:
        self.ranges: list[int] = list(ranges) if ranges else _NO_RANGES

    def __contains__(self, seq: int) -> bool:
        ranges = self.ranges
        if not ranges or seq > ranges[-1]:  # nearly always
            return False
        i = bisect_left(ranges, seq)
        return i % 2 == 1 or (i < len(ranges) and ranges[i] == seq)

    def size(self) -> int:
        """Return how many numbers are in the set."""
        ranges = self.ranges
        return sum(ranges[1::2]) - sum(ranges[::2]) + len(ranges) // 2

    def update(self, more: list[int], most: int | None = None) -> bool:
        """Add ranges; return whether that changed anything.

        Args:
            more: ranges, as on the wire.
            most: ranges that the set may hold after that; None for any number.

        Raises:
            ProtocolError: `limit_exceeded`; then nothing has changed.
        """
        ranges = self.ranges
        if ranges == more:
            return False
        if more and more[:-1] == ranges[:-1]:  # nearly always: the last range has grown
            if more[-1] < ranges[-1]:
                return False
            self.ranges = [*ranges[:-1], more[-1]]
            return True
        pairs = sorted(
            (both[i], both[i + 1]) for both in (ranges, more) for i in range(0, len(both), 2)
        )
        merged: list[int] = []
        for first, last in pairs:
            if merged and first <= merged[-1] + 1:
                merged[-1] = max(merged[-1], last)
            else:
                merged += (first, last)
        if most is not None and len(merged) > 2 * most:
            raise ProtocolError(
                Code.LIMIT_EXCEEDED, f"done would leave gaps between more than {most} ranges"
            )
        changed = merged != ranges
        self.ranges = merged
        return changed
