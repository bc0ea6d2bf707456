"""A simulated fleet: how soon, and with how many dials, do agents reach every proxy?

A real daemon, agents in a few processes, and a network that is only a number drawn and a pause:
a dial reaches any of the proxies after a latency. From nothing known to a tunnel to every proxy,
three ways to be an agent are put side by side:

* `pool`: an `AsyncAgentPool`, as it comes.
* `polling`: asks `try_acquire` once a second.
* `naive`: looks once a second whether proxies are missing, and dials if so; no leases.

What to expect: dials reach proxies by chance, so whoever dials only while a proxy is missing
needs n·(1 + 1/2 + … + 1/n) dials on average for n proxies. The two that ask for leases do so,
and the pool needs no second between two of them. The naive ones all dial at once while any
proxy is missing: that may be soon over, at the price of a flood, and of all dials beyond.

Run it with `make fleet`; it prints what it saw and judges nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from trackd_client import AsyncAgentPool, AsyncLease, AsyncTracker, Proxy, TrackdError, Tracker
from trackd_client.testing import Daemon

LOOPS = ("pool", "polling", "naive")
#: Seconds between two looks of the loops that poll.
POLL_SECONDS = 1.0
#: Least and most seconds from a dial's beginning to the principals.
LATENCY = (0.005, 0.025)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one loop needed.

    Attributes:
        loop: which one.
        seconds: until every proxy had its tunnel.
        dials: of all agents until then, and those that were under way.
        at_once: the most dials that were under way together (summed over the processes).
        proxies: how many there were.
    """

    loop: str
    seconds: float
    dials: int
    at_once: int
    proxies: int

    @property
    def dials_per_proxy(self) -> float:
        """How many dials each tunnel took."""
        return self.dials / self.proxies


class Fleet:
    """The agents of one process."""

    def __init__(self, endpoint: str, proxies: int, seed: int) -> None:
        self.dials = self.at_once = self._under_way = 0
        self._endpoint = endpoint
        self._gossip = [Proxy(f"p{number}") for number in range(proxies)]
        self._chance = random.Random(seed)

    async def member(self, loop: str) -> None:
        """Be one agent, until cancelled."""
        async with AsyncTracker(self._endpoint) as tracker:
            if loop == "pool":
                async with AsyncAgentPool(tracker, lambda lease: self._serve(tracker, lease)):
                    await asyncio.Event().wait()
            tunnels: list[AsyncLease] = []
            while True:
                if loop == "naive":
                    lease = await self._dial_without_lease(tracker)
                else:
                    lease = await self._dial_when_allowed(tracker)
                if lease is not None:
                    tunnels.append(lease)
                    await tracker.track_expected(*self._gossip)
                await asyncio.sleep(POLL_SECONDS)

    async def _reach(self) -> str:
        self.dials += 1
        self._under_way += 1
        self.at_once = max(self.at_once, self._under_way)
        try:
            await asyncio.sleep(self._chance.uniform(*LATENCY))
        finally:
            self._under_way -= 1
        return self._chance.choice(self._gossip).name

    async def _serve(self, tracker: AsyncTracker, lease: AsyncLease) -> None:
        if await lease.claim(await self._reach()):
            await tracker.track_expected(*self._gossip)
            await lease.should_close.wait()

    async def _dial_when_allowed(self, tracker: AsyncTracker) -> AsyncLease | None:
        lease = await tracker.try_acquire()
        if lease is not None and not await lease.claim(await self._reach()):
            await lease.release()
            return None
        return lease

    async def _dial_without_lease(self, tracker: AsyncTracker) -> AsyncLease | None:
        known = await tracker.explain()
        if known["tracked"] and not known["missing_count"]:
            return None
        return await tracker.adopt(await self._reach())


async def work(loop: str, endpoint: str, members: int, proxies: int, seed: int) -> None:
    """Run the agents of one process from a line on the standard input to the next one."""
    fleet = Fleet(endpoint, proxies, seed)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    print("ready", flush=True)
    await lines.readline()
    tasks = [asyncio.create_task(fleet.member(loop)) for _ in range(members)]
    await lines.readline()
    print(json.dumps([fleet.dials, fleet.at_once]), flush=True)
    for task in tasks:
        task.cancel()
    for ended in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(ended, Exception) and not isinstance(ended, TrackdError):
            raise ended


def measure(
    loop: str, *, members: int, proxies: int, processes: int, seed: int, patience: float = 600.0
) -> Result:
    """Let a fleet reach every proxy from nothing, and return what it needed.

    Raises:
        TimeoutError: it does not get there within `patience` seconds.
    """
    with ExitStack() as stack:
        daemon = Daemon(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fleet-"))))
        stack.callback(daemon.close)
        daemon.start()
        workers = []
        for number in range(processes):
            share = members // processes + (number < members % processes)
            job = json.dumps([loop, daemon.endpoint, share, proxies, seed + number])
            worker = subprocess.Popen(
                [sys.executable, __file__, "--work", job],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.push(worker)  # waits for it
            stack.callback(worker.terminate)
            workers.append(worker)
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n", "a worker died"
        started = time.monotonic()
        _tell(workers)
        with Tracker(daemon.endpoint, timeout=30.0) as operator:
            while operator.status()["claimed_desired"] < proxies:
                if time.monotonic() > started + patience:
                    raise TimeoutError(f"{loop}: {operator.status()}")
                time.sleep(0.01)
        seconds = time.monotonic() - started
        _tell(workers)
        told = [json.loads(worker.stdout.readline()) for worker in workers if worker.stdout]
        for worker in workers:
            worker.wait(60.0)
    dials, at_once = (sum(numbers) for numbers in zip(*told, strict=True))
    return Result(loop=loop, seconds=seconds, dials=dials, at_once=at_once, proxies=proxies)


def _tell(workers: Sequence[subprocess.Popen[str]]) -> None:
    for worker in workers:
        print(file=worker.stdin, flush=True)


def table(results: Sequence[Result]) -> str:
    """Return the results side by side."""
    rows = [f"{'loop':<10}{'full mesh':>12}{'dials':>8}{'per proxy':>11}{'at once':>9}"]
    rows += [
        f"{r.loop:<10}{r.seconds:>10.2f} s{r.dials:>8}{r.dials_per_proxy:>11.1f}{r.at_once:>9}"
        for r in results
    ]
    return "\n".join(rows)


def main() -> None:
    """Measure each loop with the same fleet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=300)
    parser.add_argument("--proxies", type=int, default=30)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--loops", nargs="+", choices=LOOPS, default=LOOPS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work is not None:
        asyncio.run(work(*json.loads(args.work)))
        return
    print(f"{args.members} agents in {args.processes} processes, {args.proxies} proxies")
    results = [
        measure(
            loop,
            members=args.members,
            proxies=args.proxies,
            processes=args.processes,
            seed=args.seed,
        )
        for loop in args.loops
    ]
    print(table(results))


if __name__ == "__main__":
    main()
