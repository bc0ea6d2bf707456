"""SQLiteStore: a file in the runtime directory. It must outlive the process, not the boot.

A row of the journal is written by one statement. `trackd.storage.checkpoint` writes the next
checkpoint in small steps between batches. When the disk is full, the *reserve* is given up, so that
a checkpoint can be written and the journal deleted.

The file uses a WAL without fsync: the kernel keeps what was written when the process dies. A file
of another boot is emptied.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from trackd.host.logs import fields
from trackd.host.own_paths import OwnPaths
from trackd.storage import mark, v1
from trackd.storage.checkpoint import WRITE, Checkpoint
from trackd.storage.database import (
    OUTSIDE,
    Connect,
    code_of,
    connect,
    end_transaction,
    pack,
    reading,
    seal,
    unseal,
)
from trackd.storage.files import StateFiles
from trackd.storage.reserve import Reserve
from trackd.storage.store import DamagedError, Key, NewerError, RowOf, StoreError

log = logging.getLogger("trackd.store")

#: Marks the file as trackd's ("trkd"); a file with another mark is set aside.
_APPLICATION_ID = 0x74726B64
#: 3 has the tables of 2, and more kinds of changes.
_VERSION: Final = 3
#: Pages of the WAL that SQLite copies back at once: less than a millisecond's work; and bytes to
#: which its file is cut down after a large commit.
_WAL_PAGES = 200
_WAL_BYTES = 4 * 1024 * 1024
_SCHEMA: Final = """
    CREATE TABLE head (version INTEGER NOT NULL, boot BLOB NOT NULL, generation INTEGER NOT NULL,
                       base INTEGER NOT NULL);
    CREATE TABLE journal (id INTEGER PRIMARY KEY, changes BLOB NOT NULL);
    CREATE TABLE state (kind TEXT NOT NULL, key BLOB NOT NULL, generation INTEGER NOT NULL,
                        value BLOB, PRIMARY KEY (kind, key, generation)) WITHOUT ROWID;
