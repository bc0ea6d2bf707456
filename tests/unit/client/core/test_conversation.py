"""The client's side of a session: numbers, what is done with, the clock, what makes it useless."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trackd_client import __version__
from trackd_client.core.conversation import (
    RESEND_SECONDS,
    Conversation,
    Request,
    Session,
    find_reply,
    lengthen,
    read_reply,
)
from trackd_client.errors import (
    CUT_OFF,
    Code,
    DaemonAbsent,
    DaemonFailed,
    InvalidRequest,
    LeaseExpired,
    LimitExceeded,
    NoAnswer,
    NotOwner,
    PermissionRefused,
    QuotaExceeded,
    Refused,
    SessionLost,
    StoreUnavailable,
    TrackdError,
    TrackerClosed,
    VersionMismatch,
    WrongCluster,
)
from trackd_client.wire.checks import check_done
from trackd_client.wire.protocol import REPLY, REQUEST, TOKEN_BYTES, Limits, Reply, decode, encode

NOW = 4000.25


def conversation(
    *,
    cluster: str | None = None,
    name: str | None = None,
    labels: Mapping[str, str] | None = None,
    clock: Callable[[], float] = lambda: NOW,
) -> Conversation:
    return Conversation(cluster=cluster, name=name, labels=labels, clock=clock)


def opened(talk: Conversation) -> Session:
    """Open a session whose requests are all done, and return it."""
    session = talk.begin_session()
    request = talk.open(session)
    talk.take_open(session, talk.result(request, ok(request, session=1, heartbeat_ttl=None)))
    return session


def body_of(request: Request) -> dict[str, Any]:
    decoded = decode(request.frame)
    assert decoded is not None
    kind, body = decoded
    assert kind == REQUEST
    return body


def ask(
    talk: Conversation, session: Session | None, op: str = "heartbeat", **fields: Any
) -> Request:
    return talk.request(op, fields, None, session)


def ok(request: Request, **fields: Any) -> Reply:
    return Reply(request.seq, {"seq": request.seq, "revision": 1, **fields})


def error(request: Request, code: str, **fields: Any) -> Reply:
    return ok(request, error=code, message=f"because of {code}", **fields)


# -- numbers, and what is done -----------------------------------------------------------


def test_numbers_count_up_from_1_whoever_asks() -> None:
    talk = conversation()
    hello = talk.hello()
    session = talk.begin_session()
    requests = [
        hello,
        talk.open(session),
        ask(talk, session),
        ask(talk, None, "ping"),
        ask(talk, session),
    ]
    assert [request.seq for request in requests] == [1, 2, 3, 4, 5]
    assert [body_of(request)["seq"] for request in requests] == [1, 2, 3, 4, 5]


def test_a_request_without_a_session_carries_neither_token_nor_done() -> None:
    assert body_of(conversation().hello()) == {"op": "hello", "seq": 1}


def test_a_request_of_a_session_carries_its_token_and_what_is_done() -> None:
    talk = conversation()
    session = opened(talk)
    assert body_of(ask(talk, session, lease=7)) == {
        "op": "heartbeat",
        "lease": 7,
        "token": session.token,
        "done": [1, 1],
        "seq": 2,
    }


def test_the_first_request_of_all_has_nothing_done() -> None:
    talk = conversation()
    assert body_of(talk.open(talk.begin_session()))["done"] == []


def test_requests_that_wait_leave_gaps_in_what_is_done() -> None:
    talk = conversation()
    session = opened(talk)
    first, second, third = (ask(talk, session) for _ in range(3))  # 2, 3, 4
    assert body_of(third)["done"] == [1, 1]
    talk.settle(second)
    assert body_of(ask(talk, session))["done"] == [1, 1, 3, 3]  # 5
    talk.settle(third)
    assert body_of(ask(talk, session))["done"] == [1, 1, 3, 4]  # 6
    talk.settle(first)
    assert body_of(ask(talk, session))["done"] == [1, 4]  # 7: 5 and 6 wait


def test_numbers_of_no_session_or_another_one_are_done_with() -> None:
    talk = conversation()
    lost = opened(talk)  # 1
    ask(talk, lost)  # 2, never answered
    ask(talk, None, "ping")  # 3, never answered
    talk.lose(lost)
    session = talk.begin_session()
    assert body_of(talk.open(session))["done"] == [1, 3]


def test_a_request_that_is_settled_twice_is_done_once() -> None:
    talk = conversation()
    session = opened(talk)
    request = ask(talk, session)
    talk.settle(request)
    talk.settle(request)
    assert body_of(ask(talk, session))["done"] == [1, 2]


def test_what_cannot_be_sent_is_done_at_once() -> None:
    talk = conversation()
    session = opened(talk)
    with pytest.raises(InvalidRequest, match="cannot be sent"):
        ask(talk, session, count=2**64)
    assert body_of(ask(talk, session))["done"] == [1, 2]


class Done(RuleBasedStateMachine):
    """Whatever is asked and answered in whichever order, `done` says what is not outstanding."""

    def __init__(self) -> None:
        super().__init__()
        self.talk = conversation()
        self.outstanding: list[Request] = []
        self.last = 0

    @initialize()
    def open(self) -> None:
        self.session = opened(self.talk)
        self.last = 1

    @rule(within=st.booleans())
    def ask(self, within: bool) -> None:
        request = ask(self.talk, self.session if within else None)
        self.last += 1
        assert request.seq == self.last
        if within:
            self.outstanding.append(request)
            flat = check_done(body_of(request)["done"], 1000)
            pairs = list(zip(flat[::2], flat[1::2], strict=True))
            told = {number for first, last in pairs for number in range(first, last + 1)}
            waiting = {request.seq for request in self.outstanding}
            assert told == set(range(1, self.last + 1)) - waiting
            gaps = zip(flat[1:-1:2], flat[2::2], strict=True)
            assert all(last + 1 < first for last, first in gaps)

    @precondition(lambda self: self.outstanding)
    @rule(data=st.data(), answered=st.booleans())
    def end(self, data: st.DataObject, answered: bool) -> None:
        index = data.draw(st.integers(0, len(self.outstanding) - 1))
        request = self.outstanding.pop(index)
        if answered:
            self.talk.result(request, ok(request))
        else:
            self.talk.settle(request)

    @invariant()
    def numbers_are_kept_while_they_wait(self) -> None:
        if self.last:
            assert self.session.outstanding == {request.seq for request in self.outstanding}


TestDone = Done.TestCase


# -- the session -------------------------------------------------------------------------


def test_a_session_has_a_token_of_its_own() -> None:
    tokens = [conversation().begin_session().token for _ in range(100)]
    assert all(len(token) == TOKEN_BYTES for token in tokens)
    assert len(set(tokens)) == 100


def test_a_session_whose_opening_was_not_answered_is_opened_with_the_same_token() -> None:
    talk = conversation()
    session = talk.begin_session()
    talk.settle(talk.open(session))
    assert talk.begin_session() is session
    assert talk.close() is session, "the daemon may have opened it"


def test_opening_tells_who_asks_and_which_cluster_is_meant() -> None:
    talk = conversation(cluster="example.com", name="agent-1", labels={"unit": "agent@1"})
    body = body_of(talk.open(talk.begin_session()))
    assert {name: body[name] for name in ("op", "name", "version", "labels", "cluster")} == {
        "op": "open",
        "name": "agent-1",
        "version": __version__,
        "labels": {"unit": "agent@1"},
        "cluster": "example.com",
    }


def test_opening_names_no_cluster_when_any_will_do() -> None:
    talk = conversation()
    body = body_of(talk.open(talk.begin_session()))
    assert "cluster" not in body
    assert (body["name"], body["labels"]) == ("", {})


@pytest.mark.parametrize(("told", "ttl"), [(None, None), (30, 30.0), (0.5, 0.5)])
def test_an_open_session_has_a_number_and_perhaps_a_time_to_live(told: Any, ttl: Any) -> None:
    talk = conversation()
    session = talk.begin_session()
    talk.take_open(session, {"session": 7, "heartbeat_ttl": told})
    assert talk.session is session
    assert talk.close() is session
    assert (session.id, session.heartbeat_ttl) == (7, ttl)


def test_a_session_is_lost_once_and_the_next_one_is_another() -> None:
    talk = conversation()
    session = opened(talk)
    assert talk.lose(session)
    assert session.lost
    assert talk.session is None
    assert not talk.lose(session), "it is no news any more"
    assert talk.begin_session().token != session.token


def test_closing_leaves_a_lost_session_alone() -> None:
    talk = conversation()
    talk.lose(opened(talk))
    assert talk.close() is None


def test_a_session_is_opened_before_the_end_sees_it_or_not_at_all() -> None:
    """Another thread may close the tracker at each point of the opening."""
    talk = conversation()
    assert talk.close() is None
    with pytest.raises(TrackerClosed):
        talk.begin_session()

    talk = conversation()
    session = talk.begin_session()
    assert talk.close() is session
    assert not session.perhaps_open
    with pytest.raises(TrackerClosed):
        talk.expect_open(session)

    talk = conversation()
    session = talk.begin_session()
    assert [talk.expect_open(session) for _ in range(2)] == [False, True]
    assert talk.close() is session
    assert session.perhaps_open


@pytest.mark.parametrize("connected", [False, True])
def test_a_session_that_no_daemon_was_asked_to_open_needs_no_end(connected: bool) -> None:
    talk = conversation()
    session = talk.begin_session()

    def fail(error: TrackdError, *, connected: bool) -> None:
        with talk.opening(lambda: connected) as request:
            assert (request.op, request.session) == ("open", session)
            assert session.perhaps_open, "while it is asked"
            raise error

    with pytest.raises(DaemonAbsent):
        fail(DaemonAbsent("none"), connected=connected)
    assert session.perhaps_open == connected
    with pytest.raises(NoAnswer):
        fail(NoAnswer("none"), connected=False)
    assert session.perhaps_open
    with pytest.raises(DaemonAbsent):
        fail(DaemonAbsent("gone meanwhile"), connected=False)
    assert session.perhaps_open, "an earlier request may have reached a daemon"


def test_a_session_that_is_perhaps_open_is_opened_before_it_is_ended() -> None:
    talk = conversation()
    session = talk.begin_session()
    assert [request.op for request in talk.ending(session)] == ["open", "close"]
    talk.take_open(session, {"session": 7})
    assert [request.op for request in talk.ending(session)] == ["close"]


def test_losing_an_old_session_leaves_the_present_one_alone() -> None:
    talk = conversation()
    old = opened(talk)
    talk.lose(old)
    present = opened(talk)
    talk.lose(old)
    assert talk.session is present
    assert not present.lost


def test_a_session_that_could_not_be_opened_is_not_opened_again() -> None:
    talk = conversation()
    session = talk.begin_session()
    talk.lose(session)
    assert talk.begin_session() is not session


# -- replies -----------------------------------------------------------------------------


def test_a_reply_gives_its_fields_and_makes_its_request_done() -> None:
    talk = conversation()
    session = opened(talk)
    request = ask(talk, session, "is_claimed")
    assert talk.result(request, ok(request, claimed=True))["claimed"]
    assert not session.outstanding


def test_a_grant_is_done_once_its_lease_is_in_good_hands() -> None:
    talk = conversation()
    session = opened(talk)
    request = ask(talk, session, "try_acquire")
    assert talk.result(request, ok(request, lease=3))["lease"] == 3
    assert session.outstanding == {request.seq}  # so that `cancel` can still take it back
    talk.settle(request)
    assert not session.outstanding


ERRORS: dict[str, type[TrackdError]] = {
    Code.MALFORMED: InvalidRequest,
    Code.UNSUPPORTED_VERSION: VersionMismatch,
    Code.UNKNOWN_OPERATION: InvalidRequest,
    Code.INVALID_ARGUMENT: InvalidRequest,
    Code.LIMIT_EXCEEDED: LimitExceeded,
    Code.QUOTA_EXCEEDED: QuotaExceeded,
    Code.WRONG_CLUSTER: WrongCluster,
    Code.PERMISSION_DENIED: PermissionRefused,
    Code.SESSION_UNKNOWN: SessionLost,
    Code.SESSION_ENDED: SessionLost,
    Code.NOT_OWNER: NotOwner,
    Code.LEASE_EXPIRED: LeaseExpired,
    Code.UNAVAILABLE: StoreUnavailable,
    Code.STALE: Refused,  # our client asks for silence
    Code.INTERNAL: DaemonFailed,
}


def test_every_code_has_an_error() -> None:
    codes = {value for name, value in vars(Code).items() if name.isupper()}
    assert set(ERRORS) == codes


@pytest.mark.parametrize(("code", "kind"), ERRORS.items())
def test_a_refusal_raises_the_error_of_its_code(code: str, kind: type[TrackdError]) -> None:
    talk = conversation()
    session = opened(talk)
    request = ask(talk, session)
    with pytest.raises(kind, match=f"because of {code}") as caught:
        talk.result(request, error(request, code, retry_after=1.5))
    assert type(caught.value) is kind
    assert not session.outstanding, "a refusal is an answer"
    if isinstance(caught.value, Refused):
        assert (caught.value.code, caught.value.retry_after) == (code, 1.5)


@pytest.mark.parametrize("code", ["too_late", Code.SESSION_UNKNOWN])
def test_a_sentence_of_the_daemon_is_one_line_that_no_terminal_obeys(code: str) -> None:
    talk = conversation()
    request = ask(talk, opened(talk))
    with pytest.raises(TrackdError) as caught:
        talk.result(request, ok(request, error=code, message="bad\x1b[2J\nnews\u202e"))
    assert str(caught.value).startswith("bad\\x1b[2J\\nnews\\u202e")
    assert str(caught.value).isprintable()


def test_a_quota_that_is_used_up_says_which_and_how_much() -> None:
    talk = conversation()
    request = ask(talk, opened(talk))
    fields = {"quota": "leases", "used": 7, "allowed": 5}
    with pytest.raises(QuotaExceeded) as caught:
        talk.result(request, error(request, Code.QUOTA_EXCEEDED, **fields))
    assert (caught.value.quota, caught.value.used, caught.value.allowed) == ("leases", 7, 5)


def test_a_code_of_a_newer_daemon_raises_the_general_refusal() -> None:
    talk = conversation()
    request = ask(talk, None)
    with pytest.raises(Refused, match="because of too_late") as caught:
        talk.result(request, error(request, "too_late"))
    assert type(caught.value) is Refused
    assert (caught.value.code, caught.value.retry_after) == ("too_late", None)


def test_a_session_that_is_gone_says_what_comes_next() -> None:
    talk = conversation()
    request = ask(talk, opened(talk))
    with pytest.raises(SessionLost, match="the next call opens a fresh session"):
        talk.result(request, error(request, Code.SESSION_ENDED))


@pytest.mark.parametrize("code", [Code.SESSION_ENDED, Code.UNAVAILABLE])
def test_an_error_has_the_reason_that_the_daemon_gives(code: str) -> None:
    talk = conversation()
    request = ask(talk, opened(talk))
    body = {"seq": request.seq, "error": code, "message": "m", "reason": CUT_OFF}
    with pytest.raises(TrackdError) as caught:
        talk.result(request, Reply(request.seq, body))
    assert caught.value.reason == CUT_OFF
    with pytest.raises(TrackdError) as caught:
        talk.result(request, error(request, code))
    assert caught.value.reason == ""


def test_what_answers_in_another_protocol_is_no_daemon() -> None:
    with pytest.raises(NoAnswer, match="not a trackd daemon"):
        read_reply(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def test_what_no_call_waits_for_is_a_reply_or_nothing() -> None:
    reply = Reply(3, {"seq": 3})
    assert find_reply(encode(REPLY, {"seq": 3})) == read_reply(encode(REPLY, {"seq": 3})) == reply
    assert find_reply(b"HTTP/1.1 400") is None


def test_what_is_no_reply_is_skipped() -> None:
    assert read_reply(encode(REQUEST, {"op": "ping", "seq": 1})) is None
    assert read_reply(encode(9, {})) is None
    assert read_reply(encode(REPLY, {"seq": 4, "revision": 0})) == Reply(
        4, {"seq": 4, "revision": 0}
    )


# -- the daemon's clock and limits ---------------------------------------------------------


def greet(talk: Conversation, **fields: Any) -> None:
    request = talk.hello()
    talk.take_hello(talk.result(request, ok(request, **fields)))


def test_a_deadline_is_told_by_the_clock_of_the_daemon() -> None:
    talk = conversation()
    assert "deadline" not in body_of(talk.request("acquire", {}, None, None))
    assert body_of(talk.request("acquire", {}, NOW + 5, None))["deadline"] == NOW + 5
    greet(talk, clock=NOW + 1000)
    assert body_of(talk.request("acquire", {}, NOW + 5, None))["deadline"] == NOW + 1005
    assert talk.local(NOW + 1005) == NOW + 5


def test_the_clocks_are_compared_when_the_daemon_answers() -> None:
    times = iter([NOW, NOW + 1, NOW + 60, NOW + 61])  # sent, received; sent, received
    talk = conversation(clock=lambda: next(times))
    greet(talk, clock=NOW + 0.9)
    assert talk.local(NOW) == NOW, "what lies between the two is the same clock, however late"
    greet(talk, clock=NOW)
    assert talk.local(NOW) == NOW + 61, "the daemon started anew in another time namespace"


@pytest.mark.parametrize("clock", [None, "soon"])
def test_a_daemon_that_tells_no_clock_is_taken_to_have_the_same(clock: object) -> None:
    talk = conversation()
    greet(talk, clock=clock)
    assert talk.said_hello
    assert talk.local(NOW) == NOW


def test_limits_are_the_daemons_and_the_defaults_where_it_tells_none() -> None:
    talk = conversation()
    greet(talk, limits={"max_frame": 2048, "max_name": "many", "max_moons": 1})
    assert talk.limits == Limits()._replace(max_frame=2048)
    greet(talk, limits=None)
    assert talk.limits == Limits()._replace(max_frame=2048)


def test_a_request_that_is_too_large_for_the_daemon_is_not_sent() -> None:
    talk = conversation()
    greet(talk, limits={"max_frame": 1024})
    frame = ask(talk, None, text="").frame
    fits = "x" * (1024 - len(frame) - 2)  # a long text has a longer head
    assert len(ask(talk, None, text=fits).frame) == 1024
    with pytest.raises(LimitExceeded, match="1025 bytes; the daemon takes 1024") as caught:
        ask(talk, None, text=fits + "x")
    assert caught.value.code == Code.LIMIT_EXCEEDED


def test_a_daemon_of_another_cluster_is_refused() -> None:
    talk = conversation(cluster="example.com")
    with pytest.raises(WrongCluster, match=r"'example.org', not 'example.com'"):
        greet(talk, cluster="example.org")
    assert not talk.said_hello
    greet(talk, cluster="example.com")
    assert talk.said_hello


def test_any_cluster_will_do_when_none_was_asked_for() -> None:
    talk = conversation()
    greet(talk, cluster="example.org")
    assert talk.said_hello


# -- when it may not be used -------------------------------------------------------------


def test_a_closed_conversation_says_so() -> None:
    talk = conversation()
    talk.check_usable()
    talk.close()
    with pytest.raises(TrackerClosed):
        talk.check_usable()


FORK = """
import os, sys
from trackd_client.wire.clock import boottime
from trackd_client.errors import UsedAfterFork
from trackd_client.core.conversation import Conversation

