"""At most one flip of a mark by gossip a name and second: each flip is an event (rule 15). Pure.

Two sources that contradict each other would otherwise make events as fast as they can speak. The
last word waits until a second has passed since the last flip of its name. What waits is not stored:
gossip comes again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from heapq import heappop, heappush
from math import inf
from typing import Any, Final, NamedTuple

from trackd.rules.marks import Marks

#: Seconds between two flips of a name by gossip, at least.
FLIP_INTERVAL: Final = 1.0


class Word(NamedTuple):
    """What gossip says of a name, and must wait.

    Attributes:
        due: when it counts, in seconds.
        until: until when it marks the name as terminating; None: it ends the mark.
        by: the number of the session that said so.
    """

    due: float
    until: float | None
    by: int


class Flips:
    """When the marks of names flipped last, and the words that wait. O(log w) with w of them.

    Attributes:
        waiting: the words, by name; one for each name that flipped within the last second at most,
            and until they are due.
    """

    __slots__ = ("_dues", "_last", "waiting")

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self.waiting: dict[str, Word] = {}
        self._dues: list[tuple[float, str]] = []  # a heap; entries may be out of date

    def note(self, names: Iterable[str], now: float) -> None:
        """Note that the marks of names flip now; forget those that flipped long ago."""
        last = self._last
        for name in names:
            last.pop(name, None)
            last[name] = now
        while last and now - last[oldest := next(iter(last))] >= FLIP_INTERVAL:
            del last[oldest]

    def admit(
        self,
        marks: Marks,
        rows: Sequence[Any],
        said: Mapping[str, bool],
        now: float,
        default_ttl: float,
        by: int,
    ) -> Mapping[str, bool]:
        """Return what counts at once of the words of a message; the others wait.

        The newest word of a name replaces one that waits.

        Args:
            marks: which names are marked now.
            rows: the message: name, group, generation and TTL first.
            said: its words, of names that it neither tracks nor moves.
            now: seconds.
            default_ttl: seconds, for rows without a TTL.
            by: the number of the session that sent it.
        """
        late = {}
        for name, word in said.items():
            self.waiting.pop(name, None)
            mark, last = marks.get(name), self._last.get(name, -inf)
            flips = mark.retired is None and word != (mark.said is not None)
            if flips and now - last < FLIP_INTERVAL:
                late[name] = last + FLIP_INTERVAL
        if not late:
            return said
        for name, ttl in {row[0]: row[3] for row in rows if row[0] in late}.items():
            until = now + (default_ttl if ttl is None or ttl <= 0 else ttl)
            self.waiting[name] = Word(late[name], until if said[name] else None, by)
            heappush(self._dues, (late[name], name))
        return {name: word for name, word in said.items() if name not in late}

    def take_due(self, now: float) -> dict[str, Word]:
        """Return the words that count now, and let them wait no longer."""
        due = {}
        while (first := self.next_due()) is not None and first <= now:
            name = heappop(self._dues)[1]
            due[name] = self.waiting.pop(name)
        return due

    def next_due(self) -> float | None:
        """Return when the first word that waits counts, or None."""
        dues = self._dues
        while dues:
            due, name = dues[0]
            word = self.waiting.get(name)
            if word is not None and word.due == due:
                return due
            heappop(dues)
        return None
