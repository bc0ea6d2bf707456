"""The pools against a real daemon: the same agent code, in threads and in tasks."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import random
import resource
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import pytest

from helpers.both_clients import PATIENCE, Background, Maker
from helpers.support import run_script, wait_until
from trackd_client import (
    AgentPool,
    AsyncAgentPool,
    AsyncLease,
    AsyncTracker,
    BadPayload,
    Lease,
    Policy,
    PoolEvent,
    Proxy,
    TrackdError,
    Tracker,
)
from trackd_client.core.conversation import Conversation
from trackd_client.errors import BadArgument
from trackd_client.policy import Change
from trackd_client.testing import Daemon, MakeDaemon

#: Dials again at once, whatever happens.
EAGER = Policy(
    failed_base=0.0, failed_cap=0.0, duplicate_step=0.001, duplicate_cap=0.001, sticky_after=10**9
)


class Network:
    """A balancer and its proxies, in memory; it sees each dial and each tunnel."""

    def __init__(self, *names: str) -> None:
        self.lock = threading.Lock()
        self.names = list(names)
        self.generation = 0
        self.dials: Counter[str] = Counter()
        self.open: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.chance = random.Random(7)

    def reach(self) -> str:
        """Return the proxy that a dial reached."""
        with self.lock:
            name = self.chance.choice(self.names)
            self.dials[name] += 1
            return name

    def proxies(self) -> list[Proxy]:
        return [Proxy(name, generation=self.generation) for name in self.names]

    def enter(self, name: str) -> None:
        with self.lock:
            self.open[name] += 1
            self.most[name] = max(self.most[name], self.open[name])

    def leave(self, name: str) -> None:
        with self.lock:
            self.open[name] -= 1

    @property
    def connected(self) -> int:
        return sum(self.open.values())


class Agent:
    """An agent: a pool and its dial, which claims what it reaches and serves until advised."""

    def __init__(
        self,
        maker: Maker,
        daemon: Daemon,
        network: Network,
        *,
        dial: Callable[[Agent, Any], object] | None = None,
        tracker: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.network = network
        self.events: list[tuple[float, PoolEvent]] = []
        self.leases: list[Any] = []
        self.tracker = maker.tracker(daemon.endpoint, **(tracker or {}))
        self._dial = dial
        options.setdefault("policy", EAGER)
        options.setdefault("on_event", self._note)
        self.pool = maker.pool(self.tracker, self._run, **options)

    def serve(self, lease: Any) -> None:
        """Dial, claim, feed gossip, serve until advised to close."""
        name = self.network.reach()
        if not lease.claim(f"{name}.example.com", name):
            return
        self.network.enter(name)
        try:
            self.pool.feed(*self.network.proxies())
            assert lease.should_close.wait(PATIENCE)
        finally:
            self.network.leave(name)

    def changes(self, *kinds: Change) -> list[PoolEvent]:
        return [event for _, event in list(self.events) if event.change in kinds]

    def _run(self, lease: Any) -> None:
        self.leases.append(lease)
        if self._dial is None:
            self.serve(lease)
        else:
            self._dial(self, lease)

    def _note(self, event: PoolEvent) -> None:
        self.events.append((time.monotonic(), event))

    def __enter__(self) -> Self:
        self.pool.start()
        return self

    def __exit__(self, *ended_by: object) -> None:
        assert self.pool.drain(PATIENCE), "a dial does not end"
        self.tracker.close()


def status(daemon: Daemon) -> dict[str, Any]:
    with Tracker(daemon.endpoint) as operator:
        return operator.status()


def names(count: int) -> list[str]:
    return [f"p{number}" for number in range(count)]


def teach(daemon: Daemon, proxies: Iterable[Proxy]) -> None:
    with Tracker(daemon.endpoint) as operator:
        operator.track_expected(*proxies)


# -- the whole loop -----------------------------------------------------------------------------


def test_a_pool_finds_every_proxy_from_nothing_and_lets_all_go(
    daemon: Daemon, maker: Maker
) -> None:
    network = Network(*names(6))
    with Agent(maker, daemon, network) as agent:
        wait_until(lambda: network.connected == 6)
        wait_until(lambda: agent.pool.stats().dialling == 0)  # one may have begun before gossip
        stats = agent.pool.stats()
        assert (stats.connected, stats.dialling, stats.claims, stats.failures) == (6, 0, 6, 0)
        assert stats.dials == stats.claims + stats.duplicates == sum(network.dials.values())
        assert status(daemon)["claimed"] == 6
        assert not any(lease.should_close for lease in agent.leases)
    assert network.connected == 0
    assert set(network.most.values()) == {1}
    assert agent.pool.stats().connected == 0
    claimed = agent.changes(Change.CLAIMED)
    assert {event.name for event in claimed} == set(network.names)
    closed = agent.changes(Change.CLOSED)
    assert {(e.lease, e.name) for e in closed} == {(e.lease, e.name) for e in claimed}


def test_two_agents_share_the_proxies_and_one_takes_over_from_the_other(
    daemon: Daemon, maker: Maker
) -> None:
    network = Network(*names(6))
    with Agent(maker, daemon, network) as stays:
        with Agent(maker, daemon, network):
            wait_until(lambda: network.connected == 6)
        wait_until(lambda: stays.pool.stats().connected == 6)
    assert set(network.most.values()) == {1}, "one tunnel to each proxy, at all times"


def test_a_pool_keeps_to_the_connection_count(daemon: Daemon, maker: Maker) -> None:
    network = Network(*names(5))
    teach(daemon, network.proxies())
    with Agent(maker, daemon, network) as agent:
        agent.tracker.set_connection_count(2)
        wait_until(lambda: status(daemon)["waiting"] == 1 and status(daemon)["inflight"] == 0)
        before = agent.pool.stats().dials
        agent.pool.feed(*network.proxies())
        assert agent.pool.stats().dials == before
        agent.tracker.set_connection_count(4)
        wait_until(lambda: network.connected >= 4)


def test_no_more_dials_are_under_way_at_once_than_allowed(daemon: Daemon, maker: Maker) -> None:
    network = Network(*names(8))
    teach(daemon, network.proxies())
    gate, under_way, most = threading.Semaphore(0), [0], [0]

    def dial(agent: Agent, lease: Any) -> None:
        with network.lock:
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
        gate.acquire()
        with network.lock:
            under_way[0] -= 1
        agent.serve(lease)

    with Agent(maker, daemon, network, dial=dial, max_concurrent_dials=3) as agent:
        wait_until(lambda: under_way[0] == 3)
        assert agent.pool.stats().dialling == 3
        assert status(daemon)["inflight"] == 3, "no lease is hoarded"
        assert status(daemon)["waiting"] == 0, "and none awaited"
        for _ in range(200):
            gate.release()
        wait_until(lambda: network.connected == 8)
        assert most[0] == 3


@pytest.mark.parametrize("max_concurrent_dials", [0, -1])
def test_a_pool_that_may_not_dial_is_a_value_error(
    daemon: Daemon, maker: Maker, max_concurrent_dials: int
) -> None:
    tracker = maker.tracker(daemon.endpoint)
    with pytest.raises(ValueError, match="max_concurrent_dials"):
        maker.pool(tracker, print, max_concurrent_dials=max_concurrent_dials)


async def dial_in_a_task(lease: AsyncLease) -> None:
    """Dial nobody."""


def dial_in_a_thread(lease: Lease) -> None:
    """Dial nobody."""


@pytest.mark.parametrize(
    ("pool", "tracker", "dial", "options"),
    [
        (AgentPool, None, dial_in_a_thread, {}),
        (AgentPool, AsyncTracker, dial_in_a_thread, {}),
        (AgentPool, Tracker, dial_in_a_task, {}),
        (AgentPool, Tracker, None, {}),
        (AgentPool, Tracker, dial_in_a_thread, {"max_concurrent_dials": "4"}),
        (AgentPool, Tracker, dial_in_a_thread, {"policy": 5}),
        (AgentPool, Tracker, dial_in_a_thread, {"on_event": 5}),
        (AgentPool, Tracker, dial_in_a_thread, {"drain_timeout": "x"}),
        (AsyncAgentPool, None, dial_in_a_task, {}),
        (AsyncAgentPool, Tracker, dial_in_a_task, {}),
        (AsyncAgentPool, AsyncTracker, dial_in_a_thread, {}),
        (AsyncAgentPool, AsyncTracker, partial(dial_in_a_thread), {}),
        (AsyncAgentPool, AsyncTracker, None, {}),
        (AsyncAgentPool, AsyncTracker, dial_in_a_task, {"drain_timeout": -1.0}),
    ],
)
def test_a_pool_with_a_wrong_argument_is_not_made(
    pool: Any, tracker: Any, dial: Any, options: dict[str, Any]
) -> None:
    given = tracker and tracker("/nowhere/trackd.sock")
    with pytest.raises(BadArgument):
        pool(given, dial, **options)
    if isinstance(given, Tracker):
        given.close()


@pytest.mark.parametrize("maker", ["sync", "asyncio"], indirect=True)
def test_a_dial_of_the_wrong_kind_that_is_seen_only_when_it_runs_is_logged(
    daemon: Daemon, maker: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = maker.tracker(daemon.endpoint)
    if maker.loop is None:
        pool: Any = AgentPool(tracker, lambda lease: dial_in_a_task(cast("AsyncLease", lease)))
    else:
        pool = maker.loop.run(AsyncAgentPool, tracker._target, lambda _lease: None)
    pool.start()
    wait_until(lambda: "dial returned a coroutine" in caplog.text or "must return" in caplog.text)
    assert pool.drain(PATIENCE)


def test_a_pool_starts_once(daemon: Daemon, maker: Maker) -> None:
    with Agent(maker, daemon, Network("p0")) as agent:
        with pytest.raises(TrackdError, match="cannot start"):
            agent.pool.start()
        wait_until(lambda: agent.network.connected == 1)


def test_a_child_that_leaves_the_block_of_a_pool_does_not_end_its_parents(
    daemon: Daemon, tmp_path: Path
) -> None:
    code = """
