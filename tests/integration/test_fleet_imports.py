"""A daemon of one host pays nothing for fleets: it imports nothing of them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.support import wait_until
from trackd_client import TrackdError, Tracker


def answers(endpoint: str) -> bool:
    try:
        with Tracker(endpoint, timeout=5.0) as tracker:
            return tracker.try_acquire() is not None
    except TrackdError:
        return False


def test_a_daemon_without_a_fleet_imports_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = f"ipc://{tmp_path}/trackd.sock"
    monkeypatch.setenv("TRACKD_STATE_DIR", str(tmp_path / "state"))
    log = tmp_path / "log"
    with log.open("wb") as output:
        daemon = subprocess.Popen(
            [
                *(sys.executable, "-X", "importtime", "-m", "trackd", "run"),
                *("--cluster-name", "example.com", "--endpoint", endpoint),
            ],
            stdout=output,
            stderr=output,
        )
    try:
        wait_until(lambda: answers(endpoint))
    finally:
        daemon.terminate()
        daemon.wait()
    imported = set(re.findall(r"^import time:.*\| +(\S+)$", log.read_text(), re.MULTILINE))
    assert {"trackd.server", "trackd.storage.store", "sqlite3"} <= imported
    unwanted = ("grpc", "google", "trackd.fleet")
    assert not [
        name for name in imported if f"{name}.".startswith(tuple(f"{each}." for each in unwanted))
    ]
