"""The state and its ways to change: what each tells the store, and what a restart makes of it.

The state is the real one; its effects are a clock that stands still until a test moves it,
and lists. After every change the records go through msgpack and an image into a second state,
which must equal the first.
"""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from helpers.writer import CLUSTER, Clock, assert_same_after_reload, observe, through_msgpack
from trackd.config.settings import Config
from trackd.sessions import sessions as sessions_module
from trackd.sessions.identity import Peer, Process
from trackd.sessions.sessions import EXPIRED_LEASES, ParkedWatch, Session
from trackd.state.counters import Metrics
from trackd.state.restore import load, value_of
from trackd.state.state import SWEEP_INTERVAL, State
from trackd.storage.image import Image
from trackd.storage.records import Key, Record, StoredRow
from trackd_client.wire.protocol import decode_reply

LARGEST = 2**64 - 1


class World:
    """A state, its effects, and the store that it would have."""

    def __init__(self, **settings: Any) -> None:
        self.clock = Clock()
        self.settings = settings
        self.delivered: list[tuple[bytes, dict[str, Any]]] = []
        self.watched: list[Process] = []
        self.journal: list[Record] = []
        self.touched: set[Key] = set()
        self.checkpoint: dict[Key, Any] = {}
        self.state = self.empty()
        self.state.begin_epoch("tracker")
        self.state.record_epoch()
        self.clients = 0
        #: Whoever gossips; it is at no daemon, and holds nothing.
        self.gossip = Session(0, b"", Peer(0, 0, 0), None, "", "", {}, 0.0, 0.0)

    def empty(self, **settings: Any) -> State:
        config = Config(cluster_name=CLUSTER, **{**self.settings, **settings})
        return State(config, self, Metrics())

    # the effects that a state needs

    def now(self) -> float:
        return self.clock.now

    def wall(self) -> float:
        return 1.7e9 + self.clock.now

    def deliver(self, route: bytes, frame: bytes) -> None:
        reply = decode_reply(frame)
        assert reply is not None
        self.delivered.append((route, reply.body))

    def watch(self, process: Process) -> None:
        self.watched.append(process)

    def unwatch(self, process: Process) -> None:
        self.watched.remove(process)

    # what a test does

    def open(self, process: Process | None = None, uid: int = 1000) -> Session:
        self.clients += 1
        token = self.clients.to_bytes(16, "big")
        pid = 0 if process is None else process.pid
        return self.state.open_session(
            token, Peer(uid, uid, pid), process, "name", "1", {"a": "b"}, "agent"
        )

    def track(self, *names: str, generation: int = 1, ttl: float | None = None) -> int:
        return self.state.track(self.gossip, [(name, "", generation, ttl) for name in names])

    def acquire(self, session: Session) -> int:
        lease = self.state.try_acquire(session)
        assert lease is not None
        return lease

    def commit(self) -> None:
        batch = self.state.changes.take()
        self.journal += through_msgpack(batch.records)
        self.touched |= set(batch.touched)

    def take_checkpoint(self) -> None:
        """Move everything into the checkpoint, as many small steps would."""
        self.commit()
        for key in self.touched:
            value = value_of(self.state, key)
            if value is None:
                self.checkpoint.pop(key, None)
            else:
                self.checkpoint[key] = through_msgpack(value)
        self.touched.clear()
        self.journal.clear()

    def reloaded(self, **settings: Any) -> State:
        """Return what a restart would find, with other settings if need be."""
        self.commit()
        image = Image()
        # In the order of the table's primary key.
        rows = [StoredRow(*key, value) for key, value in self.checkpoint.items()]
        image.take(sorted(rows, key=lambda row: (row.kind, msgpack.packb(row.key))))
        for record in self.journal:
            image.replay(record)
        watched = list(self.watched)
        state = self.empty(**settings)
        load(state, image)
        self.watched = watched
        return state

    def restart(self, **settings: Any) -> None:
        self.settings.update(settings)
        self.state = self.reloaded()
        self.state.begin_epoch("another tracker")
        self.state.record_epoch()

    def check(self) -> None:
        """Check that a restart would find what is here, from the journal and from a checkpoint."""
        assert_same_after_reload(self.state, self.reloaded(), self.clock.now)
        self.take_checkpoint()
        assert_same_after_reload(self.state, self.reloaded(), self.clock.now)


