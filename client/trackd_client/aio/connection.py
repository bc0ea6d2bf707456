"""What an `AsyncTracker` sends and receives, and what closes its socket when it is dropped."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import zmq.asyncio

from trackd_client.core.base_tracker import BaseTracker
from trackd_client.core.conversation import RESEND_SECONDS, Request
from trackd_client.core.sockets import Closable
from trackd_client.wire.protocol import Reply

TrackerT = TypeVar("TrackerT", bound=BaseTracker[Any])


class Outstanding:
    """A request that is sent until it is answered or given up."""

    __slots__ = ("future", "pause", "request", "settles", "timer")

    def __init__(
        self,
        request: Request,
        *,
        future: asyncio.Future[Reply] | None = None,
        settles: Request | None = None,
    ) -> None:
        """Set where the reply goes.

        Args:
            request: the request.
            future: gets the reply as its result; None for an errand.
            settles: a request that is done together with this one, or None.
        """
        self.request = request
        self.pause = RESEND_SECONDS
        self.future = future
        self.settles = settles
        self.timer: asyncio.TimerHandle | None = None


async def receive(
    tracker_ref: weakref.ref[TrackerT],
    socket: zmq.asyncio.Socket,
    take: Callable[[TrackerT, list[bytes]], None],
) -> None:
    """Pass each message to the tracker while there is one, whatever errors come meanwhile.

    Args:
        tracker_ref: a tracker, which may be dropped.
        socket: where messages come from.
        take: takes the frames of one.
    """
    while True:
        try:
            frames = await socket.recv_multipart()
            tracker = tracker_ref()
            if tracker is None or tracker._conversation.inherited:  # noqa: SLF001 - a part of it
                return
            take(tracker, frames)
        except Exception as error:  # noqa: BLE001 - it passes, and others rely on this task
            if socket.closed:
                return
            if (tracker := tracker_ref()) is not None:
                tracker._log_broken(error)  # noqa: SLF001 - a part of it
            tracker = None
            await asyncio.sleep(RESEND_SECONDS)
        finally:
            tracker = None


def close_parts(parts: Iterable[Closable], context: zmq.asyncio.Context) -> None:
    """Close what a tracker that was dropped has opened."""
    for part in parts:
        part.close()
    context.term()
