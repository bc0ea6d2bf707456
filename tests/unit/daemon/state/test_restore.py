"""What a restart finds: every part of the state, from the journal and from a checkpoint."""

from __future__ import annotations

import pytest

from helpers.decisions import World, session_of
from trackd.sessions.identity import Peer, Process
from trackd.sessions.sessions import Session
from trackd.state import exactly_once, forgetting, gossip
from trackd.state.restore import restore, row_of
from trackd.state.state import State

ADMIN = Peer(0, 0, 1)


@pytest.fixture
def world() -> World:
    return World(tunnel_timeout=40.0, claim_timeout=0.0)


@pytest.fixture
def session(world: World) -> Session:
    return world.open(Process(10, 1))


def open_at(world: World, host: str, process: Process | None, number: int = 77) -> Session:
    """Open a session of another host of a fleet."""
    token = number.to_bytes(16, "big")
    pid = 0 if process is None else process.pid
    return world.decide.open_session(
        token, Peer(1000, 1000, pid, host), process, "name", "1", {}, "agent"
    )


def again(world: World) -> State:
    """Return what a restart finds in a checkpoint."""
    world.check()
    return world.reloaded()


@pytest.mark.rule(15)
def test_marks_of_gossip_and_of_leases(world: World, session: Session) -> None:
    gossip.track(world.decide, session, [("p1", "", 1, 30.0)], {"p1": True})
    world.decide.adopt(session, ["p2"])
    world.decide.retire(session, 1)
    marks = again(world).tracker.marks
    assert marks.by_name == world.state.tracker.marks.by_name
    assert marks.by_name.keys() == {"p1", "p2"}
    assert marks.next_end() == world.clock.now + 30


@pytest.mark.rule(16)
def test_addresses_aims_and_trust(world: World, session: Session) -> None:
    gossip.track(
        world.decide, session, [("p1", "", 1, None), ("p2", "", 1, None)], {}, {"p1": "a:1"}
    )
    lease = world.acquire(session)
    found = again(world)
    assert found.tracker.targets.aims == {lease: ("p1", "a:1")}
    assert found.tracker.targets.trust == world.state.tracker.targets.trust
    world.decide.report(session, lease, "refused", None)
    world.decide.release(session, lease)
    found = again(world)
    assert found.tracker.targets.aims == {}
    assert found.tracker.targets.trust == world.state.tracker.targets.trust
    assert found.tracker.targets.trust.untargeted > 0
    assert found.tracker.targets.by_name["p1"].failures == 1


@pytest.mark.rule(17)
def test_pauses_of_the_host_and_of_sessions(world: World, session: Session) -> None:
    lease = world.acquire(session)
    assert again(world).reports_outcomes is False
    world.decide.report(session, lease, "auth", 10.0)
    found = again(world)
    assert found.reports_outcomes is True
    assert found.backoff.pause is None
    own = session_of(found, session)
    assert found.paused == {session.token: own}
    assert own.backoff is not None
    assert session.backoff is not None
    assert own.backoff.pause == session.backoff.pause
    world.decide.report(session, lease, "refused", 20.0)
    found = again(world)
    assert found.backoff.pause == world.state.backoff.pause
    assert found.backoff.pause is not None
    assert world.decide.pauses.resume(None) == 2
    found = again(world)
    assert (found.paused, found.backoff.pause, found.reports_outcomes) == ({}, None, True)


@pytest.mark.rule(18)
def test_leases_that_report_and_those_that_are_stale(world: World, session: Session) -> None:
    for name in ("p1", "p2", "p3"):
        world.decide.adopt(session, [name])
    world.decide.tunnels.report(session, [[1, None], [2, None]], world.clock.now)
    found = again(world)
    assert {lease: life.stale for lease, life in found.lives.by_lease.items()} == {
        1: False,
        2: False,
    }
    world.clock.now += 40.1
    world.decide.tunnels.sweep(world.clock.now, 0.0)
    found = again(world)
    assert {lease: life.stale for lease, life in found.lives.by_lease.items()} == {
        1: True,
        2: True,
    }
    assert found.lives.stale == 2


@pytest.mark.rule(20)
def test_an_offered_lease_and_one_that_follows(world: World, session: Session) -> None:
    world.track("p1")
    world.decide.adopt(session, ["p1"])
    world.decide.adopt(session, ["host", "uuid"], follow=True)
    world.decide.adopt(session, ["p3"])
    assert world.decide.offer(session, 1)
    found = again(world)
    assert session_of(found, session).offered == 1
    assert [lease for lease in (1, 2, 3) if found.tracker.is_offered(lease)] == [1]
    assert found.aliases.by_lease == {2: ("host", "uuid")}
    assert found.aliases.leases_of("uuid") == [2]
    world.restart()
    world.track("uuid")
    assert world.state.tracker.lease_name(2) == "uuid"


def test_sessions_of_other_hosts(world: World) -> None:
    near = world.open(Process(10, 1))
    far = open_at(world, "web-1", Process(10, 1, "web-1", "boot-1"))
    unseen = open_at(world, "web-2", None, 78)
    found = again(world)
    assert session_of(found, near).process == Process(10, 1)
    assert session_of(found, far).process == Process(10, 1, "web-1", "boot-1")
    assert session_of(found, far).peer.host == "web-1"
    assert session_of(found, unseen).process is None
    assert session_of(found, unseen).peer.host == "web-2"
    world.decide.end_session(far, "host_lost")
    assert again(world).sessions.ended[far.token].host == "web-1"


