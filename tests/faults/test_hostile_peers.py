"""Peers that say anything at all: each is answered or dropped, and nobody else notices."""

from __future__ import annotations

import contextlib
import resource
import secrets
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgpack
import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.support import (
    GREETING,
    PATIENCE,
    RawPeer,
    descriptors,
    pack,
    plain_socket,
    ready,
    run_script,
    serves,
    socket_path,
    wait_until,
    zmtp_frame,
    zmtp_socket,
)
from trackd.operations.dispatch import OPERATIONS
from trackd_client import Proxy, Tracker
from trackd_client.errors import Code
from trackd_client.testing import Daemon, MakeDaemon
from trackd_client.wire.protocol import FRAME_SLACK

NOBODY = 65534
CODES = {value for name, value in vars(Code).items() if name.isupper()}
#: What a peer may be told; that the daemon itself failed is none of it.
HARMLESS = CODES - {Code.INTERNAL, Code.UNAVAILABLE}


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """One daemon for all of them: what one peer did must not show to the next."""
    with tempfile.TemporaryDirectory(prefix="trackd-") as directory:
        daemon = Daemon(Path(directory))
        daemon.start()
        yield daemon
        daemon.close()
        log = daemon.log.read_text()
        assert " error " not in log, log
        assert " critical " not in log, log


@pytest.fixture(autouse=True)
def unharmed(daemon: Daemon) -> Iterator[None]:
    """After every test the same process answers a good request."""
    yield
    assert serves(daemon)


@pytest.fixture
def peer(daemon: Daemon) -> Iterator[RawPeer]:
    with RawPeer(daemon.endpoint) as peer:
        yield peer.open()
        peer.ask({"op": "close", "seq": 2**64 - 2, "token": peer.token})


def say(peer: RawPeer, *frames: bytes) -> list[dict[str, Any]]:
    """Send a message, and return all that came back before the answer to a ping after it."""
    last = secrets.randbits(63) | 1
    peer.send(*frames)
    peer.send(pack({"op": "ping", "seq": last}))
    replies: list[dict[str, Any]] = []
    while (reply := peer.receive()) is not None:
        if reply["seq"] == last and "error" not in reply:
            return replies
        replies.append(reply)
    raise AssertionError("the ping was not answered")


def refused(peer: RawPeer, *frames: bytes) -> str:
    """Send a message that gets one reply, an error; return its code."""
    (reply,) = say(peer, *frames)
    assert isinstance(reply["message"], str)
    assert reply["message"]
    assert "Traceback" not in reply["message"]
    assert len(reply["message"]) < 400
    assert reply["error"] in HARMLESS
    return str(reply["error"])


# -- frames ---------------------------------------------------------------------------

PING: Final = pack({"op": "ping", "seq": 1})

