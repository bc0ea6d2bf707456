"""Random faults of candidates and of members of etcd, one after the other, by a seed.

TRACKD_SEED gives the seed; the long form draws more faults.
"""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

from fleet.candidates import TTL, Process, no_row_of_a_former_term, one_leader_at_a_time
from fleet.cluster import Cluster, Member
from helpers.long_form import choose
from helpers.support import wait_until
from trackd.fleet.etcd import Etcd
from trackd_client.wire.clock import boottime

FAULTS = choose(7, 200)
NAMES = "abc"


class Fleet:
    """Three candidates that a supervisor starts again, and the faults that befall them."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self.cluster = cluster
        self.directory = directory
        self.all: list[Process] = []
        self.running: dict[str, Process] = {}
        #: From the pause of etcd's leader until a lease that it may revoke when it wakes has ended.
        self.doubtful: list[tuple[float, float]] = []

    def supervise(self) -> None:
        """Start each candidate that does not run, as systemd would."""
        for name in NAMES:
            if name not in self.running or self.running[name].process.poll() is not None:
                self.running[name] = Process(self.cluster, self.directory, name)
                self.all.append(self.running[name])

    def leads_since(self, moment: float) -> Process | None:
        """The candidate that was sure to lead after a moment."""
        self.supervise()
        for each in self.running.values():
            if (last := each.last_sure()) is not None and last > moment:
                return each
        return None

    def leader(self, moment: float) -> Process:
        """Wait for a leader after a moment, and return it."""
        wait_until(lambda: self.leads_since(moment) is not None, 120)
        found = self.leads_since(moment)
        assert found is not None
        return found

    def close(self) -> None:
        for each in self.all:
            each.end()


def kill_leader(fleet: Fleet, leader: Process) -> None:
    leader.signal(signal.SIGKILL)
    leader.process.wait()


def stop_leader(fleet: Fleet, leader: Process) -> None:
    leader.signal(signal.SIGTERM)
    leader.process.wait()


def pause_leader(fleet: Fleet, leader: Process) -> None:
    leader.signal(signal.SIGSTOP)
    paused = boottime()
    wait_until(lambda: fleet.leads_since(paused + TTL / 2) is not None, 120)
    leader.signal(signal.SIGCONT)
    assert leader.process.wait() == 3


def kill_member(fleet: Fleet, leader: Process) -> None:
    member = random.choice(fleet.cluster.members)
    member.kill()
    fleet.leader(boottime())
    member.start()
    fleet.cluster.wait_until_healthy()


def kill_both_leaders(fleet: Fleet, leader: Process) -> None:
    member = fleet.cluster.leader()
    leader.signal(signal.SIGKILL)
    member.kill()
    leader.process.wait()
    fleet.leader(boottime())
    member.start()
    fleet.cluster.wait_until_healthy()


def pause_follower(fleet: Fleet, leader: Process) -> None:
    pause(fleet, random.choice(fleet.cluster.followers()))


def pause_leader_of_etcd(fleet: Fleet, leader: Process) -> None:
    began = boottime()
    pause(fleet, fleet.cluster.leader())
    fleet.leader(boottime())
    fleet.doubtful.append((began, boottime() + TTL))


def pause(fleet: Fleet, member: Member) -> None:
    with member.paused():
        fleet.leader(boottime() + random.uniform(0.1, 2 * TTL))
    fleet.cluster.wait_until_healthy()


FAULTS_OF = [
    kill_leader,
    stop_leader,
    pause_leader,
    kill_member,
    kill_both_leaders,
    pause_follower,
    pause_leader_of_etcd,
]


def test_whatever_fails_there_is_one_leader_at_a_time(
    cluster: Cluster, etcd: Etcd, tmp_path: Path
) -> None:
    seed = int(os.environ.get("TRACKD_SEED") or random.randrange(2**32))
    print(f"seed {seed}")
    random.seed(seed)
    drawn = [FAULTS_OF[number % len(FAULTS_OF)] for number in range(FAULTS)]
    random.shuffle(drawn)
    fleet = Fleet(cluster, tmp_path)
    gaps: dict[str, list[float]] = {}
    try:
        leader = fleet.leader(boottime())
        for fault in drawn:
            began = boottime()
            fault(fleet, leader)
            after = boottime()
            successor = fleet.leader(after)
            if successor is not leader:
                gaps.setdefault(fault.__name__, []).append(successor.sure()[0] - began)
            leader = successor
    finally:
        fleet.close()
    excused = one_leader_at_a_time(fleet.all, fleet.doubtful)
    no_row_of_a_former_term(etcd, fleet.all)
    assert len([each for each in fleet.all if each.fence]) > FAULTS / 3
    print("overlaps after etcd revoked a lease that lived:", excused)
    for name, seconds in sorted(gaps.items()):
        print(f"{name}: {len(seconds)}, " + ", ".join(f"{each:.2f}" for each in sorted(seconds)))
