"""Whoever watches events on the hosts of a fleet, and what a failover costs the leader for them."""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack

import msgpack
import pytest

from fleet.cluster import Cluster
from fleet.fleet import LONG, Fleet
from fleet.raw_host import BOOT, RawHost
from helpers.event_watch import assert_complete
from helpers.support import wait_until
from trackd.fleet.etcd import Etcd
from trackd.fleet.hop import Events, Here, Leads
from trackd_client import AsyncTracker, Event, Proxy, Tracker

HOSTS = 3
#: Watchers on each host.
WATCHERS = 24
#: Requests for the history that all hosts may cost a leader, however many watch there. Besides, the
#: watchers of one host may ask, each once: when that host stands still for a second.
FEW = 6
#: Seconds after which the leader has hung up on a host that is silent.
SILENCE = 5.0
#: Seconds; nobody starts a candidate again whose term ends because the machine is slow.
TTL = 10
#: Changes on each host before something happens, and after it.
CHANGES = 50


@pytest.fixture
def fleet(cluster: Cluster, etcd: Etcd) -> Iterator[Fleet]:
    """Two candidates, and the relays of some hosts."""
    with Fleet(cluster, hosts=HOSTS, ttl=TTL, host_ttl=LONG, log_level="info") as made:
        for relay in made.relays:
            made.wait_until_served(relay)
        yield made


def requests(fleet: Fleet) -> dict[str, int]:
    """Return how many requests the leader has answered, by operation."""
    with Tracker(fleet.relays[0].endpoint, timeout=LONG) as tracker:
        families = {name: samples for name, _, _, _, samples in tracker.metrics()["families"]}
    return {labels[0]: counts[-1][1] for labels, counts, _ in families["trackd_request_seconds"]}


async def until(condition: Callable[[], object], tasks: list[asyncio.Task[None]]) -> None:
    """Wait for a condition; fail at once when one of the tasks ends before."""
    async with asyncio.timeout(2 * LONG):
        while not condition():
            ended = [task.exception() for task in tasks if task.done()]
            assert not ended, ended
            await asyncio.sleep(0.01)


async def watch(tracker: AsyncTracker, told: list[Event]) -> None:
    """Keep all events."""
    async for event in tracker.events():
        told += [event]


async def change(tracker: AsyncTracker, done: list[int]) -> None:
    """Change the connection count again and again."""
    for number in itertools.count(1):
        await tracker.set_connection_count(number)
        done[0] = number
        await asyncio.sleep(0.02)


async def watched(fleet: Fleet, happen: Callable[[], Awaitable[None]]) -> list[list[Event]]:
    """Let something happen while agents of all hosts work; return what each watcher was told."""
    async with AsyncExitStack() as stack:

        async def tracker_of(endpoint: str) -> AsyncTracker:
            return await stack.enter_async_context(AsyncTracker(endpoint, timeout=LONG))

        endpoints = [relay.endpoint for relay in fleet.relays]
        told: list[list[Event]] = [[] for _ in endpoints for _ in range(WATCHERS)]
        done = [[0] for _ in endpoints]
        tasks = [
            asyncio.create_task(watch(await tracker_of(endpoints[number % HOSTS]), events))
            for number, events in enumerate(told)
        ]
        await until(lambda: all(told), tasks)
        writers = [
            asyncio.create_task(change(await tracker_of(endpoint), each))
            for endpoint, each in zip(endpoints, done, strict=True)
        ]
        tasks += writers
        await until(lambda: min(done)[0] >= CHANGES, tasks)
        await happen()
        before = max(done)[0]
        await until(lambda: min(done)[0] >= before + CHANGES, tasks)
        for writer in writers:
            tasks.remove(writer)
            writer.cancel()
        revision = (await (await tracker_of(endpoints[0])).status()).revision
        await until(lambda: min(events[-1].revision for events in told) >= revision, tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *writers, return_exceptions=True)
    return told


def check(told: list[list[Event]], asked: dict[str, int]) -> None:
    """Check that every watcher has all events, and that they have asked for next to nothing."""
    print(f"\n{HOSTS} hosts with {WATCHERS} watchers each; requests at the leader: {asked}")
    for events in told:
        assert_complete(events)
        assert [event.kind for event in events].count("snapshot") == 1
    assert asked.get("snapshot", 0) == 0
    assert asked.get("log", 0) <= FEW + WATCHERS


def test_a_failover_costs_each_host_one_message_and_no_watcher_a_request(fleet: Fleet) -> None:
    async def kill() -> None:
        fleet.leader().kill()

    told = asyncio.run(watched(fleet, kill))
    assert "daemon_started" in [event.kind for event in told[0]], "of the next leader"
    check(told, requests(fleet))


