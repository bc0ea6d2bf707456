"""The way of a request: who asks, how often, how late, and which error wins."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from helpers.writer import ROWS, AgentOf, Clock, Desk, Faults, Host, observe, open_session
from trackd.sessions.identity import Peer
from trackd_client.errors import Code
from trackd_client.wire.errors import ProtocolError

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


# which error wins

ADMINS = 2002


class Case:
    """A request and its peer, to be made wrong; until then the daemon serves it."""

    def __init__(self, desk: Desk, op: str, **fields: Any) -> None:
        self.desk = desk
        self.agent = AgentOf(5, uid=54321)
        self.agent.peer = self.agent.peer._replace(gid=ADMINS)
        self.peer: Peer | None = self.agent.peer
        self.problem: ProtocolError | None = None
        if op != "open":
            self.agent.ask(desk, "open")
        self.body = self.agent.body(op, **fields)
        self.seq: int = self.body["seq"]

    def be(self, **changes: Any) -> None:
        """Let the kernel name somebody else as the peer."""
        if self.peer is not None:
            self.peer = self.peer._replace(**changes)

    def reply(self, wrong: Iterable[Wrong]) -> dict[str, Any] | None:
        """Make things wrong, what lies in the past first; ask, and return the reply."""
        for each in sorted(wrong, key=lambda each: each.step):
            each.change(self)
        return self.desk.ask(self.body, self.peer, problem=self.problem)


class Wrong(NamedTuple):
    """One thing that can be wrong with a request, and the outcome when nothing else is.

    Attributes:
        change: makes it wrong.
        code: of the error; "" when there is no error, and None when there is no reply.
        says: is in the error's sentence.
        step: the order in which several things are made wrong.
    """

    change: Callable[[Case], object]
    code: str | None
    says: str = ""
    step: int = 9

    def is_outcome(self, reply: dict[str, Any] | None) -> bool:
        """Tell whether a reply is the one that this earns."""
        if reply is None or self.code is None:
            return reply is None and self.code is None
        return reply.get("error", "") == self.code and self.says in reply.get("message", "")


def field(code: str, says: str, **values: Any) -> Wrong:
    """Return what is wrong with fields of the request."""
    return Wrong(lambda case: case.body.update(values), code, says)


def send_before(case: Case) -> None:
    case.desk.ask(case.body, case.agent.peer)


def park_before(case: Case) -> None:
    while case.agent.ask(case.desk, "try_acquire", done=[1, case.seq - 1])["lease"] is not None:
        pass
    parked = case.agent.body("acquire", seq=case.seq)
    assert case.desk.ask(parked, case.agent.peer) is None


def watch_before(case: Case) -> None:
    watch = case.agent.body("watch_session", seq=case.seq)
    assert case.desk.ask(watch, case.agent.peer) is None


def be_done_before(case: Case) -> None:
    case.agent.ask(case.desk, "heartbeat", done=[case.seq, case.seq])


def leave_no_room(case: Case) -> None:
    for _ in range(8):  # as the fixture's max_outstanding says
        case.agent.ask(case.desk, "release", lease=99)


def leave_no_session(case: Case) -> None:
    for number in (101, 102):  # as the fixture's max_sessions says
        case.desk.ask(AgentOf(number).body("open"), AgentOf(number).peer)


IN_THE_FRAME = ProtocolError(Code.MALFORMED, "not a map")
IN_ITS_ENVELOPE = {
    "the frame": Wrong(
        lambda case: setattr(case, "problem", IN_THE_FRAME), Code.MALFORMED, "not a map"
    ),
    "the operation": field(Code.UNKNOWN_OPERATION, "'fly'", op="fly"),
    "the namespace": field(Code.INVALID_ARGUMENT, "namespace", namespace="b"),
    "the peer": Wrong(
        lambda case: setattr(case, "peer", None), Code.PERMISSION_DENIED, "the kernel"
    ),
    "the token": field(Code.INVALID_ARGUMENT, "token", token=b"short"),
}
#: What can be wrong with a request of a session, in the order in which the daemon looks: of two
#: things that are wrong the first one is the outcome. The request is `forget`, an admin's.
WITHIN_A_SESSION: dict[str, Wrong] = {
    **IN_ITS_ENVELOPE,
    "an unknown session": field(Code.SESSION_UNKNOWN, "does not know", token=bytes(16)),
    "another user": Wrong(
        lambda case: case.be(uid=54322), Code.PERMISSION_DENIED, "to another user"
    ),
    "an ended session": Wrong(
        lambda case: case.agent.ask(case.desk, "close"), Code.SESSION_ENDED, step=3
    ),
    "the field done": field(Code.INVALID_ARGUMENT, "done", done=[2, 1]),
    "done": Wrong(be_done_before, None, step=1),
    "remembered": Wrong(send_before, "", step=1),
    "watching": Wrong(watch_before, None, step=1),
    "parked": Wrong(park_before, None, step=1),
    "the deadline": field(Code.INVALID_ARGUMENT, "deadline", deadline="soon"),
    "stale": Wrong(lambda case: case.body.update(deadline=1.0), None),
    "the role": Wrong(lambda case: case.be(gid=1), Code.PERMISSION_DENIED, "the role admin"),
    "the store": Wrong(
        lambda case: case.desk.fail_store("disk full"), Code.UNAVAILABLE, "disk full"
    ),
    "no room": Wrong(leave_no_room, Code.LIMIT_EXCEEDED, "the session has 8 requests", step=2),
    "a field": field(Code.INVALID_ARGUMENT, "name", name=7),
}
#: The same of `open`, which has no session yet.
WHEN_IT_OPENS: dict[str, Wrong] = {
    **IN_ITS_ENVELOPE,
    "the deadline": field(Code.INVALID_ARGUMENT, "deadline", deadline="soon"),
    "stale": WITHIN_A_SESSION["stale"],
    "the store": WITHIN_A_SESSION["the store"],
    "the cluster": field(Code.WRONG_CLUSTER, "'other.example'", cluster="other.example"),
    "the name": field(Code.LIMIT_EXCEEDED, "name", name="x" * 256),
    "the version": field(Code.LIMIT_EXCEEDED, "version", version="x" * 256),
    "no map of labels": field(Code.INVALID_ARGUMENT, "labels must be a map", labels=[]),
    "17 labels": field(Code.LIMIT_EXCEEDED, "17 labels", labels={str(i): "" for i in range(17)}),
    "a label's name": field(Code.INVALID_ARGUMENT, "a label's name", labels={"": 1}),
    "a label": field(Code.INVALID_ARGUMENT, "label k", labels={"k": 1}),
    "too many sessions": Wrong(
        leave_no_session, Code.LIMIT_EXCEEDED, "the daemon has 2 sessions", step=1
    ),
    "the process": Wrong(lambda case: case.be(pid=2**22 + 1), Code.SESSION_ENDED, "process"),
}
#: What cannot be so at once.
EXCLUSIVE = (
    {"the token", "an unknown session"},
    {"done", "remembered", "watching", "parked"},
    {"the deadline", "stale"},
    {"no map of labels", "17 labels", "a label's name", "a label"},
)


def pairs(order: dict[str, Wrong]) -> list[tuple[str, str]]:
    """Return all pairs of what can be wrong at once, the one that the daemon sees first first."""
    return [
        pair
        for pair in itertools.combinations(order, 2)
        if not any(set(pair) <= exclusive for exclusive in EXCLUSIVE)
    ]


@pytest.fixture
def admins_desk(clock: Clock, host: Host) -> Iterator[Desk]:
    desk = Desk(None, clock, max_outstanding=8, max_sessions=2, admin_groups=(ADMINS,))
    yield desk
    desk.kill()


@pytest.mark.parametrize(
    ("op", "order"), [("forget", WITHIN_A_SESSION), ("open", WHEN_IT_OPENS)], ids=["forget", "open"]
)
def test_each_thing_that_is_wrong_has_its_outcome(
    clock: Clock, host: Host, op: str, order: dict[str, Wrong]
) -> None:
    for name, wrong in [("nothing", Wrong(lambda _: None, "")), *order.items()]:
        desk = Desk(None, clock, max_outstanding=8, max_sessions=2, admin_groups=(ADMINS,))
        reply = Case(desk, op, name="p1").reply([wrong])
        assert wrong.is_outcome(reply), f"{name}: {reply}"
        desk.kill()


@pytest.mark.parametrize(("first", "second"), pairs(WITHIN_A_SESSION), ids=str)
def test_of_two_things_that_are_wrong_the_first_is_the_outcome(
    admins_desk: Desk, first: str, second: str
) -> None:
    both = WITHIN_A_SESSION[first], WITHIN_A_SESSION[second]
    reply = Case(admins_desk, "forget", name="p1").reply(both)
    assert both[0].is_outcome(reply), reply


@pytest.mark.parametrize(("first", "second"), pairs(WHEN_IT_OPENS), ids=str)
def test_of_two_things_that_are_wrong_with_an_open_the_first_is_the_outcome(
    admins_desk: Desk, first: str, second: str
) -> None:
    both = WHEN_IT_OPENS[first], WHEN_IT_OPENS[second]
    reply = Case(admins_desk, "open", name="p1").reply(both)
    assert both[0].is_outcome(reply), reply


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
