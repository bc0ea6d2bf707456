"""Fixtures for cases that run against both clients; a module may have its own instead."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.both_clients import daemon, maker, shared_daemon
from helpers.support import PATIENCE
from helpers.trackctl import Script
from trackd_client import Tracker
from trackd_client.testing import Daemon

__all__ = ["daemon", "maker", "shared_daemon"]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Make shell scripts, and return where they are."""

    def make(body: str) -> str:
        path = tmp_path / f"script-{len(list(tmp_path.iterdir()))}"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return str(path)

    return make


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A short place for the directories of sockets."""
    with tempfile.TemporaryDirectory(prefix="trackd-") as place:
        yield Path(place)


@pytest.fixture
def tracker(trackd_daemon: Daemon) -> Iterator[Tracker]:
    """A tracker at a daemon of its own."""
    with Tracker(trackd_daemon.endpoint, timeout=PATIENCE) as tracker:
        yield tracker
