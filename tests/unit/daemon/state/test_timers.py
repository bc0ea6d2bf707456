"""What time changes: silent sessions, leases that were not claimed, and when to look again."""

from __future__ import annotations

import pytest

from helpers.decisions import World, session_of
from trackd.operations.replies import grant_fields
from trackd.sessions.identity import Process
from trackd.sessions.sessions import EXPIRED_LEASES
from trackd.state import timers
from trackd.state.timers import SWEEP_INTERVAL


@pytest.fixture
def world() -> World:
    return World()


def test_a_session_that_nobody_can_watch_ends_when_it_falls_silent(world: World) -> None:
    session = world.open()
    seen = world.open(Process(10, 1))
    world.clock.now += 20
    world.decide.note_sign_of_life(session)
    world.clock.now += 30
    assert timers.sweep(world.decide) == [], "at exactly its deadline it still lives"
    world.clock.now += 0.1
    assert timers.sweep(world.decide) == [session]
    assert world.state.sessions.ended[session.token].reason == "no_heartbeat"
    world.clock.now += 1e6
    assert timers.sweep(world.decide) == [], "a process that is seen needs no signs of life"
    assert seen.token in world.state.sessions.by_token


def test_a_session_that_lives_by_heartbeats_gets_a_full_time_to_live_after_a_start(
    world: World,
) -> None:
    session = world.open()
    world.commit()
    world.clock.now += 1000
    world.restart()
    assert session_of(world.state, session).live.deadline == world.clock.now + 30.0


def test_a_lease_that_does_not_claim_in_time_is_taken_back_and_its_holder_is_told() -> None:
    world = World(claim_timeout=10.0)
    session, other = world.open(), world.open()
    world.track("p1", "p2")
    claims, dawdles = world.acquire(session), world.acquire(session)
    assert grant_fields(world.decide, dawdles)["claim_by"] == world.clock.now + 10
    world.decide.claim(session, claims, ["p1"])
    world.decide.park(other, 1, None, b"route")
    world.clock.now += 10
    timers.sweep(world.decide)
    assert dawdles in world.state.leases, "at exactly its time it still counts"
    world.clock.now += 0.1
    timers.sweep(world.decide)
    assert dawdles not in world.state.leases
    assert claims in world.state.leases
    assert session.expired == {dawdles}
    assert session.notices == [{"notice": "lease_expired", "lease": dawdles}]
    world.check()
    world.decide.serve_waiters()
    ((route, body),) = world.delivered
    assert (route, body["lease"]) == (b"route", 3)


def test_the_time_to_claim_runs_through_a_restart() -> None:
    world = World(claim_timeout=10.0)
    session = world.open()
    lease = world.acquire(session)
    world.clock.now += 6
    world.take_checkpoint()
    world.restart()
    assert timers.next_timer(world.decide) == world.clock.now + 4
    world.clock.now += 5
    timers.sweep(world.decide)
    assert session_of(world.state, session).expired == {lease}
    world.check()
    world.restart()
    assert session_of(world.state, session).expired == {lease}


def test_leases_expire_in_the_order_of_their_grants_after_a_restart_too() -> None:
    world = World(claim_timeout=10.0)
    session = world.open()
    world.track("p1", "p2", "p3")
    leases = []
    for _ in range(3):
        leases.append(world.acquire(session))
        world.clock.now += 2
    world.restart()
    expired = []
    for _ in range(12):
        world.clock.now += 1
        timers.sweep(world.decide)
        expired.append(len(session_of(world.state, session).expired))
    assert sorted(set(expired)) == [0, 1, 2, 3]


def test_a_holder_is_told_of_its_newest_expired_leases_however_many_there_were() -> None:
    world = World(claim_timeout=1.0)
    session = world.open(Process(10, 1))
    leases = []
    for _ in range(EXPIRED_LEASES + 5):
        leases.append(world.acquire(session))
        world.clock.now += 1.5
        timers.sweep(world.decide)
    assert session.expired == set(leases[-EXPIRED_LEASES:])
    assert session_of(world.reloaded(), session).expired == session.expired


@pytest.mark.rule(14)
def test_an_adopted_lease_never_expires() -> None:
    world = World(claim_timeout=1.0)
    session = world.open(Process(10, 1))
    assert world.decide.adopt(session, ["p1"]) == (1, "p1")
    world.clock.now += 100
    timers.sweep(world.decide)
    assert list(world.state.leases) == [1]
    world.check()


def test_whoever_waited_long_enough_is_answered_with_nothing_and_that_is_remembered(
    world: World,
) -> None:
    session = world.open(Process(10, 1))
    world.acquire(session)
    world.decide.park(session, 4, world.clock.now + 5, b"route")
    world.clock.now += 5
    timers.sweep(world.decide)
    ((route, body),) = world.delivered
    assert (route, body["seq"], body["lease"]) == (b"route", 4, None)
    assert not world.state.queue
    assert 4 in session.replies
    world.check()


def test_the_next_timer_is_the_first_thing_that_time_brings() -> None:
    world = World(claim_timeout=50.0)
    assert timers.next_timer(world.decide) is None
    session = world.open(Process(10, 1))
    assert timers.next_timer(world.decide) is None, "nothing to do, so nobody is woken"
    world.track("p1", ttl=100.0)
    assert timers.next_timer(world.decide) == world.clock.now + 100
    world.acquire(session)
    assert timers.next_timer(world.decide) == world.clock.now + 50
    world.open()
    assert timers.next_timer(world.decide) == world.clock.now + 30
    world.decide.park(session, 1, world.clock.now + 3, b"route")
    assert timers.next_timer(world.decide) == world.clock.now + 3


def test_sweeps_are_a_second_apart_unless_somebody_waits() -> None:
    world = World()
    session = world.open(Process(10, 1))
    world.track("p1", ttl=0.1)
    world.track("p2", ttl=0.2)
    timers.sweep(world.decide)
    assert timers.next_timer(world.decide) == world.clock.now + SWEEP_INTERVAL
    world.acquire(session)
    world.decide.park(session, 1, None, b"route")
    assert timers.next_timer(world.decide) == world.clock.now + 0.1
