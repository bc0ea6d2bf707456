"""What floods make the daemon grow by: a bounded number of bytes, which it gives back."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import zmq

from helpers import web
from helpers.support import PATIENCE, RawPeer, pack, peak_rss, reset_peak_rss, rss, wait_until
from trackd_client import Proxy, Tracker
from trackd_client.testing import Daemon, MakeDaemon

#: What an attack may make the daemon grow by, at its peak and when the peers have gone.
MOST_GROWTH = 64 << 20
MOST_LEFT = MOST_GROWTH // 2


@contextlib.contextmanager
def bounded(daemon: Daemon, what: str) -> Iterator[None]:
    """Check that a block makes the daemon grow by little, and that it shrinks after the block."""
    before = rss(daemon.pid)
    reset_peak_rss(daemon.pid)
    yield
    peak = peak_rss(daemon.pid)
    print(f"\n{what}: {before >> 20} MiB before, {peak >> 20} at most")
    assert peak < before + MOST_GROWTH
    wait_until(lambda: rss(daemon.pid) < before + MOST_LEFT)


@contextlib.contextmanager
def deaf(daemon: Daemon) -> Iterator[zmq.Socket[bytes]]:
    """Yield a peer that never reads."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.linger = 0
        peer.rcvhwm, peer.sndhwm = 1, 0
        peer.connect(daemon.endpoint)
        yield peer


def requests(tracker: Tracker) -> int:
    return tracker.status().requests


def test_small_replies_that_a_peer_never_reads_are_bounded_in_bytes(
    trackd_daemon: Daemon,
) -> None:
    count = 200_000
    with Tracker(trackd_daemon.endpoint, timeout=PATIENCE) as tracker:
        before = requests(tracker)
        with bounded(trackd_daemon, f"{count} replies to hello"), deaf(trackd_daemon) as peer:
            for seq in range(1, count + 1):
                peer.send(pack({"op": "hello", "seq": seq}))
            wait_until(lambda: requests(tracker) >= before + count, 6 * PATIENCE)


def test_costly_requests_beside_many_groups_are_bounded_in_bytes(trackd_daemon: Daemon) -> None:
    groups = 100_000
    with Tracker(trackd_daemon.endpoint, timeout=PATIENCE) as tracker:
        for start in range(0, groups, 10_000):
            rows = (Proxy(f"p{n}", group=f"g{n}") for n in range(start, start + 10_000))
            tracker.track_expected(*rows)
        with (
            bounded(trackd_daemon, f"status beside {groups} groups"),
            contextlib.ExitStack() as all_,
        ):
            before = requests(tracker)
            peers = [all_.enter_context(deaf(trackd_daemon)) for _ in range(3)]
            for seq in range(1, 301):
                for peer in peers:
                    peer.send(pack({"op": "status", "seq": seq}))
            wait_until(lambda: requests(tracker) >= before + 900, 6 * PATIENCE)


def test_gossip_with_the_largest_numbers_is_bounded_in_bytes(trackd_daemon: Daemon) -> None:
    """Each message moves its group to another generation, for as long as it may ask for."""
    with (
        Tracker(trackd_daemon.endpoint, timeout=PATIENCE) as tracker,
        bounded(trackd_daemon, "300 messages of 1,000 proxies"),
        RawPeer(trackd_daemon.endpoint) as peer,
    ):
        peer.open()
        for number in range(300):
            rows = [
                [f"p{name}", f"g{(name + number) % 50}", 2**64 - 1 - number % 2, 1e300]
                for name in range(1000)
            ]
            assert "error" not in peer.request("track_expected", proxies=rows)
        assert tracker.status().tracked == 1000


def test_connections_to_http_that_say_half_are_bounded_in_bytes(
    make_trackd_daemon: MakeDaemon,
) -> None:
    site = web.site(make_trackd_daemon)
    with bounded(site.daemon, "300 half requests"), contextlib.ExitStack() as opened:
        for _ in range(300):
            with contextlib.suppress(OSError):  # it takes no more
                connection: socket.socket = opened.enter_context(site.connect())
                connection.sendall(b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 60_000)
        assert site.ask("/healthz").status == 200
