"""Three members of etcd on loopback, which tests start, stop, kill, pause and continue."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from fleet.etcd_program import etcd_program
from helpers.support import wait_until
from helpers.web import free_port
from trackd.fleet.etcd import Etcd, EtcdError


class Member:
    """One member, whose process is started and ended by its pid.

    Attributes:
        endpoint: `host:port` for clients.
        command: what is run; it can be changed before the start.
        peer: the URL for other members.
        data: its directory.
        pid: of its process; None while it does not run.
    """

    def __init__(
        self, number: int, folder: Path, command: Sequence[str], endpoint: str, peer: str
    ) -> None:
        self.number = number
        self.endpoint = endpoint
        self.peer = peer
        self.data = folder / f"m{number}"
        self.log = folder / f"member-{number}.log"
        self.command = [*command]
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = False

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start it; its data are those that it had."""
        assert self._process is None
        environ = {name: text for name, text in os.environ.items() if not name.startswith("ETCD_")}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command, stdout=log, stderr=log, env=environ, process_group=0
            )

    def stop(self) -> None:
        """End it as an administrator would; when it leads, it hands over first."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it in the middle of whatever it does."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Stop it with SIGSTOP: its connections stay and nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        self._paused = True

    def resume(self) -> None:
        """Let it run again after `pause`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
        self._paused = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Pause it for a `with` block."""
        self.pause()
        try:
            yield
        finally:
            self.resume()

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        if self._paused:
            self.resume()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        finally:
            self._process = None


class Cluster:
    """Three members with random free ports and a folder of their own, all gone at the end.

    Attributes:
        members: in the order of their numbers.
        endpoints: `host:port` of each, for clients.
    """

    def __init__(
        self,
        *options: str,
        size: int = 3,
        tls: Path | None = None,
        address: str = "127.0.0.1",
    ) -> None:
        """Prepare them; `with` starts them.

        Args:
            options: more options for each member, like `--quota-backend-bytes=16777216`.
            size: how many members.
            tls: a folder with `ca.pem`, and `member` and `client`, each `.pem` and `.key`: then
                clients need a certificate.
            address: where clients reach them.
        """
        self._tls: dict[str, Path] = {}
        scheme = "http"
        if tls is not None:
            scheme = "https"
            self._tls = {
                "ca": tls / "ca.pem",
                "cert": tls / "client.pem",
                "key": tls / "client.key",
            }
            options = (
                *options,
                f"--cert-file={tls}/member.pem",
                f"--key-file={tls}/member.key",
                f"--trusted-ca-file={tls}/ca.pem",
                "--client-cert-auth",
            )
        program = etcd_program()
        self._undo = ExitStack()
        folder = Path(self._undo.enter_context(tempfile.TemporaryDirectory(prefix="trackd-etcd-")))
        ports = free_ports(2 * size)
        peers = [f"http://127.0.0.1:{port}" for port in ports[:size]]
        initial = ",".join(f"m{number}={peer}" for number, peer in enumerate(peers))
        self.members = [
            Member(
                number,
                folder,
                [
                    str(program),
                    f"--name=m{number}",
                    f"--data-dir={folder}/m{number}",
                    f"--listen-peer-urls={peer}",
                    f"--initial-advertise-peer-urls={peer}",
                    f"--listen-client-urls={scheme}://{address}:{port}",
                    f"--advertise-client-urls={scheme}://{address}:{port}",
                    f"--initial-cluster={initial}",
                    "--initial-cluster-state=new",
                    "--logger=zap",
                    "--log-level=warn",
                    *options,
                ],
                f"{address}:{port}",
                peer,
            )
            for number, (peer, port) in enumerate(zip(peers, ports[size:], strict=True))
        ]
        self.endpoints = [member.endpoint for member in self.members]

    def __enter__(self) -> Self:
        try:
            for member in self.members:
                member.start()
            self.wait_until_healthy()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all members, and remove their data."""
        for member in self.members:
            member.kill()
        self._undo.close()

    def client(self, *, timeout: float = 5.0) -> Etcd:
        """Return a client of all members; whoever asks closes it."""
        return Etcd(self.endpoints, timeout=timeout, **self._tls)

    def wait_until_healthy(self) -> None:
        """Wait until each member that runs knows a leader and reads by the majority."""
        for member in self.members:
            if member.pid is not None:
                with Etcd([member.endpoint], timeout=5.0, **self._tls) as etcd:
                    wait_until(partial(_answers, etcd))

    def leader(self) -> Member:
        """Return the member that leads, which one that runs says; wait until there is one."""
        found: list[Member] = []

        def look() -> bool:
            found[:] = [member for member in self.members if self._leads(member)]
            return len(found) == 1

        wait_until(look)
        return found[0]

    def followers(self) -> list[Member]:
        """Return the members that do not lead."""
        leader = self.leader()
        return [member for member in self.members if member is not leader]

    def _leads(self, member: Member) -> bool:
        if member.pid is None:
            return False
        with Etcd([member.endpoint], timeout=2.0, **self._tls) as etcd:
            try:
                status = etcd.status(member.endpoint)
            except EtcdError:
                return False
        return status.leader == status.member_id != 0


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that were free a moment ago, each another one."""
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return list(ports)


def _answers(etcd: Etcd) -> bool:
    try:
        etcd.range(b"health")
    except EtcdError:
        return False
    return True
