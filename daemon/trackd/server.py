"""The process: what starts in which order, what ends it, and how it stops.

One daemon serves one cluster on one socket. The locks come first, so that a second daemon
on the same socket or the same state is refused before it touches anything. The main thread
then only waits: for a signal, or for the end of an actor that nobody asked for, which ends
the process (systemd starts it again; nothing is restarted in-process).
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, NamedTuple

import pykka
import zmq

from trackd import exits
from trackd.actor import Recover, Serve, TrackerActor
from trackd.config import Config
from trackd.locks import take_places
from trackd.logs import fields
from trackd.mailbox import RouterMailbox
from trackd.store import StoreError
from trackd.supervised import Ping
from trackd.ticker import ExpiryTicker
from trackd.watcher import ProcessWatcher
from trackd_client.clock import boottime
from trackd_client.places import check_ipc_path

log = logging.getLogger("trackd")

#: Seconds that each step of starting and stopping may take.
START_SECONDS = 30.0
STOP_SECONDS = 1.0


class SignalCame(NamedTuple):
    """A signal that asks for the end."""

    number: int


class ActorEnded(NamedTuple):
    """An actor handles no more messages."""

    name: str
    thread: threading.Thread


#: SimpleQueue, since its `put` may be called from a signal handler.
Events = queue.SimpleQueue[SignalCame | ActorEnded]


def run(config: Config) -> int:
    """Serve until a signal comes or an actor fails.

    Returns:
        The exit code (`trackd.exits`).

    Raises:
        StartError: the daemon cannot start.
    """
    events: Events = queue.SimpleQueue()
    with _signals(events), take_places(config):
        return _serve(config, events)


def _serve(config: Config, events: Events) -> int:
    """Start everything in order, wait, stop in reverse."""
    _seed_routing_ids()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    actors: list[pykka.ActorRef[Any]] = []

    def ended(name: str, thread: threading.Thread) -> None:
        events.put(ActorEnded(name, thread))

    try:
        tracker = TrackerActor.start(ended, context, config, boottime)
        actors.append(tracker)
        tracker.ask(Recover(), timeout=START_SECONDS)
        ticker = ExpiryTicker.start(ended, tracker, boottime)
        actors.append(ticker)
        watcher = ProcessWatcher.start(ended, tracker)
        actors.append(watcher)
        for actor in actors:
            actor.ask(Ping(), timeout=START_SECONDS)
        with _umask_for(config.socket_mode):
            tracker.ask(Serve(config.endpoint, ticker, watcher), timeout=START_SECONDS)
        check_ipc_path(config.endpoint).chmod(config.socket_mode)
        log.info(
            "serving",
            extra=fields(cluster=config.cluster_name, endpoint=config.endpoint, pid=os.getpid()),
        )
        if not config.state_dir:
            log.warning("state is kept in memory alone: a restart forgets who holds what")
        event = events.get()
        if isinstance(event, SignalCame):
            log.info("stopping", extra=fields(signal=signal.Signals(event.number).name))
            return exits.OK
        log.critical("actor ended by itself; the daemon ends", extra=fields(actor=event.name))
        events.put(event)  # for _stop, which waits for all of them
        return exits.FAILED
    except StoreError as error:
        raise exits.UnusableError(f"cannot keep state in {config.state_dir}: {error}") from None
    except (zmq.ZMQError, OSError) as error:
        raise exits.UnusableError(f"cannot serve {config.endpoint}: {error}") from None
    except (pykka.ActorDeadError, pykka.Timeout):
        log.exception("an actor did not start")
        return exits.FAILED
    finally:
        _stop(actors, events)
        context.term()
        check_ipc_path(config.endpoint).unlink(missing_ok=True)


def _stop(actors: list[pykka.ActorRef[Any]], events: Events) -> None:
    """Stop the actors, the last one first, and close the sockets once their threads have ended."""
    threads: dict[str, threading.Thread] = {}
    for actor in reversed(actors):
        with contextlib.suppress(pykka.ActorDeadError):
            actor.stop(block=False)
        name = actor.actor_class.__name__
        deadline = time.monotonic() + STOP_SECONDS
        while name not in threads and (remaining := deadline - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                event = events.get(timeout=remaining)
                if isinstance(event, ActorEnded):
                    threads[event.name] = event.thread
        if name in threads:
            threads[name].join(max(0.0, deadline - time.monotonic()))
        if name not in threads or threads[name].is_alive():
            # A wedged actor holds its sockets; only the end of the process frees them.
            log.critical("an actor does not stop", extra=fields(actor=name))
            os._exit(exits.FAILED)
    for actor in actors:
        if isinstance(actor.actor_inbox, RouterMailbox):
            actor.actor_inbox.close()


@contextlib.contextmanager
def _signals(events: Events) -> Iterator[None]:
    """Turn SIGTERM and SIGINT into events for as long as the block runs."""

    def handle(number: int, _frame: FrameType | None) -> None:
        events.put(SignalCame(number))

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _umask_for(mode: int) -> Iterator[None]:
    """Let nobody connect between bind and chmod whom the socket's mode would keep out."""
    before = os.umask(0o777 & ~mode)
    try:
        yield
    finally:
        os.umask(before)


def _seed_routing_ids() -> None:
    """Make the ROUTER's automatic ids hard to guess.

    libzmq draws them from libc's `rand`, which starts the same in every process, and aborts
    when a peer has chosen the id that comes next.
    """
    ctypes.CDLL(None).srand(int.from_bytes(os.urandom(4), "little"))
