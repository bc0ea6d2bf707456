"""The processes that are measured side by side: trackd, and what might stand in its place.

Each is a real process on a unix socket. `arrange` brings it into the state that a mix of
requests needs; what sends the requests is in `clients`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.mixes import HELD, TRACKED, Mix, names
from trackd_client import Lease, Proxy, Tracker
from trackd_client.testing import Daemon

TESTS = Path(__file__).resolve().parent.parent
#: Seconds that a peer may take to start.
PATIENCE = 20.0


def environ() -> dict[str, str]:
    """Return the environment in which `python -m benchmarks...` finds its modules."""
    return {**os.environ, "PYTHONPATH": str(TESTS)}


@contextmanager
def python_path(tree: Path | None) -> Iterator[None]:
    """Let processes that start meanwhile run the trackd of another checkout, unless it is None."""
    before = os.environ.get("PYTHONPATH")
    if tree is not None:
        os.environ["PYTHONPATH"] = f"{tree / 'daemon'}:{tree / 'client'}"
    yield
    os.environ.pop("PYTHONPATH", None)
    if before is not None:
        os.environ["PYTHONPATH"] = before


class Peer(ABC):
    """A process that answers.

    Attributes:
        name: as the tables call it.
        endpoint: where it answers, as its client wants it.
        pid: of its process.
    """

    name: str
    endpoint: str
    pid: int

    @abstractmethod
    def arrange(self, mix: Mix) -> None:
        """Have it hold what the mix needs."""

    @abstractmethod
    def close(self) -> None:
        """End it."""


class Program(Peer):
    """A peer that is started from a command line and answers once its socket is there."""

    def __init__(self, directory: Path, command: Sequence[str], path: Path) -> None:
        self._log = (directory / "log").open("wb")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=environ(),
            cwd=directory,
        )
        self.pid = self._process.pid
        deadline = time.monotonic() + PATIENCE
        while not path.is_socket():
            if time.monotonic() > deadline or self._process.poll() is not None:
                self.close()
                raise RuntimeError(f"{command} does not start: {(directory / 'log').read_text()}")
            time.sleep(0.01)

    def close(self) -> None:
        """End it."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._log.close()


class Echo(Program):
    """A bare ROUTER that echoes."""

    name = "echo"

    def __init__(self, directory: Path) -> None:
        path = directory / "socket"
        self.endpoint = f"ipc://{path}"
        super().__init__(directory, [sys.executable, "-m", "benchmarks.echo", self.endpoint], path)

    def arrange(self, mix: Mix) -> None:
        """Hold nothing."""


class Trackd(Peer):
    """The daemon with everything on, store included.

    Attributes:
        daemon: as tests run it.
    """

    name = "trackd"

    def __init__(self, directory: Path, tree: Path | None = None) -> None:
        """Start it: the daemon of this tree, or of another checkout."""
        self.daemon = Daemon(directory)
        with python_path(tree):
            self.daemon.start()
        self.endpoint = self.daemon.endpoint
        self.pid = self.daemon.pid
        self._operator = Tracker(self.endpoint, timeout=PATIENCE, name="operator")
        self._held: Lease | None = None

    def arrange(self, mix: Mix) -> None:
        """Track, and hold one proxy; `refused` wants no more connections than that."""
        operator = self._operator
        operator.track_expected(*(Proxy(name, ttl=1e6) for name in names(TRACKED)))
        if self._held is None:
            self._held = operator.adopt(HELD)
        operator.set_connection_count(1 if mix is Mix.REFUSED else 0)

    def close(self) -> None:
        """End it."""
        self._operator.close()
        self.daemon.close()


class Redis(Program):
    """Redis with its append-only file, written behind at most a second late (its default)."""

    name = "redis"

    def __init__(self, directory: Path) -> None:
        path = directory / "socket"
        self.endpoint = str(path)
        command = ["redis-server", "--port", "0", "--unixsocket", self.endpoint, "--save", ""]
        command += ["--appendonly", "yes", "--appendfsync", "everysec", "--dir", str(directory)]
        super().__init__(directory, command, path)
        import redis

        self._client = redis.Redis(unix_socket_path=self.endpoint)

    def arrange(self, mix: Mix) -> None:
        """Hold what trackd holds."""
        from benchmarks.scripts import LeaseScripts

        self._client.flushall()
        scripts = LeaseScripts(self._client)
        rows = [[name, "", 0, 1e6] for name in names(TRACKED)]
        scripts.gossip(rows, time.time())
        lease = scripts.try_acquire(time.time())
        scripts.claim(lease, HELD)
        scripts.set_count(1 if mix is Mix.REFUSED else 0)

    def close(self) -> None:
        """End it."""
        self._client.close()
        super().close()


class Managers(Program):
    """The rules alone, shared by `multiprocessing.managers`: a thread for each agent, no store."""

    name = "managers"

    def __init__(self, directory: Path) -> None:
        path = directory / "socket"
        self.endpoint = str(path)
        super().__init__(
            directory, [sys.executable, "-m", "benchmarks.managers", self.endpoint], path
        )

    def arrange(self, mix: Mix) -> None:
        """Hold what trackd holds."""
        from benchmarks.managers import connect

        tracker = connect(self.endpoint)
        tracker.track_expected([Proxy(name, ttl=1e6) for name in names(TRACKED)])
        if not tracker.is_claimed([HELD]):
            tracker.adopt([HELD])
        tracker.set_connection_count(1 if mix is Mix.REFUSED else 0)


def absent() -> dict[str, str]:
    """Return the peers that cannot be measured here, and why."""
    why = {}
    if shutil.which("redis-server") is None:
        why["redis"] = "redis-server is not installed (Debian: redis-server)"
    else:
        try:
            import redis  # noqa: F401
        except ImportError:
            why["redis"] = "the Python package redis is not installed (pip install '.[bench]')"
    return why


KINDS: dict[str, Callable[[Path], Peer]] = {
    "echo": Echo,
    "trackd": Trackd,
    "library": Trackd,
    "redis": Redis,
    "managers": Managers,
}