@pytest.fixture
def world() -> World:
    return World()


def session_of(state: State, session: Session) -> Session:
    """Return the same session in a state after a restart."""
    return state.sessions.by_token[session.token]


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
    state.remember(first, 3, b"granted", stored=True, lease=lease)
    world.check()
    assert state.claim(first, lease, ["p1"]) == ("p1", None)
    world.check()
    assert state.adopt(second, ["p2"]) == (2, "p2")
    world.check()
    state.set_count(1)
    world.check()
    state.park(second, 5, None, b"route")
    world.check()
    state.park(first, 6, world.clock.now + 9, b"route")
    world.check()
    assert state.release(first, lease)
    world.check()
    state.serve_waiters()
    world.check()
    assert state.give_up(second, 5)
    world.check()
    state.acknowledge(first, [1, 6])
    world.check()
    state.end_session(second, "admin")
    world.check()
    world.clock.now += 1000
    state.sweep()
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
        world.state.release(session, world.acquire(session))
    world.take_checkpoint()
    world.restart()
    assert world.acquire(session_of(world.state, session)) == 4


def test_session_numbers_go_on_counting_also_when_all_sessions_are_gone(world: World) -> None:
    for _ in range(3):
        world.state.end_session(world.open(), "closed")
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
    revision = world.state.changes.revision
    assert revision == 3  # the start was the first change
    world.restart()
    assert world.state.changes.revision == revision + 1
    world.track("p2")
    assert world.state.changes.revision == revision + 2


@pytest.mark.rule(12)
def test_a_ttl_runs_through_the_time_without_a_daemon(world: World) -> None:
    world.track("short", ttl=10.0)
    world.track("long", ttl=100.0)
    world.commit()
    world.clock.now += 50
    world.restart()
    world.state.sweep()
    assert [proxy.name for proxy in world.state.tracker] == ["long"]


def test_gossip_without_ttl_keeps_the_default_of_the_moment_it_was_heard(world: World) -> None:
    world.settings["proxy_expiry"] = 60.0
    world.state = world.empty()
    world.track("p1")
    expiry = world.clock.now + 60.0
    reloaded = world.reloaded(proxy_expiry=5.0)
    found = reloaded.tracker.get("p1")
    assert found is not None
    assert found.expiry == expiry


def test_a_further_mention_does_what_gossip_that_is_looked_at_closely_does(world: World) -> None:
    rows: list[tuple[str, str, int, float | None]]
    rows = [("p1", "", 1, None), ("p2", "", 1, 9.0), ("p3", "", 1, 9.0)]
    rows.append(("p1", "", 1, 50.0))
    others = World()
    for each in (world, others):
        each.state.track(each.gossip, [(f"p{i}", "", 1, 30.0 * i) for i in (1, 2, 3)])
        each.check()
        each.clock.now += 1.0
    speaker = Session(7, b"", Peer(0, 0, 0), None, "", "", {}, 0.0, 0.0)
    revision = world.state.changes.revision
    world.state.mention(speaker, rows)
    others.state.track(speaker, rows)
    assert world.state.changes.revision == revision
    assert sorted(world.state.tracker) == sorted(others.state.tracker)
    assert world.state.mentions == others.state.mentions == {"p1": 7, "p2": 7, "p3": 7}
    assert world.state.metrics.gossip_proxies == others.state.metrics.gossip_proxies
    world.check()


# -- the revision ------------------------------------------------------------------------


def test_every_mutation_raises_the_revision_and_nothing_else_does(world: World) -> None:
    state = world.state
    seen = [state.changes.revision]

    def raised() -> bool:
        seen.append(state.changes.revision)
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
    assert state.try_acquire(session) is None
    assert not raised()
    assert state.claim(session, lease, []) == (None, "no_name")
    assert not raised()
    assert state.claim(session, lease, ["p1"]) == ("p1", None)
    assert raised()
    assert state.claim(session, lease, ["p1"]) == ("p1", "has_claimed")
    assert not raised()
    assert state.adopt(session, ["p1"]) == (None, "p1")
    assert not raised()
    state.set_count(state.tracker.connection_count)
    assert not raised()
    state.set_count(7)
    assert raised()
    assert not state.release(session, 99)
    assert not raised()
    assert state.release(session, lease)
    assert raised()
    state.sweep()
    assert not raised()
    world.clock.now += 1000
    state.sweep()
    assert raised()
    state.end_session(session, "closed")
    assert raised()


