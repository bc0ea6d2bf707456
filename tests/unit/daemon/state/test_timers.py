"""What time changes: silent sessions, leases that were not claimed, and when to look again."""

from __future__ import annotations

import pytest

from helpers.decisions import World, session_of
from trackd.operations.replies import grant_fields
from trackd.rules.flips import FLIP_INTERVAL
from trackd.rules.marks import RETIRE_HOLD
from trackd.rules.targets import FIRST_HOLD
from trackd.sessions.identity import Peer, Process
from trackd.sessions.sessions import EXPIRED_LEASES, ParkedWatch
from trackd.state import forgetting, gossip, timers


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
    assert timers.next_timer(world.decide) == world.clock.now + 1
    world.acquire(session)
    world.decide.park(session, 1, None, b"route")
    assert timers.next_timer(world.decide) == world.clock.now + 0.1


# -- a sweep that comes too late: what agents have sent may lie in the socket ----------------


@pytest.mark.parametrize(("late", "more"), [(0.5, 1.0), (10.0, 10.0), (1000.0, 30.0)])
def test_a_late_sweep_gives_a_silent_session_the_lost_time_once(
    world: World, late: float, more: float
) -> None:
    session = world.open()
    world.clock.now += 30.1
    assert timers.sweep(world.decide, late) == []
    assert timers.next_timer(world.decide) == world.clock.now + more
    world.clock.now += more
    assert timers.sweep(world.decide, late) == []
    world.clock.now += 0.1
    assert timers.sweep(world.decide, late) == [session], "a busy host must not put it off for ever"


def test_a_sign_of_life_earns_a_silent_session_more_time_again(world: World) -> None:
    session = world.open()
    for _ in range(2):
        world.clock.now += 30.1
        assert timers.sweep(world.decide, 0.5) == []
        world.decide.note_sign_of_life(session)
    world.clock.now += 30.1
    assert timers.sweep(world.decide) == [session]


@pytest.mark.rule(17)
def test_a_dial_that_claims_nothing_in_time_has_failed_where_outcomes_are_reported() -> None:
    world = World(claim_timeout=10.0)
    session = world.open(Process(10, 1))
    world.track("p1", "p2")
    world.acquire(session)
    world.clock.now += 10.1
    timers.sweep(world.decide)
    assert world.decide.pauses.resume(None) == 0, "it may be an agent that reports nothing"
    lease = world.acquire(session)
    world.decide.report(session, lease, "refused", None)
    assert world.decide.pauses.resume(None) == 1
    world.clock.now += 10.1
    timers.sweep(world.decide)
    assert world.state.backoff.pause is not None
    assert world.state.backoff.pause.reason == "timeout"


@pytest.mark.rule(16)
def test_a_dial_that_claims_nothing_in_time_has_missed_its_target() -> None:
    world = World(claim_timeout=10.0)
    session = world.open(Process(10, 1))
    gossip.track(world.decide, session, [("p1", "", 1, None)], {}, {"p1": "a:1"})
    world.acquire(session)
    world.clock.now += 10.1
    timers.sweep(world.decide)
    assert world.metrics.aims["missed"] == 1
    assert world.state.tracker.targets.by_name["p1"].failures == 1


def test_a_late_sweep_gives_a_lease_the_whole_time_to_claim_once() -> None:
    world = World(claim_timeout=10.0)
    session = world.open(Process(10, 1))
    world.track("p1", "p2")
    first = world.acquire(session)
    world.clock.now += 5
    second = world.acquire(session)
    world.clock.now += 5.1
    timers.sweep(world.decide, 0.5)
    assert timers.next_timer(world.decide) == world.clock.now + 4.9, "the second one is due next"
    world.clock.now += 10
    timers.sweep(world.decide, 0.5)
    assert list(world.state.leases) == [first, second], "each had its time prolonged"
    world.clock.now += 0.1
    timers.sweep(world.decide, 0.5)
    assert list(world.state.leases) == [second]


