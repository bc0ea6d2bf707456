"""Signals and the ends of actors as events that one thread waits for."""

from __future__ import annotations

import queue
import signal
import threading
from typing import NamedTuple


class SignalCame(NamedTuple):
    """A signal that asks for the end, or for a reload."""

    number: int


class ActorEnded(NamedTuple):
    """An actor has ended."""

    name: str
    thread: threading.Thread


_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})

Events = queue.SimpleQueue[SignalCame | ActorEnded]


def take_signals(events: Events) -> None:
    """Turn SIGTERM, SIGINT and SIGHUP into events from now on, until the process has ended.

    A handler is not enough: Python runs it only in the main thread, and a signal that comes just
    before that thread begins to wait is not seen until the wait ends. So the signals are blocked
    in every thread, and one thread takes them from the kernel.
    """

    def take() -> None:
        while True:
            events.put(SignalCame(signal.sigwait(_SIGNALS)))

    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    threading.Thread(target=take, name="signals", daemon=True).start()
