"""The store: an SQLite file in the runtime directory. It must outlive the process, not the boot.

The changes of one batch are one row of the *journal*, written by one statement. Beside it stands
the *checkpoint*: the state as it was after one row of the journal, the base, as one row for each
thing (a session, a lease, a mention). The checkpoint and the rows after its base give the state.

The next checkpoint is written in small steps between batches, as a *generation*: only the things
that were edited since the base, a row without a value for what is gone. Whoever edits something
calls `touch` before, so that its value at the new base is kept for the step that writes it. When
all is written, one small transaction makes the generation and its base valid. Then its older rows
and the journal that it covers are deleted, also in steps. A process that dies in between leaves
rows of no valid generation, which the next checkpoint writes over.

A file that has become much larger than what it holds is cut down, in steps. When the disk is
full, the *reserve* is given up, so that a checkpoint can be written and the journal deleted.

The file uses a WAL without fsync: the kernel keeps what was written when the process dies. A file
of another boot is emptied. The store does not know what its rows mean. Only the actor's thread
uses it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NoReturn

import msgpack

from trackd.host.logs import fields
from trackd.host.own_paths import OwnPaths
from trackd.storage import mark, v1
from trackd.storage.files import StateFiles
from trackd.storage.reserve import Reserve

log = logging.getLogger("trackd.store")

#: Marks the file as trackd's ("trkd"); a file with another mark is set aside.
_APPLICATION_ID = 0x74726B64
_VERSION: Final = 2
#: Seconds that a step of a checkpoint may take before its commit, which takes several times that
#: (2 ms for both, measured), and the rows between two looks at the clock.
_STEP_SECONDS = 0.0003
_STEP_ROWS = 50
#: A checkpoint begins when the journal has grown by this much. When it grows by as much again
#: before the checkpoint is done, the rest is done at once; so the journal is bounded.
_DUE_ROWS = 4096
_DUE_BYTES = 4 * 1024 * 1024
#: How much longer the steps are just before that.
_HASTE = 16
#: Journal rows are deleted in parts of so many bytes; each row counts some bytes extra.
_PART_BYTES = 16 * 1024
_ROW_BYTES = 256
#: Pages of the WAL that SQLite copies back at once: less than a millisecond's work; and bytes to
#: which its file is cut down after a large commit.
_WAL_PAGES = 200
_WAL_BYTES = 4 * 1024 * 1024
#: How many free pages the file may have more than pages in use, and how many are cut off at once.
_FREE_PAGES = 2048
_CUT_PAGES = 16

#: SQLite's result codes that are about the disk or permissions, not about the file's content.
_OUTSIDE = frozenset(
    {
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOLFS,
        sqlite3.SQLITE_AUTH,
    }
)

_SCHEMA: Final = """
    CREATE TABLE head (version INTEGER NOT NULL, boot BLOB NOT NULL, generation INTEGER NOT NULL,
                       base INTEGER NOT NULL);
    CREATE TABLE journal (id INTEGER PRIMARY KEY, changes BLOB NOT NULL);
    CREATE TABLE state (kind TEXT NOT NULL, key BLOB NOT NULL, generation INTEGER NOT NULL,
                        value BLOB, PRIMARY KEY (kind, key, generation)) WITHOUT ROWID;
