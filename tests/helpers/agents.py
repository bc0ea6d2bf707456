"""Agents in processes of their own, which use the client library alone and do what a test says.

Run as a script, this file is such an agent: it reads what to do from its standard input, a
JSON array a line, and writes what came of it to its standard output.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from types import TracebackType
from typing import Any, Self

from trackd_client import Lease, Proxy, Tracker

#: Seconds that an agent may take to end.
PATIENCE = 60.0


class Agent:
    """An agent in a process of its own, which does what it is told and uses the client alone.

    Leases are named by their ids.
    """

    def __init__(self, endpoint: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, endpoint],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def tell(self, action: str, *args: Any) -> None:
        """Have it do something; `answer` returns what came of it."""
        assert self._process.stdin is not None
        print(json.dumps([action, *args]), file=self._process.stdin, flush=True)

    def answer(self) -> Any:
        """Wait for what came of the thing told first."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the agent died"
        return json.loads(line)

    def do(self, action: str, *args: Any) -> Any:
        """Have it do something, and return what came of it."""
        self.tell(action, *args)
        return self.answer()

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        self._process.kill()
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let it end, and wait for that."""
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(PATIENCE)


class _Acts:
    """What an `Agent` can be told; runs in its process."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._leases: dict[int, Lease] = {}

    def track(self, proxies: list[list[Any]]) -> None:
        self._tracker.track_expected(*(Proxy(*row) for row in proxies))

    def count(self, number: int) -> None:
        self._tracker.set_connection_count(number)

    def acquire(self) -> int | None:
        return self._keep(self._tracker.try_acquire())

    def wait(self, timeout: float) -> int | None:
        return self._keep(self._tracker.acquire(timeout))

    def adopt(self, *principals: str) -> int | None:
        return self._keep(self._tracker.adopt(*principals))

    def claim(self, lease: int, *principals: str) -> str | None:
        held = self._leases[lease]
        return held.claimed_name if held.claim(*principals) else None

    def release(self, lease: int) -> None:
        self._leases[lease].release()

    def offer(self, lease: int) -> bool:
        return self._leases[lease].offer()

    def dial(self, seed: int, proxies: list[str]) -> list[str]:
        """Dial at random, as through a load balancer, until each of these proxies has a tunnel."""
        chance = random.Random(seed)
        mine = []
        while self._tracker.status()["claimed_desired"] < len(proxies):
            lease = self._tracker.try_acquire()
            if lease is None:
                continue
            reached = chance.choice(proxies)
            if lease.claim(f"{reached}.example.com", reached):
                assert lease.claimed_name is not None
                self._leases[lease.id] = lease
                mine.append(lease.claimed_name)
            else:
                lease.release()
        return mine

    def keep_alive(self, lease: int) -> None:
        """Report for as long as this process runs that the tunnel is alive, and close it then."""

        def report() -> None:
            while self._leases[lease].report(0.01):
                time.sleep(0.1)

        threading.Thread(target=report, daemon=True).start()

    def closes(self, lease: int) -> list[bool]:
        """Wait until the tunnel should close; return whether the lease is lost, and revoked."""
        held = self._leases[lease]
        held.should_close.wait(PATIENCE)
        return [held.lost.is_set(), held.revoked]

    def is_claimed(self, *principals: str) -> bool:
        return self._tracker.is_claimed(*principals)

    def status(self) -> dict[str, Any]:
        return self._tracker.status()

    def _keep(self, lease: Lease | None) -> int | None:
        if lease is None:
            return None
        self._leases[lease.id] = lease
        return lease.id


def _act(endpoint: str) -> None:
    with Tracker(endpoint, name=f"agent {os.getpid()}") as tracker:
        acts = _Acts(tracker)
        for line in sys.stdin:
            action, *args = json.loads(line)
            print(json.dumps(getattr(acts, action)(*args)), flush=True)


if __name__ == "__main__":
    _act(sys.argv[1])
