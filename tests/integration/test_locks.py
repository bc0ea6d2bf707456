"""One daemon holds an endpoint and a state directory; what is not its own it leaves alone."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from trackd.config.exits import HELD, UNUSABLE, LockHeldError, UnusableError
from trackd.config.settings import Config
from trackd.host.lock import STATE_LOCK, acquire_lock
from trackd.host.places import lock_path, make_directory, prepare_socket_path, take_places

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOBODY = 65534

HOLDER = """
import sys
from pathlib import Path
from trackd.host.lock import acquire_lock
lock = acquire_lock(Path(sys.argv[1]), "it", "example.com")
print("held", flush=True)
sys.stdin.readline()
lock.close()
"""

# Each takes the lock again and again; whoever has it makes a marker that must not exist yet.
CONTENDER = """
import os, sys
from pathlib import Path
from trackd.config.exits import LockHeldError
from trackd.host.lock import acquire_lock
path, held = Path(sys.argv[1]), 0
marker = path.with_name("marker")
while held < int(sys.argv[2]):
    try:
        with acquire_lock(path, "it"):
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
            marker.unlink()
            held += 1
    except LockHeldError:
        pass
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    # pytest's own directories have long names, and a socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="trackd-") as made:
        yield Path(made)


@pytest.fixture
def hold() -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """Start processes that hold a lock until they are told to stop."""
    holders: list[subprocess.Popen[str]] = []

    def start(path: Path) -> subprocess.Popen[str]:
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        holders.append(holder)
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        return holder

    yield start
    for holder in holders:
        holder.kill()
        holder.communicate()


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Lose root's power to write everywhere, where we have it."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(before)


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


# --- locks -------------------------------------------------------------------------------------


def test_a_second_process_is_told_who_holds_the_lock(
    directory: Path, hold: Callable[[Path], subprocess.Popen[str]]
) -> None:
    holder = hold(directory / "x.lock")
    with pytest.raises(LockHeldError) as caught:
        acquire_lock(directory / "x.lock", "the endpoint ipc://x")
    message = str(caught.value)
    assert message.startswith(f"the endpoint ipc://x is held by pid {holder.pid} (")
    assert f"({Path(sys.executable).name})" in message
    assert ", cluster 'example.com', started 20" in message
    assert message.endswith("; stop it, or choose another place")
    assert caught.value.code == HELD


def test_a_holder_that_is_killed_leaves_no_obstacle(
    directory: Path, hold: Callable[[Path], subprocess.Popen[str]]
) -> None:
    holder = hold(directory / "x.lock")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert names(directory) == {"x.lock"}
    with acquire_lock(directory / "x.lock", "it"), pytest.raises(LockHeldError) as caught:
        acquire_lock(directory / "x.lock", "it")
    assert f"held by pid {os.getpid()} (" in str(caught.value)
    assert "example.com" not in str(caught.value)
    assert names(directory) == set()


def test_a_holder_that_stops_leaves_nothing(
    directory: Path, hold: Callable[[Path], subprocess.Popen[str]]
) -> None:
    holder = hold(directory / "x.lock")
    holder.communicate("stop\n")
    assert holder.returncode == 0
    assert names(directory) == set()
    acquire_lock(directory / "x.lock", "it").close()


def test_a_refused_process_leaves_the_holder_s_lock_as_it_is(directory: Path) -> None:
    with acquire_lock(directory / "x.lock", "it") as lock:
        for _ in range(3):
            with pytest.raises(LockHeldError):
                acquire_lock(lock.path, "it")
        assert names(directory) == {"x.lock"}


def test_closing_twice_is_closing_once(directory: Path) -> None:
    lock = acquire_lock(directory / "x.lock", "it")
    lock.close()
    with acquire_lock(directory / "x.lock", "it"):
        lock.close()
        assert names(directory) == {"x.lock"}


def test_a_lock_file_that_somebody_put_in_the_place_of_ours_is_not_removed(directory: Path) -> None:
    with acquire_lock(directory / "x.lock", "it") as lock:
        lock.path.unlink()
        second = acquire_lock(lock.path, "it")
    assert names(directory) == {"x.lock"}
    second.close()
    assert names(directory) == set()


def test_removing_the_file_on_release_never_lets_two_processes_in(directory: Path) -> None:
    contenders = [
        subprocess.Popen([sys.executable, "-c", CONTENDER, str(directory / "x.lock"), "400"])
        for _ in range(4)
    ]
    try:
        assert [contender.wait(60) for contender in contenders] == [0, 0, 0, 0]
    finally:
        for contender in contenders:
            contender.kill()
            contender.wait()
    assert names(directory) == set()


def test_a_program_that_the_holder_starts_does_not_keep_the_lock(directory: Path) -> None:
    lock = acquire_lock(directory / "x.lock", "it")
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False):
        lock.close()
        acquire_lock(directory / "x.lock", "it").close()


