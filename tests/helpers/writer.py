"""The TrackerActor with its real store, but without threads and sockets: a test hands it messages.

A test decides where a batch ends, when the process dies, which statement of SQLite fails, what
time it is, and which processes live. Everything else is the real daemon.
"""

from __future__ import annotations

import functools
import itertools
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol
from unittest.mock import patch

import msgpack
import zmq

from trackd.actors.messages import Audience, ProcessExited, Recover, Serve, Sweep
from trackd.actors.writer import TrackerActor
from trackd.config.settings import Config
from trackd.operations.call import UNATTESTED, Attested, Call
from trackd.operations.runtime import FleetFacts
from trackd.sessions.identity import Peer, Process
from trackd.sessions.sessions import Session
from trackd.state.restore import restore, row_of
from trackd.state.state import State
from trackd.storage.database import Connect, connect
from trackd.storage.sqlite import SQLiteStore
from trackd.storage.store import Store
from trackd_client.wire.clock import boot_id
from trackd_client.wire.errors import ProtocolError
from trackd_client.wire.protocol import WireEvent, decode_reply

#: Never closed: a test that fails must not wait for what it left open.
_CONTEXT: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

CLUSTER = "example.com"
START = 5000.0
#: Gossip of two proxies.
ROWS = [["p1", "", 1, None], ["p2", "", 1, None]]


#: Facts about a leader of a fleet without hosts.
LEADER: Final = FleetFacts(
    "control-1", 412, list, lambda _host: None, lambda: None, list, lambda: None
)


class Clock:
    """A clock that a test moves."""

    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Host:
    """Which processes live, by pid, and when they started."""

    def __init__(self) -> None:
        self.alive: dict[int, int] = {}
        self._starts = itertools.count(1)

    def start(self, pid: int) -> Process:
        """Let a process begin; the pid may have belonged to another one."""
        self.alive[pid] = next(self._starts)
        return Process(pid, self.alive[pid])

    @contextmanager
    def seen(self) -> Iterator[None]:
        """Let the daemon see this host rather than the real one."""
        with (
            patch("trackd.operations.agents.start_time", self.alive.get),
            patch("trackd.actors.writer.start_time", self.alive.get),
        ):
            yield


class Sent(NamedTuple):
    """A reply that left the daemon."""

    route: bytes
    frame: bytes
    body: dict[str, Any]


class Recorder:
    """Stands for another actor, and keeps what is sent to it."""

    def __init__(self) -> None:
        self.messages: list[Any] = []

    def tell(self, message: Any) -> None:
        """Keep a message."""
        self.messages.append(message)


class Openable(Protocol):
    """What is stored, wherever that is: see `helpers.kept`."""

    def open(self) -> Store:
        """Open the store as the next process does."""

    def again(self) -> Store:
        """Open it once more, only to read it."""


