"""A process that makes load: agents of one kind, in one shape, for one round.

`python -m benchmarks.worker` reads jobs from its standard input, one JSON line each: it gets
ready, says so, begins with the next line, and prints what it saw. It stays for many rounds, so
that starting Python is no part of any.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Sized
from dataclasses import asdict, dataclass, replace
from typing import Any

import zmq

from benchmarks.clients import Client, Dealer, Library, ManagersClient, RedisClient
from benchmarks.mixes import HELD, Mix, own_name
from trackd_client import AsyncTracker


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a worker does in one round.

    Attributes:
        kind: `echo`, `wire`, `library`, `redis` or `managers`.
        endpoint: of the peer.
        mix: what is asked.
        agent: the number of the agent, among all workers of the round.
        slots: requests that are outstanding at the same time.
        idle: agents more that are connected, with a session, and say nothing.
        seconds: how long the round takes.
        prepare: requests that are encoded beforehand, more than anything answers in that time.
    """

    kind: str
    endpoint: str
    mix: str
    agent: int
    slots: int
    idle: int
    seconds: float
    prepare: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a worker saw in one round.

    Attributes:
        requests: that were answered.
        seconds: that passed.
        p50: of one turn, in seconds; 0 when turns overlap.
        p99: likewise.
    """

    requests: int
    seconds: float
    p50: float = 0.0
    p99: float = 0.0


class Worker:
    """The state of the process: its ZeroMQ context, and what is connected for a round."""

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.max_sockets = 4096
        self._started: Callable[[], None] = lambda: None

    def run(self, job: Job, started: Callable[[], None]) -> Seen:
        """Do one round; `started` is called when all is ready, and returns when it begins."""
        self._started = started
        idle = [self._idle(job) for _ in range(job.idle)]
        try:
            if job.slots == 1:
                return self._closed(job)
            if job.kind == "library":
                return asyncio.run(self._tasks(job))
            if job.kind == "redis":
                return self._pipelines(job)
            return self._outstanding(job)
        finally:
            for client in idle:
                client.close()

    def _client(self, job: Job, mix: Mix) -> Client:
        """Return the agent that asks."""
        match job.kind:
            case "library":
                return Library(job.endpoint, mix, job.agent)
            case "redis":
                return RedisClient(job.endpoint, mix, job.agent)
            case "managers":
                return ManagersClient(job.endpoint, mix, job.agent)
        return self._dealer(job, mix)

    def _idle(self, job: Job) -> Client:
        """Return an agent that says nothing: of the library's too, a plain one with a session."""
        kind = "wire" if job.kind == "library" else job.kind
        return self._client(replace(job, kind=kind, slots=1), Mix.IS_CLAIMED)

    def _dealer(self, job: Job, mix: Mix) -> Dealer:
        return Dealer(
            self._context,
            job.endpoint,
            mix,
            job.agent,
            session=job.kind != "echo",
            slots=job.slots,
        )

    def _closed(self, job: Job) -> Seen:
        mix = Mix(job.mix)
        client = self._client(job, mix)
        frames: Sized | None = None
        if isinstance(client, Dealer):
            frames = client.frames
            client.prepare(job.prepare)
        turn, clock = client.turn, time.perf_counter
        turns: list[float] = []
        turn()
        self._started()
        begun = now = clock()
        end = begun + job.seconds
        while now < end:
            if frames is not None and len(frames) < mix.requests:
                break
            turn()
            before, now = now, clock()
            turns.append(now - before)
        client.close()
        turns.sort()
        return Seen(
            requests=len(turns) * mix.requests,
            seconds=now - begun,
            p50=turns[len(turns) // 2],
            p99=turns[len(turns) * 99 // 100],
        )

    def _outstanding(self, job: Job) -> Seen:
        """Keep so many requests outstanding over one connection."""
        client = self._dealer(job, Mix(job.mix))
        client.prepare(job.prepare)
        send, receive, clock = client.send, client.receive, time.perf_counter
        self._started()
        begun = clock()
        end = begun + job.seconds
        for _ in range(job.slots):
            send()
        answered = 0
        while len(client.frames) > 1:
            receive()
            answered += 1
            if not answered % 64 and clock() >= end:
                break
            send()
        seconds = clock() - begun
        for _ in range(job.slots - 1):
            receive()
        client.close()
        return Seen(requests=answered, seconds=seconds)

    def _pipelines(self, job: Job) -> Seen:
        """Send as many scripts in one pipeline, over and over."""
        client = RedisClient(job.endpoint, Mix(job.mix), job.agent)
        self._started()
        begun = time.perf_counter()
        requests = 0
        while time.perf_counter() < begun + job.seconds:
            requests += client.pipeline(job.slots)
        seconds = time.perf_counter() - begun
        client.close()
        return Seen(requests=requests, seconds=seconds)

    async def _tasks(self, job: Job) -> Seen:
        """Run as many tasks on one `AsyncTracker`."""
        mix = Mix(job.mix)
        async with AsyncTracker(job.endpoint, timeout=60.0) as tracker:
            await tracker.is_claimed(HELD)

            async def task(slot: int) -> int:
                done = 0
                name = own_name(job.agent, slot)
                while time.perf_counter() < end:
                    if mix is Mix.CYCLE:
                        lease = await tracker.try_acquire()
                        assert lease is not None
                        await lease.claim(name)
                        await lease.release()
                    elif mix is Mix.REFUSED:
                        await tracker.try_acquire()
                    else:
                        await tracker.is_claimed(HELD)
                    done += mix.requests
                return done

            self._started()
            begun = time.perf_counter()
            end = begun + job.seconds
            requests = sum(await asyncio.gather(*map(task, range(job.slots))))
            return Seen(requests=requests, seconds=time.perf_counter() - begun)


def main() -> None:
    """Serve jobs until the standard input ends."""
    worker = Worker()

    def started() -> None:
        print("ready", flush=True)
        sys.stdin.readline()

    while line := sys.stdin.readline():
        fields: dict[str, Any] = json.loads(line)
        print(json.dumps(asdict(worker.run(Job(**fields), started))), flush=True)


if __name__ == "__main__":
    main()
