"""What is decided, and what a restart makes of it.

State, decisions and store are the real ones; the clock stands still until a test moves it. After
every change a restart must find the same, from the journal and from a checkpoint.
"""

from __future__ import annotations

import functools
import sqlite3
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.writer import CLUSTER, Clock, assert_same_after_reload, observe
from trackd.config.settings import Config
from trackd.operations.replies import Replies, grant_fields
from trackd.sessions import sessions as sessions_module
from trackd.sessions.identity import Peer, Process
from trackd.sessions.sessions import EXPIRED_LEASES, ParkedWatch, Session
from trackd.state.changes import pack
from trackd.state.counters import Metrics
from trackd.state.decide import SWEEP_INTERVAL, Decisions
from trackd.state.events import pack_events
from trackd.state.restore import add_events, restore, row_of
from trackd.state.state import State
from trackd.storage.store import Store
from trackd_client.wire.protocol import decode_reply

LARGEST = 2**64 - 1


class World:
    """A state, what decides about it, and its store, in memory."""

    def __init__(self, **settings: Any) -> None:
        self.clock = Clock()
        self.settings = settings
        self.metrics = Metrics()
        self.sent: list[tuple[bytes, dict[str, Any]]] = []
        self.store = Store(None, "boot")
        self.clients = 0
        self.begin(self.read(self.store), "tracker")
        #: Whoever gossips; it is at no daemon, and holds nothing.
        self.gossip = Session(0, b"", Peer(0, 0, 0), None, "", "", {}, 0.0, 0.0)

    def config(self, **settings: Any) -> Config:
        return Config(cluster_name=CLUSTER, **{**self.settings, **settings})

    def read(self, store: Store, **settings: Any) -> State:
        state = State(CLUSTER, history=self.config(**settings).history)
        store.begin_reading()
        store.row_of = functools.partial(row_of, state)
        restore(state, store.rows, store.batches(), store.touch)
        return state

    def begin(self, state: State, tracker_id: str) -> None:
        self.state = state
        self.stored = state.revision
        known = state.configured_count is not None
        self._decide = Decisions(
            state, self.config(), self.metrics, self.store.touch, lambda: 1.7e9 + self.clock.now
        )
        self.replies = Replies(self._decide, self.deliver, 1024)
        self.decide.begin_epoch(tracker_id, state.tracker.connection_count if known else None)

    @property
    def decide(self) -> Decisions:
        """The decisions, at the present moment."""
        self._decide.begin(self.clock.now)
        return self._decide

    @property
    def delivered(self) -> list[tuple[bytes, dict[str, Any]]]:
        """The replies to parked requests so far."""
        self.replies.settle(stores=True)
        return self.sent

    def deliver(self, route: bytes, frame: bytes) -> None:
        reply = decode_reply(frame)
        assert reply is not None
        self.sent.append((route, reply.body))

    # what a test does

    def open(self, process: Process | None = None, uid: int = 1000) -> Session:
        self.clients += 1
        token = self.clients.to_bytes(16, "big")
        pid = 0 if process is None else process.pid
        return self.decide.open_session(
            token, Peer(uid, uid, pid), process, "name", "1", {"a": "b"}, "agent"
        )

    def track(self, *names: str, generation: int = 1, ttl: float | None = None) -> int:
        return self.decide.track(self.gossip, [(name, "", generation, ttl) for name in names])

    def acquire(self, session: Session) -> int:
        lease = self.decide.try_acquire(session)
        assert lease is not None
        return lease

    def commit(self) -> None:
        self.replies.settle(stores=True)
        batch = self._decide.take()
        if batch:
            self.store.append(pack(batch))
            packed = pack_events(batch, self.stored + 1)
            if packed:
                add_events(self.state, self.stored + 1, packed, batch[-1].at, self.store.touch)
            self.stored = self.state.revision

    def take_checkpoint(self) -> None:
        """Move everything into the checkpoint, as many small steps would."""
        self.commit()
        self.store._checkpoint._rows_since = 10**9
        while self.store.has_work:
            self.store.step()

    @property
    def checkpoint(self) -> set[tuple[str, Any]]:
        """The keys of the checkpoint."""
        rows = self.store._db.execute("SELECT kind, key FROM state")
        return {(kind, msgpack.unpackb(key, use_list=False)) for kind, key in rows}

    def tracked_in_checkpoint(self) -> set[str]:
        """Return the names of the proxies in the checkpoint."""
        return {
            name for _, found in self.store.rows("names") for _, _, names in found for name in names
        }

    def reloaded(self, **settings: Any) -> State:
        """Return what a restart would find, with other settings if need be."""
        self.commit()
        copy = sqlite3.connect(":memory:", isolation_level=None)
        self.store._db.backup(copy)
        return self.read(Store(None, "boot", lambda _: copy), **settings)

    def restart(self, **settings: Any) -> None:
        self.commit()
        self.settings.update(settings)
        self.begin(self.read(self.store), "another tracker")
        for session in self.state.sessions:
            self.decide.note_sign_of_life(session)

    def check(self) -> None:
        """Check that a restart would find what is here, from the journal and from a checkpoint."""
        assert_same_after_reload(self.state, self.reloaded())
        self.take_checkpoint()
        assert_same_after_reload(self.state, self.reloaded())


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
    world.decide.remember(first, 3, b"granted", stored=True, lease=lease)
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
    assert world.decide.give_up(second, 5)
    world.check()
    world.decide.acknowledge(first, [1, 6])
    world.check()
    world.decide.end_session(second, "admin")
    world.check()
    world.clock.now += 1000
    world.decide.sweep()
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


