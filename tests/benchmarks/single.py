"""Figures of the daemon that no load shows: memory, idleness, gossip, kills, restarts.

Each function measures one thing with a daemon of its own, and returns figures. `scale` is 1.0 for
what the targets speak of; less makes everything smaller, for a look at whether it works.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgpack
import zmq

from benchmarks.clients import Dealer
from benchmarks.mixes import HELD, Mix, names
from benchmarks.peers import environ
from benchmarks.targets import TARGETS, Figure
from benchmarks.worker import Job, Seen
from helpers.support import processor_seconds, rss
from trackd_client.testing import Daemon

Progress = Callable[[str], None]


@contextmanager
def running(**settings: object) -> Iterator[Daemon]:
    """Run a daemon in a directory of its own."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        daemon = Daemon(Path(directory), **settings)  # type: ignore[arg-type] # none is called cluster
        daemon.start()
        try:
            yield daemon
        finally:
            daemon.close()


@contextmanager
def dealer(daemon: Daemon, mix: Mix = Mix.IS_CLAIMED) -> Iterator[Dealer]:
    """Open a session over a plain DEALER."""
    with zmq.Context() as context:
        client = Dealer(context, daemon.endpoint, mix)
        try:
            yield client
        finally:
            client.close()


def track(client: Dealer, count: int, *, at_once: int = 10_000) -> None:
    """Have so many proxies tracked."""
    everything = names(count)
    for first in range(0, count, at_once):
        part = everything[first : first + at_once]
        client.request("track_expected", proxies=[[name, "", 0, 1e6] for name in part])


def settle(client: Dealer, fastest: float = 1.0) -> float:
    """Return when the daemon has nothing to do in the background: checkpoints work in batches.

    Args:
        client: of the daemon.
        fastest: seconds of the fastest `ping` so far. Without it a daemon that is busy during all
            of them looks quiet.

    Returns:
        The seconds of the fastest `ping`.
    """
    quiet = 0
    while quiet < 5:
        times = []
        for _ in range(200):
            begun = time.perf_counter()
            client.request("ping")
            times.append(time.perf_counter() - begun)
        fastest = min(fastest, *times)
        quiet = quiet + 1 if statistics.median(times) < 3 * fastest else 0
    return fastest


def idle(_progress: Progress, scale: float) -> list[Figure]:
    """Look at a daemon that nobody talks to, with a session, a lease and proxies."""
    seconds = 10.0 * scale
    with running() as daemon, dealer(daemon) as client:
        empty = rss(daemon.pid) / 2**20
        track(client, 1000)
        client.request("adopt", principals=[HELD])
        settle(client)
        wakeups, used = _switches(daemon.pid), processor_seconds(daemon.pid)
        time.sleep(seconds)
        wakeups, used = _switches(daemon.pid) - wakeups, processor_seconds(daemon.pid) - used
    about = f"all threads, over {seconds:g} s"
    return [
        Figure(name="idle: resident", value=empty, unit="MiB", target=TARGETS["idle_rss"]),
        Figure(
            name="idle: wake-ups per second",
            value=wakeups / seconds,
            unit="/s",
            target=TARGETS["wakeups"],
            about=about,
        ),
        Figure(
            name="idle: processor",
            value=100 * used / seconds,
            unit="%",
            target=TARGETS["idle_cpu"],
            about="`top` shows 0.1 and more",
        ),
    ]


