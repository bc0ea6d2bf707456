"""The event socket of the client for asyncio."""

from __future__ import annotations

import asyncio

import zmq
import zmq.asyncio

from trackd_client.core.event_sockets import configure, emitting_closed_error
from trackd_client.wire.clock import boottime


class AsyncSubscription:
    """What one iteration listens to; one task at a time uses it."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        """Begin without a socket.

        Args:
            context: of the tracker.
        """
        self._context = zmq.asyncio.Context(context)  # the same one, for sockets of asyncio
        self._socket: zmq.asyncio.Socket | None = None
        # What is being received. Giving it up could lose a message, so that it outlives each wait.
        self._frames: asyncio.Future[list[bytes]] | None = None
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connect(self, endpoint: str) -> None:
        """Subscribe to everything."""
        self._socket = self._context.socket(zmq.SUB)
        configure(self._socket)
        self._socket.connect(endpoint)

    async def receive(self, seconds: float) -> bytes | None:
        """Return the next frame, or None when none came in time.

        Raises:
            TrackerClosed: meanwhile.
        """
        until = boottime() + seconds
        while (left := until - boottime()) > 0:
            await self._wait(left)
            if self._frames is not None and self._frames.done():
                frames = self._frames.result()
                self._frames = None
                return b"".join(frames)
        return None

    async def pause(self, seconds: float) -> None:
        """Wait, and let what is published wait too.

        Raises:
            TrackerClosed: meanwhile.
        """
        await asyncio.wait((self._closed,), timeout=seconds)
        self._check()

    def close(self) -> None:
        """Close the sockets, and end the wait."""
        if not self._closed.done():
            self._closed.set_result(None)
        if self._socket is not None and not self._socket.closed:
            self._socket.close()

    async def _wait(self, seconds: float) -> None:
        """Wait until something has happened; it lets other tasks run in any case."""
        self._check()
        waited: list[asyncio.Future[None] | asyncio.Future[list[bytes]]] = [self._closed]
        if self._socket is not None:
            if self._frames is None:
                self._frames = asyncio.ensure_future(self._socket.recv_multipart())
            waited.append(self._frames)
        await asyncio.wait(waited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        self._check()

    def _check(self) -> None:
        if self._closed.done():
            raise emitting_closed_error()
