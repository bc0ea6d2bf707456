"""How both clients set up, watch and close their ZeroMQ sockets."""

from __future__ import annotations

import errno
import os
import socket
import struct
import warnings
import weakref
from collections.abc import Iterable
from typing import Any, Final, Protocol, TypeVar

import zmq

from trackd_client.errors import DaemonAbsent, NoAnswer
from trackd_client.wire.places import check_ipc_path

#: Milliseconds until libzmq connects again, and how far that grows.
RECONNECT_MS: Final = 20

RECONNECT_MAX_MS: Final = 500

#: Seconds after which a wait looks at the clock again.
LONGEST_WAIT: Final = 5.0

MONITORED: Final = zmq.Event.HANDSHAKE_SUCCEEDED | zmq.Event.DISCONNECTED

SocketT = TypeVar("SocketT", bound=zmq.Socket[Any])


def configure(dealer: SocketT) -> SocketT:
    """Set the options of a DEALER before it connects, and return its monitor."""
    dealer.linger = 0
    dealer.reconnect_ivl = RECONNECT_MS
    dealer.reconnect_ivl_max = RECONNECT_MAX_MS
    monitor: SocketT = dealer.get_monitor_socket(MONITORED)
    return monitor


def read_monitor(frames: list[bytes]) -> bool:
    """Return whether a monitor tells that the connection came; else it went."""
    (kind,) = struct.unpack("=H", frames[0][:2])
    return bool(kind != zmq.Event.DISCONNECTED)


def unanswered(
    endpoint: str, op: str, seconds: float, *, connected: bool
) -> DaemonAbsent | NoAnswer:
    """Return the error for a request that was not answered in time."""
    if connected or diagnose(endpoint) is None:
        return NoAnswer(
            f"the daemon on {endpoint} accepts connections but did not answer {op} within"
            f" {seconds:.3g} s; it may be overloaded or stuck: look at its log"
        )
    return absent(endpoint)


class Closable(Protocol):
    """Whatever is to be closed."""

    def close(self) -> None:
        """Close it."""


def close_when_dropped(
    owner: object, context: zmq.Context[Any], parts: Iterable[Closable]
) -> weakref.finalize[..., Any]:
    """Have a context and all that belongs to it closed when its owner is dropped unclosed.

    The garbage collector alone would end the context while its sockets are open, and wait for
    them for ever. Detach what this returns when the owner was closed.

    Args:
        owner: may not be reachable from the parts.
        context: is ended once they are closed.
        parts: the sockets, in the order in which they are to be closed.
    """
    dropped = weakref.finalize(owner, _close_dropped, os.getpid(), context, parts)
    dropped.atexit = False  # threads may still use them, and the kernel closes everything
    return dropped


def _close_dropped(pid: int, context: zmq.Context[Any], parts: Iterable[Closable]) -> None:
    if os.getpid() != pid:
        return  # after a fork they are the parent's
    for part in parts:
        part.close()
    context.term()
    warnings.warn("a tracker was dropped without close()", ResourceWarning, stacklevel=2)


def absent(endpoint: str) -> DaemonAbsent:
    """Return the error for a daemon that cannot be reached, after a look at why."""
    why = diagnose(endpoint) or (
        "the socket accepts connections, but no trackd daemon greets; try again"
    )
    return DaemonAbsent(f"no trackd daemon on {endpoint}: {why}")


def diagnose(endpoint: str) -> str | None:
    """Return why nobody can be reached on a socket and what to do, or None when somebody listens.

    Raises:
        ValueError: the endpoint names no path that a socket can have.
    """
    path = check_ipc_path(endpoint)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
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
                    return "the socket is there, but nobody listens; start the daemon"
                case errno.EACCES | errno.EPERM:
                    return "this user may not open the socket; join the group that owns it"
                case errno.EAGAIN:  # its backlog is full, so somebody listens
                    return None
                case _:
                    return f"{error.strerror}"
    return None
