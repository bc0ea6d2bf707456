"""Who may use a socket's path or a state directory: one daemon, held by a lock of the kernel.

`take_places` does all of it in order: make the directory, take the lock beside what is wanted
(`trackd.sock.lock` for the endpoint, `trackd.lock` in the state directory), and only then touch
the socket's path. The kernel drops a lock when the process ends, however it ends, so a lock file
that was left behind stops nobody. The file tells a second daemon who holds it.

Nothing here removes what is not a socket, nor a socket that somebody still listens on.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shlex
import socket
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from trackd.config.exits import LockHeldError, UnusableError
from trackd_client.places import SCHEME, PlaceError, check_ipc_path

if TYPE_CHECKING:
    from types import TracebackType

    from trackd.config.settings import Config

#: The lock file in a state directory.
STATE_LOCK: Final = "trackd.lock"

_MAX_HOLDER_BYTES: Final = 1024
_KINDS: Final = (
    (stat.S_ISREG, "a regular file"),
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISFIFO, "a FIFO"),
)


class Lock:
    """A lock file that this process holds until `close`, or until it ends.

    Made by `acquire_lock`. A child that is forked shares the lock; one that is executed does not.

    Attributes:
        path: the lock file.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor: int | None = descriptor

    def close(self) -> None:
        """Remove the lock file and let go of the lock; again: nothing."""
        if self._descriptor is None:
            return
        # In this order: whoever opened the file before it went finds out in `acquire_lock` that
        # its lock is on a file without a name, and begins again.
        with contextlib.suppress(OSError):
            if _is_at(self._descriptor, self.path):
                self.path.unlink()
        os.close(self._descriptor)
        self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def acquire_lock(path: Path, what: str, cluster: str = "") -> Lock:
    """Take the lock at `path`, without waiting.

    Args:
        path: the lock file; made when missing, readable by its owner alone.
        what: what the lock stands for, as an error says it: "the endpoint ipc:///...".
        cluster: the cluster's name, told to whoever finds the lock held.

    Raises:
        LockHeldError: another process holds it; the message says which.
        UnusableError: the file cannot be made or opened, or is no lock file.
    """
    while True:
        with contextlib.ExitStack() as undo:
            descriptor = _open_lock_file(path, what)
            undo.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _read_holder(descriptor)
                raise LockHeldError(
                    f"{what} is held by {holder}; stop it, or choose another place"
                ) from None
            except OSError as error:
                raise UnusableError(f"cannot lock {what}: {path}: {_reason(error)}") from error
            # Unless the holder removed the file between our open and our flock: then it is without
            # a name, its lock worth nothing, and we begin again.
            if _is_at(descriptor, path):
                undo.pop_all()
                _write_holder(descriptor, cluster)
                return Lock(path, descriptor)


def lock_path(socket_path: Path) -> Path:
    """Return the lock file that stands for a socket."""
    return socket_path.with_name(f"{socket_path.name}.lock")


def events_endpoint(endpoint: str) -> str:
    """Return where a daemon on this endpoint publishes events; "" when no path has room for it."""
    events = f"{SCHEME}{check_ipc_path(endpoint)}.events"
    with contextlib.suppress(PlaceError):
        check_ipc_path(events)
        return events
    return ""


def make_directory(directory: Path, what: str, *, levels: int, mode: int) -> None:
    """Make `directory` when it is missing, and at most `levels` - 1 of its parents.

    The default directories are ours to make, and lie two levels below what the system makes. A
    place that somebody typed is not: there, a missing parent is more likely a typing error.

    Args:
        directory: the directory.
        what: what is to be kept there, as an error says it: "the endpoint ipc:///...".
        levels: how many directories may be made; 0: it must exist.
        mode: the permissions of a directory that is made.

    Raises:
        UnusableError: it is missing and may not or cannot be made, or is no directory.
    """
    missing = []
    for place in (directory, *directory.parents):
        try:
            if not stat.S_ISDIR(place.stat().st_mode):
                raise UnusableError(f"no place for {what}: {place} is not a directory")
            break
        except FileNotFoundError:
            missing.append(place)
        except OSError as error:
            raise UnusableError(f"no place for {what}: {place}: {_reason(error)}") from error
    if len(missing) > levels:
        raise UnusableError(
            f"no place for {what}: {missing[levels]} does not exist; create it, or choose another "
            "place"
        )
    for place in reversed(missing):
        try:
            place.mkdir(exist_ok=True)  # two daemons may make /run/trackd at the same time
            place.chmod(mode)  # whatever the umask
        except OSError as error:
            raise UnusableError(
                f"no place for {what}: cannot make {place}: {_reason(error)}"
            ) from error


