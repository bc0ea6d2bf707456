"""What a peer can make the daemon remember has a bound; each is stated, and measured here.

For what happens inside libzmq the bound is a formula (queued messages) or the process's memory
limit (a message that never ends): the last one ends the process, and a restart loses nothing.
"""

from __future__ import annotations

import contextlib
import os
import resource
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from helpers.hosts import let_everybody_in, needs_root, running_as
from helpers.support import (
    PATIENCE,
    RawPeer,
    pack,
    peak_rss,
    rss,
    serves,
    socket_path,
    wait_until,
    zmtp_frame,
    zmtp_socket,
)
from trackd.actors import mailbox
from trackd.operations.quotas import KEPT_SESSIONS
from trackd.sessions.sessions import ENDED_TOKENS
from trackd_client import Proxy, Tracker
from trackd_client.errors import Code
from trackd_client.testing import Daemon, MakeDaemon
from trackd_client.wire.protocol import FRAME_SLACK, MAX_LABEL_BYTES, MAX_LABELS

MIB = 1 << 20
#: A message as large as one may be, whose array of empty maps takes 70 times as much decoded.
BOMB = (
    b"\x93\x01\x01\x83\xa2op\xa4ping\xa3seq\x07\xa1x\xdd"
    + (MIB - 24).to_bytes(4, "big")
    + b"\x80" * (MIB - 24)
)
#: What decoding one such message takes.
DECODED = 80 * MIB
#: For buffers, allocators and whatever else nobody counts.
SLACK = 48 * MIB


