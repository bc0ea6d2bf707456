"""The store: an SQLite file in the runtime directory. It must outlive the process, not the boot.

One batch of messages becomes one row of the *journal*, by one statement: what changed, in order.
Beside it stands the *checkpoint*: a table of keys and values, each the state of one thing (a
session, a lease, a proxy) at some moment since the last row that was taken out of the journal.
Replaying the journal over the checkpoint gives the state. A record says what a thing became, so
replaying it over a newer value does no harm: later records bring the newer value back.

The checkpoint moves forward in small steps between batches (`checkpoint_step`), and journal rows
that it covers are deleted. The file uses a WAL without fsync: the kernel keeps what was written
when the process dies. A file of another boot is emptied. The store does not know what its records
mean (`trackd.storage.image` does). Only the actor's thread uses it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgpack

from trackd.host.logs import fields
from trackd.host.own_paths import OwnPaths
from trackd.storage import mark
from trackd.storage.files import StateFiles
from trackd.storage.records import Key, Record, StoredRow

log = logging.getLogger("trackd.store")

#: Marks the file as trackd's ("trkd"); a file with another mark is set aside.
_APPLICATION_ID = 0x74726B64
#: Seconds that one checkpoint step may take before its commit, which takes several times that
#: (2 ms for both, measured), and the rows between two looks at the clock.
_STEP_SECONDS = 0.0003
_STEP_ROWS = 50
#: A checkpoint begins when the journal has grown by this much.
_DUE_ROWS = 4096
_DUE_BYTES = 8 * 1024 * 1024
#: Journal rows are deleted in parts of so many bytes; each row counts some bytes extra.
_PART_BYTES = 16 * 1024
_ROW_BYTES = 256
#: Pages of the WAL that SQLite copies back at once: less than a millisecond's work.
_WAL_PAGES = 200

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

#: Schema changes, oldest first; `user_version` counts those that a file has.
MIGRATIONS = (
    """
    CREATE TABLE journal (id INTEGER PRIMARY KEY, wall REAL NOT NULL, records BLOB NOT NULL);
    CREATE TABLE state (kind TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL,
                        PRIMARY KEY (kind, key)) WITHOUT ROWID;
    """,
)

#: The key of the newest row that a checkpoint has deleted; of the store's own kind.
_NEWEST_DELETED: Key = ("boot", "newest_deleted")

_APPEND = "INSERT INTO journal (id, wall, records) VALUES (?, ?, ?)"

Connect = Callable[[str], sqlite3.Connection]


class StoreError(Exception):
    """The store cannot be written or read now; a later try may succeed."""


class DamagedError(Exception):
    """The file is not a database, not one of trackd, or its content cannot be read."""


def connect(path: str) -> sqlite3.Connection:
    """Open an SQLite file in autocommit mode; the store begins its transactions itself."""
    return sqlite3.connect(path, isolation_level=None, timeout=0.0)


class Store:
    """An open state file, or a database in memory."""

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
            StoreError: the file can be neither opened nor created.
        """
        self._connect = connect
        self._boot_id = boot_id
        self._files = None if directory is None else StateFiles(directory, own or OwnPaths())
        self._lost = ""  # why nothing can be stored, when the files are lost
        self._dirty: dict[Key, None] = {}
        self._touched: dict[Key, None] = {}
        self._checkpoint_to: int | None = None
        self._journal: deque[tuple[int, int]] = deque()  # number and bytes of each of its rows
        self._last_row = 0
        self._rows_since = self._bytes_since = 0
        self._mark: mark.Mark | None = None
        try:
            self._db = self._open()
        except DamagedError as error:
            self._replace(str(error))

    def set_aside(self, why: str) -> None:
        """Set the file aside, and start with an empty one.

        Raises:
            StoreError: the file cannot be set aside, or there is none.
        """
        if self._files is None:
            raise StoreError(why)
        self.close()
        self._replace(why)

    def load(self) -> tuple[list[StoredRow], list[list[Record]]]:
        """Return the checkpoint, and the journal's batches of records, oldest first.

        Raises:
            StoreError: reading failed; a later try may succeed.
            DamagedError: the content cannot be read.
        """
        try:
            self._end_transaction()
            rows = [
                StoredRow(kind, _unpack(key), _unseal(value, kind.encode() + key))
                for kind, key, value in self._db.execute("SELECT kind, key, value FROM state")
                if kind != "boot"
            ]
            batches = []
            self._last_row = self._newest_deleted()
            self._rows_since = self._bytes_since = 0
            self._journal.clear()
            for number, blob in self._db.execute("SELECT id, records FROM journal ORDER BY id"):
                batches.append(_unseal(blob))
                self._journal.append((number, len(blob)))
                self._last_row = number
                self._rows_since += 1
                self._bytes_since += len(blob)
        except sqlite3.Error as error:
            raise self._error_for(error) from None
        except (ValueError, TypeError, AttributeError, msgpack.UnpackException) as error:
            raise DamagedError(f"unreadable: {error}") from None
        self._checkpoint_to = None
        if self._mark is not None and (newest := self._mark.read()) > self._last_row:
            raise DamagedError(f"its rows {self._last_row + 1} to {newest} are lost")
        return rows, batches

    def append(self, records: list[Record], wall: float) -> None:
        """Store the changes of one batch, all of them or none.

        Raises:
            StoreError: nothing was stored; a later try may succeed.
            DamagedError: nothing was stored, and the file is damaged.
        """
        if self._lost:
            raise StoreError(self._lost)
        blob = _seal(records)
        row = self._last_row + 1
        try:
            self._end_transaction()
            self._db.execute(_APPEND, (row, wall, blob))
        except sqlite3.Error as error:
            # An error may come after the commit; then the batch has happened.
            if self._newest_row() < row:
                raise self._error_for(error) from None
        self._last_row = row
        if self._mark is not None:
            self._mark.write(row)
        self._journal.append((row, len(blob)))
        self._rows_since += 1
        self._bytes_since += len(blob)

    def _newest_row(self) -> int:
        """Return the number of the newest committed row, or 0 when that is unknown."""
        try:
            self._end_transaction()
            (row,) = self._db.execute("SELECT max(id) FROM journal").fetchone()
        except sqlite3.Error:
            return 0
        return row or 0

    def touch(self, keys: Iterable[Key]) -> None:
        """Note the keys that journal records changed, for the next checkpoint."""
        touched = self._touched
        for key in keys:
            touched[key] = None

    @property
    def checkpoint_due(self) -> bool:
        """Whether a checkpoint is under way, or the journal is long enough to begin one."""
        return (
            self._checkpoint_to is not None
            or self._rows_since >= _DUE_ROWS
            or self._bytes_since >= _DUE_BYTES
        )

    def checkpoint_step(self, value_of: Callable[[Key], Any]) -> None:
        """Take one small step of the checkpoint, of at most a millisecond or two.

        Args:
            value_of: returns the present value of a key, or None when the thing is gone.

        Raises:
            StoreError: nothing of this step was stored; the next step tries again.
        """
        if self._checkpoint_to is None:
            self._checkpoint_to = self._last_row
            self._rows_since = self._bytes_since = 0
            if self._dirty:
                self._dirty.update(self._touched)
            else:
                self._dirty = self._touched
            self._touched = {}
        stop = time.perf_counter() + _STEP_SECONDS
        written: list[Key] = []
        deleted, finished = 0, False
        try:
            self._end_transaction()
            try:
                self._db.execute("BEGIN")
                while self._dirty:
                    # From the end: at its front a dictionary would be walked over all that left.
                    written.append(self._dirty.popitem()[0])
                    self._write(written[-1], value_of(written[-1]))
                    if len(written) % _STEP_ROWS == 0 and time.perf_counter() >= stop:
                        break
                else:
                    deleted, finished = self._delete_covered(stop)
                    if finished:
                        self._keep_newest_deleted()
                self._db.execute("COMMIT")
            except BaseException:
                self._dirty.update(dict.fromkeys(written))
                self._end_transaction()
                raise
        except sqlite3.Error as error:
            raise StoreError(str(error)) from None
        for _ in range(deleted):
            self._journal.popleft()
        if finished:
            self._checkpoint_to = None

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
            if self._mark is not None and not files.is_own_mark():
                self._mark.close(remove=False)
                self._mark = None
            files.put(new)  # from here on SQLite removes no file for the old connection
            old, self._db = self._db, self._open()
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
        # Nothing that was noted of the old file holds for the new one, a checkpoint under way
        # least of all: it would delete rows that it does not cover.
        if self._mark is not None:
            self._mark.write(0)
        self._dirty.clear()
        self._touched.clear()
        self._journal.clear()
        self._checkpoint_to = None
        self._last_row = self._rows_since = self._bytes_since = 0

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

    def _write(self, key: Key, value: Any) -> None:
        kind, name = key[0], _pack(key[1])
        if value is None:
            self._db.execute("DELETE FROM state WHERE kind = ? AND key = ?", (kind, name))
        else:
            self._db.execute(
                "INSERT OR REPLACE INTO state (kind, key, value) VALUES (?, ?, ?)",
                (kind, name, _seal(value, kind.encode() + name)),
            )

    def _delete_covered(self, stop: float) -> tuple[int, bool]:
        """Delete journal rows that the checkpoint covers; return how many, and if that was all.

        One large row takes half of the time of a step, so the rows are deleted in small parts.
        """
        assert self._checkpoint_to is not None
        deleted, last, room = 0, 0, _PART_BYTES
        for number, size in self._journal:
            if number > self._checkpoint_to:
                break
            if room <= 0:
                self._delete_to(last)
                if time.perf_counter() >= stop:
                    return deleted, False
                room = _PART_BYTES
            last = number
            deleted += 1
            room -= size + _ROW_BYTES
        self._delete_to(last)
        return deleted, True

    def _keep_newest_deleted(self) -> None:
        """Store the number of the newest deleted row: numbers go on from it in an empty journal."""
        self._write(_NEWEST_DELETED, self._checkpoint_to)

    def _newest_deleted(self) -> int:
        kind, key = _NEWEST_DELETED[0], _pack(_NEWEST_DELETED[1])
        found = self._db.execute(
            "SELECT value FROM state WHERE kind = ? AND key = ?", (kind, key)
        ).fetchone()
        return 0 if found is None else int(_unseal(found[0], kind.encode() + key))

    def _delete_to(self, last: int) -> None:
        self._db.execute("DELETE FROM journal WHERE id <= ?", (last,))

    def _open(self) -> sqlite3.Connection:
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
        except sqlite3.Error as error:
            db.close()
            raise self._error_for(error) from None
        except ValueError as error:  # a message of SQLite that quotes bytes which are not UTF-8
            db.close()
            raise DamagedError(f"unreadable: {error}") from None
        except DamagedError:
            db.close()
            raise
        if files is not None and self._mark is None:
            try:
                self._mark = mark.Mark(files.mark, self._boot_id)
            except OSError as error:  # a full disk, say: the store still has its checksums
                log.warning("no mark is kept of what is stored", extra=fields(reason=str(error)))
        if files is not None:
            files.note()
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        """Check that the file is trackd's, migrate its schema, empty it after a reboot."""
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA synchronous = OFF")
        (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (application,) = db.execute("PRAGMA application_id").fetchone()
        if tables and application != _APPLICATION_ID:
            raise DamagedError("the file is an SQLite database of another program")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise DamagedError(f"written by a newer trackd (schema {version})")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
        if application != _APPLICATION_ID:  # otherwise write nothing: the disk may be full
            db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        for number, migration in enumerate(MIGRATIONS[version:], version + 1):
            db.executescript(f"BEGIN; {migration}; PRAGMA user_version = {number}; COMMIT")
        boot = _pack("boot_id")
        found = db.execute(
            "SELECT value FROM state WHERE kind = 'boot' AND key = ?", (boot,)
        ).fetchone()
        if found is None or found[0] != _pack(self._boot_id):
            db.execute("BEGIN")
            db.execute("DELETE FROM journal")
            db.execute("DELETE FROM state")
            db.execute("INSERT INTO state VALUES ('boot', ?, ?)", (boot, _pack(self._boot_id)))
            db.execute("COMMIT")


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def _unpack(blob: bytes) -> Any:
    return msgpack.unpackb(blob, strict_map_key=False)


def _seal(value: Any, place: bytes = b"") -> bytes:
    """Pack a value with a checksum, since SQLite has none: a damaged value is never used.

    Args:
        value: the value.
        place: where it is stored; the checksum is wrong at any other place.
    """
    packed = _pack(value)
    return zlib.crc32(packed, zlib.crc32(place)).to_bytes(4, "big") + packed


def _unseal(blob: bytes, place: bytes = b"") -> Any:
    packed = blob[4:]
    if zlib.crc32(packed, zlib.crc32(place)).to_bytes(4, "big") != blob[:4]:
        raise ValueError("a checksum is wrong")
    return _unpack(packed)