MALFORMED: Final = {
    "nothing": b"",
    "nil": b"\xc0",
    "the byte that msgpack never uses": b"\xc1",
    "an integer": b"\x01",
    "text": b"\xa4ping",
    "a map": msgpack.packb({"op": "ping", "seq": 1}),
    "an empty array": b"\x90",
    "a version alone": b"\x91\x01",
    "no body": b"\x92\x01\x01",
    "a body that is an array": pack([]),
    "a body that is nil": pack(None),
    "a version that is text": pack({}, version="1"),
    "a version that is true": pack({}, version=True),
    "a version that is a fraction": pack({}, version=1.0),
    "two messages": PING + PING,
    "a message and a byte": PING + b"\x00",
    "text that is not UTF-8": b"\x93\x01\x01\x82\xa2op\xa2\xff\xfe\xa3seq\x01",
    "a key that is an integer": b"\x93\x01\x01\x81\x01\x01",
    "a key that is nil": b"\x93\x01\x01\x81\xc0\x01",
    "a key that is an array": b"\x93\x01\x01\x81\x90\x01",
    "an array of four billion": b"\xdd\xff\xff\xff\xff",
    "a map of four billion": b"\x93\x01\x01\xdf\xff\xff\xff\xff",
    "four billion bytes": b"\x93\x01\x01\x81\xa2op\xc6\xff\xff\xff\xff",
    "an extension of four billion bytes": b"\x93\x01\x01\x81\xa2op\xc9\xff\xff\xff\xff\x01",
    "a timestamp with too many nanoseconds": b"\x93\x01\x01\x81\xa1t\xd7\xff" + b"\xff" * 8,
    "a timestamp of an impossible size": b"\x93\x01\x01\x81\xa1t\xd4\xff\x00",
    "arrays in arrays": b"\x91" * 100_000,
    "arrays in arrays in a body": b"\x93\x01\x01\x81\xa1x" + b"\x91" * 100_000 + b"\xc0",
    "maps in maps": b"\x93\x01\x01" + b"\x81\xa1x" * 100_000 + b"\x80",
    "large arrays that hold large arrays": b"\xdd\x00\x03\x00\x00" * 1_000 + b"\xc0" * 200_000,
    "HTTP": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("frame", MALFORMED.values(), ids=MALFORMED)
def test_what_is_no_message_is_called_malformed(peer: RawPeer, frame: bytes) -> None:
    assert refused(peer, frame) == Code.MALFORMED


def test_every_truncation_of_a_request_is_called_malformed(peer: RawPeer) -> None:
    frame = pack(peer.body("track_expected", proxies=[["p", "g", 2**64 - 1, 1.5]]))
    for length in range(len(frame)):
        assert refused(peer, frame[:length]) == Code.MALFORMED


def test_every_flipped_bit_of_a_request_is_answered_or_skipped(peer: RawPeer) -> None:
    frame = pack({**peer.body("claim", lease=1, principals=["p"]), "deadline": 2**40})
    for place in range(len(frame) * 8):
        flipped = bytearray(frame)
        flipped[place // 8] ^= 1 << place % 8
        replies = say(peer, bytes(flipped))
        assert len(replies) <= 1
        assert all(reply.get("error") in HARMLESS | {None} for reply in replies)


@pytest.mark.parametrize("version", [0, 2, -1, 2**64 - 1])
def test_another_version_is_told_which_one_is_spoken(peer: RawPeer, version: int) -> None:
    (reply,) = say(peer, pack({"op": "ping", "seq": 77}, version=version))
    assert (reply["error"], reply["seq"]) == (Code.UNSUPPORTED_VERSION, 77)
    (reply,) = say(peer, pack("the body of tomorrow", version=version))
    assert (reply["error"], reply["seq"]) == (Code.UNSUPPORTED_VERSION, 0)


@pytest.mark.parametrize("kind", [0, 2, 3, 4, -1, 2**64 - 1, None, "1", True, 1.0, [], {}])
def test_a_kind_that_is_not_for_a_daemon_is_skipped(peer: RawPeer, kind: object) -> None:
    assert say(peer, pack({"op": "ping", "seq": 5}, kind=kind)) == []


def test_what_a_later_version_may_add_is_tolerated(peer: RawPeer) -> None:
    body = {
        "op": "ping",
        "seq": 5,
        "new": {"deep": [1, {"er": None}]},
        "ext": msgpack.ExtType(5, b""),
    }
    (reply,) = say(peer, msgpack.packb([1, 1, body, "a fourth element"]))
    assert (reply["seq"], reply.get("error")) == (5, None)


def test_of_a_key_that_comes_twice_the_last_one_counts(peer: RawPeer) -> None:
    (reply,) = say(peer, b"\x93\x01\x01\x83\xa2op\xa4nope\xa3seq\x07\xa2op\xa4ping")
    assert (reply["seq"], reply.get("error")) == (7, None)


def test_a_message_of_several_frames_is_refused(peer: RawPeer) -> None:
    for frames in ([PING, b""], [b"", PING], [PING, PING], [b"", b""], [b"x"] * 5_000):
        assert refused(peer, *frames) == Code.MALFORMED


def test_a_frame_beyond_the_limit_is_refused_and_a_far_larger_one_cut_off(peer: RawPeer) -> None:
    def ping_of(size: int) -> bytes:
        frame = pack({"op": "ping", "seq": 9, "fill": bytes(size)})
        return pack({"op": "ping", "seq": 9, "fill": bytes(2 * size - len(frame))})

    largest = ping_of(1 << 20)
    assert len(largest) == 1 << 20
    (reply,) = say(peer, largest)
    assert "error" not in reply
    for size in ((1 << 20) + 1, (1 << 20) + FRAME_SLACK):
        assert refused(peer, ping_of(size)) == Code.LIMIT_EXCEEDED
    peer.send(ping_of((1 << 20) + FRAME_SLACK + 1))
    peer.send(PING)  # lost with the connection, perhaps
    assert "error" not in peer.ask({"op": "ping", "seq": 10})


# -- requests -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "op", [None, "", "nope", "PING", "open\0", b"ping", 1, [], {}, "probe", "x" * 10**6]
)
def test_an_unknown_operation_is_called_so(peer: RawPeer, op: object) -> None:
    body = peer.body("x") | {"op": op}
    (reply,) = say(peer, pack(body))
    assert (reply["error"], reply["seq"]) == (Code.UNKNOWN_OPERATION, body["seq"])
    assert len(reply["message"]) < 200


@pytest.mark.parametrize("seq", [None, 0, -1, True, 1.5, "1", b"1", [], {}, -(2**63)])
def test_a_request_without_a_right_number_is_refused(peer: RawPeer, seq: object) -> None:
    (reply,) = say(peer, pack({"op": "ping", "seq": seq}))
    assert (reply["error"], reply["seq"]) == (Code.INVALID_ARGUMENT, 0)
    (reply,) = say(peer, pack({"op": "ping"}))
    assert (reply["error"], reply["seq"]) == (Code.INVALID_ARGUMENT, 0)


def test_a_number_that_is_sent_as_a_float_is_refused_by_that_number(peer: RawPeer) -> None:
    (reply,) = say(peer, pack({"op": "ping", "seq": 7.0}))
    assert (reply["error"], reply["seq"]) == (Code.INVALID_ARGUMENT, 7)


#: A right value for each field of its own that an operation has.
FIELDS: Final[dict[str, dict[str, Any]]] = {
    "hello": {},
    "ping": {},
    "status": {},
    "explain": {},
    "open": {"name": "n", "version": "1", "labels": {"k": "v"}, "cluster": "example.com"},
    "heartbeat": {},
    "is_claimed": {"principals": ["p"]},
    "track_expected": {"proxies": [["p", "g", 1, None]]},
    "set_connection_count": {"count": 0},
    "try_acquire": {},
    "claim": {"lease": 1, "principals": ["p"]},
    "adopt": {"principals": ["p"]},
    "retire": {"lease": 1},
    "report": {"reports": [[1, 0.25], [2, None]]},
    "offer": {"lease": 1},
    "release": {"lease": 1},
    "cancel": {"target": 1},
    "snapshot": {"of": "proxies", "cursor": None, "limit": 1},
    "log": {"after": 0, "limit": 1},
    "metrics": {"names": ["trackd_sessions"]},
    "config": {"names": ["max_frame"]},
    "fleet": {},
    "drop_host": {"host": "nowhere"},
    "yield_lead": {"term": 1},
    "force_release": {"lease": 10**9},
    "end_session": {"session": 10**9},
    "forget": {"name": "nobody"},
    "resume": {},
    "reload": {},
}
#: Those that are answered later, and the one that ends the session.
ELSEWHERE = {"acquire", "watch_session", "close", "probe"}

WRONG: Final[list[Any]] = [
    None,
    True,
    -1,
    0,
    2**64 - 1,
    -(2**63),
    1.5,
    float("nan"),
    float("inf"),
    -float("inf"),
    "",
    "x" * 300,
    "a\0b",
    "\u2028",
    b"",
    b"x" * 16,
    [],
    [[]],
    [None],
    ["p"] * 65,
    [["p", "g", 1]],
    [["p", "g", 1, None], ["", "g", 1, None]],
    [["p", "g", -1, None]],
    [["p", "g", 1, float("nan")]],
    [[{}, [], "x", b""]],
    [2, 1],
    [1, 1, 1, 1],
    {},
    {"a": 1},
    {"a": "b" * 256},
    {str(i): "v" for i in range(17)},
    msgpack.ExtType(5, b"x"),
    msgpack.Timestamp(1, 1),
]


def test_the_table_of_fields_knows_every_operation() -> None:
    assert FIELDS.keys() | ELSEWHERE == OPERATIONS.keys()


@pytest.mark.parametrize("op", FIELDS)
def test_no_value_of_any_field_is_too_strange(daemon: Daemon, op: str) -> None:
    """Each field in turn, the common ones too, holds each of the values, or is not there."""
    missing = object()
    common = ("token", "done", "deadline", "namespace", "op", "seq")
    with RawPeer(daemon.endpoint) as peer:
        peer.open()
        sent = 0
        for field in (*FIELDS[op], *common):
            for value in (missing, *WRONG):
                body = peer.body(op, **FIELDS[op])
                body.pop("done")
                body[field] = value
                if value is missing:
                    del body[field]
                replies = say(peer, pack(body))
                sent += 1
                assert len(replies) <= 1
                assert all(reply.get("error") in HARMLESS | {None} for reply in replies), body
                if not replies:  # a reply is left out of what is done, stale, or not a request
                    assert field in ("done", "deadline", "seq"), (field, value)
        peer.ask({"op": "close", "seq": 2**63, "token": peer.token})
        assert sent > 200


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=40)
    | st.binary(max_size=40)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=8)),
    lambda inner: (
        st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=10), inner, max_size=6)
    ),
    max_leaves=12,
)
fields = st.sampled_from(
    [
        "token", "done", "deadline", "namespace", "name", "version", "labels", "cluster",
        "principals", "proxies", "count", "lease", "target", "of", "cursor", "limit", "after",
        "names", "session", "other",
    ]
)  # fmt: skip
operations = st.sampled_from(sorted(OPERATIONS)) | st.text(max_size=10)
quickly = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@quickly
@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_skipped(daemon: Daemon, peer: RawPeer, frame: bytes) -> None:
    replies = say(peer, frame)
    assert len(replies) <= 1
    assert all(reply["error"] in HARMLESS for reply in replies)