"""
_APPEND: Final = "INSERT INTO journal (id, changes) VALUES (?, ?)"
_WRITE: Final = "INSERT OR REPLACE INTO state VALUES (?, ?, ?, ?)"

#: A thing of the checkpoint: its kind, and its key, which msgpack can pack.
Key = tuple[str, Any]
RowOf = Callable[[Key], Any]
Connect = Callable[[str], sqlite3.Connection]


class StoreError(Exception):
    """The store cannot be written or read now; a later try may succeed."""


class DamagedError(Exception):
    """The file is not a database, not one of trackd, or its content cannot be read."""


class NewerError(StoreError):
    """The file was written by a newer trackd."""


def connect(path: str) -> sqlite3.Connection:
    """Open an SQLite file in autocommit mode; the store begins its transactions itself."""
    return sqlite3.connect(path, isolation_level=None, timeout=0.0)


class Store:
    """An open state file, or a database in memory.

    Attributes:
        row_of: returns the present value of a key, or None when the thing is gone.
    """

    def __init__(
        self,
        directory: Path | None,
        boot_id: str,
        connect: Connect = connect,
        own: OwnPaths | None = None,
    ) -> None:
        """Open or create the file; set a damaged or foreign one aside.

        Args:
            directory: the state directory, which must exist; None keeps everything in memory.
            boot_id: the running kernel's; a file of another boot is emptied.
            connect: opens an SQLite connection in autocommit mode.
            own: where to note the files; whoever finds them lost calls `restore_files`.

        Raises:
            NewerError: a newer trackd has written the file.
            StoreError: the file can be neither opened nor created.
        """
        self.row_of: RowOf = _nothing
        self._connect = connect
        self._boot_id = boot_id
        self._files = None if directory is None else StateFiles(directory, own or OwnPaths())
        self._lost = ""  # why nothing can be stored, when the files are lost
        self._mark: mark.Mark | None = None
        self._reserve: Reserve | None = None
        self._careful = False  # the last step failed: none may be large
        try:
            self._db = self._open()
        except DamagedError as error:
            self._replace(str(error))

    def _read_head(self, db: sqlite3.Connection) -> None:
        """Forget what is known of the file, and read which of its rows are valid."""
        generation, base = db.execute("SELECT generation, base FROM head").fetchone()
        self._generation, self._base, self._last_row = generation, base, base
        self._dirty: dict[Key, None] = {}  # edited since the base, or since the next one
        self._todo: dict[Key, None] = {}  # of the checkpoint under way: not written yet
        self._aside: dict[Key, bytes | None] = {}  # of these, values at its base
        self._next_base: int | None = None
        self._old: list[Key] = []  # rows of generations before are to be deleted
        self._journal: deque[tuple[int, int]] = deque()  # number and bytes of each of its rows
        self._rows_since = self._bytes_since = 0
        self._too_large = False  # more free pages than it may have

    def set_aside(self, why: str) -> None:
        """Set the file aside, and start with an empty one.

        Raises:
            StoreError: the file cannot be set aside, or there is none.
        """
        if self._files is None:
            raise StoreError(why)
        self.close()
        self._replace(why)

    # -- what is stored ---------------------------------------------------------------

    def rows(self, kind: str) -> Iterator[tuple[Any, Any]]:
        """Yield the checkpoint's rows of a kind: key and value.

        Raises:
            StoreError: reading failed; a later try may succeed.
            DamagedError: the content cannot be read.
        """
        sql = (
            "SELECT key, value FROM state WHERE kind = ? AND generation <= ?"
            " ORDER BY key, generation"
        )
        with self._reading():
            last, sealed, several = None, None, False
            for key, value in self._db.execute(sql, (kind, self._generation)):
                if key == last:
                    several = True
                elif last is not None:
                    yield from self._row(kind, last, sealed, old=several)
                    several = False
                last, sealed = key, value
            if last is not None:
                yield from self._row(kind, last, sealed, old=several)

    def _row(
        self, kind: str, key: bytes, sealed: bytes | None, *, old: bool
    ) -> Iterator[tuple[Any, Any]]:
        name = _unpack(key)
        if old or sealed is None:
            self._old.append((kind, name))
        if sealed is not None:
            yield name, _unpack(_unseal(sealed, kind.encode() + key))

    def batches(self) -> Iterator[bytes]:
        """Yield the journal's batches after the base, oldest first; for `append` to go on from.

        Raises:
            StoreError: reading failed; a later try may succeed.
            DamagedError: the content cannot be read.
        """
        self._last_row = self._base
        self._journal.clear()
        self._rows_since = self._bytes_since = 0
        with self._reading():
            for number, sealed in self._db.execute("SELECT id, changes FROM journal ORDER BY id"):
                self._journal.append((number, len(sealed)))
                if number <= self._base:
                    continue
                if number != self._last_row + 1:
                    raise DamagedError(f"its row {self._last_row + 1} is lost")
                self._last_row = number
                self._rows_since += 1
                self._bytes_since += len(sealed)
                yield _unseal(sealed)
        if self._mark is not None and (newest := self._mark.read()) > self._last_row:
            raise DamagedError(f"its rows {self._last_row + 1} to {newest} are lost")

    def begin_reading(self) -> None:
        """Forget the checkpoint under way, and look at what the file holds; before `rows`.

        Raises:
            StoreError: reading failed; a later try may succeed.
            DamagedError: the content cannot be read.
        """
        with self._reading():
            self._end_transaction()
            self._read_head(self._db)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._error_for(error) from None
        except (ValueError, TypeError, AttributeError, msgpack.UnpackException) as error:
            raise DamagedError(f"unreadable: {error}") from None

    def append(self, changes: bytes) -> None:
        """Store the changes of one batch, all of them or none.

        Raises:
            StoreError: nothing was stored; a later try may succeed.
            DamagedError: nothing was stored, and the file is damaged.
        """
        if self._lost:
            raise StoreError(self._lost)
        sealed = _seal(changes)
        row = self._last_row + 1
        try:
            self._end_transaction()
            self._db.execute(_APPEND, (row, sealed))
        except sqlite3.Error as error:
            # An error may come after the commit; then the batch has happened.
            newest = self._newest_row()
            if newest is not None and newest < row and self._give_up_reserve(error):
                self.append(changes)
                return
            if newest is None or newest < row:
                raise self._error_for(error) from None
        self._last_row = row
        if self._mark is not None:
            self._mark.write(row)
        self._journal.append((row, len(sealed)))
        self._rows_since += 1
        self._bytes_since += len(sealed)

    def _newest_row(self) -> int | None:
        """Return the number of the newest committed row, 0 for none; None when it is unknown."""
        try:
            self._end_transaction()
            (row,) = self._db.execute("SELECT max(id) FROM journal").fetchone()
        except sqlite3.Error:
            return None
        return row or 0

    # -- the checkpoint ---------------------------------------------------------------

    def touch(self, key: Key) -> None:
        """Note that the thing of a key is about to be edited."""
        self._dirty[key] = None
        if key in self._todo and key not in self._aside:
            self._aside[key] = self._packed(key)

    @property
    def has_work(self) -> bool:
        """Whether a step would do something: `step` is worth a call, now or in an idle moment."""
        return (
            self._next_base is not None
            or bool(self._old)
            or self._covered()
            or self._is_due()
            or self._too_large
        )

    def _is_due(self) -> bool:
        return self._rows_since >= _DUE_ROWS or self._bytes_since >= _DUE_BYTES

    def _covered(self) -> bool:
        return bool(self._journal) and self._journal[0][0] <= self._base

    def step(self) -> None:
        """Take a step of the checkpoint: begin it, write some rows, finish it, or tidy up.

        A step takes a millisecond or two; longer when the journal grows faster than the checkpoint
        is written. Call it between batches.

        Raises:
            StoreError: nothing of this step was stored; the next step tries again.
        """
        stop = time.perf_counter() + _STEP_SECONDS * self._haste()
        try:
            if self._next_base is not None:
                self._write(stop)
                if not self._todo:
                    self._finish()
            elif self._old or self._covered():
                self._tidy(stop)
            elif self._is_due():
                self._begin()
            elif self._too_large:
                self._cut(stop)
        except sqlite3.Error as error:
            self._careful = True
            self._give_up_reserve(error)
            raise StoreError(str(error)) from None

    def _haste(self) -> float:
        if self._careful or (self._next_base is None and not self._old and not self._covered()):
            return 1.0
        grown = max(self._bytes_since / _DUE_BYTES, self._rows_since / _DUE_ROWS)
        return float("inf") if grown >= 1.0 else 1.0 + _HASTE * grown

    def _begin(self) -> None:
        """Begin a checkpoint of the present state, which all rows so far have made."""
        self._next_base = self._last_row
        self._todo, self._dirty = self._dirty, {}
        self._rows_since = self._bytes_since = 0

    def _write(self, stop: float) -> None:
        """Write things that were edited before the new base began."""
        taken: list[Key] = []
        generation = self._generation + 1
        try:
            with self._transaction():
                while self._todo:
                    key, _ = self._todo.popitem()
                    taken.append(key)
                    sealed = self._aside[key] if key in self._aside else self._packed(key)
                    self._db.execute(_WRITE, (key[0], _pack(key[1]), generation, sealed))
                    if len(taken) % _STEP_ROWS == 0 and time.perf_counter() >= stop:
                        break
        except BaseException:
            self._todo.update(dict.fromkeys(taken))
            raise
        for key in taken:
            self._aside.pop(key, None)
        self._old += taken

    def _finish(self) -> None:
        """Make the new generation and its base valid."""
        assert self._next_base is not None
        with self._transaction():
            self._db.execute(
                "UPDATE head SET generation = ?, base = ?", (self._generation + 1, self._next_base)
            )
        self._generation += 1
        self._base, self._next_base = self._next_base, None
        self._careful = False

    def _tidy(self, stop: float) -> None:
        """Delete what the checkpoint supersedes: its older rows, and the journal up to the base."""
        taken: list[Key] = []
        deleted = 0
        with self._transaction():
            for key in reversed(self._old):
                taken.append(key)
                kind, name = key[0], _pack(key[1])
                self._db.execute(
                    "DELETE FROM state WHERE kind = ? AND key = ? AND (generation < (SELECT"
                    " max(generation) FROM state WHERE kind = ? AND key = ? AND generation <= ?)"
                    " OR (generation <= ? AND value IS NULL))",
                    (kind, name, kind, name, self._generation, self._generation),
                )
                if len(taken) % _STEP_ROWS == 0 and time.perf_counter() >= stop:
                    break
            else:
                deleted = self._delete_covered(stop)
        del self._old[len(self._old) - len(taken) :]
        for _ in range(deleted):
            self._journal.popleft()
        if not self._old and not self._covered():
            self._too_large = self._free_pages() > 0
            if self._reserve is not None:
                self._reserve.keep()

    def _delete_covered(self, stop: float) -> int:
        """Delete journal rows that the checkpoint covers; return how many.

        One large row takes half of the time of a step, so the rows are deleted in small parts.
        """
        deleted, last, room = 0, 0, _PART_BYTES
        for number, size in self._journal:
            if number > self._base:
                break
            if room <= 0:
                self._delete_to(last)
                if time.perf_counter() >= stop:
                    return deleted
                room = _PART_BYTES
            last = number
            deleted += 1
            room -= size + _ROW_BYTES
        self._delete_to(last)
        return deleted

    def _delete_to(self, last: int) -> None:
        self._db.execute("DELETE FROM journal WHERE id <= ?", (last,))

    def _free_pages(self) -> int:
        """Return how many free pages the file has more than it may have."""
        (free,) = self._db.execute("PRAGMA freelist_count").fetchone()
        (pages,) = self._db.execute("PRAGMA page_count").fetchone()
        return int(free - (pages - free) - _FREE_PAGES)

    def _cut(self, stop: float) -> None:
        """Cut free pages off the end of the file."""
        while self._too_large and time.perf_counter() < stop:
            self._db.execute(f"PRAGMA incremental_vacuum({_CUT_PAGES})").fetchall()
            self._too_large = self._free_pages() > 0

    def _packed(self, key: Key) -> bytes | None:
        value = self.row_of(key)
        return None if value is None else _seal(_pack(value), key[0].encode() + _pack(key[1]))

    # -- the file ---------------------------------------------------------------------

    def _give_up_reserve(self, error: sqlite3.Error) -> bool:
        """Give the reserve up when the disk is full; return whether there is more room now."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code != sqlite3.SQLITE_FULL or self._reserve is None or not self._reserve.give_up():
            return False
        log.warning("the disk is full; the reserve is given up", extra=fields(reason=str(error)))
        return True

    def size(self) -> int | None:
        """Return the bytes of the file and its WAL; None without a file."""
        return None if self._files is None else self._files.size()

    def restore_files(self) -> None:
        """Store everything in new files, because those of before were removed or replaced.

        The open files still have all that was stored, and get what is stored until this is done.
        What others have put at their paths is moved aside.

        Raises:
            StoreError: that is not possible now. Nothing is lost, and nothing can be stored before
                a later call succeeds.
        """
        files = self._files
        assert files is not None
        self._lost = "the state files were removed, and cannot be created again"
        new: Path | None = None
        try:
            self._end_transaction()
            new = files.create_new()
            with contextlib.closing(self._connect(str(new))) as copy:
                copy.execute("PRAGMA synchronous = OFF")
                self._db.backup(copy)
            if self._mark is not None and not files.is_whole(files.mark):
                self._mark.close(remove=False)
                self._mark = None
            if self._reserve is not None and not files.is_whole(files.reserve):
                self._reserve.close()
                self._reserve = None
            files.put(new)  # from here on SQLite removes no file for the old connection
            old, self._db = self._db, self._open(copy=True)
            old.close()
        except (sqlite3.Error, OSError, StoreError, DamagedError) as error:
            if new is not None:
                files.remove_new(new)
            raise StoreError(f"{self._lost}: {error}") from None
        if self._mark is not None:
            self._mark.write(self._last_row)
        self._lost = ""

    def close(self) -> None:
        """Close the files."""
        if self._files is not None:
            self._files.close()
        self._db.close()
        if self._mark is not None and self._files is not None:
            self._mark.close(remove=not self._files.has_wal())
            self._mark = None
        if self._reserve is not None:
            self._reserve.close()
            self._reserve = None

    def _replace(self, why: str) -> None:
        files = self._files
        if files is None:
            raise StoreError(why)
        aside = files.name_aside()
        log.error(
            "state file unusable, moved aside; starting empty",
            extra=fields(path=str(files.path), moved_to=str(aside), reason=why),
        )
        try:
            files.move_aside(aside)
            self._db = self._open()
        except (OSError, DamagedError) as error:
            raise StoreError(f"cannot replace {files.path}: {error}") from None
        if self._mark is not None:
            self._mark.write(0)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """Commit what the block does, or nothing of it."""
        self._end_transaction()
        try:
            self._db.execute("BEGIN")
            yield
            self._db.execute("COMMIT")
        except BaseException:
            self._end_transaction()
            raise

    def _end_transaction(self) -> None:
        """Roll back what a failed step left open; else the next commit would be part of it."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def _error_for(self, error: sqlite3.Error) -> StoreError | DamagedError:
        """Return the error to raise: the file is damaged, or cannot be reached now."""
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        writable = self._files is not None and os.access(self._files.path, os.W_OK)
        # A file whose header forbids writing is damaged, unless the host forbids it too.
        if code in _OUTSIDE and not (code == sqlite3.SQLITE_READONLY and writable):
            return StoreError(str(error))
        return DamagedError(f"unreadable: {error}")

    def _open(self, *, copy: bool = False) -> sqlite3.Connection:
        """Open the file, or create it.

        Args:
            copy: whether it is a copy of the file that was open: what is known of that holds.
        """
        files = self._files
        path = ":memory:" if files is None else str(files.path)
        try:
            if files is not None:
                files.create()
            db = self._connect(path)
        except sqlite3.Error as error:
            raise StoreError(f"{error}: {path}") from None
        except OSError as error:
            raise StoreError(str(error) if error.filename else str(error.strerror)) from None
        try:
            self._prepare(db)
            # Nothing that is known of another file holds for this one, a checkpoint under way least
            # of all: it would delete rows that it does not cover.
            if not copy:
                self._read_head(db)
        except sqlite3.Error as error:
            db.close()
            raise self._error_for(error) from None
        except (ValueError, TypeError, LookupError) as error:
            # A message of SQLite that quotes bytes which are not UTF-8, or a damaged old file.
            db.close()
            raise DamagedError(f"unreadable: {error}") from None
        except (DamagedError, NewerError):
            db.close()
            raise
        if files is not None and self._mark is None:
            try:
                self._mark = mark.Mark(files.mark, self._boot_id)
            except OSError as error:  # a full disk, say: the store still has its checksums
                log.warning("no mark is kept of what is stored", extra=fields(reason=str(error)))
        if files is not None and self._reserve is None:
            with contextlib.suppress(OSError):
                self._reserve = Reserve(files.reserve)
                self._reserve.keep()
        if files is not None:
            files.note()
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        """Check that the file is trackd's, bring its schema up to date, empty it after a reboot."""
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA synchronous = OFF")
        (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (application,) = db.execute("PRAGMA application_id").fetchone()
        if tables and application != _APPLICATION_ID:
            raise DamagedError("the file is an SQLite database of another program")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > _VERSION:
            self._refuse(db, version)
        if version < _VERSION:  # before anything is written, or by `_migrate`
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
        db.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
        if application != _APPLICATION_ID:  # otherwise write nothing: the disk may be full
            db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        boot = _pack(self._boot_id)
        if version < _VERSION:
            self._migrate(db, boot, version)
        elif db.execute("SELECT boot FROM head").fetchone() != (boot,):
            db.execute("BEGIN")
            db.execute("DELETE FROM journal")
            db.execute("DELETE FROM state")
            db.execute("UPDATE head SET boot = ?, generation = 0, base = 0", (boot,))
            db.execute("COMMIT")

    def _refuse(self, db: sqlite3.Connection, version: int) -> NoReturn:
        """Raise for a version that is not known: a newer file says it twice, a damaged one once."""
        (again,) = db.execute("SELECT version FROM head").fetchone()
        if again != version:
            raise DamagedError(f"its header says version {version}, and its content {again}")
        path = ":memory:" if self._files is None else self._files.path
        raise NewerError(
            f"{path} was written by a newer trackd (version {version} of the file; this one reads"
            f" up to {_VERSION}): install that trackd again, or set the file aside and start empty:"
            f" mv {path} {path}.newer"
        )

    def _migrate(self, db: sqlite3.Connection, boot: bytes, version: int) -> None:
        """Create the schema, with the state of version 1 as its first checkpoint."""
        kept = v1.read(db, boot) if version == 1 else v1.NOTHING
        db.execute("BEGIN")
        for table in ("journal", "state") if version == 1 else ():
            db.execute(f"DROP TABLE {table}")
        for statement in _SCHEMA.split(";"):
            db.execute(statement)
        db.execute("INSERT INTO head VALUES (?, ?, 1, ?)", (_VERSION, boot, kept.last_row))
        for kind, key, value in kept.rows:
            name = _pack(key)
            db.execute(_WRITE, (kind, name, 1, _seal(_pack(value), kind.encode() + name)))
        db.execute(f"PRAGMA user_version = {_VERSION}")
        db.execute("COMMIT")
        if version == 1:
            with contextlib.suppress(sqlite3.Error):  # a full disk, say: then it is never cut down
                db.execute("VACUUM")


def _nothing(_key: Key) -> None:
    """Return no value: nothing was loaded yet."""


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def _unpack(blob: bytes) -> Any:
    return msgpack.unpackb(blob, strict_map_key=False, use_list=False)


def _seal(packed: bytes, place: bytes = b"") -> bytes:
    """Return bytes with a checksum, since SQLite has none: a damaged value is never used.

    Args:
        packed: the bytes.
        place: where they are stored; the checksum is wrong at any other place.
    """
    return zlib.crc32(packed, zlib.crc32(place)).to_bytes(4, "big") + packed


def _unseal(sealed: bytes, place: bytes = b"") -> bytes:
    packed = sealed[4:]
    if zlib.crc32(packed, zlib.crc32(place)).to_bytes(4, "big") != sealed[:4]:
        raise ValueError("a checksum is wrong")
    return packed
