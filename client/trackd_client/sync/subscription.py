"""The event socket of the synchronous client: receive, notice reconnects. I/O only.

libzmq connects again by itself, and subscribes again when the thread next waits for messages. It
keeps a bounded number of them for a program that does not read; what comes then is lost, as the
revisions show it.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable

import zmq

from trackd_client.core.event_sockets import configure, emitting_closed_error
from trackd_client.core.sockets import (
    LONGEST_WAIT,
    MONITORED,
    read_monitor,
)
from trackd_client.sync.connection import Wake
from trackd_client.wire.clock import boottime


class Subscription:
    """What one iteration listens to; one thread at a time uses it."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], wake: Wake) -> None:
        """Begin without a socket.

        Args:
            context: of this process.
            wake: ends waits, with `TrackerClosed`.
        """
        self._pid = os.getpid()
        self._context = context
        self._wake_fd = wake.fd
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._poller = zmq.Poller()
        self._poller.register(self._wake_fd, zmq.POLLIN)

    def connect(self, endpoint: str) -> None:
        """Subscribe to everything."""
        self._socket = self._context.socket(zmq.SUB)
        configure(self._socket)
        self._monitor = self._socket.get_monitor_socket(MONITORED)
        self._socket.connect(endpoint)
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)

    def receive(self, seconds: float, notify: Callable[[bool], None]) -> bytes | None:
        """Return the next frame, or None when none came in time.

        Args:
            seconds: how long to wait.
            notify: called whenever the connection came (True) or went (False). It is not kept,
                since its owner could never be garbage collected then.

        Raises:
            TrackerClosed: meanwhile.
        """
        until = boottime() + seconds
        while (left := until - boottime()) > 0:
            # Timed waits stand still in suspend.
            ready = dict(self._poller.poll(int(min(left, LONGEST_WAIT) * 1000) + 1))
            if self._wake_fd in ready:
                raise emitting_closed_error()
            if self._monitor in ready:
                assert self._monitor is not None
                notify(read_monitor(self._monitor.recv_multipart(zmq.DONTWAIT)))
            if self._socket in ready:
                assert self._socket is not None
                return b"".join(self._socket.recv_multipart(zmq.DONTWAIT))
        return None

    def pause(self, seconds: float) -> None:
        """Wait, and let what is published wait too.

        Raises:
            TrackerClosed: meanwhile.
        """
        poll = select.poll()
        poll.register(self._wake_fd, select.POLLIN)
        if poll.poll(seconds * 1000):
            raise emitting_closed_error()

    def close(self) -> None:
        """Close the sockets. Only while no thread uses them."""
        if self._socket is not None and not self._socket.closed and os.getpid() == self._pid:
            if self._monitor is not None:
                self._socket.disable_monitor()
                self._monitor.close(linger=0)
            self._socket.close()
