"""Agents of a host that is cut off: with `close` never two tunnels to one, with `keep` no gap."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from fleet.cluster import Cluster
from fleet.fleet import LONG, Fleet
from fleet.network import ETCD, Network
from helpers.support import wait_until
from helpers.trackctl import PLAIN, start_trackctl
from trackd_client import (
    AgentPool,
    AsyncAgentPool,
    AsyncLease,
    AsyncTracker,
    Lease,
    Proxy,
    SessionLost,
    TrackdError,
    Tracker,
)
from trackd_client.errors import CUT_OFF, StoreUnavailable

CONTROL = ("control-1", "control-2")
PROXIES = ("p1", "p2", "p3", "p4")
WAYS = {
    "both ways": [*((each, "host-1") for each in CONTROL), *(("host-1", each) for each in CONTROL)],
    "to the leader": [("host-1", each) for each in CONTROL],
    "from the leader": [(each, "host-1") for each in CONTROL],
}
#: A tunnel that a command keeps, until it gets SIGTERM.
SCRIPT = """#!/bin/sh
for name in p1 p2 p3 p4; do
  echo "$name" >&3
  read -r answer _ <&4
  [ "$answer" = claimed ] && break
done
[ "$answer" = claimed ] || exit 1
note() { echo "$1 $name $AGENT $(date +%s.%N)" >>"$NOTES"; }
trap 'note close; exit 0' TERM
note open
while :; do sleep 0.05; done
"""


class Tunnel(NamedTuple):
    """A tunnel, from when to when it was open, in seconds of Unix time; infinity: it still is."""

    proxy: str
    agent: str
    opened: float
    closed: float


class Notes:
    """What agents have noted: each tunnel that they opened or closed, and when."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "notes"
        self.file.touch()

    def note(self, what: str, proxy: str, agent: str) -> None:
        """Note that an agent has opened or closed a tunnel just now."""
        line = f"{what} {proxy} {agent} {time.time():.6f}\n".encode()
        fd = os.open(self.file, os.O_WRONLY | os.O_APPEND)
        os.write(fd, line)
        os.close(fd)

    def tunnels(self) -> list[Tunnel]:
        """Return all tunnels, in the order in which they were opened."""
        opened: dict[tuple[str, str], float] = {}
        found = []
        for line in self.file.read_text().splitlines():
            what, proxy, agent, at = line.split()
            if what == "open":
                opened[proxy, agent] = float(at)
            else:
                found.append(Tunnel(proxy, agent, opened.pop((proxy, agent)), float(at)))
        found += [Tunnel(*each, at, float("inf")) for each, at in opened.items()]
        return sorted(found, key=lambda tunnel: tunnel.opened)

    def open(self) -> list[tuple[str, str]]:
        """Return proxy and agent of each tunnel that is open, sorted."""
        return sorted(
            (each.proxy, each.agent) for each in self.tunnels() if each.closed == float("inf")
        )

    def has_open(self, number: int) -> bool:
        """Return whether so many tunnels are open."""
        return len(self.open()) == number

    def is_covered(self) -> bool:
        """Return whether each proxy has one tunnel, and no more."""
        return [proxy for proxy, _ in self.open()] == [*PROXIES]

    def check_never_two(self) -> float:
        """Check that no proxy ever had two tunnels; return the shortest gap between two of them."""
        shortest = float("inf")
        for proxy in PROXIES:
            tunnels = [each for each in self.tunnels() if each.proxy == proxy]
            for before, after in itertools.pairwise(tunnels):
                assert before.closed <= after.opened, tunnels
                shortest = min(shortest, after.opened - before.closed)
        return shortest