@pytest.mark.rule(12)
def test_a_ttl_runs_through_the_time_without_a_daemon(world: World) -> None:
    world.track("short", ttl=10.0)
    world.track("long", ttl=100.0)
    world.commit()
    world.clock.now += 50
    world.restart()
    world.decide.sweep()
    assert [proxy.name for proxy in world.state.tracker] == ["long"]


def test_gossip_without_ttl_keeps_the_default_of_the_moment_it_was_heard(world: World) -> None:
    world.restart(proxy_expiry=60.0)
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
        each.decide.track(each.gossip, [(f"p{i}", "", 1, 30.0 * i) for i in (1, 2, 3)])
        each.check()
        each.clock.now += 1.0
    speaker = Session(7, b"", Peer(0, 0, 0), None, "", "", {}, 0.0, 0.0)
    revision = world.state.revision
    world.decide.mention(speaker, rows)
    others.decide.track(speaker, rows)
    assert world.state.revision == revision
    assert sorted(world.state.tracker) == sorted(others.state.tracker)
    for each in (world, others):
        mentions = each.state.tracker.mentions
        assert [mentions.of(name).by for name in ("p1", "p2", "p3")] == [7, 7, 7]
    assert world.metrics.gossip_proxies == others.metrics.gossip_proxies
    world.check()


def test_gossip_repeated_with_a_ttl_for_each_proxy_is_one_change(world: World) -> None:
    """Else such a message would cost as much as a change for each proxy."""
    names = [f"p{i}" for i in range(100)]
    world.decide.track(world.gossip, [(name, "", 1, 100.0 + i) for i, name in enumerate(names)])
    world.check()
    rows = [(name, "", 1, 200.0 + i) for i, name in enumerate(names)]
    rows[50] = ("p50", "", 1, 1.0)
    made = world.decide.made
    world.decide.mention(world.gossip, rows)
    assert world.decide.made == made + 1
    ttls = [world.state.tracker.mentions.of(name).ttl for name in names]
    assert ttls == [row[3] for row in rows]
    assert world.state.tracker.next_expiry == world.clock.now + 1.0
    world.check()


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
    world.decide.sweep()
    assert not raised()
    world.clock.now += 1000
    world.decide.sweep()
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
    world.decide.sweep()
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
    world.decide.sweep()
    world.take_checkpoint()
    assert "p1" not in world.tracked_in_checkpoint()


def test_ended_sessions_leave_the_checkpoint_after_ten_minutes(world: World) -> None:
    session = world.open()
    world.decide.end_session(session, "closed")
    world.take_checkpoint()
    assert ("ended", session.token) in world.checkpoint
    world.clock.now += 601
    world.decide.sweep()
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
    world.decide.sweep()
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


def test_a_session_that_nobody_can_watch_ends_when_it_falls_silent(world: World) -> None:
    session = world.open()
    seen = world.open(Process(10, 1))
    world.clock.now += 20
    world.decide.note_sign_of_life(session)
    world.clock.now += 30
    assert world.decide.sweep() == [], "at exactly its deadline it still lives"
    world.clock.now += 0.1
    assert world.decide.sweep() == [session]
    assert world.state.sessions.ended[session.token].reason == "no_heartbeat"
    world.clock.now += 1e6
    assert world.decide.sweep() == [], "a process that is seen needs no signs of life"
    assert seen.token in world.state.sessions.by_token


def test_a_session_that_lives_by_heartbeats_gets_a_full_time_to_live_after_a_start(
    world: World,
) -> None:
    session = world.open()
    world.commit()
    world.clock.now += 1000
    world.restart()
    assert session_of(world.state, session).live.deadline == world.clock.now + 30.0


# -- claim_timeout -----------------------------------------------------------------------


