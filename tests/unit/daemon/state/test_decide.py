"""What is decided, and what a restart makes of it.

State, decisions and store are the real ones; the clock stands still until a test moves it. After
every change a restart must find the same, from the journal and from a checkpoint.
"""

from __future__ import annotations

import pytest

from helpers.decisions import World, session_of
from trackd.rules.backoff import PROVEN_SECONDS
from trackd.sessions import sessions as sessions_module
from trackd.sessions.identity import Peer, Process
from trackd.sessions.sessions import ParkedWatch, Session
from trackd.state import exactly_once, forgetting, gossip, timers
from trackd.state.changes import Expired, Granted, Notified, Renamed, Tracked
from trackd.state.decide import peer_of
from trackd.state.sources import Source
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


# -- what is counted, and for how long ------------------------------------------------------


def test_each_change_counts_once_and_is_in_the_batch_of_its_moment(world: World) -> None:
    made = world.decide.made
    world.open()
    world.open()
    assert world.decide.made == made + 2
    moments = world.decide.take()
    assert sum(len(moment.changes) for moment in moments) == world.decide.made
    assert world.decide.take() == []


def test_replies_speak_of_the_last_event_that_is_or_will_be_stored(world: World) -> None:
    assert world.decide.revision == world.state.revision
    world.track("p1")
    assert world.decide.revision == world.state.revision == 2
    world.decide.ahead = 1
    assert world.decide.revision == 1


def test_a_session_that_fetches_nothing_gets_1024_notices_of_each_kind(world: World) -> None:
    session = world.open()
    for lease in range(1030):
        world.decide.notify(session, {"notice": "lease_revoked", "lease": lease})
        world.decide.advise(session, {"notice": "should_close", "lease": lease})
    notices = world.decide.fetch(session)
    assert [each["lease"] for each in notices] == [*range(1024), *range(1024)]
    assert world.decide.fetch(session) == []


@pytest.mark.rule(12)
def test_a_purge_of_many_is_a_change_for_each_thousand(world: World) -> None:
    world.track(*(f"p{i}" for i in range(2500)), ttl=1.0)
    world.decide.take()
    world.clock.now += 2
    world.decide.purge()
    (moment,) = world.decide.take()
    assert [len(each.rows) for each in moment.changes if isinstance(each, Expired)] == [
        1000,
        1000,
        500,
    ]
    assert world.state.tracker.tracked_count == 0


@pytest.mark.rule(10)
def test_the_last_256_claims_are_known_with_the_share_that_was_missing(world: World) -> None:
    session = world.open()
    world.track("p1", "p2")
    lease = world.acquire(session)
    world.decide.claim(session, lease, ["p1"])
    other = world.acquire(session)
    world.decide.claim(session, other, ["p1"])
    assert world.decide.adopt(session, ["p1"]) == (None, "p1")
    now = world.clock.now
    assert list(world.decide.recent) == [
        (now, "p1", False, 1.0),
        (now, "p1", True, 0.5),
        (now, "p1", True, 0.0),
    ]
    assert world.metrics.duplicates == 2
    for _ in range(300):
        world.decide.claim(session, other, ["p1"])
    assert len(world.decide.recent) == 256


def test_who_has_gossiped_is_remembered_after_its_end_and_nobody_else(world: World) -> None:
    world.decide.began = world.clock.now
    silent, speaker = world.open(), world.open()
    gossip.track(world.decide, speaker, [("p1", "", 1, None)])
    world.decide.end_session(silent, "closed")
    world.decide.end_session(speaker, "closed")
    assert world.state.sources.get(silent.id) is None
    assert world.state.sources.get(speaker.id) == Source(1000, 0, "name")
    world.check()


def test_who_may_have_gossiped_before_the_start_is_remembered_too(world: World) -> None:
    session = world.open()
    world.clock.now += 1
    world.decide.began = world.clock.now
    world.decide.end_session(session, "closed")
    assert world.state.sources.get(session.id) == Source(1000, 0, "name")


