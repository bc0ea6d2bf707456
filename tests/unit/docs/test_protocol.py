"""docs/protocol.md, its examples and the code say the same, down to the bytes of each message."""

from __future__ import annotations

import re
from contextlib import suppress

import pytest

from helpers.protocol_document import Message, messages, pack, sections, shown, table
from trackd.operations.agents import FEATURES
from trackd.operations.dispatch import OPERATIONS as ALL_OPERATIONS
from trackd.operations.operation import PROBE
from trackd_client.core.conversation import Conversation, Request, Session
from trackd_client.errors import Code, TrackdError
from trackd_client.wire import protocol
from trackd_client.wire.errors import ProtocolError
from trackd_client.wire.protocol import (
    FRAME_SLACK,
    MAX_LABEL_BYTES,
    MAX_LABELS,
    NOTICE,
    REPLY,
    REQUEST,
    SESSIONLESS,
    TOKEN_BYTES,
    VERSION,
    Limits,
    decode,
    decode_reply,
    encode,
)

#: Those of the protocol; the daemon serves one more, for itself alone.
OPERATIONS = {op: operation for op, operation in ALL_OPERATIONS.items() if op != PROBE}
PARKED = {"acquire", "watch_session"}
MESSAGES = messages()
CONVERSATIONS = list(dict.fromkeys(message.section for message in MESSAGES))
#: Fields that any request or reply may have; all others belong to an operation.
COMMON_REQUEST = {"op", "seq", "token", "done", "deadline", "reply_if_stale", "namespace"}
COMMON_REPLY = {"seq", "revision", "error", "message", "retry_after"}


def name(cell: str) -> str:
    """Return what stands between the backticks of a cell, link or no link."""
    match = re.fullmatch(r"\[?`(\w+)`(\]\(.*\))?", cell)
    assert match is not None, f"{cell!r} is no name"
    return match[1]


def yes_or_no(value: object) -> str:
    return "yes" if value else "no"


# -- messages -----------------------------------------------------------------------------


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.name)
def test_the_bytes_of_a_message_are_those_of_its_readable_form(message: Message) -> None:
    assert message.frame == pack(message.value), (
        f"{message.name}: run tests/helpers/protocol_document.py to write the bytes"
    )


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.name)
def test_our_codec_writes_and_reads_the_bytes_of_a_message(message: Message) -> None:
    version, kind, body = message.value
    if version != VERSION:
        with pytest.raises(ProtocolError) as caught:
            decode(message.frame)
        assert (caught.value.code, caught.value.seq) == (Code.UNSUPPORTED_VERSION, body["seq"])
    else:
        assert encode(kind, body) == message.frame
        assert decode(message.frame) == (kind, body)


def test_the_file_names_each_message_once_and_says_who_sends_it() -> None:
    names = [(message.section, message.name) for message in MESSAGES]
    assert len(set(names)) == len(names)
    assert [m.name for m in MESSAGES if (m.sender == "client") != (m.kind == REQUEST)] == []
    assert {message.sender for message in MESSAGES} == {"client", "daemon"}


def test_the_messages_in_the_text_are_those_of_the_file() -> None:
    told = {m.name: m for m in MESSAGES if m.section == CONVERSATIONS[0]}
    assert shown(), "the text shows no message"
    for name_, value, frame in shown():
        assert pack(value) == told[name_].frame, name_
        assert frame in {None, told[name_].frame}, name_


