"""What an `AsyncTracker` sends and receives, and what closes its socket when it is dropped."""

from __future__ import annotations

import asyncio
import os
import warnings
import weakref
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import zmq.asyncio

from trackd_client.core.base_tracker import BaseTracker
from trackd_client.core.conversation import RESEND_SECONDS, Conversation, Request
from trackd_client.core.place import Place
from trackd_client.core.sockets import Closable
from trackd_client.sync.ending import end_later
from trackd_client.wire.protocol import Reply

TrackerT = TypeVar("TrackerT", bound=BaseTracker[Any])


class Outstanding:
    """A request that is sent until it is answered or given up."""

    __slots__ = ("future", "on_reply", "pause", "request", "timer")

    def __init__(
        self,
        request: Request,
        *,
        future: asyncio.Future[Reply] | None = None,
        on_reply: Callable[[Reply], None] | None = None,
    ) -> None:
        """Set where the reply goes.

        Args:
            request: the request.
            future: gets the reply as its result.
            on_reply: called with the reply when there is no future.
        """
        self.request = request
        self.pause = RESEND_SECONDS
        self.future = future
        self.on_reply = on_reply
        self.timer: asyncio.TimerHandle | None = None

    def take(self, reply: Reply) -> None:
        """Pass the reply to the future or the callback."""
        if self.future is None:
            assert self.on_reply is not None
            self.on_reply(reply)
        elif not self.future.done():
            self.future.set_result(reply)


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


def close_dropped(
    pid: int,
    conversation: Conversation,
    place: Place,
    context: zmq.asyncio.Context,
    parts: Iterable[Closable],
) -> None:
    """Close what a tracker leaves that was garbage collected without `close`."""
    if os.getpid() != pid:
        return  # after a fork they belong to the parent
    session = conversation.close()
    for part in parts:
        part.close()
    context.term()
    if session is not None and session.perhaps_open:
        end_later(conversation, session, place)
    warnings.warn("a tracker was dropped without close()", ResourceWarning, stacklevel=2)
