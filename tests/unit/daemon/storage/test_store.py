"""The SQLite store does what every store must do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.kept import KeptInSQLite
from helpers.store_contract import StoreContract


class TestSQLiteStore(StoreContract):
    """With a file, as the daemon has it."""

    @pytest.fixture
    def kept(self, tmp_path: Path) -> Iterator[KeptInSQLite]:
        with KeptInSQLite(tmp_path) as kept:
            yield kept

    @pytest.fixture
    def small_steps(self, monkeypatch: pytest.MonkeyPatch) -> None:
        KeptInSQLite.small_steps(monkeypatch)
