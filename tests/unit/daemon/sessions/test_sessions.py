"""Sessions, and how each request of one happens once: without threads, sockets or waiting."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.writer import AgentOf, Clock, Desk, Host, observe
from trackd import sessions as sessions_module
from trackd.peers import Peer
from trackd.sessions import ENDED_SECONDS, Process, Remembered, Session, Sessions, Waiter, Watch
from trackd.stored import value_of
from trackd_client.errors import Code
from trackd_client.protocol import MAX_UINT64

ROWS = [["p1", "", 1, None], ["p2", "", 1, None]]


def session(number: int, process: Process | None = None) -> Session:
    token = number.to_bytes(16, "big")
    peer = Peer(1000, 1000, 0 if process is None else process.pid)
    return Session(number, token, peer, process, "", "", {}, 0.0, 0.0)


# -- what is done --------------------------------------------------------------------------


@given(
    st.sets(st.integers(1, 30)),
    st.lists(st.lists(st.integers(1, 30), max_size=6, unique=True), max_size=6),
)
def test_done_drops_the_replies_that_it_covers_and_tells_who_gave_up(
    kept: set[int], updates: list[list[int]]
) -> None:
    one = session(1)
    for seq in kept:
        if seq % 3:
            one.replies[seq] = Remembered(b"", True, None)
        else:
            one.parked[seq] = Waiter(one, seq, seq, None, None)
    done: set[int] = set()
    for update in updates:
        flat = [bound for seq in sorted(update) for bound in (seq, seq)]
        given_up = one.acknowledge(flat)
        news = set(update) - done
        done |= news
        assert set(given_up) == (done & one.parked.keys() if news else set())
        for seq in given_up:
            del one.parked[seq]
        assert one.replies.keys() == {seq for seq in kept if seq % 3} - done
        assert all((seq in one.done) == (seq in done) for seq in range(32))


def test_done_from_one_on_drops_replies_however_far_it_jumps() -> None:
    one = session(1)
    before = 0
    for last in (1, 2, 5, 6, 1000, MAX_UINT64):
        for seq in (before + 1, last):
            one.replies[seq] = Remembered(b"", True, None)
        one.acknowledge([1, last])
        before = last
        assert not one.replies
        assert one.done.ranges == [1, last]


def test_a_watch_that_is_done_waits_no_more() -> None:
    one = session(1)
    one.watch = Watch(5, b"route")
    one.acknowledge([1, 4])
    assert one.watch is not None
    one.acknowledge([1, 5])
    assert one.watch is None


# -- all sessions ----------------------------------------------------------------------------


def test_sessions_are_found_by_token_and_by_process_oldest_first() -> None:
    process = Process(10, 1)
    all_sessions = Sessions()
    assert all_sessions.add(session(2, process))
    assert not all_sessions.add(session(1, process))
    assert all_sessions.add(session(3, Process(10, 2)))
    assert not all_sessions.add(session(4))
    assert [s.id for s in all_sessions.of_process(process)] == [1, 2]
    assert all_sessions.of_process(Process(11, 1)) == []
    assert set(all_sessions.processes()) == {process, Process(10, 2)}
    assert len(all_sessions) == 4
    assert all_sessions.last_id == 4


def test_the_last_session_of_a_process_is_told_apart() -> None:
    process = Process(10, 1)
    all_sessions = Sessions()
    first, second = session(1, process), session(2, process)
    all_sessions.add(first)
    all_sessions.add(second)
    assert not all_sessions.remove(first, "closed", 0.0)
    assert all_sessions.remove(second, "closed", 0.0)
    assert all_sessions.processes() == []


def test_ended_tokens_are_forgotten_after_ten_minutes_or_when_there_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sessions_module, "ENDED_TOKENS", 3)
    all_sessions = Sessions()
    ends = [session(n) for n in range(1, 6)]
    for number, one in enumerate(ends):
        all_sessions.add(one)
        all_sessions.remove(one, "closed", 100.0 + number)
    assert all_sessions.forget_ended(105.0) == [ends[0].token, ends[1].token]
    assert all_sessions.forget_ended(102.0 + ENDED_SECONDS) == []
    assert all_sessions.forget_ended(102.1 + ENDED_SECONDS) == [ends[2].token]
    assert len(all_sessions.ended) == 2


def test_silent_sessions_are_those_without_a_process_whose_time_is_up() -> None:
    all_sessions = Sessions()
    quiet, loud, seen = session(1), session(2), session(3, Process(10, 1))
    for one in (loud, quiet, seen):
        one.deadline = 50.0
        all_sessions.add(one)
    loud.deadline = 60.0
    assert all_sessions.next_heartbeat() == 50.0
    assert all_sessions.silent(50.0) == []
    assert all_sessions.silent(50.1) == [quiet]
    all_sessions.remove(quiet, "no_heartbeat", 50.1)
    assert all_sessions.next_heartbeat() == 60.0


# -- requests ----------------------------------------------------------------------------------


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    with host.seen():
        yield host


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def desk(clock: Clock, host: Host) -> Iterator[Desk]:
    desk = Desk(None, clock, max_outstanding=8)
    yield desk
    desk.kill()


@pytest.fixture
def agent(desk: Desk, host: Host) -> AgentOf:
    agent = AgentOf(1, host.start(10))
    agent.ask(desk, "open")
    agent.ask(desk, "track_expected", proxies=ROWS, done=[1, 1])
    return agent


def opened(desk: Desk, host: Host, number: int) -> AgentOf:
    agent = AgentOf(number, host.start(100 + number))
    agent.ask(desk, "open")
    return agent


# who asks


@pytest.mark.parametrize("op", ["hello", "ping", "status", "open", "try_acquire", "close"])
def test_nobody_is_served_whom_the_kernel_does_not_name(desk: Desk, op: str) -> None:
    agent = AgentOf(9)
    reply = desk.ask(agent.body(op), None)
    assert reply is not None
    assert reply["error"] == Code.PERMISSION_DENIED
    assert not len(desk.state.sessions)


@pytest.mark.parametrize("op", ["open", "try_acquire", "status_", "heartbeat", "close", "claim"])
def test_another_user_may_do_nothing_with_a_token(desk: Desk, agent: AgentOf, op: str) -> None:
    before = observe(desk.state)
    thief = Peer(agent.peer.uid + 1, agent.peer.gid, agent.peer.pid)
    reply = desk.ask(agent.body(op.rstrip("_"), lease=1, principals=["p1"]), thief)
    assert reply is not None
    assert reply.get("error") == (None if op == "status_" else Code.PERMISSION_DENIED)
    assert observe(desk.state) == before


def test_another_user_does_not_even_learn_how_a_session_ended(desk: Desk, agent: AgentOf) -> None:
    agent.ask(desk, "close")
    thief = replace_uid(agent.peer)
    for op in ("try_acquire", "close", "open"):
        reply = desk.ask(agent.body(op), thief)
        assert reply is not None
        assert reply["error"] == Code.PERMISSION_DENIED


def replace_uid(peer: Peer) -> Peer:
    return peer._replace(uid=peer.uid + 1)


def test_a_session_is_opened_again_by_its_own_process_alone(desk: Desk, agent: AgentOf) -> None:
    revision = desk.state.changes.revision
    assert agent.ask(desk, "open")["session"] == 1
    other = agent.peer._replace(pid=agent.peer.pid + 1)
    reply = desk.ask(agent.body("open"), other)
    assert reply is not None
    assert reply["error"] == Code.PERMISSION_DENIED
    assert desk.state.changes.revision == revision


@pytest.mark.parametrize("op", ["claim", "release"])
def test_only_the_owner_of_a_lease_may_use_it(
    desk: Desk, agent: AgentOf, host: Host, op: str
) -> None:
    lease = agent.ask(desk, "try_acquire")["lease"]
    other = opened(desk, host, 2)
    before = observe(desk.state)
    assert other.ask(desk, op, lease=lease, principals=["p1"])["error"] == Code.NOT_OWNER
    assert observe(desk.state) == before


def test_a_second_session_of_the_same_process_owns_its_own_leases_alone(
    desk: Desk, agent: AgentOf
) -> None:
    lease = agent.ask(desk, "try_acquire")["lease"]
    sibling = AgentOf(2, agent.process)
    sibling.ask(desk, "open")
    assert sibling.ask(desk, "release", lease=lease)["error"] == Code.NOT_OWNER
    sibling.ask(desk, "close")
    assert lease in desk.state.leases


# how often


def test_every_operation_sent_again_changes_nothing_and_is_answered_the_same(
    desk: Desk, agent: AgentOf, host: Host
) -> None:
    lease = agent.ask(desk, "try_acquire")["lease"]
    other = opened(desk, host, 2)
    granted = other.body("try_acquire")
    desk.ask(granted, other.peer)
    requests: list[tuple[AgentOf, dict[str, Any]]] = [
        (agent, agent.body("claim", lease=lease, principals=["p1"])),
        (agent, agent.body("claim", lease=lease, principals=["p2"])),
        (agent, agent.body("track_expected", proxies=[["p3", "", 2, None]])),
        (agent, agent.body("set_connection_count", count=5)),
        (agent, agent.body("try_acquire")),
        (agent, agent.body("release", lease=lease)),
        (other, other.body("adopt", principals=["p9"])),
        (other, other.body("cancel", target=granted["seq"])),
        (other, other.body("release", lease=99)),
        (other, other.body("claim", lease=1, principals=["p1"])),
    ]
    for who, body in requests:
        desk.send(body, who.peer)
        (first,) = desk.end_batch()
        before = observe(desk.state)
        for route in (b"route", b"another", b"route"):
            desk.send(body, who.peer, route=route)
        again = desk.end_batch()
        assert [(sent.route, sent.frame) for sent in again] == [
            (route, first.frame) for route in (b"route", b"another", b"route")
        ]
        assert observe(desk.state) == before, body["op"]


def test_a_request_sent_twice_within_one_batch_runs_once(desk: Desk, agent: AgentOf) -> None:
    body = agent.body("try_acquire")
    for _ in range(3):
        desk.send(body, agent.peer)
    replies = desk.end_batch()
    assert {sent.body["lease"] for sent in replies} == {1}
    assert desk.state.tracker.last_lease == 1


def test_a_refusal_stays_a_refusal_when_it_is_sent_again(
    desk: Desk, agent: AgentOf, host: Host
) -> None:
    leases = [agent.ask(desk, "try_acquire")["lease"] for _ in ROWS]
    body = agent.body("try_acquire")
    refused = desk.ask(body, agent.peer)
    assert refused is not None
    assert refused["lease"] is None
    agent.ask(desk, "release", lease=leases[0])
    assert desk.ask(body, agent.peer) == refused
    assert agent.ask(desk, "try_acquire")["lease"] == 3


def test_what_is_done_never_runs_and_is_not_answered(desk: Desk, agent: AgentOf) -> None:
    body = agent.body("try_acquire")
    assert desk.ask(body, agent.peer) is not None
    agent.ask(desk, "is_claimed", principals=["p1"], done=[1, body["seq"]])
    before = observe(desk.state)
    assert desk.ask(body, agent.peer) is None
    assert observe(desk.state) == before


def test_a_number_that_is_done_before_it_arrives_never_runs(desk: Desk, agent: AgentOf) -> None:
    late = agent.body("try_acquire")
    agent.ask(desk, "heartbeat", done=[1, late["seq"]])
    assert desk.ask(late, agent.peer) is None
    assert not desk.state.leases


def test_requests_may_arrive_in_any_order(desk: Desk, agent: AgentOf) -> None:
    earlier, later = agent.body("try_acquire"), agent.body("try_acquire")
    second = desk.ask(later, agent.peer)
    first = desk.ask(earlier, agent.peer)
    assert first is not None
    assert second is not None
    assert (first["lease"], second["lease"]) == (2, 1)
    assert desk.ask(later, agent.peer) == second


def test_a_session_may_leave_so_many_requests_open_and_no_more(desk: Desk, agent: AgentOf) -> None:
    open_requests = [agent.body("set_connection_count", count=n, done=[1, 2]) for n in range(1, 9)]
    for body in open_requests:
        reply = desk.ask(body, agent.peer)
        assert reply is not None
        assert "error" not in reply
    assert agent.ask(desk, "try_acquire")["error"] == Code.LIMIT_EXCEEDED
    assert desk.ask(open_requests[0], agent.peer) is not None, "an answer is remembered still"
    assert agent.ask(desk, "is_claimed", principals=["p1"])["claimed"] is False, "reads go on"
    assert agent.ask(desk, "try_acquire", done=[1, 3])["lease"] == 1


def test_what_waits_counts_as_open_too(desk: Desk, agent: AgentOf) -> None:
    for _ in ROWS:
        agent.ask(desk, "try_acquire", done=[1, 2])
    for _ in range(6):
        assert desk.ask(agent.body("acquire"), agent.peer) is None
    assert agent.ask(desk, "acquire")["error"] == Code.LIMIT_EXCEEDED
    assert len(desk.state.queue) == 6


def test_a_session_at_its_limit_can_still_release_cancel_and_close(
    desk: Desk, agent: AgentOf
) -> None:
    granted = agent.body("try_acquire")
    desk.ask(granted, agent.peer)
    lease = agent.ask(desk, "try_acquire")["lease"]
    for count in range(8):
        desk.ask(agent.body("set_connection_count", count=count), agent.peer)
    for body in (agent.body("release", lease=lease), agent.body("cancel", target=granted["seq"])):
        for _ in range(3):
            reply = desk.ask(body, agent.peer)
            assert reply is not None
            assert "error" not in reply
    assert not desk.state.leases
    assert "error" not in agent.ask(desk, "close")
    assert not len(desk.state.sessions)


def test_nothing_that_a_client_leaves_undone_grows_without_bound(
    desk: Desk, agent: AgentOf
) -> None:
    """A client that calls nothing done, or only every other number, costs a bounded amount."""
    for number in range(200):
        agent.ask(desk, "release", lease=1)
        desk.ask(agent.body("watch_session"), agent.peer)
        desk.ask(agent.body("cancel", target=1000 + 2 * number), agent.peer)
    found = desk.state.sessions.by_token[agent.token]
    assert len(found.replies) + len(found.parked) <= 9
    assert len(found.done.ranges) <= 2 * desk.actor._config.max_done_ranges


# how late


@pytest.mark.parametrize(
    ("op", "fields"),
    [
        ("try_acquire", {}),
        ("acquire", {}),
        ("claim", {"lease": 1, "principals": ["p1"]}),
        ("adopt", {"principals": ["p1"]}),
        ("track_expected", {"proxies": [["p9", "", 1, None]]}),
        ("set_connection_count", {"count": 7}),
        ("is_claimed", {"principals": ["p1"]}),
        ("heartbeat", {}),
    ],
)
def test_what_comes_after_its_deadline_is_dropped(
    desk: Desk, agent: AgentOf, clock: Clock, op: str, fields: dict[str, Any]
) -> None:
    agent.ask(desk, "try_acquire")
    before = observe(desk.state)
    stale = agent.body(op, **fields, deadline=clock.now - 0.001)
    assert desk.ask(stale, agent.peer) is None
    assert observe(desk.state) == before
    in_time = agent.body(op, **fields, deadline=clock.now)
    reply = desk.ask(in_time, agent.peer)
    assert reply is not None or op == "acquire"


def test_a_late_open_is_dropped_so_that_nobody_leaves_sessions_at_an_absent_daemon(
    desk: Desk, clock: Clock, host: Host
) -> None:
    late = AgentOf(7, host.start(70))
    assert desk.ask(late.body("open", deadline=clock.now - 1), late.peer) is None
    assert not len(desk.state.sessions)


def test_release_cancel_and_close_are_never_too_late(
    desk: Desk, agent: AgentOf, clock: Clock
) -> None:
    granted = agent.body("try_acquire")
    desk.ask(granted, agent.peer)
    lease = agent.ask(desk, "try_acquire")["lease"]
    past = clock.now - 1000
    assert agent.ask(desk, "release", lease=lease, deadline=past)["released"] is True
    assert agent.ask(desk, "cancel", target=granted["seq"], deadline=past)["cancelled"] is True
    assert "error" not in agent.ask(desk, "close", deadline=past)
    assert not len(desk.state.sessions)


def test_a_reply_that_is_remembered_is_told_after_the_deadline_too(
    desk: Desk, agent: AgentOf, clock: Clock
) -> None:
    body = agent.body("try_acquire", deadline=clock.now + 1)
    first = desk.ask(body, agent.peer)
    clock.now += 100
    assert desk.ask(body, agent.peer) == first


# giving up


def test_a_cancel_that_overtakes_its_target_keeps_it_from_running(
    desk: Desk, agent: AgentOf
) -> None:
    target = agent.body("acquire")
    cancel = agent.body("cancel", target=target["seq"])
    assert desk.ask(cancel, agent.peer) == {
        "seq": cancel["seq"],
        "revision": desk.state.changes.revision,
        "cancelled": True,
    }
    assert desk.ask(target, agent.peer) is None
    assert not desk.state.leases
    assert not desk.state.queue


@pytest.mark.parametrize("op", ["try_acquire", "acquire", "adopt"])
def test_a_cancel_takes_back_what_its_target_was_granted(
    desk: Desk, agent: AgentOf, op: str
) -> None:
    target = agent.body(op, principals=["p1"])
    granted = desk.ask(target, agent.peer)
    assert granted is not None
    assert granted["lease"] == 1
    cancel = agent.body("cancel", target=target["seq"])
    first = desk.ask(cancel, agent.peer)
    assert first is not None
    assert first["cancelled"] is True
    assert not desk.state.leases
    assert desk.ask(cancel, agent.peer) == first
    assert desk.ask(target, agent.peer) is None
    assert desk.state.tracker.inflight == 0


def test_what_a_cancel_frees_goes_to_whoever_waits(desk: Desk, agent: AgentOf, host: Host) -> None:
    targets = [agent.body("try_acquire") for _ in ROWS]
    for target in targets:
        desk.ask(target, agent.peer)
    waiter = opened(desk, host, 2)
    assert desk.ask(waiter.body("acquire"), waiter.peer, route=b"waiter") is None
    desk.send(agent.body("cancel", target=targets[0]["seq"]), agent.peer)
    assert [sent.body["lease"] for sent in desk.end_batch() if sent.route == b"waiter"] == [3]


def test_a_cancel_takes_nothing_from_another_session(
    desk: Desk, agent: AgentOf, host: Host
) -> None:
    target = agent.body("try_acquire")
    desk.ask(target, agent.peer)
    other = opened(desk, host, 2)
    other.ask(desk, "cancel", target=target["seq"])
    assert list(desk.state.leases) == [1]


# waiting


def test_a_parked_request_sent_again_keeps_its_place_and_the_newest_connection_is_answered(
    desk: Desk, agent: AgentOf, host: Host
) -> None:
    leases = [agent.ask(desk, "try_acquire")["lease"] for _ in ROWS]
    first, second = opened(desk, host, 2), opened(desk, host, 3)
    waits = first.body("acquire")
    assert desk.ask(waits, first.peer, route=b"old") is None
    assert desk.ask(second.body("acquire"), second.peer, route=b"second") is None
    for route in (b"old", b"older", b"new"):
        assert desk.ask(waits, first.peer, route=route) is None
    assert len(desk.state.queue) == 2
    desk.send(agent.body("release", lease=leases[0]), agent.peer)
    desk.send(agent.body("release", lease=leases[1]), agent.peer)
    granted = [
        (sent.route, sent.body["lease"]) for sent in desk.end_batch() if "lease" in sent.body
    ]
    assert granted == [(b"new", 3), (b"second", 4)]


def test_the_parked_watch_of_a_session_is_answered_over_its_newest_connection(
    desk: Desk, agent: AgentOf
) -> None:
    watch = agent.body("watch_session")
    assert desk.ask(watch, agent.peer, route=b"old") is None
    assert desk.ask(watch, agent.peer, route=b"new") is None
    desk.send(agent.body("watch_session"), agent.peer)
    assert [(sent.route, sent.body["seq"]) for sent in desk.end_batch()] == [(b"new", watch["seq"])]


def test_whoever_waits_learns_of_the_end_of_the_session(desk: Desk, agent: AgentOf) -> None:
    for _ in ROWS:
        agent.ask(desk, "try_acquire")
    waits = agent.body("acquire")
    assert desk.ask(waits, agent.peer, route=b"waits") is None
    desk.send(agent.body("close"), agent.peer)
    told = {sent.route: sent.body for sent in desk.end_batch()}
    assert told[b"waits"]["error"] == Code.SESSION_ENDED
    assert (told[b"waits"]["seq"], told[b"waits"]["reason"]) == (waits["seq"], "closed")


# adopting


def test_adopting_is_for_names_that_nobody_holds(desk: Desk, agent: AgentOf, host: Host) -> None:
    lease = agent.ask(desk, "try_acquire")["lease"]
    agent.ask(desk, "claim", lease=lease, principals=["p1"])
    other = opened(desk, host, 2)
    assert other.ask(desk, "adopt", principals=["p1"])["lease"] is None
    assert other.ask(desk, "adopt", principals=["p1.example.com"])["lease"] is None
    adopted = other.ask(desk, "adopt", principals=["p2.example.com"])
    assert (adopted["lease"], adopted["name"]) == (2, "p2")
    assert desk.state.tracker.inflight == 0


def test_adopting_asks_neither_the_count_nor_the_queue(
    desk: Desk, agent: AgentOf, host: Host
) -> None:
    agent.ask(desk, "set_connection_count", count=1)
    agent.ask(desk, "try_acquire")
    waiter = opened(desk, host, 2)
    assert desk.ask(waiter.body("acquire"), waiter.peer) is None
    assert agent.ask(desk, "adopt", principals=["unheard of"])["lease"] == 2
    assert len(desk.state.queue) == 1


# the end


def test_whoever_comes_to_a_session_that_has_ended_is_told_why(desk: Desk, agent: AgentOf) -> None:
    assert agent.process is not None
    desk.exited(agent.process)
    reply = agent.ask(desk, "try_acquire")
    assert (reply["error"], reply["reason"]) == (Code.SESSION_ENDED, "process_exited")
    assert agent.ask(desk, "open")["error"] == Code.SESSION_ENDED
    assert "error" not in agent.ask(desk, "close")


def test_a_session_that_was_never_here_is_unknown_but_may_be_closed(desk: Desk) -> None:
    stranger = AgentOf(9, Process(10, 1))
    assert stranger.ask(desk, "try_acquire")["error"] == Code.SESSION_UNKNOWN
    assert "error" not in stranger.ask(desk, "close")


def test_a_process_whose_pid_was_reused_is_another_one(
    desk: Desk, agent: AgentOf, host: Host
) -> None:
    assert agent.process is not None
    first = agent.process
    heir = AgentOf(2, host.start(first.pid))
    heir.ask(desk, "open")
    desk.exited(first)
    assert [each.token for each in desk.state.sessions] == [heir.token]


def test_sessions_of_processes_that_are_gone_end_before_anything_is_served(
    desk: Desk, clock: Clock, host: Host, tmp_path: Any
) -> None:
    before = Desk(tmp_path, clock)
    process, reused, lives = host.start(20), host.start(21), host.start(22)
    agents = [AgentOf(n, each) for n, each in enumerate((process, reused, lives), 1)]
    for each in agents:
        each.ask(before, "open")
        each.ask(before, "adopt", principals=[f"proxy {each.token[-1]}"])
    before.kill()
    del host.alive[process.pid]
    host.start(reused.pid)
    after = Desk(tmp_path, clock)
    assert [each.token for each in after.state.sessions] == [agents[2].token]
    assert list(after.state.leases) == [3]
    assert agents[0].ask(after, "try_acquire")["error"] == Code.SESSION_ENDED
    after.kill()


def test_a_process_that_cannot_be_seen_lives_by_its_signs_of_life(desk: Desk, clock: Clock) -> None:
    hidden = AgentOf(5)
    assert hidden.ask(desk, "open")["heartbeat_ttl"] == 30.0
    hidden.ask(desk, "try_acquire")
    for _ in range(10):
        clock.now += 29
        hidden.ask(desk, "heartbeat")
        desk.sweep()
    assert desk.state.leases
    clock.now += 31
    desk.sweep()
    assert not desk.state.leases
    reply = hidden.ask(desk, "heartbeat")
    assert (reply["error"], reply["reason"]) == (Code.SESSION_ENDED, "no_heartbeat")


def test_a_process_that_is_seen_is_told_to_send_no_signs_of_life(
    desk: Desk, agent: AgentOf, clock: Clock
) -> None:
    assert agent.ask(desk, "open")["heartbeat_ttl"] is None
    agent.ask(desk, "try_acquire")
    clock.now += 1e6
    desk.sweep()
    assert desk.state.leases


# roles


def test_an_admin_alone_may_set_the_count_where_it_is_configured_so(
    clock: Clock, host: Host
) -> None:
    desk = Desk(None, clock, count_role="admin", admin_users=(1001,), admin_groups=(2002,))
    results = {}
    for number, (uid, gid) in enumerate([(0, 0), (1000, 1000), (1001, 9), (1002, 2002)], 1):
        agent = AgentOf(number, host.start(number))
        agent.peer = Peer(uid, gid, number)
        agent.ask(desk, "open")
        results[uid] = agent.ask(desk, "set_connection_count", count=number).get("error")
    assert results == {0: None, 1000: Code.PERMISSION_DENIED, 1001: None, 1002: None}
    assert desk.state.tracker.connection_count == 4
    desk.kill()


# time


class RestlessClock(Clock):
    """A clock that goes on with every reading, as a real one does."""

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def test_a_message_has_one_moment_so_that_no_expiry_slips_in_between(host: Host) -> None:
    """Whatever expires while a message is handled is counted, and leaves the store too."""
    for ttl in range(1, 12):
        desk = Desk(None, RestlessClock())
        agent = AgentOf(1, host.start(10))
        agent.ask(desk, "open")
        agent.ask(desk, "track_expected", proxies=[["p1", "", 1, float(ttl)]])
        store = desk.actor._store
        assert store is not None
        while store._touched or store._checkpoint_to is not None:
            store.checkpoint_step(functools.partial(value_of, desk.state))
        revision = desk.state.changes.revision
        while desk.state.tracker.tracked_count:
            agent.ask(desk, "release", lease=agent.ask(desk, "try_acquire")["lease"] or 99)
            assert desk.state.changes.revision >= revision
        assert ("proxy", "p1") in store._touched, f"a TTL of {ttl}"
        desk.kill()
