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
import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from trackd.config.exits import LockHeldError, UnusableError
from trackd.host.lock import STATE_LOCK, _reason, acquire_lock
from trackd_client.wire.places import SCHEME, PlaceError, check_ipc_path

if TYPE_CHECKING:
    from trackd.config.settings import Config


_KINDS: Final = (
    (stat.S_ISREG, "a regular file"),
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISFIFO, "a FIFO"),
)


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