class Desk:
    """One process of the daemon, from its start to its end.

    Attributes:
        sent: the replies that have left it, oldest first.
        actor: the real one; its thread is the test's.
        ticker: keeps what is sent to the ticker.
        watcher: likewise.
        publisher: likewise.
        audience: says whether somebody listens to events.
    """

    def __init__(
        self,
        directory: Path | None,
        clock: Callable[[], float],
        store_connect: Connect = connect,
        *,
        kept: Openable | None = None,
        cluster: str = CLUSTER,
        **settings: Any,
    ) -> None:
        """Start on what an earlier process has stored, short of binding a socket.

        Args:
            directory: of the SQLite store; None keeps everything in memory.
            clock: of the daemon.
            store_connect: opens the SQLite store.
            kept: opens the store instead, and once more to read it.
            cluster: the cluster.
            settings: others of the daemon.
        """
        config = Config(
            cluster_name=cluster,
            endpoint="ipc:///nowhere",
            state_dir="" if directory is None else str(directory),
            **settings,
        )
        self.sent: list[Sent] = []
        self.ticker, self.watcher, self.publisher = Recorder(), Recorder(), Recorder()
        self.audience = Audience()
        self._kept = kept
        self.actor = TrackerActor(
            lambda *_: None,
            _CONTEXT,
            config,
            clock,
            functools.partial(SQLiteStore, directory, boot_id(), store_connect)
            if kept is None
            else kept.open,
            audience=self.audience,
        )
        self.actor.mailbox._send = self._collect  # type: ignore[method-assign] # what left is looked at here
        try:
            self.actor.on_receive(Recover())
            with patch.object(self.actor.mailbox, "bind"):
                others: dict[str, Any] = {
                    "ticker": self.ticker,
                    "watcher": self.watcher,
                    "publisher": self.publisher,
                }
                self.actor.on_receive(Serve(config.endpoint, events="", **others))
        except BaseException:
            self.kill()
            raise

    def _collect(self, route: bytes, frame: bytes) -> bool:
        reply = decode_reply(frame)
        assert reply is not None
        self.sent.append(Sent(route, frame, reply.body))
        return True

    @property
    def state(self) -> State:
        """The present state, which a failed commit replaces."""
        return self.actor._state

    @property
    def ended(self) -> bool:
        """Whether the daemon has given itself up."""
        return self.actor._failed

    @property
    def sqlite(self) -> SQLiteStore:
        """The store, which is SQLite's unless the test has asked for another one."""
        assert isinstance(self.actor._store, SQLiteStore)
        return self.actor._store

    def lead(self, facts: FleetFacts = LEADER) -> None:
        """Let the daemon be the leader of a fleet, from now on."""
        self.actor._runtime.metrics.expect_hosts()
        self.actor._runtime.fleet = facts

    def fail_store(self, problem: str) -> None:
        """Let the daemon take the store for one that fails, from now on."""
        self.actor._runtime.store_problem = problem

    def send(
        self,
        body: dict[str, Any],
        peer: Peer | None,
        route: bytes = b"route",
        *,
        problem: ProtocolError | None = None,
        admin: bool | None = None,
        attested: Attested = UNATTESTED,
    ) -> None:
        """Hand over a request; its reply leaves with the batch."""
        call = Call(self.actor.mailbox._outbox, route, peer, body["seq"], body, problem)
        call.admin, call.attested = admin, attested
        call.set(self.actor.on_receive(call))

    def end_batch(self) -> list[Sent]:
        """Store the batch, and return what it sends."""
        before = len(self.sent)
        self.actor._end_batch()
        return self.sent[before:]

    def ask(
        self,
        body: dict[str, Any],
        peer: Peer | None,
        route: bytes = b"route",
        **more: Any,
    ) -> dict[str, Any] | None:
        """Make a batch of one request, and return its reply if there is one; see `send`."""
        self.send(body, peer, route, **more)
        replies = [sent.body for sent in self.end_batch() if sent.body["seq"] == body["seq"]]
        assert len(replies) < 2
        return replies[0] if replies else None

    def sweep(self) -> list[Sent]:
        """Do what time has brought about."""
        self.actor.on_receive(Sweep())
        return self.end_batch()

    def exited(self, process: Process) -> list[Sent]:
        """Let the kernel tell of an exit."""
        self.actor.on_receive(ProcessExited(process, self.actor.now()))
        return self.end_batch()

    def kill(self) -> None:
        """End the process silently: what is not in the store is gone."""
        if self.actor._store is not None:
            self.actor._store.close()
        self.actor.mailbox.close()

    def reloaded(self) -> State:
        """Return the state that a restart at this moment would find."""
        reader = self._read_only()
        reader.begin_reading()
        state = self.actor._empty_state()
        reader.row_of = functools.partial(row_of, state)
        restore(state, reader.rows, reader.batches(), reader.touch)
        reader.close()
        return state

    def _read_only(self) -> Store:
        """Return another store with the same content, which nobody writes to."""
        if self._kept is not None:
            return self._kept.again()
        copy = sqlite3.connect(":memory:", isolation_level=None)
        self.sqlite._db.backup(copy)
        return SQLiteStore(None, boot_id(), lambda _: copy)


def read_state(store: Store) -> State:
    """Return what is in a store that nobody writes to, and close it."""
    state = State(CLUSTER, history=10_000)
    store.begin_reading()
    restore(state, store.rows, store.batches(), store.touch)
    store.close()
    return state


