"""A state, what decides about it, and its store, in memory, without an actor."""

from __future__ import annotations

import functools
import sqlite3
from typing import Any

import msgpack

from helpers.writer import CLUSTER, Clock, assert_same_after_reload
from trackd.config.settings import Config
from trackd.operations.replies import Replies
from trackd.sessions.identity import Peer, Process
from trackd.sessions.sessions import Session
from trackd.state import gossip
from trackd.state.changes import pack
from trackd.state.counters import Metrics
from trackd.state.decide import Decisions
from trackd.state.events import pack_events
from trackd.state.restore import add_events, restore, row_of
from trackd.state.state import State
from trackd.storage.sqlite import SQLiteStore
from trackd_client.wire.protocol import decode_reply


class World:
    """A state, what decides about it, and its store, in memory."""

    def __init__(self, **settings: Any) -> None:
        self.clock = Clock()
        self.settings = settings
        self.metrics = Metrics()
        self.sent: list[tuple[bytes, dict[str, Any]]] = []
        self.store = SQLiteStore(None, "boot")
        self.clients = 0
        self.begin(self.read(self.store), "tracker")
        #: Whoever gossips; it is at no daemon, and holds nothing.
        self.gossip = Session(0, b"", Peer(0, 0, 0), None, "", "", {}, 0.0, 0.0)

    def config(self, **settings: Any) -> Config:
        return Config(cluster_name=CLUSTER, **{**self.settings, **settings})

    def read(self, store: SQLiteStore, **settings: Any) -> State:
        state = State(CLUSTER, history=self.config(**settings).history)
        store.begin_reading()
        store.row_of = functools.partial(row_of, state)
        restore(state, store.rows, store.batches(), store.touch)
        return state

    def begin(self, state: State, tracker_id: str) -> None:
        self.state = state
        self.stored = state.revision
        known = state.configured_count is not None
        self._decide = Decisions(
            state, self.config(), self.metrics, self.store.touch, lambda: 1.7e9 + self.clock.now
        )
        self.replies = Replies(self._decide, self.deliver, 1024)
        self.decide.begin_epoch(tracker_id, state.tracker.connection_count if known else None)

    @property
    def decide(self) -> Decisions:
        """The decisions, at the present moment."""
        self._decide.begin(self.clock.now)
        return self._decide

    @property
    def delivered(self) -> list[tuple[bytes, dict[str, Any]]]:
        """The replies to parked requests so far."""
        self.replies.settle(stores=True)
        return self.sent

    def deliver(self, route: bytes, frame: bytes) -> None:
        reply = decode_reply(frame)
        assert reply is not None
        self.sent.append((route, reply.body))

    # what a test does

    def open(self, process: Process | None = None, uid: int = 1000) -> Session:
        self.clients += 1
        token = self.clients.to_bytes(16, "big")
        pid = 0 if process is None else process.pid
        return self.decide.open_session(
            token, Peer(uid, uid, pid), process, "name", "1", {"a": "b"}, "agent"
        )

    def track(self, *names: str, generation: int = 1, ttl: float | None = None) -> int:
        return gossip.track(
            self.decide, self.gossip, [(name, "", generation, ttl) for name in names]
        )

    def acquire(self, session: Session) -> int:
        lease = self.decide.try_acquire(session)
        assert lease is not None
        return lease

    def commit(self) -> None:
        self.replies.settle(stores=True)
        batch = self._decide.take()
        if batch:
            self.store.append(pack(batch))
            packed = pack_events(batch, self.stored + 1)
            if packed:
                add_events(self.state, self.stored + 1, packed, batch[-1].at, self.store.touch)
            self.stored = self.state.revision

    def take_checkpoint(self) -> None:
        """Move everything into the checkpoint, as many small steps would."""
        self.commit()
        self.store._checkpoint._rows_since = 10**9
        while self.store.has_work:
            self.store.step()

    @property
    def checkpoint(self) -> set[tuple[str, Any]]:
        """The keys of the checkpoint."""
        rows = self.store._db.execute("SELECT kind, key FROM state")
        return {(kind, msgpack.unpackb(key, use_list=False)) for kind, key in rows}

    def tracked_in_checkpoint(self) -> set[str]:
        """Return the names of the proxies in the checkpoint."""
        return {
            name for _, found in self.store.rows("names") for _, _, names in found for name in names
        }

    def reloaded(self, **settings: Any) -> State:
        """Return what a restart would find, with other settings if need be."""
        self.commit()
        copy = sqlite3.connect(":memory:", isolation_level=None)
        self.store._db.backup(copy)
        return self.read(SQLiteStore(None, "boot", lambda _: copy), **settings)

    def restart(self, **settings: Any) -> None:
        self.commit()
        self.settings.update(settings)
        self.begin(self.read(self.store), "another tracker")
        for session in self.state.sessions:
            self.decide.note_sign_of_life(session)

    def check(self) -> None:
        """Check that a restart would find what is here, from the journal and from a checkpoint."""
        assert_same_after_reload(self.state, self.reloaded())
        self.take_checkpoint()
        assert_same_after_reload(self.state, self.reloaded())


def session_of(state: State, session: Session) -> Session:
    """Return the same session in a state after a restart."""
    return state.sessions.by_token[session.token]
