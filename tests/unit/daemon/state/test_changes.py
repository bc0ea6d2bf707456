"""Every kind of change survives: applied live or replayed, states and events are the same.

Random histories run over the real state and the real store, with limits so small that a checkpoint
is always under way. After every batch a restart must find the living state and its events; a
commit may fail, and the process may die, between any two steps.
"""

from __future__ import annotations

import contextlib
import functools
import random
import sqlite3
import typing
from collections import Counter
from typing import Any

import msgpack
import pytest

from helpers.writer import Faults, observe
from trackd.config.settings import Config
from trackd.sessions.identity import Peer, Process
from trackd.sessions.sessions import Session
from trackd.state import changes, exactly_once, forgetting, gossip, timers
from trackd.state.changes import CODES, KINDS, Moment, pack, unpack
from trackd.state.counters import Metrics
from trackd.state.decide import Decisions
from trackd.state.events import count_events, derive_events, pack_events
from trackd.state.forgetting import forget_group
from trackd.state.restore import add_events, restore, row_of
from trackd.state.state import State
from trackd.storage import checkpoint as checkpoint_module
from trackd.storage.checkpoint import Checkpoint
from trackd.storage.sqlite import SQLiteStore
from trackd.storage.store import StoreError

NAMES = [f"p{i}" for i in range(8)]