# -- refusals ------------------------------------------------------------------------------


@pytest.mark.rule(13)
def test_a_refusal_says_that_somebody_waits_for_longer(world: World) -> None:
    first, second = world.open(), world.open()
    world.acquire(first)
    assert world.decide.refusal(second) == "satisfied"
    world.decide.park(first, 1, None, b"first")
    assert world.decide.has_turn
    assert world.decide.try_acquire(second) is None
    assert world.decide.refusal(second) == "waiters"
    assert world.decide.retry_after(second) is None, "no moment is known at which there is room"


@pytest.mark.rule(17)
def test_whose_own_dials_pause_does_not_hold_up_the_others(world: World) -> None:
    paused, other = world.open(), world.open()
    lease = world.acquire(paused)
    world.decide.report(paused, lease, "auth", 10.0)
    world.decide.release(paused, lease)
    assert world.decide.refusal(paused) == "backoff"
    wait = world.decide.retry_after(paused)
    assert wait is not None
    assert wait >= 10.0
    assert world.decide.retry_after(other) is None
    world.decide.park(paused, 1, None, b"paused")
    world.decide.serve_waiters()
    assert len(world.state.queue) == 1
    assert not world.decide.has_turn, "nobody waits whose turn it may be"
    assert world.decide.try_acquire(other) == 2
    assert world.decide.refusal(other) == "satisfied"
    world.decide.park(other, 1, None, b"other")
    assert world.decide.refusal(other) == "waiters"


@pytest.mark.rule(17)
def test_a_claim_that_lives_ends_the_pause_of_its_session_alone(world: World) -> None:
    session = world.open(Process(10, 1))
    lease = world.acquire(session)
    world.decide.report(session, lease, "auth", None)
    world.decide.release(session, lease)
    until = world.decide.pauses.held_until(session, world.clock.now)
    assert until is not None
    world.clock.now = until + 0.1
    lease = world.acquire(session)
    assert world.decide.claim(session, lease, ["p1"]) == ("p1", None)
    world.clock.now += PROVEN_SECONDS
    timers.sweep(world.decide)
    assert list(world.state.paused) == [session.token], "at exactly that time it is not proven"
    world.clock.now += 0.1
    timers.sweep(world.decide)
    assert not world.state.paused
    assert session.backoff is None
    world.check()


@pytest.mark.rule(9)
def test_when_a_lease_is_taken_back_is_known_where_it_ever_is() -> None:
    for timeout, by in ((0.0, None), (1.0, 5001.0), (10.0, 5010.0)):
        world = World(claim_timeout=timeout)
        assert world.decide.claim_by(world.acquire(world.open())) == by


def test_a_session_cannot_claim_release_retire_or_offer_what_it_does_not_own(world: World) -> None:
    owner, other = world.open(), world.open()
    lease = world.acquire(owner)
    assert world.decide.claim(other, lease, ["p1"]) == ("p1", "lease_gone")
    assert world.decide.release(other, lease) is False
    assert world.decide.retire(other, lease) is False
    assert world.decide.offer(other, lease) is False
    assert world.decide.retire(owner, lease) is None, "it has claimed nothing"
    assert world.decide.offer(owner, lease) is None
    world.decide.report(other, lease, "refused", None)
    assert world.state.backoff.pause is None
    assert world.decide.force_release(99, Peer(0, 0, 1)) is None


# -- what dials meet ----------------------------------------------------------------------