def test_what_only_a_purge_has_changed_is_stored_too(world: World) -> None:
    session = world.open()
    world.track("p1", ttl=1.0)
    world.commit()
    world.clock.now += 2
    world.acquire(session)  # a purge opens it
    revision = world.state.changes.revision
    assert world.reloaded().changes.revision == revision


# -- the store keeps nothing forever ----------------------------------------------------


def test_a_proxy_that_expired_leaves_the_checkpoint(world: World) -> None:
    world.track("swept", ttl=1.0)
    world.take_checkpoint()
    assert ("proxy", "swept") in world.checkpoint
    world.clock.now += 2
    world.state.sweep()
    world.take_checkpoint()
    assert ("proxy", "swept") not in world.checkpoint


def test_a_proxy_that_a_grant_purged_leaves_the_checkpoint(world: World) -> None:
    session = world.open()
    world.track("purged", ttl=1.0)
    world.take_checkpoint()
    world.clock.now += 2
    world.acquire(session)
    world.take_checkpoint()
    assert ("proxy", "purged") not in world.checkpoint


def test_a_proxy_that_expired_while_no_daemon_ran_leaves_the_checkpoint(world: World) -> None:
    world.track("p1", ttl=1.0)
    world.take_checkpoint()
    world.clock.now += 2
    world.restart()
    world.state.sweep()
    world.take_checkpoint()
    assert ("proxy", "p1") not in world.checkpoint


def test_ended_sessions_leave_the_checkpoint_after_ten_minutes(world: World) -> None:
    session = world.open()
    world.state.end_session(session, "closed")
    world.take_checkpoint()
    assert ("ended", session.token) in world.checkpoint
    world.clock.now += 601
    world.state.sweep()
    world.take_checkpoint()
    assert not [key for key in world.checkpoint if key[0] in ("ended", "session")]


def test_ended_sessions_are_bounded_also_when_nothing_ever_calls_for_a_sweep(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions_module, "ENDED_TOKENS", 5)
    sessions = [world.open() for _ in range(9)]
    for session in sessions:
        world.state.end_session(session, "closed")
    assert list(world.state.sessions.ended) == [session.token for session in sessions[-5:]]
    world.take_checkpoint()
    assert len([key for key in world.checkpoint if key[0] == "ended"]) == 5


def test_ended_sessions_are_forgotten_in_their_order_after_a_restart_too(world: World) -> None:
    late, early = world.open(), world.open()  # the tokens are in the other order
    world.state.end_session(early, "closed")
    world.clock.now += 500
    world.state.end_session(late, "closed")
    world.take_checkpoint()
    world.restart()
    world.clock.now += 200
    world.state.sweep()
    assert list(world.state.sessions.ended) == [late.token]


# -- the connection count ----------------------------------------------------------------


def test_a_count_that_was_set_survives_a_restart(world: World) -> None:
    world.state.set_count(3)
    world.restart()
    assert world.state.tracker.connection_count == 3
    world.restart()
    assert world.state.tracker.connection_count == 3


def test_a_configured_count_that_changed_wins_over_the_one_that_was_set(world: World) -> None:
    world.state.set_count(3)
    world.restart(connection_count=5)
    assert world.state.tracker.connection_count == 5
    world.restart(connection_count=5)
    assert world.state.tracker.connection_count == 5
    world.state.set_count(2)
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
    world.state.claim(session, claimed, ["p1"])
    world.state.park(session, 9, None, b"route")
    revision = world.state.changes.revision
    assert world.state.end_session(session, "closed") == [claimed, in_flight]
    assert world.state.changes.revision == revision + 3  # two leases, and the session
    assert not world.state.tracker.is_claimed(["p1"])
    assert list(world.state.leases) == [kept]
    assert not world.state.queue
    assert session.ended
    world.check()


def test_the_processes_of_sessions_are_watched_once_and_until_the_last_has_ended(
    world: World,
) -> None:
    process = Process(10, 1)
    first, second = world.open(process), world.open(process)
    world.open(Process(10, 2))  # the pid was reused
    assert world.watched == [process, (10, 2)]
    world.state.end_session(first, "closed")
    assert process in world.watched
    world.state.end_session(second, "closed")
    assert world.watched == [(10, 2)]


