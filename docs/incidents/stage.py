"""A daemon and agents in processes of their own, for the incidents of docs/incidents.md.

An incident builds its stage, starts agents one after another, and then waits for Enter. Meanwhile
`trackctl` can look at it from another terminal. Nothing is left afterwards.
"""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from trackd_client import Tracker
from trackd_client.core.sockets import diagnose

#: Seconds that each step may take.
PATIENCE = 30.0
CLUSTER = "example.com"
#: What an agent does: it acts with its tracker, calls the function `settled`, and then waits until
#: it is killed. Its arguments are the tracker, `settled`, and those given to `Stage.agent`.
Role = Callable[..., None]


class Stage:
    """A daemon and agents that play an incident."""

    def __init__(self, **settings: object) -> None:
        """Start a daemon.

        Args:
            settings: flags of the daemon, with underscores.
        """
        self._directory = tempfile.TemporaryDirectory(prefix="incident-")
        self.endpoint = f"ipc://{self._directory.name}/trackd.sock"
        self._agents: list[multiprocessing.process.BaseProcess] = []
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
        command = [sys.executable, "-m", "trackd", "run", "--cluster-name", CLUSTER]
        with Path(self._directory.name, "log").open("wb") as log:
            self._daemon = subprocess.Popen(  # noqa: S603 - our own command
                [*command, "--endpoint", self.endpoint, *flags], stdout=log, stderr=log
            )
        deadline = time.monotonic() + PATIENCE
        while diagnose(self.endpoint) is not None:
            if time.monotonic() > deadline:
                raise RuntimeError("the daemon does not start")
            time.sleep(0.05)

    def agent(self, name: str, role: Role, *args: Any) -> None:
        """Start an agent in a process of its own, and wait until it has settled."""
        fork = multiprocessing.get_context("fork")  # nothing here has threads or sockets yet
        settled = fork.Event()
        agent = fork.Process(
            target=_act, args=(self.endpoint, name, role, settled.set, *args), daemon=True
        )
        agent.start()
        self._agents.append(agent)
        if not settled.wait(PATIENCE):
            raise RuntimeError(f"{name} does not settle")

    def wait(self) -> None:
        """Print the endpoint, and wait for Enter."""
        sys.stdout.write(f"export TRACKD_ENDPOINT={self.endpoint}\nEnter ends it\n")
        sys.stdout.flush()
        sys.stdin.readline()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for agent in self._agents:
            agent.kill()
            agent.join()
        self._daemon.kill()
        self._daemon.wait()
        self._directory.cleanup()


def _act(endpoint: str, name: str, role: Role, settled: Callable[[], None], *args: Any) -> None:
    """Run an agent. This is the main function of a process that is killed from outside."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the stage, which kills the agents
    with Tracker(endpoint, cluster=CLUSTER, name=name) as tracker:
        role(tracker, settled, *args)


def stay() -> None:
    """Wait until the process is killed."""
    while True:
        signal.pause()