class AgentOf:
    """A client of a `Desk` that keeps the rules of the protocol, unless it is told not to.

    It runs on the host of its process, which attests it when it is not the daemon's own.
    """

    def __init__(self, number: int, process: Process | None = None, uid: int = 1000) -> None:
        self.token = number.to_bytes(16, "big")
        self.process = process
        pid, host = (0, "") if process is None else (process.pid, process.host)
        self.peer = Peer(uid, uid, pid, host)
        self.attested = Attested(process, "relayed") if host else UNATTESTED
        self.numbers = itertools.count(1)

    def body(self, op: str, **fields: Any) -> dict[str, Any]:
        """Return a request with the next number; nothing is done unless `fields` say so."""
        seq = fields.pop("seq", None) or next(self.numbers)
        return {"op": op, "seq": seq, "token": self.token, **fields}

    def ask(self, desk: Desk, op: str, **fields: Any) -> dict[str, Any]:
        """Make a request that is answered at once."""
        reply = desk.ask(self.body(op, **fields), self.peer, attested=self.attested)
        assert reply is not None, f"{op} was not answered"
        return reply

    def session(self, desk: Desk) -> Session:
        """Return its open session, as the daemon has it."""
        return desk.state.sessions.by_token[self.token]


def open_session(desk: Desk, host: Host, number: int) -> AgentOf:
    """Return another agent, whose session is open."""
    agent = AgentOf(number, host.start(100 + number))
    agent.ask(desk, "open")
    return agent


def sqlite_error(code: int, message: str) -> sqlite3.Error:
    """Return an error as SQLite raises it, with its code."""
    error = sqlite3.OperationalError(message)
    error.sqlite_errorcode = code
    return error


class Faults:
    """Makes statements of SQLite fail: as `connect` of a store, it gives connections that do.

    Attributes:
        statements: what has been executed so far.
        fail: numbers of the statements that fail, counted from 1.
        writes: whether nothing can be stored from now on, as on a disk that has become full.
        late: whether the statement is executed before the error is told.
        error: what is raised; a full disk unless it is replaced.
    """

    def __init__(self) -> None:
        self.statements: list[str] = []
        self.fail: set[int] = set()
        self.writes = False
        self.late = False
        self.error = sqlite_error(sqlite3.SQLITE_FULL, "database or disk is full")

    def __call__(self, path: str) -> sqlite3.Connection:
        faults = self

        class Faulty(sqlite3.Connection):
            def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
                with faults.around(sql):
                    return super().execute(sql, parameters)

            def executescript(self, sql_script: str, /) -> sqlite3.Cursor:
                with faults.around(sql_script):
                    return super().executescript(sql_script)

        return sqlite3.connect(path, isolation_level=None, timeout=0.0, factory=Faulty)

    @contextmanager
    def around(self, sql: str) -> Iterator[None]:
        """Count a statement, and fail it when it is its turn."""
        self.statements.append(sql)
        stores = sql.startswith("INSERT INTO journal")
        fails = (self.writes and stores) or len(self.statements) in self.fail
        if fails and not self.late:
            raise self.error
        yield
        if fails:
            raise self.error


def observe(state: State) -> dict[str, Any]:
    """Return all of a state that must survive a restart, but for what requests are done."""
    tracker = state.tracker
    return {
        "revision": state.revision,
        "epoch": state.epoch,
        "tracker_id": state.tracker_id,
        "cluster": state.cluster,
        "connection_count": tracker.connection_count,
        "last_lease": tracker.last_lease,
        "last_session": state.sessions.last_id,
        "proxies": {proxy.name: proxy for proxy in tracker},
        "groups": tracker.groups(),
        "counts": (
            *(tracker.inflight, tracker.claimed_count, tracker.claimed_desired_count),
            tracker.claimed_terminating_count,
            tracker.offered_desired_count,
        ),
        "marks": dict(tracker.marks.by_name),
        "terminating": {proxy.name for proxy in tracker if tracker.is_marked(proxy.name)},
        "addresses": dict(tracker.targets.by_name),
        "aims": dict(tracker.targets.aims),
        "trust": tracker.targets.trust,
        "aimable": {
            name: (queue.cohort.group, queue.cohort.generation, entry)
            for name, (queue, entry) in tracker.targets._entries.items()
        },
        "leases": {
            lease: (
                held.session.token,
                tracker.lease_name(lease),
                held.granted,
                held.wall,
                list(held.principals),
                (tracker.is_offered(lease), held.session.offered == lease),
            )
            for lease, held in state.leases.items()
        },
        "tracker_leases": dict(tracker.leases),
        "follows": dict(state.aliases.by_lease),
        "reporting": {life.lease: life.stale for life in state.lives.by_lease.values()},
        "stale": state.lives.stale,
        "in_flight": sorted(state.in_flight),  # whose time is up first is not durable
        "sessions": {
            session.token: (
                session.id,
                session.peer,
                session.process,
                session.name,
                session.version,
                session.labels,
                session.command,
                session.opened,
                session.wall,
                sorted(session.leases),
                sorted(session.expired),
                sorted(session.parked),
                session.done.ranges,
                {seq: tuple(reply) for seq, reply in session.replies.items()},
                list(session.notices),
            )
            for session in state.sessions
        },
        "uses": {
            user: (use.sessions, use.leases, use.waiters)
            for user, use in state.sessions.users.items()
        },
        "ended": dict(state.sessions.ended),
        "sources": dict(state.sources._ended),
        "mentions": {
            proxy.name: (tracker.mentions.of(proxy.name).by, tracker.mentions.of(proxy.name).ttl)
            for proxy in tracker
        },
        "forgotten": dict(state.tombstones),
        "events": state.history.after(0, 1_000_000, 1 << 40, older=True),
        "budget": state.budget.level(),
        "last_served": state.queue.last_served,
        "pause": (state.reports_outcomes, state.backoff.pause),
        "paused": {
            token: None if session.backoff is None else session.backoff.pause
            for token, session in state.paused.items()
        },
        "waiters": [(waiter.session.token, waiter.seq, waiter.deadline) for waiter in state.queue],
    }