def test_dials_in_a_row_that_meet_held_proxies_are_counted_until_one_claims(world: World) -> None:
    session = world.open()
    world.track("p1", "p2", "p3")
    lease = world.acquire(session)
    world.decide.claim(session, lease, ["p1"])
    lease = world.acquire(session)
    for times in (1, 2, 3):
        assert world.decide.claim(session, lease, ["p1"]) == ("p1", "held")
        assert world.decide.luck.in_a_row == times
    assert world.decide.hint() is None, "that may be chance"
    for _ in range(50):
        world.decide.claim(session, lease, ["p1"])
    hint = world.decide.hint()
    assert hint is not None
    assert hint.met == ["p1"]
    assert world.decide.claim(session, lease, ["p2"]) == ("p2", None)
    assert world.decide.luck.in_a_row == 0


@pytest.mark.rule(10)
def test_a_dial_that_ends_because_its_proxy_is_held_counts_without_a_claim(world: World) -> None:
    session = world.open()
    world.track("p1", "p2", "p3")
    lease = world.acquire(session)
    assert world.decide.look(session, ["p1"]) == ("p1", False)
    assert session.live.looked == ()
    assert world.decide.look(session, []) == (None, False)
    world.decide.claim(session, lease, ["p1"])
    lease = world.acquire(session)
    assert world.decide.look(session, ["p1"]) == ("p1", True)
    world.decide.report(session, lease, "other", None)
    assert world.decide.luck.in_a_row == 0, "it ended for another reason"
    world.decide.report(session, lease, "held", None)
    assert world.decide.luck.in_a_row == 1
    world.decide.report(session, lease, "held", None)
    assert world.decide.luck.in_a_row == 1, "what it met has counted"
    world.decide.look(session, ["p1"])
    assert world.decide.claim(session, lease, ["p1"]) == ("p1", "held")
    assert world.decide.luck.in_a_row == 2
    world.decide.report(session, lease, "held", None)
    assert world.decide.luck.in_a_row == 2, "its claim has counted"


@pytest.mark.rule(10)
def test_the_last_eight_held_proxies_that_a_session_asked_for_are_known(world: World) -> None:
    holder, session = world.open(), world.open()
    names = [f"p{i}" for i in range(10)]
    for name in names:
        world.decide.adopt(holder, [name])
    for name in names:
        assert world.decide.look(session, [name]) == (name, True)
    assert session.live.looked == tuple(names[2:])


# -- taking back, adopting, following ----------------------------------------------------


def test_an_admin_is_told_whose_lease_was_taken_back_and_what_it_held(world: World) -> None:
    session = world.open()
    lease = world.acquire(session)
    assert world.decide.force_release(lease, Peer(0, 0, 1)) == (session, None)
    world.decide.adopt(session, ["p1"])
    assert world.decide.force_release(2, Peer(0, 0, 1)) == (session, "p1")


@pytest.mark.rule(14)
def test_without_a_name_nothing_is_adopted(world: World) -> None:
    assert world.decide.adopt(world.open(), []) == (None, None)
    assert not world.state.leases


@pytest.mark.rule(7)
def test_a_lease_follows_only_when_it_says_so(world: World) -> None:
    session = world.open()
    names = ["host1", "uuid1"]
    lease = world.acquire(session)
    world.decide.claim(session, lease, names)
    world.decide.adopt(session, ["host2", "uuid2"])
    world.decide.adopt(session, ["host3", "uuid3"], follow=True)
    world.track("uuid1", "uuid2", "uuid3")
    tracker = world.state.tracker
    assert [tracker.lease_name(lease) for lease in (1, 2, 3)] == ["host1", "host2", "uuid3"]


@pytest.mark.rule(7)
def test_a_lease_that_takes_an_offered_name_ends_that_offer(world: World) -> None:
    old, new = world.open(Process(10, 1)), world.open(Process(11, 1))
    world.decide.adopt(new, ["host1", "uuid1"], follow=True)
    world.decide.adopt(old, ["uuid1"])
    assert world.decide.offer(old, 2)
    world.track("uuid1")
    assert list(world.state.leases) == [1]
    assert world.state.tracker.lease_name(1) == "uuid1"
    notice = {"notice": "lease_revoked", "lease": 2, "cause": "handed_over"}
    assert world.decide.fetch(old) == [notice]
    world.check()


