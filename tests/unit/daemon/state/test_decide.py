"""What is decided, and what a restart makes of it.

State, decisions and store are the real ones; the clock stands still until a test moves it. After
every change a restart must find the same, from the journal and from a checkpoint.
"""

from __future__ import annotations

import pytest

from helpers.decisions import World, session_of
from trackd.sessions import sessions as sessions_module
from trackd.sessions.identity import Peer, Process
from trackd.sessions.sessions import ParkedWatch, Session
from trackd.state import exactly_once, forgetting, gossip, timers
from trackd_client.wire.protocol import decode_reply

LARGEST = 2**64 - 1


@pytest.fixture
def world() -> World:
    return World()


# -- every change survives a restart -----------------------------------------------------


def test_everything_survives_a_restart_after_every_single_change(world: World) -> None:
    state = world.state
    first = world.open(Process(10, 1))
    world.check()
    second = world.open()
    world.check()
    world.track("p1", "p2", generation=LARGEST)
    world.check()
    lease = world.acquire(first)
    world.check()
    exactly_once.remember(world.decide, first, 3, b"granted", stored=True, lease=lease)
    world.check()
    assert world.decide.claim(first, lease, ["p1"]) == ("p1", None)
    world.check()
    assert world.decide.adopt(second, ["p2"]) == (2, "p2")
    world.check()
    world.decide.set_count(1)
    world.check()
    world.decide.park(second, 5, None, b"route")
    world.check()
    world.decide.park(first, 6, world.clock.now + 9, b"route")
    world.check()
    assert world.decide.release(first, lease)
    world.check()
    world.decide.serve_waiters()
    world.check()
    assert exactly_once.give_up(world.decide, second, 5)
    world.check()
    exactly_once.acknowledge(world.decide, first, [1, 6])
    world.check()
    world.decide.end_session(second, "admin")
    world.check()
    world.clock.now += 1000
    timers.sweep(world.decide)
    world.check()
    assert state.tracker.tracked_count == 0


@pytest.mark.rule(11)
def test_generations_of_64_bits_survive_a_restart(world: World) -> None:
    world.track("p1", generation=LARGEST)
    for store in (world.commit, world.take_checkpoint):
        store()
        found = world.reloaded().tracker.get("p1")
        assert found is not None
        assert found.generation == LARGEST


@pytest.mark.rule(6)
def test_lease_ids_go_on_counting_also_when_all_leases_are_gone(world: World) -> None:
    session = world.open()
    for _ in range(3):
        world.decide.release(session, world.acquire(session))
    world.take_checkpoint()
    world.restart()
    assert world.acquire(session_of(world.state, session)) == 4


def test_session_numbers_go_on_counting_also_when_all_sessions_are_gone(world: World) -> None:
    for _ in range(3):
        world.decide.end_session(world.open(), "closed")
    world.take_checkpoint()
    world.restart()
    assert world.open().id == 4


def test_the_epoch_counts_starts_and_the_tracker_id_names_the_state(world: World) -> None:
    assert (world.state.epoch, world.state.tracker_id) == (1, "tracker")
    world.restart()
    assert (world.state.epoch, world.state.tracker_id) == (2, "tracker")
    world.take_checkpoint()
    world.restart()
    assert (world.state.epoch, world.state.tracker_id) == (3, "tracker")


def test_the_revision_goes_on_and_never_back(world: World) -> None:
    world.open()
    world.track("p1")
    revision = world.state.revision
    assert revision == 3  # the start was the first change
    world.restart()
    assert world.state.revision == revision + 1
    world.track("p2")
    assert world.state.revision == revision + 2


# -- the revision ------------------------------------------------------------------------


def test_every_mutation_raises_the_revision_and_nothing_else_does(world: World) -> None:
    state = world.state
    seen = [state.revision]

    def raised() -> bool:
        seen.append(state.revision)
        return seen[-1] > seen[-2]

    session = world.open(Process(10, 1))
    assert raised()
    world.track("p1")
    assert raised()
    world.track("p1")
    assert not raised(), "it moved an expiry, no more"
    world.track()
    assert not raised()
    lease = world.acquire(session)
    assert raised()
    assert world.decide.try_acquire(session) is None
    assert not raised()
    assert world.decide.claim(session, lease, []) == (None, "no_name")
    assert not raised()
    assert world.decide.claim(session, lease, ["p1"]) == ("p1", None)
    assert raised()
    assert world.decide.claim(session, lease, ["p1"]) == ("p1", "has_claimed")
    assert not raised()
    assert world.decide.adopt(session, ["p1"]) == (None, "p1")
    assert not raised()
    world.decide.set_count(state.tracker.connection_count)
    assert not raised()
    world.decide.set_count(7)
    assert raised()
    assert not world.decide.release(session, 99)
    assert not raised()
    assert world.decide.release(session, lease)
    assert raised()
    timers.sweep(world.decide)
    assert not raised()
    world.clock.now += 1000
    timers.sweep(world.decide)
    assert raised()
    world.decide.end_session(session, "closed")
    assert raised()


