"""SupervisedActor: an actor whose end is always told. What follows is the server's business."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn

import pykka

OnEnd = Callable[[str, threading.Thread], None]


class SupervisedActor(pykka.ThreadingActor):
    """The base of all actors here.

    `on_end` is called with the actor's name and thread once it handles no more messages.
    """

    def __init__(self, on_end: OnEnd) -> None:
        super().__init__()
        self._on_end = on_end

    def on_stop(self) -> None:
        """Tell the end; asked for or not, the server knows. Runs in the actor's thread.

        Whoever overrides this calls it last, whatever fails before: an end that is not told is
        taken for an actor that hangs.
        """
        self._on_end(type(self).__name__, threading.current_thread())

    def on_failure(
        self,
        exception_type: type[BaseException] | None,  # noqa: ARG002 - pykka's signature
        exception_value: BaseException | None,  # noqa: ARG002
        traceback: TracebackType | None,  # noqa: ARG002
    ) -> None:
        """Tell the end after an exception, which pykka has logged. Runs in the actor's thread."""
        self._on_end(type(self).__name__, threading.current_thread())


def tell(actor: pykka.ActorRef[Any], message: Any) -> None:
    """Tell another actor something; one that has ended needs to know nothing any more.

    The actors stop one after the other, and one that fails is told of to the server, which ends
    the process. Those that still serve until then must not fail over it.
    """
    with contextlib.suppress(pykka.ActorDeadError):
        actor.tell(message)


def unexpected(actor: pykka.Actor, message: Any) -> NoReturn:
    """Refuse a message that an actor does not know: a mistake in this program."""
    raise TypeError(f"{type(actor).__name__} does not take {type(message).__name__}")
