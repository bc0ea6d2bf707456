"""Processes of recorded agents, for tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from helpers.support import PATIENCE

#: Where modules of tests are found.
TESTS = Path(__file__).parents[1]


class AgentProcess:
    """A process of agents that call at random.

    Args:
        endpoint: of the daemon.
        directory: where each agent writes its files.
        seed: what each of them draws its calls from.
        kind: `sync` or `asyncio`.
        count: how many agents.
        timeout: seconds that a call may take.
    """

    def __init__(
        self,
        endpoint: str,
        directory: Path,
        seed: str,
        kind: str,
        *,
        count: int,
        timeout: float = PATIENCE,
    ) -> None:
        arguments = [endpoint, str(directory), seed, kind, str(count), str(timeout)]
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "histories.agents", *arguments],
            stdin=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(TESTS)},
        )

    def end(self) -> None:
        """Let it close its sessions and end."""
        self.popen.communicate(timeout=3 * PATIENCE)
        assert self.popen.returncode == 0

    def kill(self) -> None:
        """Kill it, if it still runs."""
        with self.popen:
            self.popen.kill()
