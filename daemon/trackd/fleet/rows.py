"""How the store of a fleet stands in etcd: its keys, and what they hold. Pure.

Keys under the prefix of a fleet (`trackd/1/CLUSTER/`, or `trackd/1/CLUSTER@RING/`):

========================== =======================================================================
key                        holds
========================== =======================================================================
`leader`                   who leads; its create revision is the fence of every write
`candidates/HOST`          who is there, leading or standing by; see `trackd.fleet.presence`
`meta`                     the format, the id of the etcd that it was written to, and its own id
`head`                     the number of the last row, and when; every write sets it again
`journal/NUMBER`           a row: part of a batch, and whether it is the last part
`state/GENERATION/BUCKET`  rows of a checkpoint, in 1,024 buckets; `.PART` follows for more of them
`manifest`                 the valid generation, its base, and its bytes
========================== =======================================================================

Numbers are 16 hexadecimal digits, so that they sort; of a bucket 4.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

import msgpack

from trackd.fleet.clock import Stamp
from trackd.storage.store import Key

#: Of what this module reads and writes.
FORMAT: Final = 1
#: Bytes of a row at most: etcd refuses a request of more than 1.5 MiB.
ROW_BYTES: Final = 512 * 1024
BUCKETS: Final = 1024
#: The fastest; others gain a tenth, and take several times as long.
_LEVEL: Final = 1
_MORE, _LAST = b"\0", b"\1"


class Meta(NamedTuple):
    """What `meta` holds.

    Attributes:
        format: of all that is stored.
        etcd: the cluster id of the etcd that it was written to.
        id: another one each time that the fleet begins empty.
    """

    format: int
    etcd: int
    id: str


class Manifest(NamedTuple):
    """What `manifest` holds.

    Attributes:
        generation: whose buckets are the checkpoint; 0: none.
        base: the row of the journal that the checkpoint stands for.
        size: bytes of its buckets.
    """

    generation: int
    base: int
    size: int


NOTHING: Final = Manifest(0, 0, 0)


class Head(NamedTuple):
    """What `head` holds: the number of the last row, and the time of the last write."""

    row: int
    stamp: Stamp

    def pack(self) -> bytes:
        """Return it as bytes, which people can read."""
        return b"%d %.6f %.6f" % (self.row, *self.stamp)


def read_head(value: bytes) -> Head:
    """Return what `head` holds; ValueError when that makes no sense."""
    row, fleet, wall = value.split(b" ")
    return Head(int(row), Stamp(float(fleet), float(wall)))


class Keys:
    """The keys of a fleet.

    Attributes:
        leader: of a key, as the following.
        meta: of a key.
        head: of a key.
        manifest: of a key.
        journal: the beginning of all rows.
        journal_end: the first key after them.
        state: the beginning of all buckets.
        state_end: the first key after them.
        candidates: the beginning of the keys of all candidates.
        candidates_end: the first key after them.
    """

    def __init__(self, prefix: bytes) -> None:
        """Make them; the prefix ends with a slash."""
        self.leader = prefix + b"leader"
        self.meta = prefix + b"meta"
        self.head = prefix + b"head"
        self.manifest = prefix + b"manifest"
        self.journal = prefix + b"journal/"
        self.journal_end = prefix + b"journal0"  # `0` is what follows `/`
        self.state = prefix + b"state/"
        self.state_end = prefix + b"state0"
        self.candidates = prefix + b"candidates/"
        self.candidates_end = prefix + b"candidates0"

    def candidate(self, host: str) -> bytes:
        """Return the key of a candidate."""
        return self.candidates + host.encode()

    def row(self, number: int) -> bytes:
        """Return the key of a row."""
        return self.journal + b"%016x" % number

    def number(self, key: bytes) -> int:
        """Return the number of a row from its key; ValueError for another key."""
        return int(key.removeprefix(self.journal), 16)

    def generation(self, number: int) -> bytes:
        """Return the beginning of the buckets of a generation, all of which are before the next."""
        return self.state + b"%016x/" % number

    def bucket(self, generation: int, number: int, part: int) -> bytes:
        """Return the key of a part of a bucket."""
        key = self.generation(generation) + b"%04x" % number
        return key + b".%04x" % part if part else key


def pack(value: Any) -> bytes:
    """Return a value as bytes."""
    packed: bytes = msgpack.packb(value)
    return packed


def unpack(packed: bytes) -> Any:
    """Return the value in some bytes, with tuples for arrays."""
    return msgpack.unpackb(packed, strict_map_key=False, use_list=False)


def split_batch(changes: bytes) -> list[bytes]:
    """Return the rows of a batch, one or more."""
    packed = zlib.compress(changes, _LEVEL)
    room = ROW_BYTES - 1
    parts = [packed[at : at + room] for at in range(0, len(packed), room)]
    return [*(_MORE + part for part in parts[:-1]), _LAST + parts[-1]]


def is_last(row: bytes) -> bool:
    """Return whether a batch ends with a row; ValueError when it is none."""
    if row[:1] not in (_MORE, _LAST):
        raise ValueError("a row of the journal has no mark")
    return row[:1] == _LAST


def join_rows(rows: Iterable[bytes]) -> bytes:
    """Return the batch of which these are all rows.

    Raises:
        ValueError: they are damaged.
    """
    try:
        return zlib.decompress(b"".join(row[1:] for row in rows))
    except zlib.error as error:
        raise ValueError(str(error)) from None


def bucket_of(key: Key) -> int:
    """Return the bucket of a key."""
    return zlib.crc32(pack(key[1]), zlib.crc32(key[0].encode())) % BUCKETS


def pack_bucket(rows: Iterable[tuple[Key, bytes]]) -> list[bytes]:
    """Return the parts of a bucket; none when it has no rows.

    Args:
        rows: keys, and their values as bytes.
    """
    parts: list[list[tuple[str, Any, bytes]]] = []
    room = 0
    for (kind, name), value in rows:
        if room < len(value) or not parts:
            parts.append([])
            room = ROW_BYTES
        parts[-1].append((kind, name, value))
        room -= len(value) + len(kind)
    return [zlib.compress(pack(part), _LEVEL) for part in parts]


def unpack_bucket(part: bytes) -> Iterator[tuple[Key, bytes]]:
    """Yield the keys of a part of a bucket, and their values as bytes.

    Raises:
        ValueError, TypeError: it is damaged.
    """
    try:
        packed = zlib.decompress(part)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    for kind, name, value in unpack(packed):
        yield (kind, name), value
