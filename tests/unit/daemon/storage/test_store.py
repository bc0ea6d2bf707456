"""The SQLite store does what every store must do."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.store_contract import Kept, StoreContract
from helpers.writer import Faults, sqlite_error
from trackd.storage import checkpoint as checkpoint_module
from trackd.storage.checkpoint import Checkpoint
from trackd.storage.sqlite import SQLiteStore


class KeptInAFile(Kept):
    """A state directory, and one process after the other that uses it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.faults = Faults()
        self.faults.error = sqlite_error(sqlite3.SQLITE_IOERR_WRITE, "disk I/O error")
        self.opened: SQLiteStore | None = None

    def open(self) -> SQLiteStore:
        if self.opened is not None:
            self.opened._db.close()  # as the kernel does; nothing is tidied up
        self.opened = SQLiteStore(self.directory, "this boot", self.faults)
        return self.opened

    def refuse_next(self) -> None:
        self._fail(late=False)

    def lose_next_answer(self) -> None:
        self._fail(late=True)

    def fail_no_more(self) -> None:
        self.faults.fail.clear()

    def _fail(self, *, late: bool) -> None:
        self.faults.late = late
        self.faults.fail = {len(self.faults.statements) + 1}


class TestSQLiteStore(StoreContract):
    """With a file, as the daemon has it."""

    @pytest.fixture
    def kept(self, tmp_path: Path) -> Iterator[KeptInAFile]:
        kept = KeptInAFile(tmp_path)
        yield kept
        if kept.opened is not None:
            kept.opened.close()

    @pytest.fixture
    def small_steps(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let a checkpoint begin after two batches, and write one row a step."""
        monkeypatch.setattr(checkpoint_module, "_DUE_ROWS", 2)
        monkeypatch.setattr(checkpoint_module, "_STEP_ROWS", 1)
        monkeypatch.setattr(checkpoint_module, "_STEP_SECONDS", -1.0)
        monkeypatch.setattr(Checkpoint, "_haste", lambda _checkpoint: 1.0)
