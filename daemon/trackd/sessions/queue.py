"""The queue of parked acquires: first come, first served. Pure; it grants nothing itself."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator

from trackd.sessions.sessions import Waiter


class Queue:
    """Waiters in the order of their arrival, with their deadlines beside it."""

    def __init__(self) -> None:
        self.last_order = 0
        self._waiters: OrderedDict[int, Waiter] = OrderedDict()
        # Entries of waiters that left early stay until they are on top, or too many.
        self._deadlines: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._waiters)

    def __iter__(self) -> Iterator[Waiter]:
        return iter(self._waiters.values())

    def add(self, waiter: Waiter) -> None:
        """Put a waiter at the end. Its order must be higher than all before it."""
        self._waiters[waiter.order] = waiter
        self.last_order = max(self.last_order, waiter.order)
        if waiter.deadline is not None:
            heapq.heappush(self._deadlines, (waiter.deadline, waiter.order))
            if len(self._deadlines) > 2 * len(self._waiters) + 64:
                self._deadlines = [
                    (w.deadline, w.order) for w in self._waiters.values() if w.deadline is not None
                ]
                heapq.heapify(self._deadlines)

    def first(self) -> Waiter | None:
        """Return the waiter that has waited longest, or None."""
        return next(iter(self._waiters.values()), None)

    def remove(self, waiter: Waiter) -> None:
        """Take a waiter out, at any place in the queue."""
        del self._waiters[waiter.order]

    def next_deadline(self) -> float | None:
        """Return the earliest deadline of a waiter, or None."""
        while self._deadlines and self._deadlines[0][1] not in self._waiters:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def late(self, now: float) -> list[Waiter]:
        """Return the waiters whose deadline has passed, the earliest first. They stay queued."""
        found = []
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            found.append(self._waiters[heapq.heappop(self._deadlines)[1]])
        return found