class Aimed:
    """A world in which p1 has an address, and a lease of the session that is aimed at it."""

    def __init__(self) -> None:
        self.world = World()
        self.session = self.world.open(Process(10, 1))
        rows = [(f"p{i}", "", 1, None) for i in (1, 2, 3)]
        gossip.track(self.world.decide, self.session, rows, {}, {"p1": "a:1"})
        self.lease = self.world.acquire(self.session)
        assert self.world.state.tracker.targets.aims[self.lease].name == "p1"
        #: The reached and the missed ones.
        self.aims = self.world.metrics.aims

    @property
    def failures(self) -> int:
        address = self.world.state.tracker.targets.by_name["p1"]
        return address.failures


@pytest.mark.rule(16)
def test_a_dial_that_claims_what_it_aimed_at_has_reached_it() -> None:
    aimed = Aimed()
    assert aimed.world.decide.claim(aimed.session, aimed.lease, ["p1"]) == ("p1", None)
    assert (aimed.aims["reached"], aimed.aims["missed"]) == (1, 0)
    assert aimed.failures == 0


@pytest.mark.rule(16)
def test_a_dial_that_reaches_another_proxy_has_missed() -> None:
    aimed = Aimed()
    assert aimed.world.decide.claim(aimed.session, aimed.lease, ["p2"]) == ("p2", None)
    assert (aimed.aims["reached"], aimed.aims["missed"]) == (0, 1)
    assert aimed.failures == 1


@pytest.mark.rule(16)
def test_an_aimed_dial_says_nothing_of_the_balancer() -> None:
    aimed = Aimed()
    decide = aimed.world.decide
    decide.luck.met("p3", 0.1, aimed.world.clock.now)
    assert decide.adopt(aimed.session, ["p2"])[1] == "p2"
    assert decide.look(aimed.session, ["p2"]) == ("p2", True)
    decide.report(aimed.session, aimed.lease, "held", None)
    assert decide.luck.in_a_row == 1
    assert (aimed.aims["missed"], aimed.failures) == (1, 1)
    assert decide.claim(aimed.session, aimed.lease, ["p2"]) == ("p2", "held")
    assert decide.luck.in_a_row == 1
    aimed = Aimed()
    decide = aimed.world.decide
    decide.luck.met("p3", 0.1, aimed.world.clock.now)
    assert decide.claim(aimed.session, aimed.lease, ["p1"]) == ("p1", None)
    assert decide.luck.in_a_row == 1


@pytest.mark.rule(16)
def test_a_dial_whose_target_is_held_by_now_may_have_met_it() -> None:
    aimed = Aimed()
    assert aimed.world.decide.adopt(aimed.session, ["p1"])[1] == "p1"
    aimed.world.decide.report(aimed.session, aimed.lease, "held", None)
    assert (aimed.aims["missed"], aimed.failures) == (0, 0)
    aimed.world.decide.report(aimed.session, aimed.lease, "refused", None)
    assert aimed.aims["missed"] == 1


@pytest.mark.rule(16)
@pytest.mark.parametrize("how", ["offer", "release"])
def test_a_name_is_missing_from_its_offer_or_its_release_on(how: str) -> None:
    aimed = Aimed()
    world, session = aimed.world, aimed.session
    world.decide.claim(session, aimed.lease, ["p1"])
    world.clock.now += 7
    assert getattr(world.decide, how)(session, aimed.lease)
    assert world.state.tracker.targets.by_name["p1"].since == world.clock.now
    world.check()


@pytest.mark.rule(16)
def test_a_lease_that_takes_a_name_ends_the_failures_of_its_address() -> None:
    aimed = Aimed()
    world, session = aimed.world, aimed.session
    assert world.decide.adopt(session, ["p2", "p1"], follow=True)[1] == "p2"
    world.decide.report(session, aimed.lease, "refused", None)
    world.decide.release(session, aimed.lease)
    assert aimed.failures == 1
    assert forgetting.forget_proxy(world.decide, "p2", Peer(0, 0, 1)) is not None
    assert world.state.tracker.lease_name(2) == "p1"
    assert aimed.failures == 0
    world.check()