def _switches(pid: int) -> int:
    """Return how often the threads of a process went to sleep by themselves."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches:"):
                total += int(line.split()[1])
    return total


def memory(_progress: Progress, scale: float) -> list[Figure]:
    """Let a daemon track proxies, and another one hold sessions with a lease each."""
    proxies, sessions = int(200_000 * scale), int(5000 * scale)
    with running() as daemon, dealer(daemon) as client:
        track(client, 1)
        before = rss(daemon.pid)
        track(client, proxies)
        settle(client)
        each_proxy = (rss(daemon.pid) - before) / proxies
    with running() as daemon, dealer(daemon) as client:
        # The history of events is full, and a checkpoint was made: both are bounded.
        for _ in range(int(6000 * scale)):
            client.request("release", lease=client.request("adopt", principals=[HELD])["lease"])
        before = rss(daemon.pid)
        for number in range(sessions):
            client.fresh_session(name="benchmark", version="1")
            client.request("adopt", principals=[f"held-{number:05}"])
        settle(client)
        each_session = (rss(daemon.pid) - before) / sessions
    return [
        Figure(
            name="memory: a tracked proxy",
            value=each_proxy,
            unit="B",
            target=TARGETS["tracked_bytes"],
            about=f"growth of the resident set with {proxies:,}",
        ),
        Figure(
            name="memory: a session with a lease",
            value=each_session,
            unit="B",
            target=TARGETS["session_bytes"],
            about=f"growth of the resident set with {sessions:,}",
        ),
    ]


def gossip(_progress: Progress, scale: float) -> list[Figure]:
    """Tell of proxies that are known, and watch how others fare meanwhile."""
    proxies, messages, seconds = int(10_000 * scale), 40, 2.0 * scale
    rows = [[name, "", 0, 1e6] for name in names(proxies)]
    with running() as daemon, dealer(daemon) as client:
        track(client, proxies)
        settle(client)
        payload = msgpack.packb([1, 1, {"op": "track_expected", "proxies": rows}])
        asked, unpacked = [], []
        gc.disable()
        try:
            for _ in range(messages):
                begun = time.perf_counter()
                msgpack.unpackb(payload)
                unpacked.append(time.perf_counter() - begun)
                frame = client.frame("track_expected", proxies=rows)
                begun = time.perf_counter()
                client.exchange(frame)
                asked.append(time.perf_counter() - begun)
        finally:
            gc.enable()
        ratio = statistics.median(asked) / statistics.median(unpacked)
        alone = _others(daemon, 0.75 * seconds, lambda: time.sleep(seconds))
        beside = _others(daemon, 0.75 * seconds, lambda: _talk(client, rows, seconds))
    return [
        Figure(
            name=f"gossip of {proxies:,} known proxies / msgpack.unpackb",
            value=ratio,
            target=TARGETS["gossip"],
            about=f"{1000 * statistics.median(asked):.1f} ms from send to reply; "
            f"unpackb of the same payload {1000 * statistics.median(unpacked):.1f} ms",
        ),
        Figure(
            name=f"other agents' p99 beside gossip of {proxies:,}, above idle",
            value=1000 * (beside.p99 - alone.p99),
            unit="ms",
            target=TARGETS["gossip_beside"],
            about="one message after the other, without a pause; "
            f"without gossip {1000 * alone.p99:.2f} ms",
        ),
    ]


def _talk(client: Dealer, rows: list[list[Any]], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        client.request("track_expected", proxies=rows)


def _others(daemon: Daemon, seconds: float, meanwhile: Callable[[], None]) -> Seen:
    """Return what another agent sees in a closed loop of `is_claimed` while something is done."""
    job = Job(
        kind="wire",
        endpoint=daemon.endpoint,
        mix=Mix.IS_CLAIMED,
        agent=0,
        slots=1,
        idle=0,
        seconds=seconds,
        prepare=int(70_000 * seconds) + 100,
    )
    with program("benchmarks.worker") as worker:
        assert worker(json.dumps(asdict(job))) == "ready\n", "the worker failed"
        doing = threading.Thread(target=meanwhile)
        doing.start()
        seen = Seen(**json.loads(worker()))
        doing.join()
    return seen


@contextmanager
def program(module: str, *args: str) -> Iterator[Callable[..., str]]:
    """Run a module as a program that answers each line with a line."""
    command = [sys.executable, "-m", module, *args]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ()
    ) as process:

        def ask(line: str = "") -> str:
            print(line, file=process.stdin, flush=True)
            assert process.stdout is not None
            return process.stdout.readline()

        yield ask


def kills(progress: Progress, scale: float) -> list[Figure]:
    """Kill agents that hold the one lease, and see when the next waiter gets it."""
    count = int(500 * scale)
    times = []
    with running(connection_count=1) as daemon, dealer(daemon) as client, ExitStack() as stack:
        track(client, 1)
        victims = stack.enter_context(program("benchmarks.victims", daemon.endpoint))
        for number in range(count):
            if not number % 50:
                progress(f"kills: {number} of {count}")
            pid = int(victims())
            client.tell("acquire")
            client.request("ping")  # it was read after the acquire, which now waits
            begun = time.perf_counter()
            os.kill(pid, signal.SIGKILL)
            lease = client.next_reply()["lease"]
            times.append(time.perf_counter() - begun)
            client.request("release", lease=lease)
    times.sort()
    return [
        Figure(
            name="SIGKILL of an agent to the grant for the next waiter, p99",
            value=1000 * times[count * 99 // 100],
            unit="ms",
            target=TARGETS["kill"],
            about=f"{count} kills; p50 {1000 * times[count // 2]:.2f} ms,"
            f" longest {1000 * times[-1]:.2f} ms",
        )
    ]


def backlog(_progress: Progress, scale: float) -> list[Figure]:
    """Ask while a checkpoint of very many proxies is under way, and once it is done."""
    proxies, seconds = int(1_000_000 * scale), 0.5
    with running(max_tracked=1_000_000) as daemon, dealer(daemon) as client:
        track(client, proxies)
        beside = _others(daemon, seconds, lambda: None)
        settle(client)
        alone = _others(daemon, seconds, lambda: None)
    return [
        Figure(
            name=f"a read beside the checkpoint of {proxies:,} proxies / without it, p50",
            value=beside.p50 / alone.p50,
            target=TARGETS["backlog"],
            about=f"p99 {1000 * beside.p99:.2f} ms, without {1000 * alone.p99:.2f} ms",
        )
    ]


def restart(progress: Progress, scale: float) -> list[Figure]:
    """Kill a daemon with much to remember, and see when the next one answers."""
    leases, proxies, times = int(10_000 * scale), int(100_000 * scale), 5
    seconds = []
    with running() as daemon, dealer(daemon) as holder:
        track(holder, proxies)
        for name in names(leases):
            holder.request("adopt", principals=[name])
        for number in range(times):
            progress(f"restart {number + 1} of {times}")
            daemon.kill()
            seconds.append(_start(daemon))
            assert holder.request("status")["claimed"] == leases
    return [
        Figure(
            name=f"restart with {leases:,} leases and {proxies:,} tracked, median",
            value=statistics.median(seconds),
            unit="s",
            target=TARGETS["restart"],
            about=f"from exec to the first answer; longest {max(seconds):.2f} s",
        )
    ]


def _start(daemon: Daemon) -> float:
    """Start a daemon, and return the seconds until it has answered."""
    with zmq.Context() as context:
        begun = time.perf_counter()
        thread = threading.Thread(target=daemon.start)
        thread.start()
        client = Dealer(context, daemon.endpoint, Mix.IS_CLAIMED, session=False)
        seconds = time.perf_counter() - begun
        client.close()
        thread.join()
    return seconds


PARTS: dict[str, Callable[[Progress, float], list[Figure]]] = {
    "idle": idle,
    "memory": memory,
    "gossip": gossip,
    "kills": kills,
    "backlog": backlog,
    "restart": restart,
}