def test_a_host_whose_connection_breaks_is_sent_what_it_has_missed(fleet: Fleet) -> None:
    leader, relay = fleet.leader(), fleet.relays[1]
    before: dict[str, int] = {}

    def connections() -> int:
        return leader.log.read_text().count(f"host connected host={relay.name}")

    async def pause() -> None:
        before.update(await asyncio.to_thread(requests, fleet))
        last = connections()
        while connections() == last:
            with relay.paused():
                await asyncio.sleep(SILENCE)
            await asyncio.sleep(1.0)

    told = asyncio.run(watched(fleet, pause))
    after = requests(fleet)
    check(told, {op: count - before.get(op, 0) for op, count in after.items()})


@pytest.fixture
def small(cluster: Cluster, etcd: Etcd) -> Iterator[Fleet]:
    """One candidate with a short history, one relay, and the keys of another host."""
    fleet = Fleet(cluster, candidates=1, hosts=1, ttl=TTL, host_ttl=LONG, settings="history = 10")
    fleet.admit("raw")
    with fleet:
        fleet.wait_until_served(fleet.relays[0])
        yield fleet


def listening(fleet: Fleet, *told: object) -> RawHost:
    """Return a host that says with its first words that it listens, and what it was told."""
    host = RawHost(fleet, "raw", fleet.candidates[0])
    host.say(msgpack.packb([0, "here", BOOT, 0, True, 1.0, False, *told]))
    wait_until(lambda: host.hears(Events), LONG)
    assert isinstance(host.heard[0], Leads)
    return host


def sent(host: RawHost) -> list[int]:
    """Return the revisions of the events that a host was sent."""
    said = [each for each in host.heard if isinstance(each, Events)]
    return [msgpack.unpackb(event)[0] for each in said for event in each.events]


def test_a_host_is_sent_each_event_once_from_where_it_was(small: Fleet) -> None:
    with Tracker(small.relays[0].endpoint, timeout=LONG) as tracker:
        tracker.track_expected(*(Proxy(f"p{number}") for number in range(100)))
        now = tracker.status()
        with listening(small, now.tracker_id, now.revision - 20) as host:
            assert sent(host) == list(range(now.revision - 19, now.revision + 1))
            term = host.heard[0].term
            for number in range(10):
                host.word(Here(BOOT, term, True, 1.0, False, now.tracker_id, now.revision - 20))
                tracker.set_connection_count(number + 1)
            wait_until(lambda: host.hears(Events) and len(sent(host)) >= 30, LONG)
            assert sent(host) == list(range(now.revision - 19, now.revision + 11))
            # Nobody listens there for a while.
            host.word(Here(BOOT, term, events=False))
            host.ask({"op": "status", "seq": 1})
            tracker.set_connection_count(20)
            host.word(Here(BOOT, term, True, 1.0, False, now.tracker_id, now.revision + 10))
            wait_until(lambda: host.hears(Events) and len(sent(host)) > 30, LONG)
            assert sent(host)[30:] == [now.revision + 11]


def test_a_host_that_cannot_be_sent_what_it_missed_is_told_so(small: Fleet) -> None:
    with Tracker(small.relays[0].endpoint, timeout=LONG) as tracker:
        tracker.track_expected(*(Proxy(f"p{number}") for number in range(1000)))
        now = tracker.status()
        cases: list[Callable[[], tuple[object, ...]]] = [
            lambda: (),  # a relay of an older version
            lambda: ("", 0),
            lambda: ("of another state", now.revision - 1),
            lambda: (now.tracker_id, 1),  # longer ago than the history reaches
            lambda: (now.tracker_id, now.revision),
            lambda: (now.tracker_id, 2**63),
        ]
        for told in cases:
            with listening(small, *told()) as host:
                assert host.heard[1:] == [
                    Events(host.heard[0].term, now.epoch, now.tracker_id, now.revision, [])
                ]
                tracker.set_connection_count(now.revision)
                now = tracker.status()
                wait_until(lambda: host.hears(Events) and sent(host), LONG)
                assert sent(host) == [now.revision]


def test_a_host_where_nobody_watches_is_told_of_a_reload(small: Fleet) -> None:
    leader = small.leader()
    with RawHost(small, "raw", leader) as host:
        host.word(Here(BOOT, 0, events=False))
        wait_until(lambda: host.hears(Leads), LONG)
        host.heard.clear()
        leader.file.write_text(f"proxy_expiry = 77\n{leader.file.read_text()}")
        leader.signal(signal.SIGHUP)
        wait_until(lambda: host.hears(Leads), LONG)
        (said,) = host.heard
        assert isinstance(said, Leads)
        assert said.about["proxy_expiry"] == 77
