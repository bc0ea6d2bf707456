"""A connection of a relay to one candidate, whose public key is one of two that are pinned.

A candidate that changes its key is known by both meanwhile. When a handshake fails, the other key
is tried. ZeroMQ connects again by itself, but not with another key, and never after the server has
refused ours. So each new try is made here, with a new socket.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import zmq
from zmq.utils.monitor import recv_monitor_message

from trackd.fleet.keys import KeyPair

#: Seconds after which all keys are tried again.
PAUSE: Final = 1.0
#: Milliseconds of ZMTP's heartbeats: between two, and of silence that ends a connection.
_HEARTBEAT_MS: Final = 1000
_SILENCE_MS: Final = 3000
#: Milliseconds after which a connection is tried anew that nobody answers. The kernel itself asks
#: more and more rarely: a minute after the network has healed, perhaps.
_CONNECT_MS: Final = 3000
#: Milliseconds that a connection may take for its handshake.
_HANDSHAKE_MS: Final = 5000
_RECONNECT_MS: Final = 100
_RECONNECT_MAX_MS: Final = 1000

_FAILED: Final = (
    zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
    | zmq.Event.HANDSHAKE_FAILED_AUTH
)
_MONITORED: Final = zmq.Event.HANDSHAKE_SUCCEEDED | zmq.Event.DISCONNECTED | _FAILED


class PinnedConnection:
    """A DEALER to one candidate. One thread owns it.

    The owner polls with the poller that it has given, in which the connection keeps `socket` and
    `monitor`, and calls `step` when `monitor` has something, and after `next_step` seconds.

    Attributes:
        socket: the DEALER. It is another one after a failed handshake; what was sent by the one
            before and has no reply is lost.
        monitor: has something when `step` has something to do.
        connected: whether a handshake has succeeded and the connection lasts.
        refused: whether the candidate has refused our key; it is tried again all the same.
        key: the public key of the candidate that is tried, or was right.
    """

    socket: zmq.Socket[bytes]
    monitor: zmq.Socket[bytes]

    def __init__(
        self,
        context: zmq.Context[Any],
        poller: zmq.Poller,
        endpoint: str,
        pinned: Sequence[str],
        own: KeyPair,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin to connect.

        Args:
            context: for the sockets.
            poller: gets the sockets, to wait for input.
            endpoint: of the candidate, `tcp://HOST:PORT`.
            pinned: its public key, or two of which either is good.
            own: the keys of this host.
            clock: seconds that never go back.
        """
        self.connected = False
        self.refused = False
        self.key = pinned[0]
        self._context = context
        self._poller = poller
        self._endpoint = endpoint
        self._pinned = tuple(pinned)
        self._own = own
        self._clock = clock
        self._untried = len(self._pinned) - 1  # keys left until a pause
        self._retry_at: float | None = None
        self._connect()

    @property
    def next_step(self) -> float | None:
        """Seconds until `step` has something to do whatever `monitor` says; None: nothing."""
        return None if self._retry_at is None else max(0.0, self._retry_at - self._clock())

    def step(self) -> None:
        """Take in what has happened to the connection, and try again when it is time."""
        while self.monitor.poll(0):
            event = recv_monitor_message(self.monitor)["event"]
            if event == zmq.Event.HANDSHAKE_SUCCEEDED:
                self.connected, self.refused, self._retry_at = True, False, None
                self._untried = len(self._pinned) - 1
            elif event == zmq.Event.DISCONNECTED:
                self.connected = False
            elif self._retry_at is None:
                self._plan_retry(refused=event == zmq.Event.HANDSHAKE_FAILED_AUTH)
        if self._retry_at is not None and self._clock() >= self._retry_at:
            if not self.refused:  # a candidate that refuses us has shown that its key is right
                other = (self._pinned.index(self.key) + 1) % len(self._pinned)
                self.key = self._pinned[other]
            self._disconnect()
            self._connect()

    def _plan_retry(self, *, refused: bool) -> None:
        self.refused = refused
        self._retry_at = self._clock()
        if refused or not self._untried:
            self._retry_at += PAUSE
            self._untried = len(self._pinned)
        self._untried -= 1

    def restart(self) -> None:
        """Begin a new connection; what the old one has not sent yet is dropped."""
        self._disconnect()
        self._connect()

    def close(self) -> None:
        """End the connection."""
        self._disconnect()

    def _connect(self) -> None:
        dealer: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        dealer.linger = 0
        dealer.curve_serverkey = self.key.encode()
        dealer.curve_publickey = self._own.public.encode()
        dealer.curve_secretkey = self._own.secret.encode()
        dealer.connect_timeout = _CONNECT_MS
        dealer.handshake_ivl = _HANDSHAKE_MS
        dealer.heartbeat_ivl = _HEARTBEAT_MS
        dealer.heartbeat_timeout = _SILENCE_MS
        dealer.reconnect_ivl = _RECONNECT_MS
        dealer.reconnect_ivl_max = _RECONNECT_MAX_MS
        self.socket, self.monitor = dealer, dealer.get_monitor_socket(_MONITORED)
        self._poller.register(self.socket, zmq.POLLIN)
        self._poller.register(self.monitor, zmq.POLLIN)
        self._retry_at = None
        dealer.connect(self._endpoint)

    def _disconnect(self) -> None:
        self.connected = False
        self._poller.unregister(self.socket)
        self._poller.unregister(self.monitor)
        self.socket.disable_monitor()
        self.monitor.close(linger=0)
        self.socket.close()