@quickly
@given(operations, st.dictionaries(fields, anything, max_size=6), st.booleans())
def test_random_requests_are_answered_or_dropped(
    daemon: Daemon, peer: RawPeer, op: str, body: dict[str, Any], right_token: bool
) -> None:
    if right_token:
        body["token"] = peer.token
    if body.get("token") == peer.token and op == "close":
        op = "heartbeat"
    replies = say(peer, pack({"seq": secrets.randbits(60) | 1, **body, "op": op}))
    assert len(replies) <= 2, "one, and that of an earlier request that waited"
    assert all(reply.get("error") in HARMLESS | {None} for reply in replies)


@quickly
@given(anything, anything, anything)
def test_random_messages_are_refused_or_skipped(
    daemon: Daemon, peer: RawPeer, version: Any, kind: Any, body: Any
) -> None:
    for frame in (pack(body, version=version, kind=kind), pack(body, kind=kind), pack(body)):
        replies = say(peer, frame)
        assert all(reply.get("error") in HARMLESS for reply in replies)


# -- sessions -------------------------------------------------------------------------


def test_a_session_outstanding_to_its_limit_can_still_free_itself(
    trackd_daemon: Daemon,
) -> None:
    """Each parked request leaves a gap in `done`; all of them must be told."""
    with RawPeer(trackd_daemon.endpoint) as peer, Tracker(trackd_daemon.endpoint) as tracker:
        peer.open()
        tracker.acquire(0)  # so that others wait
        parked: list[int] = []
        done = [1, 1]
        seq = 2
        while len(parked) < 1024:
            peer.send(pack({"op": "acquire", "seq": seq, "token": peer.token}))
            parked.append(seq)
            done += [seq + 1, seq + 1]
            seq += 2
        wait_until(lambda: tracker.status()["waiting"] == 1024)
        common = {"token": peer.token, "done": done}
        assert "error" not in peer.ask({"op": "heartbeat", "seq": seq, **common})
        one_more = peer.ask({"op": "acquire", "seq": seq + 1, **common})
        assert one_more["error"] == Code.LIMIT_EXCEEDED
        cancelled = peer.ask({"op": "cancel", "seq": seq + 2, "target": parked[0], **common})
        assert cancelled["cancelled"] is True
        assert "error" not in peer.ask({"op": "close", "seq": seq + 3, **common})
        wait_until(lambda: tracker.status()["waiting"] == 0)