def test_a_session_that_nobody_can_watch_ends_when_it_falls_silent(world: World) -> None:
    session = world.open()
    seen = world.open(Process(10, 1))
    world.clock.now += 20
    world.state.note_sign_of_life(session)
    world.clock.now += 30
    assert world.state.sweep() == [], "at exactly its deadline it still lives"
    world.clock.now += 0.1
    assert world.state.sweep() == [session]
    assert world.state.sessions.ended[session.token].reason == "no_heartbeat"
    world.clock.now += 1e6
    assert world.state.sweep() == [], "a process that is seen needs no signs of life"
    assert seen.token in world.state.sessions.by_token


def test_a_session_that_lives_by_heartbeats_gets_a_full_time_to_live_after_a_start(
    world: World,
) -> None:
    session = world.open()
    world.commit()
    world.clock.now += 1000
    world.restart()
    assert session_of(world.state, session).deadline == world.clock.now + 30.0


# -- claim_timeout -----------------------------------------------------------------------


def test_a_lease_that_does_not_claim_in_time_is_taken_back_and_its_holder_is_told() -> None:
    world = World(claim_timeout=10.0)
    session, other = world.open(), world.open()
    world.track("p1", "p2")
    claims, dawdles = world.acquire(session), world.acquire(session)
    assert world.state.grant_fields(dawdles)["claim_by"] == world.clock.now + 10
    world.state.claim(session, claims, ["p1"])
    world.state.park(other, 1, None, b"route")
    world.clock.now += 10
    world.state.sweep()
    assert dawdles in world.state.leases, "at exactly its time it still counts"
    world.clock.now += 0.1
    world.state.sweep()
    assert dawdles not in world.state.leases
    assert claims in world.state.leases
    assert session.expired == {dawdles}
    assert session.notices == [{"notice": "lease_expired", "lease": dawdles}]
    world.check()
    world.state.serve_waiters()
    ((route, body),) = world.delivered
    assert (route, body["lease"]) == (b"route", 3)


def test_the_time_to_claim_runs_through_a_restart() -> None:
    world = World(claim_timeout=10.0)
    session = world.open()
    lease = world.acquire(session)
    world.clock.now += 6
    world.take_checkpoint()
    world.restart()
    assert world.state.next_timer() == world.clock.now + 4
    world.clock.now += 5
    world.state.sweep()
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
        world.state.sweep()
        expired.append(len(session_of(world.state, session).expired))
    assert sorted(set(expired)) == [0, 1, 2, 3]


def test_a_holder_is_told_of_its_newest_expired_leases_however_many_there_were() -> None:
    world = World(claim_timeout=1.0)
    session = world.open(Process(10, 1))
    leases = []
    for _ in range(EXPIRED_LEASES + 5):
        leases.append(world.acquire(session))
        world.clock.now += 1.5
        world.state.sweep()
    assert session.expired == set(leases[-EXPIRED_LEASES:])
    assert session_of(world.reloaded(), session).expired == session.expired


@pytest.mark.rule(14)
def test_an_adopted_lease_never_expires() -> None:
    world = World(claim_timeout=1.0)
    session = world.open(Process(10, 1))
    assert world.state.adopt(session, ["p1"]) == (1, "p1")
    world.clock.now += 100
    world.state.sweep()
    assert list(world.state.leases) == [1]
    world.check()


# -- waiting -----------------------------------------------------------------------------


@pytest.mark.rule(13)
def test_waiters_keep_their_order_over_a_restart_and_a_checkpoint(world: World) -> None:
    sessions = [world.open() for _ in range(4)]
    world.acquire(sessions[0])
    for number in (2, 0, 3, 1):
        world.state.park(sessions[number], number + 1, None, b"route")
    world.take_checkpoint()
    world.state.park(sessions[0], 9, None, b"route")
    world.restart()
    waiting = [waiter.seq for waiter in world.state.queue]
    assert waiting == [3, 1, 4, 2, 9]
    world.state.park(session_of(world.state, sessions[2]), 10, None, b"route")
    world.restart()
    assert [waiter.seq for waiter in world.state.queue] == [*waiting, 10]


