"""The checkpoint: the state as it was after one row of the journal, one row for each thing.

The next one is written in small steps between batches, as a *generation*: only the things that
were edited since the base, a row without a value for what is gone. Whoever edits something calls
`touch` before, so that its value at the new base is kept for the step that writes it. When all is
written, one small transaction makes the generation and its base valid. Then its older rows and the
journal that it covers are deleted, also in steps. A process that dies in between leaves rows of no
valid generation, which the next checkpoint writes over. A file that has become much larger than
what it holds is cut down at last.
"""

from __future__ import annotations

import sqlite3
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Final

from trackd.storage.database import pack, seal, transaction, unpack, unseal
from trackd.storage.store import Key, RowOf

#: Seconds that a step of a checkpoint may take before its commit, which takes several times that
#: (2 ms for both, measured), and the rows between two looks at the clock.
_STEP_SECONDS = 0.0003
_STEP_ROWS = 50
#: A checkpoint begins when the journal has grown by this much. When it grows by as much again
#: before the checkpoint is done, the rest is done at once; so the journal is bounded.
_DUE_ROWS = 4096
_DUE_BYTES = 4 * 1024 * 1024
_DUE_KEYS = 16_384  # which are kept in memory until then
#: How much longer the steps are just before that.
_HASTE = 16
#: Journal rows are deleted in parts of so many bytes; each row counts some bytes extra.
_PART_BYTES = 16 * 1024
_ROW_BYTES = 256
#: How many free pages the file may have more than pages in use, and how many are cut off at once.
_FREE_PAGES = 2048
_CUT_PAGES = 16

#: Writes a row: kind, key, generation, sealed value.
WRITE: Final = "INSERT OR REPLACE INTO state VALUES (?, ?, ?, ?)"
_HAS_LEFT: Final = "SELECT EXISTS (SELECT 1 FROM state WHERE generation > ?)"
#: Writes that a thing is gone, unless no row has ever said that it was there.
_WRITE_GONE: Final = (
    "INSERT OR REPLACE INTO state SELECT ?1, ?2, ?3, NULL"
    " WHERE EXISTS (SELECT 1 FROM state WHERE kind = ?1 AND key = ?2)"
)

#: Kinds of things that mostly come and go between two checkpoints. Those that did are known without
#: a look into the file, since they are touched before they come.
_BRIEF: Final = frozenset({"lease", "reply"})


