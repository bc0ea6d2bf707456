"""How both clients find and set up the socket of events."""

from __future__ import annotations

from typing import Any, Final

import zmq

from trackd_client.core.sockets import (
    RECONNECT_MAX_MS,
    RECONNECT_MS,
)
from trackd_client.errors import TrackerClosed
from trackd_client.wire.places import EVENTS_SUFFIX, PlaceError, check_ipc_path

#: Unread messages that libzmq keeps, and the largest one in bytes. The daemon sends at most 256
#: events of about 150 bytes in a message.
_RECEIVE_HWM: Final = 200
_MAX_MESSAGE: Final = 4 * 1024 * 1024


def event_endpoint(endpoint: str, announced: str) -> str | None:
    """Return the endpoint to subscribe to, or None when nothing is published.

    Args:
        endpoint: the daemon's, as this process reaches it. In a container its path may differ from
            the one that the daemon sees; the event socket lies beside it.
        announced: the event socket's, as the daemon sees it; empty for none.
    """
    if not announced:
        return None
    if not announced.endswith(EVENTS_SUFFIX):
        return announced
    try:
        check_ipc_path(beside := endpoint + EVENTS_SUFFIX)
    except PlaceError:  # the path is too long in this process's view
        return None
    return beside


def configure(socket: zmq.Socket[Any]) -> None:
    """Set the options of a SUB before it connects, and subscribe to everything."""
    socket.linger = 0
    socket.rcvhwm = _RECEIVE_HWM
    socket.maxmsgsize = _MAX_MESSAGE
    socket.reconnect_ivl = RECONNECT_MS
    socket.reconnect_ivl_max = RECONNECT_MAX_MS
    socket.subscribe(b"")


def emitting_closed_error() -> TrackerClosed:
    """Return the error for an iteration over events that `close` ended."""
    return TrackerClosed("the tracker was closed while it emitted events")