def test_a_waiter_that_was_served_while_its_client_was_away_finds_its_grant(world: World) -> None:
    session, holder = world.open(), world.open()
    lease = world.acquire(holder)
    world.state.park(session, 7, None, b"route")
    world.restart()
    world.state.release(session_of(world.state, holder), lease)
    world.state.serve_waiters()
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
        world.state.park(sessions[number], 1, None, b"session %d" % number)
    world.track("p1", "p2", "p3", "p4")
    world.state.serve_waiters()
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
    world.state.park(first, 1, None, b"first")
    world.state.release(first, lease)
    assert world.state.try_acquire(second) is None
    assert [(route, body["lease"]) for route, body in world.delivered] == [(b"first", 2)]


def test_whoever_waited_long_enough_is_answered_with_nothing_and_that_is_remembered(
    world: World,
) -> None:
    session = world.open(Process(10, 1))
    world.acquire(session)
    world.state.park(session, 4, world.clock.now + 5, b"route")
    world.clock.now += 5
    world.state.sweep()
    ((route, body),) = world.delivered
    assert (route, body["seq"], body["lease"]) == (b"route", 4, None)
    assert not world.state.queue
    assert session.replies[4].stored
    world.check()


# -- giving up ---------------------------------------------------------------------------


def test_giving_up_an_acquire_that_was_granted_takes_the_grant_back(world: World) -> None:
    session = world.open()
    lease = world.acquire(session)
    world.state.remember(session, 2, b"granted", stored=True, lease=lease)
    assert world.state.give_up(session, 2)
    assert world.state.leases == {}
    assert 2 in session.done
    world.check()
    assert 2 in session_of(world.reloaded(), session).done


def test_giving_up_an_acquire_that_waits_takes_it_out_of_the_queue(world: World) -> None:
    session = world.open()
    world.acquire(session)
    world.state.park(session, 2, None, b"route")
    assert world.state.give_up(session, 2)
    assert not world.state.queue
    assert session.parked == {}
    world.check()


def test_giving_up_what_has_not_arrived_keeps_it_from_ever_running(world: World) -> None:
    session = world.open()
    assert world.state.give_up(session, 50)
    assert 50 in session.done
    assert 50 in session_of(world.reloaded(), session).done
    world.check()


def test_giving_up_twice_or_what_is_done_changes_nothing(world: World) -> None:
    session = world.open()
    lease = world.acquire(session)
    world.state.remember(session, 2, b"granted", stored=True, lease=lease)
    world.state.acknowledge(session, [1, 2])
    before = observe(world.state)
    assert not world.state.give_up(session, 2), "its reply has arrived; its lease is in use"
    assert observe(world.state) == before
    assert lease in world.state.leases


def test_an_acquire_that_is_done_without_a_cancel_stays_done_over_a_restart(world: World) -> None:
    session = world.open()
    world.acquire(session)
    world.state.park(session, 2, None, b"route")
    world.state.acknowledge(session, [1, 2])
    assert not world.state.queue
    assert 2 in session_of(world.reloaded(), session).done
    world.check()


# -- notices -----------------------------------------------------------------------------


def test_the_end_of_a_session_is_told_to_whoever_watches_it(world: World) -> None:
    session = world.open()
    world.state.watch(session, ParkedWatch(8, b"route"))
    world.state.end_session(session, "process_exited")
    ((route, body),) = world.delivered
    assert (route, body["seq"], body["error"]) == (b"route", 8, "session_ended")
    assert body["reason"] == "process_exited"


def test_leases_that_expired_before_a_restart_are_told_after_it() -> None:
    world = World(claim_timeout=1.0)
    session = world.open()
    lease = world.acquire(session)
    world.clock.now += 2
    world.state.sweep()
    world.restart()
    again = session_of(world.state, session)
    world.state.watch(again, ParkedWatch(8, b"route"))
    ((_, body),) = world.delivered
    assert body["notices"] == [{"notice": "lease_expired", "lease": lease}]


# -- timers ------------------------------------------------------------------------------


def test_the_next_timer_is_the_first_thing_that_time_brings() -> None:
    world = World(claim_timeout=50.0)
    assert world.state.next_timer() is None
    session = world.open(Process(10, 1))
    assert world.state.next_timer() is None, "nothing to do, so nobody is woken"
    world.track("p1", ttl=100.0)
    assert world.state.next_timer() == world.clock.now + 100
    world.acquire(session)
    assert world.state.next_timer() == world.clock.now + 50
    world.open()
    assert world.state.next_timer() == world.clock.now + 30
    world.state.park(session, 1, world.clock.now + 3, b"route")
    assert world.state.next_timer() == world.clock.now + 3