def told_by(events: Iterable[WireEvent]) -> dict[str, Any]:
    """Return the proxies, leases and sessions that whoever hears every event knows of."""
    proxies: dict[str, tuple[str, int]] = {}
    terminating: set[str] = set()
    addresses: dict[str, str] = {}
    leases: dict[int, tuple[int, str | None]] = {}
    sessions: set[int] = set()
    epoch = 0
    for _, _, _, kind, fields in events:
        match kind:
            case "daemon_started":
                epoch = fields["epoch"]
            case "session_opened":
                sessions.add(fields["session"])
            case "session_ended":
                sessions.remove(fields["session"])
            case "lease_granted":
                leases[fields["lease"]] = fields["session"], None
            case "proxy_claimed":
                assert leases[fields["lease"]] == (fields["session"], None)
                leases[fields["lease"]] = fields["session"], fields["name"]
            case "lease_renamed":
                assert leases[fields["lease"]] == (fields["session"], fields["before"])
                assert fields["before"] not in proxies
                leases[fields["lease"]] = fields["session"], fields["name"]
            case "lease_offered":
                assert leases[fields["lease"]] == (fields["session"], fields["name"])
            case "lease_released":
                assert leases.pop(fields["lease"]) == (fields["session"], fields["name"])
            case "proxy_tracked":
                assert fields["name"] not in proxies
                proxies[fields["name"]] = fields["group"], fields["generation"]
            case "proxy_changed":
                old = fields["old_group"], fields["old_generation"]
                assert proxies[fields["name"]] == old
                proxies[fields["name"]] = fields["group"], fields["generation"]
            case "proxy_expired" | "proxy_forgotten":
                gone = fields["group"], fields["generation"]
                assert proxies.pop(fields["name"]) == gone
                terminating.discard(fields["name"])
                addresses.pop(fields["name"], None)
            case "proxy_addressed":
                name, address = fields["name"], fields["address"]
                assert name in proxies
                assert addresses.get(name) != address, "it is no change"
                addresses[name] = address
                if address is None:
                    del addresses[name]
            case "proxy_marked":
                assert fields["name"] in proxies
                assert (fields["name"] in terminating) != fields["terminating"], "it is no change"
                terminating ^= {fields["name"]}
            case "dial_failed":
                assert leases[fields["lease"]][0] == fields["session"]
            case "lease_stale":
                assert leases[fields["lease"]] == (fields["session"], fields["name"])
            case _:
                others = {"connection_count", "dials_paused", "dials_resumed"}
                assert kind in others, f"an event of which nobody knows: {kind}"
    return {
        "proxies": proxies,
        "terminating": terminating,
        "addresses": addresses,
        "leases": leases,
        "sessions": sessions,
        "epoch": epoch,
    }


def assert_same_after_reload(now: State, reloaded: State) -> None:
    """Check that a restart forgets nothing, and makes nothing up."""
    found, wanted = observe(reloaded), observe(now)
    differ = {name for name in wanted if found[name] != wanted[name]}
    assert not differ, {name: (found[name], wanted[name]) for name in differ}


def through_msgpack(value: Any) -> Any:
    """Return a value as the store gives it back."""
    return msgpack.unpackb(msgpack.packb(value), strict_map_key=False)
