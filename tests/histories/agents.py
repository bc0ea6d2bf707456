"""Recorded agents that call at random; run as a module, a process of them.

    python -m histories.agents ENDPOINT DIRECTORY SEED KIND AGENTS TIMEOUT

KIND is `sync` or `asyncio`, or `link` for asyncio over a bad line; a call may take TIMEOUT seconds.
The agents call until the standard input ends, and then end their sessions.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import random
import sys
import threading
from pathlib import Path
from typing import Any

from histories.recorder import record
from storm.link import Link
from trackd_client import AsyncTracker, Proxy, TrackdError, Tracker

NAMES = [f"p{number}" for number in range(10)]
#: What an agent does, as often as it stands here.
CHOICES = (
    *("acquire", "acquire", "try_acquire", "claim", "claim", "claim", "release", "release"),
    *("adopt", "gossip", "is_claimed", "status", "leases", "sessions", "proxies", "count", "close"),
)


class RandomAgent:
    """An agent that makes random calls, with a client of either kind."""

    def __init__(self, kind: str, endpoint: str, path: Path, seed: str, timeout: float) -> None:
        self._make = Tracker if kind == "sync" else AsyncTracker
        self._endpoint, self._path, self._timeout = endpoint, path, timeout
        self._chance = random.Random(seed)
        self._held: list[Any] = []
        self._tracker: Any = None
        self._trackers = 0

    async def step(self) -> None:
        """Make one call; an error is an outcome like others."""
        if self._tracker is None:
            self._trackers += 1
            name = f"{self._path.name}-{self._trackers}"
            self._tracker = self._make(self._endpoint, timeout=self._timeout, name=name)
            record(self._tracker, self._path.with_name(f"{name}.jsonl"))
        try:
            await self._choose()
        except TrackdError:
            self._held = [lease for lease in self._held if not lease.lost.is_set()]

    async def _choose(self) -> None:
        chance, tracker = self._chance, self._tracker
        name = chance.choice(NAMES)
        lease = chance.choice(self._held) if self._held else None
        principals = chance.choice([[name], [f"{name}.example.com"], ["host", name]])
        match chance.choice(CHOICES):
            case "acquire":
                self._keep(await wait_for(tracker.acquire(chance.choice((0.01, 0.1, 1.0)))))
            case "try_acquire":
                self._keep(await wait_for(tracker.try_acquire()))
            case "claim" if lease is not None:
                await wait_for(lease.claim(*principals))
            case "release" if lease is not None:
                self._held.remove(lease)
                await wait_for(lease.release())
            case "adopt" if chance.random() < 0.5:
                self._keep(await wait_for(tracker.adopt(*principals)))
            case "is_claimed":
                await wait_for(tracker.is_claimed(*principals))
            case "gossip":
                place = chance.choice(["", "b"]), chance.choice([1, 1, 1, 2])
                ttl = chance.choice([None, 0.3, 600.0])
                await wait_for(tracker.track_expected(Proxy(name, *place, ttl=ttl)))
            case "count" if chance.random() < 0.3:
                await wait_for(tracker.set_connection_count(chance.choice([0, 0, 3, 6])))
            case "status":
                await wait_for(tracker.status())
            case ("leases" | "sessions" | "proxies") as of:
                rows = tracker.rows(of)
                if inspect.isasyncgen(rows):
                    async for _ in rows:
                        pass
                else:
                    list(rows)
            case "close" if chance.random() < 0.1:
                await self.close()

    def _keep(self, lease: Any) -> None:
        if lease is not None:
            self._held.append(lease)

    async def close(self) -> None:
        if self._tracker is not None:
            tracker, self._tracker, self._held = self._tracker, None, []
            await wait_for(tracker.close())


async def wait_for(value: Any) -> Any:
    """Return what a call of either client returns."""
    return await value if inspect.isawaitable(value) else value


async def work(agent: RandomAgent, stop: threading.Event) -> None:
    while not stop.is_set():
        await agent.step()
        await asyncio.sleep(0)
    await agent.close()


def fail(error: threading.ExceptHookArgs) -> None:
    """End the process, so that a test notices a thread that failed."""
    sys.__excepthook__(error.exc_type, error.exc_value or error.exc_type(), error.exc_traceback)
    os._exit(1)


def main() -> None:
    endpoint, directory, seed, kind, count, timeout = sys.argv[1:7]
    threading.excepthook = fail
    stop = threading.Event()
    if kind == "link":
        report = Path(directory, f"{seed}.fates")
        link = Link(f"ipc://{directory}/link-{seed}", endpoint, seed, report)
        link.start()
        endpoint = link.endpoint
    agents = [
        RandomAgent(kind, endpoint, Path(directory, f"{seed}-{n}"), f"{seed}.{n}", float(timeout))
        for n in range(int(count))
    ]

    async def work_together(some: list[RandomAgent]) -> None:
        await asyncio.gather(*(work(agent, stop) for agent in some))

    parts = [[agent] for agent in agents] if kind == "sync" else [agents]
    threads = [
        threading.Thread(target=lambda some=some: asyncio.run(work_together(some)))
        for some in parts
    ]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