class Agents:
    """Agents of all kinds, on hosts of a fleet.

    Attributes:
        reasons: why sessions of the agents in this process were lost.
    """

    def __init__(self, fleet: Fleet, stack: ExitStack, notes: Notes) -> None:
        self._fleet = fleet
        self._stack = stack
        self._notes = notes
        self.reasons: list[str] = []

    def _lost(self, error: SessionLost) -> None:
        self.reasons.append(error.reason)

    def _endpoint(self, host: int) -> str:
        return self._fleet.relays[host - 1].endpoint

    def threads(self, agent: str, host: int, most: int | None = None) -> AgentPool:
        """Start a pool of threads."""

        def dial(lease: Lease) -> None:
            for name in PROXIES:
                if lease.claim(name):
                    self._notes.note("open", name, agent)
                    lease.should_close.wait()
                    self._notes.note("close", name, agent)
                    return

        tracker = self._stack.enter_context(
            Tracker(self._endpoint(host), name=agent, on_session_lost=self._lost)
        )
        return self._stack.enter_context(AgentPool(tracker, dial, max_tunnels=most))

    def tasks(self, agent: str, host: int, most: int | None = None) -> None:
        """Start a pool of tasks."""

        async def dial(lease: AsyncLease) -> None:
            for name in PROXIES:
                if await lease.claim(name):
                    self._notes.note("open", name, agent)
                    await lease.should_close.wait()
                    self._notes.note("close", name, agent)
                    return

        stop = threading.Event()

        async def run() -> None:
            tracker = AsyncTracker(self._endpoint(host), name=agent, on_session_lost=self._lost)
            async with tracker, AsyncAgentPool(tracker, dial, max_tunnels=most):
                await asyncio.to_thread(stop.wait)

        thread = threading.Thread(target=lambda: asyncio.run(run()))
        thread.start()
        self._stack.callback(thread.join)
        self._stack.callback(stop.set)

    def command(self, agent: str, host: int, *words: str) -> None:
        """Start a `trackctl` that runs a command with a tunnel."""
        script = self._notes.file.with_name("tunnel.sh")
        script.write_text(SCRIPT)
        script.chmod(0o755)
        process = start_trackctl(
            *("--endpoint", self._endpoint(host), *words, "--on-duplicate", "tell", str(script)),
            stdout=None,
            stderr=None,
            env={**PLAIN, "AGENT": agent, "NOTES": str(self._notes.file)},
        )

        def end() -> None:
            process.send_signal(signal.SIGTERM)
            process.wait(LONG)

        self._stack.callback(end)