def test_a_rename_without_a_mark_makes_no_change_of_marks(world: World) -> None:
    world.decide.adopt(world.open(), ["host1", "uuid1"], follow=True)
    world.decide.take()
    world.track("uuid1")
    made = [type(each) for moment in world.decide.take() for each in moment.changes]
    assert made == [Tracked, Renamed, Notified]


@pytest.mark.rule(7)
@pytest.mark.rule(20)
def test_a_name_whose_offered_tunnel_is_closed_is_followed_to(world: World) -> None:
    old, new = world.open(Process(10, 1)), world.open(Process(11, 1))
    world.decide.adopt(new, ["host1", "uuid1"], follow=True)
    world.decide.adopt(old, ["uuid1"])
    world.track("uuid1", "p2")
    assert world.state.tracker.lease_name(1) == "host1", "another one holds that name"
    world.decide.set_count(1)
    assert world.decide.offer(old, 2)
    world.decide.adopt(new, ["p2"])
    world.decide.end_offers()
    assert 2 not in world.state.leases
    assert world.state.tracker.lease_name(1) == "uuid1"
    world.check()


# -- watches -------------------------------------------------------------------------------


def test_a_watch_replaces_the_earlier_one_which_is_answered(world: World) -> None:
    session = world.open()
    first, second = ParkedWatch(1, b"route"), ParkedWatch(2, b"route")
    assert world.decide.watch(session, first) is None
    assert world.decide.watch(session, ParkedWatch(1, b"other")) is None, "it was sent again"
    assert world.decide.watch(session, second) == ParkedWatch(1, b"other")
    assert not world.decide.noticed


@pytest.mark.parametrize("how", ["notify", "advise"])
def test_a_notice_is_sent_once_there_is_a_watch(world: World, how: str) -> None:
    session = world.open()
    getattr(world.decide, how)(session, {"notice": "first"})
    assert not world.decide.noticed
    world.decide.watch(session, ParkedWatch(1, b"route"))
    assert list(world.decide.noticed) == [session]
    assert world.decide.fetch(session) == [{"notice": "first"}]
    world.decide.noticed.clear()
    getattr(world.decide, how)(session, {"notice": "second"})
    assert list(world.decide.noticed) == [session]


# -- changes of topology ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "what",
    ["count", "gossip", "mark", "claim", "adopt", "release", "rename", "forget", "expire"],
)
def test_every_change_of_topology_restarts_the_wait_for_advice(what: str) -> None:
    world = World(disconnect_threshold=50.0, claim_timeout=0.0)
    session = world.open(Process(10, 1))
    world.decide.watch(session, ParkedWatch(1, b"route"))
    world.track("p1", "p2", "p3", "p4", ttl=1000.0)
    world.track("old", ttl=4.0)
    in_flight = world.acquire(session)
    for name in ("p1", "p2", "p3"):
        world.decide.adopt(session, [name])
    world.decide.adopt(session, ["host", "uuid"], follow=True)
    world.decide.set_count(1)
    due = world.decide.advice.due()
    assert due == world.clock.now + 50.0
    world.clock.now += 5
    assert world.decide.advice.due() == due
    decide = world.decide
    match what:
        case "count":
            decide.set_count(2)
        case "gossip":
            world.track("p5")
        case "mark":
            gossip.track(decide, world.gossip, [("p4", "", 1, None)], {"p4": True})
        case "claim":
            decide.claim(session, in_flight, ["p4"])
        case "adopt":
            decide.adopt(session, ["p6"])
        case "release":
            decide.release(session, 3)
        case "rename":
            world.track("uuid")
        case "forget":
            forgetting.forget_proxy(decide, "p4", Peer(0, 0, 1))
        case _:
            decide.purge()
    assert world.decide.advice.due() == world.clock.now + 50.0


