"""Leaders are killed and paused while agents work: the next one has all that was acknowledged.

The leaders serve one socket of this host in turn, in place of relays.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fleet.candidates import TTL
from fleet.cluster import Cluster
from helpers.ledgers import AGENTS_EACH, NAMES, PROCESSES, Judge, Workers
from helpers.long_form import choose
from helpers.support import RawPeer, pack, wait_until
from trackd.fleet.etcd import Etcd
from trackd_client.wire.clock import boottime

KILLS = choose(10, 100)
LEADER = Path(__file__).with_name("leader.py")


class Site:
    """Two candidates, as if of two hosts, that serve one endpoint; systemd starts them again."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self.endpoint = f"ipc://{directory}/trackd.sock"
        self.directory = directory
        self._etcd = cluster.endpoints
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._logs: dict[str, Path] = {}
        self.errors = directory / "errors"

    def supervise(self) -> None:
        """Start each candidate that does not run."""
        for name in "ab":
            process = self._running.get(name)
            if process is not None and process.poll() is None:
                continue
            (self.directory / name).mkdir(exist_ok=True)
            self._logs[name] = self.directory / name / f"log-{time.monotonic_ns()}"
            words = [self.endpoint, str(TTL), str(self.directory / name), *self._etcd]
            with self._logs[name].open("wb") as log, self.errors.open("ab") as errors:
                self._running[name] = subprocess.Popen(
                    [sys.executable, LEADER, *words], stdout=log, stderr=errors
                )

    def leader(self, besides: subprocess.Popen[bytes] | None = None) -> subprocess.Popen[bytes]:
        """Wait for a leader that serves, and return it."""
        found: list[subprocess.Popen[bytes]] = []

        def look() -> bool:
            self.supervise()
            found[:] = [
                process
                for name, process in self._running.items()
                if process is not besides
                and process.poll() is None
                and b"serves" in self._logs[name].read_bytes()
            ]
            return bool(found)

        wait_until(look, 120)
        return found[0]

    def close(self) -> None:
        for process in self._running.values():
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()


@pytest.fixture
def site(cluster: Cluster, etcd: Etcd) -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="takeover-") as directory:
        made = Site(cluster, Path(directory))
        try:
            yield made
        finally:
            made.close()


@pytest.mark.timeout(3600)
def test_after_each_kill_the_next_leader_has_all_that_was_acknowledged(site: Site) -> None:
    chance = random.Random(7)
    gaps: list[float] = []
    with ExitStack() as stack:
        leader = site.leader()
        judge = Judge(site.endpoint)
        stack.callback(judge.peer.close)
        rows = [[f"p{n}", "", 2**64 - 1, None] for n in range(NAMES // 2)]
        judge.peer.request("track_expected", proxies=rows)
        workers = [Workers(site.endpoint, seed) for seed in range(PROCESSES)]
        for each in workers:
            stack.callback(each.end)
        wait_until(lambda: judge.status()["sessions"] == PROCESSES * AGENTS_EACH + 1)
        for _ in range(KILLS):
            for _ in range(chance.randrange(60)):
                judge.peer.request("ping")
            killed = boottime()
            leader.kill()
            leader.wait()
            leader = site.leader()
            gaps.append(boottime() - killed)
            for each in workers:
                each.rest()
            judge.compare([ledger for each in workers for ledger in each.ledgers()])
            for each in workers:
                each.go_on()
        assert judge.status()["epoch"] == KILLS + 1
    calls = sum(ledger.calls for ledger in judge.ledgers)
    granted = sum(len(ledger.granted) for ledger in judge.ledgers)
    assert granted > KILLS
    gaps.sort()
    print(f"{KILLS} kills, {calls} calls, {granted} leases; a leader serves again after")
    print(f"{gaps[0]:.2f} to {gaps[-1]:.2f} s, half of them after {gaps[len(gaps) // 2]:.2f} s")


def test_a_paused_leader_answers_nothing_when_it_wakes(site: Site) -> None:
    leader = site.leader()
    with RawPeer(site.endpoint) as peer:
        former = peer.open().request("status")
        leader.send_signal(signal.SIGSTOP)
        peer.send(pack(peer.body("status")))  # waits in the socket of the paused one
        successor = site.leader(besides=leader)
        with RawPeer(site.endpoint) as other:
            present = other.open().request("status")
        assert present["epoch"] == former["epoch"] + 1
        assert present["tracker_id"] == former["tracker_id"]
        leader.send_signal(signal.SIGCONT)
        assert leader.wait() == 3
        assert peer.receive(0.5) is None
        assert successor.poll() is None
