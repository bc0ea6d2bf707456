"""Random histories of the real state on a real store, with every kind of change.

With small steps a checkpoint is always under way. After every batch a restart must find the living
state and its events; a commit may fail, and the process may die, between any two steps.
"""

from __future__ import annotations

import contextlib
import functools
import random
from collections import Counter

from helpers.kept import Kept
from helpers.writer import observe
from trackd.config.settings import Config
from trackd.sessions.identity import Peer, Process
from trackd.sessions.sessions import Session
from trackd.state import exactly_once, forgetting, gossip, timers
from trackd.state.changes import pack
from trackd.state.counters import Metrics
from trackd.state.decide import Decisions, peer_of
from trackd.state.events import pack_events
from trackd.state.forgetting import forget_group
from trackd.state.restore import add_events, restore, row_of
from trackd.state.state import State
from trackd.storage.store import Store, StoreError

NAMES = [f"p{i}" for i in range(8)]


class World:
    """A state with its decisions and a store, without an actor."""

    def __init__(self, seed: int, kept: Kept) -> None:
        self.random = random.Random(seed)
        self.faults = random.Random(-seed - 1)
        self.hosts = random.Random(f"hosts {seed}")
        self.kept = kept
        self.config = Config(
            cluster_name="example.com", claim_timeout=20.0, tunnel_timeout=25.0, history=300
        )
        self.now = 100.0
        self.tokens = 0
        self.kinds: Counter[str] = Counter()
        self.restart()

    def run(self, batches: int) -> None:
        """Do things at random, and look after each batch whether a restart finds the same."""
        for _ in range(batches):
            for _ in range(self.random.randint(1, 3)):
                self.act()
            self.end_batch()
            if not self.decide.batch:  # otherwise the commit failed, and an epoch has begun
                self.steps()
                self.check()
            if self.random.random() < 0.05:
                self.restart()

    def read(self, store: Store) -> State:
        state = State("example.com", history=self.config.history)
        store.begin_reading()
        store.row_of = functools.partial(row_of, state)
        restore(state, store.rows, store.batches(), store.touch)
        return state

    def restart(self) -> None:
        """Let the process die, and start again."""
        self.kept.fail_no_more()
        self.store = self.kept.open()
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
            self.kept.refuse_next()
        elif self.faults.random() < 0.05:
            self.kept.lose_next_answer()
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
                self.kept.refuse_next(after=self.random.randint(0, 3))
            with contextlib.suppress(StoreError):
                self.store.step()
            self.kept.fail_no_more()

    def check(self) -> None:
        """Compare the living state with what a restart would find."""
        again = self.kept.again()
        assert observe(self.read(again)) == observe(self.state)
        again.close()

    def host(self) -> str:
        """Return the host of a process: the daemon's own, or one of a fleet."""
        return self.hosts.choice(("", "", "a", "b"))

    def admin(self) -> Peer:
        return Peer(0, 0, 1, self.host())

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
            host = self.host()
            where = (host, f"boot of {host}") if host else ()
            process = None if rng.random() < 0.5 else Process(rng.randint(1, 3), 7, *where)
            peer = Peer(1000, 1000, 0 if process is None else process.pid, host)
            decide.open_session(
                self.tokens.to_bytes(16, "big"), peer, process, "name", "1", {"a": "b"}, "run"
            )
        elif roll < 0.12:
            decide.end_session(session, "closed", rng.choice((None, self.admin())))
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
            forgetting.forget_proxy(decide, rng.choice(NAMES), self.admin())
        elif roll < 0.38:
            forget_group(decide, rng.choice(("", "g")), rng.choice((None, 1)), self.admin())
        elif roll < 0.5:
            self.answer(session, decide.try_acquire(session))
        elif roll < 0.6:
            seq = self.number(session)
            deadline = rng.choice((None, self.now + 4.0))
            decide.park(session, seq, deadline, b"route")
        elif roll < 0.75 and session.leases:
            lease = rng.choice(sorted(session.leases))
            presented = rng.sample([*NAMES, "alias", "p1.example.com"], rng.randint(1, 3))
            decide.claim(session, lease, presented, follow=rng.random() < 0.5)
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
            presented = rng.sample([*NAMES, "alias"], rng.randint(1, 3))
            decide.adopt(session, presented, follow=rng.random() < 0.5)
        elif roll < 0.86 and state.leases:
            decide.force_release(rng.choice(sorted(state.leases)), self.admin())
        elif roll < 0.9:
            exactly_once.acknowledge(decide, session, [1, rng.randint(1, 30)])
        elif roll < 0.92:
            exactly_once.give_up(decide, session, rng.randint(1, 30))
        elif roll < 0.925:
            decide.pauses.resume(peer_of(self.admin()))
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
