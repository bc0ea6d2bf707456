"""What outlives the processes that open a store, with its faults; and that of SQLite."""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from helpers.writer import Faults, sqlite_error
from trackd.storage.checkpoint import Checkpoint
from trackd.storage.sqlite import SQLiteStore
from trackd.storage.store import Store


class Kept(ABC):
    """What is stored, for as long as a test runs; use it in a `with` block."""

    @abstractmethod
    def open(self) -> Store:
        """Open the store as the next process does; the one before is killed."""

    @abstractmethod
    def again(self) -> Store:
        """Open what is stored once more, only to read it; whoever asks closes it."""

    @abstractmethod
    def refuse_next(self, after: int = 0) -> None:
        """Let the next write, or one after so many others, be refused; it is not done."""

    @abstractmethod
    def lose_next_answer(self) -> None:
        """Let the next write be done, and its answer get lost."""

    @abstractmethod
    def fail_no_more(self) -> None:
        """Forget faults that nothing has met."""

    @abstractmethod
    def close(self) -> None:
        """End the present process, too."""

    @staticmethod
    @abstractmethod
    def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
        """Let a checkpoint begin after two batches, and write as little as it can in a step."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class KeptInSQLite(Kept):
    """A state directory, or memory, and one process after the other that uses it.

    Attributes:
        faults: of the file.
    """

    def __init__(self, directory: Path | None) -> None:
        """Keep it in a directory; None keeps it in memory, where no process is killed."""
        self.faults = Faults()
        self.faults.error = sqlite_error(sqlite3.SQLITE_IOERR_WRITE, "disk I/O error")
        self._directory = directory
        self._opened: SQLiteStore | None = None

    def open(self) -> SQLiteStore:
        if self._directory is None and self._opened is not None:
            return self._opened
        if self._opened is not None:
            self._opened._db.close()  # as the kernel does; nothing is tidied up
        self._opened = SQLiteStore(self._directory, "this boot", self.faults)
        return self._opened

    def again(self) -> SQLiteStore:
        assert self._opened is not None
        copy = sqlite3.connect(":memory:", isolation_level=None)
        self._opened._db.backup(copy)
        return SQLiteStore(None, "this boot", lambda _: copy)

    def refuse_next(self, after: int = 0) -> None:
        self._fail(after, late=False)

    def lose_next_answer(self) -> None:
        self._fail(0, late=True)

    def fail_no_more(self) -> None:
        self.faults.fail.clear()

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()

    @staticmethod
    def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("trackd.storage.checkpoint._DUE_ROWS", 2)
        monkeypatch.setattr("trackd.storage.checkpoint._STEP_ROWS", 1)
        monkeypatch.setattr("trackd.storage.checkpoint._STEP_SECONDS", -1.0)
        monkeypatch.setattr("trackd.storage.checkpoint._HASTE", 0)
        monkeypatch.setattr(Checkpoint, "_haste", lambda _checkpoint: 1.0)

    def _fail(self, after: int, *, late: bool) -> None:
        self.faults.late = late
        self.faults.fail = {len(self.faults.statements) + 1 + after}
