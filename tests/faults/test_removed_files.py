"""Files of a running daemon that somebody removes or replaces: said, and acted on."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import zmq

from helpers.support import PATIENCE, RawPeer, paused, plain_socket, serves, socket_path, wait_until
from trackd.config import exits
from trackd.host.places import lock_path
from trackd_client import Tracker

if TYPE_CHECKING:
    from trackd_client.testing import Daemon, MakeDaemon

STATE = ("trackd.db", "trackd.db-wal", "trackd.mark", "trackd.reserve")
LOST = "a file of the daemon was removed or replaced"
STORED_AGAIN = "state files created again"
SERVED_AGAIN = "served again"


def log_of(daemon: Daemon) -> str:
    return daemon.log.read_text()


def says(daemon: Daemon, text: str) -> None:
    wait_until(lambda: text in log_of(daemon))


def claim(daemon: Daemon, *names: str) -> None:
    """Acknowledge claims that belong to this process, whatever becomes of the tracker."""
    with RawPeer(daemon.endpoint) as peer:
        peer.open()
        for name in names:
            assert peer.request("adopt", principals=[name])["lease"]


def claimed(daemon: Daemon) -> set[str]:
    with Tracker(daemon.endpoint, timeout=PATIENCE) as tracker:
        return {row["name"] for row in tracker.rows("leases")}


def end_of(daemon: Daemon) -> int:
    """Wait until a daemon has ended by itself; return its exit code."""
    process = daemon._process
    assert process is not None
    code = process.wait(PATIENCE)
    daemon._process = None
    return code


@pytest.fixture
def apart(make_trackd_daemon: MakeDaemon) -> Daemon:
    """A daemon whose log is not beside its socket, so that the directory can go."""
    daemon = make_trackd_daemon(start=False)
    home = daemon.directory / "home"
    home.mkdir(mode=0o750)
    daemon.endpoint = f"ipc://{home}/trackd.sock"
    daemon._flags = ["--cluster-name=example.com", f"--endpoint={daemon.endpoint}"]
    daemon.start()
    return daemon


# -- the state --------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [STATE, *[(name,) for name in STATE]], ids="-".join)
def test_state_files_that_were_deleted_are_created_again_and_nothing_is_lost(
    trackd_daemon: Daemon, names: tuple[str, ...]
) -> None:
    claim(trackd_daemon, "before")
    with paused(trackd_daemon.pid):  # it may look between two of them
        for name in names:
            (trackd_daemon.directory / name).unlink()
    claim(trackd_daemon, "meanwhile")
    says(trackd_daemon, STORED_AGAIN)
    for name in names:
        assert f"{LOST} path={trackd_daemon.directory / name} what=state" in log_of(trackd_daemon)
    claim(trackd_daemon, "after")
    before = tracker_id(trackd_daemon)
    trackd_daemon.restart()
    assert claimed(trackd_daemon) == {"before", "meanwhile", "after"}
    assert tracker_id(trackd_daemon) == before
    assert not list(trackd_daemon.directory.glob("*.damaged-*"))
    assert trackd_daemon.stop() == 0
    assert {path.name for path in trackd_daemon.directory.iterdir()} == {"log", "trackd.db"}


def tracker_id(daemon: Daemon) -> object:
    with RawPeer(daemon.endpoint) as peer:
        return peer.request("hello", cluster="example.com")["tracker_id"]


@pytest.mark.parametrize("name", STATE)
def test_what_somebody_put_in_the_place_of_a_state_file_is_moved_aside(
    trackd_daemon: Daemon, name: str
) -> None:
    claim(trackd_daemon, "before")
    (trackd_daemon.directory / "mine").write_text("precious")
    (trackd_daemon.directory / "mine").rename(trackd_daemon.directory / name)
    says(trackd_daemon, STORED_AGAIN)
    (aside,) = trackd_daemon.directory.glob("trackd.db.damaged-*")
    assert aside.read_text() == "precious"
    trackd_daemon.restart()
    assert claimed(trackd_daemon) == {"before"}


def names_of(path: Path) -> int:
    """Return how many names the file at a path has; 0: there is none, for a moment perhaps."""
    with suppress(FileNotFoundError):
        return path.stat().st_nlink
    return 0


@pytest.mark.parametrize("name", [*STATE, "trackd.lock", "trackd.sock.lock"])
def test_a_file_with_a_second_name_is_replaced_so_that_the_next_start_takes_it(
    trackd_daemon: Daemon, tmp_path: Path, name: str
) -> None:
    claim(trackd_daemon, "before")
    path = trackd_daemon.directory / name
    other = tmp_path / "other"
    other.hardlink_to(path)
    wait_until(lambda: names_of(path) == names_of(other) == 1)
    says(trackd_daemon, f"a file of the daemon has a second name, a hard link path={path}")
    if name in STATE:
        says(trackd_daemon, STORED_AGAIN)
    claim(trackd_daemon, "after")
    trackd_daemon.restart()
    assert claimed(trackd_daemon) == {"before", "after"}


def test_a_state_directory_that_was_deleted_is_created_again(
    make_trackd_daemon: MakeDaemon,
) -> None:
    daemon = make_trackd_daemon(start=False)
    state = daemon.directory / "state"
    daemon._flags.append(f"--state-dir={state}")
    daemon.start()
    claim(daemon, "before")
    with paused(daemon.pid):  # it may look while some of it is left
        shutil.rmtree(state)
    says(daemon, STORED_AGAIN)
    assert state.stat().st_mode & 0o777 == 0o700
    wait_until(lambda: {path.name for path in state.iterdir()} == {*STATE, "trackd.lock"})
    daemon.restart()
    assert claimed(daemon) == {"before"}


def test_while_the_state_cannot_be_stored_again_nothing_is_acknowledged(
    make_trackd_daemon: MakeDaemon,
) -> None:
    daemon = make_trackd_daemon(start=False)
    state = daemon.directory / "state"
    daemon._flags.append(f"--state-dir={state}")
    daemon.start()
    claim(daemon, "before")
    if os.geteuid() != 0:
        pytest.skip("only root can mount something")
    # Something that no rename can move aside: another file system is mounted there.
    with paused(daemon.pid):  # it may look in the midst of this
        for name in STATE:
            (state / name).unlink()
        (state / "trackd.db").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "none", state / "trackd.db"], check=True)
    try:
        says(daemon, "changes cannot be stored")
        with RawPeer(daemon.endpoint) as peer:
            assert peer.request("open", name="raw")["error"] == "unavailable"
            assert peer.request("status")["store"] == "failing"
    finally:
        subprocess.run(["umount", state / "trackd.db"], check=True)
    says(daemon, "changes can be stored again")
    claim(daemon, "after")
    daemon.restart()
    assert claimed(daemon) == {"before", "after"}


# -- the sockets ------------------------------------------------------------------------------


def test_a_socket_that_was_deleted_is_served_again_and_connections_stay(
    trackd_daemon: Daemon,
) -> None:
    path = socket_path(trackd_daemon)
    mode = path.stat().st_mode
    with RawPeer(trackd_daemon.endpoint) as connected:
        connected.open()
        path.unlink()
        says(trackd_daemon, f"{SERVED_AGAIN} path={path}")
        assert serves(trackd_daemon)
        assert path.stat().st_mode == mode
        assert connected.request("adopt", principals=["kept"])["lease"] == 1
    assert trackd_daemon.stop() == 0
    assert not path.exists()


def test_a_socket_of_events_that_was_deleted_is_served_again(trackd_daemon: Daemon) -> None:
    path = Path(f"{socket_path(trackd_daemon)}.events")
    path.unlink()
    says(trackd_daemon, f"{SERVED_AGAIN} path={path}")
    with zmq.Context() as context, context.socket(zmq.SUB) as subscriber:
        subscriber.linger = 0
        subscriber.subscribe(b"")
        subscriber.connect(f"ipc://{path}")
        assert subscriber.poll(int(PATIENCE * 1000)), "nobody greets"


def test_a_socket_of_http_that_was_deleted_is_served_again(make_trackd_daemon: MakeDaemon) -> None:
    daemon = make_trackd_daemon(start=False)
    path = daemon.directory / "http.sock"
    daemon._flags.append(f"--http=unix:{path}")
    daemon.start()
    wait_until(path.exists)
    path.unlink()
    says(daemon, "HTTP is served")  # which it says only after a problem
    with Tracker(daemon.endpoint, timeout=PATIENCE) as tracker:
        assert "http_problem" not in tracker.status()
    with plain_socket(path) as client:
        client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert client.recv(4096).split(b"\r\n")[0].endswith(b" 200 OK")
    assert daemon.stop() == 0
    assert not path.exists()


def test_a_directory_that_was_deleted_comes_back_with_all_that_was_in_it(apart: Daemon) -> None:
    home = socket_path(apart).parent
    claim(apart, "before")
    inside = {path.name for path in home.iterdir()}
    with paused(apart.pid):  # it may look while some of it is left
        shutil.rmtree(home)
    says(apart, STORED_AGAIN)
    wait_until(lambda: {path.name for path in home.iterdir()} == inside)
    assert home.stat().st_mode & 0o777 == 0o750
    assert serves(apart)
    second = run_beside(apart)
    assert (second.returncode, "is held by pid" in second.stderr) == (exits.HELD, True)
    apart.restart()
    assert claimed(apart) == {"before"}


def test_a_directory_that_cannot_be_created_ends_the_daemon_with_an_error(apart: Daemon) -> None:
    home = socket_path(apart).parent
    away = home.with_name("away")
    with paused(apart.pid):  # it may look between the two
        home.rename(away)
        home.touch()  # logind leaves nothing at all, in a directory of root's
    assert end_of(apart) == exits.UNUSABLE
    assert LOST in log_of(apart)
    last = log_of(apart).splitlines()[-1]
    assert last.startswith("trackd: error: no place for the endpoint")
    assert f"{home} is not a directory" in last
    assert home.is_file()


@pytest.mark.parametrize("suffix", ["", ".events"])
def test_a_regular_file_in_the_place_of_a_socket_ends_the_daemon_and_stays(
    trackd_daemon: Daemon, suffix: str
) -> None:
    path = Path(f"{socket_path(trackd_daemon)}{suffix}")
    with paused(trackd_daemon.pid):  # it may look between the two
        path.unlink()
        path.write_text("precious")
    assert end_of(trackd_daemon) == exits.UNUSABLE
    assert f"{path} is a regular file; trackd never removes" in log_of(trackd_daemon)
    assert path.read_text() == "precious"


def test_a_file_that_takes_the_place_of_a_socket_just_before_the_end_stays(
    trackd_daemon: Daemon,
) -> None:
    process = trackd_daemon._process
    assert process is not None
    paths = [socket_path(trackd_daemon), Path(f"{socket_path(trackd_daemon)}.events")]
    with paused(trackd_daemon.pid):
        for path in paths:
            path.unlink()
            path.write_text("precious")
        process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) in {exits.OK, exits.UNUSABLE}
    assert [path.read_text() for path in paths] == ["precious", "precious"]


#: Listens as systemd does, and runs the daemon on that socket, twice.
ACTIVATOR = """
import os, socket, subprocess, sys
path, flags = sys.argv[1], sys.argv[2:]
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
os.chmod(path, 0o660)
listener.listen()
for _ in range(2):
    if os.fork() == 0:
        os.dup2(listener.fileno(), 3)
        os.set_inheritable(3, True)
        os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
        os.execv(sys.executable, [sys.executable, "-m", "trackd", "run", *flags])
    os.wait()
