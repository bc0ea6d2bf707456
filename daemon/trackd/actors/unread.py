"""The unread replies of each peer: a peer that never reads costs a bounded amount of memory.

libzmq keeps the messages that a peer does not read. It bounds their number, not their bytes. That
is enough for small replies. Large ones are counted here. When a peer has many, and the kernel still
holds bytes for it, it has not read the earlier ones: further large replies to it are dropped, and
its client asks again.
"""

from __future__ import annotations

import fcntl
import struct
import termios
import time
from typing import Final

import zmq

#: Bytes up to which a reply is small: the number of messages bounds those.
SMALL: Final = 8 * 1024
#: Bytes of large replies that one peer may leave unread, and all peers together.
MOST: Final = 8 << 20
MOST_OF_ALL: Final = 32 << 20
#: Bytes that each peer may leave unread whatever others do: a page of a listing.
SHARE: Final = 512 * 1024
#: Connections whose descriptors are remembered.
_MOST_ROUTES: Final = 16_384
#: Seconds between two looks at all peers.
_LOOK_SECONDS: Final = 0.1


class UnreadReplies:
    """Bytes of large replies by route, since the peer had read everything."""

    def __init__(self) -> None:
        self.refused = 0
        self._descriptors: dict[bytes, int] = {}
        self._unread: dict[bytes, int] = {}
        self._total = 0
        self._looked_at = 0.0

    def note_route(self, route: bytes, frame: zmq.Frame) -> None:
        """Remember the connection of a request, if it is a new one."""
        if route in self._descriptors:
            return
        if len(self._descriptors) >= _MOST_ROUTES:
            del self._descriptors[next(iter(self._descriptors))]
        try:
            self._descriptors[route] = int(frame.get(zmq.SRCFD))
        except (zmq.ZMQError, TypeError, ValueError):  # inproc
            self._descriptors[route] = -1

    def admit(self, route: bytes, size: int) -> bool:
        """Return whether a large reply may be sent, and count it if so."""
        unread = self._unread.get(route, 0) + size
        if unread > SHARE and (unread > MOST or self._total + size > MOST_OF_ALL):
            self._settle(route)
            unread = self._unread.get(route, 0) + size
            if unread > SHARE and unread <= MOST and self._total + size > MOST_OF_ALL:
                self._settle_all()
            if unread > SHARE and (unread > MOST or self._total + size > MOST_OF_ALL):
                self.refused += 1
                return False
        self._unread[route] = unread
        self._total += size
        return True

    def forget_route(self, route: bytes) -> None:
        """Forget a connection that has ended."""
        self._descriptors.pop(route, None)
        self._total -= self._unread.pop(route, 0)

    def _settle(self, route: bytes) -> None:
        if _has_read(self._descriptors.get(route, -1)):
            self._total -= self._unread.pop(route, 0)

    def _settle_all(self) -> None:
        now = time.monotonic()
        if now - self._looked_at >= _LOOK_SECONDS:
            self._looked_at = now
            for route in list(self._unread):
                self._settle(route)


def _has_read(descriptor: int) -> bool:
    """Return whether the kernel holds nothing for a peer; a closed connection counts as that."""
    buffer = bytearray(4)
    try:
        fcntl.ioctl(descriptor, termios.TIOCOUTQ, buffer)
    except (OSError, ValueError):
        return True
    return bool(struct.unpack("i", buffer)[0] == 0)
