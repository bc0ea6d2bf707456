"""SIGHUP changes what can change in a running daemon; the socket may be systemd's."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from helpers.support import PATIENCE, RawPeer, wait_until
from trackd_client import Proxy, Tracker
from trackd_client.errors import LimitExceeded, PermissionRefused
from trackd_client.testing import Daemon, MakeDaemon


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "trackd.toml"
    made.write_text("")
    return made


@pytest.fixture
def daemon(make_trackd_daemon: MakeDaemon, file: Path) -> Daemon:
    return make_trackd_daemon(config=file)


def reload(daemon: Daemon, file: Path, text: str, told: str = " reloaded changed=") -> str:
    """Have the daemon read a new text; return what it logged about that."""
    before = len(daemon.log.read_text())
    file.write_text(text)
    os.kill(daemon.pid, signal.SIGHUP)
    wait_until(lambda: told in daemon.log.read_text()[before:])
    return daemon.log.read_text()[before:]


def test_a_reload_changes_the_rules(daemon: Daemon, file: Path) -> None:
    with Tracker(daemon.endpoint) as tracker:
        reload(daemon, file, "proxy_expiry = 7\nconnection_count = 2\n")
        status = tracker.status()
        assert (status["proxy_expiry"], status["connection_count"]) == (7, 2)
        reload(daemon, file, "")
        assert tracker.status()["proxy_expiry"] == 180


def test_a_reload_changes_how_long_events_are_kept(daemon: Daemon, file: Path) -> None:
    reload(daemon, file, "history = 256\n")
    with Tracker(daemon.endpoint) as tracker:
        for number in range(600):
            tracker.track_expected(Proxy(f"p{number}"))
        whole, older = tracker.log(), tracker.log(older=True)
        assert len(older["events"]) > len(whole["events"])
        assert older["events"][0].revision < older["oldest"] == whole["oldest"]
        reload(daemon, file, "history = 256\nhistory_age = 0\n")
        assert tracker.log(older=True)["events"] == tracker.log()["events"] != []


def test_a_count_that_clients_chose_stays_until_the_configured_one_changes(
    daemon: Daemon, file: Path
) -> None:
    with Tracker(daemon.endpoint) as tracker:
        tracker.set_connection_count(5)
        reload(daemon, file, "proxy_expiry = 7\n")
        assert tracker.status()["connection_count"] == 5
        reload(daemon, file, "connection_count = 2\n")
        assert tracker.status()["connection_count"] == 2
        daemon.restart()
        assert tracker.status()["connection_count"] == 2
        tracker.set_connection_count(5)
        daemon.restart()
        assert tracker.status()["connection_count"] == 5


def test_a_larger_count_serves_those_who_wait_already(daemon: Daemon, file: Path) -> None:
    reload(daemon, file, "connection_count = 1\n")
    with Tracker(daemon.endpoint) as tracker:
        tracker.track_expected(Proxy("a"), Proxy("b"))
        lease = tracker.acquire(timeout=10)
        assert lease.claim("a")
        assert tracker.try_acquire() is None
        code = (
            "import sys; from trackd_client import Tracker\n"
            "with Tracker(sys.argv[1]) as tracker: tracker.acquire(timeout=60)"
        )
        waiting = subprocess.Popen([sys.executable, "-c", code, daemon.endpoint])
        wait_until(lambda: tracker.status()["waiting"] == 1)
        reload(daemon, file, "connection_count = 2\n")
        assert waiting.wait(PATIENCE) == 0


def test_limits_roles_and_the_dial_budget_change(daemon: Daemon, file: Path) -> None:
    with Tracker(daemon.endpoint) as tracker:
        tracker.track_expected(Proxy("a"), Proxy("b"), Proxy("c"))
        text = "dial_rate = 0.001\ndial_burst = 1\n[limits]\nmax_principals = 1\n"
        reload(daemon, file, text)
        lease = tracker.try_acquire()
        assert lease is not None
        assert tracker.try_acquire() is None, "the budget has no second token"
        assert tracker.explain()["reason"] == "budget"
        with pytest.raises(LimitExceeded):
            lease.claim("a", "b")
        reload(daemon, file, "")
        assert lease.claim("a", "b")
        assert tracker.try_acquire() is not None


@pytest.mark.skipif(os.geteuid() != 0, reason="takes another uid")
def test_the_role_of_a_user_changes(daemon: Daemon, file: Path) -> None:
    daemon.directory.chmod(0o755)
    daemon.directory.parent.chmod(0o755)
    Path(daemon.endpoint.removeprefix("ipc://")).chmod(0o666)
    reload(daemon, file, 'count_role = "admin"\n')
    assert set_count_as(65534, daemon).endswith(PermissionRefused.__name__)
    reload(daemon, file, 'count_role = "admin"\nadmin_users = [65534]\n')
    assert set_count_as(65534, daemon) == "done"


def set_count_as(uid: int, daemon: Daemon) -> str:
    """Set the count as another user; return the name of the error, or "done"."""
    code = (
        "import os, sys; from trackd_client import Tracker\n"
        "tracker = Tracker(sys.argv[1]); os.setuid(int(sys.argv[2]))\n"
        "try: tracker.set_connection_count(3); print('done')\n"
        "except Exception as error: print(type(error).__name__)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, daemon.endpoint, str(uid)],
        check=True,
        capture_output=True,
        text=True,
    )
    return ran.stdout.strip()


def test_the_level_of_the_log_changes(daemon: Daemon, file: Path) -> None:
    with Tracker(daemon.endpoint) as tracker:
        tracker.is_claimed("before")
        reload(daemon, file, 'log_level = "debug"\n')
        tracker.is_claimed("after")
    wait_until(lambda: "proxy=after" in daemon.log.read_text())  # a thread of its own writes it
    assert "proxy=before" not in daemon.log.read_text()


def test_what_cannot_change_live_is_refused_with_the_reason(daemon: Daemon, file: Path) -> None:
    text = 'claim_timeout = 5\nstate_dir = ""\nproxy_expiry = 7\n'
    told = reload(daemon, file, text)
    assert "setting=claim_timeout reason=" in told
    assert "setting=state_dir reason=" in told
    assert "changed=proxy_expiry\n" in told
    with Tracker(daemon.endpoint) as tracker:
        assert tracker.status()["proxy_expiry"] == 7
        assert tracker.status()["store"] == "ok"


@pytest.mark.parametrize("text", ["proxy_expiry = ", "proxy_expiry = 7\nno_such = 1\n"])
def test_a_file_that_is_wrong_changes_nothing(daemon: Daemon, file: Path, text: str) -> None:
    reload(daemon, file, "proxy_expiry = 9\n")
    told = reload(daemon, file, text, "reload refused; nothing changed")
    assert str(file) in told
    with Tracker(daemon.endpoint) as tracker:
        assert tracker.status()["proxy_expiry"] == 9


TERMINAL = """
import os, pty, subprocess, sys
pid, terminal = pty.fork()
if pid == 0:  # a shell in all but name: it leads the session, and the daemon is in it
    with open(sys.argv[1], "wb") as log:
        daemon = subprocess.Popen(sys.argv[2:], stdout=log, stderr=log)
    sys.exit(daemon.wait())