def test_without_a_time_to_claim_a_lease_is_never_taken_back() -> None:
    world = World(claim_timeout=0.0)
    lease = world.acquire(world.open(Process(10, 1)))
    world.clock.now += 1e6
    timers.sweep(world.decide)
    assert list(world.state.leases) == [lease]
    assert timers.next_timer(world.decide) is None


def test_who_could_not_be_heard_gets_the_whole_time_again() -> None:
    world = World(claim_timeout=10.0, tunnel_timeout=40.0)
    session, seen = world.open(), world.open(Process(10, 1))
    lease = world.acquire(seen)
    _, name = world.decide.adopt(seen, ["p1"])
    assert name == "p1"
    world.state.lives.begin(2)
    world.clock.now += 1000
    timers.restart_timers(world.decide)
    assert session.live.deadline == world.clock.now + 30
    assert world.decide.claim_by(lease) == world.clock.now + 10
    assert world.state.lives.next() == world.clock.now + 40
    assert timers.sweep(world.decide) == []
    assert list(world.state.leases) == [lease, 2]


@pytest.mark.rule(18)
@pytest.mark.parametrize("late", [0.0, 0.5])
def test_a_lease_that_stops_to_report_is_stale_and_a_late_sweep_gives_it_a_second(
    late: float,
) -> None:
    world = World(tunnel_timeout=40.0)
    session = world.open(Process(10, 1))
    world.decide.adopt(session, ["p1"])
    world.state.lives.begin(1)
    world.state.lives.restart(world.clock.now)
    assert timers.next_timer(world.decide) == world.clock.now + 40
    world.clock.now += 40.1
    timers.sweep(world.decide, late)
    assert world.state.lives.stale == (0 if late else 1)
    world.clock.now += 1.1
    timers.sweep(world.decide, late)
    assert world.state.lives.stale == 1


# -- what else time brings ----------------------------------------------------------------


def test_an_ended_session_is_forgotten_after_ten_minutes(world: World) -> None:
    session = world.open()
    world.decide.end_session(session, "closed")
    world.clock.now += 600
    timers.sweep(world.decide)
    assert list(world.state.sessions.ended) == [session.token], "at exactly that time it is known"
    world.clock.now += 0.1
    timers.sweep(world.decide)
    assert not world.state.sessions.ended
    world.check()


def test_who_has_a_connection_too_many_is_advised_to_close_it() -> None:
    world = World(disconnect_threshold=5.0, claim_timeout=0.0)
    session = world.open(Process(10, 1))
    world.track("p1", "p2", ttl=1000.0)
    for name in ("p1", "p2"):
        world.decide.adopt(session, [name])
    world.decide.set_count(1)
    world.decide.watch(session, ParkedWatch(1, b"route"))
    assert timers.next_timer(world.decide) == world.clock.now + 5
    world.clock.now += 5.1
    timers.sweep(world.decide)
    (notice,) = world.decide.fetch(session)
    assert notice["notice"] == "should_close"
    assert notice["lease"] in world.state.leases


@pytest.mark.parametrize("what", ["proxy", "group"])
def test_a_tombstone_is_dropped_once_old_gossip_has_run_out(world: World, what: str) -> None:
    gossip.track(world.decide, world.gossip, [("p1", "g", 1, 10.0)])
    if what == "proxy":
        assert forgetting.forget_proxy(world.decide, "p1", Peer(0, 0, 0)) is not None
    else:
        assert forgetting.forget_group(world.decide, "g", None, Peer(0, 0, 0)) is not None
    world.clock.now += 10
    timers.sweep(world.decide)
    assert world.state.tombstones, "at exactly that time it still counts"
    world.clock.now += 0.1
    timers.sweep(world.decide)
    assert not world.state.tombstones
    world.check()


def test_a_sweep_without_anything_due_changes_nothing(world: World) -> None:
    session = world.open(Process(10, 1))
    world.track("p1", ttl=100.0)
    world.acquire(session)
    made = world.decide.made
    timers.sweep(world.decide)
    assert world.decide.made == made


def say(world: World, name: str, *, terminating: bool, ttl: float | None = None) -> None:
    gossip.track(world.decide, world.gossip, [(name, "", 1, ttl)], {name: terminating})