def test_what_only_a_purge_has_changed_is_stored_too(world: World) -> None:
    session = world.open()
    world.track("p1", ttl=1.0)
    world.commit()
    world.clock.now += 2
    world.acquire(session)  # a purge opens it
    revision = world.state.revision
    assert world.reloaded().revision == revision


# -- the store keeps nothing forever ----------------------------------------------------


def test_a_proxy_that_expired_leaves_the_checkpoint(world: World) -> None:
    world.track("swept", ttl=1.0)
    world.take_checkpoint()
    assert "swept" in world.tracked_in_checkpoint()
    world.clock.now += 2
    timers.sweep(world.decide)
    world.take_checkpoint()
    assert "swept" not in world.tracked_in_checkpoint()


def test_a_proxy_that_a_grant_purged_leaves_the_checkpoint(world: World) -> None:
    session = world.open()
    world.track("purged", ttl=1.0)
    world.take_checkpoint()
    world.clock.now += 2
    world.acquire(session)
    world.take_checkpoint()
    assert "purged" not in world.tracked_in_checkpoint()


def test_a_proxy_that_expired_while_no_daemon_ran_leaves_the_checkpoint(world: World) -> None:
    world.track("p1", ttl=1.0)
    world.take_checkpoint()
    world.clock.now += 2
    world.restart()
    timers.sweep(world.decide)
    world.take_checkpoint()
    assert "p1" not in world.tracked_in_checkpoint()


def test_ended_sessions_leave_the_checkpoint_after_ten_minutes(world: World) -> None:
    session = world.open()
    world.decide.end_session(session, "closed")
    world.take_checkpoint()
    assert ("ended", session.token) in world.checkpoint
    world.clock.now += 601
    timers.sweep(world.decide)
    world.take_checkpoint()
    assert not [key for key in world.checkpoint if key[0] in ("ended", "session")]


def test_ended_sessions_are_bounded_also_when_nothing_ever_calls_for_a_sweep(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions_module, "ENDED_TOKENS", 5)
    sessions = [world.open() for _ in range(9)]
    for session in sessions:
        world.decide.end_session(session, "closed")
    assert list(world.state.sessions.ended) == [session.token for session in sessions[-5:]]
    world.take_checkpoint()
    assert len([key for key in world.checkpoint if key[0] == "ended"]) == 5


def test_ended_sessions_are_forgotten_in_their_order_after_a_restart_too(world: World) -> None:
    late, early = world.open(), world.open()  # the tokens are in the other order
    world.decide.end_session(early, "closed")
    world.clock.now += 500
    world.decide.end_session(late, "closed")
    world.take_checkpoint()
    world.restart()
    world.clock.now += 200
    timers.sweep(world.decide)
    assert list(world.state.sessions.ended) == [late.token]


# -- the connection count ----------------------------------------------------------------


def test_a_count_that_was_set_survives_a_restart(world: World) -> None:
    world.decide.set_count(3)
    world.restart()
    assert world.state.tracker.connection_count == 3
    world.restart()
    assert world.state.tracker.connection_count == 3


def test_a_configured_count_that_changed_wins_over_the_one_that_was_set(world: World) -> None:
    world.decide.set_count(3)
    world.restart(connection_count=5)
    assert world.state.tracker.connection_count == 5
    world.restart(connection_count=5)
    assert world.state.tracker.connection_count == 5
    world.decide.set_count(2)
    world.take_checkpoint()
    world.restart(connection_count=5)
    assert world.state.tracker.connection_count == 2
    world.restart(connection_count=0)
    assert world.state.tracker.connection_count == 0


# -- sessions ----------------------------------------------------------------------------


def test_ending_a_session_frees_all_that_it_holds_in_one_batch(world: World) -> None:
    session, other = world.open(), world.open()
    world.track("p1", "p2", "p3")
    claimed, in_flight = world.acquire(session), world.acquire(session)
    kept = world.acquire(other)
    world.decide.claim(session, claimed, ["p1"])
    world.decide.park(session, 9, None, b"route")
    revision = world.state.revision
    assert world.decide.end_session(session, "closed") == [claimed, in_flight]
    assert world.state.revision == revision + 3  # two leases, and the session
    assert not world.state.tracker.is_claimed(["p1"])
    assert list(world.state.leases) == [kept]
    assert not world.state.queue
    assert session.ended
    world.check()


