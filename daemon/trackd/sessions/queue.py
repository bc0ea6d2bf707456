"""The queue of parked acquires: fair between sessions (rule 13). Pure; it grants nothing itself.

Each waiter has a tag: 1 + the tag of its session's last waiter, or, when the session has none,
1 + the largest tag that was served. The lowest tag is served first, the earlier arrival when tags
are equal. So the waiters of a session are served in their order, and a session that parks many
requests is served once or twice before any other one that waits.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator

from trackd.sessions.sessions import Session, Waiter


class Queue:
    """Waiters in the order of their arrival, with their turns and deadlines beside it.

    Attributes:
        last_order: the highest order of a waiter so far.
        last_served: the largest tag that was served.
        aside: waiters that are passed over, by the number of their session.
    """

    def __init__(self) -> None:
        self.last_order = 0
        self.last_served = 0
        self.aside: dict[int, list[Waiter]] = {}
        self._waiters: OrderedDict[int, Waiter] = OrderedDict()
        # Heaps, by the order of a waiter last. Entries of waiters that left early stay until they
        # are on top, or too many.
        self._turns: list[tuple[int, int]] = []
        self._deadlines: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._waiters)

    def __iter__(self) -> Iterator[Waiter]:
        return iter(self._waiters.values())

    def next_tag(self, session: Session) -> int:
        """Return the tag of the next waiter of a session."""
        last = next(reversed(session.parked.values()), None)
        return 1 + (self.last_served if last is None else last.tag)

    def add(self, waiter: Waiter) -> None:
        """Put a waiter at the end. Its order must be higher than all before it."""
        self._waiters[waiter.order] = waiter
        self.last_order = max(self.last_order, waiter.order)
        heapq.heappush(self._turns, (waiter.tag, waiter.order))
        if len(self._turns) > 2 * len(self._waiters) + 64:
            self._turns = [(w.tag, w.order) for w in self._waiters.values()]
            heapq.heapify(self._turns)
        if waiter.deadline is not None:
            heapq.heappush(self._deadlines, (waiter.deadline, waiter.order))
            if len(self._deadlines) > 2 * len(self._waiters) + 64:
                self._deadlines = [
                    (w.deadline, w.order) for w in self._waiters.values() if w.deadline is not None
                ]
                heapq.heapify(self._deadlines)

    def first(self) -> Waiter | None:
        """Return the waiter whose turn it is, or None."""
        while self._turns and self._turns[0][1] not in self._waiters:
            heapq.heappop(self._turns)
        return self._waiters[self._turns[0][1]] if self._turns else None

    def set_aside(self) -> None:
        """Pass over the first waiter, until `bring_back` of its session."""
        waiter = self._waiters[heapq.heappop(self._turns)[1]]
        self.aside.setdefault(waiter.session.id, []).append(waiter)

    def bring_back(self, session: int) -> None:
        """Let the waiters of a session that were passed over wait for their turn again."""
        for waiter in self.aside.pop(session, ()):
            heapq.heappush(self._turns, (waiter.tag, waiter.order))

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
