"""docs/examples/ssh with one port for the host on every bastion: each in a network of its own."""

from __future__ import annotations

import ipaddress
import os
import shutil
import socketserver
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from helpers.hosts import needs_root
from helpers.support import PATIENCE, needed, wait_until
from helpers.trackctl import PLAIN, start_trackctl
from laboratory import NAMES, NEEDED, Laboratory
from trackd_client import Tracker
from trackd_client.testing import Daemon

#: What the host answers through a tunnel.
WELCOME = "welcome to this host"
#: The port of the host, on every bastion.
PORT = 2222


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


class Networks(Laboratory):
    """The laboratory where each bastion has a network of its own, and sshd its usual port."""

    def __init__(self, place: Path, host_port: int) -> None:
        super().__init__(place)
        self.edit("ssh_config", "RemoteForward 0 127.0.0.1:22\n", self.forward(host_port))
        for number, name in enumerate(NAMES):
            old, new = f"127.0.0.1:{self.ports[name]}", f"{self.address(number, 2)}:22"
            self.edit(f"{name}.conf", f"ListenAddress {old}", f"ListenAddress {new}")
            self.edit("haproxy.cfg", f"server {name} {old} ", f"server {name} {new} ")

    @staticmethod
    def forward(host_port: int) -> str:
        return f"RemoteForward 127.0.0.1:{PORT} 127.0.0.1:{host_port}\n"

    @staticmethod
    def address(number: int, end: int) -> str:
        """Return the address of one end of the cable to a bastion: 1 is the balancer's.

        It is of the block that is for tests of networks, and another one in each process.
        """
        block = 16 * (os.getpid() % 8192)
        return str(ipaddress.ip_address("198.18.0.0") + block + 4 * number + end)

    @staticmethod
    def network(name: str) -> str:
        return f"trackd-{os.getpid()}-{name}"

    @staticmethod
    def cable(name: str) -> str:
        return f"td{os.getpid()}{name}"

    @contextmanager
    def cables(self) -> Iterator[None]:
        """Make a network for each bastion, with a cable to the balancer's."""
        try:
            for number, name in enumerate(NAMES):
                inside, cable = self.network(name), self.cable(name)
                run("ip", "netns", "add", inside)
                run("ip", "link", "add", cable, "type", "veth", "peer", "eth0", "netns", inside)
                run("ip", "address", "add", f"{self.address(number, 1)}/30", "dev", cable)
                run("ip", "link", "set", cable, "up")
                for command in (
                    f"address add {self.address(number, 2)}/30 dev eth0",
                    "link set eth0 up",
                    "link set lo up",
                ):
                    run("ip", "-netns", inside, *command.split())
            yield
        finally:
            for name in NAMES:
                for command in (
                    f"link delete {self.cable(name)}",
                    f"netns delete {self.network(name)}",
                ):
                    subprocess.run(["ip", *command.split()], capture_output=True, check=False)

    def start_bastion(self, name: str) -> None:
        sshd = str(shutil.which("sshd"))
        inside = ("ip", "netns", "exec", self.network(name))
        self.start(name, *inside, sshd, "-D", "-e", "-f", self.place / f"{name}.conf")

    def welcomes(self, name: str) -> bool:
        """Tell whether the port on a bastion leads to the host."""
        ask = f"exec 3<>/dev/tcp/127.0.0.1/{PORT} && read -t 10 -r said <&3 && echo $said"
        inside = ("ip", "netns", "exec", self.network(name), "bash", "-c", ask)
        done = subprocess.run(inside, capture_output=True, text=True, timeout=60, check=False)
        return done.stdout.strip() == WELCOME


@pytest.fixture
def host_port() -> Iterator[int]:
    """The port of a server on this host that says one line."""

    class Welcome(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(f"{WELCOME}\n".encode())

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Welcome) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        yield int(server.server_address[1])
        server.shutdown()


@pytest.fixture
def networks(host_port: int) -> Iterator[Networks]:
    for program, package in {**NEEDED, "ip": "iproute2"}.items():
        needed(program, package)
    with tempfile.TemporaryDirectory(prefix="trackd-") as place:
        networks = Networks(Path(place), host_port)
        with networks.cables(), networks:
            yield networks


@needs_root
def test_the_host_has_the_same_port_on_every_bastion_and_never_asks_for_it_twice(
    trackd_daemon: Daemon, networks: Networks
) -> None:
    with networks.open_log("keep") as log:
        keep = start_trackctl(
            *("--endpoint", trackd_daemon.endpoint, "keep", "--", f"{networks.place}/tunnel.sh"),
            env=PLAIN | networks.environ,
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
    try:
        with Tracker(trackd_daemon.endpoint) as tracker:
            assert tracker.wait_covered(timeout=3 * PATIENCE, at_least=len(NAMES))
            wait_until(lambda: all(map(networks.welcomes, NAMES)))
            networks.stop_bastion("b2")
            wait_until(lambda: tracker.status().claimed == 2, 3 * PATIENCE)
            networks.start_bastion("b2")
            assert tracker.wait_covered(timeout=3 * PATIENCE)
            wait_until(lambda: all(map(networks.welcomes, NAMES)))
    finally:
        with suppress(ProcessLookupError):
            keep.terminate()
        keep.wait(2 * PATIENCE)
    wait_until(lambda: not any(map(networks.welcomes, NAMES)))
    logins = [networks.log(name).count("Accepted publickey") for name in NAMES]
    assert logins == [1, 2, 1], "a second tunnel does not come so far"
    assert "port forwarding failed" not in networks.log("keep")
