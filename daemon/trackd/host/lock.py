"""A lock file: one daemon for one endpoint and one state directory.

The kernel drops a lock when the process ends, however it ends, so a lock file that was left
behind stops no daemon. The file names its holder for a second daemon.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from trackd.config.exits import LockHeldError, UnusableError, reason_of
from trackd.host.own_files import check_own_descriptor, open_own_file
from trackd.host.processes import command_of, start_time

#: The lock file in a state directory.
STATE_LOCK: Final = "trackd.lock"

_MAX_HOLDER_BYTES: Final = 1024


class Lock:
    """A lock file that this process holds until `close`, or until it ends.

    `acquire_lock` makes one. A forked child shares the lock; an executed program does not.

    Attributes:
        path: the lock file.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor: int | None = descriptor

    def close(self) -> None:
        """Remove the lock file and release the lock. A second call does nothing."""
        if self._descriptor is None:
            return
        # In this order: a process that opened the file before its removal notices in
        # `acquire_lock` that its lock is on a file without a name, and tries again.
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
        path: the lock file; created when missing, readable only by its owner.
        what: what the lock protects, for errors: "the endpoint ipc:///...".
        cluster: the cluster's name, for the error of a process that finds the lock held.

    Raises:
        LockHeldError: another process holds it; the message says which.
        UnusableError: the file cannot be created or opened, or is not a regular file.
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
                raise UnusableError(f"cannot lock {what}: {path}: {reason_of(error)}") from error
            # If the holder removed the file between our open and our flock, our lock is on a file
            # without a name and protects nothing: try again.
            if _is_at(descriptor, path):
                try:
                    check_own_descriptor(descriptor, path)
                except OSError as error:
                    raise UnusableError(f"cannot lock {what}: {error.strerror}") from None
                undo.pop_all()
                _write_holder(descriptor, cluster)
                return Lock(path, descriptor)


def _open_lock_file(path: Path, what: str) -> int:
    try:
        return open_own_file(path)
    except OSError as error:
        if error.filename is None:  # its text says which file, and what to do
            raise UnusableError(f"cannot lock {what}: {error.strerror}") from error
        raise UnusableError(
            f"cannot lock {what}: {path}: {reason_of(error)}; choose a place that you can write to"
        ) from error


def _is_at(descriptor: int, path: Path) -> bool:
    """Return whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _write_holder(descriptor: int, cluster: str) -> None:
    """Write into the lock file who holds it: pid, start in clock ticks, wall time, cluster."""
    text = f"{os.getpid()}\n{_start_of(os.getpid())}\n{int(time.time())}\n{cluster}\n"
    # On a full disk the lock works all the same; only the next daemon's error says less.
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)


def _read_holder(descriptor: int) -> str:
    """Describe the holder from the file, which may hold anything, or nothing yet."""
    text = os.pread(descriptor, _MAX_HOLDER_BYTES, 0).decode("utf-8", "replace")
    try:
        pid_text, ticks, since, cluster = text.split("\n")[:4]
        pid, started = int(pid_text), time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(int(since)))
    except (ValueError, OverflowError, OSError):
        return "another process"
    # A pid of another pid namespace belongs to some other process here.
    command = command_of(pid) if ticks and _start_of(pid) == ticks else ""
    seen = f" ({command})" if command else " (not visible from here)"
    named = f", cluster {cluster!r}" if cluster else ""
    return f"pid {pid}{seen}{named}, started {started}"


def _start_of(pid: int) -> str:
    """Return the start of a process in clock ticks, or "" where it cannot be read."""
    try:
        return str(start_time(pid) or "")
    except OSError:
        return ""
