"""The laboratory of docs/examples/ssh with what breaks it, and a monitor of its tunnels.

The monitor connects through every tunnel that any process of a bastion listens for, and sees which
unit answers. It knows nothing of trackd.
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Self

from helpers.trackctl import PLAIN, TRACKCTL
from laboratory import EXAMPLE, PATIENCE, Laboratory
from trackd_client import Tracker
from trackd_client.testing import Daemon

#: Seconds between two looks of the monitor.
LOOK: Final = 0.25
#: What systemd does with Restart=always: runs a command again and again, RESTART seconds apart.
UNIT: Final = """
trap 'kill "$pid" 2>/dev/null; wait; exit 0' TERM
while :; do
  "$@" &
  pid=$!
  wait "$pid"
  sleep "$RESTART" &
  pid=$!
  wait "$pid"
done
"""


@dataclass(frozen=True)
class Keeper:
    """A way to keep tunnels.

    Attributes:
        title: what people call it.
        units: how many units of it run.
        restart: seconds after which a unit that has ended is started again.
        uses_trackd: whether it needs a daemon.
        ends_tree: whether what an agent has started ends by itself when the agent is killed. For
            others systemd does it.
        runs_ssh: whether each tunnel is an ssh.
    """

    title: str
    units: int
    restart: float
    uses_trackd: bool = False
    ends_tree: bool = False
    runs_ssh: bool = True

    def command(self, site: Site, unit: str) -> list[str]:
        """Return what a unit runs."""
        raise NotImplementedError


class Keep(Keeper):
    """`trackctl keep` with the shipped script."""

    def command(self, site: Site, unit: str) -> list[str]:
        return [*TRACKCTL, "keep", "--", str(site.place / "tunnel.sh")]


class AsyncsshAgent(Keeper):
    """The shipped asyncio agent."""

    def command(self, site: Site, unit: str) -> list[str]:
        balancer = f"{getpass.getuser()}@127.0.0.1:{site.ports['balancer']}"
        port = site.monitor.ports[unit]
        return [sys.executable, str(EXAMPLE / "asyncssh_agent.py"), balancer, str(port), "0"]


class PoolAgent(Keeper):
    """An agent in threads that runs ssh."""

    def command(self, site: Site, unit: str) -> list[str]:
        return [sys.executable, str(Path(__file__).with_name("ssh_pool_agent.py"))]


class Loop(Keeper):
    """`ssh` under Restart=always."""

    def command(self, site: Site, unit: str) -> list[str]:
        return ["ssh", "-F", str(site.place / unit / "plain_config"), "-N", "bastions"]


class Autossh(Keeper):
    """`autossh` under Restart=always."""

    def command(self, site: Site, unit: str) -> list[str]:
        config = str(site.place / unit / "plain_config")
        return ["autossh", "-M", "0", "-F", config, "-N", "bastions"]


KEEP: Final = Keep("trackctl keep", 2, 1.0, uses_trackd=True, ends_tree=True)
ASYNCSSH: Final = AsyncsshAgent(
    "asyncssh agent", 2, 1.0, uses_trackd=True, ends_tree=True, runs_ssh=False
)
POOL: Final = PoolAgent("AgentPool", 2, 1.0, uses_trackd=True)
#: RestartSec of systemd is 0.1 s.
LOOPS: Final = tuple(Loop(f"{count} loops", count, 0.1) for count in (6, 18))
AUTOSSH: Final = Autossh("6 autossh", 6, 0.1)


class Seen(NamedTuple):
    """What the monitor has seen in one look.

    Attributes:
        at: when, in seconds of the monotonic clock.
        tunnels: for each bastion the units that answered through its tunnels.
    """

    at: float
    tunnels: dict[str, list[str]]


class Monitor:
    """Connects through every tunnel, again and again, in a thread of its own."""

    def __init__(self, site: Site, patience: float) -> None:
        """Listen for each unit.

        Args:
            site: what it looks at.
            patience: seconds in which a tunnel has to answer.
        """
        self._site = site
        self._patience = patience
        self._listeners = {
            f"unit{number}": socket.create_server(("127.0.0.1", 0), backlog=128)
            for number in range(site.keeper.units)
        }
        self.ports = {unit: each.getsockname()[1] for unit, each in self._listeners.items()}
        self._ended = threading.Event()
        self._looks = ThreadPoolExecutor(8)
        self._threads = [
            threading.Thread(target=self._answer, args=each) for each in self._listeners.items()
        ]
        self._threads.append(threading.Thread(target=self._watch))
        self.last = Seen(time.monotonic(), {})
        self.below = 0.0  # seconds in which a bastion that is wanted had no tunnel that answers
        self.surplus = 0.0  # seconds of tunnels beside the first one of a bastion
        self.full_since: float | None = None

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for listener in self._listeners.values():
            listener.shutdown(socket.SHUT_RDWR)  # wakes who accepts
        for thread in self._threads:
            thread.join()
        for listener in self._listeners.values():
            listener.close()
        self._looks.shutdown()

    def _answer(self, unit: str, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                connection.sendall(unit.encode())

    def _watch(self) -> None:
        while not self._ended.wait(LOOK):
            seen = self.look()
            passed = seen.at - self.last.at
            wanted = set(self._site.wanted)
            if wanted <= {name for name, units in seen.tunnels.items() if units}:
                self.full_since = self.full_since or seen.at
            else:
                self.full_since = None
                self.below += passed
            self.surplus += passed * sum(max(0, len(each) - 1) for each in seen.tunnels.values())
            self.last = seen

    def look(self) -> Seen:
        """Return which units answer through the tunnels of each bastion now."""
        at = time.monotonic()
        doors = [(name, port) for name in self._site.names for port in self._site.list_ports(name)]
        answers = self._looks.map(self._ask, [port for _, port in doors])
        tunnels: dict[str, list[str]] = {name: [] for name in self._site.names}
        for (name, _), unit in zip(doors, answers, strict=True):
            if unit:
                tunnels[name].append(unit)
        return Seen(at, tunnels)

    def _ask(self, port: int) -> str:
        """Return which unit answers through the tunnel that listens on a port, or nothing."""
        try:
            with socket.create_connection(("127.0.0.1", port), self._patience) as door:
                return door.recv(64).decode()
        except OSError:
            return ""


class Site(Laboratory):
    """Bastions, the balancer, the units of one keeper, the daemon where it needs one."""

    def __init__(
        self,
        place: Path,
        keeper: Keeper,
        bastions: int,
        *,
        scale: float = 1.0,
        patience: float = 1.0,
    ) -> None:
        """Write the files; entering the `with` block starts all but the units.

        Args:
            place: an empty directory with a short path.
            keeper: how tunnels are kept.
            bastions: how many there are.
            scale: how long faults last, in proportion to what they say.
            patience: seconds in which a tunnel has to answer the monitor.
        """
        self.keeper = keeper
        self._scale = scale
        super().__init__(place, [f"b{number}" for number in range(1, bastions + 1)])
        self.wanted = self.names
        self._hole: socket.socket | None = None
        self.monitor = Monitor(self, patience)
        ttl, pause = max(3.0, 12 * scale), max(0.5, 3 * scale)
        self.edit("gossip.sh", '"ttl":12000000000', f'"ttl":{int(ttl * 1e9)}')
        self.edit("gossip.sh", "sleep 3", f"sleep {pause:g}")
        self._gossip_ttl = ttl
        ssh = place / "ssh"
        ssh.write_text(f'#!/bin/sh\necho >>{place}/dials\nexec {shutil.which("ssh")} "$@"\n')
        ssh.chmod(0o755)
        (place / "dials").touch()
        authority = (place / "host_ca.pub").read_text()
        (place / "known_hosts").write_text(f"@cert-authority * {authority}")
        for unit in self.monitor.ports:
            self._write_unit(unit)
        self.daemon: Daemon | None = None
        if keeper.uses_trackd:
            (place / "daemon").mkdir()
            self.daemon = Daemon(place / "daemon", state_dir=place / "daemon")

    def _write_unit(self, unit: str) -> None:
        """Give a unit a directory with its configuration: its tunnels lead to its own port."""
        place = self.place / unit
        place.mkdir()
        shutil.copy(self.place / "host_ca.pub", place)
        shutil.copy(self.place / "id_ed25519", place)
        text = (self.place / "ssh_config").read_text()
        text = text.replace("127.0.0.1:22\n", f"127.0.0.1:{self.monitor.ports[unit]}\n")
        (place / "ssh_config").write_text(text)
        plain = [line for line in text.splitlines() if "KnownHostsCommand" not in line]
        text = "\n".join(plain) + "\n"
        known = f"UserKnownHostsFile {self.place}/known_hosts"
        (place / "plain_config").write_text(text.replace("UserKnownHostsFile /dev/null", known))

    def __enter__(self) -> Self:
        super().__enter__()
        self.monitor.__enter__()
        try:
            if self.daemon is not None:
                self.daemon.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for unit in self.monitor.ports:
            if unit in self.running:
                self.stop(unit)
        if self.daemon is not None:
            self.daemon.close()
        self.monitor.__exit__()
        super().__exit__()
        if self._hole is not None:
            self._hole.close()

    # -- what is there ------------------------------------------------------------------------

    def list_ports(self, name: str) -> list[int]:
        """Return the ports on which the connections of a bastion listen: the ends of tunnels."""
        process = self.running.get(name)
        if process is None:
            return []
        listening = {}
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                listening[f"socket:[{fields[9]}]"] = int(fields[1].rpartition(":")[2], 16)
        found = set()
        for pid in list_tree(process.pid):
            with suppress(OSError):  # it has ended
                for entry in Path(f"/proc/{pid}/fd").iterdir():
                    with suppress(OSError):
                        found.add(listening.get(str(entry.readlink())))
        return sorted(port for port in found if port and port != self.ports[name])

    def list_clients(self) -> list[int]:
        """Return the processes that agents have started, and those of these, wherever they are."""
        mark = f"TRACKD_SSH={self.place}/unit".encode()
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
        return found

    def list_orphans(self) -> list[int]:
        """Return the processes of agents that are below no unit."""
        units = [self.running[unit].pid for unit in self.monitor.ports if unit in self.running]
        kept = {pid for unit in units for pid in (unit, *list_tree(unit))}
        return [pid for pid in self.list_clients() if pid not in kept]

    def count_ssh(self) -> int:
        """Return how many ssh run for the agents."""
        comms = Counter[str]()
        for pid in self.list_clients():
            with suppress(OSError):
                comms[Path(f"/proc/{pid}/comm").read_text().strip()] += 1
        return comms["ssh"]

    def list_complaints(self) -> list[str]:
        """Return what is not as it is when all is well, with a daemon also what that knows.

        All is well when each bastion that is wanted has one tunnel, and no other process is left.
        While tunnels are missing nothing else is looked at.
        """
        seen = self.monitor.last
        units = {name: units for name, units in seen.tunnels.items() if units}
        found = [f"{name} has no tunnel" for name in self.wanted if name not in units]
        for name, these in units.items():
            if len(these) > 1 or name not in self.wanted:
                found.append(f"{name} has tunnels of {', '.join(these)}")
        if found:
            return found
        if orphans := self.list_orphans():
            found.append(f"orphans: {orphans}")
        if self.keeper.runs_ssh and self.count_ssh() != len(self.wanted):
            found.append(f"{self.count_ssh()} ssh for {len(self.wanted)} tunnels")
        if self.daemon is not None:
            with Tracker(self.daemon.endpoint) as tracker:
                rows = list(tracker.rows("leases"))
            agents = {pid: unit for unit in self.monitor.ports for pid in self._list_whole(unit)}
            claimed = {row["name"]: [agents.get(row["pid"])] for row in rows if row["name"]}
            if claimed != units:
                found.append(f"the daemon knows of {claimed}, and the monitor of {units}")
        return found

    def count_dials(self) -> int:
        """Return how often an ssh was started."""
        return (self.place / "dials").stat().st_size

    # -- what is done with it -----------------------------------------------------------------

    def pause(self, seconds: float) -> None:
        """Let a fault last."""
        time.sleep(seconds * self._scale)

    def start_units(self) -> None:
        """Start the agents."""
        for unit in self.monitor.ports:
            environ = {"TRACKD_SSH": str(self.place / unit), "RESTART": f"{self.keeper.restart}"}
            environ |= {"PATH": self.environ["PATH"], "AUTOSSH_PATH": str(self.place / "ssh")}
            environ["AUTOSSH_GATETIME"] = "0"  # try for ever, also when the first dial fails
            if self.daemon is not None:
                environ["TRACKD_ENDPOINT"] = self.daemon.endpoint
            command = self.keeper.command(self, unit)
            with self.open_log(unit) as log:
                self.running[unit] = subprocess.Popen(
                    ["bash", "-c", UNIT, unit, *command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=PLAIN | environ,
                )

    def kill_agent(self, unit: str) -> None:
        """Kill the main process of a unit; systemd starts it again."""
        tree = list_tree(self.running[unit].pid)
        for pid in tree[:1] if self.keeper.ends_tree else tree:
            _signal(pid, signal.SIGKILL)

    def kill_script(self) -> None:
        """Kill one of the scripts that `keep` runs, where there are any."""
        for pid in self.list_clients():
            with suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == "tunnel.sh":
                    _signal(pid, signal.SIGKILL)
                    return

    @contextmanager
    def suspended(self, *names: str) -> Iterator[None]:
        """Stop bastions or units with all that they started for as long as the block runs."""
        pids = [pid for name in names for pid in self._list_whole(name)]
        for pid in pids:
            _signal(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                _signal(pid, signal.SIGCONT)

    def _list_whole(self, name: str) -> list[int]:
        return [self.running[name].pid, *list_tree(self.running[name].pid)]

    def start_bastion(self, name: str) -> None:
        """Start the sshd of a bastion, again when it could not start: systemd does so, too.

        A process of the one before that was just forked may still have its port.
        """
        super().start_bastion(name)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.ports[name]), 1.0):
                return
            if self.running[name].poll() is not None:
                super().start_bastion(name)
            time.sleep(0.05)

    def kill_bastion(self, name: str) -> None:
        """Kill a bastion with all its connections."""
        _signal(self.running[name].pid, signal.SIGSTOP)  # it starts no other while these are listed
        for pid in self._list_whole(name):
            _signal(pid, signal.SIGKILL)
        self.running.pop(name).wait(PATIENCE)

    def reload_balancer(self) -> None:
        """Start the balancer with its present file; the one before serves what it has."""
        old = self.running.pop("balancer")
        self.running[f"balancer of {time.monotonic()}"] = old
        config = self.place / "haproxy.cfg"
        self.start("balancer", "haproxy", "-db", "-q", "-f", config, "-sf", f"{old.pid}")

    def stop_balancer(self) -> None:
        """Stop the balancer, and those of before a reload."""
        for name in [name for name in self.running if name.startswith("balancer")]:
            self.stop(name)

    def set_server(self, name: str, state: str) -> None:
        """Set the state of a bastion in the balancer: `ready` or `drain`."""
        with socket.socket(socket.AF_UNIX) as admin:
            admin.settimeout(PATIENCE)
            admin.connect(str(self.place / "admin.sock"))
            admin.sendall(f"set server bastions/{name} state {state}\n".encode())
            said = admin.recv(4096).strip()
        if said:
            raise RuntimeError(f"the balancer says: {said.decode()}")

    def add_hole(self) -> None:
        """Let the balancer choose, beside the bastions, a server that says nothing."""
        self._hole = socket.create_server(("127.0.0.1", 0), backlog=128)
        with (self.place / "haproxy.cfg").open("a") as config:
            config.write(f"  server hole 127.0.0.1:{self._hole.getsockname()[1]}\n")
        self.reload_balancer()

    def remove_hole(self) -> None:
        """Undo `add_hole`."""
        self.write_servers(*self.wanted)
        self.reload_balancer()
        if self._hole is not None:
            self._hole.close()
            self._hole = None

    def add_bastions(self, *names: str) -> None:
        """Add bastions: they start, the balancer gets to know them, all bastions say so."""
        for name in names:
            self.make_bastion(name)
            self.start_bastion(name)
        self.wanted = [*self.wanted, *names]
        self.write_servers(*self.wanted)
        self.reload_balancer()
        self.write_gossip(*self.wanted)

    def remove_bastion(self, name: str) -> None:
        """Remove a bastion as docs/ssh.md says: nobody dials for it before it goes."""
        self.wanted = [each for each in self.wanted if each != name]
        self.write_gossip(*self.wanted)
        time.sleep(self._gossip_ttl + 0.5)
        self.write_servers(*self.wanted)
        self.reload_balancer()
        self.stop_bastion(name)


def list_tree(pid: int) -> list[int]:
    """Return the processes below a process, parents first; each of its threads may have some."""
    children: list[int] = []
    with suppress(OSError):  # it has ended
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):  # this one has
                children += map(int, (thread / "children").read_text().split())
    return [*children, *(each for child in children for each in list_tree(child))]


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