def test_a_token_is_of_no_use_to_another_process(daemon: Daemon, peer: RawPeer) -> None:
    code = """
import sys
sys.path[:0] = [sys.argv[3]]
from helpers.support import RawPeer
with RawPeer(sys.argv[1]) as peer:
    peer.token = bytes.fromhex(sys.argv[2])
    print(peer.ask(peer.body("open"))["error"])
"""
    done = run_script(code, daemon.endpoint, peer.token.hex(), str(Path(__file__).parent.parent))
    assert (done.stdout, done.stderr) == ("permission_denied\n", "")


def test_a_token_is_of_no_use_to_another_user(make_trackd_daemon: MakeDaemon) -> None:
    open_to_all = make_trackd_daemon(socket_mode="0666")
    open_to_all.directory.chmod(0o711)
    open_to_all.directory.parent.chmod(0o711)
    code = """
import sys
sys.path[:0] = [sys.argv[3]]
from helpers.support import RawPeer
with RawPeer(sys.argv[1]) as peer:
    own = peer.token
    peer.token = bytes.fromhex(sys.argv[2])
    for op in ("heartbeat", "try_acquire", "close", "open"):
        print(peer.ask(peer.body(op))["error"])
    peer.token = own
    print(peer.ask(peer.body("open")).get("error"))
"""
    with RawPeer(open_to_all.endpoint) as peer:
        peer.open()
        tests = str(Path(__file__).parent.parent)
        done = run_script(code, open_to_all.endpoint, peer.token.hex(), tests, user=NOBODY)
        assert done.stdout.split() == ["permission_denied"] * 4 + ["None"], done
        assert "error" not in peer.request("heartbeat")


