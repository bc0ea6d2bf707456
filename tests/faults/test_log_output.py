"""Standard error that takes nothing: a pipe that nobody reads, a terminal stopped with Ctrl-S."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.support import PATIENCE, wait_until
from trackd_client import DaemonAbsent, Proxy, Tracker, metrics

F_SETPIPE_SZ = 1031


@pytest.fixture(params=["a pipe that nobody reads", "a terminal stopped with Ctrl-S"])
def stuck(request: pytest.FixtureRequest) -> Iterator[int]:
    """Return a descriptor that takes a few kilobytes and then nothing more."""
    if "pipe" in request.param:
        reading, writing = os.pipe()
        fcntl.fcntl(writing, F_SETPIPE_SZ, 4096)
    else:
        reading, writing = os.openpty()
        termios.tcflow(writing, termios.TCOOFF)
    yield writing
    os.close(writing)
    os.close(reading)


def test_a_log_that_nobody_takes_holds_up_neither_agents_nor_the_end(
    stuck: int, tmp_path: Path
) -> None:
    endpoint = f"ipc://{tmp_path}/s"
    command = ["run", "--cluster-name=example.com", f"--endpoint={endpoint}", "--state-dir="]
    process = subprocess.Popen(
        [sys.executable, "-m", "trackd", *command], stderr=stuck, start_new_session=True
    )
    try:
        with Tracker(endpoint, timeout=PATIENCE) as tracker:

            def is_there() -> bool:
                with contextlib.suppress(DaemonAbsent):
                    tracker.ping()
                    return True
                return False

            wait_until(is_there)
            for number in range(1, 1500):  # each is a line of its own
                tracker.track_expected(Proxy(f"p{number}"))
                tracker.forget(f"p{number}")
            families = tracker.metrics()["families"]
            dropped = metrics.total(families, "trackd_log_lines_dropped")
            assert dropped > 0, "lines were dropped, and counted"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