class World:
    """A state with its decisions and a store in memory, without an actor."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.faults = Faults()
        self.store = SQLiteStore(None, "boot", self.faults)
        self.config = Config(
            cluster_name="example.com", claim_timeout=20.0, tunnel_timeout=25.0, history=300
        )
        self.now = 100.0
        self.tokens = 0
        self.kinds: Counter[str] = Counter()
        self.restart()

    def read(self, store: SQLiteStore) -> State:
        state = State("example.com", history=self.config.history)
        store.begin_reading()
        store.row_of = functools.partial(row_of, state)
        restore(state, store.rows, store.batches(), store.touch)
        return state

    def restart(self) -> None:
        """Let the process die, and start again."""
        self.state = self.read(self.store)
        wall = lambda: 1e9 + self.now  # noqa: E731 - it is short
        self.decide = Decisions(self.state, self.config, Metrics(), self.store.touch, wall)
        self.decide.begin(self.now)
        self.stored = self.state.revision
        known = self.state.configured_count is not None
        before = self.state.tracker.connection_count if known else None
        self.decide.begin_epoch("tracker", before)
        timers.restart_timers(self.decide)

    def end_batch(self) -> None:
        """Commit the batch, unless that fails; then the batch has never happened."""
        batch = self.decide.take()
        if not batch:
            return
        self.kinds.update(type(each).__name__ for moment in batch for each in moment.changes)
        if self.random.random() < 0.05:
            self.faults.fail = {len(self.faults.statements) + 1}
        try:
            self.store.append(pack(batch))
        except StoreError:
            self.restart()
            return
        packed = pack_events(batch, self.stored + 1)
        if packed:
            add_events(self.state, self.stored + 1, packed, batch[-1].at, self.store.touch)
        self.stored = self.state.revision
        self.decide.finished.clear()
        self.decide.noticed.clear()

    def steps(self) -> None:
        """Take some steps of the checkpoint, some of which fail."""
        for _ in range(self.random.randint(0, 4)):
            if self.random.random() < 0.1:
                self.faults.fail = {len(self.faults.statements) + self.random.randint(1, 4)}
            with contextlib.suppress(StoreError):
                self.store.step()
            self.faults.fail = set()

    def check(self) -> None:
        """Compare the living state with what a restart would find."""
        copy = sqlite3.connect(":memory:", isolation_level=None)
        self.store._db.backup(copy)
        assert observe(self.read(SQLiteStore(None, "boot", lambda _: copy))) == observe(self.state)

    def session(self) -> Session | None:
        every = list(self.state.sessions)
        return self.random.choice(every) if every else None

    def act(self) -> None:
        """Do one thing at random."""
        rng, decide, state = self.random, self.decide, self.state
        self.now += rng.choice((0.0, 0.1, 3.0))
        decide.begin(self.now)
        session, roll = self.session(), rng.random()
        if session is None or roll < 0.08:
            self.tokens += 1
            process = None if rng.random() < 0.5 else Process(rng.randint(1, 3), 7)
            peer = Peer(1000, 1000, 0 if process is None else process.pid)
            decide.open_session(
                self.tokens.to_bytes(16, "big"), peer, process, "name", "1", {"a": "b"}, "run"
            )
        elif roll < 0.12:
            decide.end_session(session, "closed", rng.choice((None, Peer(0, 0, 1))))
        elif roll < 0.35:
            ttl = rng.choice((None, None, 5.0, 40.0))
            rows = [
                (name, rng.choice(("", "g")), rng.randint(1, 2), rng.choice((ttl, ttl, 7.0)))
                for name in rng.sample(NAMES, rng.randint(1, len(NAMES)))
            ]
            said = {name: rng.random() < 0.6 for name in NAMES if rng.random() < 0.15}
            addresses = {
                name: rng.choice(("", "a:1", "a:1", f"{name}:1"))
                for name in NAMES
                if rng.random() < 0.3
            }
            gossip.track(decide, session, rows, said, addresses)
            if rng.random() < 0.5:
                gossip.track(decide, session, rows, said, addresses)
        elif roll < 0.37:
            forgetting.forget_proxy(decide, rng.choice(NAMES), Peer(0, 0, 1))
        elif roll < 0.38:
            forget_group(decide, rng.choice(("", "g")), rng.choice((None, 1)), Peer(0, 0, 1))
        elif roll < 0.5:
            self.answer(session, decide.try_acquire(session))
        elif roll < 0.6:
            seq = self.number(session)
            deadline = rng.choice((None, self.now + 4.0))
            decide.park(session, seq, deadline, b"route")
        elif roll < 0.75 and session.leases:
            lease = rng.choice(sorted(session.leases))
            decide.claim(session, lease, rng.sample([*NAMES, "alias"], rng.randint(1, 3)))
            self.answer(session, None)
            if rng.random() < 0.4:
                decide.retire(session, lease)
            if rng.random() < 0.4:
                decide.offer(session, lease)
        elif roll < 0.8 and session.leases:
            lease = rng.choice(sorted(session.leases))
            if rng.random() < 0.5:
                reason = rng.choice(("refused", "timeout", "auth", "rate", "other", "held"))
                decide.report(session, lease, reason, rng.choice((None, 3.0)))
            decide.release(session, lease)
        elif roll < 0.81 and session.leases:
            reports = [(lease, rng.choice((None, 0.1))) for lease in sorted(session.leases)]
            decide.tunnels.report(session, reports, self.now)
        elif roll < 0.83:
            decide.adopt(session, [rng.choice(NAMES)])
        elif roll < 0.86 and state.leases:
            decide.force_release(rng.choice(sorted(state.leases)), Peer(0, 0, 1))
        elif roll < 0.9:
            exactly_once.acknowledge(decide, session, [1, rng.randint(1, 30)])
        elif roll < 0.92:
            exactly_once.give_up(decide, session, rng.randint(1, 30))
        elif roll < 0.925:
            decide.pauses.resume((0, 1))
        elif roll < 0.94:
            decide.set_count(rng.randint(0, 3))
        elif roll < 0.96 and session.notices:
            decide.fetch(session)
        else:
            self.now += rng.choice((1.0, 30.0, 800.0))
            decide.begin(self.now)
            timers.sweep(decide)
        decide.end_offers()
        decide.serve_waiters()

    def number(self, session: Session) -> int:
        used = {*session.replies, *session.parked}
        return next(seq for seq in range(1, 10_000) if seq not in used and seq not in session.done)

    def answer(self, session: Session, lease: int | None) -> None:
        frame = b"frame %d" % self.random.randint(0, 9)
        exactly_once.remember(
            self.decide, session, self.number(session), frame, stored=True, lease=lease
        )


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a checkpoint begin after two batches, and write one row a step."""
    monkeypatch.setattr(checkpoint_module, "_DUE_ROWS", 2)
    monkeypatch.setattr(checkpoint_module, "_STEP_ROWS", 1)
    monkeypatch.setattr(checkpoint_module, "_STEP_SECONDS", -1.0)
    monkeypatch.setattr(checkpoint_module, "_HASTE", 0)
    monkeypatch.setattr(Checkpoint, "_haste", lambda _checkpoint: 1.0)


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("block", range(10))
def test_after_every_batch_of_random_histories_a_restart_finds_the_same(block: int) -> None:
    for seed in range(12 * block, 12 * block + 12):
        world = World(seed)
        for _ in range(40):
            for _ in range(world.random.randint(1, 3)):
                world.act()
            world.end_batch()
            if not world.decide.batch:  # otherwise the commit failed, and an epoch has begun
                world.steps()
                world.check()
            if world.random.random() < 0.05:
                world.restart()


