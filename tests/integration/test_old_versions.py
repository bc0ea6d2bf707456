"""Clients and daemons of earlier minor versions, as recorded conversations, with those of now."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

from helpers.protocol_document import Message, pack
from helpers.protocol_peer import VARIES, Peer, body_of
from trackd_client import Proxy, Tracker
from trackd_client.testing import MakeDaemon
from trackd_client.wire.protocol import NOTICE, REPLY, REQUEST, VERSION

#: What docs/protocol-examples.json was when each minor version was the newest.
RECORDED = Path(__file__).with_name("recorded")
#: What a later version may have more of, or other values of.
GROWS = VARIES | {"minor", "features"}
#: What was changed on purpose: rule 19 advises to close the youngest connection first.
CHANGED = ["watch_session reply, a connection is not wanted.notices[0].lease is 2, not 1"]


def conversations(minor: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((RECORDED / f"minor-{minor}.json").read_text())
    return found


def messages(conversation: dict[str, Any]) -> list[Message]:
    return [
        Message(
            conversation["name"],
            message["name"],
            message["from"],
            msgpack.unpackb(bytes.fromhex(message["hex"])),
            bytes.fromhex(message["hex"]),
        )
        for message in conversation["messages"]
    ]


def lacks(told: Any, shown: Any, place: str = "") -> list[str]:
    """Return where a value lacks what another shows; it may have more fields."""
    if isinstance(told, dict) and isinstance(shown, dict):
        return [
            line
            for name, value in shown.items()
            for line in (
                [f"{place}.{name} is gone"]
                if name not in told
                else []
                if name in GROWS
                else lacks(told[name], value, f"{place}.{name}")
            )
        ]
    if isinstance(told, list) and isinstance(shown, list) and len(told) == len(shown):
        pairs = enumerate(zip(told, shown, strict=True))
        is_event = len(told) == 5 and isinstance(told[4], dict)
        return [
            line
            for i, (one, other) in pairs
            if not (is_event and i in {1, 2})  # its moments
            for line in lacks(one, other, f"{place}[{i}]")
        ]
    if isinstance(told, str) and told.endswith(".sock.events"):
        return []
    return [] if told == shown else [f"{place} is {told!r}, not {shown!r}"]


@pytest.mark.parametrize(
    ("minor", "name"),
    [(minor, each["name"]) for minor in (0, 1) for each in conversations(minor)],
)
def test_a_client_of_an_earlier_minor_version_reads_what_it_knows(
    minor: int, name: str, make_trackd_daemon: MakeDaemon
) -> None:
    (conversation,) = (each for each in conversations(minor) if each["name"] == name)
    daemon = make_trackd_daemon(**conversation["settings"])
    with Peer(daemon.endpoint) as peer:
        for message in messages(conversation):
            if message.kind == REPLY:
                told = body_of(peer.reply(message.body["seq"]))
                assert lacks(told, message.body, message.name) in ([], CHANGED)
            elif message.kind != NOTICE:
                if "again over a new connection" in message.name:
                    peer.reconnect()
                peer.send(message)
        assert peer.nothing_is_left()


@contextmanager
def recorded_daemon(endpoint: str, minor: int) -> Iterator[list[str]]:
    """Reply to each operation as the daemon of a minor version did; yield what was asked."""
    replies: dict[str, dict[str, Any]] = {}
    asked: dict[int, str] = {}
    for conversation in conversations(minor):
        for message in messages(conversation):
            if message.kind == REQUEST:
                asked[message.body["seq"]] = message.body.get("op", "")
            elif message.kind == REPLY and "error" not in message.body:
                replies.setdefault(asked[message.body["seq"]], message.body)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    ended, operations = threading.Event(), []

    def serve() -> None:
        with context.socket(zmq.ROUTER) as socket:
            socket.linger = 0
            socket.bind(endpoint)
            while not ended.is_set():
                if not socket.poll(20):
                    continue
                peer, frame = socket.recv_multipart()
                body = msgpack.unpackb(frame)[2]
                operations.append(body["op"])
                reply = replies.get(body["op"])
                if reply is None:
                    reply = {"error": "unknown_operation", "message": "there is no such operation"}
                if body["op"] != "watch_session":
                    socket.send_multipart(
                        [peer, pack([VERSION, REPLY, reply | {"seq": body["seq"]}])]
                    )

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield operations
    finally:
        ended.set()
        thread.join()
        context.term()


@pytest.mark.parametrize("minor", [0, 1])
def test_a_client_of_now_works_with_a_daemon_of_an_earlier_minor_version(
    minor: int, tmp_path: Path
) -> None:
    endpoint = f"ipc://{tmp_path}/old.sock"
    with (
        recorded_daemon(endpoint, minor) as asked,
        Tracker(endpoint, cluster="example.com") as tracker,
    ):
        tracker.ping()
        tracker.track_expected(Proxy("p1", terminating=True, address="p1:443"))
        tracker.set_connection_count(2)
        lease = tracker.try_acquire()
        assert lease is not None
        assert lease.target is None
        assert lease.claim("p1")
        assert isinstance(tracker.is_claimed("p1"), bool)
        assert not lease.retire()
        assert not lease.offer()
        assert not lease.report(0.01)
        lease.release(failed="auth")
        assert tracker.adopt("p1") is not None
        assert tracker.status().tracked is not None
        assert tracker.explain() is not None
    assert not {"retire", "offer", "report"} & set(asked), "it asks for nothing that it cannot have"
