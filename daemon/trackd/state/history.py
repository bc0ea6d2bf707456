"""The history: the last events, for an operator who asks what happened at 03:12. Pure.

Each event has a revision of its own. The *newest* events have no gap, and mirrors rely on that.
Of the events before those, the *older* ones, the history keeps what people ask for longest, and
drops what comes with every dial: grants, and ends of leases that never claimed. So a busy night of
lost dials pushes out nothing else. Older events have three shares (sessions, gossip, the rest), so
that none of them pushes out another.

Events are kept as they are packed for the journal, in *chunks* of revisions. A chunk is one value
of the checkpoint, and is dropped as a whole. So the newest events are a few more than the setting
says.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final

import msgpack

from trackd_client.wire.protocol import WireEvent

#: Revisions of one chunk.
CHUNK: Final = 128
#: Bytes of the events of one reply.
MOST_BYTES: Final = 256 * 1024
#: Bytes for each event that may be kept: so many events of this size on average.
EVENT_BYTES: Final = 512
#: The share of each kind of older event; all other kinds have the first one.
_SHARES: Final = {
    "session_opened": 1,
    "session_ended": 1,
    "proxy_tracked": 2,
    "proxy_changed": 2,
    "proxy_marked": 2,
    "proxy_addressed": 2,
    "proxy_expired": 2,
}
_SHARE_COUNT: Final = 3


def pack(event: WireEvent) -> bytes:
    """Pack an event for the journal, the event socket and replies."""
    packed: bytes = msgpack.packb(event)
    return packed


def unpack(packed: bytes) -> WireEvent:
    """Unpack an event that `pack` has packed."""
    event: WireEvent = msgpack.unpackb(packed)
    return event


class _Share:
    """Older events of some kinds, by the key of their chunk, ascending."""

    def __init__(self) -> None:
        self.chunks: dict[int, list[bytes]] = {}
        self.count = self.bytes = 0

    def add(self, key: int, packed: Iterable[bytes]) -> None:
        """Add the events of a chunk, unless they are there already."""
        chunk = self.chunks.get(key, [])
        known = set(chunk)
        new = [event for event in packed if event not in known]
        if new:
            self.chunks[key] = chunk + new
            self.count += len(new)
            self.bytes += sum(map(len, new))

    def trim(self, most: int, since: float) -> Iterator[int]:
        """Drop what is beyond a number of events or before a moment; yield the changed keys."""
        while self.chunks:
            key, chunk = next(iter(self.chunks.items()))
            before = len(chunk)
            ended = unpack(chunk[-1])[1] < since
            while chunk and (ended or not self._fits(most)):
                self.count -= 1
                self.bytes -= len(chunk.pop(0))
            if len(chunk) < before:
                yield key
            if chunk:
                return
            del self.chunks[key]

    def _fits(self, most: int) -> bool:
        return self.count <= most and self.bytes <= most * EVENT_BYTES

    def sort(self) -> None:
        """Restore the order of the keys."""
        self.chunks = dict(sorted(self.chunks.items()))

    def after(self, revision: int) -> Iterator[WireEvent]:
        """Yield the events with later revisions, oldest first."""
        for key, chunk in self.chunks.items():
            if key + CHUNK > revision:
                yield from (event for event in map(unpack, chunk) if event[0] > revision)


class History:
    """The newest events, and of the older ones those that matter longest.

    Attributes:
        most: the number of newest events to keep, at least; 0 keeps nothing at all. Each share
            keeps up to half as many older ones.
        age: seconds after which older events are dropped, with their chunk; 0 keeps none.
    """

    def __init__(self, most: int, age: float = 0.0) -> None:
        """Create an empty history.

        Args:
            most: the number of newest events to keep.
            age: seconds for which older events are kept.
        """
        self.most = most
        self.age = age
        self._chunks: dict[int, list[bytes]] = {}  # by their first possible revision, ascending
        self._bytes = 0  # of the events in them
        self._first = 1  # the revision of the oldest of the newest events
        self._next = 1  # the revision that comes next
        self._shares = [_Share() for _ in range(_SHARE_COUNT)]

    def __len__(self) -> int:
        return self._next - self._first

    @property
    def oldest(self) -> int | None:
        """The revision after which no event is missing, that one included; None without events."""
        return self._first if len(self) else None

    def extend(self, first: int, packed: Sequence[bytes], now: float = 0.0) -> list[int]:
        """Add the next events.

        Args:
            first: the revision of the first one. After a gap, those before are older events. What
                is known already is passed over: a checkpoint may hold newer chunks than its base.
            packed: the events.
            now: seconds on the clock of the events.

        Returns:
            The keys of the chunks that changed or were dropped; a key may stand there twice.
        """
        known = self._next - first
        if len(self) and known > 0:
            first, packed = self._next, packed[known:]
        if not self.most or not packed:
            return []
        changed: list[int] = []
        if first != self._next:
            changed += self._chunks
            for key in changed:
                self._retire(key)
            self._first = first
        self._next = first
        for event in packed:
            key = self._next - self._next % CHUNK
            if not changed or changed[-1] != key:
                changed.append(key)
            self._chunks.setdefault(key, []).append(event)
            self._bytes += len(event)
            self._next += 1
        return changed + self._trim(now)

    def keep(self, most: int, age: float = 0.0, now: float = 0.0) -> list[int]:
        """Change how much is kept; return the keys of the chunks that changed or were dropped."""
        self.most, self.age = most, age
        return self._trim(now) + self._trim_shares(now)

    def chunk(self, key: int) -> list[Any] | None:
        """Return a chunk for the checkpoint; None when nothing of it is kept.

        It is [first revision, newest events], and then a list of older events for each share when
        there are any.
        """
        events = self._chunks.get(key, [])
        older = [share.chunks.get(key, []) for share in self._shares]
        if any(older):
            return [max(key, self._first), events, *older]
        return [max(key, self._first), events] if events else None

    def restore(
        self,
        events: Mapping[int, bytes],
        older: Mapping[int, Sequence[Sequence[bytes]]] | None = None,
        now: float = 0.0,
    ) -> list[int]:
        """Fill an empty history.

        Args:
            events: the newest ones by their revision.
            older: the lists of older ones for each share, by the key of their chunk.
            now: seconds on the clock of the events.

        Returns:
            The keys of the chunks that changed or were dropped.
        """
        for key, lists in sorted((older or {}).items()):
            for share, packed in zip(self._shares, lists, strict=True):
                share.add(key, packed)
        changed: list[int] = []
        for revision in sorted(events):
            changed += self.extend(revision, [events[revision]], now)
        for share in self._shares:
            share.sort()
        return list(dict.fromkeys(changed + self._trim_shares(now)))

    def after(
        self, revision: int, limit: int, most_bytes: int = MOST_BYTES, *, older: bool = False
    ) -> list[WireEvent]:
        """Return the events with later revisions, oldest first.

        Args:
            revision: after which.
            limit: events at most.
            most_bytes: packed bytes after which no further event is added.
            older: whether to begin with older events, between which there are gaps.
        """
        found: list[WireEvent] = []
        if older:
            for event in self._older_after(revision):
                if len(found) >= limit or most_bytes <= 0:
                    return found
                found.append(event)
                most_bytes -= len(pack(event))
        for packed in self.newest(revision):
            if len(found) >= limit or most_bytes <= 0:
                break
            found.append(unpack(packed))
            most_bytes -= len(packed)
        return found

    def newest(self, revision: int) -> Iterator[bytes]:
        """Yield the newest events with later revisions, packed, oldest first and without a gap."""
        wanted = max(revision + 1, self._first)
        while wanted < self._next:
            key = wanted - wanted % CHUNK
            chunk = self._chunks[key][wanted - max(key, self._first) :]
            yield from chunk
            wanted += len(chunk)

    def _older_after(self, revision: int) -> Iterator[WireEvent]:
        shares = (share.after(revision) for share in self._shares)
        return (
            event for event in heapq.merge(*shares, key=itemgetter(0)) if event[0] < self._first
        )

    def _trim(self, now: float) -> list[int]:
        """Drop the oldest chunks of the newest events; return their keys, and of older ones."""
        dropped = []
        while self._chunks:
            key = next(iter(self._chunks))
            left = self._next - min(key + CHUNK, self._next)
            fits = self._bytes <= self.most * EVENT_BYTES or not left
            if self.most and left < self.most and fits:
                break
            self._retire(key)
            self._first = self._next - left
            dropped.append(key)
        return dropped + self._trim_shares(now) if dropped else []

    def _retire(self, key: int) -> None:
        """Make the events of a chunk older ones, as far as older ones are kept."""
        events = self._chunks.pop(key)
        self._bytes -= sum(map(len, events))
        if not self.most or not self.age:
            return
        kept: list[list[bytes]] = [[] for _ in self._shares]
        for packed in events:
            _, _, _, kind, fields = unpack(packed)
            if not _is_of_every_dial(kind, fields):
                kept[_SHARES.get(kind, 0)].append(packed)
        for share, chunk in zip(self._shares, kept, strict=True):
            share.add(key, chunk)

    def _trim_shares(self, now: float) -> list[int]:
        most = self.most // 2 if self.age else 0
        return [key for share in self._shares for key in share.trim(most, now - self.age)]


def _is_of_every_dial(kind: str, fields: Mapping[str, Any]) -> bool:
    """Tell whether an event comes with each dial, also with one that was lost."""
    return kind == "lease_granted" or (kind == "lease_released" and fields.get("name") is None)
