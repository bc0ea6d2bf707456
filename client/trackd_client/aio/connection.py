"""What an `AsyncTracker` sends and receives, and what closes its sockets when it is dropped."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Final, Generic, TypeVar

import zmq

from trackd_client.core.base_tracker import BaseTracker
from trackd_client.core.conversation import RESEND_SECONDS, Request
from trackd_client.core.sockets import Closable
from trackd_client.wire.protocol import Reply

TrackerT = TypeVar("TrackerT", bound=BaseTracker[Any])
MessageT = TypeVar("MessageT")

#: Messages that are read before others of the event loop have their turn.
_AT_ONCE: Final = 64


class Outstanding:
    """A request that is sent until it is answered or given up.

    Attributes:
        request: the request.
        future: gets the reply as its result; None for an errand.
        settles: a request that is done together with this one, or None.
        expires: when no call waits for it any longer, by the loop's clock; None for never.
        due: when it is sent next, by the same clock.
        pause: seconds from then to the next time; infinity: it is sent once.
        copied: whether it was sent more than once.
    """

    __slots__ = ("copied", "due", "expires", "future", "pause", "request", "settles")

    def __init__(
        self,
        request: Request,
        *,
        future: asyncio.Future[Reply] | None = None,
        expires: float | None = None,
        settles: Request | None = None,
        pause: float = RESEND_SECONDS,
    ) -> None:
        self.request = request
        self.pause = pause
        self.future = future
        self.expires = expires
        self.settles = settles
        self.due = 0.0
        self.copied = False


class Reader(Generic[TrackerT, MessageT]):
    """Passes each message of a socket to a tracker, whatever errors come meanwhile.

    pyzmq's own asyncio sockets make a future for each message, and cost many times as much. The
    descriptor of a socket becomes readable when something has happened, and once only: so each
    time all is read that there is, and whoever sends calls `look`.
    """

    def __init__(
        self,
        tracker: weakref.ref[TrackerT],
        socket: zmq.Socket[bytes],
        receive: Callable[[], MessageT],
        take: Callable[[TrackerT, MessageT], None],
    ) -> None:
        """Begin to read.

        Args:
            tracker: the tracker, which may be dropped.
            socket: where messages come from.
            receive: returns the next message, or raises `zmq.Again`.
            take: takes a message.
        """
        self._loop = asyncio.get_running_loop()
        self._tracker = tracker
        self._socket = socket
        self._receive = receive
        self._take = take
        self._looks = False
        self._descriptor = socket.fileno()
        self._loop.add_reader(self._descriptor, self._read)
        self.look()

    def look(self) -> None:
        """Read soon: to send may have taken the sign away that there is something to read."""
        if not self._looks:
            self._looks = True
            self._loop.call_soon(self._read)

    def close(self) -> None:
        """Close the socket."""
        if self._socket.closed:
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.remove_reader(self._descriptor)
        self._socket.close(linger=0)

    def _read(self) -> None:
        self._looks = False
        try:
            for _ in range(_AT_ONCE):
                tracker = self._tracker()
                if tracker is None or tracker._conversation.inherited:  # noqa: SLF001 - a part of it
                    return
                self._take(tracker, self._receive())
            self.look()
        except zmq.Again:
            pass
        except Exception as error:  # noqa: BLE001 - it passes, and the tracker relies on this
            tracker = self._tracker()
            if self._socket.closed or tracker is None:
                return
            tracker._log_broken(error)  # noqa: SLF001 - a part of it
            self._loop.call_later(RESEND_SECONDS, self._read)


def close_parts(parts: Iterable[Closable], context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """Close what a tracker that was dropped has opened."""
    for part in parts:
        part.close()
    context.term()