def limit_memory(pid: int, beyond: int) -> int:
    """Let a process grow by so many bytes at most, much as MemoryMax does; return the limit."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + beyond
    resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))
    resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
    return limit


def tell(what: str, base: int, peak: int, bound: int) -> None:
    print(
        f"\n{what}: {base / MIB:.0f} MiB before, {peak / MIB:.0f} at most, bound {bound / MIB:.0f}"
    )


@pytest.fixture
def base(trackd_daemon: Daemon) -> Iterator[int]:
    """The resident memory of the daemon before; it may not grow by a GiB whatever happens."""
    assert serves(trackd_daemon)
    limit_memory(trackd_daemon.pid, 1024 * MIB)
    yield rss(trackd_daemon.pid)
    assert serves(trackd_daemon), "the same process goes on"


# -- what reaches our code ------------------------------------------------------------


def test_messages_that_grow_when_they_are_decoded_are_decoded_one_by_one(
    trackd_daemon: Daemon, base: int
) -> None:
    count = 16
    bound = base + count * MIB + 2 * DECODED + SLACK
    assert len(BOMB) == MIB
    with RawPeer(trackd_daemon.endpoint) as peer:
        for _ in range(count):
            peer.send(BOMB)
        for _ in range(count):
            reply = peer.receive(60)
            assert reply is not None
            assert "error" not in reply
    peak = peak_rss(trackd_daemon.pid)
    tell(f"{count} messages of empty maps", base, peak, bound)
    assert peak < bound < base + count * DECODED / 2


def test_ended_sessions_are_remembered_up_to_a_number(trackd_daemon: Daemon, base: int) -> None:
    tokens = [secrets.token_bytes(16) for _ in range(ENDED_TOKENS + 100)]
    with RawPeer(trackd_daemon.endpoint) as peer:
        for start in range(0, len(tokens), 50):
            for token in tokens[start : start + 50]:
                peer.send(pack({"op": "open", "seq": 1, "token": token}))
                peer.send(pack({"op": "close", "seq": 2, "token": token}))
            for _ in range(100):
                reply = peer.receive()
                assert reply is not None
                assert "error" not in reply
        codes = [
            peer.ask({"op": "heartbeat", "seq": 3, "token": token})["error"]
            for token in (tokens[0], tokens[99], tokens[100], tokens[-1])
        ]
    assert codes == [Code.SESSION_UNKNOWN] * 2 + [Code.SESSION_ENDED] * 2
    peak, bound = peak_rss(trackd_daemon.pid), base + SLACK
    tell(f"{len(tokens)} sessions opened and closed", base, peak, bound)
    assert peak < bound


def test_numbers_that_are_done_are_remembered_as_a_bounded_number_of_ranges(
    trackd_daemon: Daemon, base: int
) -> None:
    with RawPeer(trackd_daemon.endpoint) as peer:
        peer.open()
        first, codes = 1000, []
        for i in range(200):
            done = [n for start in range(first, first + 2048, 2) for n in (start, start)]
            first += 2048
            body = {"op": "heartbeat", "seq": 10**9 + i, "token": peer.token, "done": done}
            codes.append(peer.ask(body).get("error"))
        assert codes[0] is None
        assert set(codes[1:]) == {Code.LIMIT_EXCEEDED}
        codes = [
            peer.ask(
                {"op": "cancel", "seq": 10**9 + 2 * i, "token": peer.token, "target": first + 2 * i}
            ).get("error")
            for i in range(200)
        ]
        assert Code.LIMIT_EXCEEDED in codes
    peak, bound = peak_rss(trackd_daemon.pid), base + SLACK
    tell("200 times 1,024 new ranges", base, peak, bound)
    assert peak < bound


def test_replies_that_nobody_acknowledges_are_remembered_up_to_a_number(
    trackd_daemon: Daemon, base: int
) -> None:
    with RawPeer(trackd_daemon.endpoint) as peer:
        peer.open()
        codes = []
        for seq in range(10, 1_200):
            name = f"{seq:0200}"
            body = {"op": "adopt", "seq": seq, "token": peer.token, "principals": [name]}
            codes.append(peer.ask(body).get("error"))
    assert codes[:1024] == [None] * 1024
    assert set(codes[1024:]) == {Code.LIMIT_EXCEEDED}


def test_sessions_have_a_largest_number(make_trackd_daemon: MakeDaemon) -> None:
    daemon = make_trackd_daemon(max_sessions=20)
    with contextlib.ExitStack() as stack:
        most = 20 + KEPT_SESSIONS  # for root, and the daemon's own user
        peers = [stack.enter_context(RawPeer(daemon.endpoint)).open() for _ in range(most)]
        one_more = stack.enter_context(RawPeer(daemon.endpoint))
        assert one_more.request("open")["error"] == Code.LIMIT_EXCEEDED
        peers[0].request("close")
        assert "error" not in one_more.request("open")


# -- what waits inside libzmq ---------------------------------------------------------


@pytest.mark.parametrize("peers", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_queue_of_the_largest_messages_is_bounded_for_each_peer(
    trackd_daemon: Daemon, base: int, peers: int
) -> None:
    """RCVHWM times MAXMSGSIZE, for each connection; the peers keep the rest."""
    largest = pack({"op": "ping", "seq": 1, "fill": bytes(MIB + FRAME_SLACK - 32)})
    assert MIB + FRAME_SLACK - 10 <= len(largest) <= MIB + FRAME_SLACK
    queue = mailbox._RECEIVE_HWM * len(largest)
    bound = base + peers * (queue + 2 * len(largest)) + 2 * DECODED + SLACK
    with contextlib.ExitStack() as stack:
        busy = stack.enter_context(RawPeer(trackd_daemon.endpoint))
        flood = [stack.enter_context(RawPeer(trackd_daemon.endpoint)) for _ in range(peers)]
        for _ in range(12):
            busy.send(BOMB)  # so that messages come faster than they are served
        for _ in range(100):
            for peer in flood:
                peer.send(largest)
        for peer in flood:
            for _ in range(100):
                reply = peer.receive(60)
                assert reply is not None
                assert reply["error"] == Code.LIMIT_EXCEEDED
    peak = peak_rss(trackd_daemon.pid)
    tell(f"100 largest messages from each of {peers}", base, peak, bound)
    assert base + queue / 2 < peak, "the queue did fill"
    assert peak < bound


def test_a_peer_that_reads_no_replies_holds_up_nobody_and_is_bounded(
    trackd_daemon: Daemon, base: int
) -> None:
    """SNDHWM times the size of a reply, and those of a batch that found no room."""
    with (
        zmq.Context() as context,
        context.socket(zmq.DEALER) as deaf,
        Tracker(trackd_daemon.endpoint, timeout=PATIENCE) as tracker,
    ):
        tracker.track_expected(*(Proxy(f"{i:0255}") for i in range(100)))
        size = len(pack(tracker.explain()))
        deaf.linger = 0
        deaf.rcvhwm, deaf.sndhwm = 1, 0
        deaf.connect(trackd_daemon.endpoint)
        bound = base + (mailbox._SEND_HWM + 2 * mailbox.BATCH) * size + SLACK
        before = tracker.status()["requests"]
        for _ in range(10_000):
            deaf.send(pack({"op": "explain", "seq": 1}))
        slowest = 0.0
        while tracker.status()["requests"] < before + 10_000:
            begun = time.monotonic()
            tracker.ping()
            slowest = max(slowest, time.monotonic() - begun)
        peak = peak_rss(trackd_daemon.pid)
        tell(f"10,000 replies of {size} bytes to the deaf", base, peak, bound)
        print(f"slowest ping of another client meanwhile: {slowest * 1000:.1f} ms")
        assert 10_000 * size > bound, "they would not fit into the bound"
        assert peak < bound


#: What an attack may make the daemon grow by, at its peak and when the peer has gone.
MOST_GROWTH = 64 * MIB


def fill_sessions(daemon: Daemon, count: int) -> None:
    """Open sessions with as many and as long labels as they may have."""
    labels = {f"{i:0{MAX_LABEL_BYTES}}": "v" * MAX_LABEL_BYTES for i in range(MAX_LABELS)}
    with RawPeer(daemon.endpoint) as peer:
        for _ in range(count):
            token = secrets.token_bytes(16)
            reply = peer.ask({"op": "open", "seq": 1, "token": token, "labels": labels})
            assert "error" not in reply


@pytest.mark.parametrize("fields", [{"op": "snapshot", "of": "sessions"}, {"op": "log"}])
def test_a_peer_that_reads_no_pages_is_bounded_in_bytes(
    trackd_daemon: Daemon, fields: dict[str, str]
) -> None:
    """Requests of 30 bytes may not hold replies of megabytes in memory."""
    fill_sessions(trackd_daemon, 1000)
    base = rss(trackd_daemon.pid)
    with (
        zmq.Context() as context,
        context.socket(zmq.DEALER) as deaf,
        Tracker(trackd_daemon.endpoint, timeout=PATIENCE) as tracker,
    ):
        deaf.linger = 0
        deaf.rcvhwm, deaf.sndhwm = 1, 0
        deaf.connect(trackd_daemon.endpoint)
        before = tracker.status()["requests"]
        for _ in range(600):
            deaf.send(pack({**fields, "seq": 1}))
        wait_until(lambda: tracker.status()["requests"] >= before + 600, 3 * PATIENCE)
        peak = peak_rss(trackd_daemon.pid)
        tell(f"600 pages of {fields} to the deaf", base, peak, base + MOST_GROWTH)
        assert peak < base + MOST_GROWTH
        assert len(list(tracker.rows("sessions"))) >= 1000, "others read their pages meanwhile"
    wait_until(lambda: rss(trackd_daemon.pid) < base + MOST_GROWTH / 2)


#: Keeps back the replies to all that its sessions ask for; prints the codes of the errors.
_MARK_NOTHING_AS_DONE = """
peer, codes = RawPeer(endpoint), set()
for number in range(300):
    peer.token = number.to_bytes(16, "big")
    peer.ask({"op": "open", "seq": 1, "token": peer.token})
    for count in range(2, 1026):
        fields = {"seq": count, "token": peer.token, "count": 2 * count + number % 2}
        peer.send(pack({"op": "set_connection_count", **fields}))
    for _ in range(1024):
        codes.add(peer.receive(60).get("error"))
