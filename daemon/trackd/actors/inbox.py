"""The inboxes of actors that wait for more than messages: descriptors, sockets, a moment.

pykka asks an actor class for its inbox and hands it its messages in private envelopes. Both are
used here and in `trackd.actors.supervised` only: an actor passes its inbox to
`SupervisedActor.__init__`, and an inbox adds a message of its own with `post`.
"""

from __future__ import annotations

import os
import select
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pykka._actor import ActorInbox
from pykka._envelope import Envelope

__all__ = ["LONGEST_WAIT", "ActorInbox", "Envelope", "Inbox", "ReceiveTimeout"]

#: Seconds of the longest wait for a moment: timed waits stand still while the host is suspended,
#: and CLOCK_BOOTTIME does not.
LONGEST_WAIT = 5.0


@dataclass(frozen=True, slots=True)
class ReceiveTimeout:
    """From an inbox to its own actor: the moment that the actor waits for has passed."""


class Inbox:
    """A queue of messages, whose wait also ends for descriptors and at a moment.

    `put` is for any thread; everything else is for the actor's thread.

    Attributes:
        wake_at: when `get` returns a `ReceiveTimeout`, strictly after this time of the clock;
            None: never. It is None again afterwards.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Create an empty inbox.

        Args:
            clock: seconds, by which `wake_at` counts.
        """
        self.wake_at: float | None = None
        self._clock = clock
        self._messages: deque[Envelope[Any]] = deque()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll = select.epoll()
        self._epoll.register(self._wake, select.EPOLLIN)

    def put(self, envelope: Envelope[Any], /) -> None:
        """Add a message and end the wait. Any thread may call it; after `close` it does nothing."""
        self._messages.append(envelope)
        os.eventfd_write(self._wake, 1)

    def post(self, message: Any) -> None:
        """Add a message of the inbox itself; no caller awaits a reply."""
        self._messages.append(Envelope(message))

    def empty(self) -> bool:
        """Return whether no message waits."""
        return not self._messages

    def get(self) -> Envelope[Any]:
        """Wait for the next message, a descriptor, or the moment."""
        while True:
            wait = None
            if self.wake_at is not None:
                # A little late rather than early: a proxy still counts at exactly its expiry.
                wait = min(LONGEST_WAIT, self.wake_at - self._clock() + 0.001)
                if wait <= 0:
                    self.wake_at = None
                    return Envelope(ReceiveTimeout())
            if self._messages:
                return self._messages.popleft()
            for descriptor, _ in self._epoll.poll(wait):
                if descriptor == self._wake:
                    os.eventfd_read(self._wake)
                else:
                    self.on_readable(descriptor)

    def on_readable(self, descriptor: int) -> None:
        """Read a descriptor that a subclass has registered."""
        raise NotImplementedError(f"{type(self).__name__} has registered {descriptor}")

    def close(self) -> None:
        """Close every descriptor but the one that `put` may still write to."""
        self._epoll.close()