# -- waiting -----------------------------------------------------------------------------


@pytest.mark.rule(13)
def test_waiters_keep_their_order_over_a_restart_and_a_checkpoint(world: World) -> None:
    sessions = [world.open() for _ in range(4)]
    world.acquire(sessions[0])
    for number in (2, 0, 3, 1):
        world.decide.park(sessions[number], number + 1, None, b"route")
    world.take_checkpoint()
    world.decide.park(sessions[0], 9, None, b"route")
    world.restart()
    waiting = [waiter.seq for waiter in world.state.queue]
    assert waiting == [3, 1, 4, 2, 9]
    world.decide.park(session_of(world.state, sessions[2]), 10, None, b"route")
    world.restart()
    assert [waiter.seq for waiter in world.state.queue] == [*waiting, 10]


def test_a_waiter_that_was_served_while_its_client_was_away_finds_its_grant(world: World) -> None:
    session, holder = world.open(), world.open()
    lease = world.acquire(holder)
    world.decide.park(session, 7, None, b"route")
    world.restart()
    world.decide.release(session_of(world.state, holder), lease)
    world.decide.serve_waiters()
    again = session_of(world.state, session)
    assert world.delivered == []  # nobody knows its connection
    reply = decode_reply(again.replies[7].frame)
    assert reply is not None
    assert reply.body["lease"] == 2
    world.check()


@pytest.mark.rule(13)
def test_everyone_there_is_room_for_is_served_at_once_in_the_order_of_arrival(
    world: World,
) -> None:
    holder, *sessions = (world.open() for _ in range(5))
    world.acquire(holder)
    for number in (2, 0, 3, 1):
        world.decide.park(sessions[number], 1, None, b"session %d" % number)
    world.track("p1", "p2", "p3", "p4")
    world.decide.serve_waiters()
    assert [(route, body["lease"]) for route, body in world.delivered] == [
        (b"session 2", 2),
        (b"session 0", 3),
        (b"session 3", 4),
    ]
    assert len(world.state.queue) == 1


@pytest.mark.rule(13)
def test_nobody_jumps_the_queue(world: World) -> None:
    first, second = world.open(), world.open()
    lease = world.acquire(first)
    world.decide.park(first, 1, None, b"first")
    world.decide.release(first, lease)
    assert world.decide.try_acquire(second) is None
    assert [(route, body["lease"]) for route, body in world.delivered] == [(b"first", 2)]


# -- notices -----------------------------------------------------------------------------


def test_the_end_of_a_session_is_told_to_whoever_watches_it(world: World) -> None:
    session = world.open()
    world.decide.watch(session, ParkedWatch(8, b"route"))
    world.decide.end_session(session, "process_exited")
    ((route, body),) = world.delivered
    assert (route, body["seq"], body["error"]) == (b"route", 8, "session_ended")
    assert body["reason"] == "process_exited"


def test_leases_that_expired_before_a_restart_are_told_after_it() -> None:
    world = World(claim_timeout=1.0)
    session = world.open()
    lease = world.acquire(session)
    world.clock.now += 2
    timers.sweep(world.decide)
    world.restart()
    again = session_of(world.state, session)
    world.decide.watch(again, ParkedWatch(8, b"route"))
    ((_, body),) = world.delivered
    assert body["notices"] == [{"notice": "lease_expired", "lease": lease}]


# -- what a restart must keep --------------------------------------------------------------


@pytest.mark.parametrize("checkpoint", [True, False])
@pytest.mark.parametrize("ttl", [3600.0, 20.0, None])
def test_a_proxy_forgotten_after_a_restart_stays_away_for_its_own_ttl(
    world: World, ttl: float | None, checkpoint: bool
) -> None:
    world.track("p1", ttl=ttl)
    world.clock.now += 1
    gossip.mention(world.decide, world.gossip, [("p1", "", 1, ttl)])
    if checkpoint:
        world.take_checkpoint()
    world.restart()
    tombstone = forgetting.forget_proxy(world.decide, "p1", Peer(0, 0, 1))
    assert tombstone is not None
    assert tombstone.until == world.clock.now + (ttl or 180.0)
    world.check()