@pytest.fixture
def network() -> Iterator[Network]:
    """Two control hosts and two agent hosts."""
    with Network([*CONTROL, "host-1", "host-2"]) as made:
        yield made


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What a test has started, which ends before the fleet does."""
    with ExitStack() as made:
        yield made


@contextmanager
def running(network: Network, host_ttl: float, on_partition: str) -> Iterator[Fleet]:
    """Run a fleet on one member of etcd; no proxy is missing for want of gossip."""
    with (
        Cluster(size=1, address=network.address[ETCD]) as cluster,
        Fleet(
            cluster,
            network=network,
            ttl=20,
            host_ttl=host_ttl,
            relay=f'on_partition = "{on_partition}"\n',
            settings="proxy_expiry = 3600",
        ) as fleet,
    ):
        for relay in fleet.relays:
            fleet.wait_until_served(relay)
        yield fleet


def tracker_of(fleet: Fleet, host: int) -> Tracker:
    """Return a tracker of an agent on a host, by its number."""
    return Tracker(fleet.relays[host - 1].endpoint, timeout=LONG)


def feed(fleet: Fleet, *names: str) -> None:
    """Let proxies be known."""
    with tracker_of(fleet, 2) as tracker:
        tracker.track_expected(*map(Proxy, names))


def start_one_of_each(agents: Agents, notes: Notes, stack: ExitStack) -> AgentPool:
    """Start one agent of each kind on host 1, each with a tunnel, and one on host 2 that waits."""
    starts: list[Callable[[], object]] = [
        lambda: agents.command("hold", 1, "hold"),
        lambda: agents.command("keep", 1, "keep", "--max", "1"),
        lambda: agents.threads("threads", 1, 1),
        lambda: agents.tasks("tasks", 1, 1),
    ]
    for number, start in enumerate(starts, 1):
        start()
        wait_until(partial(notes.has_open, number), LONG)
    return agents.threads("other", 2)


@pytest.mark.parametrize("lost", WAYS)
def test_with_close_no_proxy_ever_has_two_tunnels(
    network: Network, stack: ExitStack, tmp_path: Path, lost: str
) -> None:
    notes = Notes(tmp_path)
    with running(network, 10.0, "close") as fleet, stack:
        agents = Agents(fleet, stack, notes)
        feed(fleet, *PROXIES)
        other = start_one_of_each(agents, notes, stack)
        at_first = notes.open()
        for way in WAYS[lost]:
            network.cut(*way)
        time.sleep(3.0)  # shorter than 0.8 of host_ttl
        for way in WAYS[lost]:
            network.mend(*way)
        fleet.wait_until_served(fleet.relays[0])
        assert notes.open() == at_first
        assert agents.reasons == []

        began = time.time()
        for way in WAYS[lost]:
            network.cut(*way)
        wait_until(lambda: {agent for _, agent in notes.open()} == {"other"}, LONG)
        wait_until(notes.is_covered, LONG)
        wait_until(lambda: agents.reasons == [CUT_OFF] * 2, LONG)
        first, last = (
            f(each.closed for each in notes.tunnels() if each.closed < float("inf")) - began
            for f in (min, max)
        )
        gap = notes.check_never_two()
        print(f"lost {lost}: closed after {first:.2f} to {last:.2f} s, {gap:.2f} s before others")
        for way in WAYS[lost]:
            network.mend(*way)
        fleet.wait_until_served(fleet.relays[0])
        assert notes.is_covered()
        other.drain(LONG)  # its proxies are for the others now
        wait_until(
            lambda: {agent for _, agent in notes.open()} == {"keep", "threads", "tasks"}, LONG
        )
        notes.check_never_two()


def test_with_keep_tunnels_stay_and_the_surplus_closes_after_healing(
    network: Network, stack: ExitStack, tmp_path: Path
) -> None:
    notes = Notes(tmp_path)
    with running(network, 5.0, "keep") as fleet, stack:
        agents = Agents(fleet, stack, notes)
        feed(fleet, *PROXIES)
        start_one_of_each(agents, notes, stack)
        at_first = notes.open()
        for way in WAYS["both ways"]:
            network.cut(*way)
        wait_until(lambda: len(notes.open()) == 2 * len(PROXIES), LONG)
        assert set(at_first) < set(notes.open())
        assert agents.reasons == []
        for way in WAYS["both ways"]:
            network.mend(*way)
        began = time.monotonic()
        wait_until(notes.is_covered, LONG)
        print(f"no surplus {time.monotonic() - began:.2f} s after healing")
        assert set(agents.reasons) == {"host_lost"}
        assert {agent for _, agent in notes.open()} == {"other"}


def test_a_host_that_is_back_just_in_time_begins_anew_all_the_same(network: Network) -> None:
    with (
        running(network, 20.0, "close") as fleet,
        tracker_of(fleet, 1) as a,
        tracker_of(fleet, 1) as waits,
        tracker_of(fleet, 2) as b,
    ):
        feed(fleet, "p1")
        lease = a.try_acquire()
        assert lease is not None
        assert lease.claim("p1")
        lost: list[str] = []

        def asks(call: Callable[[], object]) -> threading.Thread:
            def run() -> None:
                try:
                    call()
                except TrackdError as error:
                    lost.append(error.reason)

            thread = threading.Thread(target=run)
            thread.start()
            return thread

        threads = [asks(waits.acquire)]
        wait_until(lambda: b.status().waiting == 1, LONG)
        for way in WAYS["both ways"]:
            network.cut(*way)
        time.sleep(1.0)
        threads.append(asks(lambda: a.set_connection_count(7)))
        assert lease.lost.wait(LONG)
        assert lease.revoked
        assert lease.should_close
        with Tracker(fleet.relays[0].endpoint) as looks:
            with pytest.raises(StoreUnavailable) as refused:
                looks.status()
            assert refused.value.reason == CUT_OFF
            with pytest.raises(StoreUnavailable):
                looks.try_acquire()
        for way in WAYS["both ways"]:
            network.mend(*way)
        for thread in threads:
            thread.join(LONG)
        assert lost == [CUT_OFF] * 2
        fleet.wait_until_served(fleet.relays[0])
        again = a.try_acquire()  # p1 is free, although the host was never silent for too long
        assert again is not None
        assert again.claim("p1")
        status = b.status()
        assert (status.connection_count, status.waiting, status.claimed) == (0, 0, 1)
        log = "".join(each.log.read_text() for each in fleet.candidates)
        assert "its relay has ended them" in log
        assert "it is silent" not in log
        ended = [each for each in b.log()["events"] if each.kind == "session_ended"]
        assert {each.fields["reason"] for each in ended if each.fields.get("host") == "host-1"} <= {
            "host_lost",
            "closed",
        }
        time.sleep(3.0)
        assert not again.lost.is_set()


def test_a_relay_that_starts_again_goes_on_counting(
    network: Network, stack: ExitStack, tmp_path: Path
) -> None:
    notes = Notes(tmp_path)
    with running(network, 20.0, "close") as fleet, stack:
        agents, relay = Agents(fleet, stack, notes), fleet.relays[0]
        feed(fleet, *PROXIES)
        agents.threads("threads", 1)
        wait_until(notes.is_covered, LONG)
        other = agents.threads("other", 2)
        relay.kill()  # nothing closes for that alone
        relay.start()
        fleet.wait_until_served(relay)
        assert agents.reasons == []
        for way in WAYS["both ways"]:
            network.cut(*way)
        time.sleep(2.0)
        relay.kill()
        relay.start()
        wait_until(lambda: agents.reasons == [CUT_OFF], LONG)
        relay.kill()
        relay.start()  # this one has ended no sessions, and lets the leader end them all the same
        for way in WAYS["both ways"]:
            network.mend(*way)
        wait_until(notes.is_covered, LONG)
        wait_until(lambda: "its relay has ended them" in _log_of(fleet), LONG)
        fleet.wait_until_served(relay)
        other.drain(LONG)
        wait_until(notes.is_covered, LONG)
        assert {agent for _, agent in notes.open()} == {"threads"}
        notes.check_never_two()


def _log_of(fleet: Fleet) -> str:
    """Return what the candidates have logged."""
    return "".join(each.log.read_text() for each in fleet.candidates)
