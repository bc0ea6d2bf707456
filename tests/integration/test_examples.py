"""The examples of the documentation run as they stand, each in a process of its own."""

from __future__ import annotations

import json
import os
import random
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from helpers.support import PATIENCE, complaints, wait_until
from trackd_client import Tracker
from trackd_client.testing import Daemon

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
NAMES = ("sync_agent", "async_agent", "threadpool_agent")


class Proxies:
    """A load balancer with proxies behind it, on real TCP; gossips down every kept tunnel."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.kept: dict[socket.socket, str] = {}
        self.twice: list[str] = []
        self._named: dict[socket.socket, str] = {}
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    @property
    def address(self) -> str:
        host, port = self._listener.getsockname()
        return f"{host}:{port}"

    def connected(self) -> list[str]:
        return sorted(self.kept.values())

    def drop(self, name: str) -> None:
        """Close the tunnel to a proxy, as if it had been restarted."""
        for tunnel, kept in list(self.kept.items()):
            if kept == name:
                tunnel.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *ended_by: object) -> None:
        self._stop.set()
        self._thread.join()
        for open_socket in [self._listener, *self._named]:
            open_socket.close()
        self._selector.close()

    def _serve(self) -> None:
        gossiped = 0.0
        while not self._stop.is_set():
            for key, _ in self._selector.select(0.02):
                assert isinstance(key.fileobj, socket.socket)
                self._accept() if key.fileobj is self._listener else self._hear(key.fileobj)
            if time.monotonic() >= gossiped + 0.1:
                gossiped = time.monotonic()
                self._gossip()

    def _accept(self) -> None:
        tunnel, _ = self._listener.accept()
        name = self._named[tunnel] = random.choice(self.names)
        said = {"principals": [f"{name}.example.com", name]}
        tunnel.sendall(json.dumps(said).encode() + b"\n")
        self._selector.register(tunnel, selectors.EVENT_READ)

    def _hear(self, tunnel: socket.socket) -> None:
        try:
            said = tunnel.recv(100)
        except ConnectionError:
            said = b""
        if said == b"keep\n":
            if self._named[tunnel] in self.kept.values():
                self.twice.append(self._named[tunnel])
            self.kept[tunnel] = self._named[tunnel]
        else:
            self._selector.unregister(tunnel)
            self.kept.pop(tunnel, None)
            del self._named[tunnel]
            tunnel.close()

    def _gossip(self) -> None:
        said = [{"version": "v2", "metadata": {"name": name}} for name in self.names]
        line = json.dumps({"proxies": said}).encode() + b"\n"
        for tunnel in list(self.kept):
            try:
                tunnel.sendall(line)
            except ConnectionError:
                continue  # its end is heard next


@pytest.fixture
def proxies() -> Iterator[Proxies]:
    with Proxies("p1", "p2", "p3") as running:
        yield running
    assert not running.twice, "a proxy has one tunnel"


def run(example: str, daemon: Daemon, proxies: Proxies) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-X", "dev", str(EXAMPLES / f"{example}.py"), proxies.address],
        env={**os.environ, "TRACKD_ENDPOINT": daemon.endpoint},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> str:
    """End an agent, and return what it complained of."""
    process.send_signal(signal.SIGTERM)
    return complaints(process.communicate(timeout=PATIENCE)[1])


@pytest.mark.parametrize("example", NAMES)
def test_an_example_is_short(example: str) -> None:
    assert len((EXAMPLES / f"{example}.py").read_text().splitlines()) < 40


@pytest.mark.parametrize("example", ["async_agent", "threadpool_agent"])
def test_an_agent_with_a_pool_keeps_a_tunnel_to_every_proxy(
    daemon: Daemon, proxies: Proxies, example: str
) -> None:
    process = run(example, daemon, proxies)
    try:
        wait_until(lambda: proxies.connected() == ["p1", "p2", "p3"])
        proxies.drop("p2")
        wait_until(lambda: proxies.connected() == ["p1", "p3"])
        wait_until(lambda: proxies.connected() == ["p1", "p2", "p3"])
    finally:
        complaints = end(process)
    assert (process.returncode, complaints) == (0, "")
    wait_until(lambda: not proxies.connected())


def test_plain_agents_share_the_proxies_and_a_killed_one_is_replaced(
    daemon: Daemon, proxies: Proxies
) -> None:
    agents = [run("sync_agent", daemon, proxies) for _ in range(4)]
    try:
        wait_until(lambda: proxies.connected() == ["p1", "p2", "p3"])
        with Tracker(daemon.endpoint) as operator:
            wait_until(lambda: operator.status()["waiting"] == 1)
        end(agents[0])
        end(agents[1])
        wait_until(lambda: len(proxies.connected()) == 2)
        agents.append(run("sync_agent", daemon, proxies))
        wait_until(lambda: proxies.connected() == ["p1", "p2", "p3"])
    finally:
        for agent in agents:
            if agent.poll() is None:
                end(agent)
    wait_until(lambda: not proxies.connected())
