"""A host is cut off from the leader, in both directions or in one, and connected again."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Self

import pytest

from fleet.cluster import Cluster
from fleet.fleet import LONG, Fleet
from trackd.fleet.etcd import Etcd
from trackd_client import Proxy, Tracker

UP, DOWN = "to the leader", "from the leader"


class Wire:
    """Carries what a relay and a candidate say to each other, unless it is cut.

    What cannot pass waits, as TCP repeats it; nobody learns that the other end has hung up.

    Attributes:
        port: where the relay connects.
        lost: the directions in which nothing passes.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.removeprefix("tcp://").rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.lost: frozenset[str] = frozenset()
        #: For each end that is read, the other one and the direction.
        self._ways: dict[socket.socket, tuple[socket.socket, str]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            lost = self.lost
            with selectors.DefaultSelector() as selector:
                selector.register(self._listener, selectors.EVENT_READ)
                for end, (_, direction) in self._ways.items():
                    if direction not in lost:
                        selector.register(end, selectors.EVENT_READ)
                for key, _ in selector.select(0.02):
                    assert isinstance(key.fileobj, socket.socket)
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.fileobj in self._ways:
                        self._carry(key.fileobj)

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        try:
            far = socket.create_connection(self._target)
        except OSError:  # it does not lead
            near.close()
            return
        self._ways[near], self._ways[far] = (far, UP), (near, DOWN)

    def _carry(self, end: socket.socket) -> None:
        other, _ = self._ways[end]
        try:
            if data := end.recv(65_536):
                other.sendall(data)
                return
        except OSError:
            pass
        for each in (end, other):
            del self._ways[each]
            each.close()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        for each in (self._listener, *self._ways):
            with suppress(OSError):
                each.close()


@pytest.mark.parametrize("lost", [(UP, DOWN), (UP,), (DOWN,)], ids=["both", "up", "down"])
def test_tunnels_of_a_host_that_is_cut_off_stay_until_it_is_connected_again(
    cluster: Cluster, etcd: Etcd, lost: tuple[str, ...]
) -> None:
    fleet = Fleet(cluster, ttl=10, host_ttl=5.0)  # who leads is not cut off
    cut = fleet.relays[0]
    with ExitStack() as stack:
        wires = []
        for name, address in fleet.addresses.items():
            wires.append(stack.enter_context(Wire(address)))
            place = address.removeprefix("tcp://")
            settings = cut.file.read_text()
            assert f"{name}={place}" in settings
            cut.file.write_text(
                settings.replace(f"{name}={place}", f"{name}=127.0.0.1:{wires[-1].port}")
            )
        stack.enter_context(fleet)
        for relay in fleet.relays:
            fleet.wait_until_served(relay)
        a = stack.enter_context(Tracker(cut.endpoint, timeout=LONG))
        b = stack.enter_context(Tracker(fleet.relays[1].endpoint, timeout=LONG))
        a.track_expected(Proxy("p1"))
        kept = a.try_acquire()
        assert kept is not None
        assert kept.claim("p1")
        assert b.try_acquire() is None
        began = time.monotonic()
        for wire in wires:
            wire.lost = frozenset(lost)
        other = b.acquire()
        assert other is not None
        took = time.monotonic() - began
        assert other.claim("p1")
        reasons = [
            event.fields["reason"] for event in b.log()["events"] if event.kind == "session_ended"
        ]
        assert "host_lost" in reasons
        assert not kept.lost.is_set()  # `keep`: nothing tells it
        for wire in wires:
            wire.lost = frozenset()
        began = time.monotonic()
        assert kept.lost.wait(LONG)
        healed = time.monotonic() - began
        print(f"{lost}: free after {took:.1f} s; the surplus closes {healed:.1f} s after healing")
        assert a.adopt("p1") is None
        assert [row.name for row in b.rows("leases")] == ["p1"]
        other.release()
        again = a.acquire()
        assert again is not None
        assert again.claim("p1")
