"""A relay's connection to a candidate that may change its key: real sockets over TCP."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from helpers.support import PATIENCE, wait_until
from trackd.fleet.authentication import Authentication, HostKeys, secure
from trackd.fleet.keys import KeyPair, make_keys, read_secret
from trackd.fleet.pinned import PAUSE, PinnedConnection

Sockets = zmq.Context[zmq.Socket[bytes]]


class Site:
    """A relay's keys, a candidate's old and new ones, and the candidate itself, one at a time."""

    def __init__(self, tmp_path: Path, context: Sockets) -> None:
        self.context = context
        self.old, self.new, self.relay = (
            read_secret(make_keys(name, tmp_path).secret_file) for name in ("old", "new", "relay")
        )
        self.directory = tmp_path / "hosts"
        self.directory.mkdir()
        self.public_file = tmp_path / "relay.pub"
        shutil.copy(self.public_file, self.directory)
        self.hosts = HostKeys(self.directory)
        self.poller = zmq.Poller()
        self.port = 0
        self.router: zmq.Socket[bytes] | None = None

    def serve(self, own: KeyPair) -> None:
        """Let the candidate serve, at the same place each time."""
        self.router = self.context.socket(zmq.ROUTER)
        secure(self.router, own)
        if self.port:
            wait_until(self.bind)
        else:
            self.port = self.router.bind_to_random_port("tcp://127.0.0.1")

    def bind(self) -> bool:
        assert self.router is not None
        try:
            self.router.bind(f"tcp://127.0.0.1:{self.port}")
        except zmq.ZMQError:  # the last one is not closed yet
            return False
        return True

    def stop(self) -> None:
        assert self.router is not None
        self.router.close(linger=0)
        self.router = None

    def connect(self, *pinned: str, clock: Callable[[], float] | None = None) -> PinnedConnection:
        endpoint = f"tcp://127.0.0.1:{self.port}"
        more = {} if clock is None else {"clock": clock}
        return PinnedConnection(self.context, self.poller, endpoint, pinned, self.relay, **more)

    def run(self, connection: PinnedConnection, until: Callable[[], object]) -> None:
        """Do what an owner does, until a condition is true."""

        def one() -> object:
            wait = connection.next_step
            milliseconds = 20 if wait is None else min(20, int(wait * 1000) + 1)
            ready = dict(self.poller.poll(milliseconds))
            if connection.monitor in ready or connection.next_step == 0:
                connection.step()
            return until()

        wait_until(one)

    def assert_exchange(self, connection: PinnedConnection) -> None:
        """Send a frame there and one back."""
        assert self.router is not None
        connection.socket.send(b"there")
        assert self.router.poll(int(PATIENCE * 1000))
        peer, frame = self.router.recv_multipart()
        assert frame == b"there"
        self.router.send_multipart([peer, b"back"])
        assert connection.socket.poll(int(PATIENCE * 1000))
        assert connection.socket.recv() == b"back"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    context: Sockets = zmq.Context()
    made = Site(tmp_path, context)
    with Authentication(context, made.hosts):
        yield made
    if made.router is not None:
        made.stop()
    context.term()


@pytest.mark.parametrize("which", ["old", "new"])
def test_either_key_is_good_whichever_is_first(site: Site, which: str) -> None:
    own = {"old": site.old, "new": site.new}[which]
    site.serve(own)
    connection = site.connect(site.old.public, site.new.public)
    site.run(connection, lambda: connection.connected)
    assert connection.key == own.public
    site.assert_exchange(connection)
    connection.close()


def test_a_candidate_changes_its_key_and_back_while_relays_pin_both(site: Site) -> None:
    site.serve(site.old)
    connection = site.connect(site.old.public, site.new.public)
    site.run(connection, lambda: connection.connected)
    for own in (site.new, site.old, site.old, site.new):
        site.stop()
        site.run(connection, lambda: not connection.connected)
        site.serve(own)
        site.run(connection, lambda: connection.connected)
        assert connection.key == own.public
        site.assert_exchange(connection)
    connection.close()


def test_a_candidate_with_neither_key_gets_nothing_and_is_not_asked_all_the_time(
    site: Site, tmp_path: Path
) -> None:
    wrong = read_secret(make_keys("wrong", tmp_path).secret_file)
    site.serve(wrong)
    now = [100.0]
    connection = site.connect(site.old.public, site.new.public, clock=lambda: now[0])
    first = connection.socket
    connection.socket.send(b"secret", zmq.DONTWAIT)
    site.run(connection, lambda: connection.socket is not first)
    second = connection.socket
    assert connection.key == site.new.public
    site.run(connection, lambda: connection.next_step)
    assert connection.next_step == PAUSE  # both were tried
    for _ in range(5):  # libzmq fails on with the same key meanwhile
        assert connection.monitor.poll(int(PATIENCE * 1000))
        connection.step()
    assert connection.socket is second
    assert connection.next_step == PAUSE
    now[0] += PAUSE
    connection.step()
    assert connection.key == site.old.public
    assert not connection.connected
    assert site.router is not None
    assert not site.router.poll(0)
    connection.close()


def test_a_candidate_that_does_not_know_us_yet_is_tried_again_with_the_same_key(
    site: Site,
) -> None:
    (site.directory / "relay.pub").unlink()
    site.hosts.reload()
    site.serve(site.old)
    connection = site.connect(site.old.public, site.new.public)
    site.run(connection, lambda: connection.refused)
    assert not connection.connected
    shutil.copy(site.public_file, site.directory)
    site.hosts.reload()
    site.run(connection, lambda: connection.connected)
    assert (connection.key, connection.refused) == (site.old.public, False)
    site.assert_exchange(connection)
    connection.close()


def test_with_one_key_it_comes_back_after_the_candidate_was_away(site: Site) -> None:
    site.serve(site.old)
    connection = site.connect(site.old.public)
    site.run(connection, lambda: connection.connected)
    site.stop()
    site.run(connection, lambda: not connection.connected)
    site.serve(site.old)
    site.run(connection, lambda: connection.connected)
    site.assert_exchange(connection)
    connection.close()


def test_what_does_not_speak_curve_is_tried_again(site: Site) -> None:
    site.serve(site.old)
    site.stop()
    site.router = site.context.socket(zmq.ROUTER)
    wait_until(site.bind)
    connection = site.connect(site.old.public)
    site.run(connection, lambda: connection.next_step is not None)
    site.stop()
    site.serve(site.old)
    site.run(connection, lambda: connection.connected)
    site.assert_exchange(connection)
    connection.close()


def test_the_poller_has_the_sockets_of_today_alone(site: Site) -> None:
    site.serve(site.new)
    connection = site.connect(site.old.public, site.new.public)
    site.run(connection, lambda: connection.connected)
    assert {each for each, _ in site.poller.sockets} == {connection.socket, connection.monitor}
    connection.close()
    assert not site.poller.sockets


def test_a_connection_that_nobody_answers_is_tried_anew_before_the_kernel_would(site: Site) -> None:
    """A listener whose queue is full drops what asks for more, as a network does that is cut."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        site.port = full.getsockname()[1]
        with socket.create_connection(full.getsockname(), timeout=PATIENCE):
            connection = site.connect(site.old.public)
            tried: set[str] = set()

            def is_tried_anew() -> bool:
                tried.update(trying(site.port))
                return len(tried) >= 3

            site.run(connection, is_tried_anew)
    connection.close()


def trying(port: int) -> set[str]:
    """Return the local addresses of connections to a port here that have no answer yet."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {
        local
        for _, local, remote, state, *_ in rows
        if (remote[-4:], state) == (f"{port:04X}", "02")
    }