print(json.dumps([code for code in codes if code]), flush=True)
sys.stdin.read()
"""


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize(
    ("uid", "code", "restarts"),
    [(0, Code.LIMIT_EXCEEDED, False), (54_321, Code.QUOTA_EXCEEDED, True)],
    ids=["root", "user"],
)
def test_the_replies_of_many_sessions_that_nobody_marks_as_done_are_bounded(
    make_trackd_daemon: MakeDaemon, uid: int, code: str, *, restarts: bool
) -> None:
    daemon = make_trackd_daemon(socket_mode="0666")
    let_everybody_in(daemon)
    base = rss(daemon.pid)
    with running_as(daemon.endpoint, _MARK_NOTHING_AS_DONE, uid) as codes:
        assert codes == [code]
        peak = peak_rss(daemon.pid)
        tell("300 sessions that mark nothing as done", base, peak, base + MOST_GROWTH)
        assert peak < base + MOST_GROWTH
        with Tracker(daemon.endpoint, timeout=PATIENCE) as tracker:
            assert tracker.status()["store_bytes"] < 32 * MIB
        if restarts:
            daemon.kill()
    if restarts:
        daemon.start()
    with Tracker(daemon.endpoint, timeout=PATIENCE) as tracker:
        wait_until(lambda: tracker.status()["sessions"] == 0)
    assert peak_rss(daemon.pid) < base + MOST_GROWTH
    wait_until(lambda: restarts or rss(daemon.pid) < base + MOST_GROWTH / 2)


def test_the_subscriptions_of_a_peer_are_bounded(trackd_daemon: Daemon) -> None:
    with Tracker(trackd_daemon.endpoint) as tracker, zmq.Context() as context:
        endpoint = tracker.status()["events"]
        events = tracker.events()
        next(events)
        base = rss(trackd_daemon.pid)
        with context.socket(zmq.SUB) as greedy:
            greedy.linger = 0
            greedy.connect(endpoint)
            for number in range(40_000):
                greedy.subscribe(f"{number:0240}".encode())
            wait_until(lambda: "too many subscriptions" in trackd_daemon.log.read_text())
            for _ in range(20):
                tracker.ping()
                time.sleep(0.05)
            peak = peak_rss(trackd_daemon.pid)
        tell("40,000 subscriptions", base, peak, base + MOST_GROWTH)
        assert peak < base + MOST_GROWTH
        tracker.track_expected(Proxy("p1"))
        assert any(event.kind == "proxy_tracked" for event in events), "others are served"
    wait_until(lambda: rss(trackd_daemon.pid) < base + MOST_GROWTH / 2)


#: Begins listings over a connection of its own, and abandons them.
ABANDON = """
import itertools, sys, zmq
from trackd_client.wire.protocol import REQUEST, decode_reply, encode
with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
    peer.linger = 0
    peer.connect(sys.argv[1])
    for seq in range(1, int(sys.argv[2]) + 1):
        peer.send(encode(REQUEST, {"op": "snapshot", "of": "proxies", "limit": 1, "seq": seq}))
        assert decode_reply(peer.recv()).error is None
