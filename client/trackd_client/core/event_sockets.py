"""How both clients find and set up the socket of events."""

from __future__ import annotations

from typing import Any, Final

import zmq

from trackd_client.core.event import SUFFIX
from trackd_client.core.sockets import (
    RECONNECT_MAX_MS,
    RECONNECT_MS,
)
from trackd_client.wire.places import PlaceError, check_ipc_path

#: Messages that are kept unread, and the largest that may come. The daemon sends at most 256
#: events in one, of about 150 bytes each.
_RECEIVE_HWM: Final = 200

_MAX_MESSAGE: Final = 4 * 1024 * 1024


def event_endpoint(endpoint: str, told: str) -> str | None:
    """Return where to subscribe, or None where nothing is published.

    Args:
        endpoint: of the daemon, as this process reaches it. A container may see it at another
            path than the daemon does, and sees the event socket beside it.
        told: of its event socket, as the daemon sees it; empty for none.
    """
    if not told:
        return None
    if not told.endswith(SUFFIX):
        return told
    try:
        check_ipc_path(beside := endpoint + SUFFIX)
    except PlaceError:  # too long, seen from here
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
