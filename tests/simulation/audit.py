"""What must hold in a simulation, checked after every batch of the daemon.

The ledger is kept from what can be seen from outside: requests as they were sent, replies as they
left, events as they were stored. It knows nothing of how the daemon decides. What it checks:

- one holder: a proxy is claimed by one lease at a time, and no lease id is used twice;
- what a reply or an event has said is found by every later start;
- a request is done once, and whenever it is answered, it is by the same reply;
- what was refused as `unavailable` has left no trace;
- every lease that was taken back was so for a reason that is true;
- in flight are exactly the unclaimed leases of live sessions, and no more than are wanted;
- whoever is dead, or late, holds and waits for nothing after some seconds;
- those that wait are served in turn (rule 13), and within the dial budget;
- a mirror of the events equals the state at every revision, and the events skip none.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from typing import Any, NoReturn

import msgpack

from helpers.writer import Desk, Host, assert_same_after_reload
from trackd.actors.messages import Publish
from trackd.state import changes
from trackd.state.events import count_events
from trackd.state.state import State
from trackd_client.core.event import Event
from trackd_client.core.mirror import Mirror
from trackd_client.errors import Code
from trackd_client.wire.protocol import decode, decode_reply

#: Seconds that a daemon which works may take for what is due.
LATE_SECONDS = 5.0
#: Events that are compared after a restart.
_COMPARED = 300
_LOST = (Code.SESSION_ENDED, Code.SESSION_UNKNOWN)
_GRANTING = ("try_acquire", "acquire", "adopt")


class AuditError(AssertionError):
    """Something happened that trackd promises never to do."""


def fail(sentence: str) -> NoReturn:
    """Raise for a broken promise."""
    raise AuditError(sentence)


class Audit:
    """The ledger of one simulation.

    Attributes:
        calm_since: since when the daemon runs and its store works.
    """

    def __init__(self, processes: Host, reached: Counter[str], settings: dict[str, Any]) -> None:
        self.calm_since = 0.0
        self._processes = processes
        self._reached = reached
        self._claim_timeout = settings["claim_timeout"]
        self._heartbeat_ttl = settings["heartbeat_ttl"]
        self._max_outstanding = settings["max_outstanding"]
        self._rate, self._burst = settings["dial_rate"], settings["dial_burst"]
        self._epoch = 0
        # Of clients: requests by client and number, replies with an effect, owners of tokens.
        self._requests: dict[tuple[int, int], dict[str, Any]] = {}
        self._handled = Counter[tuple[int, int]]()  # requests of the batch, with copies
        self._answers: dict[tuple[int, int], bytes] = {}
        self._owners: dict[bytes, int] = {}
        self._died: dict[int, float] = {}
        self._closed: set[bytes] = set()  # tokens
        self._said: list[tuple[str, set[Any], Any]] = []  # by replies; to be checked
        self._promised = 0  # the highest revision of which a reply or an event has said something
        # Of events.
        self._mirror = Mirror()
        self._recent: deque[Event] = deque(maxlen=_COMPARED)
        self._heard = 0  # the revision of the last event that was published
        self._last_lease = 0
        self._leases: set[int] = set()  # ever granted
        self._claims: set[tuple[int, str]] = set()
        self._released: set[int] = set()
        self._offered: set[int] = set()
        self._pids: dict[int, int] = {}  # by session
        self._tokens: float = self._burst
        self._spent_at = 0.0
        # Of changes.
        self._may_be_stored = False  # whether the last commit failed: it may have happened
        self._batch: list[changes.Moment] = []
        self._done_once: set[tuple[bytes, int]] = set()
        self._found: set[tuple[bytes, int]] = set()  # those that this process has found
        self._passed: dict[bytes, tuple[set[int], Counter[bytes]]] = {}  # by waiting session

    @property
    def revision(self) -> int:
        """The revision of the last event that was stored."""
        return self._mirror.revision

    # -- clients and their processes ---------------------------------------------------------

    def asked(self, client: int, frame: bytes) -> None:
        """Note a request that was sent."""
        decoded = decode(frame)
        assert decoded is not None
        body = decoded[1]
        self._requests[client, body["seq"]] = body
        if "token" in body:
            self._owners[body["token"]] = client

    def process_ended(self, pid: int) -> None:
        """Note the end of a process."""
        self._died[pid] = -1.0  # its moment is noted at the next look

    # -- the daemon ----------------------------------------------------------------------------

    def started(self, desk: Desk) -> None:
        """Check what a process of the daemon has found."""
        state = desk.state
        self.calm_since = desk.actor.now()
        found = min(
            (
                row[0] - 1
                for row in state.history.after(self._mirror.revision, 1_000)
                if row[3] == "daemon_started" and row[4]["epoch"] == state.epoch
            ),
            default=state.revision - _unstored(desk),
        )
        if found < self._promised:
            fail(f"revision {self._promised} was told, and a start finds {found}")
        if state.epoch <= self._epoch:
            fail(f"the start after epoch {self._epoch} has the epoch {state.epoch}")
        self._heard = state.revision - _unstored(desk)
        known = {event.revision: event for event in self._recent}
        first = min(known, default=1)
        for row in state.history.after(first - 1, len(known)):
            event = Event(*row)
            before = known.get(event.revision)
            if before is not None and (before.kind, before.fields) != (event.kind, event.fields):
                fail(f"event {event.revision} was {before}, and is {event} after a start")
        self._found = {
            (session.token, seq) for session in state.sessions for seq in session.replies
        }
        self._done_once |= self._found
        self._reached["parked over a restart"] += len(state.queue)
        self._read_queue(state)
        self._batch = []
        self._said.clear()
        self._look(desk)

    def before_request(self, desk: Desk, client: int, body: dict[str, Any]) -> None:
        """Note what a request meets that is about to be handled."""
        session = desk.state.sessions.by_token.get(body.get("token", b""))
        if session is not None and body["seq"] in session.parked:
            self._reached["a parked request was sent again"] += 1
        if session is not None and body["seq"] in session.live.done:
            self._reached["a request that is done came late"] += 1
        if session is not None and body["seq"] in session.replies:
            found = (session.token, body["seq"]) in self._found
            what = "after a restart" if found else "by the same process"
            self._reached[f"answered from the table {what}"] += 1
        assert (client, body["seq"]) in self._requests
        self._handled[client, body["seq"]] += 1
        self._reached["requests"] += 1

    def before_commit(self, desk: Desk) -> int:
        """Keep the batch that is about to be stored; return the number of its events."""
        self._batch = list(desk.actor._decide.batch)
        return sum(count_events(change) for moment in self._batch for change in moment.changes)

    def after_commit(self, desk: Desk) -> None:
        """Check a batch that was stored, or was not."""
        problem = desk.actor._runtime.store_problem
        if problem is not None:
            self.calm_since = desk.actor.now()
            self._reached["batch undone"] += bool(self._batch)
            self._may_be_stored = True
        else:
            for moment in self._batch:
                for change in moment.changes:
                    self._follow(change, desk.state)
            if self._may_be_stored:
                self._may_be_stored = False
                self._read_queue(desk.state)
        self._batch = []
        self._handled.clear()
        self._look(desk)

    def published(self, message: Publish) -> None:
        """Check that published events are those that were stored, and skip none."""
        told = [msgpack.unpackb(event)[0] for event in message.events]
        if told != list(range(self._heard + 1, message.revision + 1)):
            fail(f"events {told} were published after {self._heard}, up to {message.revision}")
        self._heard = message.revision
        self._promised = max(self._promised, message.revision)

    def check_restart(self, desk: Desk) -> None:
        """Check that a restart at this moment would find what the daemon knows."""
        if desk.actor._runtime.store_problem is None and not desk.actor._decide.batch:
            assert_same_after_reload(desk.state, desk.reloaded())

    def check_idle(self, desk: Desk) -> None:
        """Check the times also where nothing has come to the daemon for long."""
        now = asyncio.get_running_loop().time()
        self._compare(desk.state)
        self._check_times(desk.state, now)

    # -- replies ---------------------------------------------------------------------------------

    def replied(self, desk: Desk, client: int, frame: bytes) -> None:
        """Check a reply that leaves the daemon."""
        reply = decode_reply(frame)
        assert reply is not None
        body = reply.body
        key = client, body["seq"]
        request = self._requests[key]
        self._promised = max(self._promised, body["revision"])
        if key in self._answers:
            self._again(key, frame, body)
            return
        error = body.get("error")
        if error == Code.INTERNAL:
            fail(f"the daemon met an error of its own: {body}")
        if error == Code.UNAVAILABLE:
            self._reached["refused while the store fails"] += 1
            session = desk.state.sessions.by_token.get(request.get("token", b""))
            # A copy in the same batch may have come after the store was found to work.
            copied = self._handled[key] > 1
            if session is not None and body["seq"] in session.replies and not copied:
                fail(f"{request['op']} was refused as unavailable, and is done")
        if error == Code.LIMIT_EXCEEDED:
            self._reached["refused by a limit"] += 1
        if (
            error is None
            and self._note_effect(client, request, body)
            and not self._may_run_again(desk, request)
        ):
            self._answers[key] = frame

    def _again(self, key: tuple[int, int], frame: bytes, body: dict[str, Any]) -> None:
        before = self._answers[key]
        if self._requests[key]["op"] == "close" and "error" not in body:
            return  # the session has ended; a copy is answered by what is so now
        if frame != before and body.get("error") not in _LOST:
            fail(f"request {key} got two replies: {decode_reply(before)}, and {body}")

    def _may_run_again(self, desk: Desk, request: dict[str, Any]) -> bool:
        """Return whether a copy finds nothing to do and says so: there was no room for a reply."""
        session = desk.state.sessions.by_token.get(request.get("token", b""))
        if request["op"] not in {"cancel", "release"} or session is None:
            return False
        if session.unanswered() < 2 * self._max_outstanding or request["seq"] in session.replies:
            return False
        self._reached["answered without room to remember it"] += 1
        return True

    def _note_effect(self, client: int, request: dict[str, Any], body: dict[str, Any]) -> bool:
        """Note what a reply says has happened; return whether it says so."""
        op = request["op"]
        if op in _GRANTING and body["lease"] is not None:
            self._said.append((f"lease {body['lease']} granted", self._leases, body["lease"]))
            if op == "adopt":
                self._reached["a tunnel was adopted"] += 1
        elif op == "claim" and body["claimed"]:
            claim = request["lease"], body["name"]
            self._said.append((f"claim {claim}", self._claims, claim))
        elif op == "release" and body["released"]:
            said = f"lease {request['lease']} released", self._released, request["lease"]
            self._said.append(said)
        elif op == "close":
            self._closed.add(request["token"])
        elif op == "cancel" and body["cancelled"]:
            self._reached["a request was given up"] += 1
            granted = self._answers.get((client, request["target"]))
            lease = None if granted is None else _lease_in(granted)
            if lease is not None:
                self._said.append((f"lease {lease} taken back", self._released, lease))
        else:
            return False
        return True

    # -- what was stored -------------------------------------------------------------------------

    def _follow(self, change: Any, state: State) -> None:
        """Check a change that was stored."""
        if isinstance(change, changes.Replied):
            key = change.token, change.seq
            if key in self._done_once:
                fail(f"request {change.seq} of a session was done twice")
            self._done_once.add(key)
        elif self._may_be_stored:
            pass  # nobody knows who waited before this batch
        elif isinstance(change, changes.Parked):
            self._passed.setdefault(change.token, (set(), Counter()))[0].add(change.seq)
        elif isinstance(change, changes.Unparked):
            waits = self._passed[change.token][0]
            waits.discard(change.seq)
            if not waits:
                del self._passed[change.token]
        elif isinstance(change, changes.Paused | changes.Resumed):
            for _, passed in self._passed.values():  # they may pass over whom they concern
                passed.clear()
        elif isinstance(change, changes.Granted) and change.reason != "adopt":
            self._check_turn(change.token, state)

    def _read_queue(self, state: State) -> None:
        """Begin to follow those that wait, as they are now."""
        self._passed.clear()
        for waiter in state.queue:
            self._passed.setdefault(waiter.session.token, (set(), Counter()))[0].add(waiter.seq)

    def _check_turn(self, granted: bytes, state: State) -> None:
        for token, (_, passed) in self._passed.items():
            if token == granted or token in state.paused:  # such a session is passed over
                passed.clear()
            else:
                passed[granted] += 1
                if passed[granted] > 2:
                    fail("a session got three leases while another one waited for its next")

    def _look(self, desk: Desk) -> None:
        """Take in the events since the last look, and compare the state with them."""
        state = desk.state
        looked = self._mirror.revision
        for row in state.history.after(looked, 1_000_000):
            event = Event(*row)
            if event.revision != self._mirror.revision + 1:
                fail(f"event {event.revision} is stored after event {self._mirror.revision}")
            self._check_event(event)
            self._mirror.apply(event)
            self._recent.append(event)
        stored = state.revision - _unstored(desk)
        self._epoch = state.epoch - _unstored(desk)
        if stored != self._mirror.revision or stored < self._promised:
            fail(
                f"the state has revision {state.revision}, its history {self._mirror.revision},"
                f" and {self._promised} was told"
            )
        if self._closed & state.sessions.by_token.keys():
            fail("a session was closed, and is still there")
        for sentence, known, item in self._said:
            if item not in known:
                fail(f"a reply says: {sentence}; no event does")
        self._said.clear()
        if self._mirror.revision != looked:
            self._compare(state)
        self._check_times(state, desk.actor.now())

    def _check_event(self, event: Event) -> None:
        fields = event.fields
        match event.kind:
            case "session_opened":
                self._pids[fields["session"]] = fields["pid"]
            case "session_ended":
                self._check_end(fields["reason"], fields["pid"])
            case "lease_granted":
                self._check_grant(event)
            case "proxy_claimed":
                holders = [each for each, row in self._mirror.leases.items() if row["name"]]
                held = {self._mirror.leases[each]["name"]: each for each in holders}
                if fields["name"] in held:
                    fail(f"leases {held[fields['name']]} and {fields['lease']} hold one proxy")
                self._claims.add((fields["lease"], fields["name"]))
            case "lease_renamed":
                self._claims.add((fields["lease"], fields["name"]))
            case "lease_offered":
                self._offered.add(fields["lease"])
            case "lease_released":
                self._check_release(event)
            case _:
                pass

    def _check_end(self, reason: str, pid: int) -> None:
        self._reached[f"session ended: {reason}"] += 1
        if reason == "process_exited" and pid in self._processes.alive:
            fail(f"process {pid} lives, and its session was ended as that of a dead one")
        if reason == "no_heartbeat" and pid:
            fail(f"process {pid} needs no heartbeats, and its session was ended for want of them")

    def _check_grant(self, event: Event) -> None:
        lease, session = event.fields["lease"], event.fields["session"]
        if lease <= self._last_lease:
            fail(f"lease {lease} was granted after lease {self._last_lease}")
        if session not in self._mirror.sessions:
            fail(f"lease {lease} was granted to session {session}, which is not open")
        self._last_lease = lease
        self._leases.add(lease)
        reason = event.fields["reason"]
        if self._rate and reason != "adopt":
            grown = self._tokens + (event.time - self._spent_at) * self._rate
            self._tokens, self._spent_at = min(self._burst, grown) - 1.0, event.time
            if self._tokens < -1e-6:
                fail(f"lease {lease} was granted beyond the dial budget")
        if reason == "need":
            rows = self._mirror.snapshot()
            names = {row["name"] for row in rows["leases"] if not row.get("offered")}
            missing = sum(row["desired"] and row["name"] not in names for row in rows["proxies"])
            if sum(row["name"] is None for row in rows["leases"]) >= missing:
                fail(f"lease {lease} was granted, and {missing} proxies are missing")

    def _check_release(self, event: Event) -> None:
        lease, cause = event.fields["lease"], event.fields["cause"]
        self._released.add(lease)
        self._reached[f"lease released: {cause}"] += 1
        row = self._mirror.leases[lease]
        if cause in {"process_exited", "no_heartbeat"}:
            self._check_end(cause, self._pids[event.fields["session"]])
        elif cause == "claim_timeout":
            if row["name"] or event.time - row["granted"] < self._claim_timeout:
                fail(f"lease {lease} was taken back before its claim was late")
        elif cause == "handed_over":
            if lease not in self._offered:
                fail(f"lease {lease} was handed over, and never offered")
        elif cause not in {"asked", "closed", "given_up", "stale"}:
            fail(f"lease {lease} was released for {cause}, which nobody has caused")

    def _compare(self, state: State) -> None:
        rows, tracker = self._mirror.snapshot(), state.tracker
        told = {row["lease"]: (row["session"], row["name"]) for row in rows["leases"]}
        known = {
            lease: (held.session.id, tracker.lease_name(lease))
            for lease, held in state.leases.items()
        }
        if told != known:
            fail(f"by the events there are the leases {told}, and in the state {known}")
        if {row["session"] for row in rows["sessions"]} != set(state.sessions.by_id):
            fail("the sessions of the events are not those of the state")
        flying = {lease for lease, (_, name) in known.items() if name is None}
        if set(state.in_flight) != flying or tracker.inflight != len(flying):
            fail(f"{tracker.inflight} leases are in flight, and {flying} have claimed nothing")
        if any(held.session.ended for held in state.leases.values()):
            fail("a session that has ended holds a lease")
        desired = {row["name"]: row["desired"] for row in rows["proxies"]}
        if desired != {name: tracker.is_desired(name) for name in tracker.names()}:
            fail("the proxies of the events are not those of the state")

    def _check_times(self, state: State, now: float) -> None:
        """Check that nobody is forgotten whose time is up."""
        for pid, died in self._died.items():
            if died < 0:
                self._died[pid] = now
        for session in state.sessions:
            died = self._died.get(self._owners.get(session.token, 0), now)
            patience = LATE_SECONDS
            if session.process is None:
                patience += 2 * self._heartbeat_ttl
            if now > max(died, self.calm_since) + patience:
                fail(f"session {session.id} lives {now - died:g} s after its process")
        if self._claim_timeout:
            for lease in state.in_flight:
                since = max(state.leases[lease].granted, self.calm_since)
                if now > since + self._claim_timeout + LATE_SECONDS:
                    fail(f"lease {lease} is in flight for {now - since:g} s")
        for waiter in state.queue:
            if waiter.deadline is not None:
                since = max(waiter.deadline, self.calm_since)
                if now > since + LATE_SECONDS:
                    fail(f"a request waits {now - since:g} s beyond its deadline")


def _unstored(desk: Desk) -> int:
    """Return how many events the state has that are not stored yet: its start, on a full disk."""
    return 0 if desk.actor._epoch_stored else 1


def _lease_in(frame: bytes) -> int | None:
    reply = decode_reply(frame)
    lease: int | None = None if reply is None else reply.body.get("lease")
    return lease