import os, sys, threading, time
from trackd_client import AgentPool, Proxy, Tracker, errors
claimed = threading.Event()
def dial(lease):
    if lease.claim("p0"):
        claimed.set()
        lease.should_close.wait()
with Tracker(sys.argv[1]) as tracker, AgentPool(tracker, dial) as pool:
    pool.feed(Proxy("p0"))
    assert claimed.wait(20)
    child = os.fork()
    if not child:
        try:
            pool.drain()
        except errors.UsedAfterFork:
            sys.exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert tracker.is_claimed("p0")
    assert pool.stats().connected == 1
    pool.feed(Proxy("p1"))
    tracker.set_connection_count(0)
    while pool.stats().dials < 3:  # it dials on
        time.sleep(0.01)
print("done")
"""
    done = run_script(code, daemon.endpoint)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_a_pool_goes_on_after_threads_were_refused(
    daemon: Daemon, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    if maker.is_async:
        pytest.skip("tasks need no threads")
    refused: list[str] = []
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("trackd-dial-") and len(refused) < 3:
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    network = Network("p0")
    with Agent(maker, daemon, network) as agent:
        wait_until(lambda: network.connected == 1)
        assert (len(refused), agent.pool.stats().failures) == (3, 3)
        wait_until(lambda: status(daemon)["inflight"] == 0)


def test_a_pool_goes_on_after_an_error_that_passes(
    daemon: Daemon, maker: Maker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kind: Any = AsyncTracker if maker.is_async else Tracker
    grant, tries = kind._grant, []

    def without_descriptors(*args: Any, **options: Any) -> Any:
        tries.append(args)
        if len(tries) <= 3:
            raise OSError(errno.EMFILE, "Too many open files")
        return grant(*args, **options)

    monkeypatch.setattr(kind, "_grant", without_descriptors)
    network = Network("p0")
    with Agent(maker, daemon, network):
        wait_until(lambda: network.connected == 1)
    assert caplog.text.count("the pool cannot dial now") == 1


# -- what goes wrong with a dial ------------------------------------------------------------------


def test_a_dial_that_raises_is_released_told_and_dialled_again(
    daemon: Daemon, maker: Maker
) -> None:
    network = Network("p0")
    teach(daemon, network.proxies())
    trouble = OSError("no route to host")

    def dial(agent: Agent, lease: Any) -> None:
        if len(agent.leases) == 1:
            raise trouble
        agent.serve(lease)

    with Agent(maker, daemon, network, dial=dial) as agent:
        wait_until(lambda: network.connected == 1)
        failed = agent.changes(Change.FAILED)
        assert [(event.lease, event.error) for event in failed] == [(agent.leases[0].id, trouble)]
        assert agent.leases[0].released
        stats = agent.pool.stats()
        assert (stats.dials, stats.failures, stats.duplicates, stats.claims) == (2, 1, 0, 1)


def test_a_tunnel_that_breaks_is_released_and_dialled_again(daemon: Daemon, maker: Maker) -> None:
    network = Network("p0")
    teach(daemon, network.proxies())

    def dial(agent: Agent, lease: Any) -> None:
        if len(agent.leases) == 1:
            assert lease.claim("p0")
            raise OSError("reset by peer")
        agent.serve(lease)

    with Agent(maker, daemon, network, dial=dial) as agent:
        wait_until(lambda: network.connected == 1)
        (closed,) = agent.changes(Change.CLOSED)
        assert closed.name == "p0"
        assert isinstance(closed.error, OSError)
        stats = agent.pool.stats()
        assert (stats.failures, stats.connected) == (1, 1), "it was lost at once"


@pytest.mark.parametrize("trouble", ["duplicate", "failed"])
def test_no_dial_begins_during_a_pause(
    daemon: Daemon, maker: Maker, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the lease for it was granted at the very moment that the last one was released.

    After failed dials a pool pauses by itself only with a daemon that takes in no outcomes.
    """
    monkeypatch.setattr(Conversation, "take_features", lambda *_: None)
    network = Network("p0", "p1")
    teach(daemon, network.proxies())
    ended: list[float] = []
    begun: list[float] = []

    def dial(agent: Agent, lease: Any) -> None:
        begun.append(time.monotonic())
        if trouble == "duplicate":
            assert not lease.claim("p0")
        ended.append(time.monotonic())

    policy = Policy(failed_base=0.2, failed_cap=0.2, duplicate_step=0.1, duplicate_cap=0.1)
    with Tracker(daemon.endpoint) as other:
        holder = other.try_acquire()
        assert holder is not None
        assert holder.claim("p0")
        with Agent(maker, daemon, network, dial=dial, policy=policy) as agent:
            wait_until(lambda: len(begun) >= 5)
        pauses = [event.pause for event in agent.changes(Change.BACKING_OFF)]
        for end, pause, again in zip(ended, pauses, begun[1:], strict=False):
            assert again >= end + pause, (begun, ended, pauses)


