"""The process: what starts in which order, what ends it, and how it stops.

One daemon serves one cluster on one socket. The locks come first, so that a second daemon
on the same socket or the same state is refused before it touches anything. The main thread
then only waits: for a signal, or for the end of an actor that nobody asked for, which ends
the process (systemd starts it again; nothing is restarted in-process). Under systemd it also
sends a request through the daemon now and then (`trackd.probe`) and tells what came of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import logging
import os
import queue
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

import pykka
import zmq

from trackd.actors.mailbox import RouterMailbox
from trackd.actors.messages import Audience, Bind, Ping, Recover, Reload, ReloadOutcome, Serve
from trackd.actors.publisher import EventPublisher, SubscriptionInbox
from trackd.actors.ticker import ExpiryTicker
from trackd.actors.watcher import ProcessWatcher
from trackd.actors.writer import TrackerActor
from trackd.config import exits
from trackd.config.settings import Config, ConfigError, live_part
from trackd.host.logs import fields, set_level
from trackd.host.places import events_endpoint, take_places
from trackd.host.roles import Roles
from trackd.host.systemd import Notifier, listening_socket
from trackd.probe import Probe
from trackd.storage.store import StoreError
from trackd_client.clock import boottime
from trackd_client.places import check_ipc_path

if TYPE_CHECKING:
    from trackd.http.listener import HttpListener

log = logging.getLogger("trackd")

#: Seconds that each step of starting may take.
START_SECONDS = 30.0
#: Seconds that a reload may take to reach the tracker.
RELOAD_SECONDS = 5.0
#: Seconds after which an actor that does not stop is taken for one that hangs. Stopping takes
#: milliseconds; on a machine with far too much to do it must not be taken for that.
STOP_SECONDS = 5.0
#: Seconds between two looks at how things are, when the watchdog does not ask for more.
STATUS_SECONDS: Final = 5.0
#: Objects that are new, collections of those, and of the older ones, after which Python looks for
#: cyclic garbage.
_COLLECT_AFTER: Final = (50_000, 20, 20)
#: Signs of life within the time that the watchdog allows.
_SIGNS: Final = 3


class SignalCame(NamedTuple):
    """A signal that asks for the end, or for a reload."""

    number: int


class ActorEnded(NamedTuple):
    """An actor handles no more messages."""

    name: str
    thread: threading.Thread


_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
Events = queue.SimpleQueue[SignalCame | ActorEnded]


def run(config: Config, reread: Callable[[], Config]) -> int:
    """Serve until a signal comes or an actor fails.

    Args:
        config: what to go by.
        reread: reads the configuration again, for a reload.

    Returns:
        The exit code (`trackd.config.exits`).

    Raises:
        StartError: the daemon cannot start.
    """
    events: Events = queue.SimpleQueue()
    notifier = Notifier(os.environ)
    closable = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN  # nohup
    if notifier.watchdog is not None:
        faulthandler.enable()  # the watchdog's SIGABRT then logs where each thread stood
    _take_signals(events)
    descriptor = listening_socket(os.environ, check_ipc_path(config.endpoint))
    with take_places(config, listening=descriptor is not None):
        overseer = Overseer(config, reread, events, notifier, closable=closable)
        return _serve(config, descriptor, overseer)


class Overseer:
    """The main thread's work while the actors serve: wait, reload, tell systemd how it goes."""

    def __init__(
        self,
        config: Config,
        reread: Callable[[], Config],
        events: Events,
        notifier: Notifier,
        *,
        closable: bool,
    ) -> None:
        """Take what the server has made.

        Args:
            config: what the daemon goes by.
            reread: reads the configuration again.
            events: what the signals and the actors tell.
            notifier: where to tell how it goes.
            closable: whether the daemon ends when its terminal is closed.
        """
        self.events = events
        self.notifier = notifier
        self._config = config
        self._reread = reread
        self._status = ""
        self._refused = ""  # what the last reload did not do
        self._had_terminal = closable and _has_terminal()

    def ask_reload(self) -> None:
        """Read the configuration again as soon as may be. Any thread."""
        self.events.put(SignalCame(signal.SIGHUP))

    def ended(self, name: str, thread: threading.Thread) -> None:
        """Take note of an actor's end. That actor's thread."""
        self.events.put(ActorEnded(name, thread))

    def wait(self, tracker: pykka.ActorRef[Any], probe: Probe | None) -> SignalCame | ActorEnded:
        """Return what ends the daemon; until then do all that is to be done."""
        interval = (self.notifier.watchdog or STATUS_SECONDS * _SIGNS) / _SIGNS
        while True:
            try:
                event = self.events.get(timeout=None if probe is None else interval)
            except queue.Empty:
                if probe is not None and self.prove(probe, interval):
                    self.notifier.alive()
                continue
            if not isinstance(event, SignalCame) or event.number != signal.SIGHUP:
                return event
            if self._had_terminal and not _has_terminal():
                return event  # not a request to reload: the terminal was closed
            self.reload(tracker)
            if probe is not None and self.prove(probe, interval):
                self.notifier.alive()

    def prove(self, probe: Probe, seconds: float) -> bool:
        """Send a request through the whole daemon; tell whether it came back."""
        counts = probe.trip(seconds, give_up=lambda: not self.events.empty())
        if counts is None:
            return False
        parts = [
            f"claimed {counts['claimed_desired']} of {counts['desired']} desired",
            f"{counts['inflight']} in flight",
            f"{counts['sessions']} sessions",
        ]
        if undesired := counts["claimed"] - counts["claimed_desired"]:
            parts.append(f"{undesired} claimed that are not desired")
        if counts["waiting"]:
            parts.append(f"{counts['waiting']} waiting")
        if str(counts["store"]).startswith("failing"):
            parts.append(f"store {counts['store']}")
        if self._refused:
            parts.append(self._refused)
        status = ", ".join(parts)
        if status != self._status:
            self._status = status
            self.notifier.status(status)
        return True

    def reload(self, tracker: pykka.ActorRef[Any]) -> None:
        """Read the configuration again and change what can change; a wrong one changes nothing."""
        self.notifier.reloading()
        self._refused = ""
        try:
            config, changed, refused = live_part(self._config, self._reread())
            roles = Roles(config.admin_users, config.admin_groups)
            outcome = ReloadOutcome(
                tuple(each.name for each in changed),
                tuple((each.name, each.fixed) for each in refused),
            )
            tracker.ask(Reload(config, roles, outcome), timeout=RELOAD_SECONDS)
        except (ConfigError, ValueError) as error:
            log.error("reload refused; nothing changed", extra=fields(reason=str(error)))  # noqa: TRY400 - the reason says it all
            self._refused = "the last reload was refused, see the log"
            with contextlib.suppress(pykka.ActorDeadError):
                tracker.tell(ReloadOutcome(error=str(error)))
        except (pykka.ActorDeadError, pykka.Timeout):
            log.exception("reload not done: the daemon does not answer itself")
        else:
            self._config = config
            set_level(config.log_level)
            for setting in refused:
                log.warning(
                    "setting not changed: it needs a restart",
                    extra=fields(setting=setting.name, reason=setting.fixed),
                )
            if refused:
                self._refused = f"not reloaded: {', '.join(each.name for each in refused)}"
            log.info("reloaded", extra=fields(changed=", ".join(each.name for each in changed)))
        self._status = ""
        self.notifier.ready()


