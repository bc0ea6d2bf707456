"""The rules of docs/protocol.md for the fields of requests: nil, late requests, ids of leases."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from helpers.protocol_document import sections
from helpers.writer import ROWS, AgentOf, Clock, Desk, Host, open_session
from trackd.config.settings import Config
from trackd.operations.dispatch import OPERATIONS
from trackd_client.errors import Code
from trackd_client.wire.protocol import read_seq
from trackd_client.wire.requests import RequestFields

ANY: dict[str, Any] = {
    "reply_if_stale": False,
    "namespace": "",
    "deadline": 1e9,
    "done": [1, 1],
}
#: The optional fields of each operation, each with a value that is not its default.
OPTIONAL: dict[str, dict[str, Any]] = {
    "explain": {"name": "p1"},
    "snapshot": {"cursor": [1, 0], "limit": 1},
    "log": {"after": 1, "limit": 1, "older": True},
    "metrics": {"names": ["trackd_epoch"]},
    "config": {"names": ["history"]},
    "open": {"name": "n", "version": "v", "labels": {"k": "v"}, "cluster": "example.com"},
    "claim": {"follow": True},
    "adopt": {"follow": True},
}
#: The fields without which an operation is refused.
REQUIRED: dict[str, dict[str, Any]] = {
    "snapshot": {"of": "proxies"},
    "track_expected": {"proxies": [["p1", "", 1, None]]},
    "set_connection_count": {"count": 3},
    "is_claimed": {"principals": ["p1"]},
    "claim": {"lease": 1, "principals": ["p1"]},
    "release": {"lease": 1},
    "retire": {"lease": 1},
    "report": {"reports": [[1, 0.25]]},
    "offer": {"lease": 1},
    "adopt": {"principals": ["p9"]},
    "cancel": {"target": 77},
    "force_release": {"lease": 1},
    "end_session": {"session": 99},
    "forget": {"name": "p1"},
    "drop_host": {"host": "host-1"},
    "yield_lead": {"term": 412},
}
NAMES = [op for op in OPERATIONS if op != "probe"]
CASES = [(op, field) for op in NAMES for field in [*ANY, *OPTIONAL.get(op, ())]]


def test_the_optional_fields_are_those_of_the_document() -> None:
    told = sections()
    rows = re.findall(
        r"^\| `(\w+)` \|.*\b(?:optional; )?default: ", told["Fields of every request"], re.MULTILINE
    )
    assert set(rows) == set(ANY)
    for op in NAMES:
        request = told[op].split("| reply field |")[0]
        rows = re.findall(r"^\| `(\w+)` \|.*(?:default: |without it)", request, re.MULTILINE)
        assert set(rows) == set(OPTIONAL.get(op, ())), op


def told(desk: Desk, agent: AgentOf, op: str, fields: dict[str, Any]) -> dict[str, Any] | None:
    """Return what a fresh daemon replies, without what differs from run to run."""
    agent.ask(desk, "track_expected", proxies=ROWS)
    lease = agent.ask(desk, "try_acquire")["lease"]
    if op in ("retire", "offer"):
        agent.ask(desk, "claim", lease=lease, principals=["p1"])
    reply = desk.ask(agent.body(op, **REQUIRED.get(op, {}) | fields), agent.peer)
    if reply is not None and op == "log":
        reply["events"] = [event[0] for event in reply["events"]]
    changing = {"tracker_id", "clock", "uptime", "families", "boot_id"}
    changing |= {"commit_mean", "commit_p50", "commit_p99"}
    return reply and {name: value for name, value in reply.items() if name not in changing}


@pytest.mark.parametrize(("op", "field"), CASES)
def test_nil_in_an_optional_field_is_the_same_as_no_field(
    tmp_path: Path, clock: Clock, host: Host, op: str, field: str
) -> None:
    replies = []
    for fields in ({}, {field: None}):
        desk = Desk(None, clock, admin_users=(1000,))
        desk.lead()
        replies.append(told(desk, open_session(desk, host, 5), op, fields))
        desk.kill()
    assert replies[0] == replies[1]
    assert replies[0] is None or "error" not in replies[0]


@pytest.mark.parametrize(
    ("op", "field"), [(op, field) for op in REQUIRED for field in REQUIRED[op]]
)
def test_nil_in_a_required_field_is_refused(
    desk: Desk, agent: AgentOf, op: str, field: str
) -> None:
    assert OPERATIONS[op].admin or (
        agent.ask(desk, op, **REQUIRED[op] | {field: None})["error"] == Code.INVALID_ARGUMENT
    )


# late requests


@pytest.mark.parametrize("wanted", [None, False, True])
@pytest.mark.parametrize("op", ["heartbeat", "try_acquire", "acquire", "open"])
def test_a_late_request_is_answered_as_stale_only_when_its_client_asks_for_that(
    desk: Desk, agent: AgentOf, clock: Clock, host: Host, op: str, wanted: bool | None
) -> None:
    asker = AgentOf(7, host.start(70)) if op == "open" else agent
    late = asker.body(op, deadline=clock.now - 2.5, reply_if_stale=wanted)
    revision = desk.state.revision
    reply = desk.ask(late, asker.peer)
    if not wanted:
        assert reply is None
    else:
        assert reply is not None
        assert (reply["seq"], reply["error"]) == (late["seq"], Code.STALE)
        assert "2.5 s" in reply["message"]
    assert desk.state.revision == revision
    again = desk.ask({**late, "deadline": clock.now + 1}, asker.peer)
    assert again is not None, "the number is free"
    assert "error" not in again


def test_a_wrong_wish_about_a_late_request_is_refused(
    desk: Desk, agent: AgentOf, clock: Clock
) -> None:
    reply = agent.ask(desk, "heartbeat", deadline=clock.now - 1, reply_if_stale="yes")
    assert reply["error"] == Code.INVALID_ARGUMENT


def test_a_request_that_never_becomes_stale_is_handled_whatever_it_wishes(
    desk: Desk, agent: AgentOf, clock: Clock
) -> None:
    lease = agent.ask(desk, "try_acquire")["lease"]
    past = clock.now - 1000
    reply = agent.ask(desk, "release", lease=lease, deadline=past, reply_if_stale=True)
    assert reply["released"] is True


# which state, and whose lease


@pytest.mark.parametrize("op", ["ping", "log", "snapshot", "hello", "status"])
def test_replies_name_the_state_that_they_describe(
    tmp_path: Path, clock: Clock, host: Host, op: str
) -> None:
    def ask() -> tuple[int, str]:
        desk = Desk(tmp_path / "a", clock)
        agent = open_session(desk, host, 5)
        reply = agent.ask(desk, op, **REQUIRED.get(op, {}))
        assert reply["tracker_id"] == desk.state.tracker_id
        desk.kill()
        return reply["epoch"], reply["tracker_id"]

    (tmp_path / "a").mkdir(mode=0o700)
    first, second = ask(), ask()
    assert second == (2, first[1])
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "a").mkdir(mode=0o700)
    third = ask()
    assert third[0] == 1
    assert third[1] != first[1]


@pytest.mark.parametrize("op", ["claim", "release"])
def test_an_old_token_protects_the_lease_that_got_the_same_id_after_lost_state(
    clock: Clock, host: Host, op: str
) -> None:
    before = Desk(None, clock)
    old = open_session(before, host, 5)
    old.ask(before, "track_expected", proxies=ROWS)
    lease = old.ask(before, "try_acquire")["lease"]
    before.kill()

    now = Desk(None, clock)
    new = open_session(now, host, 6)
    new.ask(now, "track_expected", proxies=ROWS)
    assert new.ask(now, "try_acquire")["lease"] == lease, "ids begin at 1 again"
    fields = {"lease": lease} | ({"principals": ["p1"]} if op == "claim" else {})
    assert old.ask(now, op, **fields)["error"] == Code.SESSION_UNKNOWN
    old.token = (7).to_bytes(16, "big")
    old.ask(now, "open")
    assert old.ask(now, op, **fields)["error"] == Code.NOT_OWNER
    assert now.state.tracker.inflight == 1
    now.kill()


@pytest.mark.parametrize(
    ("value", "seq"),
    [
        *[(7, 7), (7.0, 7), (7.5, 0), (2.0**53, 2**53), (2.0**60, 0), (0.0, 0), (-1.0, 0)],
        *[(float("nan"), 0), (float("inf"), 0), ("7", 0), (None, 0), (True, 0), (2**64, 0)],
    ],
)
def test_a_number_is_read_also_when_it_was_sent_as_a_float(value: object, seq: int) -> None:
    assert read_seq(value) == seq


def test_each_operation_decodes_the_fields_of_its_own_class() -> None:
    for op, operation in OPERATIONS.items():
        if op in {"open", "probe"}:  # fields of a session that is open already; no fields
            assert operation.decode == RequestFields.decode
        else:
            decoded = operation.decode(REQUIRED.get(op, {}), Config(cluster_name="example.com"))
            assert decoded.op == op
