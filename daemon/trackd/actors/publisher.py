"""EventPublisher: tells whoever listens what has changed, so that the one writer need not wait.

An XPUB socket beside the ROUTER. The TrackerActor tells it the events of each batch once they
are stored, and only while somebody listens (`Audience`). A subscriber that does not keep up
loses messages inside libzmq, and finds out by the revisions. This actor never asks anything of
anybody, and what it does not manage to send is no failure.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

import zmq
from pykka._envelope import Envelope

from trackd.actors.messages import Audience, Bind, Ping, Publish
from trackd.actors.supervised import OnEnd, SupervisedActor, unexpected
from trackd_client.wire.protocol import event_frame

#: Messages kept for a subscriber that does not keep up, and the events of one message: what it
#: can make the daemon hold is the product, of about 150 bytes an event.
_SEND_HWM: Final = 1000
_EVENTS_A_MESSAGE: Final = 256
#: Bytes of a subscription, and how many wait; ours is empty.
_MAX_SUBSCRIPTION: Final = 256
_RECEIVE_HWM: Final = 64
_HANDSHAKE_MS: Final = 5000
_BACKLOG: Final = 1024
_EVERYTHING: Final = b"\x01"
_NOTHING_MORE: Final = b"\x00"


@dataclass(frozen=True, slots=True)
class Subscription:
    """From the inbox to its own actor: somebody subscribed, or the last one has gone."""

    frame: bytes


class SubscriptionInbox:
    """A queue whose `get` also returns what subscribers say. It owns the XPUB socket."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._messages: deque[Envelope[Any]] = deque()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.socket = context.socket(zmq.XPUB)
        self.socket.linger = 0
        self.socket.sndhwm = _SEND_HWM
        self.socket.rcvhwm = _RECEIVE_HWM
        self.socket.maxmsgsize = _MAX_SUBSCRIPTION
        self.socket.handshake_ivl = _HANDSHAKE_MS
        self.socket.backlog = _BACKLOG
        self.socket.xpub_verbose = True  # each new subscriber is greeted, not the first alone
        self._poller = zmq.Poller()
        self._poller.register(self.socket, zmq.POLLIN)
        self._poller.register(self._wake, zmq.POLLIN)

    def put(self, envelope: Envelope[Any], /) -> None:
        """Add a message and wake the wait. Any thread."""
        self._messages.append(envelope)
        os.eventfd_write(self._wake, 1)

    def empty(self) -> bool:
        """Tell whether no message waits."""
        return not self._messages

    def get(self) -> Envelope[Any]:
        """Wait for the next message, or subscription. The actor's thread."""
        while not self._messages:
            for ready, _ in self._poller.poll():
                if ready is self.socket:
                    with contextlib.suppress(zmq.Again):
                        frame = self.socket.recv(zmq.DONTWAIT)
                        self._messages.append(Envelope(Subscription(frame)))
                else:
                    os.eventfd_read(self._wake)
        return self._messages.popleft()

    def close(self) -> None:
        """Close the socket. For the server, after the actor's thread has ended."""
        self.socket.close()


class EventPublisher(SupervisedActor):
    """The actor."""

    def __init__(
        self, on_end: OnEnd, context: zmq.Context[zmq.Socket[bytes]], audience: Audience
    ) -> None:
        self._inbox = SubscriptionInbox(context)
        self._audience = audience
        super().__init__(on_end)

    def _create_actor_inbox(self) -> SubscriptionInbox:  # type: ignore[override] # a method, where pykka has a static one: the inbox needs the context
        return self._inbox

    def on_receive(self, message: Any) -> Any:
        """Handle one message. Runs in the actor's thread."""
        if isinstance(message, Publish):
            for start in range(0, len(message.events), _EVENTS_A_MESSAGE):
                part = message.events[start : start + _EVENTS_A_MESSAGE]
                left = len(message.events) - start - len(part)
                self._send(
                    event_frame(message.epoch, message.tracker_id, message.revision - left, part)
                )
        elif isinstance(message, Subscription):
            self._subscribed(message.frame)
        elif isinstance(message, Bind):
            self._inbox.socket.bind(message.endpoint)
        elif not isinstance(message, Ping):
            unexpected(self, message)

    def _subscribed(self, frame: bytes) -> None:
        """Begin or cease to publish; greet whoever subscribed.

        From the greeting on everything is published: a snapshot that is taken after it misses
        nothing of what follows.
        """
        if frame == _EVERYTHING:
            self._audience.listening = True
            self._send(event_frame(0, "", 0, ()))
        elif frame == _NOTHING_MORE:
            self._audience.listening = False

    def _send(self, frame: bytes) -> None:
        with contextlib.suppress(zmq.Again):
            self._inbox.socket.send(frame, zmq.DONTWAIT)