"""


def test_a_socket_of_systemd_that_was_deleted_is_served_by_the_daemon_over_restarts(
    make_trackd_daemon: MakeDaemon,
) -> None:
    daemon = make_trackd_daemon(start=False)
    path = socket_path(daemon)
    command = [sys.executable, "-c", ACTIVATOR, str(path), *daemon._flags]
    with daemon.log.open("ab") as log, subprocess.Popen(command, stderr=log) as activator:
        try:
            claim(daemon, "before")
            path.unlink()
            says(daemon, f"{SERVED_AGAIN} path={path}")
            assert path.stat().st_mode & 0o777 == 0o660
            assert "the socket on which systemd listens was removed" not in log_of(daemon)
            with Tracker(daemon.endpoint, timeout=PATIENCE) as tracker:
                first = tracker.status()["pid"]
            os.kill(first, signal.SIGTERM)
            says(daemon, "the socket on which systemd listens was removed")
            assert claimed(daemon) == {"before"}
            assert path.stat().st_mode & 0o777 == 0o660
            with Tracker(daemon.endpoint, timeout=PATIENCE) as tracker:
                second = tracker.status()["pid"]
            assert second != first
            os.kill(second, signal.SIGTERM)
            assert activator.wait(PATIENCE) == 0
        finally:
            activator.kill()


# -- a second daemon --------------------------------------------------------------------------


def run_beside(daemon: Daemon) -> subprocess.CompletedProcess[str]:
    """Run a second daemon at the same place until it ends by itself."""
    command = [sys.executable, "-m", "trackd", "run", *daemon._flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_a_daemon_whose_place_another_has_taken_ends_and_removes_nothing_of_it(
    apart: Daemon,
) -> None:
    home = socket_path(apart).parent
    claim(apart, "of the first")
    first = apart._process
    assert first is not None
    with paused(first.pid):
        shutil.rmtree(home)
        home.mkdir()
        apart._process = None
        apart.start()  # the second
        claim(apart, "of the second")
        inside = {path.name: path.stat().st_ino for path in home.iterdir()}
    try:
        assert first.wait(PATIENCE) == exits.HELD
    finally:
        first.kill()
        first.wait()
    assert f"is held by pid {apart.pid}" in log_of(apart)
    assert {path.name: path.stat().st_ino for path in home.iterdir()} == inside
    assert serves(apart)
    apart.restart()
    assert claimed(apart) == {"of the second"}


def test_a_lock_file_that_was_deleted_keeps_a_second_daemon_out_again(
    trackd_daemon: Daemon,
) -> None:
    for lock in (lock_path(socket_path(trackd_daemon)), trackd_daemon.directory / "trackd.lock"):
        lock.unlink()
        wait_until(lambda lock=lock: lock.exists() and lock.read_text())  # type: ignore[misc]
        second = run_beside(trackd_daemon)
        assert (second.returncode, "is held by pid" in second.stderr) == (exits.HELD, True)
    assert serves(trackd_daemon)


def test_a_socket_of_another_program_ends_the_daemon_and_stays(trackd_daemon: Daemon) -> None:
    path = socket_path(trackd_daemon)
    with socket.socket(socket.AF_UNIX) as other:
        with paused(trackd_daemon.pid):
            path.unlink()
            other.bind(str(path))
            other.listen()
        assert end_of(trackd_daemon) == exits.HELD
        assert path.is_socket()
    assert "a program that holds no lock listens on it" in log_of(trackd_daemon)