def test_only_its_user_can_open_a_lock_file(directory: Path) -> None:
    before = os.umask(0)
    try:
        with acquire_lock(directory / "x.lock", "it") as lock:
            assert stat.S_IMODE(lock.path.stat().st_mode) == 0o600
    finally:
        os.umask(before)


@pytest.mark.parametrize(
    ("content", "holder"),
    [
        ("", "another process"),
        ("rubbish", "another process"),
        ("1\n2\n" + "9" * 30 + "\nx\n", "another process"),
        ("x\n2\n3\nx\n", "another process"),
        ("1\n2\n1700000000\n\n", "pid 1 (not visible from here), started 2023-11-1"),
        (
            "999999999\n\n1700000000\nx\x1b\n",
            r"pid 999999999 (not visible from here), cluster 'x\x1b', started 2023-11-1",
        ),
    ],
)
def test_whatever_a_lock_file_says_the_holder_is_described_with_care(
    directory: Path, content: str, holder: str
) -> None:
    file = directory / "x.lock"
    file.write_text(content)
    with file.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(LockHeldError, match=re.escape(f"it is held by {holder}")):
            acquire_lock(file, "it")
    assert file.read_text() == content


def test_a_lock_that_cannot_be_made_is_a_clear_error(directory: Path) -> None:
    cases = {
        directory / "none" / "x.lock": "no such file or directory",
        directory / ("x" * 256): "file name too long",
        Path("/proc/version/x.lock"): "not a directory",
    }
    for path, reason in cases.items():
        with pytest.raises(UnusableError) as caught:
            acquire_lock(path, "the endpoint ipc://x")
        assert str(caught.value).startswith(f"cannot lock the endpoint ipc://x: {path}: {reason}; ")
        assert caught.value.code == UNUSABLE


def test_a_directory_of_somebody_else_is_a_clear_error(directory: Path) -> None:
    directory.chmod(0o555)
    with as_nobody(), pytest.raises(UnusableError, match=r"permission denied; choose a place that"):
        acquire_lock(directory / "x.lock", "it")


def test_a_lock_is_never_taken_on_what_is_no_regular_file(directory: Path) -> None:
    with pytest.raises(UnusableError, match=r"is not a regular file; move it away"):
        acquire_lock(directory, "it")
    os.mkfifo(directory / "fifo")
    with pytest.raises(UnusableError, match=r"fifo is not a regular file; move it away"):
        acquire_lock(directory / "fifo", "it")
    (directory / "target").write_text("precious")
    (directory / "link").symlink_to("target")
    with pytest.raises(UnusableError, match=r"symbolic link"):
        acquire_lock(directory / "link", "it")
    assert (directory / "target").read_text() == "precious"


# --- the socket's path -------------------------------------------------------------------------


def test_a_stale_socket_is_removed(directory: Path) -> None:
    path = directory / "x.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
    assert names(directory) == {"x.sock"}
    prepare_socket_path(path)
    assert names(directory) == set()
    prepare_socket_path(path)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def test_a_socket_that_somebody_listens_on_is_left_alone(
    directory: Path, kind: socket.SocketKind
) -> None:
    path = directory / "x.sock"
    with socket.socket(socket.AF_UNIX, kind) as listener:
        listener.bind(str(path))
        if kind != socket.SOCK_DGRAM:
            listener.listen()
        with pytest.raises(LockHeldError, match=r"in use: a program that holds no lock listens"):
            prepare_socket_path(path)
        assert names(directory) == {"x.sock"}


def test_a_listener_too_busy_to_answer_is_left_alone(directory: Path) -> None:
    path = directory / "x.sock"
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:  # until its backlog is full
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(str(path))
        with pytest.raises(LockHeldError, match="in use"):
            prepare_socket_path(path)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (Path.touch, "a regular file"),
        (Path.mkdir, "a directory"),
        (os.mkfifo, "a FIFO"),
        (lambda path: path.symlink_to("x.target"), "a symbolic link"),
    ],
)
def test_what_is_not_a_socket_is_never_removed(
    directory: Path, make: Callable[[Path], object], kind: str
) -> None:
    path = directory / "x.sock"
    make(path)
    before = path.lstat()
    with pytest.raises(UnusableError, match=f"is {kind}; trackd never removes what is not a sock"):
        prepare_socket_path(path)
    assert os.path.samestat(path.lstat(), before)


def test_a_link_to_a_socket_is_not_a_socket(directory: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "real.sock"))
    (directory / "x.sock").symlink_to("real.sock")
    with pytest.raises(UnusableError, match="is a symbolic link"):
        prepare_socket_path(directory / "x.sock")


def test_a_stale_socket_that_we_may_not_remove_is_a_clear_error(directory: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "x.sock"))
    (directory / "x.sock").chmod(0o777)
    directory.chmod(0o555)
    with as_nobody(), pytest.raises(UnusableError, match=r"cannot use .*: permission denied"):
        prepare_socket_path(directory / "x.sock")


# --- directories -------------------------------------------------------------------------------