def test_the_end_of_a_mark_is_looked_for_unless_a_proxy_expires_before(world: World) -> None:
    say(world, "p1", terminating=True, ttl=30.0)
    world.track("p1", ttl=500.0)
    assert timers.next_timer(world.decide) == world.clock.now + 30
    world.track("p2", ttl=20.0)
    assert timers.next_timer(world.decide) == world.clock.now + 20
    world.clock.now += 30.1
    timers.sweep(world.decide)
    assert not world.state.tracker.is_marked("p1")
    assert timers.next_timer(world.decide) == world.clock.now + 469.9


def test_a_mark_of_a_name_that_nobody_tracks_ends_in_time_too(world: World) -> None:
    session = world.open(Process(10, 1))
    lease, _ = world.decide.adopt(session, ["p1"])
    assert lease is not None
    assert world.decide.retire(session, lease)
    assert timers.next_timer(world.decide) is None, "as long as the lease has it"
    world.decide.release(session, lease)
    assert timers.next_timer(world.decide) == world.clock.now + RETIRE_HOLD


def test_a_word_that_waits_counts_in_time(world: World) -> None:
    world.track("p1", ttl=100.0)
    say(world, "p1", terminating=True, ttl=100.0)
    say(world, "p1", terminating=False, ttl=100.0)
    assert timers.next_timer(world.decide) == world.clock.now + FLIP_INTERVAL
    world.clock.now += FLIP_INTERVAL
    timers.sweep(world.decide)
    assert not world.state.tracker.is_marked("p1")
    assert timers.next_timer(world.decide) == world.clock.now + 100 - FLIP_INTERVAL


def test_an_address_that_failed_is_aimed_at_again_in_time(world: World) -> None:
    session = world.open(Process(10, 1), uid=0)
    world.gossip = session
    gossip.track(world.decide, session, [("p1", "", 1, 1000.0)], {}, {"p1": "a:1"})
    lease = world.acquire(session)
    world.decide.report(session, lease, "held", None)
    assert world.state.tracker.targets.ends
    world.decide.release(session, lease)
    assert timers.next_timer(world.decide) == world.clock.now + FIRST_HOLD
    world.clock.now += FIRST_HOLD + 0.1
    timers.sweep(world.decide)
    assert timers.next_timer(world.decide) == world.clock.now + 1000 - FIRST_HOLD - 0.1


def test_a_time_to_claim_of_a_second_is_kept() -> None:
    world = World(claim_timeout=1.0)
    session = world.open(Process(10, 1))
    world.acquire(session)
    assert timers.next_timer(world.decide) == world.clock.now + 1
    world.clock.now += 1.1
    timers.sweep(world.decide)
    assert not world.state.leases


@pytest.mark.rule(11)
def test_who_waits_for_the_budget_is_served_when_it_allows_one_more() -> None:
    world = World(claim_timeout=0.0)
    world.state.budget.change(0.5, 1, world.clock.now)
    session = world.open(Process(10, 1))
    world.track("p1", "p2", ttl=1000.0)
    world.acquire(session)
    assert timers.next_timer(world.decide) == world.clock.now + 1000, "nobody waits"
    world.decide.park(session, 2, None, b"route")
    assert timers.next_timer(world.decide) == world.clock.now + 2


@pytest.mark.rule(17)
@pytest.mark.parametrize("reason", ["refused", "auth"])
def test_who_waits_through_a_pause_is_served_at_its_end(reason: str) -> None:
    world = World(claim_timeout=0.0)
    session = world.open(Process(10, 1))
    lease = world.acquire(session)
    world.decide.report(session, lease, reason, 100.0)
    world.decide.release(session, lease)
    world.decide.park(session, 2, None, b"route")
    world.decide.serve_waiters()
    until = world.decide.pauses.held_until(session, world.clock.now)
    assert until is not None
    assert timers.next_timer(world.decide) == until
    world.clock.now = until + 0.1
    timers.sweep(world.decide)
    world.decide.serve_waiters()
    assert len(world.delivered) == 1