sys.stdin.read()  # until the terminal is to be closed
os.close(terminal)
os.waitpid(pid, 0)
"""


@pytest.mark.parametrize("program", [["nohup"], []], ids=["nohup", "plain"])
def test_a_daemon_ends_with_its_terminal_unless_it_was_told_not_to(
    tmp_path: Path, program: list[str]
) -> None:
    log, lock = tmp_path / "log", tmp_path / "trackd.sock.lock"
    log.touch()
    run = [sys.executable, "-m", "trackd", "run", "--cluster-name=x"]
    command = [*program, *run, f"--endpoint={tmp_path}/trackd.sock"]
    with subprocess.Popen(
        [sys.executable, "-c", TERMINAL, log, *command], stdin=subprocess.PIPE
    ) as terminal:
        wait_until(lambda: "serving" in log.read_text())
        daemon = int(lock.read_text().split()[0])
        terminal.communicate()
    with contextlib.suppress(ProcessLookupError):  # the kernel's own signal may have ended it
        os.kill(daemon, signal.SIGHUP)  # as the kernel does for the group in the foreground
    try:
        if program:
            wait_until(lambda: "reloaded" in log.read_text())
        else:
            wait_until(lambda: not lock.exists())
            assert "stopping signal=SIGHUP" in log.read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(daemon, signal.SIGTERM)
        wait_until(lambda: not lock.exists())


# --- a socket from systemd ---------------------------------------------------------------------

LAUNCH = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", NOTIFY_SOCKET=sys.argv[2])
os.environ["WATCHDOG_USEC"] = "600000"
os.execv(sys.executable, [sys.executable, "-m", "trackd", "run", *sys.argv[3:]])
"""


