"""How both clients set up, watch and close their ZeroMQ sockets."""

from __future__ import annotations

import _thread
import contextlib
import errno
import itertools
import os
import socket
import struct
import threading
from types import BuiltinFunctionType
from typing import Any, Final, Protocol, TypeVar

import zmq

from trackd_client.errors import DaemonAbsent, NoAnswer, SystemRefused, TrackdError
from trackd_client.wire.places import check_ipc_path

#: Milliseconds until libzmq connects again: at first, and at most.
RECONNECT_MS: Final = 20
RECONNECT_MAX_MS: Final = 500

#: The longest wait in seconds before a look at the clock: timed waits stand still in suspend.
LONGEST_WAIT: Final = 5.0

#: What a monitor reports: a connection that is ready, and one that ended.
MONITORED: Final = zmq.Event.HANDSHAKE_SUCCEEDED | zmq.Event.DISCONNECTED

#: What a context needs as it starts, with a first connection: descriptors and threads.
_START_DESCRIPTORS: Final = 10
_START_THREADS: Final = 2

_monitors: Final = itertools.count(1)

SocketT = TypeVar("SocketT", bound=zmq.Socket[Any])


def configure(dealer: SocketT) -> SocketT:
    """Set the options of a DEALER before it connects, and return its monitor."""
    dealer.linger = 0
    dealer.reconnect_ivl = RECONNECT_MS
    dealer.reconnect_ivl_max = RECONNECT_MAX_MS
    # By itself pyzmq names it by a descriptor, which may be used again before the name is free.
    monitor: SocketT = dealer.get_monitor_socket(MONITORED, f"inproc://monitor-{next(_monitors)}")
    return monitor


def check_room() -> None:
    """Check that the system has room for a context of ZeroMQ, which ends the process otherwise.

    libzmq aborts when it is refused an epoll descriptor or a thread as a context starts. What a
    started context is refused is an error.

    Raises:
        SystemRefused: there is no room for its descriptors and threads.
    """
    try:
        over = threading.Lock()
        with contextlib.ExitStack() as held, over:
            for _ in range(_START_DESCRIPTORS):
                held.callback(os.close, os.eventfd(0, os.EFD_CLOEXEC))
            for _ in range(_START_THREADS):
                _thread.start_new_thread(_wait_for, (over,))
    except (OSError, RuntimeError) as error:
        raise system_error(error) from error


def check_threads() -> None:
    """Check that threads are threads of the system.

    Raises:
        TrackdError: gevent or eventlet has put greenlets in their place.
    """
    if not isinstance(_thread.start_new_thread, BuiltinFunctionType):
        raise TrackdError(
            "threads are greenlets in this program (monkey.patch_all of gevent or eventlet), and a"
            " call of Tracker would stop them all; patch with thread=False, or run the agent in a"
            " process of its own"
        )


def is_held(lock: threading.RLock) -> bool:
    """Return whether the calling thread holds a lock."""
    try:
        threading.Condition(lock).notify(0)
    except RuntimeError:  # it is not held by this thread
        return False
    return True


def _wait_for(lock: threading.Lock) -> None:
    with lock:
        pass


def system_error(error: BaseException) -> SystemRefused:
    """Return the error for what the system refused a call."""
    return SystemRefused(f"the system refused what a connection to the daemon needs: {error}")


def read_monitor(frames: list[bytes]) -> bool:
    """Return whether a monitor reports a new connection (True) or the end of one (False)."""
    (kind,) = struct.unpack("=H", frames[0][:2])
    return bool(kind != zmq.Event.DISCONNECTED)


def no_answer_error(
    endpoint: str, op: str, seconds: float, *, connected: bool
) -> DaemonAbsent | NoAnswer:
    """Return the error for a request that was not answered in time."""
    if connected or diagnose(endpoint) is None:
        waited = float(f"{seconds:.2g}")  # two digits: 0.199 s is the caller's 0.2 s
        return NoAnswer(
            f"the daemon on {endpoint} accepts connections but did not answer {op} within"
            f" {waited:g} s; it may be overloaded or stuck: look at its log"
        )
    return absent_error(endpoint)


class Closable(Protocol):
    """A thing with a `close` method."""

    def close(self) -> None:
        """Close it."""


def absent_error(endpoint: str) -> DaemonAbsent:
    """Return the error for a daemon that cannot be reached, with the reason."""
    why = diagnose(endpoint) or (
        "the socket accepts connections, but no trackd daemon greets; try again"
    )
    return DaemonAbsent(f"no trackd daemon on {endpoint}: {why}")


def diagnose(endpoint: str) -> str | None:
    """Return why a socket cannot be reached and what to do, or None when a process listens.

    Raises:
        ValueError: the endpoint is not a path that a socket can have.
    """
    path = check_ipc_path(endpoint)
    try:
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:
        return f"this process cannot open a socket: {error.strerror}"
    with probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except OSError as error:
            match error.errno:
                case errno.ENOENT:
                    return (
                        "there is no such socket; is the daemon running (`trackd run`,"
                        " `systemctl status 'trackd@*'`), and is this its endpoint?"
                    )
                case errno.ECONNREFUSED if not path.is_socket():
                    return "what is there is not a socket; is this the daemon's endpoint?"
                case errno.ECONNREFUSED:
                    return "the socket exists, but no process listens on it; start the daemon"
                case errno.EACCES | errno.EPERM:
                    return "this user may not open the socket; join the group that owns it"
                case errno.EAGAIN:  # its backlog is full, so a process listens
                    return None
                case _:
                    return f"{error.strerror}"
    return None


def start_thread(thread: threading.Thread) -> None:
    """Start a thread; an exception of a signal handler that comes meanwhile is raised as it is.

    When such an exception finds the new thread running already, threading raises a KeyError in its
    place, of a table of its own.

    Raises:
        RuntimeError: there is no room for another thread.
    """
    try:
        thread.start()
    except KeyError as error:
        raise error.__context__ or error from None
