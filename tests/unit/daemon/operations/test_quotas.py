"""Quotas: what one user may use, who has none, and what is shown of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from helpers.writer import Clock, Desk, Host
from trackd.operations.quotas import KEPT_REPLY_BYTES, KEPT_SESSIONS, MOST_USERS, QUOTAS
from trackd.sessions.identity import Peer
from trackd.sessions.use import REPLY_OVERHEAD

UID = 1000
LIMITS: dict[str, Any] = {"quota_sessions": 2, "quota_leases": 2, "quota_waiters": 1}
REPLY_BYTES = 1100


@pytest.fixture
def desk(request: pytest.FixtureRequest) -> Iterator[Desk]:
    host = Host()
    with host.seen():
        desk = Desk(None, Clock(), **LIMITS, **getattr(request, "param", {}))
        yield desk
        desk.kill()


class Client:
    """A session of one user; it marks nothing as done."""

    def __init__(self, desk: Desk, number: int, uid: int = UID) -> None:
        self.desk, self.token, self.peer = desk, number.to_bytes(16, "big"), Peer(uid, uid, 0)
        self.seq = 0

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        self.seq += 1
        reply = self.desk.ask({"op": op, "seq": self.seq, "token": self.token, **fields}, self.peer)
        return {"parked": True} if reply is None else reply

    def refusal(self, op: str, **fields: Any) -> tuple[Any, ...]:
        """Return the quota that a request meets, what is used and what is allowed."""
        reply = self.ask(op, **fields)
        return tuple(reply[name] for name in ("error", "quota", "used", "allowed"))


def opened(desk: Desk, number: int, uid: int = UID) -> Client:
    client = Client(desk, number, uid)
    assert "error" not in client.ask("open")
    return client


def test_a_user_opens_as_many_sessions_as_the_quota_allows(desk: Desk) -> None:
    first = opened(desk, 1)
    opened(desk, 2)
    assert Client(desk, 3).refusal("open") == ("quota_exceeded", "sessions", 2, 2)
    assert "error" not in first.ask("open"), "it is open already"
    opened(desk, 4, UID + 1)
    opened(desk, 5, 0)
    first.ask("close")
    opened(desk, 3)


def test_leases_that_are_held_and_waited_for_count_together(desk: Desk) -> None:
    first, second = opened(desk, 1), opened(desk, 2)
    first.ask("track_expected", proxies=[[f"p{n}", "", 1, None] for n in range(3)])
    first.ask("set_connection_count", count=1)
    lease = first.ask("acquire")["lease"]
    assert "parked" in first.ask("acquire")
    assert second.refusal("acquire") == ("quota_exceeded", "leases", 2, 2)
    assert second.refusal("try_acquire") == ("quota_exceeded", "leases", 2, 2)
    assert second.ask("adopt", principals=["p2"])["lease"], "an open tunnel stays known"
    assert "error" not in first.ask("claim", lease=lease, principals=["p1"])


def test_a_user_parks_as_many_requests_as_the_quota_allows(desk: Desk) -> None:
    first = opened(desk, 1)
    first.ask("track_expected", proxies=[["p", "", 1, None]])
    other = opened(desk, 2, UID + 1)
    assert other.ask("try_acquire")["lease"]
    assert "parked" in first.ask("acquire")
    assert first.refusal("acquire") == ("quota_exceeded", "waiters", 1, 1)
    assert "parked" in other.ask("acquire")


@pytest.mark.parametrize("desk", [{"quota_reply_bytes": REPLY_BYTES}], indirect=True)
def test_replies_that_are_not_done_are_bounded_in_bytes_but_giving_back_is_not(desk: Desk) -> None:
    first = opened(desk, 1)
    lease = first.ask("try_acquire")["lease"]
    for _ in range(3):
        first.ask("track_expected", proxies=[])
    used = desk.state.sessions.users["", UID].reply_bytes
    assert 4 * REPLY_OVERHEAD < used < 5 * REPLY_OVERHEAD
    assert first.refusal("try_acquire") == ("quota_exceeded", "reply_bytes", used, REPLY_BYTES)
    assert first.ask("release", lease=lease)["released"]
    assert "error" not in opened(desk, 2, UID + 1).ask("track_expected", proxies=[])
    done = [1, first.seq]
    assert "error" not in first.ask("track_expected", proxies=[], done=done)
    first.ask("close")
    assert (
        desk.state.sessions.total.reply_bytes == desk.state.sessions.users["", UID + 1].reply_bytes
    )


@pytest.mark.parametrize("desk", [{"quota_reply_bytes": REPLY_BYTES}], indirect=True)
def test_replies_that_a_request_marks_as_done_make_room_for_its_own(desk: Desk) -> None:
    first = opened(desk, 1)
    while desk.state.sessions.users["", UID].reply_bytes < REPLY_BYTES:  # each changes something
        assert first.ask("adopt", principals=[f"p{first.seq}"])["lease"]
    assert first.ask("adopt", principals=["more"], done=[1, first.seq])["lease"]


@pytest.mark.parametrize("desk", [{"max_sessions": 2}], indirect=True)
def test_some_sessions_are_kept_for_root(desk: Desk) -> None:
    """Without a session an administrator could not end those of others."""
    opened(desk, 1)
    opened(desk, 2, UID + 1)
    other = Client(desk, 3, UID + 2)
    assert other.ask("open")["error"] == "limit_exceeded"
    for number in range(KEPT_SESSIONS):
        opened(desk, 100 + number, 0)
    root = Client(desk, 200, 0)
    assert [client.ask("open")["error"] for client in (other, root)] == 2 * ["limit_exceeded"]


@pytest.mark.parametrize(
    "desk", [{"max_reply_bytes": REPLY_BYTES, "max_outstanding": 9000}], indirect=True
)
def test_the_replies_of_all_sessions_are_bounded_and_some_bytes_are_kept_for_root(
    desk: Desk,
) -> None:
    first, other, root = opened(desk, 1), opened(desk, 2, UID + 1), opened(desk, 3, 0)
    while desk.state.sessions.total.reply_bytes < REPLY_BYTES:
        assert "error" not in first.ask("track_expected", proxies=[])
    reply = other.ask("track_expected", proxies=[])
    assert reply["error"] == "limit_exceeded"
    assert f"{REPLY_BYTES} bytes of replies" in reply["message"]
    lease = root.ask("adopt", principals=["p"])["lease"]
    assert root.ask("force_release", lease=lease)["released"]
    while desk.state.sessions.total.reply_bytes < REPLY_BYTES + KEPT_REPLY_BYTES:
        assert "error" not in root.ask("track_expected", proxies=[])
    assert root.ask("track_expected", proxies=[])["error"] == "limit_exceeded"


def test_the_users_nearest_to_a_quota_are_shown_and_those_without_quotas_last(desk: Desk) -> None:
    for number in range(1, MOST_USERS + 3):
        opened(desk, number, UID + number)
    for number in (100, 101, 102):
        opened(desk, number, 0)
    opened(desk, 200, UID + 5)
    status = opened(desk, 300, 0).ask("status")
    shown = [user["uid"] for user in status["users"]]
    assert (len(shown), shown[0], status["user_count"]) == (MOST_USERS, UID + 5, MOST_USERS + 3)
    assert 0 not in shown
    assert status["users"][0] == {
        "uid": UID + 5,
        "exempt": False,
        "sessions": 2,
        "leases": 0,
        "waiters": 0,
        "reply_bytes": 0,
        "subscriptions": 0,
    }
    families = {each[0]: each[4] for each in opened(desk, 301, 0).ask("metrics")["families"]}
    assert [[str(UID + 5), "sessions"], 2] in families["trackd_quota_used"]
    assert len(families["trackd_quota_used"]) == MOST_USERS * len(QUOTAS)
    assert [["sessions"], 2] in families["trackd_quota_allowed"]
    Client(desk, 400, UID + 5).ask("open")
    families = {each[0]: each[4] for each in opened(desk, 302, 0).ask("metrics")["families"]}
    assert [["sessions"], 1] in families["trackd_quota_refusals"]
    assert [["leases"], 0] in families["trackd_quota_refusals"]
