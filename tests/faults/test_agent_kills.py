"""Three hundred agents, killed one by one at random moments: what they held is free at once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import ExitStack
from typing import Any

import pytest

from helpers.support import PATIENCE, RawPeer, wait_until
from trackd_client.errors import Code
from trackd_client.testing import Daemon, MakeDaemon

#: Forks agents, each a process with a client of its own, which tell what they hold and go on.
AGENTS = """
import ctypes, json, os, random, signal, sys, time
from trackd_client import Tracker

endpoint, wave, *kinds = sys.argv[1:]

def say(*what):
    os.write(1, (json.dumps([os.getpid(), *what]) + chr(10)).encode())

def hold(number, kind):
    tracker = Tracker(endpoint, timeout=60)
    if kind == "before claim":
        say(kind, tracker.acquire().id, None)
    elif kind == "after claim":
        lease, name = tracker.acquire(), f"p{number}"
        assert lease.claim(name)
        say(kind, lease.id, name)
    elif kind == "waiting":
        tracker.status()
        say(kind, None, None)
        tracker.acquire()
    else:
        name = f"busy {wave}.{number}"
        tracker.adopt(name)
        say(kind, None, name)
        while True:
            lease = tracker.try_acquire()
            if lease is not None:
                lease.claim(random.choice((f"p{number}", "nowhere")))
                lease.release()
            lease = tracker.adopt(name)
            if lease is not None:
                lease.release()
    signal.pause()

told = False
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody needs to reap them
for number, kind in enumerate(kinds):
    if kind not in ("before claim", "after claim") and not told:
        told = True
        sys.stdin.readline()  # until the others have their leases
    if os.fork() == 0:
        try:
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            hold(number, kind)
        finally:
            os._exit(1)  # whatever happened: never on to the next fork
sys.stdin.read()  # until the test ends, however it does
"""

WAVES = 15
HOLD = ["before claim"] * 5 + ["after claim"] * 6
KINDS = [*HOLD, *["request under way"] * 5, *["waiting"] * 4]


class Wave:
    """Twenty agents.

    Attributes:
        agents: what each has told: its kind, its lease and the name that it claimed, by pid.
    """

    def __init__(self, daemon: Daemon, number: int) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-c", AGENTS, daemon.endpoint, str(number), *KINDS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.agents: dict[int, tuple[str, int | None, str | None]] = {}
        self._hear(len(HOLD))
        assert self._popen.stdin is not None
        self._popen.stdin.write(b"go on\n")
        self._popen.stdin.flush()
        self._hear(len(KINDS) - len(HOLD))

    def _hear(self, count: int) -> None:
        assert self._popen.stdout is not None
        for _ in range(count):
            pid, kind, lease, name = json.loads(self._popen.stdout.readline())
            self.agents[pid] = (kind, lease, name)

    def end(self) -> None:
        with self._popen:
            os.killpg(self._popen.pid, signal.SIGKILL)


def is_free(observer: RawPeer, lease: int) -> bool:
    """Tell whether nobody holds a lease; releasing somebody's else is refused."""
    reply = observer.request("release", lease=lease)
    if "error" in reply:
        assert reply["error"] == Code.NOT_OWNER
        return False
    return True


@pytest.mark.both_stores
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_leases_of_three_hundred_killed_agents_are_free_after_each_kill(
    make_trackd_daemon: MakeDaemon,
) -> None:
    # However slow the machine is, no lease is taken back from an agent that lives.
    trackd_daemon = make_trackd_daemon(claim_timeout=0.0)
    chance = random.Random(3)
    took: dict[str, list[float]] = defaultdict(list)
    with RawPeer(trackd_daemon.endpoint) as observer, ExitStack() as waves:
        observer.open()

        def status() -> dict[str, Any]:
            return observer.request("status")

        # As many as there are agents that hold one, so that those who wait do wait.
        rows = [[f"p{n}", "", 1, None] for n in range(len(HOLD))]
        for number in range(WAVES):
            observer.request("track_expected", proxies=rows)
            wave = Wave(trackd_daemon, number)
            waves.callback(wave.end)
            wait_until(lambda: status()["sessions"] == len(KINDS) + 1)
            pids = list(wave.agents)
            chance.shuffle(pids)
            for alive, pid in zip(range(len(pids), 0, -1), pids, strict=True):
                kind, lease, name = wave.agents[pid]
                for _ in range(chance.randrange(20)):
                    observer.request("ping")  # time passes, a few hundred microseconds each
                if lease is not None:
                    assert not is_free(observer, lease)
                begun = time.perf_counter()
                os.kill(pid, signal.SIGKILL)
                while status()["sessions"] != alive:  # the watch that measures must not sleep
                    assert time.perf_counter() < begun + PATIENCE
                took[kind].append(time.perf_counter() - begun)
                if lease is not None:
                    assert is_free(observer, lease)
                if kind == "request under way":
                    assert not observer.request("is_claimed", principals=[name])["claimed"]
            left = status()
            assert (left["claimed"], left["inflight"], left["waiting"]) == (0, 0, 0)
            assert left["sessions"] == 1
    print("\nfrom SIGKILL to free, in ms:")
    for kind, times in took.items():
        ranks = sorted(1e3 * each for each in times)
        middle, late, last = ranks[len(ranks) // 2], ranks[len(ranks) * 9 // 10], ranks[-1]
        print(f"  {kind:18} {len(ranks):4} kills: p50 {middle:.1f}  p90 {late:.1f}  max {last:.1f}")
    assert sum(map(len, took.values())) == WAVES * len(KINDS) == 300