def test_a_directory_is_made_with_its_mode_whatever_the_umask(directory: Path) -> None:
    before = os.umask(0o077)
    try:
        make_directory(directory / "a" / "b", "it", levels=2, mode=0o755)
    finally:
        os.umask(before)
    assert stat.S_IMODE((directory / "a").stat().st_mode) == 0o755
    assert stat.S_IMODE((directory / "a" / "b").stat().st_mode) == 0o755


def test_a_directory_that_exists_is_left_as_it_is(directory: Path) -> None:
    directory.chmod(0o711)
    make_directory(directory, "it", levels=2, mode=0o755)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o711


@pytest.mark.parametrize(
    ("below", "levels", "missing"), [("a", 0, "a"), ("a/b", 1, "a"), ("a/b/c", 2, "a")]
)
def test_no_more_directories_are_made_than_allowed(
    directory: Path, below: str, levels: int, missing: str
) -> None:
    with pytest.raises(UnusableError) as caught:
        make_directory(directory / below, "the endpoint ipc://x", levels=levels, mode=0o755)
    assert str(caught.value) == (
        f"no place for the endpoint ipc://x: {directory / missing} does not exist; create it, or "
        "choose another place"
    )
    assert names(directory) == set()


def test_a_directory_that_cannot_be_made_is_a_clear_error(directory: Path) -> None:
    (directory / "file").touch()
    with pytest.raises(UnusableError, match=r"file is not a directory"):
        make_directory(directory / "file", "it", levels=1, mode=0o755)
    with pytest.raises(UnusableError, match=r"no place for it: .*not a directory"):
        make_directory(directory / "file" / "a", "it", levels=1, mode=0o755)
    directory.chmod(0o555)
    with as_nobody(), pytest.raises(UnusableError, match=r"cannot make .*: permission denied"):
        make_directory(directory / "a", "it", levels=1, mode=0o755)


# --- all of it ---------------------------------------------------------------------------------


def place(directory: Path, name: str = "trackd.sock", **values: object) -> Config:
    config = {"endpoint": f"ipc://{directory}/{name}", "cluster_name": "example.com"}
    return Config(**{**config, **values})  # type: ignore[arg-type] # what a test says


def test_the_default_place_is_made_and_both_locks_are_held(directory: Path) -> None:
    own = directory / "trackd" / "default"
    with take_places(place(own, own_place=True, state_dir=str(own))):
        assert names(own) == {"trackd.sock.lock", "trackd.lock"}
        mode = 0o755 if os.geteuid() == 0 else 0o700
        assert stat.S_IMODE(own.stat().st_mode) == mode
    assert names(own) == set()


def test_the_directory_of_a_place_that_was_typed_is_not_made(directory: Path) -> None:
    with pytest.raises(UnusableError, match=r"typed does not exist; create it"):
        take_places(place(directory / "typed", state_dir=str(directory)))
    assert names(directory) == set()


def test_a_state_directory_is_made_for_its_user_alone(directory: Path) -> None:
    with take_places(place(directory, state_dir=str(directory / "state"))):
        assert stat.S_IMODE((directory / "state").stat().st_mode) == 0o700
        assert names(directory / "state") == {STATE_LOCK}


def test_a_second_daemon_on_the_same_endpoint_is_refused(
    directory: Path, hold: Callable[[Path], subprocess.Popen[str]]
) -> None:
    holder = hold(lock_path(directory / "trackd.sock"))
    with pytest.raises(
        LockHeldError,
        match=f"the endpoint ipc://{directory}/trackd.sock is held by pid {holder.pid}",
    ):
        take_places(place(directory))


def test_two_daemons_do_not_share_a_state_directory(directory: Path) -> None:
    state_dir = str(directory / "state")
    with (
        take_places(place(directory, "a.sock", state_dir=state_dir)),
        pytest.raises(LockHeldError, match=f"the state directory {state_dir} is held by pid"),
    ):
        take_places(place(directory, "b.sock", state_dir=state_dir))
    # The refused one has let go of its own endpoint, too.
    with take_places(place(directory, "b.sock", state_dir=state_dir)):
        pass


def test_without_a_state_directory_the_endpoint_alone_is_locked(directory: Path) -> None:
    with take_places(place(directory)):
        assert names(directory) == {"trackd.sock.lock"}


def test_a_refused_start_removes_nothing_of_the_daemon_that_runs(directory: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, take_places(place(directory)):
        listener.bind(str(directory / "trackd.sock"))
        listener.listen()
        with pytest.raises(LockHeldError):
            take_places(place(directory))
        assert names(directory) == {"trackd.sock", "trackd.sock.lock"}
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(directory / "trackd.sock"))


def test_what_a_killed_daemon_left_behind_is_taken_over(
    directory: Path, hold: Callable[[Path], subprocess.Popen[str]]
) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "trackd.sock"))
    holder = hold(lock_path(directory / "trackd.sock"))
    holder.kill()
    holder.wait()
    assert names(directory) == {"trackd.sock", "trackd.sock.lock"}
    with take_places(place(directory)):
        assert names(directory) == {"trackd.sock.lock"}