def test_a_lease_that_does_not_claim_in_time_is_taken_back_and_its_holder_is_told() -> None:
    world = World(claim_timeout=10.0)
    session, other = world.open(), world.open()
    world.track("p1", "p2")
    claims, dawdles = world.acquire(session), world.acquire(session)
    assert grant_fields(world.decide, dawdles)["claim_by"] == world.clock.now + 10
    world.decide.claim(session, claims, ["p1"])
    world.decide.park(other, 1, None, b"route")
    world.clock.now += 10
    world.decide.sweep()
    assert dawdles in world.state.leases, "at exactly its time it still counts"
    world.clock.now += 0.1
    world.decide.sweep()
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
    assert world.decide.next_timer() == world.clock.now + 4
    world.clock.now += 5
    world.decide.sweep()
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
        world.decide.sweep()
        expired.append(len(session_of(world.state, session).expired))
    assert sorted(set(expired)) == [0, 1, 2, 3]


def test_a_holder_is_told_of_its_newest_expired_leases_however_many_there_were() -> None:
    world = World(claim_timeout=1.0)
    session = world.open(Process(10, 1))
    leases = []
    for _ in range(EXPIRED_LEASES + 5):
        leases.append(world.acquire(session))
        world.clock.now += 1.5
        world.decide.sweep()
    assert session.expired == set(leases[-EXPIRED_LEASES:])
    assert session_of(world.reloaded(), session).expired == session.expired


@pytest.mark.rule(14)
def test_an_adopted_lease_never_expires() -> None:
    world = World(claim_timeout=1.0)
    session = world.open(Process(10, 1))
    assert world.decide.adopt(session, ["p1"]) == (1, "p1")
    world.clock.now += 100
    world.decide.sweep()
    assert list(world.state.leases) == [1]
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


def test_whoever_waited_long_enough_is_answered_with_nothing_and_that_is_remembered(
    world: World,
) -> None:
    session = world.open(Process(10, 1))
    world.acquire(session)
    world.decide.park(session, 4, world.clock.now + 5, b"route")
    world.clock.now += 5
    world.decide.sweep()
    ((route, body),) = world.delivered
    assert (route, body["seq"], body["lease"]) == (b"route", 4, None)
    assert not world.state.queue
    assert 4 in session.replies
    world.check()


# -- giving up ---------------------------------------------------------------------------


def test_giving_up_an_acquire_that_was_granted_takes_the_grant_back(world: World) -> None:
    session = world.open()
    lease = world.acquire(session)
    world.decide.remember(session, 2, b"granted", stored=True, lease=lease)
    assert world.decide.give_up(session, 2)
    assert world.state.leases == {}
    assert 2 in session.done
    world.check()
    assert 2 in session_of(world.reloaded(), session).done


def test_giving_up_an_acquire_that_waits_takes_it_out_of_the_queue(world: World) -> None:
    session = world.open()
    world.acquire(session)
    world.decide.park(session, 2, None, b"route")
    assert world.decide.give_up(session, 2)
    assert not world.state.queue
    assert session.parked == {}
    world.check()


def test_giving_up_what_has_not_arrived_keeps_it_from_ever_running(world: World) -> None:
    session = world.open()
    assert world.decide.give_up(session, 50)
    assert 50 in session.done
    assert 50 in session_of(world.reloaded(), session).done
    world.check()


def test_giving_up_twice_or_what_is_done_changes_nothing(world: World) -> None:
    session = world.open()
    lease = world.acquire(session)
    world.decide.remember(session, 2, b"granted", stored=True, lease=lease)
    world.decide.acknowledge(session, [1, 2])
    before = observe(world.state)
    assert not world.decide.give_up(session, 2), "its reply has arrived; its lease is in use"
    assert observe(world.state) == before
    assert lease in world.state.leases


def test_an_acquire_that_is_done_without_a_cancel_stays_done_over_a_restart(world: World) -> None:
    session = world.open()
    world.acquire(session)
    world.decide.park(session, 2, None, b"route")
    world.decide.acknowledge(session, [1, 2])
    assert not world.state.queue
    assert 2 in session_of(world.reloaded(), session).done
    world.check()


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
    world.decide.sweep()
    world.restart()
    again = session_of(world.state, session)
    world.decide.watch(again, ParkedWatch(8, b"route"))
    ((_, body),) = world.delivered
    assert body["notices"] == [{"notice": "lease_expired", "lease": lease}]


# -- timers ------------------------------------------------------------------------------