class Checkpoint:
    """The checkpoint of one file, and what is known of its journal.

    Attributes:
        db: the open file.
        base: the row of the journal that the valid checkpoint stands for.
        last_row: the newest row of the journal that is known.
    """

    def __init__(self, db: sqlite3.Connection, row_of: RowOf) -> None:
        """Read which rows of a file are valid; nothing else is known of it.

        Args:
            db: the open file.
            row_of: returns the present value of a key, or None when the thing is gone.

        Raises:
            sqlite3.Error: it cannot be read.
        """
        self.db = db
        self._row_of = row_of
        self._generation, self.base = db.execute("SELECT generation, base FROM head").fetchone()
        self.last_row: int = self.base
        self._careful = False  # the last step failed: none may be large
        # Whether a process before has left rows of no valid generation.
        (self._has_left,) = db.execute(_HAS_LEFT, (self._generation,)).fetchone()
        # Edited since the base, or since the next one; whether it is known to be new since then.
        self._dirty: dict[Key, bool] = {}
        self._todo: dict[Key, bool] = {}  # of the checkpoint under way: not written yet
        self._aside: dict[Key, bytes | None] = {}  # of these, values at its base
        self._next_base: int | None = None
        self._old: list[Key] = []  # rows of generations before are to be deleted
        self._journal: deque[tuple[int, int]] = deque()  # number and bytes of each of its rows
        self._rows_since = self._bytes_since = 0
        self._too_large = False  # more free pages than it may have

    def rows(self, kind: str) -> Iterator[tuple[Any, Any]]:
        """Yield the checkpoint's rows of a kind: key and value.

        Raises:
            sqlite3.Error, ValueError, TypeError: they cannot be read.
        """
        sql = (
            "SELECT key, value FROM state WHERE kind = ? AND generation <= ?"
            " ORDER BY key, generation"
        )
        last, sealed, several = None, None, False
        for key, value in self.db.execute(sql, (kind, self._generation)):
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
        name = unpack(key)
        if old or sealed is None:
            self._old.append((kind, name))
        if sealed is not None:
            yield name, unpack(unseal(sealed, kind.encode() + key))

    def note_row(self, number: int, size: int) -> None:
        """Note a row of the journal and its bytes."""
        self._journal.append((number, size))
        if number > self.base:
            self.last_row = number
            self._rows_since += 1
            self._bytes_since += size

    def touch(self, keys: Iterable[Key]) -> None:
        """Note that the things of these keys are about to be edited."""
        dirty, todo, aside = self._dirty, self._todo, self._aside
        for key in keys:
            if key not in dirty:
                may_be_new = key[0] in _BRIEF and not self._has_left
                dirty[key] = may_be_new and self._row_of(key) is None
            if key in todo and key not in aside:
                aside[key] = self._packed(key)

    @property
    def has_work(self) -> bool:
        """Whether a step would do something: `step` is worth a call, now or in an idle moment."""
        return not self.is_tidy() or self._is_due() or self._too_large

    def _is_due(self) -> bool:
        return (
            self._rows_since >= _DUE_ROWS
            or self._bytes_since >= _DUE_BYTES
            or len(self._dirty) >= _DUE_KEYS
        )

    def _growth(self) -> float:
        """Return how far the journal has grown towards the next checkpoint: 1 when it is due."""
        return max(
            self._rows_since / _DUE_ROWS,
            self._bytes_since / _DUE_BYTES,
            len(self._dirty) / _DUE_KEYS,
        )

    def _covered(self) -> bool:
        return bool(self._journal) and self._journal[0][0] <= self.base

    def is_tidy(self) -> bool:
        """Whether nothing is left of what the checkpoint supersedes."""
        return self._next_base is None and not self._old and not self._covered()

    def step(self) -> None:
        """Take a step: begin a checkpoint, write some rows, finish it, tidy up, or cut the file.

        Raises:
            sqlite3.Error: nothing of this step was stored; the next step tries again.
        """
        stop = time.perf_counter() + _STEP_SECONDS * self._haste()
        try:
            if self._next_base is not None:
                self._write(stop)
                if not self._todo:
                    self._finish()
            elif not self.is_tidy():
                self._tidy(stop)
                if self.is_tidy():
                    self._too_large = self._free_pages() > 0
            elif self._is_due():
                self._begin()
            elif self._too_large:
                self._cut(stop)
        except sqlite3.Error:
            self._careful = True
            raise

    def _haste(self) -> float:
        if self._careful or self.is_tidy():
            return 1.0
        grown = self._growth()
        return float("inf") if grown >= 1.0 else 1.0 + _HASTE * grown

    def _begin(self) -> None:
        """Begin a checkpoint of the present state, which all rows so far have made."""
        self._next_base = self.last_row
        self._todo, self._dirty = self._dirty, {}
        self._rows_since = self._bytes_since = 0

    def _write(self, stop: float) -> None:
        """Write things that were edited before the new base began."""
        taken: dict[Key, bool] = {}
        written: list[Key] = []
        generation = self._generation + 1
        try:
            with transaction(self.db):
                while self._todo:
                    key, new = self._todo.popitem()
                    taken[key] = new
                    sealed = self._aside[key] if key in self._aside else self._packed(key)
                    if sealed is not None:
                        row = (key[0], pack(key[1]), generation, sealed)
                        self.db.execute(WRITE, row)
                        written.append(key)
                    elif not new:
                        gone = (key[0], pack(key[1]), generation)
                        if self.db.execute(_WRITE_GONE, gone).rowcount:
                            written.append(key)
                    if len(taken) % _STEP_ROWS == 0 and time.perf_counter() >= stop:
                        break
        except BaseException:
            self._todo.update(taken)
            raise
        for key in taken:
            self._aside.pop(key, None)
        self._old += written

    def _finish(self) -> None:
        """Make the new generation and its base valid."""
        assert self._next_base is not None
        with transaction(self.db):
            self.db.execute(
                "UPDATE head SET generation = ?, base = ?", (self._generation + 1, self._next_base)
            )
        self._generation += 1
        self.base, self._next_base = self._next_base, None
        self._careful = False
        self._has_left = False  # they are written over

    def _tidy(self, stop: float) -> None:
        """Delete what the checkpoint supersedes: its older rows, and the journal up to the base."""
        taken: list[Key] = []
        deleted = 0
        with transaction(self.db):
            for key in reversed(self._old):
                taken.append(key)
                kind, name = key[0], pack(key[1])
                self.db.execute(
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

    def _delete_covered(self, stop: float) -> int:
        """Delete journal rows that the checkpoint covers; return how many.

        One large row takes half of the time of a step, so the rows are deleted in small parts.
        """
        deleted, last, room = 0, 0, _PART_BYTES
        for number, size in self._journal:
            if number > self.base:
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
        self.db.execute("DELETE FROM journal WHERE id <= ?", (last,))

    def _free_pages(self) -> int:
        """Return how many free pages the file has more than it may have."""
        (free,) = self.db.execute("PRAGMA freelist_count").fetchone()
        (pages,) = self.db.execute("PRAGMA page_count").fetchone()
        return int(free - (pages - free) - _FREE_PAGES)

    def _cut(self, stop: float) -> None:
        """Cut free pages off the end of the file."""
        while self._too_large and time.perf_counter() < stop:
            self.db.execute(f"PRAGMA incremental_vacuum({_CUT_PAGES})").fetchall()
            self._too_large = self._free_pages() > 0

    def _packed(self, key: Key) -> bytes | None:
        value = self._row_of(key)
        return None if value is None else seal(pack(value), key[0].encode() + pack(key[1]))
