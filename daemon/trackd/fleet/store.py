"""EtcdStore: the journal and the checkpoint of a fleet, in etcd. For the process that leads.

Each row of the journal, each part of a checkpoint and each deletion is a transaction of
`trackd.fleet.fenced`; how they stand in etcd is in `trackd.fleet.rows`. A batch is one row, and a
large one several, each in a transaction of its own: rows without a last one are no batch. Whoever
reads ignores them, and deletes them before the first write.

A checkpoint is a new *generation* of all buckets (`trackd.fleet.buckets`). They are put step by
step; then one transaction makes the generation and its base valid, and what it supersedes is
deleted. Nothing is written while the store is read.

An etcd that was restored from a backup may have lost rows that were acknowledged. It has another
cluster id, unless it was restored under its old names and token. So a leader also keeps a *mark* on
its host (`trackd.storage.mark`): the number of its newest row. In both cases the fleet begins
empty, and agents adopt their tunnels.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import msgpack

from trackd.fleet.buckets import Buckets
from trackd.fleet.clock import BEGINNING, Stamp
from trackd.fleet.etcd import Compacted, Delete, Etcd, Get, KeyValue, Operation, Put, RangeResult
from trackd.fleet.fenced import Fence, FencedWrites, read
from trackd.fleet.rows import (
    FORMAT,
    NOTHING,
    ROW_BYTES,
    Keys,
    Manifest,
    Meta,
    is_last,
    join_rows,
    pack,
    read_head,
    split_batch,
    unpack,
    unpack_bucket,
)
from trackd.host.logs import fields
from trackd.storage.mark import Mark
from trackd.storage.store import DamagedError, DeposedError, Key, NewerError, RowOf, StoreError

log = logging.getLogger("trackd.store")

#: A checkpoint begins when the journal has grown by so many rows, or so many bytes, and by as many
#: bytes as the checkpoint has.
_DUE_ROWS = 4096
_DUE_BYTES = 4 * 1024 * 1024
#: Bytes of buckets that a step packs, and parts of them that it puts: etcd takes 128 operations in
#: a transaction.
_STEP_BYTES = 64 * 1024
_STEP_PARTS = 64
#: Rows that a step deletes.
_STEP_ROWS = 512
#: Keys that one read returns; each is at most a row.
_PAGE: Final = 64
#: How often reading begins again because etcd compacts what it reads.
_TRIES: Final = 10


class EtcdStore:
    """A store (`trackd.storage.store.Store`) of a leader."""

    def __init__(
        self,
        etcd: Etcd,
        prefix: bytes,
        fence: Fence,
        leads: Callable[[], bool] = lambda: True,
        *,
        mark_path: Path | None = None,
        boot_id: str = "",
        stamp: Callable[[], Stamp] = lambda: BEGINNING,
        note_read: Callable[[], None] = lambda: None,
    ) -> None:
        """Only note where it is; `begin_reading` reads.

        Args:
            etcd: a client of its own, which is closed with the store.
            prefix: of the fleet's keys, with its slash.
            fence: the leader's key, and when this process created it.
            leads: returns whether this process still leads, as far as it knows. When it does not,
                no call is repeated any more.
            mark_path: of the mark, in a directory that is gone after a boot; None keeps none.
            boot_id: of the running kernel.
            stamp: returns the time of a write, by the fleet clock.
            note_read: called for each key that was read, and each row and batch that is restored.
        """
        self._note_read = note_read
        self.row_of: RowOf = _nothing
        self._etcd = etcd
        self._prefix = prefix.decode()
        self._keys = Keys(prefix)
        self._fence = fence
        self._leads = leads
        self._writes = FencedWrites(etcd, fence, self._keys.head, leads, stamp)
        self._mark_path = mark_path
        self._boot_id = boot_id
        self._mark: Mark | None = None
        self._forget()

    def _forget(self) -> None:
        """Know nothing of what is stored."""
        self._first: list[Operation] = []  # what the next write does before
        self._rows: dict[str, list[tuple[Any, bytes]]] = {}
        self._batches: list[KeyValue] = []
        self._manifest = NOTHING
        self._last_row = 0  # of the last whole batch
        self._buckets = Buckets(self._present)
        self._next: Manifest | None = None  # of the checkpoint under way
        self._ready: deque[Put] = deque()  # of its parts
        self._tidy: deque[Operation] = deque()  # what is superseded
        self._journal: deque[tuple[int, int]] = (
            deque()
        )  # number and bytes of each row after the base
        self._journal_bytes = 0

    def _present(self, key: Key) -> Any:
        return self.row_of(key)  # as it is by then

    # -- what is stored ---------------------------------------------------------------

    def begin_reading(self) -> None:
        """Read what is stored at one revision; see `Store`."""
        for _ in range(_TRIES):
            self._forget()
            try:
                self._load()
                return
            except Compacted:
                continue
            except (ValueError, TypeError, LookupError, msgpack.UnpackException) as error:
                raise DamagedError(f"unreadable: {error}") from None
        raise StoreError("etcd compacts faster than it can be read")

    def _load(self) -> None:
        keys = self._keys
        names = (self._fence.key, keys.meta, keys.head, keys.manifest)
        first = read(lambda: self._etcd.txn([], [Get(name) for name in names]), self._leads)
        leader, meta, head, manifest = (
            each.kvs[0] if each.kvs else None
            for each in first.responses
            if isinstance(each, RangeResult)
        )
        self._writes.check_leader(leader)
        self._writes.revision = 0 if head is None else head.mod_revision
        if not self._is_known(meta, first.cluster_id):
            return
        if head is None:
            raise ValueError("there is no head")
        last_row = read_head(head.value).row
        if self._mark is not None and self._mark.read() > last_row:
            log.error("etcd has lost rows; it was restored from a backup; starting empty")
            self._begin_fleet(first.cluster_id)
            return
        if manifest is not None:
            self._manifest = Manifest(*unpack(manifest.value))
        generation, base, _ = self._manifest
        parts = self._page(
            keys.generation(generation), keys.generation(generation + 1), first.revision
        )
        self._take_parts(parts)
        rows = self._page(keys.row(base + 1), keys.journal_end, first.revision)
        self._take_rows(list(rows), last_row)

    def _is_known(self, found: KeyValue | None, cluster_id: int) -> bool:
        """Return whether there is something to load; otherwise the next write begins a fleet."""
        meta = None if found is None else Meta(*unpack(found.value))
        if meta is not None and meta.format > FORMAT:
            raise NewerError(
                f"{self._prefix} in etcd was written by a newer trackd (format {meta.format}; this"
                f" one reads up to {FORMAT})"
            )
        if meta is not None and meta.etcd == cluster_id:
            self._open_mark(meta.id)
            return True
        if meta is not None:
            log.error("etcd is another one, restored from a backup; starting empty")
        self._begin_fleet(cluster_id)
        return False

    def _begin_fleet(self, cluster_id: int) -> None:
        """Let the next write delete all that there is, and begin a fleet."""
        keys = self._keys
        meta = Meta(FORMAT, cluster_id, os.urandom(8).hex())
        self._open_mark(meta.id)
        self._first = [
            Delete(keys.journal, keys.journal_end),
            Delete(keys.state, keys.state_end),
            Delete(keys.manifest),
            Put(keys.meta, pack(meta)),
        ]

    def _open_mark(self, fleet: str) -> None:
        """Open the mark of a fleet: of another one, or of another boot, it says nothing."""
        self._close_mark()
        if self._mark_path is not None:
            try:
                self._mark = Mark(self._mark_path, f"{self._boot_id} {fleet}")
            except OSError as error:
                log.warning("no mark is kept of what is stored", extra=fields(reason=str(error)))

    def _close_mark(self) -> None:
        if self._mark is not None:
            self._mark.close(remove=False)
            self._mark = None

    def _page(self, key: bytes, end: bytes, revision: int) -> Iterator[KeyValue]:
        """Yield the keys of a range as they were at a revision."""
        more = True
        while more:
            ask = partial(self._etcd.range, key, end, revision=revision, limit=_PAGE)
            page = read(ask, self._leads)
            for each in page.kvs:
                self._note_read()
                yield each
            more = page.more
            if more:
                key = page.kvs[-1].key + b"\0"

    def _take_parts(self, parts: Iterator[KeyValue]) -> None:
        found: dict[str, list[tuple[bytes, Any, bytes]]] = defaultdict(list)
        for part in parts:
            for key, value in unpack_bucket(part.value):
                kind, name = key
                self._buckets.add(key)
                found[kind].append((pack(name), name, value))
        for kind, rows in found.items():
            rows.sort(key=itemgetter(0))
            self._rows[kind] = [(name, value) for _, name, value in rows]

    def _take_rows(self, rows: Sequence[KeyValue], head: int) -> None:
        """Note the rows after the base, up to the end of the last whole batch."""
        number = last = self._manifest.base
        for row in rows:
            number += 1
            if self._keys.number(row.key) != number:
                raise ValueError(f"row {number} of the journal is lost")
            if is_last(row.value):
                last = number
        if number != head:
            raise ValueError(f"the journal ends with row {number}, and not with {head}")
        if number > last:
            self._first = [Delete(self._keys.row(last + 1), self._keys.journal_end)]
        self._last_row = last
        self._batches = list(rows[: last - self._manifest.base])
        for row in self._batches:
            self._note_row(self._keys.number(row.key), len(row.value))

    def rows(self, kind: str) -> Iterator[tuple[Any, Any]]:
        """Yield the checkpoint's rows of a kind; see `Store`."""
        for name, value in self._rows.get(kind, ()):
            self._note_read()
            try:
                yield name, unpack(value)
            except (ValueError, msgpack.UnpackException) as error:
                raise DamagedError(f"unreadable: {error}") from None

    def batches(self) -> Iterator[bytes]:
        """Yield the journal's batches after the base; see `Store`."""
        self._rows = {}
        rows, self._batches = self._batches, []
        batch: list[bytes] = []
        for row in rows:
            self._note_read()
            batch.append(row.value)
            if is_last(row.value):
                try:
                    yield join_rows(batch)
                except ValueError as error:
                    raise DamagedError(f"unreadable: {error}") from None
                batch = []

    # -- what is written --------------------------------------------------------------

    def append(self, changes: bytes) -> None:
        """Store the changes of one batch; see `Store`."""
        self._do_first()
        number = self._last_row
        rows = split_batch(changes)
        try:
            for row in rows:
                self._writes.write([Put(self._keys.row(number + 1), row)], number + 1)
                number += 1
        except StoreError:
            if number > self._last_row:
                self._first = [Delete(self._keys.row(self._last_row + 1), self._keys.journal_end)]
            raise
        for row in rows:
            self._last_row += 1
            self._note_row(self._last_row, len(row))
        if self._mark is not None:
            self._mark.write(self._last_row)

    def _note_row(self, number: int, size: int) -> None:
        self._journal.append((number, size))
        self._journal_bytes += size

    def _do_first(self) -> None:
        """Begin the fleet, or delete what is left of a batch, before anything else is written."""
        if self._first:
            self._writes.write(self._first, self._last_row)
            self._first = []

    def check_owner(self) -> None:
        """Check by the clock alone that this process still leads; see `Store`."""
        if not self._leads():
            raise DeposedError("the term of this process is over")

    def note_done(self, token: bytes, ranges: Sequence[int]) -> bool:  # noqa: ARG002 - see `Store`
        """Note nothing: another host may be the next to lead, and it reads the journal."""
        return False

    def noted_done(self) -> Mapping[bytes, Sequence[int]]:
        """Return nothing."""
        return {}

    def forget_done(self, token: bytes) -> None:
        """Do nothing."""

    def touch(self, keys: Iterable[Key]) -> None:
        """Note that the things of these keys are about to be edited."""
        self._buckets.touch(keys)

    @property
    def has_work(self) -> bool:
        """Whether a step would do something."""
        return self._next is not None or bool(self._tidy) or self._is_due()

    def _is_due(self) -> bool:
        due = max(_DUE_BYTES, self._manifest.size)
        return len(self._journal) >= _DUE_ROWS or self._journal_bytes >= due

    def step(self) -> None:
        """Take a step of the checkpoint: one transaction; see `Store`."""
        if self._next is not None:
            self._do_first()
            self._put_parts()
        elif self._tidy:
            self._do_first()
            self._writes.write([self._tidy[0]], self._last_row)
            self._tidy.popleft()
        elif self._is_due():
            self._do_first()
            self._begin()

    def _begin(self) -> None:
        """Begin a checkpoint of the present state, where no generation but the valid one is."""
        keys, generation = self._keys, self._manifest.generation
        left = [
            Delete(keys.state, keys.generation(generation)),
            Delete(keys.generation(generation + 1), keys.state_end),
        ]
        self._writes.write(left, self._last_row)
        self._next = Manifest(generation + 1, self._last_row, 0)
        self._buckets.begin()

    def _put_parts(self) -> None:
        """Put some parts of the checkpoint under way; after the last one make it valid."""
        assert self._next is not None
        generation, base, size = self._next
        packed = sum(len(put.value) for put in self._ready)
        while packed < _STEP_BYTES and not self._buckets.is_packed:
            number, parts = self._buckets.pack_next()
            packed += sum(len(part) for part in parts)
            for part, value in enumerate(parts):
                self._ready.append(Put(self._keys.bucket(generation, number, part), value))
        if not self._ready:
            self._finish(self._next)
            return
        puts: list[Operation] = []
        room = ROW_BYTES
        for put in self._ready:
            room -= len(put.value)
            if puts and (room < 0 or len(puts) == _STEP_PARTS):
                break
            puts.append(put)
            size += len(put.value)
        self._writes.write(puts, self._last_row)
        for _ in puts:
            self._ready.popleft()
        self._next = Manifest(generation, base, size)

    def _finish(self, manifest: Manifest) -> None:
        """Make a generation and its base valid, and note what it supersedes."""
        keys = self._keys
        self._writes.write([Put(keys.manifest, pack(manifest))], self._last_row)
        self._manifest, self._next = manifest, None
        self._tidy.append(Delete(keys.state, keys.generation(manifest.generation)))
        begin = keys.journal
        while self._journal and self._journal[0][0] <= manifest.base:
            number, size = self._journal.popleft()
            self._journal_bytes -= size
            if number % _STEP_ROWS == 0 or number == manifest.base:
                self._tidy.append(Delete(begin, keys.row(number + 1)))
                begin = keys.row(number + 1)

    @property
    def found_done(self) -> int:
        """How many writes were not answered, and turned out to have been done."""
        return self._writes.found_done

    # -- what has no files --------------------------------------------------------------

    def size(self) -> int:
        """Return the bytes of the checkpoint and of the rows after it."""
        return self._manifest.size + self._journal_bytes

    def set_aside(self, why: str) -> None:
        """Refuse: another candidate may be able to read it, or an administrator decides."""
        raise StoreError(
            f"{self._prefix} in etcd cannot be used: {why}. To begin empty, stop all candidates,"
            f" and delete it: etcdctl del --prefix {self._prefix}"
        )

    def restore_files(self) -> None:
        """Do nothing: there are no files."""

    def close(self) -> None:
        """Close the client."""
        self._etcd.close()
        self._close_mark()


def last_stamp(etcd: Etcd, prefix: bytes) -> Stamp:
    """Return the time of the last write of a fleet; `BEGINNING` when there is none.

    Raises:
        EtcdError: it cannot be read.
    """
    found = etcd.range(Keys(prefix).head).kvs
    return read_head(found[0].value).stamp if found else BEGINNING


def _nothing(_key: Key) -> None:
    """Return no value: nothing was loaded yet."""