@pytest.mark.usefixtures("small_steps")
def test_the_random_histories_hold_every_kind_of_change() -> None:
    kinds: Counter[str] = Counter()
    for seed in range(60):
        world = World(seed)
        for _ in range(60):
            world.act()
            world.end_batch()
        kinds += world.kinds
    never = {kind.__name__ for kind in KINDS.values()} - kinds.keys()
    assert never == {"Configured", "DialSpent", "Probed"}  # other settings, another caller


def example(kind: type[Any]) -> Any:
    """Return a change of a kind; its fields hold values of their types."""
    hints = typing.get_type_hints(kind)
    values: dict[Any, Any] = {bytes: b"t", int: 1, str: "s", float: 1.5, bool: True}
    fields = {name: values.get(hint, ()) for name, hint in hints.items()}
    fields |= {"by": (0, 7)} if isinstance(hints.get("by"), type(changes.By)) else {}
    if kind is changes.Tracked:
        fields |= {"rows": (("p", "g", 1, None),), "changed": (0,), "leaves": (1,)}
    if kind is changes.Marked:
        fields |= {"rows": (("p", 7.5, None),), "flipped": (("p", True),)}
    if kind is changes.Addressed:
        fields |= {"rows": (("p", "a:1", 0, 1.5, 0, None), ("q",)), "changed": (("p", "a:1"),)}
    if kind is changes.Expired:
        fields |= {"rows": (("p", "g", 1),)}
    if kind is changes.GroupForgotten:
        fields |= {"rows": (("p", 1),)}
    for name in ("labels", "notice"):
        if name in hints:
            fields[name] = {"key": "value"}
    return kind(**fields)


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.__name__)
def test_a_change_comes_back_from_the_journal_as_it_was(kind: type[Any]) -> None:
    change = example(kind)
    ((at, wall, (again,)),) = unpack(pack([Moment(1.5, 2.5, [change])]))
    assert (at, wall, type(again)) == (1.5, 2.5, kind)
    assert pack([Moment(1.5, 2.5, [again])]) == pack([Moment(1.5, 2.5, [change])])
    assert list(again.edits()) is not None
    assert count_events(again) == len(list(derive_events(again)))


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.__name__)
def test_no_token_is_in_an_event(kind: type[Any]) -> None:
    change = example(kind)._replace(**({"token": b"SECRET"} if "token" in kind._fields else {}))
    packed = pack_events([Moment(1.0, 2.0, [change])], 1)
    assert not any(b"SECRET" in event for event in packed)


def test_codes_are_those_of_the_files_that_exist() -> None:
    assert {kind.__name__: code for kind, code in CODES.items()} == {
        "EpochBegan": 1,
        "CountSet": 2,
        "Configured": 3,
        "Probed": 4,
        "SessionOpened": 10,
        "SessionEnded": 11,
        "EndedDropped": 12,
        "Replied": 13,
        "Acknowledged": 14,
        "Parked": 15,
        "Unparked": 16,
        "Notified": 17,
        "Fetched": 18,
        "Granted": 30,
        "Claimed": 31,
        "Released": 32,
        "ClaimTimedOut": 33,
        "DialSpent": 34,
        "Tracked": 50,
        "Mentioned": 51,
        "Renewed": 52,
        "Expired": 53,
        "Forgotten": 54,
        "TombstonesDropped": 55,
        "GroupForgotten": 56,
        "SourceRemembered": 57,
        "RenewedEach": 58,
        "Marked": 60,
        "DialFailed": 70,
        "Paused": 71,
        "Resumed": 72,
        "Addressed": 90,
        "Aimed": 91,
        "TargetsTrusted": 92,
        "ReportsBegan": 100,
        "LeaseStale": 101,
        "Offered": 80,
    }


def test_a_kind_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(ValueError, match="no change 999"):
        unpack(msgpack.packb([[1.0, 2.0, [[999, 1]]]]))


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.__name__)
def test_a_change_with_events_edits_the_revision(kind: type[Any]) -> None:
    change = example(kind)
    if count_events(change):
        assert changes.META in list(change.edits())
