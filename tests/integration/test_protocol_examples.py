"""A real daemon answers the conversations of docs/protocol-examples.json with their bytes."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq

from helpers.protocol_document import Message, conversations, messages, pack
from helpers.protocol_peer import VARIES, Peer, body_of
from helpers.support import PATIENCE
from trackd_client import AcquireTimeout, Proxy, Tracker
from trackd_client.core.conversation import Conversation, Request
from trackd_client.testing import Daemon, MakeDaemon
from trackd_client.wire.protocol import NOTICE, REPLY, REQUEST, VERSION, decode

#: How the daemon of each conversation is started. The `disconnect_threshold` is longer than what
#: follows a restart takes: the advice is given again after that.
SETTINGS: dict[str, dict[str, Any]] = {each["name"]: each["settings"] for each in conversations()}
#: That of a fleet is played in tests/fleet/test_operators.py.
del SETTINGS["In a fleet"]
#: Those that say the same when the daemon is killed before every request: a listing is over then,
#: and a hint is forgotten.
OUTLIVE_THE_DAEMON = sorted(set(SETTINGS) - {"What operators ask", "A sticky load balancer"})
#: What only a fleet says.
OF_A_FLEET = {"fleet", "leader", "host"}
#: What later processes of the daemon may say otherwise, or besides. In a fleet quotas are for all.
LATER = {"epoch", "revision", "history", "exempt"} | OF_A_FLEET
#: What each process of the daemon counts for itself.
FORGOTTEN = {"recent", "missing_by_group"}


def check(message: Message, frame: bytes, varies: set[str]) -> None:
    """Compare a reply with the documented one, but for the values that may vary."""
    told = settled(body_of(frame), message.body, varies)
    assert pack([VERSION, REPLY, told]) == message.frame, f"{message.name}: {told}"


def settled(told: Any, shown: Any, varies: set[str]) -> Any:
    """Return what was told, with the documented values in the place of those that may vary."""
    if isinstance(told, dict) and isinstance(shown, dict):
        left_out = varies & OF_A_FLEET - set(shown)
        told = {field: value for field, value in told.items() if field not in left_out}
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
@pytest.mark.parametrize(
    "section",
    [
        pytest.param(each, marks=pytest.mark.both_stores(long=each != "A hand-over"))
        for each in OUTLIVE_THE_DAEMON
    ],
)
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
                check(message, frame, VARIES | FORGOTTEN | LATER)
                continue
            daemon.restart()
            restarts += 1
            peer.reconnect()
            peer.send_parked_again()
            peer.send(message)
        assert peer.nothing_is_left()


def test_every_conversation_is_played() -> None:
    assert {message.section for message in messages()} == {*SETTINGS, "In a fleet"}


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
        assert lease.retire()
        assert lease.report(0.0125)
        wait_for(lambda: any(body["op"] == "report" for body in sent))

        def gives_up() -> bool:
            """Wait in vain for a lease; say whether the daemon was asked to forget that."""
            with pytest.raises(AcquireTimeout):
                tracker.acquire(timeout=0.05)
            return any(body["op"] == "cancel" for body in sent)

        wait_for(gives_up)  # the daemon's refusal may come first
        assert lease.offer()
        lease.release()
        assert tracker.adopt("p1") is not None
    shown: dict[str, list[list[str]]] = defaultdict(list)
    for message in messages():
        if message.kind == REQUEST:
            shown[message.body["op"]].append(list(message.body))
    not_sent = {"heartbeat", "teleport"}  # where the daemon sees the process; and by nobody
    not_sent |= {"snapshot", "log", "metrics", "config", "force_release", "end_session"}
    not_sent |= {"forget", "resume", "reload"}  # tests/integration/test_operators.py
    not_sent |= {"fleet", "drop_host", "yield_lead"}  # tests/fleet/test_operators.py
    assert {body["op"] for body in sent} == set(shown) - not_sent
    for body in sent:
        assert list(body) in shown[body["op"]]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
