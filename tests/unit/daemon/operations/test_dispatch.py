"""The way of a request: who asks, how often, how late."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.writer import ROWS, AgentOf, Clock, Desk, Faults, Host, observe, open_session
from trackd.sessions.identity import Peer
from trackd_client.errors import Code

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
    revision = desk.state.revision
    assert agent.ask(desk, "open")["session"] == 1
    other = agent.peer._replace(pid=agent.peer.pid + 1)
    reply = desk.ask(agent.body("open"), other)
    assert reply is not None
    assert reply["error"] == Code.PERMISSION_DENIED
    assert desk.state.revision == revision


@pytest.mark.parametrize("op", ["claim", "release"])
def test_only_the_owner_of_a_lease_may_use_it(
    desk: Desk, agent: AgentOf, host: Host, op: str
) -> None:
    lease = agent.ask(desk, "try_acquire")["lease"]
    other = open_session(desk, host, 2)
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
    other = open_session(desk, host, 2)
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
    for body, field in (
        (agent.body("release", lease=lease), "released"),
        (agent.body("cancel", target=granted["seq"]), "cancelled"),
    ):
        first = desk.ask(body, agent.peer)
        assert first is not None
        assert first[field] is True
        for _ in range(3):
            assert desk.ask(body, agent.peer) == first
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
    assert len(found.replies) + len(found.parked) <= 2 * 8 + 1
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


# what is done never runs again, whatever was stored


def test_a_lost_claim_that_is_done_does_not_run_after_a_restart(
    tmp_path: Path, clock: Clock, host: Host
) -> None:
    desk = Desk(tmp_path, clock)
    agent = open_session(desk, host, 1)
    agent.ask(desk, "track_expected", proxies=ROWS, done=[1, 1])
    lease = agent.ask(desk, "try_acquire", done=[1, 2])["lease"]
    lost = agent.body("claim", lease=lease, principals=["p1"], done=[1, 3])  # is held up
    agent.ask(desk, "is_claimed", principals=["p2"], done=[1, lost["seq"]])  # given up
    desk.kill()
    desk = Desk(tmp_path, clock)
    assert desk.ask(lost, agent.peer) is None
    assert not desk.state.tracker.is_claimed(["p1"])
    desk.kill()


@pytest.mark.parametrize(
    ("by", "fields"),
    [
        ("is_claimed", {}),
        ("heartbeat", {}),
        ("set_connection_count", {}),
        ("nonsense", {}),
        ("is_claimed", {"namespace": "another"}),
        ("is_claimed", {"principals": "no list"}),
    ],
)
def test_a_done_change_that_changed_nothing_does_not_run_after_a_restart(
    tmp_path: Path, clock: Clock, host: Host, by: str, fields: dict[str, Any]
) -> None:
    desk = Desk(tmp_path, clock)
    agent, other = open_session(desk, host, 1), open_session(desk, host, 2)
    old = agent.body("set_connection_count", count=0)
    assert "error" not in (desk.ask(old, agent.peer) or {"error": "no answer"})
    agent.ask(desk, by, **{"principals": ["p1"], "count": "wrong", **fields}, done=[1, old["seq"]])
    other.ask(desk, "set_connection_count", count=7)
    desk.kill()
    desk = Desk(tmp_path, clock)
    assert desk.ask(old, agent.peer) is None
    assert desk.state.tracker.connection_count == 7
    desk.kill()


@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize("outstanding", [0, 1, 4, 5])
def test_a_refused_request_that_is_done_does_not_run_after_a_restart(
    tmp_path: Path, clock: Clock, host: Host, *, noted: bool, outstanding: int
) -> None:
    desk = Desk(tmp_path, clock)
    if not noted:  # as on a disk that was full at the start
        desk.sqlite._mark = None
    agent, other = open_session(desk, host, 1), open_session(desk, host, 2)
    other.ask(desk, "track_expected", proxies=ROWS)
    for name in ("p1", "p2"):
        other.ask(desk, "adopt", principals=[name])
    # So many gaps are in what is done.
    done = [1, 1, *(bound for gap in range(outstanding) for bound in [3 + 2 * gap] * 2)]
    old = agent.body("try_acquire", seq=done[-1] + 2)
    reply = desk.ask(old, agent.peer)
    assert reply is not None
    assert reply["lease"] is None
    before = desk.sqlite._checkpoint.last_row
    agent.ask(desk, "try_acquire", seq=100, done=[*done, old["seq"], old["seq"]])
    is_stored = desk.sqlite._checkpoint.last_row > before
    assert is_stored == (not noted or outstanding > 4)
    other.ask(desk, "set_connection_count", count=9)
    desk.kill()
    desk = Desk(tmp_path, clock)
    assert desk.ask(old, agent.peer) is None
    assert desk.state.tracker.inflight == 0
    desk.kill()


def test_a_session_that_ends_leaves_no_note(tmp_path: Path, clock: Clock, host: Host) -> None:
    desk = Desk(tmp_path, clock)
    agents = [open_session(desk, host, number) for number in (1, 2)]
    for agent in agents:
        old = agent.body("set_connection_count", count=0)
        desk.ask(old, agent.peer)
        agent.ask(desk, "is_claimed", principals=["p1"], done=[1, old["seq"]])
    assert desk.sqlite.noted_done().keys() == {agent.token for agent in agents}
    agents[0].ask(desk, "close")
    assert desk.sqlite.noted_done().keys() == {agents[1].token}
    desk.kill()
    desk = Desk(tmp_path, clock)
    assert desk.sqlite.noted_done().keys() == {agents[1].token}
    desk.kill()


def test_what_is_done_while_the_store_fails_is_stored_once_it_works(
    tmp_path: Path, clock: Clock, host: Host
) -> None:
    faults = Faults()
    desk = Desk(tmp_path, clock, faults)
    agent, other = open_session(desk, host, 1), open_session(desk, host, 2)
    old = agent.body("set_connection_count", count=0)
    assert "error" not in (desk.ask(old, agent.peer) or {"error": "no answer"})
    faults.writes = True
    assert other.ask(desk, "set_connection_count", count=7)["error"] == Code.UNAVAILABLE
    agent.ask(desk, "is_claimed", principals=["p1"], done=[1, old["seq"]])
    faults.writes = False
    clock.now += 1
    desk.sweep()
    other.ask(desk, "set_connection_count", count=7)
    desk.kill()
    desk = Desk(tmp_path, clock)
    assert desk.ask(old, agent.peer) is None
    assert desk.state.tracker.connection_count == 7
    desk.kill()


def test_reads_that_are_done_store_nothing(tmp_path: Path, clock: Clock, host: Host) -> None:
    desk = Desk(tmp_path, clock)
    agent = open_session(desk, host, 1)
    for op in ("is_claimed", "heartbeat", "open", "is_claimed"):
        body = agent.body(op, principals=["p1"])
        desk.send({**body, "done": [1, body["seq"] - 1]}, agent.peer)
        assert not desk.actor._decide.batch, f"before {op}"
        desk.end_batch()
    desk.kill()
