"""The ssh example on one host: three bastions, the balancer, and a host that keeps tunnels.

    python docs/examples/ssh/laboratory.py

It runs real sshd and HAProxy on loopback, with files in a directory of its own, and shows `trackctl
top`: who has which tunnel, since when. Break what you like meanwhile. Its end leaves nothing.
"""

from __future__ import annotations

import getpass
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final, Self

EXAMPLE: Final = Path(__file__).parent
NAMES: Final = ("b1", "b2", "b3")
#: Programs, and the packages of Debian that have them.
NEEDED: Final = {"sshd": "openssh-server", "ssh": "openssh-client", "haproxy": "haproxy"}
#: Seconds in which a process has to end.
PATIENCE: Final = 20.0
#: This interpreter's own `trackctl`.
TRACKCTL: Final = [sys.executable, "-c", "from trackd_client.cli import main; main()"]


class Laboratory:
    """The files of the example with other places, ports and users, and the processes.

    Each tunnel takes any port of its bastion, because all bastions are one host here.
    """

    def __init__(self, place: Path, names: Sequence[str] = NAMES) -> None:
        """Write the files; entering the `with` block starts the processes.

        Args:
            place: an empty directory.
            names: the bastions.
        """
        self.place = place
        self.ports = {"balancer": _free_port(())}
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        for path in EXAMPLE.iterdir():
            if path.is_file():
                shutil.copy(path, place)
        self.write_gossip(*names)
        trackctl = place / "trackctl"
        trackctl.write_text(f'#!/bin/sh\nexec {shlex.join(TRACKCTL)} "$@"\n')
        trackctl.chmod(0o755)
        for key in ("host_ca", "id_ed25519"):
            self._make_key(key)
        for name in names:
            self.make_bastion(name)
        self.edit("ssh_config", "User tunnel", f"User {getpass.getuser()}")
        self.edit("ssh_config", "Port 2200\n", f"Port {self.ports['balancer']}\n")
        self.edit("ssh_config", "HostName balancer.example.com", "HostName 127.0.0.1")
        self.edit("ssh_config", "RemoteForward 127.0.0.1:2222 ", "RemoteForward 0 ")
        self.edit("ssh_config", "/etc/trackd/ssh", str(place))
        self.edit("haproxy.cfg", "bind :2200", f"bind 127.0.0.1:{self.ports['balancer']}")
        self.edit("haproxy.cfg", "/run/haproxy/admin.sock", f"{place}/admin.sock")
        self.write_servers(*names)

    @property
    def environ(self) -> dict[str, str]:
        """The variables with which `trackctl keep` finds the files, and this `trackctl`."""
        return {"TRACKD_SSH": str(self.place), "PATH": f"{self.place}:{os.environ['PATH']}"}

    @property
    def names(self) -> list[str]:
        """The bastions that exist."""
        return [name for name in list(self.ports) if name != "balancer"]

    def make_bastion(self, name: str) -> None:
        """Give a bastion a port, a key, a certificate, and a configuration."""
        self.ports[name] = _free_port(self.ports.values())
        self._make_key(name)
        principals = f"bastions,{name}.example.com,{name}"
        sign = ("ssh-keygen", "-q", "-s", self.place / "host_ca", "-I", name, "-h")
        _run(*sign, "-n", principals, self.place / f"{name}.pub")
        self._write_sshd_config(name)

    def write_gossip(self, *lines: str) -> None:
        """Write what all bastions say: which there are."""
        new = self.place / "bastions.new"
        new.write_text("".join(f"{line}\n" for line in lines))
        new.replace(self.place / "bastions")

    def write_servers(self, *names: str) -> None:
        """Write for which bastions the balancer is."""
        path = self.place / "haproxy.cfg"
        lines = [line for line in path.read_text().splitlines() if "  server " not in line]
        lines += [f"  server {name} 127.0.0.1:{self.ports[name]} check" for name in names]
        path.write_text("\n".join(lines) + "\n")

    def start_bastion(self, name: str) -> None:
        """Start the sshd of a bastion."""
        sshd = str(shutil.which("sshd"))  # it wants to be called by its whole path
        self.start(name, sshd, "-D", "-e", "-f", self.place / f"{name}.conf")

    def stop_bastion(self, name: str) -> None:
        """Stop a bastion and all its connections, as a reboot does."""
        for pid in self.connections(name):
            with suppress(ProcessLookupError):  # a check of the balancer
                os.kill(pid, signal.SIGKILL)
        self.stop(name)

    def start_balancer(self) -> None:
        """Start the balancer."""
        self.start("balancer", "haproxy", "-db", "-q", "-f", self.place / "haproxy.cfg")

    def stop(self, name: str) -> None:
        """Stop a process, and wait for its end."""
        process = self.running.pop(name)
        process.terminate()
        process.wait(PATIENCE)

    def connections(self, name: str) -> list[int]:
        """Return the processes of a bastion that serve a connection, the balancer's checks too."""
        pid = self.running[name].pid
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def logins(self, name: str) -> int:
        """Return how often somebody has logged in to a bastion and got gossip."""
        return self.log(name).count("Starting session: forced-command")

    def open_log(self, name: str) -> BinaryIO:
        """Return the file for what a process logs."""
        return (self.place / f"{name}.log").open("ab")

    def log(self, name: str) -> str:
        """Return what a process has logged."""
        return (self.place / f"{name}.log").read_text()

    def __enter__(self) -> Self:
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd does not start without it
        for name in self.names:
            self.start_bastion(name)
        self.start_balancer()
        return self

    def __exit__(self, *_: object) -> None:
        for name in reversed(list(self.running)):
            self.stop(name)

    def start(self, name: str, *command: str | Path) -> None:
        """Start a process."""
        with self.open_log(name) as log:
            self.running[name] = subprocess.Popen(command, stdout=log, stderr=log)

    def _make_key(self, name: str) -> None:
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.place / name)

    def _write_sshd_config(self, name: str) -> None:
        text = (self.place / "sshd_config").read_text()
        text = text.replace("/etc/ssh/ssh_host_ed25519_key", str(self.place / name))
        text = text.replace("User tunnel", f"User {getpass.getuser()}")
        gossip = f"{self.place}/gossip.sh {self.place}/bastions"
        text = text.replace("/etc/trackd/gossip.sh", gossip)
        more = [
            f"ListenAddress 127.0.0.1:{self.ports[name]}",
            f"AuthorizedKeysFile {self.place}/id_ed25519.pub",
            "StrictModes no",
            "PidFile none",
            "UsePAM no",
            "PermitRootLogin yes",
            "LogLevel VERBOSE",
        ]
        (self.place / f"{name}.conf").write_text("\n".join(more) + "\n" + text)

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace a text in a file.

        Raises:
            ValueError: the file has no such text.
        """
        path = self.place / name
        text = path.read_text()
        if old not in text:
            raise ValueError(f"{name} has no {old!r}")
        path.write_text(text.replace(old, new))


def _free_port(taken: Collection[int]) -> int:
    """Return a port that nobody has, also outside those that the kernel gives to connections."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        if port not in taken:
            with suppress(OSError), socket.create_server(("127.0.0.1", port)):
                return port


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def show(laboratory: Laboratory) -> None:
    """Start a daemon and an agent, and show the tunnels; on a terminal until the user ends it."""
    endpoint = laboratory.place / "trackd.sock"
    laboratory.start(
        "trackd",
        *(sys.executable, "-m", "trackd", "run", "--cluster-name=example.com"),
        *(f"--endpoint={endpoint}", f"--state-dir={laboratory.place}/state"),
    )
    os.environ |= laboratory.environ | {"TRACKD_ENDPOINT": str(endpoint)}
    trackctl("wait", "--allow-none", "--timeout=60")
    laboratory.start("keep", *TRACKCTL, "keep", "--", laboratory.place / "tunnel.sh")
    for name, process in laboratory.running.items():
        print(f"{name:<9} pid {process.pid}, log {laboratory.place}/{name}.log")
    print("From another terminal, stop some with kill -STOP PID, go on with kill -CONT PID.")
    print(f"export TRACKD_ENDPOINT={endpoint}", flush=True)
    trackctl("wait", "--timeout=60")
    trackctl("top" if sys.stdout.isatty() else "proxies")


def trackctl(*arguments: str) -> None:
    """Run `trackctl`, which prints where this program does."""
    subprocess.run([*TRACKCTL, *arguments], check=False)


def end(number: int, _frame: object) -> None:
    """End, once, as after Ctrl-C: what was started is ended as well."""
    for each in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def main() -> None:
    """Run it in a new directory.

    Raises:
        SystemExit: a program is missing.
    """
    for program, package in NEEDED.items():
        if shutil.which(program) is None:
            sys.exit(f"there is no {program} (Debian's package {package})")
    for number in (signal.SIGHUP, signal.SIGTERM):  # a terminal that is closed sends the first
        signal.signal(number, end)
    with (
        suppress(KeyboardInterrupt),
        tempfile.TemporaryDirectory(prefix="trackd-ssh-") as place,
        Laboratory(Path(place)) as laboratory,
    ):
        show(laboratory)


if __name__ == "__main__":
    main()