def test_a_pause_ends_at_once_when_the_pool_drains(daemon: Daemon, maker: Maker) -> None:
    network = Network("p0", "p1")
    teach(daemon, network.proxies())

    def dial(agent: Agent, lease: Any) -> None:
        assert not lease.claim("p0")

    policy = Policy(duplicate_step=10_000.0, duplicate_cap=10_000.0)
    with Tracker(daemon.endpoint) as other:
        holder = other.try_acquire()
        assert holder is not None
        assert holder.claim("p0")
        with Agent(maker, daemon, network, dial=dial, policy=policy) as agent:
            wait_until(lambda: agent.changes(Change.BACKING_OFF))
            wait_until(lambda: status(daemon)["inflight"] == 0)
        assert agent.pool.stats().dials == 1
        assert agent.pool.stats().pause == 10_000.0


def test_a_sticky_balancer_is_reported_once_with_what_is_met_and_what_is_missing(
    daemon: Daemon, maker: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    network = Network("p0")
    teach(daemon, network.proxies())  # else it may dial until its own gossip has come
    policy = Policy(duplicate_step=0.0, sticky_after=5, sticky_pause=0.01)
    with Agent(maker, daemon, network, policy=policy) as agent:
        wait_until(lambda: network.connected == 1)
        agent.pool.feed(*(Proxy(name) for name in names(3)))
        wait_until(lambda: agent.pool.stats().duplicates >= 12)
        wait_until(lambda: agent.changes(Change.STICKY))
        (sticky,) = agent.changes(Change.STICKY)
        assert (sticky.name, sorted(sticky.missing)) == ("p0", ["p1", "p2"])
        assert sticky.pause == 0.01
        network.names = ["p1", "p2"]
        wait_until(lambda: network.connected == 3)
        assert agent.pool.stats().sticky == 1
    assert caplog.text.count("sticky") == 1
    assert "p1, p2" in caplog.text or "p2, p1" in caplog.text


def test_a_dial_may_ask_early_whether_its_proxy_is_claimed(daemon: Daemon, maker: Maker) -> None:
    network = Network(*names(3))

    def dial(agent: Agent, lease: Any) -> None:
        name = network.reach()
        if lease.is_claimed(f"{name}.example.com", name):
            return  # and spares the handshake
        assert lease.claim(name), "it was free a moment ago, and nobody else dials"
        network.enter(name)
        try:
            agent.pool.feed(*network.proxies())
            assert lease.should_close.wait(PATIENCE)
        finally:
            network.leave(name)

    with Agent(maker, daemon, network, dial=dial, max_concurrent_dials=1) as agent:
        wait_until(lambda: network.connected == 3)
        wait_until(lambda: agent.pool.stats().dialling == 0)  # one may have begun before gossip
        stats = agent.pool.stats()
        assert stats.failures == 0
        assert stats.duplicates == len(agent.changes(Change.DUPLICATE)) == stats.dials - 3


def test_a_hook_that_raises_harms_nobody(
    daemon: Daemon, maker: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    network = Network(*names(4))

    def hook(event: PoolEvent) -> None:
        raise RuntimeError("in a hook")

    with Agent(maker, daemon, network, on_event=hook):
        wait_until(lambda: network.connected == 4)
    assert "in a hook" in caplog.text


def test_a_pool_skips_what_no_proxy_can_be_and_counts_it(daemon: Daemon, maker: Maker) -> None:
    agent = Agent(maker, daemon, Network())
    said = {"proxies": [{"metadata": {"name": "p1"}}, None, {"metadata": {"name": ""}}]}
    assert agent.pool.feed(json.dumps(said), Proxy("p2"), Proxy("x" * 300)) is True
    assert status(daemon)["tracked"] == 2
    assert agent.pool.stats().skipped == 3
    with pytest.raises(BadPayload):
        agent.pool.feed("{}")
    assert agent.pool.drain(PATIENCE)


# -- gossip ---------------------------------------------------------------------------------------


def test_a_pool_feeds_proxies_and_teleports_json(daemon: Daemon, maker: Maker) -> None:
    agent = Agent(maker, daemon, Network())
    said = {"proxies": [{"version": "v2", "metadata": {"name": "p9"}, "ggen": 3}]}
    assert agent.pool.feed(Proxy("p1"), json.dumps(said), json.dumps(said).encode()) is True
    assert status(daemon)["tracked"] == 2
    with pytest.raises(BadPayload):
        agent.pool.feed(Proxy("p2"), b"nonsense")
    assert status(daemon)["tracked"] == 2
    assert agent.pool.drain(PATIENCE)


def test_gossip_is_dropped_while_there_is_no_daemon(
    make_trackd_daemon: MakeDaemon, maker: Maker
) -> None:
    own = make_trackd_daemon()
    agent = Agent(maker, own, Network())
    assert agent.pool.feed(Proxy("p1")) is True
    own.kill()
    agent.tracker.timeout = 0.1
    assert agent.pool.feed(Proxy("p1")) is False
    assert agent.pool.drain(PATIENCE)


# -- letting go -----------------------------------------------------------------------------------


def test_draining_advises_to_close_and_waits_no_longer_than_it_may(
    daemon: Daemon, maker: Maker
) -> None:
    network = Network(*names(2))
    let_go = threading.Event()

    def dial(agent: Agent, lease: Any) -> None:
        try:
            agent.serve(lease)
        finally:
            if lease.claimed_name == "p1":
                assert let_go.wait(PATIENCE)  # it will not hear of closing

    agent = Agent(maker, daemon, network, dial=dial)
    agent.pool.start()
    wait_until(lambda: network.connected == 2)
    assert agent.pool.drain(0.2) is False
    assert all(lease.should_close for lease in agent.leases if lease.claimed_name)
    wait_until(lambda: status(daemon)["claimed"] == 0)
    assert status(daemon)["waiting"] == 0
    let_go.set()
    assert agent.pool.drain(PATIENCE) is True
    assert agent.pool.drain() is True, "a second time does nothing"
    agent.tracker.close()


def test_a_dial_that_will_not_be_cancelled_does_not_hold_up_a_drain(
    make_trackd_daemon: MakeDaemon,
) -> None:
    async def run(endpoint: str) -> None:
        claimed, let_go = asyncio.Event(), asyncio.Event()

        async def dial(lease: AsyncLease) -> None:
            assert await lease.claim("p1")
            claimed.set()
            while not let_go.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await let_go.wait()

        async with asyncio.timeout(PATIENCE), AsyncTracker(endpoint) as tracker:
            pool = AsyncAgentPool(tracker, dial)
            pool.start()
            await claimed.wait()
            assert await pool.drain(0.1) is False
            while await tracker.is_claimed("p1"):  # noqa: ASYNC110 - the daemon tells nobody
                await asyncio.sleep(0.01)
            let_go.set()
            assert await pool.drain() is True

    asyncio.run(run(make_trackd_daemon().endpoint))


@pytest.mark.slow
def test_draining_is_bounded_without_a_daemon_too(
    make_trackd_daemon: MakeDaemon, maker: Maker
) -> None:
    own = make_trackd_daemon()
    network = Network(*names(4))
    let_go = threading.Event()

    def dial(agent: Agent, lease: Any) -> None:
        agent.serve(lease)
        assert let_go.wait(PATIENCE)

    agent = Agent(maker, own, network, dial=dial, tracker={"timeout": PATIENCE})
    agent.pool.start()
    wait_until(lambda: network.connected == 4)
    own.kill()
    drains = Background(agent.pool.drain, 0.2)
    # Far below what a call may take, and it would be four of them.
    try:
        wait_until(lambda: drains.done, PATIENCE / 2)
        assert drains.result() is False
    finally:
        let_go.set()
        own.start()
    assert agent.pool.drain(PATIENCE) is True
    agent.tracker.close()


def test_a_pool_that_never_started_drains(daemon: Daemon, maker: Maker) -> None:
    agent = Agent(maker, daemon, Network())
    assert agent.pool.drain() is True
    agent.tracker.close()


def test_a_pool_whose_tracker_is_closed_ends(daemon: Daemon, maker: Maker) -> None:
    network = Network(*names(3))
    agent = Agent(maker, daemon, network)
    agent.pool.start()
    wait_until(lambda: network.connected == 3)
    agent.tracker.close()
    assert all(lease.lost for lease in agent.leases if lease.claimed_name)
    assert agent.pool.drain(PATIENCE) is True
    assert network.connected == 0


def test_a_lease_released_before_its_tunnel_closes_lets_the_replacement_dial(
    daemon: Daemon, maker: Maker
) -> None:
    network = Network("p0")
    drains = threading.Event()

    def dial(agent: Agent, lease: Any) -> None:
        if len(agent.leases) == 1:
            assert lease.claim("p0")
            lease.release()
            assert drains.wait(PATIENCE)  # the old tunnel, which still carries something
        else:
            agent.serve(lease)

    with Agent(maker, daemon, network, dial=dial) as agent:
        wait_until(lambda: network.connected == 1)
        assert agent.pool.stats().connected == 2
        assert status(daemon)["claimed"] == 1
        drains.set()
        wait_until(lambda: agent.pool.stats().connected == 1)
        assert status(daemon)["claimed"] == 1, "the second one's claim is not touched"


# -- proxies that go ------------------------------------------------------------------------------


@pytest.mark.rule(15)
def test_a_tunnel_to_a_terminating_proxy_closes_and_counts_as_a_duplicate(
    daemon: Daemon, maker: Maker
) -> None:
    network = Network("p0", "p1")
    going = Proxy("p1", terminating=True)

    def dial(agent: Agent, lease: Any) -> None:
        name = "p1" if len(agent.leases) <= 2 else "p0"  # twice the proxy that goes
        if lease.claim(name):
            network.enter(name)
            assert lease.should_close.wait(PATIENCE)
            network.leave(name)

    teach(daemon, [Proxy("p0"), going])  # or the pool would dial without end to learn of proxies
    with Agent(maker, daemon, network, dial=dial) as agent:
        wait_until(lambda: network.open["p0"] == 1 and agent.pool.stats().connected == 1)
        assert agent.pool.stats().duplicates == 2
        assert [each.name for each in agent.changes(Change.DUPLICATE)] == ["p1", "p1"]
        assert network.open["p1"] == 0


@pytest.mark.rule(15)
def test_an_adopted_tunnel_to_a_terminating_proxy_closes(daemon: Daemon, maker: Maker) -> None:
    network = Network("p0")
    teach(daemon, network.proxies())  # or the pool would dial again to learn of proxies
    with Tracker(daemon.endpoint) as operator, Agent(maker, daemon, network) as agent:
        wait_until(lambda: network.connected == 1)
        kept = operator.adopt("other")
        assert kept is not None
        operator.track_expected(Proxy("p0", terminating=True), Proxy("other"))

        def marked() -> list[Any]:
            rows = operator.snapshot().proxies
            return [row for row in rows if row.name == "p0" and row.terminating]

        wait_until(marked)  # not at once where the mark flipped within the last second
        (row,) = marked()
        assert row.session is not None
        assert not agent.leases[0].should_close.is_set()
        operator.end_session(row.session)
        wait_until(lambda: network.connected == 0)
        assert agent.pool.stats().duplicates == 1
        kept.release()


@pytest.mark.rule(15)
def test_a_retired_tunnel_is_replaced_before_it_closes(daemon: Daemon, maker: Maker) -> None:
    network = Network("p0", "p1", "p2")
    teach(daemon, network.proxies())
    with Tracker(daemon.endpoint) as operator:
        operator.set_connection_count(2)  # before the pool begins, or it may connect to all
    with Agent(maker, daemon, network) as agent:
        wait_until(lambda: network.connected == 2)
        retired = next(lease for lease in agent.leases if lease.claimed_name is not None)
        assert retired.retire()
        wait_until(lambda: status(daemon)["claimed_desired"] == 2)
        assert network.open[retired.claimed_name] == 1, "it is still open"
        assert not retired.should_close.is_set()


# -- advice ---------------------------------------------------------------------------------------


def test_a_smaller_count_closes_connections_one_at_a_time(
    make_trackd_daemon: MakeDaemon, maker: Maker
) -> None:
    own = make_trackd_daemon(disconnect_threshold=0.1)
    network = Network(*names(6))
    closing: list[int] = []
    proceed = threading.Semaphore(0)

    def dial(agent: Agent, lease: Any) -> None:
        agent.serve(lease)
        if lease.claimed_name is not None:
            closing.append(lease.id)
            proceed.acquire()

    agent = Agent(maker, own, network, dial=dial)
    agent.pool.start()
    wait_until(lambda: network.connected == 6)
    agent.tracker.set_connection_count(3)
    for advised in (1, 2, 3):
        wait_until(lambda n=advised: len(closing) == n)  # type: ignore[misc]
        # While this one closes, no other is told to.
        agent.pool.feed(*network.proxies())
        assert sum(bool(lease.should_close) for lease in agent.leases) == advised
        proceed.release()
    wait_until(lambda: status(own)["claimed"] == 3)
    wait_until(lambda: agent.pool.stats().connected == 3)
    assert sum(bool(lease.should_close) for lease in agent.leases) == 3
    for _ in range(10):
        proceed.release()
    assert agent.pool.drain(PATIENCE)
    agent.tracker.close()


def test_when_a_roll_out_ends_the_old_generation_closes_and_the_new_one_never(
    make_trackd_daemon: MakeDaemon, maker: Maker
) -> None:
    own = make_trackd_daemon(disconnect_threshold=0.1)
    network = Network(*names(3))
    with Agent(maker, own, network) as agent:
        wait_until(lambda: network.connected == 3)
        old = [lease for lease in agent.leases if lease.claimed_name]
        network.generation, network.names = 1, ["q0", "q1", "q2"]
        agent.pool.feed(*network.proxies())
        wait_until(lambda: all(lease.released for lease in old))
        wait_until(lambda: network.connected == 3)
        new = [lease for lease in agent.leases if (lease.claimed_name or "").startswith("q")]
        assert not any(lease.should_close for lease in new)
        assert {lease.claimed_name for lease in new} == set(network.names)
        assert status(own)["claimed_desired"] == 3


def test_nobody_is_advised_while_the_roll_out_still_misses_a_proxy(
    make_trackd_daemon: MakeDaemon, maker: Maker
) -> None:
    own = make_trackd_daemon(disconnect_threshold=0.05)
    network = Network(*names(2))
    with Agent(maker, own, network) as agent:
        wait_until(lambda: network.connected == 2)
        agent.pool.feed(Proxy("q0", generation=1), Proxy("q1", generation=1))
        network.generation, network.names = 1, ["q0"]
        wait_until(lambda: network.open["q0"] == 1)
        dials = agent.pool.stats().dials
        wait_until(lambda: agent.pool.stats().dials > dials + 50)
        assert not any(lease.should_close for lease in agent.leases)
        network.names = ["q1"]
        wait_until(lambda: network.open["q1"] == 1)
        wait_until(lambda: network.connected == 2)
        assert network.open["q0"] == network.open["q1"] == 1


# -- a daemon that forgets, or is not well ------------------------------------------------------


def test_open_tunnels_are_adopted_when_the_session_is_lost(
    make_trackd_daemon: MakeDaemon, maker: Maker
) -> None:
    own = make_trackd_daemon(state_dir="", disconnect_threshold=0.1)
    network = Network(*names(4))
    with Agent(maker, own, network) as agent:
        wait_until(lambda: network.connected == 4)
        own.restart()
        wait_until(lambda: status(own)["claimed"] == 4)
        agent.pool.feed(*network.proxies())  # until then, rule 6 dials to learn of proxies
        assert agent.pool.stats().claims == 4, "no second tunnel to what is held"
        assert network.connected == 4
        # The advice reaches the dial by the lease that it knows.
        agent.tracker.set_connection_count(1)
        wait_until(lambda: network.connected == 1)
        wait_until(lambda: status(own)["claimed"] == 1)
    assert status(own)["claimed"] == 0
    assert set(network.most.values()) == {1}


def test_a_lease_adopted_while_its_dial_ends_is_given_back(
    make_trackd_daemon: MakeDaemon, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = make_trackd_daemon(state_dir="")
    network = Network("p0")
    broken, adopting, ended = threading.Event(), threading.Event(), threading.Event()
    kind: Any = AsyncTracker if maker.is_async else Tracker
    grant = kind._grant

    def adopt_slowly(tracker: Any, call: Any, *more: Any) -> Any:
        granted = grant(tracker, call, *more)
        if call.op == "adopt":
            adopting.set()
            assert ended.wait(PATIENCE)
        return granted

    async def adopt_slowly_in_a_task(tracker: Any, call: Any) -> Any:
        granted = await grant(tracker, call)
        if call.op == "adopt":
            adopting.set()
            assert await asyncio.to_thread(ended.wait, PATIENCE)
        return granted

    def dial(agent: Agent, lease: Any) -> None:
        if len(agent.leases) > 1:
            agent.serve(lease)
        else:
            assert lease.claim("p0")
            assert broken.wait(PATIENCE)

    agent = Agent(maker, own, network, dial=dial)
    agent.pool.feed(Proxy("p0"))
    monkeypatch.setattr(kind, "_grant", adopt_slowly_in_a_task if maker.is_async else adopt_slowly)
    with agent:
        wait_until(lambda: agent.pool.stats().connected == 1)
        own.restart()
        assert adopting.wait(PATIENCE)
        broken.set()
        wait_until(lambda: agent.pool.stats().connected == 0)
        wait_until(lambda: agent.changes(Change.CLOSED))
        ended.set()
        wait_until(lambda: network.connected == 1)
    assert status(own)["claimed"] == 0


def test_tunnels_are_adopted_also_when_the_pool_was_not_waiting_for_a_lease(
    make_trackd_daemon: MakeDaemon, maker: Maker
) -> None:
    own = make_trackd_daemon(state_dir="")
    network = Network(*names(3))
    hold = threading.Event()

    def dial(agent: Agent, lease: Any) -> None:
        if network.connected == 3:  # only when there is one proxy more
            assert hold.wait(PATIENCE)
        agent.serve(lease)

    agent = Agent(maker, own, network, dial=dial, max_concurrent_dials=1)
    with agent:
        wait_until(lambda: network.connected == 3)
        agent.pool.feed(Proxy("one-more"))
        wait_until(lambda: agent.pool.stats().dialling == 1)
        try:
            own.restart()
            wait_until(lambda: agent.leases[0].lost)
        finally:
            hold.set()
        wait_until(lambda: status(own)["claimed"] == 3)
        assert set(network.most.values()) == {1}
        assert agent.pool.stats().claims == 3


def test_a_full_pool_adopts_its_tunnels_when_the_session_is_lost(
    daemon: Daemon, maker: Maker
) -> None:
    network = Network(*names(2))
    teach(daemon, network.proxies())
    with Tracker(daemon.endpoint) as admin, Agent(maker, daemon, network, max_tunnels=2) as agent:
        for _ in range(2):  # the second time by the leases of the adoption
            wait_until(lambda: status(daemon)["claimed"] == 2)
            (session,) = {row.session for row in admin.rows("leases")}
            admin.end_session(session)
        wait_until(lambda: status(daemon)["claimed"] == 2)
        assert agent.pool.stats().claims == 2
        assert network.connected == 2
    assert set(network.most.values()) == {1}


def test_a_dial_that_blocks_ends_when_its_tunnel_should_close(
    daemon: Daemon, maker: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    network = Network(*names(2))
    calls: list[int] = []

    def dial(agent: Agent, lease: Any) -> None:
        name = network.reach()
        if not lease.claim(name):
            return
        ours, theirs = socket.socketpair()
        with ours, theirs:
            lease.on_close(partial(calls.append, lease.id))
            lease.on_close(partial(int, "a mistake"))
            lease.on_close(lambda: ours.shutdown(socket.SHUT_RDWR))
            agent.pool.feed(*network.proxies())
            assert ours.recv(1) == b""  # theirs never says anything

    with Agent(maker, daemon, network, dial=dial) as agent:
        wait_until(lambda: agent.pool.stats().claims == 2)
        taken, other = (lease for lease in agent.leases if lease.claimed_name)
        with Tracker(daemon.endpoint) as admin:
            admin.force_release(taken.id)
        wait_until(lambda: agent.pool.stats().claims == 3)
        wait_until(lambda: calls)  # the proxy is free before the one who had it learns that
        assert calls == [taken.id]
    assert other.id in calls
    assert len(calls) == len(set(calls)) == 3
    other.on_close(partial(calls.append, 0))
    assert calls[-1] == 0, "it is called at once when the flag is set already"
    assert caplog.text.count("a function that was given to on_close failed") == 3


def test_a_lease_that_an_admin_takes_closes_its_tunnel_which_is_not_adopted(
    make_trackd_daemon: MakeDaemon, maker: Maker
) -> None:
    own = make_trackd_daemon()
    network = Network(*names(3))
    with Agent(maker, own, network) as agent, Tracker(own.endpoint) as admin:
        wait_until(lambda: network.connected == 3)
        taken = agent.leases[0]
        assert admin.force_release(taken.id)["released"]
        wait_until(lambda: taken.lost and taken.should_close)
        wait_until(lambda: network.connected == 3 and agent.pool.stats().claims == 4)
        wait_until(lambda: status(own)["claimed"] == 3)
        reasons = {e.fields.get("reason") for e in admin.log()["events"]}
        assert "adopt" not in reasons
        assert agent.pool.stats().failures == 0


def test_a_tunnel_stays_open_while_there_is_no_daemon_to_adopt_it(
    make_trackd_daemon: MakeDaemon, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = make_trackd_daemon(state_dir="")
    network = Network("p0")
    kind: Any = AsyncTracker if maker.is_async else Tracker
    grant, tries, restarted = kind._grant, [], threading.Event()

    def adopt_from_a_daemon_that_dies(tracker: Any, call: Any, *more: Any) -> Any:
        if call.op == "adopt":
            tries.append(call)
            if len(tries) == 1:
                assert restarted.wait(PATIENCE)
                own.kill()
        return grant(tracker, call, *more)

    monkeypatch.setattr(kind, "_grant", adopt_from_a_daemon_that_dies)
    with Agent(maker, own, network) as agent:
        wait_until(lambda: network.connected == 1)
        agent.tracker.timeout = 0.5
        own.restart()
        restarted.set()
        wait_until(lambda: len(tries) > 1)
        agent.tracker.timeout = PATIENCE
        assert network.connected == 1
        own.start()
        wait_until(lambda: status(own)["claimed"] == 1)
        assert network.open == {"p0": 1}
        assert not agent.leases[0].should_close
        assert agent.pool.stats().claims == 1


@pytest.mark.slow
def test_the_time_after_which_the_daemon_wants_to_be_asked_again_is_kept(
    make_trackd_daemon: MakeDaemon, maker: Maker
) -> None:
    own = make_trackd_daemon()
    agent = Agent(maker, own, Network("p0"))
    agent.pool.feed(Proxy("p0"))
    _, hard = resource.prlimit(own.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    try:
        with agent:
            wait_until(lambda: agent.changes(Change.BACKING_OFF))
            resource.prlimit(own.pid, resource.RLIMIT_FSIZE, (hard, hard))
            wait_until(lambda: agent.pool.stats().connected == 1)
            begun = next(at for at, e in agent.events if e.change is Change.CONNECTING)
            refused = [(at, e) for at, e in agent.events if e.change is Change.BACKING_OFF]
            assert {event.pause for _, event in refused} == {1.0}, "as the daemon said"
            assert begun >= refused[-1][0] + 0.9
    finally:
        resource.prlimit(own.pid, resource.RLIMIT_FSIZE, (hard, hard))


@pytest.mark.parametrize(
    ("presented", "name"),
    [("p0", "p0"), ("p0.example.com", "p0"), ("p0.example.com", "p0.example.com")],
)
@pytest.mark.parametrize("by_another", [False, True])
def test_a_tunnel_that_was_claimed_before_gossip_named_its_proxy_gets_that_name(
    daemon: Daemon, maker: Maker, presented: str, name: str, *, by_another: bool
) -> None:
    """Else the daemon would grant another dial, which would open a second tunnel to the proxy."""
    network, gossip = Network("p0"), threading.Event()
    operator = Tracker(daemon.endpoint, timeout=PATIENCE)

    def dial(agent: Agent, lease: Any) -> None:
        network.enter(network.reach())
        try:
            assert operator.adopt("p1")  # so that no other dial is wanted before the gossip
            assert lease.claim("host-7.example.com", presented)
            assert lease.claimed_name == "host-7"
            assert gossip.wait(PATIENCE)
            if by_another:
                operator.track_expected(Proxy(name))
            else:
                assert agent.pool.feed(Proxy(name), Proxy("p1"))
            wait_until(lambda: lease.claimed_name == name)
            assert lease.should_close.wait(PATIENCE)
        finally:
            network.leave("p0")

    with operator:
        operator.track_expected(Proxy("p1"))
        with Agent(maker, daemon, network, dial=dial, max_concurrent_dials=1) as agent:
            wait_until(lambda: operator.status().claimed == 2)
            gossip.set()
            wait_until(lambda: operator.is_claimed(name) and not operator.is_claimed("host-7"))
            wait_until(lambda: operator.status().claimed_desired == 2)  # the gossip came after it
            assert operator.try_acquire() is None
            assert (network.dials, len(agent.leases)) == ({"p0": 1}, 1)
        wait_until(lambda: operator.status().claimed == 1)
        assert not agent.changes(Change.FAILED)


def test_a_tunnel_whose_proxy_another_lease_holds_by_the_name_of_gossip_is_closed(
    daemon: Daemon, maker: Maker
) -> None:
    network, gossip = Network("p0"), threading.Event()

    def dial(agent: Agent, lease: Any) -> None:
        if not lease.claim("host-7", "p0"):
            return
        assert gossip.wait(PATIENCE)
        with Tracker(daemon.endpoint, timeout=PATIENCE) as other:
            assert other.adopt("p0")
            assert agent.pool.feed(Proxy("p0", generation=1))
            assert lease.should_close.wait(PATIENCE)

    with Agent(maker, daemon, network, dial=dial) as agent:
        wait_until(lambda: status(daemon)["claimed"] == 1)
        gossip.set()
        wait_until(lambda: agent.changes(Change.CLOSED))
    assert not agent.changes(Change.FAILED)