def test_what_changes_no_topology_does_not_put_advice_off() -> None:
    world = World(disconnect_threshold=50.0, claim_timeout=0.0)
    session = world.open(Process(10, 1))
    world.track("p1", "p2", ttl=5.0)
    world.decide.adopt(session, ["p1"])
    world.decide.adopt(session, ["p2"])
    world.decide.set_count(1)
    due = world.decide.advice.due()
    assert due == world.clock.now + 50.0
    world.clock.now += 5
    world.track("p1", ttl=1000.0)
    world.decide.set_count(1)
    assert world.state.tracker.next_expiry == world.clock.now
    world.decide.purge()
    world.decide.end_session(world.open(), "closed")
    assert world.decide.advice.due() == due


@pytest.mark.rule(16)
def test_addresses_are_shared_as_the_live_setting_says() -> None:
    world = World(targets="off")
    session = world.open(Process(10, 1))
    gossip.track(world.decide, session, [("p1", "", 1, None)], {}, {"p1": "a:1"})
    world.decide.release(session, world.acquire(session))
    assert not world.state.tracker.targets.aims
    world.decide.reconfigure(world.config(targets="same_uid"))
    assert world.state.tracker.targets.aims.get(world.acquire(session)) == ("p1", "a:1")


@pytest.mark.rule(12)
def test_a_proxy_is_there_at_exactly_its_expiry(world: World) -> None:
    world.track("p1", ttl=5.0)
    world.clock.now += 5
    world.decide.purge()
    assert world.state.tracker.is_tracked("p1")
    world.clock.now += 0.1
    world.decide.purge()
    assert not world.state.tracker.is_tracked("p1")


@pytest.mark.rule(6)
def test_a_grant_says_why_it_was_given(world: World) -> None:
    session = world.open()
    world.acquire(session)
    world.track("p1", "p2")
    world.acquire(session)
    world.decide.adopt(session, ["p1"])
    moments = world.decide.take()
    granted = [each for moment in moments for each in moment.changes if isinstance(each, Granted)]
    assert [each.reason for each in granted] == ["bootstrap", "need", "adopt"]


def test_the_budget_refuses_only_what_is_wanted() -> None:
    world = World()
    session = world.open()
    world.state.budget.change(0.5, 1, world.clock.now)
    assert world.decide.budget_wait() is None
    lease = world.acquire(session)
    assert world.decide.budget_wait() is None, "nothing is wanted"
    world.decide.release(session, lease)
    assert world.decide.budget_wait() == 2.0
    assert world.decide.refusal() == "budget"
    assert world.decide.try_acquire(session) is None
    for seq, seconds in ((1, 4.0), (2, 6.0)):
        world.decide.park(session, seq, None, b"route")
        assert world.decide.retry_after(session) == seconds, "each that waits before takes one"


def test_a_live_budget_survives_a_restart_before_anything_is_dialled() -> None:
    world = World()
    world.state.budget.change(1.0, 10, world.clock.now)
    world.decide.reconfigure(world.config(dial_rate=1.0, dial_burst=1))
    assert world.state.budget.level() == (1.0, world.clock.now)
    world.check()


@pytest.mark.rule(10)
def test_without_a_known_proxy_a_dial_misses_nothing(world: World) -> None:
    session = world.open()
    world.decide.claim(session, world.acquire(session), ["p1"])
    assert [each.chance for each in world.decide.recent] == [0.0]


@pytest.mark.rule(14)
def test_an_adoption_is_no_dial(world: World) -> None:
    session = world.open()
    world.track("p1", "p2")
    world.decide.adopt(session, ["p1"])
    assert list(world.decide.recent) == [(world.clock.now, "p1", False, 0.0)]


