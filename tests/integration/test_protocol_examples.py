"""A real daemon answers the conversations of docs/protocol-examples.json with their bytes."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

import pytest
import zmq

from helpers.protocol_document import Message, conversations, messages, pack
from trackd_client import AcquireTimeout, Proxy, Tracker
from trackd_client.core.conversation import Conversation, Request
from trackd_client.testing import Daemon, MakeDaemon
from trackd_client.wire.clock import boottime
from trackd_client.wire.protocol import NOTICE, REPLY, REQUEST, VERSION, decode

#: Seconds that anything may take before the test fails.
PATIENCE = 20.0

#: How the daemon of each conversation is started. The `disconnect_threshold` is longer than what
#: follows a restart takes: the advice is given again after that.
SETTINGS: dict[str, dict[str, Any]] = {each["name"]: each["settings"] for each in conversations()}
#: Those that say the same when the daemon is killed before every request: a listing is over then.
OUTLIVE_THE_DAEMON = sorted(set(SETTINGS) - {"What operators ask"})
#: The daemon's clock in the document.
CLOCK = 5000.25
#: Fields that tell of a moment, a place or a release, wherever they stand: compared by type.
MOMENTS = {"claim_by", "clock", "expires", "granted", "opened", "since", "until", "uptime", "wall"}
PLACES = {"boot_id", "by_pid", "by_uid", "command", "gid", "pid", "tracker_id", "uid"}
VARIES = (
    MOMENTS
    | PLACES
    | {"message", "requests", "reply_bytes", "retry_after", "server", "store_bytes"}
)


class Peer:
    """A client that sends what the document shows, and takes what comes."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._connected()
        self._replies: defaultdict[int, deque[bytes]] = defaultdict(deque)
        self._parked: dict[int, bytes] = {}

    def reconnect(self) -> None:
        """Go on over a new connection."""
        self._socket.close()
        self._socket = self._connected()

    def send_parked_again(self) -> None:
        """Send again what waits, as a client does after a handshake."""
        for frame in self._parked.values():
            self._socket.send(frame)

    def send(self, message: Message) -> None:
        """Send a request, with as much time as its deadline leaves it in the document."""
        version, kind, body = message.value
        frame = message.frame
        if "deadline" in body:
            deadline = boottime() + body["deadline"] - CLOCK
            frame = pack([version, kind, {**body, "deadline": deadline}])
        self._socket.send(frame)
        if body["op"] in {"acquire", "watch_session"}:
            self._parked[body["seq"]] = frame
        self._parked.pop(body.get("target"), None)

    def reply(self, seq: int) -> bytes:
        """Return the next reply with a number, whatever others come before it."""
        while not self._replies[seq]:
            assert self._socket.poll(int(PATIENCE * 1000)), f"no reply with the number {seq}"
            frame = self._socket.recv()
            self._replies[body_of(frame)["seq"]].append(frame)
        self._parked.pop(seq, None)
        return self._replies[seq].popleft()

    def nothing_is_left(self) -> bool:
        """Tell whether every reply that came was asked for."""
        self._socket.send(pack([VERSION, REQUEST, {"op": "ping", "seq": 1_000_001}]))
        self.reply(1_000_001)  # whatever was sent before it is here now
        return not any(self._replies.values())

    def _connected(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        socket.linger = 0
        socket.connect(self._endpoint)
        return socket

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.close()
        self._context.term()


def body_of(frame: bytes) -> dict[str, Any]:
    decoded = decode(frame)
    assert decoded is not None
    assert decoded[0] == REPLY
    return decoded[1]


def check(message: Message, frame: bytes, varies: set[str]) -> None:
    """Compare a reply with the documented one, but for the values that may vary."""
    told = settled(body_of(frame), message.body, varies)
    assert pack([VERSION, REPLY, told]) == message.frame, f"{message.name}: {told}"


def settled(told: Any, shown: Any, varies: set[str]) -> Any:
    """Return what was told, with the documented values in the place of those that may vary."""
    if isinstance(told, dict) and isinstance(shown, dict) and list(told) == list(shown):
        return {
            field: shown[field]
            if field in varies and type(value) is type(shown[field])
            else settled(value, shown[field], varies)
            for field, value in told.items()
        }
    if isinstance(told, list) and isinstance(shown, list) and len(told) == len(shown):
        if len(told) == 5 and isinstance(told[4], dict):  # an event, with its two moments
            told[1:3] = shown[1:3]
        return [settled(*pair, varies) for pair in zip(told, shown, strict=True)]
    if isinstance(told, str) and told.endswith(".sock.events"):
        return shown
    return told


@pytest.mark.parametrize("section", SETTINGS)
def test_the_daemon_answers_as_documented(section: str, make_trackd_daemon: MakeDaemon) -> None:
    daemon = make_trackd_daemon(**SETTINGS[section])
    with Peer(daemon.endpoint) as peer:
        for message in messages():
            if message.section != section:
                continue
            if message.kind == REPLY:
                check(message, peer.reply(message.body["seq"]), VARIES)
                continue
            if message.kind == NOTICE:
                continue  # test_the_daemon_publishes_as_documented
            if "again over a new connection" in message.name:
                peer.reconnect()
            peer.send(message)
        assert peer.nothing_is_left()


def test_the_daemon_publishes_as_documented(trackd_daemon: Daemon) -> None:
    section = "What operators ask"
    with subscribed(trackd_daemon) as socket, Peer(trackd_daemon.endpoint) as peer:
        for message in messages():
            if message.section == section and message.kind == REQUEST:
                peer.send(message)
            elif message.section == section and message.kind == NOTICE:
                break
        told: Any = {"events": []}
        while not told["events"] or told["revision"] < message.body["revision"]:
            assert socket.poll(int(PATIENCE * 1000)), "nothing is published"
            decoded = decode(socket.recv())
            assert decoded is not None
            assert decoded[0] == NOTICE
            told = decoded[1]
        told["events"] = told["events"][-1:]  # quick requests share a batch, and a message
        assert pack([VERSION, NOTICE, settled(told, message.body, VARIES)]) == message.frame


@contextlib.contextmanager
def subscribed(daemon: Daemon) -> Iterator[zmq.Socket[bytes]]:
    """Return a socket that is told of every change from now on."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context, context.socket(zmq.SUB) as socket:
        socket.linger = 0
        socket.subscribe(b"")
        socket.connect(f"{daemon.endpoint}.events")
        assert socket.poll(int(PATIENCE * 1000)), "no greeting"
        decoded = decode(socket.recv())
        assert decoded is not None
        assert decoded[1]["events"] == []
        yield socket


@pytest.mark.slow
@pytest.mark.parametrize("section", OUTLIVE_THE_DAEMON)
def test_the_daemon_answers_as_documented_when_it_is_killed_before_every_request(
    section: str, make_trackd_daemon: MakeDaemon
) -> None:
    daemon = make_trackd_daemon(**SETTINGS[section])
    restarts = 0
    with Peer(daemon.endpoint) as peer:
        for message in messages():
            if message.section != section:
                continue
            if message.kind == REPLY:
                frame = peer.reply(message.body["seq"])
                more = body_of(frame)["revision"] - message.body["revision"]
                assert 0 <= more <= restarts  # each start is a change of its own
                check(message, frame, VARIES | {"epoch", "recent", "revision", "history"})
                continue
            daemon.restart()
            restarts += 1
            peer.reconnect()
            peer.send_parked_again()
            peer.send(message)
        assert peer.nothing_is_left()


def test_every_conversation_is_played() -> None:
    assert {message.section for message in messages()} == set(SETTINGS)


def test_the_client_sends_its_fields_as_documented(
    trackd_daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, Any]] = []
    request_of = Conversation.request

    def record(self: Conversation, *args: Any) -> Request:
        request = request_of(self, *args)
        decoded = decode(request.frame)
        assert decoded is not None
        sent.append(decoded[1])
        return request

    monkeypatch.setattr(Conversation, "request", record)
    labels = {"unit": "agent@1.service"}
    with Tracker(trackd_daemon.endpoint, cluster="example.com", name="a", labels=labels) as tracker:
        tracker.ping()
        tracker.status()
        tracker.explain()
        tracker.track_expected(Proxy("p1", generation=1))
        tracker.set_connection_count(0)
        lease = tracker.try_acquire()
        assert lease is not None
        assert lease.claim("p1")
        assert tracker.is_claimed("p1")
        with pytest.raises(AcquireTimeout):
            tracker.acquire(timeout=0.05)
        wait_for(lambda: any(body["op"] == "cancel" for body in sent))
        lease.release()
        assert tracker.adopt("p1") is not None
    shown: dict[str, list[list[str]]] = defaultdict(list)
    for message in messages():
        if message.kind == REQUEST:
            shown[message.body["op"]].append(list(message.body))
    not_sent = {"heartbeat", "teleport"}  # where the daemon sees the process; and by nobody
    not_sent |= {"snapshot", "log", "metrics", "config", "force_release", "end_session"}
    not_sent |= {"forget", "reload"}  # tests/integration/test_operators.py
    assert {body["op"] for body in sent} == set(shown) - not_sent
    for body in sent:
        assert list(body) in shown[body["op"]]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
