"""Which tracked names expire when, and who mentioned them last.

One message of gossip is one object, a *mention*, to which all its names point; a name points to the
mention that named it last. A message that repeats the names of a mention, no more and no less,
renews that mention and walks no names. A heap holds the mentions by their expiry.

The index never reads a clock. Names leave it only through `drop`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from heapq import heapify, heappop, heappush, heapreplace
from itertools import islice
from operator import itemgetter

GossipRow = tuple[str, str, int, float | None]
"""A proxy as gossip mentions it: name, group, generation, TTL in seconds."""

TTL_OF = itemgetter(3)
"""Returns the TTL of a row."""

_SPARSE = 32  # a mention of fewer names is never compacted


class Mention:
    """What one message said of the names that no later one has mentioned.

    Attributes:
        number: it is higher than that of every mention before.
        expiry: when its names expire, in seconds of the caller's clock.
        ttl: seconds that lay between the message and that.
        by: who sent the message: a number of the caller's.
        names: the names of the message; some may point to a later mention by now.
        left: how many names point to this one.
    """

    __slots__ = ("by", "expiry", "left", "names", "number", "ttl")

    names: list[str]
    left: int

    def __init__(self, number: int, expiry: float, ttl: float, by: int) -> None:
        self.number = number
        self.expiry = expiry
        self.ttl = ttl
        self.by = by


class Mentions:
    """Names, and the mention that each points to.

    Adding a mention of n names costs O(n), renewing one O(log m) with m mentions.

    Attributes:
        by_number: the mentions that have names left, oldest first.
        last: the number of the newest mention, 0 before the first.
        get: returns the mention that a name points to, or None.
    """

    __slots__ = ("_heap", "_of", "by_number", "get", "last")

    def __init__(self) -> None:
        self.by_number: dict[int, Mention] = {}
        self.last = 0
        self._of: dict[str, Mention] = {}
        self.get: Callable[[str], Mention | None] = self._of.get
        # (expiry, number), at least one for each mention, never later than its expiry. What is
        # too early or belongs to no mention is put right at the root, or when there is too much.
        self._heap: list[tuple[float, int]] = []

    def of(self, name: str) -> Mention:
        """Return the mention that a name points to; KeyError when there is none."""
        return self._of[name]

    def renewable(self, names: Sequence[str]) -> Mention | None:
        """Return the mention whose names are exactly these, in this order, or None."""
        mention = self._of.get(names[0]) if names else None
        if mention is None or mention.left != len(names):
            return None
        return mention if mention.names is names or mention.names == names else None

    def shared(self, names: list[str]) -> list[str]:
        """Return the same names, as the list of the mention whose names they are, if there is one.

        Whoever keeps names for long needs less memory so, and `renewable` has nothing to compare.
        """
        mention = self.renewable(names)
        return names if mention is None else mention.names

    def left_by(self, names: Iterable[str]) -> list[int]:
        """Return the numbers of the mentions that these names would leave, in order."""
        found = set(map(self._of.get, names))
        return sorted(mention.number for mention in found if mention is not None)

    def add(self, number: int, names: Iterable[str], expiry: float, ttl: float, by: int) -> None:
        """Let names point to a new mention. Its number must be higher than all before."""
        mention = Mention(number, expiry, ttl, by)
        pointers = dict.fromkeys(names, mention)
        left = Counter(map(self._of.get, pointers))
        self._of.update(pointers)
        for old, count in left.items():
            if old is not None:
                self._leave(old, count)
        mention.names = list(pointers)
        mention.left = len(pointers)
        if mention.left:
            self.by_number[number] = mention
            self._push(mention)
        self.last = max(self.last, number)

    def renew(self, number: int, expiry: float, ttl: float, by: int) -> None:
        """Give a mention another expiry; all its names must point to it."""
        mention = self.by_number[number]
        sooner = expiry < mention.expiry
        mention.expiry, mention.ttl, mention.by = expiry, ttl, by
        if sooner:
            self._push(mention)

    def drop(self, names: Iterable[str]) -> None:
        """Drop names; KeyError when one is not here."""
        for old, count in Counter(map(self._of.pop, names)).items():
            self._leave(old, count)

    def living(self, number: int) -> list[str]:
        """Return the names that point to a mention."""
        mention = self.by_number[number]
        if mention.left == len(mention.names):
            return mention.names
        of = self._of
        return [name for name in mention.names if of.get(name) is mention]

    def due(self, now: float, most: int | None = None) -> list[str]:
        """Return names whose expiry is strictly before now, the earliest first.

        Args:
            now: seconds.
            most: names to return at most; None for all of them.
        """
        found: list[str] = []
        passed: list[tuple[float, int]] = []
        while (first := self._first()) is not None and first.expiry < now:
            if most is not None and len(found) >= most:
                break
            entry = heappop(self._heap)
            if passed and entry == passed[-1]:  # a second one of the same mention
                continue
            passed.append(entry)
            room = None if most is None else most - len(found)
            found.extend(islice(self.living(first.number), room))
        for entry in passed:
            heappush(self._heap, entry)
        return found

    def next_expiry(self) -> float | None:
        """Return the earliest expiry, or None without names. O(1) amortised."""
        first = self._first()
        return None if first is None else first.expiry

    def _first(self) -> Mention | None:
        heap = self._heap
        while heap:
            expiry, number = heap[0]
            mention = self.by_number.get(number)
            if mention is None or mention.expiry < expiry:
                heappop(heap)
            elif mention.expiry > expiry:
                heapreplace(heap, (mention.expiry, number))
            else:
                return mention
        return None

    def _push(self, mention: Mention) -> None:
        heappush(self._heap, (mention.expiry, mention.number))
        if len(self._heap) > 2 * len(self.by_number) + 64:
            self._heap = [(each.expiry, each.number) for each in self.by_number.values()]
            heapify(self._heap)

    def _leave(self, mention: Mention, count: int) -> None:
        mention.left -= count
        if not mention.left:
            del self.by_number[mention.number]
        elif len(mention.names) >= _SPARSE and 2 * mention.left < len(mention.names):
            mention.names = self.living(mention.number)
