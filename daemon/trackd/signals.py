"""Signals and the ends of actors as events that one thread waits for.

No signal that a process can survive ends the daemon without a line in its log.
"""

from __future__ import annotations

import faulthandler
import logging
import queue
import signal
import threading
from typing import Final, NamedTuple

from trackd.host.logs import fields

log = logging.getLogger("trackd")


class SignalCame(NamedTuple):
    """A signal that asks for the end, or for a reload."""

    number: int


class ActorEnded(NamedTuple):
    """An actor has ended."""

    name: str
    thread: threading.Thread


#: Those that ask for the end, or for a reload.
_SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP})
#: Those that mean nothing to the daemon, and would end it: timers, limits, and what people send to
#: other daemons. Python ignores SIGPIPE and SIGXFSZ by itself.
_IGNORED: Final = frozenset(
    {
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGALRM,
        signal.SIGVTALRM,
        signal.SIGPROF,
        signal.SIGIO,
        signal.SIGXCPU,
        signal.SIGPWR,
        signal.SIGSTKFLT,
        *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
    }
)
#: Faults, beside those that `faulthandler.enable` takes.
_FAULTS: Final = (signal.SIGSYS, signal.SIGTRAP)

Events = queue.SimpleQueue[SignalCame | ActorEnded]


def hold_signals() -> None:
    """Keep signals that mean nothing to the daemon until `take_signals`; they would end it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)


def take_signals(events: Events) -> None:
    """Turn SIGTERM, SIGINT, SIGQUIT and SIGHUP into events, until the process has ended.

    A handler is not enough: Python runs it only in the main thread, and a signal that comes just
    before that thread begins to wait is not seen until the wait ends. So the signals are blocked
    in every thread, and one thread takes them from the kernel. It logs those that mean nothing. A
    fault, the watchdog's SIGABRT too, ends the process after a line that says where each thread
    was.
    """

    def take() -> None:
        while True:
            came = signal.sigwaitinfo(_SIGNALS | _IGNORED)
            if came.si_signo in _SIGNALS:
                events.put(SignalCame(came.si_signo))
            else:
                log.warning(
                    "signal ignored",
                    extra=fields(
                        signal=name_signal(came.si_signo), pid=came.si_pid, uid=came.si_uid
                    ),
                )

    faulthandler.enable()
    for number in _FAULTS:
        faulthandler.register(number, chain=True)
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS | _IGNORED)
    threading.Thread(target=take, name="signals", daemon=True).start()


def name_signal(number: int) -> str:
    """Return the name of a signal, of a real-time one too."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"
