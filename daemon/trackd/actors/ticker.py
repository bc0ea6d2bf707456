"""ExpiryTicker: sends the TrackerActor a `Sweep` when time brings something about.

It does not poll: after each sweep the tracker says when the next one is due (`WakeAt`).
So at most one Sweep is ever unanswered. Its inbox waits for a message or for that time,
whichever comes first; no wait is longer than 5 s, since timed waits stand still while the
host is suspended and CLOCK_BOOTTIME does not.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pykka
from pykka._envelope import Envelope

from trackd.actors.messages import Ping, Sweep, WakeAt
from trackd.actors.supervised import OnEnd, SupervisedActor, tell, unexpected

LONGEST_WAIT = 5.0


@dataclass(frozen=True, slots=True)
class Due:
    """From the inbox to its own actor: the time has passed."""


class TimedInbox:
    """A queue whose `get` also returns, with `Due`, when `wake_at` has passed."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.wake_at: float | None = None
        self._clock = clock
        self._queue: queue.SimpleQueue[Envelope[Any]] = queue.SimpleQueue()

    def put(self, envelope: Envelope[Any], /) -> None:
        """Add a message. Any thread."""
        self._queue.put(envelope)

    def empty(self) -> bool:
        """Tell whether no message waits."""
        return self._queue.empty()

    def get(self) -> Envelope[Any]:
        """Wait for the next message, or for the time. The actor's thread."""
        while True:
            wait = LONGEST_WAIT
            if self.wake_at is not None:
                # A little late rather than early: a proxy still counts at exactly its expiry.
                wait = min(wait, self.wake_at - self._clock() + 0.001)
                if wait <= 0:
                    self.wake_at = None
                    return Envelope(Due())
            try:
                return self._queue.get(timeout=wait if self.wake_at is not None else None)
            except queue.Empty:
                continue


class ExpiryTicker(SupervisedActor):
    """The actor."""

    def __init__(
        self,
        on_end: OnEnd,
        tracker: pykka.ActorRef[Any],
        clock: Callable[[], float],
    ) -> None:
        self._inbox = TimedInbox(clock)
        self._tracker = tracker
        super().__init__(on_end)

    def _create_actor_inbox(self) -> TimedInbox:  # type: ignore[override] # a method, where pykka has a static one: the inbox needs the clock
        return self._inbox

    def on_receive(self, message: Any) -> Any:
        """Handle one message. Runs in the actor's thread."""
        if isinstance(message, WakeAt):
            self._inbox.wake_at = message.time
        elif isinstance(message, Due):
            tell(self._tracker, Sweep())
        elif not isinstance(message, Ping):
            unexpected(self, message)
