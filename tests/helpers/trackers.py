"""Short ways to use a tracker in tests: leases, calls in threads, silent and lossy daemons."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zmq

from trackd_client import Lease, Proxy, TrackdError, Tracker
from trackd_client.errors import LeaseExpired
from trackd_client.testing import Daemon
from trackd_client.wire.protocol import decode


def acquire(tracker: Tracker) -> Lease:
    lease = tracker.try_acquire()
    assert lease is not None
    return lease


def held(tracker: Tracker, *principals: str) -> Lease:
    lease = tracker.adopt(*principals)
    assert lease is not None
    return lease


def claimed_in_time(grant: Callable[[], Any], *principals: str) -> Any:
    """Return a lease that has claimed; one whose time was over before gives way to another."""
    while True:
        lease = grant()
        with contextlib.suppress(LeaseExpired):
            assert lease.claim(*principals)
            return lease


def in_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[Any]]:
    """Run something in a thread; the list gets what it returned or raised."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(work())
        except TrackdError as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


def waiting(tracker: Tracker) -> int:
    return int(tracker.status()["waiting"])


CALLS: dict[str, Callable[[Tracker, Lease], object]] = {
    "track_expected": lambda t, _: t.track_expected(Proxy("p")),
    "track_discovery": lambda t, _: t.track_discovery('{"proxies": []}'),
    "set_connection_count": lambda t, _: t.set_connection_count(0),
    "is_claimed": lambda t, _: t.is_claimed("p"),
    "try_acquire": lambda t, _: t.try_acquire(),
    "acquire": lambda t, _: t.acquire(0.2),
    "acquire at once": lambda t, _: t.acquire(0),
    "adopt": lambda t, _: t.adopt("p"),
    "status": lambda t, _: t.status(),
    "explain": lambda t, _: t.explain(),
    "ping": lambda t, _: t.ping(),
    "claim": lambda _, lease: lease.claim("p"),
    "lease.is_claimed": lambda _, lease: lease.is_claimed("p"),
}


@contextlib.contextmanager
def silent_router(directory: Path) -> Iterator[str]:
    """Serve an endpoint with a ROUTER that takes everything and answers nothing."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        router.bind(f"ipc://{directory}/silent")
        yield f"{directory}/silent"


@contextlib.contextmanager
def lossy_way(daemon: Daemon, directory: Path, *ops: str) -> Iterator[str]:
    """Serve an endpoint that leads to a daemon, but loses the first copy of some requests."""
    seen: set[bytes] = set()
    over = threading.Event()

    def pass_on() -> None:
        peers: dict[bytes, zmq.Socket[bytes]] = {}
        with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
            router.linger = 0
            router.bind(f"ipc://{directory}/lossy")
            ready.set()
            while not over.is_set():
                while router.poll(10):
                    name, frame = router.recv_multipart()
                    if name not in peers:
                        peers[name] = context.socket(zmq.DEALER)
                        peers[name].connect(daemon.endpoint)
                    decoded = decode(frame)
                    lost = decoded is not None and decoded[1]["op"] in ops and frame not in seen
                    seen.add(frame)
                    if not lost:
                        peers[name].send(frame)
                for name, peer in peers.items():
                    while peer.poll(0):
                        router.send_multipart([name, peer.recv()])
            for peer in peers.values():
                peer.close(linger=0)

    ready = threading.Event()
    thread = threading.Thread(target=pass_on)
    thread.start()
    try:
        ready.wait()
        yield f"{directory}/lossy"
    finally:
        over.set()
        thread.join()