class Manager:
    """Plays systemd: listens on the socket, starts the daemon, hears what it tells."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "trackd.sock"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen()
        self.path.chmod(0o640)
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(str(directory / "notify"))
        self.notify.settimeout(PATIENCE)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        fd = str(self.listener.fileno())
        settings = ["--cluster-name=example.com", f"--endpoint={self.path}"]
        command = [sys.executable, "-c", LAUNCH, fd, self.notify.getsockname(), *settings]
        self.process = subprocess.Popen(command, pass_fds=[self.listener.fileno()])

    def hear(self, wanted: Callable[[str], bool]) -> str:
        """Return the first datagram that is wanted."""
        while True:
            told = self.notify.recv(10_000).decode()
            if wanted(told):
                return told

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.listener.close()
        self.notify.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path)
    yield made
    made.close()


def test_a_request_that_came_before_the_daemon_is_answered(manager: Manager) -> None:
    code = "import sys; from trackd_client import Tracker\nwith Tracker(sys.argv[1]) as t: t.ping()"
    asking = subprocess.Popen([sys.executable, "-c", code, str(manager.path)])
    manager.start()
    assert asking.wait(PATIENCE) == 0


def test_the_socket_of_systemd_keeps_its_mode_and_outlives_the_daemon(manager: Manager) -> None:
    inode = manager.path.stat().st_ino
    with Tracker(str(manager.path), timeout=20) as tracker:
        for _ in range(2):
            manager.start()
            manager.hear(lambda told: told == "READY=1")
            tracker.ping()
            assert manager.stop() == 0
    found = manager.path.stat()
    assert (found.st_ino, found.st_mode & 0o777) == (inode, 0o640)


def test_readiness_and_signs_of_life_and_the_end_are_told(manager: Manager) -> None:
    manager.start()
    first = manager.hear(lambda _: True)
    assert first == "STATUS=claimed 0 of 0 desired, 0 in flight, 0 sessions"
    assert manager.hear(lambda _: True) == "READY=1"
    for _ in range(3):
        manager.hear(lambda told: told == "WATCHDOG=1")
    with Tracker(str(manager.path)) as tracker:

        def count_requests() -> int:
            requests = tracker.status()["requests"]
            manager.hear(lambda told: told.startswith("WATCHDOG"))
            manager.hear(lambda told: told.startswith("WATCHDOG"))
            return int(tracker.status()["requests"]) - int(requests)

        # A request of ours that is answered late is sent again, and may count twice.
        wait_until(lambda: count_requests() == 1)  # the probe is nobody's request
        assert tracker.status()["revision"] == 1, "and changes nothing after the start"
    assert manager.process is not None
    manager.process.send_signal(signal.SIGHUP)
    manager.hear(lambda told: told.startswith("RELOADING=1\nMONOTONIC_USEC="))
    manager.hear(lambda told: told == "READY=1")
    assert manager.stop() == 0
    manager.hear(lambda told: told.startswith("STOPPING=1"))


def test_a_second_daemon_is_refused_while_systemd_s_runs(manager: Manager) -> None:
    manager.start()
    manager.hear(lambda told: told == "READY=1")
    ran = subprocess.run(
        [sys.executable, "-m", "trackd", "run", "--cluster-name=x", f"--endpoint={manager.path}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 4
    assert manager.process is not None
    assert f"pid {manager.process.pid}" in ran.stderr


def test_the_probe_is_for_the_daemon_itself_alone(daemon: Daemon) -> None:
    with RawPeer(daemon.endpoint) as peer:
        assert peer.request("probe")["error"] == "unknown_operation"
