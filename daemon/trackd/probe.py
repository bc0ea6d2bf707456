"""Probe: the daemon's own client, which shows that requests are answered.

A watchdog that a timer feeds proves only that a timer works. The probe sends a request over the
real socket. It goes through the ROUTER, the TrackerActor and a commit of the store, and its reply
comes back: only then is the daemon alive. The probe runs in the main thread. The daemon answers
this request to its own process only (`trackd.operations.reports`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import zmq

from trackd.operations.operation import PROBE
from trackd_client.wire.protocol import REQUEST, decode_reply, encode

#: Milliseconds between two looks at whether to give up.
_SLICE_MS: Final = 100
_RECONNECT_MS: Final = 100


class Probe:
    """A DEALER on the daemon's own endpoint."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        """Connect to the daemon.

        Args:
            context: the ZeroMQ context of this process.
            endpoint: the daemon's endpoint.
        """
        self._seq = self._answered = 0
        self._socket = context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.reconnect_ivl = _RECONNECT_MS
        self._socket.connect(endpoint)

    def trip(self, seconds: float, give_up: Callable[[], bool]) -> Mapping[str, Any] | None:
        """Send a request through the daemon and wait for its reply.

        Args:
            seconds: how long the reply may take.
            give_up: called now and then; returns whether to stop waiting.

        Returns:
            The counts in the reply, or None.
        """
        self._seq += 1
        with contextlib.suppress(zmq.Again):  # earlier ones wait to be answered; they do as well
            self._socket.send(encode(REQUEST, {"op": PROBE, "seq": self._seq}), zmq.DONTWAIT)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not give_up():
            if self._socket.poll(_SLICE_MS) and (counts := self._receive()) is not None:
                return counts
        return None

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _receive(self) -> Mapping[str, Any] | None:
        """Return the counts of a reply; None for one that was counted before, or an error."""
        reply = decode_reply(self._socket.recv())
        if reply is None or reply.seq <= self._answered or "error" in reply.body:
            return None
        self._answered = reply.seq
        return reply.body
