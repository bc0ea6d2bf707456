"""Which tracked names expire when.

The clock never goes back, so names with the same TTL expire in the order of their mentions: one
first-in-first-out queue for each TTL in use, nearly always one or two, and a heap over the queues
by the expiry of their heads. Mentioning a name again moves it to the end of its queue and leaves
only the heap, however often it happens.

The index never reads a clock. Names leave it only through `pop_expired` and `drop`.
"""

from collections import OrderedDict
from collections.abc import Iterable
from heapq import heapify, heappop, heappush, heapreplace
from itertools import groupby
from operator import itemgetter

GossipRow = tuple[str, str, int, float | None]
"""A proxy as gossip mentions it: name, group, generation, TTL in seconds."""

TTL_OF = itemgetter(3)
"""Returns the TTL of a row."""

_RESTORED = 0.0  # the key of the queue of restored names; a TTL in use is never 0


class Expiries:
    """Names and when they expire. Times are seconds of the caller's clock, TTLs seconds.

    With q queues, a mention costs O(1), or O(log q) amortised when its queue is new; `pop_expired`
    pays O(1) for each name that it returns and O(log q) for each queue whose head has moved.
    """

    __slots__ = ("_compact_at", "_heap", "_queue_of", "_queues")

    def __init__(self) -> None:
        self._queues: dict[float, OrderedDict[str, float]] = {}
        self._queue_of: dict[str, OrderedDict[str, float]] = {}
        # (expiry, TTL), one for each queue. The expiry may be earlier than that of the queue's
        # head, never later; it is put right when it reaches the root. A queue that has become
        # empty stays until then, or until there are too many of them.
        self._heap: list[tuple[float, float]] = []
        self._compact_at = 16

    def mention(self, rows: Iterable[GossipRow], now: float, default_ttl: float) -> None:
        """Set the expiry of every name in the rows to its TTL from now.

        Args:
            rows: The proxies. A TTL that is missing or not positive means `default_ttl`.
            now: The time of the mention; never earlier than that of the one before.
            default_ttl: Positive.
        """
        for ttl, run in groupby(rows, TTL_OF):
            self.mention_names([row[0] for row in run], ttl, now, default_ttl)

    def mention_names(
        self, names: Iterable[str], ttl: float | None, now: float, default_ttl: float
    ) -> None:
        """Set the expiry of names that share a TTL to that TTL from now.

        Args:
            names: The names.
            ttl: Seconds; when it is missing or not positive, `default_ttl` counts.
            now: The time of the mention; never earlier than that of the one before.
            default_ttl: Positive.
        """
        used = default_ttl if ttl is None or ttl <= 0 else ttl
        expiry = now + used
        queue = self._queue(used, expiry)
        move_to_end = queue.move_to_end
        for name in names:
            if name in queue:
                move_to_end(name)
            else:
                old = self._queue_of.get(name)
                if old is not None:
                    del old[name]
                self._queue_of[name] = queue
            queue[name] = expiry

    def restore(self, expiries: Iterable[tuple[float, str, float | None]]) -> None:
        """Take over names with expiry and TTL, in any order, into an empty index.

        Names with the same TTL were mentioned in the order of their expiry. None stands for a TTL
        that is not known.
        """
        for expiry, name, ttl in sorted(expiries, key=itemgetter(0, 1)):
            queue = self._queue(_RESTORED if ttl is None else ttl, expiry)
            queue[name] = expiry
            self._queue_of[name] = queue

    def pop_expired(self, now: float) -> list[str]:
        """Remove the names whose expiry is strictly before now, and return them."""
        expired: list[str] = []
        heap = self._heap
        while heap and heap[0][0] < now:
            ttl = heap[0][1]
            queue = self._queues[ttl]
            while queue:
                name, expiry = _first(queue)
                if expiry >= now:
                    heapreplace(heap, (expiry, ttl))
                    break
                del queue[name], self._queue_of[name]
                expired.append(name)
            else:
                heappop(heap)
                del self._queues[ttl]
        return expired

    def drop(self, name: str) -> None:
        """Forget a name before its time; KeyError when it is not here."""
        del self._queue_of.pop(name)[name]

    def ttl_of(self, name: str) -> float | None:
        """Return the TTL of a name's last mention; None when it is not known."""
        queue = self._queue_of[name]
        return next(ttl for ttl, each in self._queues.items() if each is queue) or None

    def next_expiry(self) -> float | None:
        """Return the earliest expiry, or None without names. O(1) amortised."""
        heap = self._heap
        while heap:
            known, ttl = heap[0]
            queue = self._queues[ttl]
            if not queue:
                heappop(heap)
                del self._queues[ttl]
                continue
            expiry = _first(queue)[1]
            if expiry == known:
                return expiry
            heapreplace(heap, (expiry, ttl))
        return None

    def expiry_of(self, name: str) -> float:
        """Return when a name expires; KeyError when it is not here."""
        return self._queue_of[name][name]

    def _queue(self, ttl: float, expiry: float) -> OrderedDict[str, float]:
        queue = self._queues.get(ttl)
        if queue is None:
            if len(self._queues) >= self._compact_at:
                self._compact()
            queue = self._queues[ttl] = OrderedDict()
            heappush(self._heap, (expiry, ttl))
        return queue

    def _compact(self) -> None:
        # At most once in as many new queues as are left, so O(1) for each of them.
        self._queues = {ttl: queue for ttl, queue in self._queues.items() if queue}
        self._heap = [(_first(queue)[1], ttl) for ttl, queue in self._queues.items()]
        heapify(self._heap)
        self._compact_at = 2 * len(self._queues) + 16


def _first(queue: OrderedDict[str, float]) -> tuple[str, float]:
    return next(iter(queue.items()))
