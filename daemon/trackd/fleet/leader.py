"""LeaderActor: the TrackerActor of a fleet, for as long as this process leads.

It decides as the daemon of one host does. What differs is where agents are: on hosts whose relays
speak for them. So a process ends when its relay says so; and all of a host's have ended when its
relay says that the host has booted again, or when it is silent for `host_ttl`. Events go to the
relays, which publish them on their hosts.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import msgpack
import zmq

from trackd.actors.messages import Audience, Reload, Serve
from trackd.actors.supervised import OnEnd
from trackd.actors.unread import SMALL
from trackd.actors.writer import TrackerActor
from trackd.config.settings import Config
from trackd.fleet.authentication import HostKeys
from trackd.fleet.damping import GRACE, Damper
from trackd.fleet.hop import Events, Exited, Heard, Here, Leads, Moved, encode_answer
from trackd.fleet.hosts import Host
from trackd.fleet.inspector import Inspector
from trackd.fleet.mailbox import FleetMailbox, HostSaid
from trackd.host.logs import fields
from trackd.operations.agents import hello
from trackd.operations.runtime import FleetFacts
from trackd.rules.tracker import Tracker
from trackd.sessions.identity import Process
from trackd.sessions.sessions import Session
from trackd.state import changes
from trackd.state.changes import Moment
from trackd.state.timers import SWEEP_INTERVAL
from trackd.storage.store import DamagedError, DeposedError, OpenStore, StoreError
from trackd_client.wire.checks import more_of
from trackd_client.wire.requests import Hello

log = logging.getLogger("trackd.fleet")

#: Events in one message to the relays.
_EVENTS_A_MESSAGE: Final = 256
#: Events that a host has missed up to which it is sent them; beyond, who watches there asks itself.
_MOST_MISSED: Final = 10_000
#: Kinds of events by which something else is known of a proxy than its mentions said before.
_MOVING: Final = frozenset(
    {"proxy_changed", "proxy_expired", "proxy_forgotten", "proxy_marked", "proxy_addressed"}
)
#: Seconds between two words about what has moved: each goes to all hosts.
_MOVED_EACH: Final = 0.1
#: Mentions are damped twice, by the relay and here; each makes an expiry wrong by GRACE at most.
_LONGER: Final = 1 + 2 * GRACE


class LastingGossip:
    """The mentions that the leader takes in: those that say something new, with a longer TTL.

    All hosts together repeat each mention very often, and each would be a row in etcd.

    Attributes:
        sooner: names that expire much sooner since this batch.
        ignored: by the host of who said it in this batch, names of which it was not taken in: just
            after they were forgotten, while a word about terminating waits, or in a copy.
    """

    def __init__(self, config: Config) -> None:
        """Begin with nothing told."""
        self._default_ttl = config.proxy_expiry
        self._max_ttl = config.max_ttl
        self._damper = Damper(
            config.proxy_expiry, config.max_ttl, config.max_name, config.max_tracked
        )
        self.sooner: set[str] = set()
        self.ignored: dict[str, set[str]] = defaultdict(set)

    @contextmanager
    def due(
        self, rows: Sequence[Any], now: float, tracker: Tracker, host: str
    ) -> Generator[list[Any], None, None]:
        """Give a block the rows that say something new; it takes them in, or fails.

        Each lives longer than it says, since the next one may come later.

        Raises:
            ProtocolError: a row is not allowed.
        """
        due, taken = self._damper.due(rows, now), False
        try:
            yield [self._lengthened(*row) for row in due.rows]
            taken = True
        finally:
            self._damper.settle(due, now, taken=taken)
        self.sooner.update(due.sooner)
        ignored = [row[0] for row in due.rows if not _is_known(tracker, row)]
        if ignored:
            self._damper.forget(ignored)
            self.ignored[host].update(ignored)

    def note_copy(self, body: Mapping[str, Any], host: str) -> None:
        """Note a request of a host that was answered before: what it says was not taken in now."""
        if body.get("op") == "track_expected" and type(body.get("proxies")) is list:
            rows = [row for row in body["proxies"] if type(row) is list and row]
            self.ignored[host].update(row[0] for row in rows if type(row[0]) is str)

    def _lengthened(
        self, name: str, group: str, generation: int, ttl: float | None, *more: Any
    ) -> list[Any]:
        if ttl is None or ttl <= 0:
            ttl = self._default_ttl
        return [name, group, generation, min(ttl * _LONGER, self._max_ttl), *more]

    def follow(self, batch: Sequence[Moment]) -> None:
        """Let the next mention of what is not tracked any more be taken in."""
        for moment in batch:
            for change in moment.changes:
                if isinstance(change, changes.Expired):
                    self._damper.forget(row[0] for row in change.rows)
                elif isinstance(change, changes.Forgotten):
                    self._damper.forget([change.name])
                elif isinstance(change, changes.GroupForgotten):
                    self._damper.clear()


def _is_known(tracker: Tracker, row: list[Any]) -> bool:
    """Return whether a tracker knows of a proxy what a row says."""
    name, group, generation, *_ = row
    if not tracker.is_tracked(name) or tracker.place(name) != (group, generation):
        return False
    word = more_of(row).get("terminating")
    return word is None or word == (tracker.marks.get(name).said is not None)


def _moved(packed: Iterable[bytes]) -> list[str]:
    """Return the names of proxies of which events say something else than their mentions."""
    found = [msgpack.unpackb(each) for each in packed if b"proxy_" in each]
    return [about["name"] for _, _, _, kind, about in found if kind in _MOVING]


class LeaderActor(TrackerActor):
    """The actor."""

    # So no reply has a revision whose events its host was not told: all who watch there would ask
    # for them when this leader dies just now.
    events_first = True

    def __init__(
        self,
        on_end: OnEnd,
        context: zmq.Context[zmq.Socket[bytes]],
        config: Config,
        clock: Callable[[], float],
        open_store: OpenStore,
        *,
        mailbox: FleetMailbox,
        keys: HostKeys,
        term: int,
        host: str,
        inspector: Inspector,
        deposed: Callable[[], None],
        yield_lead: Callable[[], None],
        ask_reload: Callable[[], None],
    ) -> None:
        """Set up the actor; see TrackerActor.

        Args:
            on_end: as there.
            context: as there.
            config: as there.
            clock: returns seconds of the fleet clock.
            open_store: as there.
            mailbox: its inbox.
            keys: which hosts may connect.
            term: of this leader.
            host: the name of this host.
            inspector: looks after candidates and etcd.
            deposed: called when another candidate has the store.
            yield_lead: called when another candidate shall lead.
            ask_reload: as there.
        """
        self._hosts = mailbox.hosts
        self._fleet = mailbox
        self._keys = keys
        self._term = term
        self._deposed = deposed
        self._gone: set[Process] = set()  # that exited while the store failed
        self._processes: dict[str, set[Process]] = {}  # that have sessions, by host
        self._ended: dict[str, tuple[str, float]] = {}  # boot and `sent` of the last such word
        self._begin_to_listen: dict[str, Here] = {}  # hosts in this batch
        self._behind: set[str] = set()  # hosts that must be told once more that this leads
        self._moved: set[str] = set()  # names of which hosts must be told that they have moved
        self._moved_at = 0.0  # when they may be told again
        super().__init__(
            on_end,
            context,
            config,
            clock,
            open_store,
            audience=Audience(),
            ask_reload=ask_reload,
            mailbox=mailbox,
        )
        self._runtime.fleet = FleetFacts(
            host,
            term,
            self._rows_of_hosts,
            self._forget_host,
            yield_lead,
            inspector.candidates,
            inspector.health,
        )
        self._runtime.metrics.expect_hosts()
        self._runtime.damper = self._gossip = LastingGossip(config)

    def _handle(self, message: Any) -> None:
        if not isinstance(message, HostSaid):
            super()._handle(message)
            return
        if isinstance(message.word, Here):
            self._here(message.host, message.word, new=message.new)
        else:
            self._exited(message.host, message.word)
        self._serve_waiters()

    def _here(self, name: str, word: Here, *, new: bool) -> None:
        """Take in a sign of life, and answer it."""
        if new:
            log.info("host connected", extra=fields(host=name))
            for process in self._processes_of(name):
                if process.boot != word.boot:
                    self._end_sessions(process)
        host = self._hosts.get(name)
        if host is None:
            return
        host.listens = host.listens and word.events
        if word.ended and not self._end_host(name, word):
            return
        if word.events and not host.listens:
            self._begin_to_listen[name] = word
        if word.term == self._term and not new and not word.ended:
            said: Leads | Heard = Heard(self._term, self._moment, self._decide.revision, word.sent)
        else:
            said = Leads(self._term, self._about(name), word.sent)
        self._fleet.answer(host.connection, encode_answer(said))

    def _say_that_it_leads(self, host: Host) -> bool:
        """Tell a host anew all that it has to know of this leader; return False without room."""
        said = Leads(self._term, self._about(host.name))
        return self._fleet.say(host.connection, encode_answer(said))

    def _end_host(self, name: str, word: Here) -> bool:
        """End all sessions of a host whose relay has ended them; return whether they have ended.

        Older ones than the last such word may come late, over an earlier connection. What the host
        has opened since is not meant.
        """
        if self._runtime.store_problem is not None:
            return False  # it is not answered, and comes again
        boot, sent = self._ended.get(name, ("", 0.0))
        if boot != word.boot or sent < word.sent:
            self._ended[name] = word.boot, word.sent
            self._lose(name, "its relay has ended them, since it was cut off")
        return True

    def _about(self, name: str) -> dict[str, Any]:
        """Return what a relay has to know of this leader."""
        call: Any = None  # `hello` does not look at it
        return {
            **hello(self._context(), call, Hello()),
            "revision": self._decide.revision,
            "proxy_expiry": self._config.proxy_expiry,
            "max_ttl": self._config.max_ttl,
            "max_frame": self._config.max_frame,
            "host_ttl": self._hosts.ttl,
            "host": name,
            "processes": [(process.pid, process.start) for process in self._processes_of(name)],
        }

    def _exited(self, name: str, word: Exited) -> None:
        host = self._hosts.get(name)
        if host is not None:
            for pid, start in word.processes:
                self._end_sessions(Process(pid, start, name, host.boot))

    def _end_sessions(self, process: Process) -> int:
        """End the sessions of a process that has exited; while the store fails, later."""
        if self._runtime.store_problem is not None:
            self._gone.add(process)
        return super()._end_sessions(process)

    def _end_gone_sessions(self) -> None:
        """End the sessions of processes that exited while the store failed."""
        gone, self._gone = self._gone, set()
        for process in gone:
            self._end_sessions(process)

    def _processes_of(self, name: str) -> list[Process]:
        return list(self._processes.get(name, ()))

    def _watch(self, process: Process) -> None:
        """Note which processes of a host have sessions; its relay watches them."""
        if self._state.sessions.has_process(process):
            self._processes.setdefault(process.host, set()).add(process)
        elif (known := self._processes.get(process.host)) is not None:
            known.discard(process)

    def _sweep(self) -> None:
        super()._sweep()
        if self._runtime.store_problem is not None:
            return
        for name in self._hosts.silent(self._fleet.read_until):
            self._hosts.drop(name)
            self._lose(name, "it is silent")

    def _lose(self, name: str, why: str) -> None:
        """End all sessions of a host that is silent for too long, or was."""
        lost: list[Session] = [each for each in self._state.sessions if each.peer.host == name]
        log.warning("host lost", extra=fields(host=name, sessions=len(lost), reason=why))
        for session in lost:
            self._decide.end_session(session, "host_lost")

    def _forget_host(self, name: str) -> None:
        """Forget a host that has no connection: nothing is expected of it any more."""
        host = self._hosts.get(name)
        if host is not None and not host.connection:
            self._hosts.drop(name)

    def _next_due(self) -> float | None:
        due, silent = super()._next_due(), self._hosts.next_silent()
        if silent is not None and silent <= self._moment:  # not judged yet: not all was read
            silent = self._moment + SWEEP_INTERVAL
        moved = self._moved_at if self._moved else None
        return min((each for each in (due, silent, moved) if each is not None), default=None)

    def _reload(self, message: Reload) -> None:
        super()._reload(message)
        self._fleet.admins = frozenset(message.config.admin_hosts)
        self._runtime.damper = self._gossip = LastingGossip(message.config)
        known = self._keys.hosts
        for host in list(self._hosts):
            if host.name not in known:
                self._hosts.cut_off(host.name)
            else:
                self._behind.add(host.name)

    def _publish(self, store: Any, batch: list[Moment]) -> None:
        self._gossip.follow(batch)
        super()._publish(store, batch)

    def _send_events(self, revision: int, packed: list[bytes]) -> None:
        """Send events to the relays on whose hosts somebody listens; to all, what has moved."""
        self._tell([host for host in self._hosts if host.listens], revision, packed)
        self._moved.update(_moved(packed))
        self._say_what_moved()

    def _say_what_moved(self) -> None:
        """Tell all hosts of which proxies something else is known now; not too often."""
        if self._moved and self._moment >= self._moved_at:
            self._say_moved(self._hosts, self._moved)
            self._moved.clear()
            self._moved_at = self._moment + _MOVED_EACH

    def _say_moved(self, hosts: Iterable[Host], names: Iterable[str]) -> None:
        frame = encode_answer(Moved(self._term, [*names]))
        if len(frame) > SMALL:
            frame = encode_answer(Moved(self._term, []))
        for host in hosts:
            if host.connection and not self._fleet.say(host.connection, frame):
                self._behind.add(host.name)

    def _tell(self, hosts: Sequence[Host], revision: int, packed: list[bytes]) -> None:
        """Send events to some hosts; one without room for them begins to listen once more."""
        state = self._state
        for start in range(0, max(1, len(packed)) if hosts else 0, _EVENTS_A_MESSAGE):
            part = packed[start : start + _EVENTS_A_MESSAGE]
            last = revision - (len(packed) - start - len(part))
            frame = encode_answer(Events(self._term, state.epoch, state.tracker_id, last, part))
            for host in hosts:
                host.listens = host.listens and self._fleet.say(host.connection, frame)

    def _end_batch(self) -> None:
        gossip = self._gossip
        self._moved |= gossip.sooner
        gossip.sooner.clear()
        self._say_what_moved()  # so what is left has a timer in the future
        for name, names in gossip.ignored.items():  # before the replies
            if names and (host := self._hosts.get(name)) is not None:
                self._say_moved([host], names)
        gossip.ignored.clear()
        super()._end_batch()
        if self._failed:
            return
        for name in [*self._behind]:
            host = self._hosts.get(name)
            if host is None or not host.connection or self._say_that_it_leads(host):
                self._behind.discard(name)
        for name, word in self._begin_to_listen.items():  # after `leads`, and what is stored
            host = self._hosts.get(name)
            if host is not None:
                host.listens = True
                self._tell([host], self._published, self._missed(word))
        self._begin_to_listen.clear()

    def _missed(self, word: Here) -> list[bytes]:
        """Return the events that a host has missed; nothing if they are too many, or not kept."""
        count = self._published - word.revision
        if word.tracker_id != self._state.tracker_id or not 0 < count <= _MOST_MISSED:
            return []
        missed = list(self._state.history.newest(word.revision))
        return missed if len(missed) == count else []

    def _lose_batch(self, error: StoreError | DamagedError) -> None:
        self._runtime.damper = self._gossip = LastingGossip(self._config)
        self._behind.update(host.name for host in self._hosts)
        super()._lose_batch(error)

    def _serve(self, message: Serve) -> None:
        sessions = self._state.sessions
        for process in sessions.processes():
            self._watch(process)
        self._hosts.expect(sorted({each.peer.host for each in sessions}), self._moment)
        super()._serve(message)

    def _leave(self, error: DeposedError) -> None:
        self._deposed()
        super()._leave(error)

    def _rows_of_hosts(self) -> list[dict[str, Any]]:
        """Return a row for each host: its name, and what is known of it."""
        used: dict[str, int] = {}
        for session in self._state.sessions:
            used[session.peer.host] = used.get(session.peer.host, 0) + 1
        names = sorted({*self._keys.hosts, *used, *(host.name for host in self._hosts)})
        rows = []
        for name in names:
            host = self._hosts.get(name)
            rows.append(
                {
                    "host": name,
                    "connected": host is not None and bool(host.connection),
                    "heard": None if host is None else self._moment - host.heard,
                    "sessions": used.get(name, 0),
                    "admin": name in self._fleet.admins,
                    "key": name in self._keys.hosts,
                }
            )
        return rows