"""
_APPEND: Final = "INSERT INTO journal (id, changes) VALUES (?, ?)"


class SQLiteStore:
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

    # -- what is stored ---------------------------------------------------------------

    def rows(self, kind: str) -> Iterator[tuple[Any, Any]]:
        """Yield the checkpoint's rows of a kind: key and value.

        Raises:
            StoreError: reading failed; a later try may succeed.
            DamagedError: the content cannot be read.
        """
        with reading(self._error_for):
            yield from self._checkpoint.rows(kind)

    def batches(self) -> Iterator[bytes]:
        """Yield the journal's batches after the base, oldest first; for `append` to go on from.

        Raises:
            StoreError: reading failed; a later try may succeed.
            DamagedError: the content cannot be read.
        """
        checkpoint = self._checkpoint
        with reading(self._error_for):
            for number, sealed in self._db.execute("SELECT id, changes FROM journal ORDER BY id"):
                if checkpoint.base < number != checkpoint.last_row + 1:
                    raise DamagedError(f"its row {checkpoint.last_row + 1} is lost")
                checkpoint.note_row(number, len(sealed))
                if number > checkpoint.base:
                    yield unseal(sealed)
        if self._mark is not None and (newest := self._mark.read()) > checkpoint.last_row:
            raise DamagedError(f"its rows {checkpoint.last_row + 1} to {newest} are lost")

    def begin_reading(self) -> None:
        """Forget the checkpoint under way, and look at what the file holds; before `rows`.

        Raises:
            StoreError: reading failed; a later try may succeed.
            DamagedError: the content cannot be read.
        """
        with reading(self._error_for):
            end_transaction(self._db)
            self._checkpoint = self._checkpoint_of(self._db)

    def append(self, changes: bytes) -> None:
        """Store the changes of one batch, all of them or none.

        Raises:
            StoreError: nothing was stored; a later try may succeed.
            DamagedError: nothing was stored, and the file is damaged.
        """
        if self._lost:
            raise StoreError(self._lost)
        sealed = seal(changes)
        row = self._checkpoint.last_row + 1
        try:
            end_transaction(self._db)
            self._db.execute(_APPEND, (row, sealed))
        except sqlite3.Error as error:
            # An error may come after the commit; then the batch has happened.
            newest = self._newest_row()
            if newest is not None and newest < row and self._give_up_reserve(error):
                self.append(changes)
                return
            if newest is None or newest < row:
                raise self._error_for(error) from None
        if self._mark is not None:
            self._mark.write(row)
        self._checkpoint.note_row(row, len(sealed))

    def _newest_row(self) -> int | None:
        """Return the number of the newest committed row, 0 for none; None when it is unknown."""
        try:
            end_transaction(self._db)
            (row,) = self._db.execute("SELECT max(id) FROM journal").fetchone()
        except sqlite3.Error:
            return None
        return row or 0

    def check_owner(self) -> None:
        """Do nothing: the lock of the state directory keeps others out."""

    def note_done(self, token: bytes, ranges: Sequence[int]) -> bool:
        """Note which requests a session is done with; return whether a restart finds it.

        A store in memory says so too: a restart finds nothing of it at all.
        """
        if self._files is None:
            return True
        return self._mark is not None and self._mark.note(token, ranges)

    def noted_done(self) -> Mapping[bytes, Sequence[int]]:
        """Return what `note_done` has noted, by token."""
        return {} if self._mark is None else self._mark.notes

    def forget_done(self, token: bytes) -> None:
        """Forget the note of a session that has ended, if there is one."""
        if self._mark is not None:
            self._mark.forget(token)

    def touch(self, keys: Iterable[Key]) -> None:
        """Note that the things of these keys are about to be edited."""
        self._checkpoint.touch(keys)

    @property
    def has_work(self) -> bool:
        """Whether a step would do something: `step` is worth a call, now or in an idle moment."""
        return self._checkpoint.has_work

    def step(self) -> None:
        """Take a step of the checkpoint. Call it between batches.

        A step takes a millisecond or two; longer when the journal grows faster than the checkpoint
        is written.

        Raises:
            StoreError: nothing of this step was stored; the next step tries again.
        """
        try:
            self._checkpoint.step()
        except sqlite3.Error as error:
            self._give_up_reserve(error)
            raise StoreError(str(error)) from None
        if self._reserve is not None and self._checkpoint.is_tidy():
            self._reserve.keep()

    # -- the file ---------------------------------------------------------------------

    def _give_up_reserve(self, error: sqlite3.Error) -> bool:
        """Give the reserve up when the disk is full; return whether there is more room now."""
        if code_of(error) != sqlite3.SQLITE_FULL or self._reserve is None:
            return False
        if not self._reserve.give_up():
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
            end_transaction(self._db)
            new = files.create_new()
            with contextlib.closing(self._connect(str(new))) as copy:
                copy.execute("PRAGMA synchronous = OFF")
                self._db.backup(copy)
            notes: Mapping[bytes, Sequence[int]] = {}
            if self._mark is not None and not files.is_whole(files.mark):
                notes = self._mark.notes
                self._mark.close(remove=False)
                self._mark = None
            if self._reserve is not None and not files.is_whole(files.reserve):
                self._reserve.close()
                self._reserve = None
            files.put(new)  # from here on SQLite removes no file for the old connection
            old, self._db = self._db, self._open(copy=True)
            self._checkpoint.db = self._db
            old.close()
        except (sqlite3.Error, OSError, StoreError, DamagedError) as error:
            if new is not None:
                files.remove_new(new)
            raise StoreError(f"{self._lost}: {error}") from None
        if self._mark is not None:
            self._mark.write(self._checkpoint.last_row)
            for token, ranges in notes.items():
                self._mark.note(token, ranges)
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

    def _error_for(self, error: sqlite3.Error) -> StoreError | DamagedError:
        """Return the error to raise: the file is damaged, or cannot be reached now."""
        code = code_of(error)
        writable = self._files is not None and os.access(self._files.path, os.W_OK)
        # A file whose header forbids writing is damaged, unless the host forbids it too.
        if code in OUTSIDE and not (code == sqlite3.SQLITE_READONLY and writable):
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
                self._checkpoint = self._checkpoint_of(db)
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

    def _checkpoint_of(self, db: sqlite3.Connection) -> Checkpoint:
        def row_of(key: Key) -> Any:
            return self.row_of(key)  # as it is by then

        return Checkpoint(db, row_of)

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
        boot = pack(self._boot_id)
        if version == 2:
            db.execute("BEGIN")
            db.execute("UPDATE head SET version = ?", (_VERSION,))
            db.execute(f"PRAGMA user_version = {_VERSION}")
            db.execute("COMMIT")
        elif version < _VERSION:
            self._migrate(db, boot, version)
            return
        if db.execute("SELECT boot FROM head").fetchone() != (boot,):
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
            name = pack(key)
            db.execute(WRITE, (kind, name, 1, seal(pack(value), kind.encode() + name)))
        db.execute(f"PRAGMA user_version = {_VERSION}")
        db.execute("COMMIT")
        if version == 1:
            with contextlib.suppress(sqlite3.Error):  # a full disk, say: then it is never cut down
                db.execute("VACUUM")


def _nothing(_key: Key) -> None:
    """Return no value: nothing was loaded yet."""