@pytest.mark.rule(16)
@pytest.mark.parametrize("how", ["claim", "adopt"])
def test_a_claim_of_a_name_ends_the_failures_of_its_address(how: str) -> None:
    aimed = Aimed()
    world, session = aimed.world, aimed.session
    world.decide.report(session, aimed.lease, "held", None)
    assert aimed.failures == 1
    if how == "adopt":
        world.decide.adopt(session, ["p1"])
    else:
        lease = world.acquire(session)
        assert lease not in world.state.tracker.targets.aims
        world.decide.claim(session, lease, ["p1"])
    assert aimed.failures == 0
    world.check()


def test_a_proxy_is_missing_from_the_release_of_its_lease_on(world: World) -> None:
    one, other = world.open(Process(10, 1)), world.open(Process(11, 1))
    gossip.track(world.decide, one, [("p1", "", 1, 10.0)])
    gossip.track(world.decide, other, [("p2", "", 1, 1000.0)])
    lease, _ = world.decide.adopt(one, ["p1"])
    assert lease is not None
    world.clock.now += 9
    world.decide.release(one, lease)
    for _ in range(2):
        gossip.track(world.decide, one, [("p1", "", 1, 10.0)])
        gossip.track(world.decide, other, [("p2", "", 1, 1000.0)])
        assert not world.decide.lone.has("p1", 10.0, world.clock.now)
        world.clock.now += 9
    assert world.decide.lone.has("p1", 10.0, world.clock.now)


@pytest.mark.rule(17)
def test_a_probe_that_is_released_makes_room_for_the_next_one(world: World) -> None:
    session = world.open(Process(10, 1))
    world.track("p1", "p2", "p3")
    lease = world.acquire(session)
    world.decide.report(session, lease, "auth", None)
    world.decide.release(session, lease)
    until = world.decide.pauses.held_until(session, world.clock.now)
    assert until is not None
    world.clock.now = until + 0.1
    probe = world.acquire(session)
    assert world.decide.try_acquire(session) is None
    assert world.decide.refusal(session) == "backoff"
    world.decide.release(session, probe)
    assert world.decide.try_acquire(session) == probe + 1


@pytest.mark.rule(7)
def test_a_free_name_that_gossip_does_not_have_is_not_followed_to(world: World) -> None:
    session = world.open(Process(10, 1))
    world.decide.adopt(session, ["host1", "uuid1"], follow=True)
    world.decide.adopt(session, ["uuid1"])
    world.decide.release(session, 2)
    assert world.state.tracker.lease_name(1) == "host1"


def test_a_connection_that_stops_to_wait_is_known_until_the_batch_ends(world: World) -> None:
    session = world.open()
    world.acquire(session)
    world.decide.park(session, 1, None, b"route")
    world.decide.park(session, 2, None, b"route")
    for seq in (1, 2):
        world.decide.unpark(session.parked[seq])
    assert world.decide.left == [(session.token, 1, b"route"), (session.token, 2, b"route")]
    assert world.state.queue.last_served == 0, "nobody was served"


def test_an_admin_of_another_host_is_named_with_it() -> None:
    assert peer_of(None) is None
    assert peer_of(Peer(0, 5, 7)) == (0, 7)
    assert peer_of(Peer(0, 5, 7, "web-1")) == (0, 7, "web-1")


@pytest.mark.rule(17)
def test_a_dial_that_meets_a_held_proxy_ends_the_pause_of_its_session(world: World) -> None:
    session, other = world.open(Process(10, 1)), world.open(Process(11, 1))
    world.track("p1", "p2")
    world.decide.adopt(other, ["p1"])
    probe = world.acquire(session)
    world.decide.report(session, probe, "auth", 10.0)
    assert list(world.state.paused) == [session.token]
    assert world.decide.claim(session, probe, ["p1"]) == ("p1", "held")
    assert not world.state.paused
    world.check()
