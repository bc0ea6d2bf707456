"""SIGKILLs of leaders, relays and members of etcd while agents of two hosts work."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from fleet.cluster import Cluster
from fleet.fleet import LONG, Fleet, Part, Relay
from helpers.agents import Agent
from helpers.event_watch import Watch, assert_complete
from helpers.ledgers import AGENTS_EACH, PROCESSES, Judge, Workers
from helpers.long_form import choose
from helpers.support import wait_until
from trackd.fleet.etcd import Etcd
from trackd_client import Event, Proxy, Tracker

KILLS = choose(10, 200)
#: Kills after which all that agents were told is compared; it takes longer each time.
COMPARED = choose(1, 20)
#: Kills of leaders of an idle fleet whose failovers are measured.
FAILOVERS = choose(3, 100)
TTL = 3
#: Names that are desired.
NAMES = 12


@pytest.fixture
def fleet(cluster: Cluster, etcd: Etcd) -> Iterator[Fleet]:
    """Two candidates and three hosts; no lease is taken back while agents rest."""
    with Fleet(
        cluster,
        hosts=3,
        ttl=TTL,
        host_ttl=LONG,
        settings="claim_timeout = 0.0\nhistory = 100000",
        log_level="info",
    ) as made:
        for relay in made.relays:
            made.wait_until_served(relay)
        yield made


def assert_no_name_is_held_twice(told: list[Event]) -> None:
    """Check each moment that events tell of: a name is claimed by one lease, until its release."""
    holders: dict[str, int] = {}
    for event in told:
        if event.kind == "snapshot":
            holders = {row["name"]: row["lease"] for row in event.fields["leases"] if row["name"]}
        elif event.kind == "proxy_claimed":
            assert event.fields["name"] not in holders, f"claimed twice: {event}"
            holders[event.fields["name"]] = event.fields["lease"]
        elif event.kind == "lease_released" and event.fields["name"] is not None:
            assert holders.pop(event.fields["name"]) == event.fields["lease"]


def kill_leader(fleet: Fleet, chance: random.Random) -> None:
    fleet.keep_candidates()
    again(fleet.leader())


def kill_relay(fleet: Fleet, chance: random.Random) -> None:
    again(chance.choice(fleet.relays))


def again(part: Part) -> None:
    part.kill()
    part.start()


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_after_each_kill_every_reply_that_an_agent_received_is_true(
    cluster: Cluster, fleet: Fleet
) -> None:
    seed = int(os.environ.get("TRACKD_SEED") or random.randrange(2**32))
    print(f"seed {seed}")
    chance = random.Random(seed)

    def kill_member(_fleet: Fleet, chance: random.Random) -> None:
        member = chance.choice([cluster.leader(), *cluster.members])
        member.kill()
        time.sleep(chance.uniform(0.0, 1.0))  # agents work on with a majority
        member.start()
        cluster.wait_until_healthy()

    kinds = [kill_leader, kill_member, kill_relay]
    drawn = [kinds[number % len(kinds)] for number in range(KILLS)]
    chance.shuffle(drawn)
    began = time.monotonic()
    with ExitStack() as stack:
        judge = Judge(fleet.relays[0].endpoint)
        stack.callback(judge.peer.close)
        rows = [[f"p{number}", "", 2**64 - 1, None] for number in range(NAMES)]
        judge.peer.request("track_expected", proxies=rows)
        watches = [
            stack.enter_context(Tracker(relay.endpoint, timeout=LONG)) for relay in fleet.relays
        ]
        told = [Watch(each).begun() for each in watches]
        workers = [Workers(relay.endpoint, number) for number, relay in enumerate_hosts(fleet)]
        for each in workers:
            stack.callback(each.end)
        wait_until(lambda: judge.status()["sessions"] == PROCESSES * AGENTS_EACH + 1, LONG)
        for number, kill in enumerate(drawn, 1):
            time.sleep(chance.uniform(0.0, 0.5))
            kill(fleet, chance)
            fleet.keep_candidates()
            if number % COMPARED:
                continue
            for each in workers:
                each.rest()
            judge.compare([ledger for each in workers for ledger in each.ledgers()])
            leases = [row.name for row in watches[0].rows("leases") if row.name is not None]
            assert len(leases) == len(set(leases)), "a proxy is claimed by two leases"
            for each in workers:
                each.go_on()
        for each in workers:
            each.rest()
        judge.compare([ledger for each in workers for ledger in each.ledgers()])
        revision = judge.status()["revision"]
        for watch in told:
            watch.reaches(revision)
            assert_complete(watch.told)
            assert_no_name_is_held_twice(watch.told)
    calls = sum(ledger.calls for ledger in judge.ledgers)
    granted = sum(len(ledger.granted) for ledger in judge.ledgers)
    assert granted > KILLS
    print(
        f"{KILLS} kills in {time.monotonic() - began:.0f} s; {calls} calls answered,"
        f" {granted} leases granted; {len(told[0].told)} events at each host"
    )


def enumerate_hosts(fleet: Fleet) -> Iterator[tuple[int, Relay]]:
    """Yield the number of each process of agents, and the relay of its host."""
    for number in range(PROCESSES):
        yield number, fleet.relays[number % len(fleet.relays)]


def test_waiters_of_several_hosts_are_served_in_their_order_after_a_failover(fleet: Fleet) -> None:
    with ExitStack() as stack:
        holder = stack.enter_context(Tracker(fleet.relays[0].endpoint, timeout=LONG))
        holder.track_expected(Proxy("p1"))
        lease = holder.try_acquire()
        assert lease is not None
        agents = [
            stack.enter_context(Agent(relay.endpoint))
            for relay in (*reversed(fleet.relays), *fleet.relays)
        ]
        for number, agent in enumerate(agents, 1):
            agent.tell("wait", LONG)
            wait_until(lambda: holder.status().waiting == number)  # noqa: B023 - at once
        fleet.leader().kill()
        lease.release()
        for number, agent in enumerate(agents, 1):
            held = agent.answer()
            assert held is not None
            assert holder.status().waiting == len(agents) - number
            agent.do("release", held)


def test_a_killed_leader_is_replaced_within_its_ttl_and_some_seconds(fleet: Fleet) -> None:
    took = []
    with Tracker(fleet.relays[0].endpoint, timeout=LONG) as tracker:
        for number in range(FAILOVERS):
            tracker.set_connection_count(number)
            fleet.keep_candidates()
            leader = fleet.leader()
            leader.kill()
            killed = time.monotonic()
            tracker.set_connection_count(number + 1)
            took.append(time.monotonic() - killed)
            leader.start()
            wait_until(lambda: len(standing_by(fleet)) == 1, LONG)
    took.sort()
    p50, p99 = took[len(took) // 2], took[-1 - len(took) // 100]
    print(f"{FAILOVERS} failovers with a TTL of {TTL} s: p50 {p50:.2f} s, p99 {p99:.2f} s")
    assert p99 < LONG / 2


def standing_by(fleet: Fleet) -> list[Part]:
    """Return the candidates that wait for the present leader to end; start what has ended."""
    fleet.keep_candidates()
    return [each for each in fleet.candidates if "standing by" in since_start(each)]


def since_start(part: Part) -> str:
    """Return what a candidate has logged since it stands by; nothing once it leads."""
    _, _, since = part.log.read_text().rpartition(" candidate host=")
    return "" if " leads host=" in since else since
