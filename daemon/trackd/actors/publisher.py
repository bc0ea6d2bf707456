"""EventPublisher: publishes events, so that the one writer never waits for a subscriber.

An XPUB socket beside the ROUTER. The TrackerActor sends it the events of each batch once they
are stored, and only while there is a subscriber (`Audience`). A subscriber that does not keep up
loses messages inside libzmq, and notices it by the revisions. This actor never asks another actor,
and a message that it cannot send is not a failure.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
from dataclasses import dataclass
from typing import Any, Final

import zmq

from trackd.actors.inbox import Envelope, Inbox
from trackd.actors.messages import Audience, Bind, Ping, Publish
from trackd.actors.subscribers import PeerOfEvents, Subscribers, find_peer
from trackd.actors.supervised import OnEnd, SupervisedActor, refuse_message
from trackd.host.logs import fields
from trackd.operations.quotas import is_exempt
from trackd_client.wire.protocol import event_frame

log = logging.getLogger("trackd.publisher")

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
    """From the inbox to its own actor: a client subscribed, or the last one has gone."""

    frame: bytes


class SubscriptionInbox(Inbox):
    """An inbox that also returns what subscribers send. It owns the XPUB socket."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], subscribers: Subscribers) -> None:
        super().__init__()
        self.socket = context.socket(zmq.XPUB)
        self.socket.linger = 0
        self.socket.sndhwm = _SEND_HWM
        self.socket.rcvhwm = _RECEIVE_HWM
        self.socket.maxmsgsize = _MAX_SUBSCRIPTION
        self.socket.handshake_ivl = _HANDSHAKE_MS
        self.socket.backlog = _BACKLOG
        self.socket.xpub_verbose = True  # each new subscriber is greeted, not the first only
        self._subscribers = subscribers
        self._epoll.register(self.socket.FD, select.EPOLLIN)

    def get(self) -> Envelope[Any]:
        """Wait for the next message, or subscription."""
        # libzmq's descriptor is readable at a change only: what is there already is read first.
        if not self._messages:
            self.on_readable(self.socket.FD)
        return super().get()

    def on_readable(self, descriptor: int) -> None:  # noqa: ARG002 - there is one
        """Read a subscription."""
        with contextlib.suppress(zmq.Again):
            frame = self.socket.recv(zmq.DONTWAIT, copy=False)
            self._count(frame)
            self.post(Subscription(frame.bytes))

    def _count(self, frame: zmq.Frame) -> None:
        """Count a subscription, and hang up on a peer that has too many.

        libzmq keeps every subscription, however many, until its connection ends. A client
        needs one.
        """
        if not frame.bytes.startswith(_EVERYTHING):
            return
        try:
            peer = find_peer(int(frame.get(zmq.SRCFD)), str(frame.get("Peer-Address")))
        except (zmq.ZMQError, TypeError, ValueError):  # its connection has ended
            return
        if peer is not None and not self._subscribers.add(peer, exempt=is_exempt(("", peer.uid))):
            hang_up(peer)

    def close(self) -> None:
        """Close the socket. For the server, after the actor's thread has ended."""
        self.socket.close()
        super().close()


class EventPublisher(SupervisedActor):
    """The actor."""

    def __init__(
        self, on_end: OnEnd, context: zmq.Context[zmq.Socket[bytes]], audience: Audience
    ) -> None:
        self._inbox = SubscriptionInbox(context, audience.subscribers)
        self._audience = audience
        super().__init__(on_end, self._inbox)

    def on_receive(self, message: Any) -> Any:
        """Handle one message. Runs in the actor's thread."""
        if isinstance(message, Publish):
            for start in range(0, max(1, len(message.events)), _EVENTS_A_MESSAGE):
                part = message.events[start : start + _EVENTS_A_MESSAGE]
                left = len(message.events) - start - len(part)
                self._send(
                    event_frame(message.epoch, message.tracker_id, message.revision - left, part)
                )
        elif isinstance(message, Subscription):
            self._subscribed(message.frame)
        elif isinstance(message, Bind):
            self._inbox.socket.use_fd = message.descriptor
            self._inbox.socket.bind(message.endpoint)
        elif not isinstance(message, Ping):
            refuse_message(self, message)

    def _subscribed(self, frame: bytes) -> None:
        """Begin or stop publishing; greet the new subscriber.

        From the greeting on everything is published, so a snapshot that is taken after it misses
        no later event.
        """
        if frame == _EVERYTHING:
            self._audience.listening = True
            self._send(event_frame(0, "", 0, ()))
        elif frame == _NOTHING_MORE:
            self._audience.listening = False

    def _send(self, frame: bytes) -> None:
        with contextlib.suppress(zmq.Again):
            self._inbox.socket.send(frame, zmq.DONTWAIT)


def hang_up(peer: PeerOfEvents) -> None:
    """End a connection of libzmq, unless its descriptor belongs to another peer by now."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(peer.descriptor)) as connection:
        if os.fstat(connection.fileno()).st_ino == peer.inode:
            log.warning("too many subscriptions: hung up", extra=fields(uid=peer.uid, pid=peer.pid))
            connection.shutdown(socket.SHUT_RDWR)
