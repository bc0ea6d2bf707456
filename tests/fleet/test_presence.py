"""What a candidate shows of itself, and how it goes on with the fleet time, on real members."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from fleet.cluster import Cluster
from fleet.fleet import LONG, Fleet
from helpers.support import wait_until
from trackd.fleet import clock as clock_module
from trackd.fleet.clock import FleetClock, Stamp
from trackd.fleet.etcd import Etcd
from trackd.fleet.presence import Presence, Present, read_present
from trackd.fleet.rows import FORMAT, Head, Keys
from trackd_client import Tracker, __version__
from trackd_client.wire.clock import boottime

PREFIX = b"trackd/1/test/"
KEYS = Keys(PREFIX)
#: Seconds of a round.
ROUND = 1.0
#: Fleet time when CLOCK_BOOTTIME of this host was 0.
AHEAD = 5_000_000.0
#: How exact a deadline has to be, in seconds.
EXACT = 0.25


@pytest.fixture
def presence(cluster: Cluster, etcd: Etcd) -> Iterator[Presence]:
    with Presence(cluster.client(), PREFIX, "control-1", ROUND) as made:
        yield made


def present(etcd: Etcd) -> list[Present]:
    return [read_present(kv) for kv in etcd.range(KEYS.candidates, KEYS.candidates_end).kvs]


def write(etcd: Etcd) -> Stamp:
    """Write as a leader does; return the time of it."""
    stamp = Stamp(AHEAD + boottime(), time.time())
    etcd.put(KEYS.head, Head(1, stamp).pack())
    return stamp


def test_a_candidate_is_shown_until_it_ends(cluster: Cluster, etcd: Etcd) -> None:
    before = time.time()
    with Presence(cluster.client(), PREFIX, "control-1", ROUND):
        wait_until(lambda: present(etcd))
        (found,) = present(etcd)
        assert found._replace(since=0.0) == Present("control-1", __version__, FORMAT, 0.0)
        assert before <= found.since <= time.time()
        (kv,) = etcd.range(KEYS.candidate("control-1")).kvs
        assert etcd.keepalive(kv.lease) > 0
    assert present(etcd) == []


def test_a_key_or_a_lease_that_was_lost_comes_back(etcd: Etcd, presence: Presence) -> None:
    wait_until(lambda: present(etcd))
    etcd.delete_range(KEYS.candidates, KEYS.candidates_end)
    wait_until(lambda: present(etcd))
    (kv,) = etcd.range(KEYS.candidate("control-1")).kvs
    etcd.revoke(kv.lease)
    wait_until(lambda: present(etcd))
    presence.lead(Stamp(1.0, 1.0))
    (kv,) = etcd.range(KEYS.candidate("control-1")).kvs
    etcd.revoke(kv.lease)
    wait_until(lambda: present(etcd))


def test_of_a_candidate_of_another_version_its_host_is_known_at_least(etcd: Etcd) -> None:
    etcd.put(KEYS.candidate("a"), json.dumps({"version": "9", "format": 2, "since": 3}).encode())
    etcd.put(KEYS.candidate("b"), b"something else")
    etcd.put(KEYS.candidate("c"), b"[1]")
    assert present(etcd) == [
        Present("a", "9", 2, 3.0),
        Present("b", "", 0, 0.0),
        Present("c", "", 0, 0.0),
    ]


def test_whoever_has_stood_by_knows_the_fleet_time_after_a_long_silence(
    etcd: Etcd, presence: Presence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock_module, "COLD_MOST", 0.5)
    last = write(etcd)

    def is_hot() -> bool:
        """Write until one write has arrived in time; how late it was stays."""
        nonlocal last
        last = write(etcd)
        clock, now = presence._clock, boottime()
        return clock is not None and presence._is_hot and off(clock, now) > -EXACT / 2

    wait_until(is_hot, LONG)
    time.sleep(3.0)  # silence
    clock = presence.lead(last)
    now = boottime()
    assert -EXACT < off(clock, now) <= 0.001
    assert off(FleetClock(last, now, time.time()), now) < -2.0, "who was not there knows less"
    time.sleep(0.1)
    write(etcd)  # of nobody: who leads has the time
    time.sleep(2 * ROUND)
    assert -EXACT < off(clock, boottime()) <= 0.001


def off(clock: FleetClock, now: float) -> float:
    """Return by how much a clock is ahead of the leader's."""
    return clock.now(now) - (AHEAD + now)


def test_fleet_time_is_never_before_the_last_write(etcd: Etcd, presence: Presence) -> None:
    write(etcd)
    wait_until(lambda: presence._clock is not None)
    late = Stamp(AHEAD + boottime() + 1000.0, time.time())
    assert presence.lead(late).now(boottime()) >= late.fleet


def test_a_candidate_without_etcd_ends_at_once() -> None:
    nowhere = Etcd(["127.0.0.1:1"], timeout=1.0)
    with Presence(nowhere, PREFIX, "control-1", 60.0) as presence:
        clock = presence.lead(Stamp(5.0, time.time()))
    assert clock.now(boottime()) >= 5.0


#: Runs a candidate that is behind after a silence of a second, unless it has stood by.
SHORT = (
    "import runpy, trackd.fleet.clock; trackd.fleet.clock.COLD_MOST = 1.0;"
    " runpy.run_module('trackd', run_name='__main__')"
)


def test_after_a_silence_and_a_killed_leader_deadlines_are_exact(
    cluster: Cluster, etcd: Etcd
) -> None:
    fleet = Fleet(cluster, hosts=1, host_ttl=LONG)
    for candidate in fleet.candidates:
        assert candidate.command[:3] == [sys.executable, "-m", "trackd"]
        candidate.command[1:3] = ["-c", SHORT]
    with fleet:
        relay = fleet.relays[0]
        fleet.wait_until_served(relay)
        leader = fleet.leader()
        (other,) = [each for each in fleet.candidates if each is not leader]
        counts = itertools.count(1)
        with Tracker(relay.endpoint, timeout=LONG) as tracker:

            def follows() -> bool:
                tracker.set_connection_count(next(counts))
                return other.says("follows the fleet clock")

            wait_until(follows, LONG)
            before = moment_of(tracker, next(counts))
            time.sleep(6.0)  # silence
            leader.kill()
            assert fleet.leader() is other
            after = moment_of(tracker, next(counts))
    passed = after.fleet - before.fleet
    least, most = after.low - before.high, after.high - before.low
    print(f"{least:.3f} to {most:.3f} s have passed, by the fleet's clock {passed:.3f} s")
    assert passed > 6.0
    assert least - EXACT <= passed <= most + EXACT


class Moment(NamedTuple):
    """A moment in fleet time, and between which moments of CLOCK_BOOTTIME it was."""

    fleet: float
    low: float
    high: float


def moment_of(tracker: Tracker, count: int) -> Moment:
    """Return when the fleet has done a change."""
    low = boottime()
    tracker.set_connection_count(count)
    high = boottime()
    return Moment(tracker.log()["events"][-1].time, low, high)
