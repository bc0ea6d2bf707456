"""`trackd lead`: the process of a candidate. It stands by, leads for one term, and ends.

While it leads it runs the tracker of the fleet, whose journal is in etcd. Nothing is restarted in
the process: when its term is over, the process ends with an exit code of its own, and whoever
supervises it starts the next candidate, which stands by. What a former leader still has in memory
is used no more.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pykka
import zmq

from trackd.actors.messages import Ping, Recover, Serve
from trackd.actors.ticker import ExpiryTicker
from trackd.config import exits
from trackd.config.settings import Config, ConfigError, live_part
from trackd.fleet.authentication import Authentication, HostKeys
from trackd.fleet.election import Candidate, Term
from trackd.fleet.etcd import Etcd
from trackd.fleet.fenced import Fence, read
from trackd.fleet.hosts import Hosts
from trackd.fleet.inspector import Inspector
from trackd.fleet.keys import KeyFileError, KeyPair, read_secret
from trackd.fleet.leader import LeaderActor
from trackd.fleet.mailbox import FleetMailbox
from trackd.fleet.presence import Presence
from trackd.fleet.store import EtcdStore, last_stamp
from trackd.host.logs import fields, flush
from trackd.host.systemd import Notifier
from trackd.operations.dispatch import COSTLY
from trackd.overseer import Overseer
from trackd.signals import ActorEnded, Events, SignalCame, name_signal, take_signals
from trackd.storage.store import DeposedError, StoreError
from trackd_client.core.limited_log import LimitedLog
from trackd_client.wire.clock import boot_id, boottime
from trackd_client.wire.places import escape

log = logging.getLogger("trackd.fleet")

#: Seconds that reading what is stored may take, and each other step of the start.
_READ_SECONDS: Final = 300.0
_START_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 5.0
#: Seconds that a member of etcd has to say how it is.
_INSPECT_SECONDS: Final = 2.0
#: Seconds between two looks at whether the term lasts.
_LOOK_SECONDS: Final = 0.25
#: The part of a term's remaining time within which nothing is said any more.
_MARGIN: Final = 0.2


def check(config: Config) -> None:
    """Check that a candidate has all that it needs.

    Raises:
        ConfigError: something is missing; all of it is named.
    """
    wanted = {
        "etcd_endpoints": 'the members of etcd, such as ["10.0.0.1:2379"]',
        "listen": 'where relays reach this host, such as "10.0.0.1:7717"',
        "key_file": "the secret key of this host; `trackd keys make NAME` makes one",
        "hosts_dir": "the directory of the public keys of the hosts that may connect",
    }
    problems = [
        f"[fleet] {name} is missing: {what}"
        for name, what in wanted.items()
        if not getattr(config, name)
    ]
    if bool(config.etcd_cert) != bool(config.etcd_key) or (config.etcd_cert and not config.etcd_ca):
        problems.append("[fleet] etcd_cert, etcd_key and etcd_ca belong together")
    if not config.state_dir:
        problems.append("state_dir is empty: a candidate notes its lease there")
    if problems:
        raise ConfigError(problems)


def name_of(config: Config) -> str:
    """Return the name of a fleet: its cluster, and its ring if it has one."""
    return f"{config.cluster_name}@{config.ring}" if config.ring else config.cluster_name


def run(config: Config, reread: Callable[[], Config]) -> int:
    """Stand by, lead for one term, and return the exit code.

    Args:
        config: the settings.
        reread: reads the configuration again, for a reload.

    Raises:
        StartError: this host cannot be a candidate.
    """
    check(config)
    own, keys = read_secret(Path(config.key_file)), HostKeys(Path(config.hosts_dir))
    for problem in keys.problems:
        log.warning("a key is worth nothing", extra=fields(reason=problem))
    return _Process(config, reread, own, keys).run()


class _Process:
    """What the main thread of a candidate knows."""

    def __init__(
        self, config: Config, reread: Callable[[], Config], own: KeyPair, keys: HostKeys
    ) -> None:
        self._config = config
        self._own = own
        self._keys = keys
        self._host = Path(config.key_file).stem
        self._prefix = f"trackd/1/{name_of(config)}/".encode()
        self._events: Events = queue.SimpleQueue()
        self._notifier = Notifier(os.environ)
        self._reread_settings = reread
        self._deposed = threading.Event()
        self._yields = threading.Event()
        self._read = 0  # how much of the state, for the watchdog

    def _reread(self) -> Config:
        """Read the settings and the keys of hosts again."""
        try:
            self._keys.reload()
        except KeyFileError as error:
            raise ConfigError([str(error)]) from None
        return self._reread_settings()

    def _etcd(self, timeout: float) -> Etcd:
        config = self._config

        def path(text: str) -> Path | None:
            return Path(text) if text else None

        try:
            return Etcd(
                config.etcd_endpoints,
                ca=path(config.etcd_ca),
                cert=path(config.etcd_cert),
                key=path(config.etcd_key),
                timeout=timeout,
            )
        except OSError as error:
            raise exits.UnusableError(
                f"cannot read {error.filename}: {exits.reason_of(error)}"
            ) from None

    def run(self) -> int:
        take_signals(self._events)
        directory = Path(self._config.state_dir)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise exits.UnusableError(
                f"cannot make {directory}: {exits.reason_of(error)}"
            ) from None
        candidate = Candidate(
            self._etcd,
            self._prefix,
            f"{self._host} {self._config.listen}".encode(),
            ttl=self._config.leader_ttl,
            directory=directory,
            name=escape(name_of(self._config)),
        )
        ttl = self._config.leader_ttl
        with candidate, Presence(self._etcd(ttl / 3), self._prefix, self._host, ttl) as presence:
            term = self._stand_by(candidate)
            if term is None:
                return exits.OK
            try:
                return self._lead(term, presence)
            except DeposedError as error:
                log.critical("the term is over", extra=fields(reason=str(error)))
                return exits.DEPOSED
            except StoreError as error:
                raise exits.StartError(f"cannot read the state in etcd: {error}") from None

    # -- standing by --------------------------------------------------------------------

    def _stand_by(self, candidate: Candidate) -> Term | None:
        """Return the term of this host, or None when a signal has ended the waiting."""
        found: list[Term | None] = []
        campaign = threading.Thread(
            target=lambda: found.append(candidate.campaign()), name="campaign", daemon=True
        )
        log.info("candidate", extra=fields(host=self._host, fleet=name_of(self._config)))
        campaign.start()
        self._notifier.ready()
        self._notifier.status("standing by")
        while campaign.is_alive():
            event = self._next_event()
            if isinstance(event, SignalCame) and event.number != signal.SIGHUP:
                log.info("stopping", extra=fields(signal=name_signal(event.number)))
                candidate.stop()
                campaign.join()
                return None  # also when it was elected just now: the lease is ended
            if event is not None:
                self._reload()
            self._notifier.alive()
        if not found:
            raise exits.StartError("the election has failed; see the log")
        return found[0]

    def _reload(self) -> None:
        """Read the settings and keys again, while there is no tracker that would take them."""
        self._notifier.reloading()
        try:
            self._config, _, _ = live_part(self._config, self._reread())
        except ConfigError as error:
            log.error("reload refused", extra=fields(reason="; ".join(error.problems)))  # noqa: TRY400 - the reason says it all
        self._notifier.ready()

    def _next_event(self) -> SignalCame | ActorEnded | None:
        with contextlib.suppress(queue.Empty):
            return self._events.get(timeout=_LOOK_SECONDS)
        return None

    # -- leading ------------------------------------------------------------------------

    def _lead(self, term: Term, presence: Presence) -> int:
        config, began = self._config, time.monotonic()
        etcd = self._etcd(config.leader_ttl / 5)
        leads = functools.partial(term.is_valid, _MARGIN * config.leader_ttl)
        last = read(lambda: last_stamp(etcd, self._prefix), leads)
        clock = presence.lead(last)
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        store = functools.partial(
            EtcdStore,
            etcd,
            self._prefix,
            Fence(term.key, term.fence),
            leads,
            mark_path=Path(config.state_dir) / f"{escape(name_of(config))}.mark",
            boot_id=boot_id(),
            stamp=lambda: clock.stamp(boottime(), time.time()),
            note_read=self._count_read,
        )
        overseer = Overseer(config, self._reread, self._events, self._notifier, closable=True)
        self._notifier.status(f"reading the state, term {term.fence}")
        actors: list[pykka.ActorRef[Any]] = []
        authentication = Authentication(context, self._keys)
        inspector = Inspector(self._etcd(_INSPECT_SECONDS), self._prefix, self._host)
        inspector.start()
        try:
            self._start(
                actors, context, overseer, term, lambda: clock.now(boottime()), store, inspector
            )
            self._notifier.status(f"leading, term {term.fence}")
            log.info(
                "leads",
                extra=fields(
                    host=self._host,
                    term=term.fence,
                    listen=config.listen,
                    seconds=round(time.monotonic() - began, 3),
                ),
            )
            return self._oversee(term, actors, overseer)
        except (zmq.ZMQError, OSError) as error:
            raise exits.UnusableError(f"cannot listen on {config.listen}: {error}") from None
        except (pykka.ActorDeadError, pykka.Timeout):
            log.exception("an actor did not start")
            return exits.DEPOSED if self._deposed.is_set() else exits.FAILED
        except DeposedError as error:
            log.critical("the term is over", extra=fields(reason=str(error)))
            return exits.DEPOSED
        finally:
            if not term.is_valid():
                # Nothing may be said or written any more, whatever the threads are at.
                flush()
                os._exit(exits.DEPOSED)
            self._stop(actors)
            inspector.stop()
            authentication.close()
            context.destroy(linger=200)

    def _count_read(self) -> None:
        self._read += 1

    def _start(
        self,
        actors: list[pykka.ActorRef[Any]],
        context: zmq.Context[zmq.Socket[bytes]],
        overseer: Overseer,
        term: Term,
        clock: Callable[[], float],
        store: Callable[[], EtcdStore],
        inspector: Inspector,
    ) -> None:
        config, ended = self._config, overseer.ended
        mailbox = FleetMailbox(
            context,
            config.max_frame,
            COSTLY,
            own=self._own,
            keys=self._keys,
            hosts=Hosts(config.host_ttl),
            admins=config.admin_hosts,
            term=term.fence,
            clock=clock,
            log=LimitedLog(log),
        )
        tracker = LeaderActor.start(
            ended,
            context,
            config,
            clock,
            store,
            mailbox=mailbox,
            keys=self._keys,
            term=term.fence,
            host=self._host,
            inspector=inspector,
            deposed=self._deposed.set,
            yield_lead=self._yields.set,
            ask_reload=overseer.ask_reload,
        )
        actors.append(tracker)
        wait_while_it_reads(
            tracker.ask(Recover(), block=False),
            count=lambda: self._read,
            alive=self._notifier.alive,
            leads=term.is_valid,
        )
        actors.append(ticker := ExpiryTicker.start(ended, tracker, clock))
        serve = Serve(f"tcp://{config.listen}", ticker, None, None, "")
        tracker.ask(serve, timeout=_START_SECONDS)

    def _oversee(self, term: Term, actors: list[pykka.ActorRef[Any]], overseer: Overseer) -> int:
        """Wait until the term is over, a signal ends it, or an actor fails."""
        tracker = actors[0]
        answered = tracker.ask(Ping(), block=False)
        while term.is_valid():
            event = self._next_event()
            if self._yields.is_set():  # its reply has left, or leaves when the actors are stopped
                self._notifier.stopping()
                log.info("another candidate shall lead", extra=fields(term=term.fence))
                return exits.DEPOSED
            if isinstance(event, ActorEnded):
                if self._deposed.is_set():
                    return exits.DEPOSED
                log.critical("actor ended by itself", extra=fields(actor=event.name))
                self._events.put(event)
                return exits.FAILED
            if event is not None and event.number != signal.SIGHUP:
                self._notifier.stopping()
                log.info("stopping", extra=fields(signal=name_signal(event.number)))
                return exits.OK
            if event is not None:
                overseer.reload(tracker)
            with contextlib.suppress(pykka.Timeout):
                answered.get(timeout=0)
                self._notifier.alive()
                answered = tracker.ask(Ping(), block=False)
        log.critical("the term is over; the process ends", extra=fields(term=term.fence))
        return exits.DEPOSED

    def _stop(self, actors: list[pykka.ActorRef[Any]]) -> None:
        """Stop the actors, the last one first; the tracker stores and answers what it has."""
        for actor in reversed(actors):
            with contextlib.suppress(pykka.ActorDeadError, pykka.Timeout):
                actor.stop(timeout=_STOP_SECONDS)


def wait_while_it_reads(
    answered: pykka.Future[Any],
    *,
    count: Callable[[], int],
    alive: Callable[[], None],
    leads: Callable[[], bool],
) -> None:
    """Wait until the state is read, and show signs of life for as long as that goes on.

    Args:
        answered: is set when all is read.
        count: returns how much has been read so far.
        alive: shows that this process lives; called only when something was read since.
        leads: returns whether this process still leads.

    Raises:
        DeposedError: it does not.
        pykka.Timeout: it takes for too long.
    """
    until, seen = time.monotonic() + _READ_SECONDS, 0
    while True:
        try:
            answered.get(timeout=_LOOK_SECONDS)
        except pykka.Timeout:
            if not leads():
                raise DeposedError("the term is over, and the state was not read yet") from None
            if time.monotonic() > until:
                raise
        else:
            return
        if (read_now := count()) != seen:
            seen = read_now
            alive()
