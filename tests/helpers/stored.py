"""What daemons have stored, for tests. A plugin of pytest; `fleet.daemons` has it for fleets."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from helpers.writer import read_state
from trackd.state.state import State
from trackd.storage.files import FILE_NAME
from trackd.storage.sqlite import SQLiteStore
from trackd_client.testing import Daemon
from trackd_client.wire.clock import boot_id


@pytest.fixture
def read_stored() -> Callable[[Daemon], State]:
    """Read what a daemon that does not run has stored."""

    def read(daemon: Daemon) -> State:
        (file,) = daemon.directory.rglob(FILE_NAME)
        return read_state(SQLiteStore(file.parent, boot_id()))

    return read