def test_what_a_peer_says_of_its_own_address_is_not_believed(daemon: Daemon) -> None:
    """A READY command may carry any property; the kernel's word comes first."""
    forged = {"Peer_Address": b"x:65534:65534:1", "User_Id": b"0", "Identity": b""}
    with (
        RawPeer(daemon.endpoint) as peer,
        zmtp_socket(socket_path(daemon), **forged) as forger,
    ):
        forger.sendall(zmtp_frame(pack({"op": "open", "seq": 1, "token": peer.token})))
        assert b"session" in forger.recv(4096)
        # The session is this process's and this user's, not nobody's.
        assert "error" not in peer.request("open")
        peer.request("close")


# -- the transport --------------------------------------------------------------------


@pytest.mark.parametrize("kind", [zmq.REQ, zmq.DEALER, zmq.ROUTER])
def test_a_socket_of_another_kind_does_no_harm(daemon: Daemon, kind: int) -> None:
    with RawPeer(daemon.endpoint, kind=kind) as peer:
        with contextlib.suppress(zmq.ZMQError):  # a ROUTER that is not connected yet
            peer.send(b"", PING) if kind == zmq.ROUTER else peer.send(PING)
        patience = int(PATIENCE * 1000) if kind == zmq.DEALER else 50
        assert peer.socket.poll(patience) == (kind == zmq.DEALER)


@pytest.mark.parametrize(
    "kind", [zmq.PUB, zmq.SUB, zmq.XPUB, zmq.XSUB, zmq.PUSH, zmq.PULL, zmq.PAIR]
)
def test_a_socket_of_an_incompatible_kind_is_dropped(daemon: Daemon, kind: int) -> None:
    with RawPeer(daemon.endpoint, kind=kind) as peer:
        for _ in range(10):
            with contextlib.suppress(zmq.ZMQError):
                peer.socket.send(PING, zmq.DONTWAIT)
        assert serves(daemon)


def test_many_peers_with_one_name_do_no_harm(daemon: Daemon) -> None:
    for identity in (b"same", b"\x00", b"\x00" * 5, b"x" * 255):
        with contextlib.ExitStack() as stack:
            for _ in range(5):
                peer = stack.enter_context(RawPeer(daemon.endpoint, identity=identity))
                peer.send(PING)
            assert serves(daemon)