@pytest.mark.parametrize("section", CONVERSATIONS)
def test_our_client_sends_the_bytes_of_the_requests(
    section: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = [message for message in MESSAGES if message.section == section]
    opening = next(message.body for message in said if message.body.get("op") == "open")
    monkeypatch.setattr("trackd_client.core.conversation.__version__", opening["version"])
    clock = 4000.25  # the document says so of the first conversation; the others do not greet
    talk = Conversation(
        cluster=opening.get("cluster"),
        name=opening["name"],
        labels=opening["labels"],
        clock=lambda: clock,
    )
    session = talk.begin_session()
    session.token = opening["token"]
    asked: dict[int, Request] = {}
    for message in said:
        if message.value[0] != VERSION:
            continue
        if message.kind == NOTICE:
            continue
        if message.kind == REPLY:
            hear(talk, session, asked, message)
            continue
        seq = message.body["seq"]
        if seq not in asked:
            asked[seq] = ask(talk, session, message)
        assert asked[seq].frame == message.frame, message.name


def ask(talk: Conversation, session: Session, message: Message) -> Request:
    """Have our client make the request that the document shows."""
    body = message.body
    if body["op"] == "hello":
        return talk.hello()
    if body["op"] == "open":
        return talk.open(session)
    fields = {field: value for field, value in body.items() if field not in COMMON_REQUEST}
    deadline = talk.local(body["deadline"]) if "deadline" in body else None
    return talk.request(body["op"], fields, deadline, session if "token" in body else None)


def hear(talk: Conversation, session: Session, asked: dict[int, Request], message: Message) -> None:
    """Have our client take the reply that the document shows."""
    reply = decode_reply(message.frame)
    assert reply is not None
    if reply.seq not in asked:
        return  # it answers a request of another version
    request = asked[reply.seq]
    with suppress(TrackdError):
        fields = talk.result(request, reply)
        talk.settle(request)  # as both clients do once they have taken its lease
        if request.op == "hello":
            talk.take_hello(fields)
        elif request.op == "open":
            talk.take_open(session, fields)
        elif request.op == "cancel":
            body = decode(request.frame)
            assert body is not None
            talk.settle(asked[body[1]["target"]])


def test_every_request_is_answered_or_the_document_says_why_not() -> None:
    unanswered = []
    for section in CONVERSATIONS:
        said = [message for message in MESSAGES if message.section == section]
        replies = {message.body["seq"] for message in said if message.kind == REPLY}
        unanswered += [m.name for m in said if m.kind == REQUEST and m.body["seq"] not in replies]
    assert unanswered == ["acquire request, given up"]


def test_every_operation_and_every_notice_is_shown() -> None:
    shown = {message.body.get("op") for message in MESSAGES if message.kind == REQUEST}
    assert set(OPERATIONS) <= shown
    told = [n for message in MESSAGES for n in message.body.get("notices", ())]
    assert {notice["notice"] for notice in told} == {name(row[0]) for row in table("Notices")}


@pytest.mark.parametrize("op", OPERATIONS)
def test_the_fields_of_an_operation_are_those_of_its_messages(op: str) -> None:
    documented = set(re.findall(r"`(\w+)`", sections()[op]))
    shown: set[str] = set()
    for section in CONVERSATIONS:
        said = [message for message in MESSAGES if message.section == section]
        numbers = set()
        for message in said:
            if message.kind == REQUEST and message.body["op"] == op:
                numbers.add(message.body["seq"])
                shown |= set(message.body) - COMMON_REQUEST
        for message in said:
            if message.kind == REPLY and message.body["seq"] in numbers:
                if "error" in message.body:
                    continue  # what an error carries stands in the table of errors
                shown |= set(message.body) - COMMON_REPLY
    assert shown <= documented
    rows = re.findall(r"^\| `(\w+)` \|", sections()[op], re.MULTILINE)
    assert set(rows) <= shown, "a field that no message shows"


# -- tables -------------------------------------------------------------------------------


def test_the_version_is_that_of_the_code() -> None:
    text = " ".join(sections()["Versioning"].split())
    assert f"**version {protocol.VERSION}, minor version {protocol.MINOR}**" in text


def test_the_kinds_are_those_of_the_code() -> None:
    kinds = {row[1]: int(row[0]) for row in table("Messages")}
    assert kinds == {"request": REQUEST, "reply": REPLY, "notice": NOTICE}


def test_the_common_fields_are_those_of_the_messages() -> None:
    assert {name(row[0]) for row in table("Fields of every request")} == COMMON_REQUEST
    assert {name(row[0]) for row in table("Fields of every reply")} == COMMON_REPLY


def test_the_operations_are_those_of_the_daemon() -> None:
    documented = {name(row[0]): row[1:] for row in table("Operations")}
    assert documented == {
        op: [
            yes_or_no(op not in SESSIONLESS),
            yes_or_no(operation.changes),
            "ignored" if op in SESSIONLESS or operation.never_stale else "honoured",
            yes_or_no(op in PARKED),
        ]
        for op, operation in OPERATIONS.items()
    }


def test_the_error_codes_are_those_of_the_code() -> None:
    codes = {value for constant, value in vars(Code).items() if constant.isupper()}
    assert {name(row[0]) for row in table("Errors")} == codes


def test_the_limits_are_those_of_the_code_with_their_defaults() -> None:
    told = {name(row[0]): int(row[1]) for row in table("Limits that are settings")}
    assert told == Limits()._asdict()
    fixed = [int(row[1]) for row in table("Limits that are fixed")]
    assert fixed == [TOKEN_BYTES, MAX_LABELS, MAX_LABEL_BYTES, FRAME_SLACK]


def test_the_features_are_those_of_the_daemon() -> None:
    documented = re.findall(r"`(\w+)`: ", sections()["Versioning"])
    assert documented == list(FEATURES)
