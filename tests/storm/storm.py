"""A storm: random agents, and one fault after the other, each drawn from a seed.

First everything that a daemon must survive without losing anything: each fault once, in the order
that was drawn, then any of them. Then all is healed: the dead
hold nothing, every wanted proxy is claimed, and the checker of histories replays the whole storm.
At last state files are garbled. That loses what was acknowledged, by design; what must hold still:
the daemon starts, agents go on, and every wanted proxy is claimed in the end.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

from helpers.event_watch import Watch
from helpers.hosts import fill, small_disk
from helpers.support import PATIENCE, descriptors, paused, wait_until
from helpers.trackctl import PLAIN, TRACKCTL
from histories.agents import NAMES
from histories.checker import check
from histories.processes import TESTS
from histories.recorder import read_events, read_history, record
from trackd_client import Proxy, TrackdError, Tracker
from trackd_client.testing import Daemon

STATE = ("trackd.db", "trackd.db-wal", "trackd.mark", "trackd.reserve", "trackd.lock")
SOCKETS = ("trackd.sock", "trackd.sock.events", "trackd.sock.lock")
#: Seconds until the dead hold nothing. A session that is opened while the daemon has no descriptor
#: left is one whose process it cannot see: that ends after its `heartbeat_ttl` of 30 s.
SILENCE = 30.0 + 2 * PATIENCE
#: The processes: a module and the kind of its client.
TEAM = (
    *(("histories.agents", "sync"), ("histories.agents", "asyncio"), ("histories.agents", "link")),
    *(("storm.tunnels", "sync"), ("storm.tunnels", "asyncio"), ("keep", "")),
)
KEPT = """
echo "p$((RANDOM % 10))" >&3; read -r outcome name <&4
[ "$outcome" = claimed ] && sleep "$((RANDOM % 3)).5"
"""


class Member:
    """A process of the team."""

    def __init__(self, storm: Storm, module: str, kind: str) -> None:
        self.module, self.kind = module, kind
        storm.started += 1
        self.log = storm.directory / f"{storm.started}.log"
        seed, endpoint = f"{storm.seed}.{storm.started}", storm.daemon.endpoint
        command = [sys.executable, "-m", module, endpoint, str(storm.directory), seed, kind]
        if module == "histories.agents":
            command += ["2", "10"]
        if module == "keep":
            keep = ["keep", "--max", "2", "--", "bash", "-c", KEPT]
            command = [*TRACKCTL, "--endpoint", endpoint, *keep]
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**PLAIN, "PYTHONPATH": str(TESTS)},
            )

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self.popen.send_signal(signal.SIGCONT)
        with self.popen:
            self.popen.kill()

    def end(self) -> None:
        """Let it end its sessions."""
        if self.module == "keep":
            self.popen.terminate()
        self.popen.communicate(timeout=3 * PATIENCE)
        assert self.module == "keep" or self.popen.returncode == 0, self.log.read_text()


class Storm:
    """A daemon, agents and their faults.

    Args:
        root: an empty directory with a path that is short enough for a socket.
        seed: what every fault is drawn from.
        seconds: how long faults follow one another.

    Attributes:
        count: how often each fault has happened, and what else there is to print.
    """

    def __init__(self, root: Path, seed: int, seconds: float) -> None:
        self.seed, self.seconds = seed, seconds
        self.chance = random.Random(seed)
        self.count: Counter[str] = Counter()
        self.directory = root / "agents"
        self.started = 0
        self._root = root
        self._disk = root / "disk"
        self._state = self._disk / "state"
        self._runtime = root / "run"
        self._has_disk = os.geteuid() == 0
        self._generation = 10
        self._team: list[Member] = []
        self._stack = ExitStack()

    def run(self) -> None:
        """Run the storm; an assertion says what was wrong."""
        with self._stack:
            self._start()
            end = time.monotonic() + self.seconds
            faults = self._faults()
            for name in self.chance.sample([*faults], len(faults)):
                self._strike(name, faults[name][1])
            weights = [weight for weight, _ in faults.values()]
            while time.monotonic() < end:
                (name,) = self.chance.choices([*faults], weights)
                self._strike(name, faults[name][1])
            self._heal()
            self._judge()
            self._lose_state()

    # -- the beginning ------------------------------------------------------------------------

    def _start(self) -> None:
        self.directory.mkdir()
        if self._has_disk:
            self._stack.enter_context(small_disk(self._disk, "256m"))
        else:
            self._disk.mkdir()
        home = self._root / "daemon"
        home.mkdir()
        self._runtime.mkdir()
        places = {"endpoint": f"ipc://{self._runtime}/trackd.sock", "state_dir": str(self._state)}
        self.daemon = Daemon(home, history=1_000_000, history_age=1e6, **places)
        self.daemon.endpoint = places["endpoint"]
        self._stack.callback(self.daemon.close)
        self.daemon.start()
        self.admin = Tracker(self.daemon.endpoint, timeout=PATIENCE, name="storm")
        self._stack.callback(self.admin.close)
        record(self.admin, self.directory / "storm.jsonl")
        self.watch = Watch(Tracker(self.daemon.endpoint, timeout=PATIENCE), snapshot=False)
        self._stack.callback(self.watch.close)
        self._stack.callback(self._kill_team)
        self._team = [Member(self, *each) for each in TEAM]

    def _kill_team(self) -> None:
        for member in self._team:
            member.kill()

    # -- the faults ---------------------------------------------------------------------------

    def _faults(self) -> dict[str, tuple[int, Callable[[], None]]]:
        """Return each fault by its name: how often it strikes, and what does it."""
        faults: dict[str, tuple[int, Callable[[], None]]] = {
            "daemon killed": (5, self._kill_daemon),
            "daemon stopped": (1, self._stop_daemon),
            "daemon paused": (2, self._pause_daemon),
            "agent killed": (40, self._kill_agent),
            "agent paused": (4, self._pause_agent),
            "state file removed": (2, self._remove_state_file),
            "state directory removed": (1, self._remove_state_directory),
            "socket or its lock removed": (1, self._remove_socket),
            "runtime directory removed": (1, self._remove_runtime_directory),
            "reload": (2, self._reload),
            "no descriptors": (2, self._exhaust_descriptors),
            "gossip flood": (1, self._flood),
            "roll-out": (2, self._roll_out),
            "proxy terminating": (2, self._terminate),
        }
        if self._has_disk:
            faults["disk full"] = 2, self._fill_disk
        return faults

    def _strike(self, name: str, fault: Callable[[], None]) -> None:
        """Say what gossip there is, let one fault happen, and look at all that there is."""
        with suppress(TrackdError):
            self._gossip(ttl=60.0)
        fault()
        self.count[name] += 1
        assert self.daemon._process is not None
        assert self.daemon._process.poll() is None, f"after {name}: {self.daemon.log.read_text()}"
        self._check_agents(name)
        with suppress(TrackdError):
            self.admin.status()
            self.admin.snapshot()

    def _check_agents(self, fault: str) -> None:
        for place, member in enumerate(self._team):
            if member.popen.poll() is not None:
                # `keep` ends where there is no daemon when it starts; systemd would start it again.
                said = member.log.read_text()
                assert member.module == "keep", f"after {fault}: {said}"
                assert "Traceback" not in said, f"after {fault}: {said}"
                member.kill()
                self._team[place] = Member(self, member.module, member.kind)
                self.count["keep started again"] += 1
        report = self.directory / "two-holders"
        assert not report.exists(), f"after {fault}, two hold {report.read_text()}"

    def _gossip(self, ttl: float) -> None:
        said = [Proxy(name, "", self._generation, ttl=ttl) for name in NAMES]
        self.admin.track_expected(*said)

    def _kill_daemon(self) -> None:
        self.daemon.kill()
        self.daemon.start()

    def _stop_daemon(self) -> None:
        assert self.daemon.stop() == 0
        self.daemon.start()

    def _pause_daemon(self) -> None:
        with paused(self.daemon.pid):
            time.sleep(self.chance.uniform(0.0, 1.5))

    def _kill_agent(self) -> None:
        """Kill one, and wait until it holds nothing; another one takes its place."""
        place = self.chance.randrange(len(self._team))
        member = self._team[place]
        member.kill()
        wait_until(lambda: member.popen.pid not in self._pids(), SILENCE)
        self._team[place] = Member(self, member.module, member.kind)

    def _pids(self) -> set[int]:
        """Return the processes that have sessions."""
        return {row.pid for row in self.admin.rows("sessions")}

    def _pause_agent(self) -> None:
        with paused(self.chance.choice(self._team).popen.pid):
            time.sleep(self.chance.uniform(0.0, 1.5))

    def _fill_disk(self) -> None:
        full = fill(self._disk)
        time.sleep(self.chance.uniform(0.0, 0.5))
        if self.chance.random() < 0.3:
            self._kill_daemon()
        full.unlink()
        wait_until(lambda: self.admin.status().store == "ok")

    def _remove_state_file(self) -> None:
        path = self._state / self.chance.choice(STATE)
        path.unlink(missing_ok=True)
        self._wait_restored(self._state, [path.name])

    def _remove_state_directory(self) -> None:
        self._remove_directory(self._state)
        self._wait_restored(self._state, STATE)

    def _remove_socket(self) -> None:
        path = self._runtime / self.chance.choice(SOCKETS)
        path.unlink()
        self._wait_restored(self._runtime, [path.name])

    def _remove_runtime_directory(self) -> None:
        self._remove_directory(self._runtime)
        self._wait_restored(self._runtime, SOCKETS)

    def _remove_directory(self, path: Path) -> None:
        """Remove a directory and what is in it at once, as far as the daemon can see."""
        gone = path.with_name("gone")
        path.rename(gone)
        shutil.rmtree(gone)

    def _wait_restored(self, directory: Path, names: Iterable[str]) -> None:
        """Wait until the daemon has made files again, and stores changes in them."""
        wait_until(lambda: all((directory / name).exists() for name in names))
        wait_until(lambda: self.admin.status().store == "ok")

    def _reload(self) -> None:
        os.kill(self.daemon.pid, signal.SIGHUP)

    def _exhaust_descriptors(self) -> None:
        """Leave the daemon no descriptor; libzmq aborts it when somebody connects meanwhile."""
        process = self.daemon._process
        assert process is not None
        before = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        limits = descriptors(process.pid), before[1]
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, limits)
        time.sleep(self.chance.uniform(0.0, 0.5))
        with suppress(ProcessLookupError):
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, before)
        wait_until(lambda: process.poll() is not None or self._answers())
        # Python prints the stacks of threads that go on meanwhile, which it may not survive.
        if process.poll() in {-signal.SIGABRT, -signal.SIGSEGV}:
            self.count["daemon aborted"] += 1
            self.daemon._process = None
            self.daemon.start()

    def _answers(self) -> bool:
        with suppress(TrackdError), Tracker(self.daemon.endpoint, timeout=2.0) as tracker:
            tracker.ping()
            return True
        return False

    def _flood(self) -> None:
        """Mention many proxies that nobody wants: their generation is old."""
        for _ in range(20):
            names = [f"old{self.chance.randrange(300)}" for _ in range(100)]
            self.admin.track_expected(*(Proxy(name, "", 0, ttl=1.0) for name in names))

    def _roll_out(self) -> None:
        self._generation += 1

    def _terminate(self) -> None:
        name = self.chance.choice(NAMES)
        proxy = Proxy(name, "", self._generation, ttl=1.0, terminating=True)
        self.admin.track_expected(proxy)

    # -- the end ------------------------------------------------------------------------------

    def _heal(self) -> None:
        """End what makes noise, and check that the pools reach every wanted proxy."""
        for member in [each for each in self._team if each.module != "storm.tunnels"]:
            member.end()
            self._team.remove(member)
        self.admin.set_connection_count(0)
        self._cover()
        alive = {member.popen.pid for member in self._team} | {os.getpid()}
        wait_until(lambda: self._pids() <= alive, SILENCE)
        self.admin.snapshot()
        for member in self._team:
            member.end()
        self._team = []
        wait_until(lambda: self.admin.status().sessions == 1, SILENCE)
        status = self.admin.status()
        assert (status.inflight, status.claimed, status.waiting) == (0, 0, 0)
        self.admin.snapshot()

    def _cover(self) -> None:
        """Wait until every wanted proxy has a tunnel."""
        (self.directory / "calm").touch()
        self._generation += 1

        def is_covered() -> bool:
            with suppress(TrackdError):
                self._gossip(ttl=60.0)
                status = self.admin.status()
                return status.claimed_desired == status.target == len(NAMES)
            return False

        wait_until(is_covered, 3 * PATIENCE)
        (self.directory / "calm").unlink()
        self._check_agents("the storm")

    def _judge(self) -> None:
        """Check the history of the storm."""
        events = read_events(self.admin)
        self.watch.reaches(events[-1].revision)
        assert "gap" not in self.watch.kinds
        (self.directory / "events.json").write_text(json.dumps(events))
        history = read_history(self.directory.glob("*.jsonl"))
        violations = check(history, [*events, *self.watch.told])
        assert not violations, "\n".join(violations[:20])
        self.count["calls"] = len(history)
        self.count["calls without a reply"] = sum(call.reply is None for call in history)
        self.count["events"] = len(events)
        self.count["processes of agents"] = self.started
        for report in self.directory.glob("*.fates"):
            self.count.update(f"frames {fate}" for fate in report.read_text().split())

    def _lose_state(self) -> None:
        """Garble the state, which loses it or not, and check that agents go on."""
        (self.directory / "state-lost").touch()
        self._team = [Member(self, "storm.tunnels", kind) for kind in ("sync", "asyncio")]
        for _ in range(3):
            self._cover()
            self.count["state garbled"] += 1
            self.daemon.kill()
            path = self._state / self.chance.choice(STATE[:2])
            if path.exists():
                with path.open("r+b") as file:
                    file.seek(self.chance.randrange(path.stat().st_size + 1))
                    file.write(self.chance.randbytes(self.chance.randrange(1, 20_000)))
            self.daemon.start()
        self._cover()
        for member in self._team:
            member.end()
        self._team = []
