"""The history: the last events, for an operator who asks what happened at 03:12. Pure.

Each event has a revision of its own, and the revisions have no gap. Events are kept as they are
packed for the journal, in *chunks*. A chunk is one value of the checkpoint, and the oldest chunk is
dropped as a whole, so that the history keeps a few more events than the setting says.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any, Final

import msgpack

from trackd_client.wire.protocol import WireEvent

#: Revisions of one chunk.
CHUNK: Final = 128


#: Bytes of the events of one reply.
MOST_BYTES: Final = 256 * 1024


class History:
    """The newest events, at least as many as the setting `history` says.

    Attributes:
        most: the number of events to keep; 0 keeps none.
    """

    def __init__(self, most: int) -> None:
        """Create an empty history.

        Args:
            most: the number of events to keep.
        """
        self.most = most
        self._chunks: dict[int, list[bytes]] = {}  # by their first possible revision, ascending
        self._first = 1  # the revision of the oldest event that is kept
        self._next = 1  # the revision that comes next

    def __len__(self) -> int:
        return self._next - self._first

    @property
    def oldest(self) -> int | None:
        """The revision of the oldest event that is kept; None without events."""
        return self._first if len(self) else None

    def edited_by(self, first: int, count: int) -> list[int]:
        """Return the keys of the chunks that `extend` with so many events would edit or drop."""
        if not self.most or not count:
            return []
        following = first + count
        keys = {
            revision - revision % CHUNK
            for revision in (*range(first, following, CHUNK), following - 1)
        }
        dropped = self._chunks if first != self._next else self._too_old(following)
        return sorted(keys.union(dropped))

    def extend(self, first: int, packed: Sequence[bytes]) -> None:
        """Add the next events.

        Args:
            first: the revision of the first one. After a gap, older events are dropped.
            packed: the events.
        """
        if not self.most or not packed:
            return
        if first != self._next:
            self._chunks.clear()
            self._first = first
        self._next = first
        for event in packed:
            self._chunks.setdefault(self._next - self._next % CHUNK, []).append(event)
            self._next += 1
        self._trim()

    def dropped_by(self, most: int) -> list[int]:
        """Return the keys of the chunks that `keep` would drop."""
        return self._too_old(self._next, most)

    def keep(self, most: int) -> None:
        """Change how many events are kept."""
        self.most = most
        self._trim()

    def chunk(self, key: int) -> list[Any] | None:
        """Return a chunk for the checkpoint: [first revision, events]; None when it was dropped."""
        events = self._chunks.get(key)
        return None if events is None else [max(key, self._first), events]

    def after(self, revision: int, limit: int, most_bytes: int = MOST_BYTES) -> list[WireEvent]:
        """Return the events with later revisions, oldest first.

        Args:
            revision: after which.
            limit: events at most.
            most_bytes: packed bytes after which no further event is added.
        """
        wanted = max(revision + 1, self._first)
        found: list[WireEvent] = []
        while wanted < self._next and len(found) < limit:
            key = wanted - wanted % CHUNK
            start = wanted - max(key, self._first)
            for event in self._chunks[key][start : start + limit - len(found)]:
                found.append(unpack(event))
                wanted += 1
                most_bytes -= len(event)
                if most_bytes <= 0:
                    return found
        return found

    def _too_old(self, following: int, most: int | None = None) -> list[int]:
        """Return the keys of the chunks that are not needed when `following` comes next."""
        most = self.most if most is None else most
        ascending = iter(self._chunks)
        return list(takewhile(lambda key: not most or following - key - CHUNK >= most, ascending))

    def _trim(self) -> None:
        for key in self._too_old(self._next):
            left = self._next - min(key + CHUNK, self._next)
            del self._chunks[key]
            self._first = self._next - left


def unpack(packed: bytes) -> WireEvent:
    """Unpack an event that `pack` has packed."""
    event: WireEvent = msgpack.unpackb(packed)
    return event
