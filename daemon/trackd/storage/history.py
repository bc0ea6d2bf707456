"""The last events, so that an operator can be told what happened at 03:12. Pure.

Each event has a revision of its own, and they follow one another without a gap. They are kept as
they are packed for the journal, in *chunks*: each chunk is one value of the checkpoint, and the
oldest leaves as a whole. So a bit more than what was asked for is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgpack

from trackd_client.wire.protocol import WireEvent

#: Revisions of one chunk.
CHUNK: Final = 128


def pack(event: WireEvent) -> bytes:
    """Return an event as it is kept, published and sent."""
    packed: bytes = msgpack.packb(event)
    return packed


class History:
    """The newest events, at least as many as were asked for.

    Attributes:
        most: how many are wanted; 0 keeps none.
    """

    def __init__(self, most: int) -> None:
        """Begin without events.

        Args:
            most: how many to keep.
        """
        self.most = most
        self._chunks: dict[int, list[bytes]] = {}  # by their first possible revision, ascending
        self._first = 1  # the revision of the oldest event that is kept
        self._next = 1  # the revision that comes next

    def __len__(self) -> int:
        return self._next - self._first

    @property
    def oldest(self) -> int | None:
        """The revision of the oldest event that is kept, or None."""
        return self._first if len(self) else None

    def extend(self, first: int, packed: Sequence[bytes]) -> list[int]:
        """Take in the next events.

        Args:
            first: the revision of the first one. What is kept begins there when there is a gap.
            packed: the events.

        Returns:
            The chunks that changed, the dropped ones included; some of them twice.
        """
        if not self.most or not packed:
            return []
        changed: list[int] = []
        if first != self._next:
            changed += self._chunks
            self._chunks.clear()
            self._first = first
        self._next = first
        for event in packed:
            key = self._next - self._next % CHUNK
            if not changed or changed[-1] != key:
                changed.append(key)
            self._chunks.setdefault(key, []).append(event)
            self._next += 1
        return changed + self._trim()

    def keep(self, most: int) -> list[int]:
        """Keep so many from now on; return the chunks that were dropped."""
        self.most = most
        return self._trim()

    def chunk(self, key: int) -> list[Any] | None:
        """Return a chunk as the checkpoint holds it: first revision, events; None when dropped."""
        events = self._chunks.get(key)
        return None if events is None else [max(key, self._first), events]

    def restore(self, events: Mapping[int, bytes]) -> None:
        """Take over events by their revision, into a history without any."""
        for revision in sorted(events):
            self.extend(revision, [events[revision]])

    def after(self, revision: int, limit: int) -> list[WireEvent]:
        """Return the events that tell of later revisions, oldest first, `limit` at most."""
        wanted = max(revision + 1, self._first)
        found: list[WireEvent] = []
        while wanted < self._next and len(found) < limit:
            key = wanted - wanted % CHUNK
            start = wanted - max(key, self._first)
            part = self._chunks[key][start : start + limit - len(found)]
            found += map(unpack, part)
            wanted += len(part)
        return found

    def _trim(self) -> list[int]:
        dropped = []
        while self._chunks:
            key = next(iter(self._chunks))
            left = self._next - min(key + CHUNK, self._next)
            if self.most and left < self.most:
                break
            del self._chunks[key]
            self._first = self._next - left
            dropped.append(key)
        return dropped


def unpack(packed: bytes) -> WireEvent:
    """Return an event from what `pack` made of it."""
    event: WireEvent = msgpack.unpackb(packed)
    return event
