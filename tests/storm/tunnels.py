"""A recorded pool of simulated tunnels; run as a module.

    python -m storm.tunnels ENDPOINT DIRECTORY SEED KIND

KIND is `sync` or `asyncio`. Each dial reaches a proxy at random. Whoever has claimed one holds a
lock of the kernel while its tunnel is open: where two hold it, the file `two-holders` says so. A
tunnel closes after some seconds, but not while the file `calm` is there.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from histories.agents import NAMES
from histories.recorder import record
from trackd_client import AgentPool, AsyncAgentPool, AsyncLease, AsyncTracker, Lease, Tracker


class Tunnels:
    """Dials, and what a tunnel does."""

    def __init__(self, directory: Path, seed: str) -> None:
        self._directory = directory
        self._chance = random.Random(seed)

    def principals(self) -> list[str]:
        """Return what the proxy presents that a dial has reached."""
        if self._chance.random() < 0.02:
            raise ConnectionResetError("the balancer hung up")
        name = self._chance.choice(NAMES)
        return [f"{name}.example.com", name]

    def seconds(self) -> float:
        return self._chance.expovariate(0.4)

    @property
    def is_calm(self) -> bool:
        return (self._directory / "calm").exists()

    @contextmanager
    def alone(self, name: str | None) -> Iterator[None]:
        """Hold the lock of a proxy while the block runs."""
        file = os.open(self._directory / f"lock-{name}", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not (self._directory / "state-lost").exists():
                with (self._directory / "two-holders").open("a") as report:
                    report.write(f"{name}, by the process {os.getpid()}\n")
        try:
            yield
        finally:
            os.close(file)


def run_sync(endpoint: str, directory: Path, seed: str) -> None:
    tunnels = Tunnels(directory, seed)

    def dial(lease: Lease) -> None:
        if not lease.claim(*tunnels.principals()):
            return
        with tunnels.alone(lease.claimed_name):
            while not lease.should_close.wait(tunnels.seconds()) and tunnels.is_calm:
                pass

    with Tracker(endpoint, timeout=10.0, name=f"pool {seed}") as tracker:
        record(tracker, directory / f"pool-{seed}.jsonl")
        with AgentPool(tracker, dial, drain_timeout=20.0):
            sys.stdin.read()


async def run_asyncio(endpoint: str, directory: Path, seed: str) -> None:
    tunnels = Tunnels(directory, seed)

    async def dial(lease: AsyncLease) -> None:
        if not await lease.claim(*tunnels.principals()):
            return
        with tunnels.alone(lease.claimed_name):
            while True:
                try:
                    await asyncio.wait_for(lease.should_close.wait(), tunnels.seconds())
                except TimeoutError:
                    if tunnels.is_calm:
                        continue
                return

    async with AsyncTracker(endpoint, timeout=10.0, name=f"pool {seed}") as tracker:
        record(tracker, directory / f"pool-{seed}.jsonl")
        async with AsyncAgentPool(tracker, dial, drain_timeout=20.0):
            end = asyncio.Event()
            loop = asyncio.get_running_loop()

            def read() -> None:
                sys.stdin.read()
                loop.call_soon_threadsafe(end.set)

            threading.Thread(target=read, daemon=True).start()
            await end.wait()


if __name__ == "__main__":
    place = Path(sys.argv[2])
    if sys.argv[4] == "sync":
        run_sync(sys.argv[1], place, sys.argv[3])
    else:
        asyncio.run(run_asyncio(sys.argv[1], place, sys.argv[3]))
