"""Rule 20: a lease that is offered keeps its proxy until another lease has replaced it."""

from __future__ import annotations

import pytest

from trackd.rules.tracker import Tracker
from trackd_client.proxy import Proxy

pytestmark = pytest.mark.rule(20)


class World:
    """A tracker with three desired proxies, each held by a lease, and its clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.tracker = Tracker("example.com", clock=lambda: self.now)
        self.tracker.track_expected([Proxy(name, ttl=3600.0) for name in ("p1", "p2", "p3")])
        self.lease_of = {name: self.hold(name) for name in ("p1", "p2", "p3")}

    def hold(self, name: str) -> int:
        adopted = self.tracker.adopt([name])
        assert adopted is not None
        return adopted[0]

    def offer(self, name: str) -> int:
        lease = self.lease_of[name]
        assert self.tracker.offer(lease)
        return lease

    def dial(self) -> int:
        lease = self.tracker.try_acquire()
        assert lease is not None
        return lease


@pytest.fixture
def world() -> World:
    return World()


def test_a_replacement_is_granted_while_the_offered_lease_holds_its_proxy(world: World) -> None:
    tracker = world.tracker
    assert tracker.try_acquire() is None
    old = world.offer("p1")
    assert tracker.holder("p1") == old
    assert tracker.claimed_desired_count == 3
    assert tracker.missing_count == 0, "its tunnel still carries traffic"
    world.dial()
    assert tracker.try_acquire() is None, "one replacement, and not more"


def test_a_claim_takes_over_an_offered_proxy_and_no_other_one(world: World) -> None:
    tracker = world.tracker
    old = world.offer("p1")
    lease = world.dial()
    assert tracker.claim(lease, ["p2.example.com"]) is None
    assert tracker.is_offered(old)
    assert tracker.claim(lease, ["p1.example.com"]) == "p1"
    assert tracker.holder("p1") == lease
    assert old not in tracker.leases
    assert not tracker.release(old), "it is gone, and its release frees nothing"
    assert tracker.holder("p1") == lease
    assert not tracker.is_offered(lease)
    assert (tracker.need, tracker.missing_count) == (False, 0)


def test_an_adoption_takes_over_an_offered_proxy(world: World) -> None:
    old = world.offer("p1")
    adopted = world.tracker.adopt(["p1"])
    assert adopted is not None
    assert world.tracker.holder("p1") == adopted[0] != old
    assert old not in world.tracker.leases


def test_a_proxy_is_claimed_exactly_when_a_claim_of_it_fails(world: World) -> None:
    world.offer("p1")
    assert not world.tracker.is_claimed(["p1"]), "or the replacement would hang up"
    assert world.tracker.is_claimed(["p2"])
    assert world.tracker.claim(world.dial(), ["p1"]) == "p1"
    assert world.tracker.is_claimed(["p1"])


def test_a_second_offer_changes_nothing_and_a_release_ends_it(world: World) -> None:
    old = world.offer("p1")
    world.offer("p1")
    assert world.tracker.offered_desired_count == 1
    world.tracker.release(old)
    assert world.tracker.offered_desired_count == 0
    assert world.hold("p1")
    assert not world.tracker.need


def test_only_a_lease_that_holds_a_proxy_can_be_offered(world: World) -> None:
    tracker = world.tracker
    tracker.release(world.lease_of["p1"])
    lease = world.dial()
    with pytest.raises(ValueError, match="has not claimed"):
        tracker.offer(lease)
    assert not tracker.offer(world.lease_of["p1"])
    assert not tracker.offer(99)


def test_a_claim_of_a_proxy_without_a_tunnel_replaces_the_offered_lease_as_well(
    world: World,
) -> None:
    tracker = world.tracker
    tracker.set_connection_count(2)
    tracker.release(world.lease_of["p3"])
    old = world.offer("p1")
    assert tracker.replaced == []
    assert tracker.claim(world.dial(), ["p3"]) == "p3"
    assert tracker.replaced == [old], "p2 and p3 are the two that are wanted"


def test_an_offered_lease_beyond_the_target_is_not_needed(world: World) -> None:
    tracker = world.tracker
    tracker.set_connection_count(2)
    assert tracker.replaced == []
    old = world.offer("p1")
    assert tracker.replaced == [old]


def test_without_a_target_an_offered_lease_is_kept(world: World) -> None:
    tracker = Tracker("example.com", clock=lambda: world.now)
    lease = tracker.try_acquire()
    assert lease is not None
    tracker.claim(lease, ["p1"])
    tracker.offer(lease)
    assert tracker.replaced == [], "no gossip has come so far"
    replacement = tracker.try_acquire()
    assert replacement is not None
    assert tracker.claim(replacement, ["p1"]) == "p1"


def test_nobody_takes_over_a_terminating_proxy(world: World) -> None:
    tracker = world.tracker
    old = world.offer("p1")
    tracker.track_expected([Proxy("p1", ttl=60.0, terminating=True)])
    lease = tracker.grant()
    assert tracker.is_claimed(["p1"])
    assert tracker.claim(lease, ["p1"]) is None
    assert tracker.replaced == [old], "the two others are the target now"
    tracker.track_expected([Proxy(name, ttl=60.0, terminating=True) for name in ("p2", "p3")])
    assert tracker.claim(lease, ["p1"]) == "p1", "where all of them go, the marks do not count"


def test_a_retired_and_offered_proxy_that_is_taken_over_is_not_retired_any_more() -> None:
    tracker = Tracker("example.com", clock=lambda: 1000.0)
    tracker.track_expected([Proxy("p1")])
    adopted = tracker.adopt(["p1"])
    assert adopted is not None
    tracker.retire(adopted[0])
    tracker.offer(adopted[0])
    assert tracker.claim(tracker.grant(), ["p1"]) == "p1"
    assert not tracker.is_marked("p1")


def test_an_offered_proxy_that_moves_or_expires_stays_offered(world: World) -> None:
    tracker = world.tracker
    old = world.offer("p1")
    tracker.track_expected([Proxy("p1", "g", 7, ttl=10.0)])
    assert (tracker.target, tracker.offered_desired_count) == (3, 1)
    tracker.track_expected([Proxy("p9", "g", 8, ttl=10.0)])
    assert tracker.offered_desired_count == 0, "it is of an old generation"
    world.now += 11.0
    tracker.sweep()
    assert tracker.is_offered(old)
    tracker.track_expected([Proxy("p1")])
    assert tracker.offered_desired_count == 1


def test_a_restart_brings_offers_back(world: World) -> None:
    world.offer("p1")
    before, tracker = world.tracker, Tracker("example.com", clock=lambda: world.now)
    leases = dict(before.leases)
    tracker.restore(proxies=before, leases=leases, last_lease=3, connection_count=0, offered=[1])
    assert tracker.is_offered(1)
    assert tracker.offered_desired_count == 1
    assert tracker.need
    with pytest.raises(ValueError, match="cannot be offered"):
        Tracker("c").restore(
            proxies=(), leases={1: None}, last_lease=1, connection_count=0, offered=[1]
        )