RAW: Final = {
    "HTTP": b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n" * 20,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "zeros": bytes(4096),
    "ones": b"\xff" * 4096,
    "half a greeting": GREETING[:20],
    "a greeting of version 1": b"\xff" + bytes(8) + b"\x7f\x00\x05" + bytes(20),
    "a greeting of version 2": b"\xff" + bytes(8) + b"\x7f\x01\x05\x00\x00" + zmtp_frame(PING),
    "a greeting of version 9": b"\xff" + bytes(8) + b"\x7f\x09" + GREETING[11:],
    "an unknown mechanism": GREETING.replace(b"NULL", b"NONE"),
    "CURVE": GREETING.replace(b"NULL\0", b"CURVE"),
    "a greeting alone": GREETING,
    "messages before the handshake": GREETING + zmtp_frame(PING) * 3,
    "messages amid the handshake": GREETING + ready(Socket_Type=b"DEALER") + zmtp_frame(PING) * 3,
    "READY without a socket type": GREETING + ready(),
    "READY of an impossible socket": GREETING + ready(Socket_Type=b"TELEPHONE"),
    "READY twice": GREETING + ready(Socket_Type=b"DEALER") * 2,
    "READY with half a property": GREETING + b"\x04\x0c\x05READY\x0bSocke",
    "READY with a property that never ends": GREETING + b"\x04\x0c\x05READY\x01x\xff\xff\xff\xff",
    "an identity of 200 bytes": GREETING + ready(Socket_Type=b"DEALER", Identity=b"i" * 200),
    "ERROR": GREETING + b"\x04\x09\x05ERROR\x02no",
}

#: What a peer says once it has shaken hands.
AFTERWARDS: Final = {
    "a command that nobody knows": b"\x04\x05\x04NOPE",
    "a command without a name": b"\x04\x00",
    "a command of a mebibyte": b"\x06" + struct.pack(">Q", 1 << 20) + bytes(1 << 20),
    "READY again": ready(Socket_Type=b"DEALER"),
    "SUBSCRIBE": b"\x04\x0a\x09SUBSCRIBE" + zmtp_frame(PING),
    "PING": b"\x04\x07\x04PING\xff\xff",
    "half of PING": b"\x04\x05\x04PING",
    "reserved flags": b"\xf8\x01x",
    "a frame of 2^63 bytes": b"\x02\x80" + bytes(7) + b"x",
    "a frame of 2^64-1 bytes": b"\x02" + b"\xff" * 8 + b"x",
    "a frame beyond the limit": b"\x02"
    + struct.pack(">Q", (1 << 20) + FRAME_SLACK + 1)
    + b"x" * 99,
    "half a message": zmtp_frame(PING, more=True),
    "half a frame": zmtp_frame(PING)[:-3],
    "frames of nothing": zmtp_frame(b"", more=True) * 1000 + zmtp_frame(b""),
    "requests, all at once": zmtp_frame(PING) * 2_000,
}


@pytest.mark.parametrize("spoken", RAW.values(), ids=RAW)
@pytest.mark.parametrize("then", ["hangs up", "waits", "resets"])
def test_whatever_is_spoken_into_the_socket_does_no_harm(
    daemon: Daemon, spoken: bytes, then: str
) -> None:
    with plain_socket(socket_path(daemon)) as stranger:
        speak(daemon, stranger, spoken, then)


@pytest.mark.parametrize("spoken", AFTERWARDS.values(), ids=AFTERWARDS)
@pytest.mark.parametrize("then", ["hangs up", "waits", "resets"])
def test_whatever_is_spoken_after_the_handshake_does_no_harm(
    daemon: Daemon, spoken: bytes, then: str
) -> None:
    with zmtp_socket(socket_path(daemon)) as stranger:
        speak(daemon, stranger, spoken, then)


def speak(daemon: Daemon, stranger: socket.socket, spoken: bytes, then: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        stranger.sendall(spoken)
    if then == "hangs up":
        with contextlib.suppress(OSError):
            stranger.shutdown(socket.SHUT_RDWR)
    if then != "resets":
        assert serves(daemon)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([b"", GREETING, None]))
def test_random_bytes_in_the_socket_do_no_harm(
    daemon: Daemon, spoken: bytes, before: bytes | None
) -> None:
    path = socket_path(daemon)
    with (
        zmtp_socket(path) if before is None else plain_socket(path) as stranger,
        contextlib.suppress(BrokenPipeError),
    ):
        stranger.sendall((before or b"") + spoken)


def half_open(daemon: Daemon, count: int) -> contextlib.ExitStack:
    """Begin handshakes, and leave them there."""
    with contextlib.ExitStack() as stack:
        for i in range(count):
            stranger = stack.enter_context(plain_socket(socket_path(daemon)))
            stranger.sendall(GREETING[: i % len(GREETING)])
        return stack.pop_all()


