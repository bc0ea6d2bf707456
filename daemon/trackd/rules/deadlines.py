"""Deadlines that signs of life put off: of sessions by heartbeats, of tunnels by reports. Pure."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush, heapreplace
from typing import Final, Generic, TypeVar

T = TypeVar("T")

#: Entries that may be left of things that are gone, besides as many as there are others.
_MOST_LEFT: Final = 64


class Deadlines(Generic[T]):
    """Knows the earliest of many deadlines, each of which only moves into the future.

    A heap holds each deadline as it was at some time, and an entry is corrected when it comes to
    the top. So to put a deadline off costs nothing here, and no call walks all things.
    """

    def __init__(self, deadline_of: Callable[[T], float | None]) -> None:
        """Begin without any.

        Args:
            deadline_of: returns the present deadline of a thing, or None for one that has none any
                more; that one is forgotten.
        """
        self._deadline_of = deadline_of
        self._heap: list[tuple[float, int, T]] = []
        self._most = _MOST_LEFT

    def add(self, deadline: float, number: int, thing: T) -> None:
        """Add a thing that has no entry.

        Args:
            deadline: its present one.
            number: its own; of equal deadlines the lower number comes first.
            thing: what it is.
        """
        heappush(self._heap, (deadline, number, thing))
        if len(self._heap) > self._most:
            self._heap = [entry for entry in self._heap if self._deadline_of(entry[2]) is not None]
            heapify(self._heap)
            self._most = 2 * len(self._heap) + _MOST_LEFT

    def past(self, now: float) -> list[T]:
        """Return the things whose deadlines are strictly before now, by their numbers."""
        past = []
        while (first := self._first()) is not None and first[0] < now:
            past.append(heappop(self._heap))
        for entry in past:
            heappush(self._heap, entry)
        return [thing for _, _, thing in sorted(past, key=lambda entry: entry[1])]

    def next(self) -> float | None:
        """Return the earliest deadline, or None."""
        first = self._first()
        return None if first is None else first[0]

    def clear(self) -> None:
        """Forget all things, so that deadlines may move into the past."""
        self._heap.clear()

    def _first(self) -> tuple[float, int, T] | None:
        """Return the top of the heap, once it holds the present deadline of its thing."""
        heap = self._heap
        while heap:
            deadline, number, thing = heap[0]
            due = self._deadline_of(thing)
            if due is None:
                heappop(heap)
            elif due > deadline:
                heapreplace(heap, (due, number, thing))
            else:
                return heap[0]
        return None
