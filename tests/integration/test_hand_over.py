"""Rule 20: an agent hands its tunnels over to another one, and none is missing meanwhile."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Self

import pytest

from helpers.agents import Agent as Process
from helpers.both_clients import PATIENCE, Background, Maker
from helpers.support import wait_until
from helpers.trackctl import trackctl
from trackd_client import Policy, Proxy, Tracker
from trackd_client.core.conversation import Conversation
from trackd_client.errors import InvalidRequest, LimitExceeded
from trackd_client.testing import Daemon, MakeDaemon

pytestmark = pytest.mark.rule(20)

#: Dials again at once, whatever happens.
EAGER = Policy(
    failed_base=0.0, failed_cap=0.0, duplicate_step=0.001, duplicate_cap=0.001, sticky_after=10**9
)
#: Seconds for a drain that is to end before that.
LONG = PATIENCE - 5.0
PROXIES = [Proxy(f"p{number}") for number in range(4)]


class Agent:
    """A pool whose dials reach a proxy at random, claim it, and serve until advised to close."""

    def __init__(self, maker: Maker, daemon: Daemon, seed: int) -> None:
        self.chance = random.Random(seed)
        self.lock = threading.Lock()
        self.open: Counter[str] = Counter()
        self.tracker = maker.tracker(daemon.endpoint)
        self.tracker.track_expected(*PROXIES)
        self.pool = maker.pool(self.tracker, self.dial, policy=EAGER)

    def dial(self, lease: Any) -> None:
        with self.lock:
            name = self.chance.choice(PROXIES).name
        if lease.is_claimed(name) or not lease.claim(name):
            return
        with self.lock:
            self.open[name] += 1
        try:
            assert lease.should_close.wait(PATIENCE)
        finally:
            with self.lock:
                self.open[name] -= 1

    @property
    def tunnels(self) -> int:
        return self.open.total()

    def __enter__(self) -> Self:
        self.pool.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self.pool.drain(PATIENCE), "a dial does not end"
        self.tracker.close()


def events(operator: Tracker) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for event in operator.log()["events"]:
        yield event.kind, event.fields


def handed_over(operator: Tracker) -> list[str]:
    """Return the names whose leases were handed over, after a look at who held which when."""
    holders: dict[str, int] = {}
    handed = []
    for kind, fields in events(operator):
        if kind == "proxy_claimed":
            assert fields["name"] not in holders, "a name is held by two leases"
            holders[fields["name"]] = fields["lease"]
        elif kind == "lease_released" and fields["name"] is not None:
            assert holders.pop(fields["name"]) == fields["lease"]
            if fields["cause"] == "handed_over":
                handed.append(fields["name"])
    return handed


@pytest.fixture
def own(make_trackd_daemon: MakeDaemon) -> Daemon:
    """A daemon whose log begins with the test."""
    return make_trackd_daemon()


@pytest.fixture
def operator(own: Daemon) -> Iterator[Tracker]:
    with Tracker(own.endpoint) as operator:
        yield operator


# -- the upgrade of an agent ------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 2])
def test_an_upgrade_leaves_no_second_below_the_target_and_no_name_with_two_leases(
    own: Daemon, operator: Tracker, maker: Maker, count: int
) -> None:
    operator.set_connection_count(count)
    wanted = count or len(PROXIES)
    with Agent(maker, own, 1) as old:
        wait_until(lambda: old.tunnels == wanted)
        with Agent(maker, own, 2) as new:
            wait_until(lambda: operator.status().waiting)
            before = operator.status().missing_seconds
            assert old.pool.drain(LONG, replace_first=True), "a tunnel did not close"
            wait_until(lambda: new.tunnels == wanted)
            status = operator.status()
            assert status.missing_seconds == before
            assert (status.claimed_desired, status.inflight) == (wanted, 0)
            assert len(handed_over(operator)) == wanted
            assert old.tunnels == 0


def test_without_a_successor_a_drain_ends_in_its_time_and_closes(
    own: Daemon, operator: Tracker, maker: Maker
) -> None:
    with Agent(maker, own, 1) as old:
        wait_until(lambda: old.tunnels == len(PROXIES))
        assert old.pool.drain(4.0, replace_first=True), "a tunnel did not close"
        assert old.tunnels == 0
    assert handed_over(operator) == []
    offered = [fields["name"] for kind, fields in events(operator) if kind == "lease_offered"]
    assert len(offered) == 1


def test_a_drain_without_replacement_ends_one_that_waits(
    own: Daemon, operator: Tracker, maker: Maker
) -> None:
    with Agent(maker, own, 1) as old:
        wait_until(lambda: old.tunnels == len(PROXIES))
        drain = Background(old.pool.drain, None, replace_first=True)
        wait_until(lambda: operator.status().offered)
        assert old.pool.drain(LONG)
        assert drain.result() is True


def test_an_older_daemon_closes_at_once(
    own: Daemon, operator: Tracker, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Conversation.take_hello

    def take_hello(self: Conversation, fields: dict[str, Any]) -> None:
        known(self, {**fields, "minor": 1, "features": []})

    monkeypatch.setattr(Conversation, "take_hello", take_hello)
    lease = maker.tracker(own.endpoint).adopt("p9")
    assert lease.offer() is False
    assert not lease.released
    with Agent(maker, own, 1) as old:
        wait_until(lambda: old.tunnels == len(PROXIES))
        assert old.pool.drain(None, replace_first=True)
    assert not [kind for kind, _ in events(operator) if kind == "lease_offered"]


def test_a_drain_goes_on_after_the_loss_of_its_session(
    own: Daemon, operator: Tracker, maker: Maker
) -> None:
    with Agent(maker, own, 1) as old:
        wait_until(lambda: old.tunnels == len(PROXIES))
        drain = Background(old.pool.drain, LONG, replace_first=True)
        wait_until(lambda: operator.status().offered)
        owners = {row.session for row in operator.snapshot().leases}
        operator.end_session(owners.pop())
        wait_until(lambda: operator.status().claimed == len(PROXIES))
        assert old.tunnels == len(PROXIES), "they were adopted"
        with Agent(maker, own, 2) as new:
            assert drain.result() is True
            wait_until(lambda: new.tunnels == len(PROXIES))
        assert len(handed_over(operator)) == len(PROXIES)


@pytest.mark.both_stores
def test_a_restart_of_the_daemon_in_the_midst_of_a_drain_loses_nothing(
    own: Daemon, operator: Tracker, maker: Maker
) -> None:
    with Agent(maker, own, 1) as old:
        wait_until(lambda: old.tunnels == len(PROXIES))
        drain = Background(old.pool.drain, LONG, replace_first=True)
        wait_until(lambda: operator.status().offered)
        own.restart()
        wait_until(lambda: operator.status().offered)
        with Agent(maker, own, 2) as new:
            assert drain.result() is True
            wait_until(lambda: new.tunnels == len(PROXIES))
            assert operator.status().missing_seconds == 0.0
    assert len(handed_over(operator)) == len(PROXIES)


# -- one lease ----------------------------------------------------------------------------------


def test_a_lease_is_offered_and_lost_to_its_replacement(own: Daemon, maker: Maker) -> None:
    old, new = maker.tracker(own.endpoint), maker.tracker(own.endpoint)
    old.track_expected(Proxy("p1"), Proxy("p2"))
    leases = [old.adopt("p1"), old.adopt("p2")]
    assert new.try_acquire() is None
    assert leases[0].offer() is True
    assert leases[0].offer() is True, "a second time changes nothing"
    with pytest.raises(LimitExceeded, match=f"lease {leases[0].id} "):
        leases[1].offer()
    assert old.status().offered == 1
    rows = {row.name: row.offered for row in old.snapshot().leases}
    assert rows == {"p1": True, "p2": False}
    assert old.explain("p1").offered is True
    replacement = new.try_acquire()
    with pytest.raises(InvalidRequest):
        replacement.offer()
    assert not replacement.is_claimed("p1")
    assert replacement.claim("p2") is False
    assert replacement.claim("p1") is True
    wait_until(lambda: leases[0].should_close)
    assert (bool(leases[0].lost), leases[0].revoked, leases[0].released) == (True, True, True)
    assert leases[0].offer() is False
    leases[0].release()
    assert new.is_claimed("p1"), "the release of a lost lease frees nothing"
    assert leases[1].offer() is True


@pytest.mark.both_stores
def test_a_daemon_that_is_killed_between_the_offer_and_the_claim_forgets_neither(
    own: Daemon, maker: Maker
) -> None:
    old, new = maker.tracker(own.endpoint), maker.tracker(own.endpoint)
    old.track_expected(Proxy("p1"))
    lease = old.adopt("p1")
    assert lease.offer() is True
    own.restart()
    replacement = new.try_acquire()
    assert replacement is not None
    own.restart()
    assert replacement.claim("p1") is True
    own.restart()
    wait_until(lambda: lease.lost and lease.should_close)
    assert new.is_claimed("p1")


def test_the_death_of_an_agent_that_offers_frees_its_proxies(
    own: Daemon, operator: Tracker, maker: Maker
) -> None:
    operator.track_expected(Proxy("p1"), Proxy("p2"))
    with Process(own.endpoint) as old:
        leases = [old.do("adopt", name) for name in ("p1", "p2")]
        assert old.do("offer", leases[0]) is True
        new = maker.tracker(own.endpoint)
        replacement = new.try_acquire()
        old.kill()
        assert replacement.claim("p1") is True
        wait_until(lambda: not new.is_claimed("p2"))
        assert new.adopt("p2") is not None
    assert operator.status().get("offered") is None


# -- what people see --------------------------------------------------------------------------


def test_trackctl_shows_what_is_offered_and_to_whom_it_went(own: Daemon, operator: Tracker) -> None:
    operator.track_expected(Proxy("p1"), Proxy("p2"))
    lease = operator.adopt("p1")
    assert lease is not None
    assert operator.adopt("p2") is not None
    assert lease.offer()
    there = {"TRACKD_ENDPOINT": own.endpoint}
    listed = trackctl("leases", **there).stdout.splitlines()
    assert [line.split()[:3] for line in listed[1:3]] == [
        ["1", "offered", "p1"],
        ["2", "claimed", "p2"],
    ]
    assert "which offers it" in trackctl("explain", "p1", **there).stdout
    explained = trackctl("explain", **there).stdout
    assert "A lease now: an agent offers a tunnel to be replaced." in explained
    assert "is target 2 > 2 claimed and desired - 1 offered + 0 in flight?" in explained
    assert "2 desired (1 offered); target 2" in trackctl("status", **there).stdout
    assert "all 2 proxies have a tunnel" in trackctl("status", **there).stdout
    with Tracker(own.endpoint) as successor:
        assert successor.adopt("p1") is not None
        log = trackctl("log", **there).stdout
    assert "p1 is offered to other agents by lease 1 of session 1" in log
    assert "lease 1 released, which held p1: its tunnel is replaced" in log