def all_half_open(daemon: Daemon, count: int) -> contextlib.ExitStack:
    """Begin handshakes until the daemon has nearly all of them at one time.

    It drops each after a few seconds, the first perhaps before the last when the machine is slow.
    """
    deadline = time.monotonic() + PATIENCE
    before = descriptors(daemon.pid)
    while True:
        with half_open(daemon, count) as stack, contextlib.suppress(AssertionError):
            wait_until(lambda: descriptors(daemon.pid) >= before + 0.95 * count, 5.0)
            return stack.pop_all()
        assert time.monotonic() < deadline, "they never were there all at once"


def test_hundreds_of_half_open_handshakes_hold_up_nobody(daemon: Daemon) -> None:
    def serve() -> float:
        begun = time.monotonic()
        for _ in range(5):
            assert serves(daemon)
        return time.monotonic() - begun

    idle = serve()
    before = descriptors(daemon.pid)
    with all_half_open(daemon, 400):
        assert serve() < max(5.0, 10 * idle)
    wait_until(lambda: descriptors(daemon.pid) <= before + 5)


@pytest.mark.slow
def test_half_open_handshakes_are_dropped_after_a_while(daemon: Daemon) -> None:
    before = descriptors(daemon.pid)
    with all_half_open(daemon, 100):
        wait_until(lambda: descriptors(daemon.pid) <= before + 5)


# -- routing ids ----------------------------------------------------------------------

#: The first id that a ROUTER gives out in a process whose `rand` was not seeded.
FIRST_ID: Final = 0x6B8B4567

BARE_ROUTER = """
import sys, zmq
router = zmq.Context().socket(zmq.ROUTER)
router.bind(sys.argv[1])
while True:
    router.send_multipart(router.recv_multipart())
"""

#: Our daemon, but for the seed.
UNSEEDED = """
import sys, trackd.server
from trackd.cli import main
names = [name for name in vars(trackd.server) if "seed" in name]
assert len(names) == 1, names
setattr(trackd.server, names[0], lambda: None)
sys.exit(main(["run", "--cluster-name=example.com", "--state-dir=", *sys.argv[2:], sys.argv[1]]))
"""


def take_ids(endpoint: str, count: int, lives: Callable[[], bool]) -> None:
    """Take the ids that the ROUTER would give out next, and connect until it does or is dead."""
    taken = [b"\0" + struct.pack(">I", FIRST_ID + i) for i in range(count)]
    with contextlib.ExitStack() as stack:
        for ids in (taken, [None] * 2 * count):
            peers = [stack.enter_context(RawPeer(endpoint, identity=each)) for each in ids]
            for peer in peers:
                peer.send(PING)
            # An answer shows that the ROUTER knows the peer. One may have an id that is given out.
            wait_until(
                lambda peers=peers: (  # type: ignore[misc]
                    sum(bool(peer.socket.poll(0)) for peer in peers) >= len(peers) - 1
                    or not lives()
                )
            )


@pytest.mark.parametrize(
    ("code", "flag"), [(BARE_ROUTER, ""), (UNSEEDED, "--endpoint=")], ids=["bare", "unseeded"]
)
def test_taking_the_next_ids_aborts_a_router_that_is_not_seeded(
    tmp_path: Path, code: str, flag: str
) -> None:
    """Else the next test proves nothing."""
    endpoint = f"ipc://{tmp_path}/router"
    with (tmp_path / "log").open("wb") as log:
        victim = subprocess.Popen([sys.executable, "-c", code, flag + endpoint], stderr=log)
    try:
        resource.prlimit(victim.pid, resource.RLIMIT_CORE, (0, 0))
        wait_until((tmp_path / "router").is_socket)
        take_ids(endpoint, 16, lambda: victim.poll() is None)
        assert victim.wait(PATIENCE) == -signal.SIGABRT, (tmp_path / "log").read_text()
        assert "Assertion failed" in (tmp_path / "log").read_text()
    finally:
        victim.kill()
        victim.wait()


def test_taking_the_next_ids_does_not_stop_the_daemon(make_trackd_daemon: MakeDaemon) -> None:
    daemon = make_trackd_daemon()
    process = daemon._process
    assert process is not None
    with Tracker(daemon.endpoint) as tracker:
        tracker.track_expected(Proxy("p"))
        lease = tracker.acquire(0)
        for _ in range(3):
            take_ids(daemon.endpoint, 16, lambda: process.poll() is None)
        assert serves(daemon)
        assert lease.claim("p")
