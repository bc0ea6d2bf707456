"""A whole fleet on this host: members of etcd, candidates, and relays with keys of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from fleet.cluster import Cluster
from fleet.network import Network
from helpers.support import wait_until
from helpers.web import free_port
from trackd.fleet.keys import make_keys
from trackd_client import TrackdError, Tracker

CLUSTER = "example.com"
#: Seconds for what takes some seconds on a quiet machine.
LONG = 120.0


def without_settings() -> dict[str, str]:
    """Return the environment without variables that trackd would read, such as TRACKD_TORTURE."""
    return {name: text for name, text in os.environ.items() if not name.startswith("TRACKD_")}


class Part:
    """A process of a fleet, which tests start, kill, pause and continue.

    Attributes:
        name: of its host.
        log: where it writes.
        process: while it runs.
    """

    def __init__(self, name: str, folder: Path, command: str, config: str) -> None:
        self.name = name
        self.log = folder / f"{name}-{command}.log"
        self.file = folder / f"{name}-{command}.toml"
        self.file.write_text(config)
        self.command = [sys.executable, "-m", "trackd", command, "--config", str(self.file)]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it."""
        assert self.process is None
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, env=without_settings()
            )

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it, and return its exit code."""
        assert self.process is not None
        process, self.process = self.process, None
        process.send_signal(number)
        if number != signal.SIGKILL:
            process.send_signal(signal.SIGCONT)
        try:
            return process.wait(LONG)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def kill(self) -> None:
        """End it in the middle of whatever it does."""
        self.end(signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Pause it for a `with` block."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    def says(self, text: str) -> bool:
        """Return whether its log has a text."""
        return text in self.log.read_text() if self.log.exists() else False

    @property
    def has_ended(self) -> bool:
        """Whether it has ended by itself."""
        return self.process is not None and self.process.poll() is not None


class Relay(Part):
    """The relay of a host.

    Attributes:
        endpoint: for agents of the host.
    """

    def __init__(self, name: str, folder: Path, config: str) -> None:
        self.endpoint = f"ipc://{folder}/{name}.sock"
        super().__init__(name, folder, "run", f'endpoint = "{self.endpoint}"\n{config}')


class Fleet:
    """Candidates and relays, all of them processes on loopback.

    Attributes:
        candidates: by their order.
        relays: by the order of their hosts.
        addresses: where each candidate listens while it leads, by its name.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        candidates: int = 2,
        hosts: int = 2,
        ttl: int = 3,
        host_ttl: float = 5.0,
        settings: str = "",
        tables: str = "",
        lead: str = "",
        relay: str = "",
        admin_hosts: tuple[str, ...] = ("host-1",),
        log_level: str = "debug",
        network: Network | None = None,
    ) -> None:
        self._stack = ExitStack()
        self.folder = Path(
            self._stack.enter_context(tempfile.TemporaryDirectory(prefix="trackd-fleet-"))
        )
        self.hosts, self.leaders = self.folder / "hosts", self.folder / "leaders"
        self.keys = self.folder / "keys"
        for each in (self.hosts, self.leaders, self.keys):
            each.mkdir()
        names = [f"control-{number}" for number in range(1, candidates + 1)]
        ports = [free_port() for _ in names]
        for name in names:
            made = make_keys(name, self.keys)
            (self.leaders / f"{name}.pub").write_bytes(made.public_file.read_bytes())
        places = {
            name: f"{network.address[name] if network else '127.0.0.1'}:{port}"
            for name, port in zip(names, ports, strict=True)
        }
        self.addresses = {name: f"tcp://{place}" for name, place in places.items()}
        leaders = ", ".join(f'"{name}={place}"' for name, place in places.items())
        members = ", ".join(f'"{each}"' for each in cluster.endpoints)
        admins = ", ".join(f'"{each}"' for each in admin_hosts)
        head = f'cluster_name = "{CLUSTER}"\nlog_level = "{log_level}"\n{settings}\n'
        self.candidates = [
            Part(
                name,
                self.folder,
                "lead",
                f'{head}state_dir = "{self.folder}/{name}.state"\n{tables}[fleet]\n'
                f'etcd_endpoints = [{members}]\nlisten = "{place}"\n'
                f'key_file = "{self.keys}/{name}.key"\nhosts_dir = "{self.hosts}"\n'
                f"admin_hosts = [{admins}]\nleader_ttl = {ttl}\nhost_ttl = {host_ttl}\n{lead}",
            )
            for name, place in places.items()
        ]
        self.relays = []
        for number in range(1, hosts + 1):
            name = f"host-{number}"
            self.admit(name)
            self.relays.append(
                Relay(
                    name,
                    self.folder,
                    f'state_dir = "{self.folder}/{name}.state"\n{head}[fleet]\n'
                    f"leaders = [{leaders}]\n"
                    f'leaders_dir = "{self.leaders}"\nkey_file = "{self.keys}/{name}.key"\n{relay}',
                )
            )
        if network is not None:
            for part in self.parts:
                part.command[:0] = network.command(part.name)

    def admit(self, name: str) -> None:
        """Make keys for a host, and let the leaders know the public one."""
        made = make_keys(name, self.keys)
        (self.hosts / f"{name}.pub").write_bytes(made.public_file.read_bytes())

    @property
    def parts(self) -> list[Part]:
        """All processes."""
        return [*self.candidates, *self.relays]

    def wait_until_served(self, relay: Relay, seconds: float = LONG) -> None:
        """Wait until a host's agents get answers."""

        def is_served() -> bool:
            ended = [part.log.read_text()[-2000:] for part in self.parts if part.has_ended]
            assert not ended, ended
            return serves(relay.endpoint)

        wait_until(is_served, seconds)

    def keep_candidates(self) -> None:
        """Start the candidates that do not run, as whoever supervises them does."""
        for candidate in self.candidates:
            if candidate.has_ended:
                candidate.end()
            if candidate.process is None:
                candidate.start()

    def leader(self) -> Part:
        """Return the candidate that leads, by its own word; wait for one."""
        found: list[Part] = []

        def look() -> bool:
            found[:] = [each for each in self.candidates if each.process and _leads(each)]
            return len(found) == 1

        wait_until(look, LONG)
        return found[0]

    def __enter__(self) -> Self:
        for part in self.parts:
            part.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            for part in self.parts:
                print(f"--- {part.log.name}\n{part.log.read_text()[-6000:]}")
        for part in reversed(self.parts):
            if part.process is not None:
                part.end(
                    signal.SIGKILL if part.process.poll() is None and error else signal.SIGTERM
                )
        self._stack.close()


def serves(endpoint: str) -> bool:
    """Return whether a host's agents get answers."""
    try:
        with Tracker(endpoint, timeout=2.0) as tracker:
            tracker.status()
    except TrackdError:
        return False
    return True


def _leads(part: Part) -> bool:
    if part.process is None or part.has_ended:
        return False
    _, _, since = part.log.read_text().rpartition(" candidate host=")
    return " leads host=" in since
