"""Random work of several clients with every misfortune, against a ledger of what was committed.

The daemon is the real TrackerActor with its real store; retransmissions, reordering, lost
replies, kills, failing statements, dying processes and checkpoints in between are the
machine's. Its ledger is kept from the replies of committed batches alone, so whatever the
daemon knows beyond them, forgets, or does twice shows at once.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from helpers.desk_machine import checkpoints_all_the_time
from helpers.kept import Kept, KeptInSQLite
from helpers.writer import (
    AgentOf,
    Clock,
    Desk,
    Faults,
    Host,
    Sent,
    assert_same_after_reload,
    observe,
    told_by,
)
from trackd.operations.dispatch import OPERATIONS
from trackd.rules.user import User
from trackd.sessions.identity import Process
from trackd.sessions.sessions import Session
from trackd.sessions.use import REPLY_OVERHEAD
from trackd.state.restore import row_of
from trackd_client.core.event import Event
from trackd_client.core.mirror import Mirror
from trackd_client.errors import Code
from trackd_client.wire.done import Done
from trackd_client.wire.protocol import decode_reply

NAMES = ("p1", "p2", "p3", "p4")
GRANTING = ("try_acquire", "acquire", "adopt")
#: Requests of a session that wait or whose replies are kept; as many more may give something up.
MOST = 12

names = st.sampled_from(NAMES)
places = (names, st.sampled_from(("", "g")), st.integers(1, 3), st.sampled_from((None, 5.0)))
words = st.sampled_from(
    (
        *({"terminating": True}, {"terminating": False}, {"other": 1}, None),
        *({"address": "a:1"}, {"address": "b:1", "terminating": False}, {"address": ""}),
    )
)
proxies = st.lists(st.one_of(st.tuples(*places), st.tuples(*places, words)), max_size=4)
picks = st.integers(0, 1_000_000)


class Client(AgentOf):
    """A client and what it remembers.

    Attributes:
        process: that it runs in.
        sent: its requests by number, as often as they are sent.
        outstanding: numbers that it does not call done.
        said: numbers that it has ever called done.
        opened: whether it knows that its session is open.
        over: whether its session has ended for all that the daemon committed.
    """

    def __init__(self, number: int, process: Process | None) -> None:
        super().__init__(number, process)
        self.sent: dict[int, dict[str, Any]] = {}
        self.outstanding: set[int] = set()
        self.said = Done()
        self.opened = False
        self.over = False

    def new(self, op: str, **fields: Any) -> dict[str, Any]:
        body = self.body(op, **fields)
        seq = body["seq"]
        self.outstanding.add(seq)
        body["done"] = [
            bound for n in range(1, seq + 1) if n not in self.outstanding for bound in (n, n)
        ]
        self.said.update(body["done"])
        self.sent[seq] = body
        return body


class ExactlyOnce(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        directory = self.stack.enter_context(tempfile.TemporaryDirectory(prefix="trackd-"))
        self.directory = Path(directory)
        self.host = Host()
        self.stack.enter_context(self.host.seen())
        self.kept = self.stack.enter_context(self.keep())
        self.clock = Clock()
        self.clients: list[Client] = []
        self.committed: dict[tuple[bytes, int], bytes] = {}  # mutations that changed something
        self.grants: dict[int, tuple[bytes, int]] = {}
        self.ledger: dict[int, tuple[bytes, str | None]] = {}
        self.queue: list[tuple[bytes, int]] = []
        self.connected: set[tuple[bytes, int]] = set()  # sent to the present process
        self.watching: set[tuple[bytes, int]] = set()  # watch_session that nobody has answered
        self.revision = 0
        self.dead: dict[bytes, Done] = {}  # numbers that the committed state was done with
        self.offered: set[int] = set()  # leases
        self.handed: set[int] = set()  # those of them that another lease has replaced
        self.judged: set[tuple[bytes, int]] = set()  # replies to retire and offer
        self.heard = 0  # the revision up to which the events said so
        self.told = -1  # the revision of which the events were looked at
        self.batch = 0  # messages of the batch that is not committed
        self.failing = False

    def keep(self) -> Kept:
        """Return what the store is kept in, after making its steps small."""
        self.stack.enter_context(checkpoints_all_the_time())
        kept = KeptInSQLite(self.directory)
        kept.faults.error = Faults().error  # a full disk
        return kept

    @initialize(
        claim_timeout=st.sampled_from((0.0, 20.0)),
        connection_count=st.sampled_from((0, 0, 2)),
        dial_rate=st.sampled_from((0.0, 0.0, 0.5)),
        tunnel_timeout=st.sampled_from((0.0, 9.0)),
    )
    def begin(self, **settings: Any) -> None:
        self.settings = {**settings, "dial_burst": 2, "max_outstanding": MOST}
        self.settings["admin_users"] = (1000,)  # who all of the clients are
        self.start()

    def start(self) -> None:
        self.desk = Desk(self.directory, self.clock, kept=self.kept, **self.settings)
        self.batch = 0
        self.connected = set()
        self.watching = set()
        self.check_the_dead()
        self.settle(self.desk.sent, arrive=False)

    def check_the_dead(self) -> None:
        """Check that no change that a client was done with can run in a new process."""
        for client in self.clients:
            session = self.desk.state.sessions.by_token.get(client.token)
            dead = self.dead.get(client.token, Done())
            for seq, body in client.sent.items():
                if session is not None and seq in dead and not OPERATIONS[body["op"]].repeatable:
                    assert seq in session.live.done or seq in session.replies, (
                        f"{seq} could run again"
                    )

    def teardown(self) -> None:
        with self.stack:
            if hasattr(self, "desk"):
                self.desk.kill()

    # -- clients -----------------------------------------------------------------------

    def client(self, pick: int) -> Client:
        return self.clients[pick % len(self.clients)]

    def send(self, client: Client, body: dict[str, Any]) -> None:
        self.desk.send(body, client.peer, route=client.token)
        self.connected.add((client.token, body["seq"]))
        assert not self.desk.ended
        self.batch += 1

    @precondition(lambda self: len(self.clients) < 4)
    @rule()
    def open(self) -> None:
        number = len(self.clients) + 1
        process = self.host.start(100 + number) if number != 3 else None  # one is not to be seen
        client = Client(number, process)
        self.clients.append(client)
        self.send(client, client.new("open", name=f"client {number}"))

    @precondition(lambda self: self.clients)
    @rule(pick=picks)
    def open_again(self, pick: int) -> None:
        client = self.client(pick)
        if not client.opened and not client.over:
            self.send(client, client.sent[1])

    @precondition(lambda self: self.clients)
    @rule(pick=picks, rows=proxies)
    def gossip(self, pick: int, rows: list[tuple[Any, ...]]) -> None:
        client = self.client(pick)
        self.send(client, client.new("track_expected", proxies=[list(row) for row in rows]))

    @precondition(lambda self: self.clients)
    @rule(pick=picks, op=st.sampled_from(("try_acquire", "try_acquire", "heartbeat")))
    def plain(self, pick: int, op: str) -> None:
        client = self.client(pick)
        self.send(client, client.new(op, deadline=self.clock.now + 5.0))

    @precondition(lambda self: self.clients)
    @rule(pick=picks)
    def watch(self, pick: int) -> None:
        client = self.client(pick)
        body = client.new("watch_session")
        self.watching.add((client.token, body["seq"]))
        self.send(client, body)

    @precondition(lambda self: self.clients)
    @rule(pick=picks, patience=st.sampled_from((None, 0.0, 7.0, 100.0)))
    def acquire(self, pick: int, patience: float | None) -> None:
        client = self.client(pick)
        deadline = {} if patience is None else {"deadline": self.clock.now + patience}
        self.send(client, client.new("acquire", **deadline))

    @precondition(lambda self: self.clients and self.grants)
    @rule(
        pick=picks,
        which=picks,
        name=names,
        op=st.sampled_from(("claim", "claim", "retire", "offer", "release")),
    )
    def use_lease(self, pick: int, which: int, name: str, op: str) -> None:
        client = self.client(pick)
        lease = sorted(self.grants)[which % len(self.grants)]
        fields = {"principals": [name]} if op == "claim" else {}
        self.send(client, client.new(op, lease=lease, **fields))

    @precondition(lambda self: self.clients and self.grants)
    @rule(
        pick=picks,
        which=picks,
        failed=st.sampled_from(("refused", "timeout", "auth", "other", "held")),
    )
    def fail(self, pick: int, which: int, failed: str) -> None:
        client = self.client(pick)
        lease = sorted(self.grants)[which % len(self.grants)]
        self.send(client, client.new("release", lease=lease, failed=failed))

    @precondition(lambda self: self.clients and self.grants)
    @rule(pick=picks, which=st.lists(picks, max_size=3), rtt=st.sampled_from((None, 0.5)))
    def report(self, pick: int, which: list[int], rtt: float | None) -> None:
        client = self.client(pick)
        leases = [sorted(self.grants)[each % len(self.grants)] for each in which]
        self.send(client, client.new("report", reports=[[lease, rtt] for lease in leases]))

    @precondition(lambda self: self.clients)
    @rule(pick=picks)
    def resume(self, pick: int) -> None:
        client = self.client(pick)
        self.send(client, client.new("resume"))

    @precondition(lambda self: self.clients)
    @rule(pick=picks, name=names)
    def adopt(self, pick: int, name: str) -> None:
        client = self.client(pick)
        self.send(client, client.new("adopt", principals=[name]))

    @precondition(lambda self: self.clients)
    @rule(pick=picks, name=names)
    def forget_proxy(self, pick: int, name: str) -> None:
        client = self.client(pick)
        self.send(client, client.new("forget", name=name))

    @precondition(lambda self: self.clients)
    @rule(pick=picks, name=names)
    def ask(self, pick: int, name: str) -> None:
        client = self.client(pick)
        self.send(client, client.new("is_claimed", principals=[name]))

    @precondition(lambda self: self.clients)
    @rule(pick=picks, count=st.integers(0, 4))
    def set_count(self, pick: int, count: int) -> None:
        client = self.client(pick)
        self.send(client, client.new("set_connection_count", count=count))

    @precondition(lambda self: self.clients)
    @rule(pick=picks, which=picks)
    def cancel(self, pick: int, which: int) -> None:
        client = self.client(pick)
        wanted = [n for n in client.outstanding if client.sent[n]["op"] in GRANTING]
        if wanted:
            self.send(client, client.new("cancel", target=wanted[which % len(wanted)]))

    @precondition(lambda self: self.clients)
    @rule(pick=picks)
    def close(self, pick: int) -> None:
        client = self.client(pick)
        if client.opened and pick % 5 == 0:  # a session that has ended teaches little more
            self.send(client, client.new("close"))

    @precondition(lambda self: any(client.sent for client in self.clients))
    @rule(pick=picks, which=picks, times=st.integers(1, 3))
    def retransmit(self, pick: int, which: int, times: int) -> None:
        client = self.client(pick)
        seq = sorted(client.sent)[which % len(client.sent)]
        body = client.sent[seq]
        if body["op"] in ("open", "close"):
            return
        session = self.desk.state.sessions.by_token.get(client.token)
        known = session is not None and (
            seq in session.done or seq in session.replies or seq in session.parked
        )
        if body["op"] == "watch_session" and not known and seq in client.outstanding:
            self.watching.add((client.token, seq))
        ran = (client.token, seq) in self.committed
        assert known or session is None or not ran, "forgot that it has run"
        for _ in range(times):
            before = observe(self.desk.state)
            self.send(client, body)
            if known or ran:
                after = observe(self.desk.state)
                given_up = before["waiters"] != after["waiters"]  # its `done` may say so
                assert given_up or after == before

    # -- time, processes, the store -----------------------------------------------------

    @rule(seconds=st.sampled_from((0.5, 3.0, 10.0, 200.0)))
    def time_passes(self, seconds: float) -> None:
        self.end_batch(arrive=True)
        self.clock.now += seconds
        self.settle(self.desk.sweep(), arrive=True)

    @precondition(lambda self: self.clients)
    @rule(pick=picks)
    def process_dies(self, pick: int) -> None:
        client = self.client(pick)
        if pick % 3 or client.process is None:
            return
        self.host.alive.pop(client.process.pid, None)
        self.end_batch(arrive=True)
        self.settle(self.desk.exited(client.process), arrive=True)

    @rule(arrive=st.booleans())
    def end_batch(self, arrive: bool) -> None:
        replies = self.desk.end_batch()
        self.batch = 0
        self.settle(replies, arrive=arrive)

    @precondition(lambda self: not self.failing)
    @rule(late=st.booleans())
    def store_fails(self, late: bool) -> None:
        """Let the write of the batch be refused, or its answer get lost."""
        if not self.desk.actor._decide.batch:
            return
        if late:
            self.kept.lose_next_answer()
        else:
            self.kept.refuse_next()
            self.failing = True
        self.end_batch(arrive=True)
        self.failing = self.desk.actor._runtime.store_problem is not None

    @precondition(lambda self: self.failing)
    @rule()
    def store_recovers(self) -> None:
        self.end_batch(arrive=True)
        self.clock.now += 1.0
        self.settle(self.desk.sweep(), arrive=True)
        assert self.desk.actor._runtime.store_problem is None
        self.failing = False

    @rule()
    def kill(self) -> None:
        """Kill the daemon in the middle of a batch, and start it again."""
        self.desk.kill()
        self.failing = False
        self.start()

    @rule()
    def kill_before_replies(self) -> None:
        """Kill it when a batch is stored and nobody has been told."""
        self.end_batch(arrive=False)
        self.kill()

    # -- what was committed ---------------------------------------------------------------

    def settle(self, replies: list[Sent], *, arrive: bool) -> None:
        """Take in the replies of a batch that is committed."""
        by_token = {client.token: client for client in self.clients}
        for revision, _, _, kind, fields in self.desk.state.history.after(self.heard, 1_000_000):
            self.heard = revision
            if kind == "lease_released" and fields["cause"] == "handed_over":
                self.handed.add(fields["lease"])
        for sent in replies:
            client = by_token[sent.route]
            self.watching.discard((client.token, sent.body["seq"]))
            self.take(client, sent)
            if arrive:
                client.outstanding.discard(sent.body["seq"])
        # Grants and ends that no reply has told: to waiters without a connection, by time.
        state = self.desk.state
        for session in state.sessions:
            self.dead[session.token] = Done(session.live.done.ranges)
            for seq, reply in session.replies.items():
                if (session.token, seq) not in self.committed:
                    decoded = decode_reply(reply.frame)
                    assert decoded is not None
                    # Such a lease may have been released since.
                    self.judged.add((session.token, seq))
                    self.take(by_token[session.token], Sent(b"", reply.frame, decoded.body))
            for lease in session.expired:
                self.ledger.pop(lease, None)
        self.drop_handed()
        assert self.handed <= self.offered, "nobody has offered it"
        for _, _, _, kind, fields in state.history.after(0, 1_000_000):
            if kind == "lease_released" and fields["cause"] == "stale":
                assert self.settings["tunnel_timeout"] > 0
                self.ledger.pop(fields["lease"], None)
        for client in self.clients:
            if client.opened and client.token not in state.sessions.by_token:
                client.over = True
                self.forget(client)

    def take(self, client: Client, sent: Sent) -> None:
        body = sent.body
        seq = body["seq"]
        key = (client.token, seq)
        request = client.sent[seq]
        op = request["op"]
        if body.get("error") in (Code.SESSION_UNKNOWN, Code.SESSION_ENDED):
            alive = client.token in self.desk.state.sessions.by_token
            assert not (client.opened and alive), "an open session was denied"
            return
        if key in self.committed:
            assert sent.frame == self.committed[key], "another reply to the same request"
            return
        if "error" in body:
            refusals = (Code.UNAVAILABLE, Code.NOT_OWNER, Code.LEASE_EXPIRED, Code.LIMIT_EXCEEDED)
            in_flight = op in ("retire", "offer") and body["error"] == Code.INVALID_ARGUMENT
            assert in_flight or body["error"] in refusals
            return
        assert body["revision"] >= 0
        changed = False
        match op:
            case "open":
                client.opened = True
            case "close":
                self.forget(client)
            case "try_acquire" | "acquire" | "adopt" if body["lease"] is not None:
                changed = True
                lease = body["lease"]
                assert lease not in self.grants, "a lease id was granted twice"
                self.grants[lease] = key
                self.hold(lease, client.token, body.get("name"))
            case "claim" if body["claimed"]:
                changed = True
                assert self.ledger[request["lease"]] == (client.token, None)
                self.hold(request["lease"], client.token, body["name"])
            case "retire" | "offer":
                lease = request["lease"]
                done = body["retired" if op == "retire" else "offered"]
                if done and op == "offer":
                    self.offered.add(lease)
                if key in self.judged:
                    return
                self.judged.add(key)
                if not done and lease in self.handed:
                    self.ledger.pop(lease, None)
                held = self.ledger.get(lease)
                assert done == (held is not None)
                assert held is None or (held[0] == client.token and held[1] is not None)
            case "report":
                stale = {
                    life.lease for life in self.desk.state.lives.by_lease.values() if life.stale
                }
                for lease in set(body["gone"]) - stale - self.handed:
                    assert self.ledger.get(lease, (b"", None))[0] != client.token, "it is not gone"
            case "release" if body["released"]:
                changed = True
                assert self.ledger.pop(request["lease"])[0] == client.token
            case "forget" if body["forgotten"]:
                changed = True
            case "resume" if body["resumed"]:
                changed = True
            case "cancel" if body["cancelled"]:
                changed = True
                for lease, granted in self.grants.items():
                    if granted == (client.token, request["target"]):
                        self.ledger.pop(lease, None)
                client.outstanding.discard(request["target"])
            case _:
                pass
        if changed:
            self.committed[key] = sent.frame

    def forget(self, client: Client) -> None:
        self.ledger = {k: v for k, v in self.ledger.items() if v[0] != client.token}

    def drop_handed(self) -> None:
        self.ledger = {k: v for k, v in self.ledger.items() if k not in self.handed}

    def hold(self, lease: int, token: bytes, name: str | None) -> None:
        if name in {self.ledger[k][1] for k in self.handed & self.ledger.keys()}:
            self.drop_handed()
        taken = [held for _, held in self.ledger.values() if held is not None]
        assert name not in taken, "a name is held by two"
        self.ledger[lease] = (token, name)

    # -- invariants -------------------------------------------------------------------------

    @invariant()
    def the_ledger_is_true(self) -> None:
        if self.batch or not hasattr(self, "desk"):
            return
        state = self.desk.state
        held = {
            lease: (lease_.session.token, state.tracker.lease_name(lease))
            for lease, lease_ in state.leases.items()
        }
        assert held == self.ledger
        assert dict(state.tracker.leases) == {k: v[1] for k, v in held.items()}
        assert state.tracker.inflight == sum(name is None for _, name in held.values())
        assert set(state.in_flight) == {k for k, v in held.items() if v[1] is None}
        for session in state.sessions:
            assert session.leases == {k for k, v in held.items() if v[0] == session.token}
            self.no_session_has_more_than_its_limit(session)
        self.the_use_of_each_user_is_true()

    def the_use_of_each_user_is_true(self) -> None:
        sessions = self.desk.state.sessions
        expected: dict[User, list[int]] = {}
        for session in sessions:
            frames = [*(each.frame for each in session.replies.values())]
            frames += session.live.refusals.values()
            kept = sum(len(frame) + REPLY_OVERHEAD for frame in frames)
            counts = (1, len(session.leases), len(session.parked), kept)
            before = expected.get(session.peer.user, [0] * 4)
            expected[session.peer.user] = [a + b for a, b in zip(before, counts, strict=True)]
        assert expected == {
            user: [use.sessions, use.leases, use.waiters, use.reply_bytes]
            for user, use in sessions.users.items()
        }
        assert sessions.total.reply_bytes == sum(each[3] for each in expected.values())

    def no_session_has_more_than_its_limit(self, session: Session) -> None:
        kept = {*session.replies} - {*session.live.covered}
        kept |= {*session.live.refusals, *session.parked}
        assert session.unanswered() == len(kept) <= 2 * MOST
        sent = next(client for client in self.clients if client.token == session.token).sent
        gives_up = [n for n in kept if OPERATIONS[sent[n]["op"]].never_stale]
        assert len(kept) - len(gives_up) <= MOST

    @invariant()
    def the_events_tell_all_that_has_happened(self) -> None:
        if not self.batch and hasattr(self, "desk") and self.desk.state.revision != self.told:
            state = self.desk.state
            self.told = state.revision
            events = state.history.after(0, 1_000_000)
            assert [event[0] for event in events] == list(range(1, state.revision + 1))
            assert told_by(events) == {
                "proxies": {each.name: (each.group, each.generation) for each in state.tracker},
                "terminating": {
                    each.name for each in state.tracker if state.tracker.is_marked(each.name)
                },
                "addresses": {
                    name: each.text for name, each in state.tracker.targets.by_name.items()
                },
                "leases": {
                    lease: (held.session.id, state.tracker.lease_name(lease))
                    for lease, held in state.leases.items()
                },
                "sessions": {session.id for session in state.sessions},
                "epoch": state.epoch,
            }
            self.a_mirror_of_the_events_is_true(events)

    def a_mirror_of_the_events_is_true(self, events: list[Any]) -> None:
        tracker, mirror = self.desk.state.tracker, Mirror()
        for event in events:
            mirror.apply(Event(*event))
        assert {
            row["name"]: (row["desired"], row.get("terminating", False), row.get("address"))
            for row in mirror.snapshot()["proxies"]
        } == {
            name: (
                tracker.is_desired(name),
                tracker.is_marked(name),
                address.text if (address := tracker.targets.by_name.get(name)) else None,
            )
            for name in tracker.names()
        }

    @invariant()
    def a_restart_would_find_the_same(self) -> None:
        if not self.batch and hasattr(self, "desk") and not self.failing:
            assert_same_after_reload(self.desk.state, self.desk.reloaded())

    @invariant()
    def waiters_keep_their_order(self) -> None:
        if self.batch or not hasattr(self, "desk"):
            return
        now = [(waiter.session.token, waiter.seq) for waiter in self.desk.state.queue]
        stayed = [key for key in self.queue if key in now]
        assert now[: len(stayed)] == stayed
        served = [key for key in self.queue if key not in now and key in self.grants.values()]
        for token, seq in served:
            before = self.queue[: self.queue.index((token, seq))]
            own = {key for key in before if key[0] == token}
            assert not own & set(now), "a session was served out of its order"
        tags = [waiter.tag for waiter in self.desk.state.queue]
        first = self.desk.state.queue.first()
        if not self.desk.state.queue.aside:  # those of sessions that pause are passed over
            assert first is None or first is list(self.desk.state.queue)[tags.index(min(tags))]
        self.queue = now

    @invariant()
    def whoever_waits_can_be_answered(self) -> None:
        if not self.batch and hasattr(self, "desk"):
            for waiter in self.desk.state.queue:
                known = (waiter.session.token, waiter.seq) in self.connected
                assert (waiter.seq in waiter.session.live.routes) == known

    @invariant()
    def whoever_watches_is_answered_or_still_parked(self) -> None:
        if not self.batch and hasattr(self, "desk"):
            parked = {
                (session.token, session.live.watch.seq)
                for session in self.desk.state.sessions
                if session.live.watch is not None
            }
            # One that came with a batch that got lost is both: answered, and parked again.
            assert self.watching <= parked

    @invariant()
    def the_store_keeps_nothing_that_is_no_more(self) -> None:
        if not self.batch and hasattr(self, "desk") and not self.failing:
            store = self.desk.sqlite
            steps = store._checkpoint
            pending = steps._dirty.keys() | steps._todo.keys() | set(steps._old)
            for kind, packed in store._db.execute("SELECT kind, key FROM state"):
                key = kind, msgpack.unpackb(packed, use_list=False)
                kept = row_of(self.desk.state, key) is not None
                assert kept or key in pending, f"{key} stays for ever"

    @invariant()
    def the_revision_never_goes_back(self) -> None:
        if not self.batch and hasattr(self, "desk"):
            assert self.desk.state.revision >= self.revision
            self.revision = self.desk.state.revision


def run(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        ExactlyOnce,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_whatever_happens_each_request_happens_once_and_nothing_is_lost() -> None:
    run(examples=60, steps=50)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_whatever_happens_for_longer_each_request_happens_once() -> None:
    run(examples=160, steps=80)