"""


def test_listings_that_a_peer_abandons_end_no_other_listing_and_are_bounded(
    trackd_daemon: Daemon,
) -> None:
    with RawPeer(trackd_daemon.endpoint) as peer, Tracker(trackd_daemon.endpoint) as tracker:
        for start in range(0, 100_000, 10_000):
            tracker.track_expected(*(Proxy(f"p{i}") for i in range(start, start + 10_000)))
        begin = {"op": "snapshot", "of": "proxies", "limit": 1, "seq": 1}
        page = peer.ask(begin)
        base = rss(trackd_daemon.pid)
        for _ in range(2):
            command = [sys.executable, "-c", ABANDON, trackd_daemon.endpoint, "300"]
            subprocess.run(command, check=True, timeout=3 * PATIENCE)
            page = peer.ask({**begin, "cursor": page["cursor"]})
            assert "error" not in page
        peak = peak_rss(trackd_daemon.pid)
        tell("600 abandoned listings of 100,000 rows", base, peak, base + MOST_GROWTH)
        assert peak < base + MOST_GROWTH
        assert len(tracker.snapshot()["proxies"]) == 100_000


class Endless:
    """A peer that sends one message whose frames never end, until it is cut off."""

    def __init__(self, daemon: Daemon, size: int) -> None:
        self._socket = zmtp_socket(socket_path(daemon))
        self._chunk = zmtp_frame(bytes(size), more=True) * (1 + 65536 // (size + 1))
        self._thread = threading.Thread(target=self._send)
        self._thread.start()

    @property
    def cut_off(self) -> bool:
        return not self._thread.is_alive()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _send(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._socket.sendall(self._chunk)


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 1_000, 65_536])
def test_a_message_that_never_ends_meets_the_memory_limit_and_a_restart_loses_nothing(
    trackd_daemon: Daemon, size: int
) -> None:
    """Until then others are served. libzmq cuts the peer off, or aborts, when memory ends."""
    with Tracker(trackd_daemon.endpoint, timeout=PATIENCE) as tracker:
        tracker.track_expected(Proxy("held", "g", 2**64 - 1), Proxy("free", "g", 2**64 - 1))
        lease, in_flight = tracker.adopt("held"), tracker.try_acquire()
        assert lease is not None
        assert in_flight is not None
        revision = tracker.status()["revision"]

        process, base = trackd_daemon._process, rss(trackd_daemon.pid)
        assert process is not None
        limit = limit_memory(process.pid, 384 * MIB)
        peak = served = 0
        endless = Endless(trackd_daemon, size)
        try:
            with Tracker(trackd_daemon.endpoint, timeout=2.0) as other:
                while process.poll() is None and not endless.cut_off:
                    with contextlib.suppress(AssertionError, OSError):
                        peak = max(peak, rss(process.pid))
                    with contextlib.suppress(ConnectionError, TimeoutError):
                        served += other.status()["pid"] == process.pid
        finally:
            endless.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)
        tell(f"frames of {size} bytes without end", base, peak, limit)
        end = process.returncode
        print(f"{served} requests of another client served; then", end or "the peer was cut off")
        assert served > 0
        assert base + 100 * MIB < peak <= limit, "it did grow"
        if end is None:
            assert serves(trackd_daemon)
        else:
            # By libzmq, by the kernel, or by a library that did not look whether it got memory.
            assert end in (-signal.SIGABRT, -signal.SIGKILL, -signal.SIGSEGV)
            trackd_daemon.restart()

        status = tracker.status()
        assert (status["claimed"], status["inflight"], status["tracked"]) == (1, 1, 2)
        assert status["revision"] >= revision
        assert not lease.lost
        assert in_flight.claim("free")
        wait_until(lambda: tracker.status()["sessions"] == 1)