talk = Conversation(cluster=None, name=None, labels=None, clock=boottime)
if os.fork():
    _, status = os.wait()
    talk.check_usable()
    sys.exit(os.waitstatus_to_exitcode(status))
try:
    talk.check_usable()
except UsedAfterFork as error:
    sys.exit(0 if str(os.getppid()) in str(error) else "the error does not name the parent")
sys.exit("the child may use what is its parent's")
"""


def test_a_child_process_is_told_to_make_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK], check=False, capture_output=True, text=True, timeout=20
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_request_within_another_says_of_no_number_that_it_is_done() -> None:
    """A signal handler makes it between the choice of the outer one's number and its note."""
    talk = conversation()
    session = opened(talk)
    numbers = talk._numbers
    nested: list[Request] = []
    chances = [True]

    class Interrupted:
        def __next__(self) -> int:
            number = next(numbers)
            if chances and chances.pop():
                nested.append(talk.request("ping", {}, None, session))
            return number

    talk._numbers = Interrupted()  # type: ignore[assignment]
    outer = talk.request("ping", {}, None, session)
    assert body_of(nested[0])["done"] == []
    assert body_of(outer)["done"] == [1, outer.seq - 1]
    later = talk.request("ping", {}, None, session)
    assert body_of(later)["done"] == [1, outer.seq - 1]


def test_a_session_serves_the_user_that_opened_it(monkeypatch: pytest.MonkeyPatch) -> None:
    talk = conversation()
    session = opened(talk)
    monkeypatch.setattr("os.geteuid", lambda: session.user + 1)
    with pytest.raises(PermissionRefused, match="close this tracker and make another"):
        talk.request("try_acquire", {}, None, session)
    talk.request("release", {"lease": 1}, None, session)
    talk.request("close", {}, None, session)
    talk.request("status", {}, None, None)


def test_pauses_between_copies_grow_up_to_half_a_minute() -> None:
    pauses = [RESEND_SECONDS]
    while len(pauses) < 8:
        pauses.append(lengthen(pauses[-1]))
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