def test_the_next_timer_is_the_first_thing_that_time_brings() -> None:
    world = World(claim_timeout=50.0)
    assert world.decide.next_timer() is None
    session = world.open(Process(10, 1))
    assert world.decide.next_timer() is None, "nothing to do, so nobody is woken"
    world.track("p1", ttl=100.0)
    assert world.decide.next_timer() == world.clock.now + 100
    world.acquire(session)
    assert world.decide.next_timer() == world.clock.now + 50
    world.open()
    assert world.decide.next_timer() == world.clock.now + 30
    world.decide.park(session, 1, world.clock.now + 3, b"route")
    assert world.decide.next_timer() == world.clock.now + 3


def test_sweeps_are_a_second_apart_unless_somebody_waits() -> None:
    world = World()
    session = world.open(Process(10, 1))
    world.track("p1", ttl=0.1)
    world.track("p2", ttl=0.2)
    world.decide.sweep()
    assert world.decide.next_timer() == world.clock.now + SWEEP_INTERVAL
    world.acquire(session)
    world.decide.park(session, 1, None, b"route")
    assert world.decide.next_timer() == world.clock.now + 0.1


# -- what a restart must keep --------------------------------------------------------------


@pytest.mark.parametrize("checkpoint", [True, False])
@pytest.mark.parametrize("ttl", [3600.0, 20.0, None])
def test_a_proxy_forgotten_after_a_restart_stays_away_for_its_own_ttl(
    world: World, ttl: float | None, checkpoint: bool
) -> None:
    world.track("p1", ttl=ttl)
    world.clock.now += 1
    world.decide.mention(world.gossip, [("p1", "", 1, ttl)])
    if checkpoint:
        world.take_checkpoint()
    world.restart()
    tombstone = world.decide.forget("p1", Peer(0, 0, 1))
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
    world.decide.acknowledge(again, [8, 8])
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


# -- what a session is done with -----------------------------------------------------------


@given(
    st.sets(st.integers(1, 30)),
    st.lists(st.lists(st.integers(1, 30), max_size=6, unique=True), max_size=6),
)
def test_done_drops_the_replies_that_it_covers_and_is_stored_where_a_restart_needs_it(
    kept: set[int], updates: list[list[int]]
) -> None:
    world = World()
    one = world.open(Process(10, 1))
    stored = {seq for seq in kept if seq % 3 == 1}
    refused = {seq for seq in kept if seq % 3 == 2}
    parked = {seq for seq in kept if seq % 3 == 0}
    for seq in sorted(kept):
        if seq in parked:
            world.decide.park(one, seq, None, b"route")
        else:
            world.decide.remember(one, seq, b"", stored=seq in stored, lease=None)
    repeatable = {seq for seq in range(1, 31) if seq not in kept and seq % 2}
    for seq in repeatable:
        one.note_repeatable(seq, 64)
    done: set[int] = set()
    for update in updates:
        world.commit()
        world.decide.acknowledge(one, [bound for seq in sorted(update) for bound in (seq, seq)])
        news = set(update) - done
        done |= news
        if news - stored - repeatable:
            assert {seq for seq in range(32) if seq in one.done} == done
            assert one.replies.keys() == stored - done
        assert one.live.repeatable == repeatable - done
        assert one.live.refusals.keys() == refused - done
        assert one.parked.keys() == parked - done
        assert one.unanswered() == len(kept - done)
        assert {seq for seq in range(32) if seq in one.live.done} == done
    world.decide.remember(one, 99, b"", stored=True, lease=None)
    assert one.replies.keys() == {99} | stored - done, "the next change drops what is done"
    world.check()


def test_done_from_one_on_drops_replies_however_far_it_jumps(world: World) -> None:
    one = world.open(Process(10, 1))
    before = 0
    for last in (1, 2, 5, 6, 1000, LARGEST):
        for seq in {before + 1, last}:
            world.decide.remember(one, seq, b"", stored=True, lease=None)
        world.decide.acknowledge(one, [1, last])
        before = last
        assert one.unanswered() == 0
        assert one.live.done.ranges == [1, last]


def test_replies_that_a_session_is_done_with_are_dropped_without_another_change(
    world: World,
) -> None:
    one = world.open(Process(10, 1))
    for seq in range(1, 101):
        world.decide.remember(one, seq, b"", stored=True, lease=None)
    for seq in range(1, 101):
        world.decide.acknowledge(one, [1, seq])
    assert len(one.replies) <= 16
    assert one.unanswered() == 0


def test_a_watch_that_is_done_waits_no_more(world: World) -> None:
    one = world.open(Process(10, 1))
    one.live.watch = ParkedWatch(5, b"route")
    world.decide.acknowledge(one, [1, 4])
    assert one.live.watch is not None
    world.decide.acknowledge(one, [1, 5])
    assert one.live.watch is None
