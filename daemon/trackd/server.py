"""The process: what starts in which order, what ends it, and how it stops.

One daemon serves one cluster on one socket. The locks come first, so that a second daemon
on the same socket or the same state is refused before it touches anything. The main thread
then only waits: for a signal, or for the unexpected end of an actor, which ends the process
(systemd starts it again; nothing is restarted in-process). `trackd.overseer` is that wait.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import logging
import os
import queue
import signal
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import pykka
import zmq

from trackd.actors.mailbox import RouterMailbox
from trackd.actors.messages import Audience, Bind, Ping, Recover, Serve
from trackd.actors.publisher import EventPublisher, SubscriptionInbox
from trackd.actors.ticker import ExpiryTicker
from trackd.actors.watcher import ProcessWatcher
from trackd.actors.writer import TrackerActor
from trackd.config import exits
from trackd.config.settings import Config
from trackd.guard import PlaceGuard
from trackd.host.logs import fields, flush
from trackd.host.places import Places, events_endpoint, take_places
from trackd.host.systemd import Notifier, listening_socket
from trackd.operations.runtime import HttpState
from trackd.overseer import Overseer
from trackd.probe import Probe
from trackd.signals import ActorEnded, Events, SignalCame, name_signal, take_signals
from trackd.storage.sqlite import SQLiteStore
from trackd.storage.store import StoreError
from trackd_client.wire.clock import boot_id, boottime
from trackd_client.wire.places import check_ipc_path

if TYPE_CHECKING:
    from trackd.http.service import HttpService

log = logging.getLogger("trackd")

#: Seconds that each step of starting may take.
START_SECONDS = 30.0
#: Seconds after which an actor that has not stopped counts as hanging. Stopping takes
#: milliseconds; the rest is for an overloaded machine.
STOP_SECONDS = 5.0
#: Objects that are new, collections of those, and of the older ones, after which Python looks for
#: cyclic garbage.
_COLLECT_AFTER: Final = (50_000, 20, 20)


def run(config: Config, reread: Callable[[], Config]) -> int:
    """Serve until a signal comes or an actor fails.

    Args:
        config: the settings.
        reread: reads the configuration again, for a reload.

    Returns:
        The exit code (`trackd.config.exits`).

    Raises:
        StartError: the daemon cannot start.
    """
    events: Events = queue.SimpleQueue()
    notifier = Notifier(os.environ)
    closable = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN  # nohup
    take_signals(events)
    descriptor = listening_socket(os.environ, check_ipc_path(config.endpoint))
    with take_places(config, listening=descriptor is not None) as places:
        overseer = Overseer(config, reread, events, notifier, closable=closable)
        if descriptor is not None:
            path = check_ipc_path(config.endpoint)
            descriptor = places.adopt(path, descriptor, config.socket_mode)
        return _serve(config, places, descriptor, overseer)


def _serve(config: Config, places: Places, descriptor: int | None, overseer: Overseer) -> int:
    """Start everything in order, wait, stop in reverse.

    Args:
        config: the settings.
        places: the locked places of the daemon.
        descriptor: the socket on which systemd listens, or None.
        overseer: waits for the end.
    """
    _seed_routing_ids()
    _calm_collector()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    actors: list[pykka.ActorRef[Any]] = []
    events = events_endpoint(config.endpoint)
    path = check_ipc_path(config.endpoint)
    audience = Audience()
    probe: Probe | None = None
    http: HttpService | None = None
    http_state = HttpState()
    directory = Path(config.state_dir) if config.state_dir else None
    notifier = overseer.notifier
    try:
        if config.http:
            from trackd.http.service import HttpService

            http = HttpService(config, overseer.ended, http_state, places.own)
        tracker: pykka.ActorRef[Any]
        if config.leaders:
            from trackd.fleet import relay

            tracker = relay.start(overseer.ended, context, config, audience, overseer.ask_reload)
        else:
            tracker = TrackerActor.start(
                overseer.ended,
                context,
                config,
                boottime,
                functools.partial(SQLiteStore, directory, boot_id(), own=places.own),
                audience=audience,
                ask_reload=overseer.ask_reload,
                http=http_state,
            )
        actors.append(tracker)
        tracker.ask(Recover(), timeout=START_SECONDS)
        ticker = ExpiryTicker.start(overseer.ended, tracker, boottime)
        actors.append(ticker)
        watcher = ProcessWatcher.start(overseer.ended, tracker)
        actors.append(watcher)
        publisher = EventPublisher.start(overseer.ended, context, audience)
        actors.append(publisher)
        for actor in actors:
            actor.ask(Ping(), timeout=START_SECONDS)
        if events:
            _serve_events(events, config, places, publisher, activated=descriptor is not None)
        listener = places.listen(path, config.socket_mode) if descriptor is None else descriptor
        tracker.ask(
            Serve(config.endpoint, ticker, watcher, publisher, events, listener),
            timeout=START_SECONDS,
        )
        guard = PlaceGuard(config, places, tracker, publisher)
        if notifier.wanted:
            probe = Probe(context, config.endpoint)
            if not overseer.prove(probe, START_SECONDS) and overseer.events.empty():
                log.critical("requests are not answered")
                return exits.FAILED
        if http is not None:
            http.start()
        gc.freeze()  # what is there now stays, nearly all of it
        notifier.ready()
        log.info(
            "serving",
            extra=fields(
                cluster=config.cluster_name,
                endpoint=config.endpoint,
                pid=os.getpid(),
                activated=descriptor is not None,
                **({"http": config.http} if config.http else {}),
            ),
        )
        if not events:
            log.warning("no events are published: the socket's path is too long for a second one")
        if not config.state_dir and not config.leaders:
            log.warning("state is kept in memory alone: a restart forgets who holds what")
        event = overseer.wait(tracker, probe, guard.check)
        notifier.stopping()
        if isinstance(event, SignalCame):
            log.info("stopping", extra=fields(signal=name_signal(event.number)))
            return exits.OK
        log.critical("actor ended by itself; the daemon ends", extra=fields(actor=event.name))
        overseer.events.put(event)  # for _stop, which waits for all of them
        return exits.FAILED
    except StoreError as error:
        raise exits.UnusableError(f"cannot keep state in {config.state_dir}: {error}") from None
    except (zmq.ZMQError, OSError) as error:
        raise exits.UnusableError(f"cannot serve {config.endpoint}: {error}") from None
    except (pykka.ActorDeadError, pykka.Timeout):
        log.exception("an actor did not start")
        return exits.FAILED
    except exits.StartError:
        raise
    except Exception:
        log.exception("unexpected failure; the daemon ends")
        return exits.FAILED
    finally:
        if http is not None and not http.stop(STOP_SECONDS):
            _give_up(http.name)
        if probe is not None:
            probe.close()
        _stop(actors, overseer.events)
        # Closes also the sockets of an actor whose construction failed, for which `term` waits.
        context.destroy()
        if descriptor is None:  # otherwise it is systemd's, and agents already wait there
            places.own.remove(path)
        if events:
            places.own.remove(check_ipc_path(events))


def _stop(actors: list[pykka.ActorRef[Any]], events: Events) -> None:
    """Stop the actors, the last one first, and close the sockets once their threads have ended."""
    threads: dict[str, threading.Thread] = {}
    deadline = time.monotonic() + STOP_SECONDS
    for actor in reversed(actors):
        with contextlib.suppress(pykka.ActorDeadError):
            actor.stop(block=False)
        name = actor.actor_class.__name__
        while name not in threads and (remaining := deadline - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                event = events.get(timeout=remaining)
                if isinstance(event, ActorEnded):
                    threads[event.name] = event.thread
        if name in threads:
            threads[name].join(max(0.0, deadline - time.monotonic()))
        if name not in threads or threads[name].is_alive():
            _give_up(name)
    for actor in actors:
        if isinstance(actor.actor_inbox, RouterMailbox | SubscriptionInbox):
            actor.actor_inbox.close()


def _give_up(name: str) -> NoReturn:
    """End the process at once: an actor that hangs keeps its sockets; nothing else frees them."""
    log.critical("an actor does not stop", extra=fields(actor=name))
    flush()
    os._exit(exits.FAILED)


def _serve_events(
    events: str, config: Config, places: Places, publisher: pykka.ActorRef[Any], *, activated: bool
) -> None:
    """Serve the event socket, with the permissions of the daemon's socket."""
    path = check_ipc_path(events)
    listener = places.listen(path, config.socket_mode)
    if activated:
        like = check_ipc_path(config.endpoint).stat()
        if path.stat().st_gid == like.st_gid:
            path.chmod(stat.S_IMODE(like.st_mode))
            places.own.add(path, "socket")
        else:  # the unit forbids chown, whatever the group
            log.warning(
                "events are for the daemon's own user: its group is not that of the socket",
                extra=fields(gid=like.st_gid),
            )
    publisher.ask(Bind(events, listener), timeout=START_SECONDS)


def _seed_routing_ids() -> None:
    """Make the ROUTER's automatic ids hard to guess.

    libzmq draws them from libc's `rand`, which starts the same in every process, and aborts
    when a peer has chosen the id that comes next.
    """
    ctypes.CDLL(None).srand(int.from_bytes(os.urandom(4), "little"))


def _calm_collector() -> None:
    """Let Python look for cyclic garbage less often.

    A request leaves no garbage. A message of 10,000 proxies is 10,000 lists while it is handled;
    14 collections looked through them, and took half of its time.
    """
    gc.set_threshold(*_COLLECT_AFTER)
