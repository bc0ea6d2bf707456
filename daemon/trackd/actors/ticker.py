"""ExpiryTicker: sends the TrackerActor a `Sweep` when something is due.

It does not poll: after each sweep the tracker says when the next one is due (`WakeAt`), so that
at most one Sweep is unanswered. The receive timeout of its inbox is its timer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pykka

from trackd.actors.inbox import Inbox, ReceiveTimeout
from trackd.actors.messages import Ping, Sweep, WakeAt
from trackd.actors.supervised import OnEnd, SupervisedActor, refuse_message, send


class ExpiryTicker(SupervisedActor):
    """The actor."""

    def __init__(
        self,
        on_end: OnEnd,
        tracker: pykka.ActorRef[Any],
        clock: Callable[[], float],
    ) -> None:
        self._inbox = Inbox(clock)
        self._tracker = tracker
        super().__init__(on_end, self._inbox)

    def on_receive(self, message: Any) -> Any:
        """Handle one message. Runs in the actor's thread."""
        if isinstance(message, WakeAt):
            self._inbox.wake_at = message.time
        elif isinstance(message, ReceiveTimeout):
            send(self._tracker, Sweep())
        elif not isinstance(message, Ping):
            refuse_message(self, message)
