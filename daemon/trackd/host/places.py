"""The places of a daemon, the socket's path and the state directory: one daemon for each.

`take_places` takes them in order: make the directory, take the lock beside it (`trackd.sock.lock`
for the endpoint, `trackd.lock` in the state directory), and only then touch the socket's path.

Nothing here removes a file that is not a socket, nor a socket on which a process still listens.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from trackd.config.exits import LockHeldError, UnusableError, reason_of
from trackd.host.lock import STATE_LOCK, acquire_lock
from trackd_client.wire.places import EVENTS_SUFFIX, SCHEME, PlaceError, check_ipc_path

if TYPE_CHECKING:
    from trackd.config.settings import Config


_KINDS: Final = (
    (stat.S_ISREG, "a regular file"),
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISFIFO, "a FIFO"),
)


def lock_path(socket_path: Path) -> Path:
    """Return the path of the lock file of a socket."""
    return socket_path.with_name(f"{socket_path.name}.lock")


def events_endpoint(endpoint: str) -> str:
    """Return the event endpoint of a daemon on this endpoint; "" when its path is too long."""
    events = f"{SCHEME}{check_ipc_path(endpoint)}{EVENTS_SUFFIX}"
    with contextlib.suppress(PlaceError):
        check_ipc_path(events)
        return events
    return ""


def make_directory(directory: Path, what: str, *, levels: int, mode: int) -> None:
    """Make `directory` when it is missing, and at most `levels` - 1 of its parents.

    The daemon makes its default directories, which lie two levels below those of the system. In a
    path that a person typed, a missing parent is more likely a typing error.

    Args:
        directory: the directory.
        what: what will be kept there, for errors: "the endpoint ipc:///...".
        levels: how many directories may be made; 0: the directory must exist.
        mode: the permissions of a directory that is made.

    Raises:
        UnusableError: the directory is missing and not made, or is not a directory.
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
            raise UnusableError(f"no place for {what}: {place}: {reason_of(error)}") from error
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
                f"no place for {what}: cannot make {place}: {reason_of(error)}"
            ) from error


def prepare_socket_path(path: Path) -> None:
    """Make sure that nothing is at `path`, so that a bind there destroys nothing.

    Call it while holding the lock of the endpoint. A socket without a listener is removed.

    Raises:
        LockHeldError: a process without our lock listens there.
        UnusableError: a file that is not a socket is there, or the path cannot be used.
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
        raise UnusableError(f"cannot use {path}: {reason_of(error)}") from error


def take_places(config: Config, *, listening: bool = False) -> contextlib.ExitStack:
    """Make the directories of a daemon, take both of its locks, and clear its socket's path.

    Default directories are made: readable by all when root runs the daemon (the socket's mode says
    who may connect), otherwise only by the user. Of other places, only the state directory itself
    is made.

    Args:
        config: has the places.
        listening: whether the service manager listens on the socket already; it stays as it is.

    Returns:
        A stack that holds the locks. Close it last, after the socket and the store.

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
            # EAGAIN: its backlog is full. EPROTOTYPE: a bound socket of another type.
            if error.errno in {errno.EAGAIN, errno.EPROTOTYPE}:
                return True
            raise
        return True
