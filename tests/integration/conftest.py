"""Fixtures for cases that run against both clients; a module may have its own instead."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from helpers.both_clients import daemon, maker, shared_daemon
from helpers.support import PATIENCE
from trackd_client import Tracker
from trackd_client.testing import Daemon

__all__ = ["daemon", "maker", "shared_daemon"]


@pytest.fixture
def tracker(trackd_daemon: Daemon) -> Iterator[Tracker]:
    """A tracker at a daemon of its own."""
    with Tracker(trackd_daemon.endpoint, timeout=PATIENCE) as tracker:
        yield tracker
