"""Hosts whose CLOCK_BOOTTIME is far apart, and an etcd without space."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from fleet.cluster import Cluster
from fleet.fleet import LONG, Fleet
from fleet.stores import heal
from helpers.agents import Agent
from helpers.support import RawPeer, needed, wait_until
from trackd.fleet.etcd import Etcd, EtcdError
from trackd_client import Proxy, Tracker
from trackd_client.errors import Code

#: Seconds by which the clocks of hosts are ahead, by their names.
AHEAD = {"control-1": 100_000, "control-2": 0, "host-1": 5_000_000, "host-2": 0}
#: Seconds that an agent waits for a lease; longer than a failover takes on a quiet machine.
WAIT = 9.0

#: Waits for a lease that it does not get, and prints how long that took.
AGENT = """
import sys, time
from trackd_client import Tracker
from trackd_client.errors import AcquireTimeout
with Tracker(sys.argv[1], timeout=120.0) as tracker:
    tracker.ping()
    print("ready", flush=True)
    for line in sys.stdin:
        began = time.monotonic()
        try:
            tracker.acquire(timeout=float(line))
            print("granted", flush=True)
        except AcquireTimeout:
            print(time.monotonic() - began, flush=True)
"""


def in_time_of(host: str, directory: Path) -> str:
    """Return a program that runs Python on a host with its own clock."""
    unshare = needed("unshare", "util-linux")
    namespace = [unshare, "--time", "--boottime", str(AHEAD[host]), "--fork"]
    tried = subprocess.run([*namespace, "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"no time namespace here: {tried.stderr.strip()}")
    program = directory / f"python-of-{host}"
    program.write_text(
        f'#!/bin/sh\nexec {" ".join(namespace)} --kill-child=KILL {sys.executable} "$@"\n'
    )
    program.chmod(0o755)
    return str(program)


def waits(agents: list[subprocess.Popen[str]], seconds: float) -> None:
    """Let each agent wait for a lease."""
    for agent in agents:
        assert agent.stdin is not None
        print(seconds, file=agent.stdin, flush=True)


def line(agent: subprocess.Popen[str]) -> str:
    """Return what an agent says next."""
    assert agent.stdout is not None
    said = agent.stdout.readline().strip()
    assert said, "the agent died"
    return said


def test_clocks_that_are_far_apart_let_nothing_end_early_and_no_wait_end_late(
    cluster: Cluster, etcd: Etcd, tmp_path: Path
) -> None:
    fleet = Fleet(cluster, ttl=3, host_ttl=LONG)
    for part in fleet.parts:
        part.command[0] = in_time_of(part.name, tmp_path)
    with contextlib.ExitStack() as stack:
        stack.enter_context(fleet)
        for part in fleet.parts:
            stack.callback(part.kill)  # unshare heeds nothing else
        agents = []
        for relay in fleet.relays:
            fleet.wait_until_served(relay)
            agent = subprocess.Popen(
                [in_time_of(relay.name, tmp_path), "-c", AGENT, relay.endpoint],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            agents.append(stack.enter_context(agent))
            stack.callback(agent.kill)
            assert line(agent) == "ready"
        tracker = stack.enter_context(Tracker(fleet.relays[1].endpoint, timeout=LONG))
        tracker.track_expected(Proxy("p1", ttl=300.0))
        lease = tracker.acquire()
        assert lease is not None
        assert lease.claim("p1")
        led = set()
        for fault in (False, True, True):
            led.add(fleet.leader().name)
            waits(agents, WAIT)
            if fault:
                wait_until(lambda: tracker.status().waiting == len(agents))
                leader = fleet.leader()
                leader.kill()
                fleet.leader()  # the other one: before it leads, the killed one may be faster
                leader.start()
            took = [float(line(agent)) for agent in agents]
            print(f"waits of {WAIT} s, failover {fault}:", *(f"{each:.3f}" for each in took))
            assert min(took) >= WAIT - 0.01
            assert max(took) < WAIT + LONG / 2
            led.add(fleet.leader().name)
            assert [row.name for row in tracker.rows("proxies") if row.tracked] == ["p1"]
            assert not lease.released
        assert led == {"control-1", "control-2"}


def test_without_space_changes_are_unavailable_and_reads_go_on_until_there_is_some() -> None:
    with (
        Cluster("--quota-backend-bytes=16777216", size=1) as small,
        small.client(timeout=60.0) as etcd,
        Fleet(small, candidates=1, hosts=1) as fleet,
    ):
        relay = fleet.relays[0]
        fleet.wait_until_served(relay)
        with (
            Tracker(relay.endpoint, timeout=LONG) as tracker,
            RawPeer(relay.endpoint) as peer,
            Agent(relay.endpoint) as agent,
        ):
            agent.do("count", 0)
            tracker.track_expected(Proxy("p1"))
            lease = tracker.try_acquire()
            assert lease is not None
            assert lease.claim("p1")
            peer.open()
            before = tracker.status()
            with contextlib.suppress(EtcdError):
                for count in range(1000):
                    etcd.put(b"other/%d" % count, bytes(300_000))
            assert [alarm.kind for alarm in etcd.alarms()] == ["NOSPACE"]

            def error_of(count: int) -> object:
                return peer.request("set_connection_count", count=count).get("error")

            wait_until(lambda: error_of(7) == Code.UNAVAILABLE, LONG)
            status = tracker.status()
            assert (status.claimed, status.connection_count) == (1, before.connection_count)
            assert tracker.is_claimed("p1")
            assert [row.name for row in tracker.rows("proxies")] == ["p1"]
            assert not lease.released
            agent.kill()
            wait_until(lambda: error_of(8) == Code.UNAVAILABLE, LONG)
            assert tracker.status().sessions == 3, "that it has ended cannot be stored yet"
            etcd.delete_range(b"other/", b"other0")
            heal(small)
            wait_until(lambda: error_of(5) is None, LONG)
            after = tracker.status()
            assert (after.claimed, after.connection_count) == (1, 5)
            assert (after.epoch, after.tracker_id) == (before.epoch, before.tracker_id)
            assert not lease.released
            wait_until(lambda: tracker.status().sessions == 2, LONG)
            lease.release()
