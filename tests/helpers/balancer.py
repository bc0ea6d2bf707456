"""A small load balancer with proxies behind it, on real TCP."""

from __future__ import annotations

import json
import random
import selectors
import socket
import threading
import time
from typing import Self


class Proxies:
    """Proxies behind one address, which chooses at random; they gossip down every kept tunnel.

    Each says its principals in a line of JSON; the line "keep" keeps the tunnel. `kept` has the
    tunnels of now, and `ended` the names of those that were kept: agents replace a tunnel within
    milliseconds, so a test that waits for its absence may look too late.
    """

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.kept: dict[socket.socket, str] = {}
        self.ended: list[str] = []
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
            if tunnel in self.kept:
                self.ended.append(self.kept.pop(tunnel))
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