def test_what_each_user_uses_is_counted_again(world: World, session: Session) -> None:
    other = world.open(Process(11, 1), uid=1001)
    world.track("p1", "p2")
    for each in (session, session):
        world.acquire(each)
    world.decide.park(session, 1, None, b"route")
    world.decide.park(other, 1, None, b"route")
    world.decide.park(other, 2, None, b"route")
    exactly_once.remember(world.decide, other, 3, b"reply", stored=True, lease=None)
    found = again(world)
    for user, numbers in {("", 1000): (1, 2, 1), ("", 1001): (1, 0, 2)}.items():
        for state in (world.state, found):
            use = state.sessions.use_of(user)
            assert (use.sessions, use.leases, use.waiters) == numbers
            assert use.reply_bytes == world.state.sessions.use_of(user).reply_bytes
    assert found.sessions.total.reply_bytes == len(b"reply") + 256


def test_tombstones_of_proxies_and_of_groups(world: World) -> None:
    rows = [("p1", "g", 1, 50.0), ("p2", "g", 2, 60.0), ("p3", "h", 7, 70.0), ("p4", "h", 7, 10.0)]
    gossip.track(world.decide, world.gossip, rows)
    forgetting.forget_proxy(world.decide, "p4", ADMIN)
    forgetting.forget_group(world.decide, "g", None, ADMIN)
    forgetting.forget_group(world.decide, "h", 7, ADMIN)
    found = again(world)
    assert found.tombstones.get("p4") == world.state.tombstones.get("p4") is not None
    for group in ("g", "h"):
        assert found.tombstones.get_group(group) == world.state.tombstones.get_group(group)
        assert found.tombstones.get_group(group) is not None
    world.restart()
    for name, group, generation in (("p2", "g", 2), ("p3", "h", 7), ("p4", "h", 7)):
        gossip.track(world.decide, world.gossip, [(name, group, generation, None)])
    assert world.state.tracker.tracked_count == 0, "old gossip brings nothing back"


def test_who_gossiped_and_has_ended(world: World, session: Session) -> None:
    far = open_at(world, "web-1", None)
    for each, name in ((session, "p1"), (far, "p2")):
        gossip.track(world.decide, each, [(name, "", 1, None)])
        world.decide.end_session(each, "closed")
    found = again(world)
    for each in (session, far):
        assert found.sources.get(each.id) == world.state.sources.get(each.id) is not None
    mentions = found.tracker.mentions
    assert [mentions.of(name).by for name in ("p1", "p2")] == [session.id, far.id]


def test_a_shorter_history_keeps_less() -> None:
    world = World(history=200)
    for i in range(400):
        world.track(f"p{i}")
    world.take_checkpoint()
    touched: list[tuple[str, object]] = []
    state = State("example.com", history=100)
    world.store.begin_reading()
    restore(state, world.store.rows, world.store.batches(), touched.extend)
    gone = [key for kind, key in touched if kind == "history"]
    assert 128 in gone, "what is not kept any more leaves the checkpoint"
    oldest = state.history.oldest
    assert oldest is not None
    assert 100 <= state.revision - oldest < 100 + 128


def test_older_events_stay_over_a_restart() -> None:
    world = World(history=100)
    world.settings["history_age"] = 1e6
    world.state.history.keep(100, 1e6)
    session = world.open(Process(10, 1))
    for i in range(400):
        world.track(f"p{i}")
        world.decide.release(session, world.acquire(session))
        world.commit()
    before = world.state.history.after(0, 10**6, 1 << 30, older=True)
    assert world.state.history.oldest is not None
    assert before[0][0] < world.state.history.oldest
    world.take_checkpoint()
    state = State("example.com", history=100, history_age=1e6)
    world.store.begin_reading()
    restore(state, world.store.rows, world.store.batches(), world.store.touch)
    assert state.history.after(0, 10**6, 1 << 30, older=True) == before


def test_what_clients_were_done_with_at_last(world: World, session: Session) -> None:
    """It is told beside the store, where nothing was stored any more."""
    for seq in (1, 2, 3):
        exactly_once.remember(world.decide, session, seq, b"", stored=True, lease=None)
    world.take_checkpoint()
    state = State("example.com")
    world.store.begin_reading()
    done = {session.token: [1, 2]}
    restore(state, world.store.rows, world.store.batches(), world.store.touch, done)
    found = session_of(state, session)
    assert found.live.done.ranges == [1, 2]
    assert found.unanswered() == 1
    assert found.replies.keys() == {1, 2, 3}, "they go with the next change"


def test_there_are_no_rows_of_what_is_gone_or_never_was(world: World, session: Session) -> None:
    state = world.state
    kinds = ("session", "lease", "mention", "names", "mark", "address", "tombstone", "source")
    for kind in (*kinds, "group_tombstone", "ended", "pause", "history"):
        assert row_of(state, (kind, b"other")) is None
    assert row_of(state, ("reply", (b"other", 1))) is None
    assert row_of(state, ("reply", (session.token, 1))) is None
    with pytest.raises(ValueError, match="there are no rows of 'nothing'"):
        row_of(state, ("nothing", 1))


def test_who_gossiped_of_a_group_last(world: World) -> None:
    sessions = [world.open(Process(10 + i, 1)) for i in range(3)]
    for each, name in zip(sessions, ("z", "m", "a"), strict=True):
        gossip.track(world.decide, each, [(name, "g", 1, None)])
    assert world.state.tracker.source_of("g") == sessions[2].id
    assert again(world).tracker.source_of("g") == sessions[2].id


@pytest.mark.rule(15)
def test_who_gossiped_of_a_group_of_which_some_are_marked(world: World, session: Session) -> None:
    rows = [("p1", "g", 1, None), ("p2", "g", 1, None)]
    gossip.track(world.decide, session, rows, {"p1": True})
    assert world.state.tracker.source_of("g") == session.id
    assert again(world).tracker.source_of("g") == session.id
