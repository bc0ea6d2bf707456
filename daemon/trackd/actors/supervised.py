"""SupervisedActor: an actor whose end is always reported. The server decides what follows."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn

import pykka

from trackd.actors.inbox import ActorInbox

OnEnd = Callable[[str, threading.Thread], None]


class SupervisedActor(pykka.ThreadingActor):
    """The base of all actors.

    `on_end` is called with the actor's name and thread after its last message.
    """

    def __init__(self, on_end: OnEnd, inbox: ActorInbox) -> None:
        """Create the actor.

        Args:
            on_end: called at its end, in its thread.
            inbox: where its messages wait.
        """
        self._own_inbox = inbox
        super().__init__()
        self._on_end = on_end

    def _create_actor_inbox(self) -> ActorInbox:  # type: ignore[override] # a method, where pykka has a static one: each inbox is made by its actor
        """Return the inbox. pykka's hook; this is the only place that overrides it."""
        return self._own_inbox

    def on_stop(self) -> None:
        """Report the end, asked for or not. Runs in the actor's thread.

        An override calls this last, whatever fails before: an end that is not reported is taken
        for an actor that hangs.
        """
        self._on_end(type(self).__name__, threading.current_thread())

    def on_failure(
        self,
        exception_type: type[BaseException] | None,  # noqa: ARG002 - pykka's signature
        exception_value: BaseException | None,  # noqa: ARG002
        traceback: TracebackType | None,  # noqa: ARG002
    ) -> None:
        """Report the end after an exception, which pykka has logged. Runs in the actor's thread."""
        self._on_end(type(self).__name__, threading.current_thread())


def send(actor: pykka.ActorRef[Any], message: Any) -> None:
    """Send a message to another actor; drop it when that actor has ended.

    The actors stop one after the other, and the server ends the process when one fails. Those
    that still serve until then must not fail because of it.
    """
    with contextlib.suppress(pykka.ActorDeadError):
        actor.tell(message)


def refuse_message(actor: pykka.Actor, message: Any) -> NoReturn:
    """Raise for a message that an actor does not know: a mistake in this program."""
    raise TypeError(f"{type(actor).__name__} does not take {type(message).__name__}")