def prepare_socket_path(path: Path) -> None:
    """Make sure that nothing is at `path`, so that a bind there destroys nothing.

    Call it while holding the lock of the endpoint. A socket that nobody listens on is removed.

    Raises:
        LockHeldError: somebody listens there without our lock.
        UnusableError: something other than a socket is there, or it cannot be looked at or removed.
    """
    try:
        found = path.lstat().st_mode
        if not stat.S_ISSOCK(found):
            kind = next((kind for is_kind, kind in _KINDS if is_kind(found)), "a device")
            raise UnusableError(
                f"{path} is {kind}; trackd never removes what is not a socket: move it away, or "
                "choose another endpoint"
            )
        if _is_listened_on(path):
            raise LockHeldError(
                f"{path} is in use: a program that holds no lock listens on it; stop it"
            )
        path.unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        raise UnusableError(f"cannot use {path}: {_reason(error)}") from error


def take_places(config: Config, *, listening: bool = False) -> contextlib.ExitStack:
    """Make the directories of a daemon, take both of its locks, and clear its socket's path.

    The directories of the default places are made, readable by all for root (the socket's mode
    says who may connect) and by the user alone otherwise; of a place that was typed, only the
    state directory itself.

    Args:
        config: says where.
        listening: the service manager listens on the socket for us; it stays as it is.

    Returns:
        What holds the locks. Close it last of all, after the socket and the store.

    Raises:
        LockHeldError: another daemon has the endpoint or the state directory.
        UnusableError: one of them cannot be used.
    """
    path = check_ipc_path(config.endpoint)
    what = f"the endpoint {config.endpoint}"
    mode = 0o755 if os.geteuid() == 0 else 0o700
    make_directory(path.parent, what, levels=2 if config.own_place else 0, mode=mode)
    with contextlib.ExitStack() as locks:
        locks.enter_context(acquire_lock(lock_path(path), what, config.cluster_name))
        if not listening:
            prepare_socket_path(path)
        if events := events_endpoint(config.endpoint):
            prepare_socket_path(check_ipc_path(events))
        if config.state_dir:
            state_dir, what = Path(config.state_dir), f"the state directory {config.state_dir}"
            make_directory(state_dir, what, levels=1, mode=0o700)
            locks.enter_context(acquire_lock(state_dir / STATE_LOCK, what, config.cluster_name))
        return locks.pop_all()


def _open_lock_file(path: Path, what: str) -> int:
    try:
        # O_NONBLOCK: a FIFO in its place must not hang us.
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        raise UnusableError(
            f"cannot lock {what}: {path}: {_reason(error)}; choose a place that you may write to"
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UnusableError(f"cannot lock {what}: {path} is not a regular file; move it away")
    return descriptor


def _is_listened_on(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full backlog would make connect wait
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return False
        except OSError as error:
            # EAGAIN: its backlog is full. EPROTOTYPE: a socket of another type, bound by somebody.
            if error.errno in {errno.EAGAIN, errno.EPROTOTYPE}:
                return True
            raise
        return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Tell whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _write_holder(descriptor: int, cluster: str) -> None:
    """Say in the lock file who holds it: pid, start time in clock ticks, wall time, cluster."""
    text = f"{os.getpid()}\n{_start_ticks(os.getpid())}\n{int(time.time())}\n{cluster}\n"
    # On a full disk the lock holds all the same, and only the next daemon's message is poorer.
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)


def _read_holder(descriptor: int) -> str:
    """Describe the holder from what the file says, which may be anything, or nothing yet."""
    text = os.pread(descriptor, _MAX_HOLDER_BYTES, 0).decode("utf-8", "replace")
    try:
        pid_text, ticks, since, cluster = text.split("\n")[:4]
        pid, started = int(pid_text), time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(int(since)))
    except (ValueError, OverflowError, OSError):
        return "another process"
    # The number of a process in another pid namespace means some other process here.
    command = _command(pid) if ticks and _start_ticks(pid) == ticks else None
    seen = f" ({command})" if command else " (which cannot be seen from here)"
    named = f", cluster {cluster!r}" if cluster else ""
    return f"pid {pid}{seen}{named}, started {started}"


def _start_ticks(pid: int) -> str:
    """Return field 22 of /proc/PID/stat, or "" where it cannot be read."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
        return text.rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _command(pid: int) -> str | None:
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return None
    words = raw.rstrip(b"\0").decode("utf-8", "replace").split("\0")
    line = "".join(char for char in shlex.join(words) if char.isprintable())
    return f"{line[:200]}..." if len(line) > 200 else line
