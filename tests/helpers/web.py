"""What tests of the HTTP listener need: daemons that have one, and requests over either socket."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from helpers.support import PATIENCE, plain_socket, wait_until
from trackd_client.testing import Daemon, MakeDaemon

#: What a sample is found by: its name and its labels.
Key = tuple[str, tuple[tuple[str, str], ...]]


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes


class Site:
    """Where a daemon serves HTTP.

    Attributes:
        daemon: that serves it.
        address: its setting `http`.
    """

    def __init__(self, daemon: Daemon, address: str) -> None:
        self.daemon = daemon
        self.address = address

    def start(self) -> None:
        """Start the daemon, and wait until it serves HTTP too, which it does last."""
        self.daemon.start()
        wait_until(self._answers)

    def _answers(self) -> bool:
        try:
            return self.ask("/healthz").status == 200
        except OSError:
            return False

    @property
    def url(self) -> str:
        """Where a browser finds it."""
        return f"http://{self.address}/"

    def connect(self) -> socket.socket:
        """Return a connected socket."""
        if self.address.startswith("unix:"):
            return plain_socket(Path(self.address.removeprefix("unix:")))
        host, _, port = self.address.rpartition(":")
        return socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE)

    def ask(self, path: str, method: str = "GET", **headers: str) -> Answer:
        """Make one request; an underscore in a header's name is a hyphen."""
        connection = http.client.HTTPConnection("localhost")
        connection.sock = self.connect()
        try:
            told = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, headers=told)
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def json(self, path: str) -> Any:
        """Return what is told as JSON."""
        answer = self.ask(path)
        assert answer.status == 200, answer
        return json.loads(answer.body)

    def metrics(self) -> dict[Key, float]:
        """Return the samples that Prometheus would read."""
        answer = self.ask("/metrics")
        assert answer.status == 200, answer
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(answer.body.decode())
            for sample in family.samples
        }


def free_port() -> int:
    """Return a port of loopback that nobody has, outside those that the kernel gives away.

    Workers of pytest-xdist draw from ports of their own, and each draws the same one again as late
    as possible: many are taken into use only later, as those of a candidate that does not lead yet.
    """
    while True:
        port = next(_ports)
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def _ports_of_this_worker() -> Iterator[int]:
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    own = range(20_000 + number, 32_000, count)
    return itertools.cycle(random.sample(own, len(own)))


_ports: Final = _ports_of_this_worker()


def site(make: MakeDaemon, address: str | None = None, **settings: Any) -> Site:
    """Start a daemon that serves HTTP, on a port of loopback unless another place is given."""
    address = f"127.0.0.1:{free_port()}" if address is None else address
    made = Site(make(start=False, http=address, **settings), address)
    made.start()
    return made


def unix_site(make: MakeDaemon, **settings: Any) -> Site:
    """Start a daemon that serves HTTP on a unix socket beside its own."""
    daemon = make(start=False, **settings)
    address = f"unix:{daemon.directory}/http.sock"
    daemon._flags.append(f"--http={address}")
    made = Site(daemon, address)
    made.start()
    return made


def path_of(site: Site) -> Path:
    """Return the path of a site's unix socket."""
    return Path(site.address.removeprefix("unix:"))