def test_a_connection_count_that_the_configuration_has_changed_is_an_event(world: World) -> None:
    world.decide.set_count(3)
    world.take_checkpoint()
    before = world.state.revision
    world.restart(connection_count=5)
    world.commit()
    events = world.state.history.after(before, 100)
    assert [(event[0], event[3]) for event in events] == [
        (before + 1, "daemon_started"),
        (before + 2, "connection_count"),
    ]
    assert events[1][4] == {"count": 5, "before": 3}
    world.restart(connection_count=5)
    world.commit()
    last = world.state.history.after(before + 2, 100)
    assert [event[3] for event in last] == ["daemon_started"]


@pytest.mark.parametrize("checkpoint", [True, False])
def test_a_notice_survives_a_restart_until_its_reply_is_done(
    world: World, checkpoint: bool
) -> None:
    def restart() -> Session:
        if checkpoint:
            world.take_checkpoint()
        world.restart()
        return session_of(world.state, session)

    session = world.open(Process(10, 1))
    lease = world.acquire(session)
    world.decide.force_release(lease, Peer(0, 0, 1))
    notice = {"notice": "lease_revoked", "lease": lease}
    again = restart()
    assert list(again.notices) == [notice]
    world.check()
    world.decide.watch(again, ParkedWatch(8, b"route"))
    ((_, body),) = world.delivered
    assert body["notices"] == [notice]
    again = restart()
    assert not again.notices
    reply = decode_reply(again.replies[8].frame)
    assert reply is not None
    assert reply.body["notices"] == [notice], "a reply that got lost can be fetched once more"
    exactly_once.acknowledge(world.decide, again, [8, 8])
    world.decide.watch(again, ParkedWatch(9, b"route"))
    again = restart()
    assert not again.notices
    world.check()


def test_notices_wait_while_that_they_were_sent_cannot_be_stored(world: World) -> None:
    session = world.open()
    lease = world.acquire(session)
    world.decide.force_release(lease, Peer(0, 0, 1))
    world.commit()
    world.decide.watch(session, ParkedWatch(8, b"route"))
    world.replies.settle(stores=False)
    assert not world.sent
    assert not world.decide.batch
    assert [body["notices"] for _, body in world.delivered] == [
        [{"notice": "lease_revoked", "lease": lease}]
    ]
    world.check()


@pytest.mark.rule(13)
@pytest.mark.parametrize("checkpoint", [True, False])
def test_a_restart_keeps_whose_turn_it_is(world: World, checkpoint: bool) -> None:
    many, one = world.open(Process(10, 1)), world.open(Process(11, 1))
    world.track("p1")
    lease = world.acquire(many)
    for seq in (11, 12, 13):
        world.decide.park(many, seq, None, b"many")
    world.decide.park(one, 11, None, b"one")
    served = []
    for _ in range(4):
        if checkpoint:
            world.take_checkpoint()
        world.restart()
        assert world.decide.release(world.state.leases[lease].session, lease)
        (lease,) = served_by(world)
        served.append(world.state.leases[lease].session.id)
        world.check()
    assert served == [many.id, one.id, many.id, many.id]
    assert world.reloaded().queue.last_served == 3


def served_by(world: World) -> list[int]:
    before = set(world.state.leases)
    world.decide.serve_waiters()
    return sorted(world.state.leases.keys() - before)


def test_live_settings_hold_from_now_on_and_what_they_change_survives_a_restart() -> None:
    world = World()
    session = world.open()
    world.track("p1", "p2", "p3", "p4")
    world.decide.reconfigure(world.config(dial_rate=1.0, dial_burst=2))
    world.acquire(session)
    world.acquire(session)
    assert world.decide.try_acquire(session) is None
    assert world.decide.budget_wait() == 1.0
    assert world.decide.retry_after() == 1.0
    world.decide.park(session, 9, None, b"route")
    assert world.decide.retry_after() == 2.0, "one waits before"
    world.check()
    world.decide.reconfigure(
        world.config(
            dial_rate=4.0, dial_burst=3, connection_count=3, tunnel_timeout=20.0, proxy_expiry=7.0
        )
    )
    state = world.state
    assert (state.tracker.connection_count, state.configured_count) == (3, 3)
    assert state.budget.level() == (0.0, world.clock.now)
    assert (state.budget.rate, state.budget.burst) == (4.0, 3)
    assert (state.lives.timeout, state.tracker.proxy_expiry) == (20.0, 7.0)
    assert world.decide.budget_wait() == 0.25
    world.clock.now += 0.25
    assert world.decide.budget_wait() is None
    world.track("p1")
    assert state.tracker.next_expiry == world.clock.now + 7.0
