"""From a request on the wire to a change of the state, and back to a reply.

`Requests.answer` is the whole way of one request: who asks, for which session, has it been
answered before, is it stale, what does it want. Each operation of agents is one method below
that decodes its own fields and returns the fields of its reply; those of operators are in
`trackd.operators`. It runs in the actor's thread and does no I/O; what the peer got wrong is a
`ProtocolError`, everything else that is raised is a fault of ours.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

from trackd import operators
from trackd.actors.mailbox import Call
from trackd.facts import Facts
from trackd.host.logs import fields as about
from trackd.host.processes import command_of, has_exited, start_time
from trackd.host.roles import Roles
from trackd.operation import PARKED, Fields, Operation
from trackd.probe import PROBE
from trackd.rules.tracker import Row
from trackd.sessions.identity import Peer, Process
from trackd.sessions.sessions import Session, Watch, sentence_of
from trackd.state.state import State
from trackd_client import __version__
from trackd_client.errors import Code
from trackd_client.protocol import (
    MAX_LABEL_BYTES,
    MAX_LABELS,
    MAX_UINT64,
    MINOR,
    REPLY,
    SESSIONLESS,
    TOKEN_BYTES,
    VERSION,
    ProtocolError,
    check_count,
    check_done,
    check_name,
    check_seconds,
    check_text,
    encode,
    error_body,
)

log = logging.getLogger("trackd.requests")

#: Operations that need no session; `probe` is the daemon's own.
_SESSIONLESS = SESSIONLESS | {PROBE}
#: What this daemon can do beyond minor version 0; told by `hello`.
FEATURES: tuple[str, ...] = ()
#: Seconds after which a mutation that could not be stored is worth another try.
STORE_RETRY = 1.0
_INT64 = 2**63
#: What of a reply tells its outcome, for the log.
_OUTCOMES = ("claimed", "released", "cancelled", "changed", "retry_after", "error")


class Requests:
    """Answers requests against one state."""

    def __init__(self, state: State, roles: Roles, now: Callable[[], float], facts: Facts) -> None:
        self.state = state
        self.facts = facts
        self.roles = roles
        self.now = now
        self.config = state.config
        self._max_done_ranges = state.config.max_done_ranges

    def answer(self, call: Call) -> bytes | None:
        """Serve one request; return the frame of its reply, or None when it gets none now."""
        if call.problem is not None:
            return self._refuse(call, call.problem)
        try:
            return self._answer(call)
        except ProtocolError as error:
            return self._refuse(call, error)

    def _refuse(self, call: Call, error: ProtocolError) -> bytes:
        self.facts.metrics.errors[error.code] += 1
        body = error_body(call.seq, self.state.changes.revision, error.code, str(error))
        body.update(error.fields)
        if error.code == Code.UNAVAILABLE:
            body["retry_after"] = STORE_RETRY
        return encode(REPLY, body)

    def _answer(self, call: Call) -> bytes | None:
        body = call.body
        op = body.get("op")
        if type(op) is not str or op not in OPERATIONS:
            raise ProtocolError(Code.UNKNOWN_OPERATION, f"there is no operation {op!r:.80}")
        call.op = op
        if body.get("namespace", "") != "":
            raise ProtocolError(Code.INVALID_ARGUMENT, 'namespace must be ""')
        if call.peer is None:
            raise ProtocolError(Code.PERMISSION_DENIED, "the kernel does not say who asks")
        operation = OPERATIONS[op]
        if op in _SESSIONLESS:
            return self._reply(call, operation.run(self, call))

        token = body.get("token")
        if type(token) is not bytes or len(token) != TOKEN_BYTES:
            raise ProtocolError(Code.INVALID_ARGUMENT, f"token must be {TOKEN_BYTES} bytes")
        session = self.state.sessions.by_token.get(token)
        if session is None:
            return self._without_session(call, op, token, call.peer)
        if session.peer.uid != call.peer.uid:
            raise ProtocolError(Code.PERMISSION_DENIED, "the session belongs to another user")
        if session.process is None:
            self.state.heard_of(session)
        session.requests += 1
        if "done" in body:
            done = check_done(body["done"], self._max_done_ranges)
            # It can end waiting, which the store must know of; it comes again with each request.
            if self.facts.store_problem is None:
                self.state.acknowledge(session, done)

        seq = call.seq
        if seq in session.done:
            return None
        remembered = session.replies.get(seq)
        if remembered is not None:
            return remembered.frame
        if session.watch is not None and session.watch.seq == seq:
            session.watch = Watch(seq, call.route)
            return None
        waiter = session.parked.get(seq)
        if waiter is not None:
            waiter.route = call.route
            return None
        if not operation.never_stale and self._is_stale(call):
            return None
        if operation.admin and not self.roles.is_admin(call.peer):
            raise ProtocolError(Code.PERMISSION_DENIED, f"{op} needs the role admin")
        if operation.changes:
            self._check_store()
            if not self._has_room(session) and not operation.never_stale:
                raise ProtocolError(
                    Code.LIMIT_EXCEEDED,
                    f"the session has {self.config.max_outstanding} requests that wait or whose"
                    " replies it has not marked as done",
                )
        return self._run(session, call, operation)

    def _run(self, session: Session, call: Call, operation: Operation) -> bytes | None:
        """Run an operation of a session, and remember what it was answered."""
        state = self.state
        before = len(state.changes.records)
        try:
            fields = operation.run(self, call, session)
        except ProtocolError as error:
            frame = self._refuse(call, error)
            self._log(call, session, {"error": error.code})
            if operation.changes and self._has_room(session):
                state.remember(session, call.seq, frame, stored=False, lease=None)
            return frame
        if log.isEnabledFor(logging.DEBUG):
            self._log(call, session, {} if fields is PARKED else fields)
        if fields is PARKED:
            return None
        frame = self._reply(call, fields)
        if operation.changes and not session.ended and self._has_room(session):
            # What is done without room (release, cancel) may run again and do nothing then.
            stored = len(state.changes.records) > before
            state.remember(session, call.seq, frame, stored=stored, lease=fields.get("lease"))
        return frame

    def _log(self, call: Call, session: Session, fields: Fields) -> None:
        """Say at debug what a request did: benign, whatever it was."""
        lease = fields.get("lease") or call.body.get("lease")
        told = {
            "operation": call.body["op"],
            "session": session.id,
            "lease": lease,
            "proxy": fields.get("name"),
            **{key: fields[key] for key in _OUTCOMES if key in fields},
        }
        log.debug(
            "request", extra=about(**{key: each for key, each in told.items() if each is not None})
        )

    def _without_session(self, call: Call, op: str, token: bytes, peer: Peer) -> bytes | None:
        """Answer a request whose token has no session: `open`, or one that came too late."""
        ended = self.state.sessions.ended.get(token)
        if ended is not None:
            if ended.uid != peer.uid:
                raise ProtocolError(Code.PERMISSION_DENIED, "the session belonged to another user")
            if op == "close":
                return self._reply(call, {})
            raise ProtocolError(Code.SESSION_ENDED, sentence_of(ended.reason), reason=ended.reason)
        if op == "close":
            return self._reply(call, {})
        if op != "open":
            raise ProtocolError(
                Code.SESSION_UNKNOWN,
                "the daemon does not know this session; it was opened at another state of it",
            )
        if self._is_stale(call):
            return None
        self._check_store()
        return self._reply(call, self.open(call, token, peer))

    def _reply(self, call: Call, fields: Fields) -> bytes:
        return encode(REPLY, {"seq": call.seq, "revision": self.state.changes.revision, **fields})

    def _check_store(self) -> None:
        if self.facts.store_problem is not None:
            raise ProtocolError(
                Code.UNAVAILABLE,
                f"changes cannot be stored just now ({self.facts.store_problem});"
                " nothing was changed",
            )

    def _is_stale(self, call: Call) -> bool:
        deadline = call.body.get("deadline")
        return deadline is not None and check_seconds(deadline, "deadline") < self.now()

    def _has_room(self, session: Session) -> bool:
        return len(session.replies) + len(session.parked) < self.config.max_outstanding

    # -- operations without a session ----------------------------------------------------

    def hello(self, _call: Call) -> Fields:
        """Tell who the daemon is and what it accepts."""
        state, config = self.state, self.config
        return {
            "server": __version__,
            "protocol": VERSION,
            "minor": MINOR,
            "features": FEATURES,
            "cluster": self.config.cluster_name,
            "epoch": state.epoch,
            "tracker_id": state.tracker_id,
            "boot_id": self.facts.boot_id,
            "clock": self.now(),
            "limits": config.limits._asdict(),
            "events": self.facts.events,
        }

    def ping(self, _call: Call) -> Fields:
        """Answer, no more."""
        return {}

    # -- operations of a session ---------------------------------------------------------

    def open(self, call: Call, token: bytes, peer: Peer) -> Fields:
        """Begin a session for the process that asks."""
        body, state = call.body, self.state
        cluster = body.get("cluster")
        if cluster is not None and cluster != self.config.cluster_name:
            raise ProtocolError(
                Code.WRONG_CLUSTER,
                f"this daemon serves the cluster {self.config.cluster_name!r}, not {cluster!r:.99}",
            )
        name = check_text(body.get("name", ""), "name", self.config.max_name)
        version = check_text(body.get("version", ""), "version", self.config.max_name)
        labels = body.get("labels", {})
        if type(labels) is not dict:
            raise ProtocolError(Code.INVALID_ARGUMENT, "labels must be a map")
        if len(labels) > MAX_LABELS:
            raise ProtocolError(
                Code.LIMIT_EXCEEDED, f"{len(labels)} labels; {MAX_LABELS} are allowed"
            )
        for key, value in labels.items():
            check_name(key, "a label's name", MAX_LABEL_BYTES)
            check_text(value, f"label {key}", MAX_LABEL_BYTES)
        if len(state.sessions) >= self.config.max_sessions:
            raise ProtocolError(
                Code.LIMIT_EXCEEDED,
                f"the daemon has {self.config.max_sessions} sessions; no more are allowed",
            )
        process = _process_of(peer)
        command = command_of(peer.pid) if peer.pid else ""
        return self._opened(
            state.open_session(token, peer, process, name, version, labels, command)
        )

    def open_again(self, call: Call, session: Session) -> Fields:
        """Open a session that is open: the same one, for the process that opened it."""
        if call.peer is not None and call.peer.pid != session.peer.pid:
            raise ProtocolError(
                Code.PERMISSION_DENIED,
                f"the session belongs to the process {session.peer.pid};"
                " each process opens its own",
            )
        return self._opened(session)

    def _opened(self, session: Session) -> Fields:
        ttl = None if session.process is not None else self.config.heartbeat_ttl
        return {"session": session.id, "heartbeat_ttl": ttl}

    def close(self, _call: Call, session: Session) -> Fields:
        """End the session, and release what it holds."""
        self.state.end_session(session, "closed")
        return {}

    def heartbeat(self, _call: Call, _session: Session) -> Fields:
        """Show a sign of life; every request of the session is one."""
        return {}

    def track_expected(self, call: Call, session: Session) -> Fields:
        """Take in gossip."""
        entries = call.body.get("proxies")
        if type(entries) is not list:
            raise ProtocolError(Code.INVALID_ARGUMENT, "proxies must be an array")
        if len(entries) > self.config.max_proxies:
            raise ProtocolError(
                Code.LIMIT_EXCEEDED,
                f"{len(entries)} proxies in one message; {self.config.max_proxies} are allowed",
            )
        unknown = self.state.tracker.unknown(entries)  # nearly always: none
        if not unknown:
            self.state.mention(session, entries)
            return {"changed": 0}
        rows: list[Row] = list(entries)
        for i in unknown:
            rows[i] = self._row(entries[i], i)
        self._check_tracked(rows)
        return {"changed": self.state.track(session, rows)}

    def set_connection_count(self, call: Call, _session: Session) -> Fields:
        """Set how many connections are wanted."""
        count = check_count(call.body.get("count"), "count", least=-_INT64, most=_INT64 - 1)
        assert call.peer is not None
        if self.config.count_role == "admin" and not self.roles.is_admin(call.peer):
            raise ProtocolError(
                Code.PERMISSION_DENIED, "setting the connection count needs the role admin here"
            )
        if count != self.state.tracker.connection_count:
            operators.log_act(self, call, "set_connection_count", count=count)
            self.state.set_count(count)
        return {}

    def is_claimed(self, call: Call, _session: Session) -> Fields:
        """Tell whether a lease holds the proxy that is meant."""
        principals = self._principals(call)
        tracker = self.state.tracker
        name = tracker.resolve(principals)
        return {"claimed": name is not None and tracker.holder(name) is not None, "name": name}

    def try_acquire(self, _call: Call, session: Session) -> Fields:
        """Grant a lease now, or refuse."""
        self._check_leases()
        return self._granted(self.state.try_acquire(session))

    def acquire(self, call: Call, session: Session) -> Any:
        """Grant a lease now, or park the request until one can be granted or its deadline."""
        self._check_leases()
        lease = self.state.try_acquire(session)
        if lease is not None:
            return self._granted(lease)
        if len(self.state.queue) >= self.config.max_waiters:
            raise ProtocolError(
                Code.LIMIT_EXCEEDED,
                f"{self.config.max_waiters} requests wait for a lease; no more are allowed",
            )
        self.facts.metrics.refusals[self.state.refusal()] += 1
        deadline = call.body.get("deadline")
        self.state.park(session, call.seq, deadline, call.route)
        return PARKED

    def claim(self, call: Call, session: Session) -> Fields:
        """Claim the proxy that was reached."""
        lease = self._own_lease(call, session)
        if lease in session.expired:
            raise ProtocolError(
                Code.LEASE_EXPIRED,
                f"lease {lease} did not claim within"
                f" {self.config.claim_timeout:g} s and was taken back; acquire another",
            )
        name, reason = self.state.claim(session, lease, self._principals(call))
        if reason is not None:
            return {"claimed": False, "name": name, "reason": reason}
        return {"claimed": True, "name": name}

    def release(self, call: Call, session: Session) -> Fields:
        """Release a lease; a second time is no error."""
        return {"released": self.state.release(session, self._own_lease(call, session))}

    def adopt(self, call: Call, session: Session) -> Fields:
        """Take up a tunnel that is open already."""
        principals = self._principals(call)
        self._check_leases()
        lease, name = self.state.adopt(session, principals)
        return {"lease": lease, "name": name}

    def cancel(self, call: Call, session: Session) -> Fields:
        """Give up an earlier request: what it was granted is taken back, and it never runs."""
        target = check_count(call.body.get("target"), "target", least=1)
        return {"cancelled": self.state.give_up(session, target)}

    def watch_session(self, call: Call, session: Session) -> Any:
        """Park until there is something to tell this session."""
        self.state.watch(session, Watch(call.seq, call.route))
        return PARKED

    def _check_tracked(self, rows: list[Row]) -> None:
        """Refuse gossip that would have too many proxies tracked."""
        tracker, most = self.state.tracker, self.config.max_tracked
        if tracker.tracked_count + len(rows) > most:  # else there is room whichever are new
            new = {row[0] for row in rows if tracker.get(row[0]) is None}
            if tracker.tracked_count + len(new) > most:
                raise ProtocolError(
                    Code.LIMIT_EXCEEDED,
                    f"{tracker.tracked_count} proxies are tracked, and {len(new)} would be new;"
                    f" {most} are allowed",
                )

    def _check_leases(self) -> None:
        if len(self.state.leases) >= self.config.max_leases:
            raise ProtocolError(
                Code.LIMIT_EXCEEDED,
                f"{self.config.max_leases} leases are held; no more are allowed",
            )

    def _granted(self, lease: int | None) -> Fields:
        fields = self.state.grant_fields(lease)
        if lease is None:
            self.facts.metrics.refusals[self.state.refusal()] += 1
            if (wait := self.state.retry_after()) is not None:
                fields["retry_after"] = wait
        return fields

    # -- fields that several operations have --------------------------------------------

    def _own_lease(self, call: Call, session: Session) -> int:
        lease = check_count(call.body.get("lease"), "lease", least=1)
        held = self.state.leases.get(lease)
        if held is not None and held.session is not session:
            raise ProtocolError(Code.NOT_OWNER, f"lease {lease} belongs to another session")
        return lease

    def _principals(self, call: Call) -> list[str]:
        principals = call.body.get("principals")
        config = self.config
        if type(principals) is not list:
            raise ProtocolError(Code.INVALID_ARGUMENT, "principals must be an array")
        if len(principals) > config.max_principals:
            raise ProtocolError(
                Code.LIMIT_EXCEEDED,
                f"{len(principals)} principals; {config.max_principals} are allowed",
            )
        for principal in principals:
            if not (  # nearly all of them are
                type(principal) is str
                and 0 < len(principal) <= config.max_name
                and principal.isascii()
                and principal.isprintable()
            ):
                check_name(principal, "a principal", config.max_name)
        return principals

    def _row(self, entry: Any, index: int) -> Row:
        if type(entry) is not list or len(entry) < 4:
            raise ProtocolError(
                Code.INVALID_ARGUMENT,
                f"proxies[{index}] must be an array of name, group, generation and ttl",
            )
        name, group, generation, ttl = entry[:4]
        try:
            check_name(name, "name", self.config.max_name)
            check_text(group, "group", self.config.max_name)
            if type(generation) is not int or not 0 <= generation <= MAX_UINT64:
                check_count(generation, "generation")
            if ttl is not None:
                ttl = check_seconds(ttl, "ttl")
        except ProtocolError as error:
            raise ProtocolError(error.code, f"proxies[{index}].{error}") from None
        return name, group, generation, ttl if ttl is not None and ttl > 0 else None


def _process_of(peer: Peer) -> Process | None:
    """Return the process of a peer, or None when it cannot be seen and must show signs of life.

    Raises:
        ProtocolError: it was gone before its request was read.
    """
    if peer.pid == 0:
        return None
    with contextlib.suppress(OSError):  # no descriptors to look: as if /proc were hidden
        start = start_time(peer.pid)
        if start is not None:
            return Process(peer.pid, start)
        if has_exited(peer.pid):
            reason = "process_exited"
            raise ProtocolError(Code.SESSION_ENDED, sentence_of(reason), reason=reason)
    return None


OPERATIONS: dict[str, Operation] = {
    "hello": Operation(Requests.hello),
    "ping": Operation(Requests.ping),
    **operators.OPERATIONS,
    "open": Operation(Requests.open_again),
    "heartbeat": Operation(Requests.heartbeat),
    "watch_session": Operation(Requests.watch_session),
    "is_claimed": Operation(Requests.is_claimed),
    "track_expected": Operation(Requests.track_expected, changes=True),
    "set_connection_count": Operation(Requests.set_connection_count, changes=True),
    "try_acquire": Operation(Requests.try_acquire, changes=True),
    "acquire": Operation(Requests.acquire, changes=True),
    "claim": Operation(Requests.claim, changes=True),
    "adopt": Operation(Requests.adopt, changes=True),
    "release": Operation(Requests.release, changes=True, never_stale=True),
    "cancel": Operation(Requests.cancel, changes=True, never_stale=True),
    "close": Operation(Requests.close, changes=True, never_stale=True),
}