def _serve(config: Config, descriptor: int | None, overseer: Overseer) -> int:
    """Start everything in order, wait, stop in reverse."""
    _seed_routing_ids()
    _calm_collector()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    actors: list[pykka.ActorRef[Any]] = []
    events = events_endpoint(config.endpoint)
    audience = Audience()
    probe: Probe | None = None
    listener: HttpListener | None = None
    notifier = overseer.notifier
    try:
        if config.http:  # what cannot be had is said before any agent is answered
            from trackd.http.listener import HttpListener

            listener = HttpListener(config, overseer.ended)
        tracker = TrackerActor.start(
            overseer.ended,
            context,
            config,
            boottime,
            audience=audience,
            ask_reload=overseer.ask_reload,
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
        serve = Serve(config.endpoint, ticker, watcher, publisher, events, descriptor)
        with _umask_for(config.socket_mode):
            if events:
                publisher.ask(Bind(events), timeout=START_SECONDS)
                _let_in(check_ipc_path(events), config, activated=descriptor is not None)
            tracker.ask(serve, timeout=START_SECONDS)
        if descriptor is None:
            check_ipc_path(config.endpoint).chmod(config.socket_mode)
        if notifier.wanted:
            probe = Probe(context, config.endpoint)
            if not overseer.prove(probe, START_SECONDS) and overseer.events.empty():
                log.critical("requests are not answered")
                return exits.FAILED
        if listener is not None:
            listener.start()
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
        if not config.state_dir:
            log.warning("state is kept in memory alone: a restart forgets who holds what")
        event = overseer.wait(tracker, probe)
        notifier.stopping()
        if isinstance(event, SignalCame):
            log.info("stopping", extra=fields(signal=signal.Signals(event.number).name))
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
    finally:
        if listener is not None and not listener.stop(STOP_SECONDS):
            _give_up(listener.name)
        if probe is not None:
            probe.close()
        _stop(actors, overseer.events)
        context.term()
        if descriptor is None:  # otherwise it is systemd's, and agents already wait there
            check_ipc_path(config.endpoint).unlink(missing_ok=True)
        if events:
            check_ipc_path(events).unlink(missing_ok=True)


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
    """End the process: a wedged actor holds its sockets, and nothing else frees them."""
    log.critical("an actor does not stop", extra=fields(actor=name))
    os._exit(exits.FAILED)


def _take_signals(events: Events) -> None:
    """Turn SIGTERM, SIGINT and SIGHUP into events from now on, until the process has ended.

    A handler would not do: Python runs it in the main thread alone, and a signal that comes
    just before that thread begins to wait is not seen until the wait ends. So the signals are
    blocked in every thread, and one thread takes them from the kernel.
    """

    def take() -> None:
        while True:
            events.put(SignalCame(signal.sigwait(_SIGNALS)))

    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    threading.Thread(target=take, name="signals", daemon=True).start()


@contextlib.contextmanager
def _umask_for(mode: int) -> Iterator[None]:
    """Let nobody connect between bind and chmod whom the socket's mode would keep out."""
    before = os.umask(0o777 & ~mode)
    try:
        yield
    finally:
        os.umask(before)


def _let_in(events: Path, config: Config, *, activated: bool) -> None:
    """Give the socket of events the permissions of the one that agents connect to."""
    if not activated:
        events.chmod(config.socket_mode)
        return
    like = check_ipc_path(config.endpoint).stat()
    if events.stat().st_gid == like.st_gid:
        events.chmod(stat.S_IMODE(like.st_mode))
    else:  # the unit forbids chown, whatever the group
        log.warning(
            "events are for the daemon's own user: its group is not that of the socket",
            extra=fields(gid=like.st_gid),
        )


def _seed_routing_ids() -> None:
    """Make the ROUTER's automatic ids hard to guess.

    libzmq draws them from libc's `rand`, which starts the same in every process, and aborts
    when a peer has chosen the id that comes next.
    """
    ctypes.CDLL(None).srand(int.from_bytes(os.urandom(4), "little"))


def _calm_collector() -> None:
    """Let Python look for cyclic garbage less often.

    A request leaves none behind, and a message of 10,000 proxies is that many lists for as long
    as it is handled: to look through them 14 times took half of its time.
    """
    gc.set_threshold(*_COLLECT_AFTER)


def _has_terminal() -> bool:
    """Tell whether the process has a terminal that controls it, and that is still there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True
