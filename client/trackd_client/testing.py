"""A real daemon on a temporary socket, for the tests of agents.

As a pytest plugin it gives two fixtures; name it in a `conftest.py`::

    pytest_plugins = ["trackd_client.testing"]

    def test_my_agent(trackd_daemon):
        with Tracker(trackd_daemon.endpoint) as tracker:
            ...

`trackd_daemon` is a running daemon for the cluster `example.com`; `make_trackd_daemon` makes
daemons with other settings. Both are gone after the test, whatever it did. It needs
the daemon (`pip install '.[daemon]'` in a checkout), and pytest only for the fixtures.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from trackd_client.errors import TrackdError
from trackd_client.sync.tracker import Tracker

__all__ = ["Daemon", "MakeDaemon", "make_trackd_daemon", "trackd_daemon"]

#: Seconds that a daemon may take to start or to stop before a test fails.
PATIENCE = 60.0


class Daemon:
    """A daemon process that a test starts, stops, kills and starts again.

    Attributes:
        endpoint: where it serves.
        directory: a directory of its own, which holds the socket and the state.
        log: the file that holds what it logged.
    """

    def __init__(self, directory: Path, cluster: str = "example.com", **settings: object) -> None:
        """Say how to run it; `start` runs it.

        Args:
            directory: exists, and is short enough for a socket.
            cluster: its cluster name.
            settings: as its flags, with underscores: `proxy_expiry=1.0`, `state_dir=""`.
        """
        self.directory = directory
        self.endpoint = f"ipc://{directory}/trackd.sock"
        self.log = directory / "log"
        self._process: subprocess.Popen[bytes] | None = None
        settings = {"cluster_name": cluster, "endpoint": self.endpoint, **settings}
        self._flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]

    @property
    def pid(self) -> int:
        """The pid of the running daemon."""
        assert self._process is not None, "the daemon does not run"
        return self._process.pid

    def start(self) -> None:
        """Start it, and wait until it answers.

        Raises:
            RuntimeError: it does not; the message holds its log.
        """
        assert self._process is None, "the daemon runs already"
        environ = {name: v for name, v in os.environ.items() if not name.startswith("TRACKD_")}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - what the test asked for
                [sys.executable, "-m", "trackd", "run", *self._flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environ,
            )
        deadline, timeout = time.monotonic() + PATIENCE, 1.0
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with Tracker(self.endpoint, timeout=timeout) as tracker:
                    tracker.ping()
            except TrackdError:
                timeout *= 2  # a busy machine may need more for it all
                continue
            return
        raise RuntimeError(f"the daemon does not answer:\n{self.log.read_text()}")

    def stop(self) -> int:
        """Stop it with SIGTERM, and return its exit code."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it with SIGKILL; its socket and its state stay."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Kill it, and start it again on what it left."""
        self.kill()
        self.start()

    def close(self) -> None:
        """End it if it still runs."""
        if self._process is not None:
            self.kill()

    def _end(self, number: int) -> int:
        process = self._process
        assert process is not None, "the daemon does not run"
        process.send_signal(number)
        try:
            code = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            self._process = None
        return code


class MakeDaemon(Protocol):
    """What `make_trackd_daemon` is."""

    def __call__(self, cluster: str = ..., *, start: bool = ..., **settings: object) -> Daemon:
        """Return a daemon, started unless `start` is False."""


@pytest.fixture
def make_trackd_daemon() -> Iterator[MakeDaemon]:
    """Make daemons with settings of one's own: `make_trackd_daemon(proxy_expiry=1.0)`."""
    daemons: list[Daemon] = []
    with tempfile.TemporaryDirectory(prefix="trackd-") as root:

        def make(cluster: str = "example.com", *, start: bool = True, **settings: object) -> Daemon:
            directory = Path(root, str(len(daemons)))
            directory.mkdir()
            daemon = Daemon(directory, cluster, **settings)
            daemons.append(daemon)
            if start:
                daemon.start()
            return daemon

        try:
            yield make
        finally:
            for daemon in daemons:
                daemon.close()


@pytest.fixture
def trackd_daemon(make_trackd_daemon: MakeDaemon) -> Daemon:
    """A running daemon for the cluster `example.com`."""
    return make_trackd_daemon()