def test_sweeps_are_a_second_apart_unless_somebody_waits() -> None:
    world = World()
    session = world.open(Process(10, 1))
    world.track("p1", ttl=0.1)
    world.track("p2", ttl=0.2)
    world.state.sweep()
    assert world.state.next_timer() == world.clock.now + SWEEP_INTERVAL
    world.acquire(session)
    world.state.park(session, 1, None, b"route")
    assert world.state.next_timer() == world.clock.now + 0.1


# -- what a restart must keep --------------------------------------------------------------


@pytest.mark.parametrize("checkpoint", [True, False])
@pytest.mark.parametrize("ttl", [3600.0, 20.0, None])
def test_a_proxy_forgotten_after_a_restart_stays_away_for_its_own_ttl(
    world: World, ttl: float | None, checkpoint: bool
) -> None:
    world.track("p1", ttl=ttl)
    world.clock.now += 1
    world.state.mention(world.gossip, [("p1", "", 1, ttl)])
    if checkpoint:
        world.take_checkpoint()
    world.restart()
    tombstone = world.state.forget("p1", Peer(0, 0, 1))
    assert tombstone is not None
    assert tombstone.until == world.clock.now + (ttl or 180.0)
    world.check()


def test_a_connection_count_that_the_configuration_has_changed_is_an_event(world: World) -> None:
    world.state.set_count(3)
    world.take_checkpoint()
    before = world.state.changes.revision
    world.restart(connection_count=5)
    world.commit()
    events = world.state.changes.history.after(before, 100)
    assert [(event[0], event[3]) for event in events] == [
        (before + 1, "daemon_started"),
        (before + 2, "connection_count"),
    ]
    assert events[1][4] == {"count": 5, "before": 3}
    world.restart(connection_count=5)
    world.commit()
    last = world.state.changes.history.after(before + 2, 100)
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
    world.state.force_release(lease, Peer(0, 0, 1))
    notice = {"notice": "lease_revoked", "lease": lease}
    again = restart()
    assert list(again.notices) == [notice]
    world.check()
    world.state.watch(again, ParkedWatch(8, b"route"))
    ((_, body),) = world.delivered
    assert body["notices"] == [notice]
    again = restart()
    assert not again.notices
    reply = decode_reply(again.replies[8].frame)
    assert reply is not None
    assert reply.body["notices"] == [notice], "a reply that got lost can be fetched once more"
    world.state.acknowledge(again, [8, 8])
    world.state.watch(again, ParkedWatch(9, b"route"))
    again = restart()
    assert not again.notices
    world.check()


def test_notices_wait_while_that_they_were_sent_cannot_be_stored(world: World) -> None:
    session = world.open()
    lease = world.acquire(session)
    world.state.force_release(lease, Peer(0, 0, 1))
    world.commit()
    world.state.watch(session, ParkedWatch(8, b"route"), stores=False)
    assert not world.delivered
    assert not world.state.changes
    world.state.send_notices()
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
        world.state.park(many, seq, None, b"many")
    world.state.park(one, 11, None, b"one")
    served = []
    for _ in range(4):
        if checkpoint:
            world.take_checkpoint()
        world.restart()
        assert world.state.release(world.state.leases[lease].session, lease)
        (lease,) = served_by(world)
        served.append(world.state.leases[lease].session.id)
        world.check()
    assert served == [many.id, one.id, many.id, many.id]
    assert world.reloaded().queue.last_served == 3


def served_by(world: World) -> list[int]:
    before = set(world.state.leases)
    world.state.serve_waiters()
    return sorted(world.state.leases.keys() - before)


@pytest.mark.rule(13)
def test_waiters_of_a_file_without_tags_are_tagged_in_the_order_of_their_arrival(
    world: World,
) -> None:
    first, second = world.open(), world.open()
    world.acquire(first)
    for seq in (11, 12):
        world.state.park(first, seq, None, b"route")
    world.state.park(second, 11, None, b"route")
    world.commit()
    world.journal = [r[:5] if r[0] == "wait" else r for r in world.journal]
    state = world.reloaded()
    assert [(w.session.id, w.seq, w.tag) for w in state.queue] == [
        (first.id, 11, 1),
        (first.id, 12, 2),
        (second.id, 11, 1),
    ]
