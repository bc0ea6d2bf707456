"""The places of a daemon, the socket's path and the state directory: one daemon for each.

`take_places` takes them in order: make the directory, take the lock beside it (`trackd.sock.lock`
for the endpoint, `trackd.lock` in the state directory), and only then touch the socket's path.
`Places.listen` binds the sockets, because libzmq removes what is at a path, before it binds and
at its end, whoever created it.

Nothing here removes a file that is not a socket, nor a socket on which a process still listens.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import stat
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from trackd.config.exits import LockHeldError, UnusableError, reason_of
from trackd.host.lock import STATE_LOCK, Lock, acquire_lock
from trackd.host.logs import fields
from trackd.host.own_files import find_directory_problem
from trackd.host.own_paths import OwnPaths
from trackd_client.wire.places import EVENTS_SUFFIX, SCHEME, PlaceError, check_ipc_path

if TYPE_CHECKING:
    from trackd.config.settings import Config


log = logging.getLogger("trackd")

#: Connections that wait to be accepted: all agents of a host may connect at the same moment.
_BACKLOG: Final = 4096

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


def listen_at(path: Path, mode: int, own: OwnPaths, what: str) -> socket.socket:
    """Return a socket that listens on a path.

    Args:
        path: where. Call it while holding the lock beside it.
        mode: who may connect, from the bind on.
        own: where to note the file.
        what: what it is there.

    Raises:
        LockHeldError: another process listens there.
        UnusableError: a file that is not a socket is there, or the path cannot be used.
    """
    prepare_socket_path(path)
    with contextlib.ExitStack() as undo:
        bound = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        os.fchmod(bound.fileno(), mode)  # Linux gives the file what the umask leaves of it
        umask = os.umask(0)
        try:
            bound.bind(os.fspath(path))
            own.add(path, what)
            bound.listen(_BACKLOG)
        except OSError as error:
            raise UnusableError(f"cannot serve {path}: {reason_of(error)}") from error
        finally:
            os.umask(umask)
        undo.pop_all()
        return bound


class Place(NamedTuple):
    """A directory with a lock file, which only one daemon holds.

    Attributes:
        lock: the lock file, in the directory.
        what: what it protects, for errors: "the endpoint ipc:///...".
        levels: how many directories may be made when the daemon starts.
        mode: the permissions of a directory that is made.
        private: whether nobody else may write to the directory.
    """

    lock: Path
    what: str
    levels: int
    mode: int
    private: bool = False


class Places:
    """The places of a daemon, with its locks. `take_places` returns them.

    Attributes:
        own: the paths that the daemon created.
    """

    def __init__(self, config: Config, *, listening: bool) -> None:
        self.own = OwnPaths()
        self._cluster = config.cluster_name
        self._locks: dict[Place, Lock] = {}
        self._directories: dict[Path, os.stat_result] = {}  # as they were when they were taken
        endpoint = check_ipc_path(config.endpoint)
        levels, mode = (2 if config.own_place else 0), (0o755 if os.geteuid() == 0 else 0o700)
        what = f"the endpoint {config.endpoint}"
        self._endpoint = Place(lock_path(endpoint), what, levels, mode)
        events = events_endpoint(config.endpoint)
        self._sockets = [check_ipc_path(events)] if events else []
        if not listening:
            self._sockets.append(endpoint)
        self._state: Place | None = None
        if config.state_dir:
            what = f"the state directory {config.state_dir}"
            self._state = Place(Path(config.state_dir) / STATE_LOCK, what, 1, 0o700, private=True)

    def take(self) -> None:
        """Make the directories, take the locks, and clear the paths of the sockets.

        Raises:
            LockHeldError: another daemon has the endpoint or the state directory.
            UnusableError: one of them cannot be used.
        """
        self._take(self._endpoint, self._endpoint.levels)
        for path in self._sockets:
            prepare_socket_path(path)
        if self._state is not None:
            self._take(self._state, self._state.levels)

    def take_again(self) -> None:
        """Take each lock again whose file was removed, replaced or linked, with its directory.

        Raises:
            LockHeldError: another daemon has the place now.
            UnusableError: it cannot be used any more.
        """
        for place, lock in list(self._locks.items()):
            if not self.own.is_own(place.lock) or self.own.is_linked(place.lock):
                lock.close()
                self.own.discard(place.lock)
                self._take(place, max(1, place.levels))

    def listen(self, path: Path, mode: int, group: int | None = None) -> int:
        """Listen on a path, and return the descriptor of the socket.

        Args:
            path: where, beside the lock of the endpoint.
            mode: who may connect, from the bind on.
            group: the group of the file, if the process may set it; None: as the host chooses.

        Raises:
            LockHeldError: another process listens there.
            UnusableError: a file that is not a socket is there, or the path cannot be used.
        """
        bound = listen_at(path, mode, self.own, "socket")
        if group is not None:
            with contextlib.suppress(PermissionError):
                os.chown(path, -1, group, follow_symlinks=False)
        bound.setblocking(False)  # libzmq accepts until no connection is left
        return bound.detach()

    def adopt(self, path: Path, descriptor: int, mode: int) -> int:
        """Return the descriptor of the socket to serve, of two: systemd's, or a new one.

        systemd does not notice when its socket is removed, and passes it on to each new process.

        Args:
            path: where systemd listens.
            descriptor: its socket.
            mode: who may connect to a new socket, when the earlier one cannot say.

        Raises:
            LockHeldError: another process listens on the path.
            UnusableError: the path cannot be used.
        """
        with contextlib.suppress(OSError):
            if _is_listened_on(path):
                self.own.add(path, "socket")
                return descriptor
            mode = stat.S_IMODE(path.lstat().st_mode)  # a socket that this daemon bound before
        log.error(
            "the socket on which systemd listens was removed; restart the socket unit",
            extra=fields(path=str(path)),
        )
        os.close(descriptor)
        return self.listen(path, mode)

    def close(self) -> None:
        """Remove the lock files and release the locks."""
        while self._locks:
            place, lock = self._locks.popitem()
            lock.close()
            self.own.discard(place.lock)

    def _take(self, place: Place, levels: int) -> None:
        directory = place.lock.parent
        before = None if directory.exists() else self._directories.get(directory)
        make_directory(directory, place.what, levels=levels, mode=place.mode)
        if before is not None:  # it was removed meanwhile: agents shall find it as it was
            with contextlib.suppress(OSError):
                os.chown(directory, -1, before.st_gid)
                directory.chmod(stat.S_IMODE(before.st_mode))
        if place.private:
            _check_trusted(directory, place.what)
        self._locks[place] = acquire_lock(place.lock, place.what, self._cluster)
        try:
            self.own.add(place.lock, "lock")
            self._directories[directory] = directory.stat()
        except OSError as error:
            raise UnusableError(f"cannot use {place.lock}: {reason_of(error)}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def take_places(config: Config, *, listening: bool = False) -> Places:
    """Make the directories of a daemon, take both of its locks, and clear its sockets' paths.

    Default directories are made: readable by all when root runs the daemon (the socket's mode says
    who may connect), otherwise only by the user. Of other places, only the state directory itself
    is made.

    Args:
        config: has the places.
        listening: whether the service manager listens on the socket already; it stays as it is.

    Returns:
        The places, with their locks. Close them last, after the sockets and the store.

    Raises:
        LockHeldError: another daemon has the endpoint or the state directory.
        UnusableError: one of them cannot be used.
    """
    places = Places(config, listening=listening)
    try:
        places.take()
    except BaseException:
        places.close()
        raise
    return places


def _check_trusted(directory: Path, what: str) -> None:
    try:
        problem = find_directory_problem(directory)
    except OSError as error:
        raise UnusableError(f"no place for {what}: {directory}: {reason_of(error)}") from error
    if problem:
        raise UnusableError(
            f"{what} {problem}; give it to the daemon's user with mode 0700, or choose another"
            " with --state-dir"
        )


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
