"""From a request on the wire to a change of the state, and back to a reply.

`Requests.answer` is the whole way of one request: who asks, for which session, has it been
answered before, is it stale, what does it want. Each operation is one function below that
decodes its own fields and returns the fields of its reply. It runs in the actor's thread
and does no I/O; what the peer got wrong is a `ProtocolError`, everything else that is
raised is a fault of ours.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from trackd.logs import fields as about
from trackd.mailbox import Call
from trackd.peers import Peer, Roles, has_exited, start_time
from trackd.probe import PROBE
from trackd.sessions import Process, Session, Watch, sentence_of
from trackd.state import State
from trackd.tracker import Row
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

Fields = dict[str, Any]
#: Operations that need no session; `probe` is the daemon's own.
_SESSIONLESS = SESSIONLESS | {PROBE}
#: A request that waits: its reply comes later.
PARKED = object()
#: What this daemon can do beyond minor version 0; told by `hello`.
FEATURES: tuple[str, ...] = ()
#: Groups that `status`, and proxies that `explain` tells by name.
MOST_GROUPS = 100
MOST_MISSING = 100
#: Seconds after which a mutation that could not be stored is worth another try.
STORE_RETRY = 1.0
_INT64 = 2**63
#: What of a reply tells its outcome, for the log.
_OUTCOMES = ("claimed", "released", "cancelled", "changed", "retry_after", "error")


@dataclass(slots=True)
class Facts:
    """What the actor knows of the process, beside the state.

    Attributes:
        boot_id: of the running kernel.
        started: when the process began to serve, in seconds of CLOCK_BOOTTIME.
        requests: served since then.
        store_problem: why changes cannot be stored just now, or None.
    """

    boot_id: str
    started: float
    requests: int = 0
    store_problem: str | None = None


class Requests:
    """Answers requests against one state."""

    def __init__(self, state: State, roles: Roles, now: Callable[[], float], facts: Facts) -> None:
        self._state = state
        self._facts = facts
        self._roles = roles
        self._now = now
        self._config = state.config

    def answer(self, call: Call) -> bytes | None:
        """Serve one request; return the frame of its reply, or None when it gets none now."""
        try:
            if call.problem is not None:
                raise call.problem
            return self._answer(call)
        except ProtocolError as error:
            return self._refuse(call, error)

    def _refuse(self, call: Call, error: ProtocolError) -> bytes:
        body = error_body(call.seq, self._state.revision, error.code, str(error))
        body.update(error.fields)
        if error.code == Code.UNAVAILABLE:
            body["retry_after"] = STORE_RETRY
        return encode(REPLY, body)

    def _answer(self, call: Call) -> bytes | None:
        body = call.body
        op = body.get("op")
        if type(op) is not str or op not in OPERATIONS:
            raise ProtocolError(Code.UNKNOWN_OPERATION, f"there is no operation {op!r:.80}")
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
        session = self._state.sessions.by_token.get(token)
        if session is None:
            return self._without_session(call, op, token, call.peer)
        if session.peer.uid != call.peer.uid:
            raise ProtocolError(Code.PERMISSION_DENIED, "the session belongs to another user")
        self._state.heard_of(session)
        if "done" in body:
            done = check_done(body["done"], self._config.max_done_ranges)
            # It can end waiting, which the store must know of; it comes again with each request.
            if self._facts.store_problem is None:
                self._state.acknowledge(session, done)

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
        if operation.changes:
            self._check_store()
            if not self._has_room(session) and not operation.never_stale:
                raise ProtocolError(
                    Code.LIMIT_EXCEEDED,
                    f"the session has {self._config.max_outstanding} requests that wait or whose"
                    " replies it has not marked as done",
                )
        return self._run(session, call, operation)

    def _run(self, session: Session, call: Call, operation: Operation) -> bytes | None:
        """Run an operation of a session, and remember what it was answered."""
        state = self._state
        before = len(state.records)
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
            stored = len(state.records) > before
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
        ended = self._state.sessions.ended.get(token)
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
        return encode(REPLY, {"seq": call.seq, "revision": self._state.revision, **fields})

    def _check_store(self) -> None:
        if self._facts.store_problem is not None:
            raise ProtocolError(
                Code.UNAVAILABLE,
                f"changes cannot be stored just now ({self._facts.store_problem});"
                " nothing was changed",
            )

    def _is_stale(self, call: Call) -> bool:
        deadline = call.body.get("deadline")
        return deadline is not None and check_seconds(deadline, "deadline") < self._now()

    def _has_room(self, session: Session) -> bool:
        return len(session.replies) + len(session.parked) < self._config.max_outstanding

    # -- operations without a session ----------------------------------------------------

    def hello(self, _call: Call) -> Fields:
        """Tell who the daemon is and what it accepts."""
        state, config = self._state, self._config
        return {
            "server": __version__,
            "protocol": VERSION,
            "minor": MINOR,
            "features": FEATURES,
            "cluster": self._config.cluster_name,
            "epoch": state.epoch,
            "tracker_id": state.tracker_id,
            "boot_id": self._facts.boot_id,
            "clock": self._now(),
            "limits": config.limits._asdict(),
            "events": "",
        }

    def ping(self, _call: Call) -> Fields:
        """Answer, no more."""
        return {}

    def probe(self, call: Call) -> Fields:
        """Store something, and answer this very process with the counts that people want."""
        if call.peer is None or call.peer.pid != os.getpid():
            raise ProtocolError(Code.UNKNOWN_OPERATION, f"there is no operation {PROBE!r}")
        state, tracker = self._state, self._state.tracker
        self._facts.requests -= 1  # nobody asked for anything
        if self._facts.store_problem is None:
            state.mark()
        return {
            "desired": tracker.desired_count,
            "claimed_desired": tracker.claimed_desired_count,
            "claimed": tracker.claimed_count,
            "inflight": tracker.inflight,
            "waiting": len(state.queue),
            "sessions": len(state.sessions),
            "store": self._store_word(),
        }

    def status(self, _call: Call) -> Fields:
        """Tell the counts of everything."""
        state, tracker = self._state, self._state.tracker
        return {
            "cluster": tracker.cluster_name,
            "server": __version__,
            "pid": os.getpid(),
            "epoch": state.epoch,
            "tracker_id": state.tracker_id,
            "uptime": self._now() - self._facts.started,
            "mode": "agent mesh" if tracker.connection_count <= 0 else "proxy peering",
            "connection_count": tracker.connection_count,
            "proxy_expiry": tracker.proxy_expiry,
            "tracked": tracker.tracked_count,
            "desired": tracker.desired_count,
            "target": tracker.target,
            "claimed": tracker.claimed_count,
            "claimed_desired": tracker.claimed_desired_count,
            "inflight": tracker.inflight,
            "waiting": len(state.queue),
            "sessions": len(state.sessions),
            "last_lease": tracker.last_lease,
            "requests": self._facts.requests,
            "store": self._store_word(),
            "store_problem": self._facts.store_problem,
            "group_count": tracker.group_count,
            "groups": [
                {
                    "group": group.name,
                    "generation": group.generation,
                    "tracked": group.tracked,
                    "desired": group.desired,
                    "claimed": group.claimed,
                }
                for group in tracker.groups(MOST_GROUPS)
            ],
        }

    def explain(self, _call: Call) -> Fields:
        """Tell each number of rule 6, what it decides now, and which proxies are missing."""
        state, tracker = self._state, self._state.tracker
        bootstrap, need = tracker.bootstrap, tracker.need
        if self._facts.store_problem is not None:
            reason = "store"
        elif state.queue:
            reason = "waiters"
        elif (bootstrap or need) and state.retry_after() is not None:
            reason = "budget"
        else:
            reason = "bootstrap" if bootstrap else "need" if need else "satisfied"
        return {
            "would_grant": reason in ("bootstrap", "need"),
            "reason": reason,
            "bootstrap": bootstrap,
            "need": need,
            "connection_count": tracker.connection_count,
            "tracked": tracker.tracked_count,
            "desired": tracker.desired_count,
            "target": tracker.target,
            "claimed": tracker.claimed_count,
            "claimed_desired": tracker.claimed_desired_count,
            "inflight": tracker.inflight,
            "waiting": len(state.queue),
            "missing": tracker.missing(MOST_MISSING),
            "missing_count": tracker.desired_count - tracker.claimed_desired_count,
        }

    def _store_word(self) -> str:
        if self._facts.store_problem is not None:
            return "failing"
        return "ok" if self._config.state_dir else "off"

    # -- operations of a session ---------------------------------------------------------

    def open(self, call: Call, token: bytes, peer: Peer) -> Fields:
        """Begin a session for the process that asks."""
        body, state = call.body, self._state
        cluster = body.get("cluster")
        if cluster is not None and cluster != self._config.cluster_name:
            raise ProtocolError(
                Code.WRONG_CLUSTER,
                f"this daemon serves the cluster {self._config.cluster_name!r},"
                f" not {cluster!r:.99}",
            )
        name = check_text(body.get("name", ""), "name", self._config.max_name)
        version = check_text(body.get("version", ""), "version", self._config.max_name)
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
        if len(state.sessions) >= self._config.max_sessions:
            raise ProtocolError(
                Code.LIMIT_EXCEEDED,
                f"the daemon has {self._config.max_sessions} sessions; no more are allowed",
            )
        process = _process_of(peer)
        return self._opened(state.open_session(token, peer, process, name, version, labels))

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
        ttl = None if session.process is not None else self._config.heartbeat_ttl
        return {"session": session.id, "heartbeat_ttl": ttl}

    def close(self, _call: Call, session: Session) -> Fields:
        """End the session, and release what it holds."""
        self._state.end_session(session, "closed")
        return {}

    def heartbeat(self, _call: Call, _session: Session) -> Fields:
        """Show a sign of life; every request of the session is one."""
        return {}

    def track_expected(self, call: Call, _session: Session) -> Fields:
        """Take in gossip."""
        entries = call.body.get("proxies")
        if type(entries) is not list:
            raise ProtocolError(Code.INVALID_ARGUMENT, "proxies must be an array")
        if len(entries) > self._config.max_proxies:
            raise ProtocolError(
                Code.LIMIT_EXCEEDED,
                f"{len(entries)} proxies in one message; {self._config.max_proxies} are allowed",
            )
        rows = [self._row(entry, i) for i, entry in enumerate(entries)]
        self._check_tracked(rows)
        return {"changed": len(self._state.track(rows))}

    def set_connection_count(self, call: Call, _session: Session) -> Fields:
        """Set how many connections are wanted."""
        count = check_count(call.body.get("count"), "count", least=-_INT64, most=_INT64 - 1)
        assert call.peer is not None
        if self._config.count_role == "admin" and not self._roles.is_admin(call.peer):
            raise ProtocolError(
                Code.PERMISSION_DENIED, "setting the connection count needs the role admin here"
            )
        self._state.set_count(count)
        return {}

    def is_claimed(self, call: Call, _session: Session) -> Fields:
        """Tell whether a lease holds the proxy that is meant."""
        principals = self._principals(call)
        tracker = self._state.tracker
        name = tracker.resolve(principals)
        return {"claimed": name is not None and tracker.holder(name) is not None, "name": name}

    def try_acquire(self, _call: Call, session: Session) -> Fields:
        """Grant a lease now, or refuse."""
        self._check_leases()
        return self._granted(self._state.try_acquire(session))

    def acquire(self, call: Call, session: Session) -> Any:
        """Grant a lease now, or park the request until one can be granted or its deadline."""
        self._check_leases()
        lease = self._state.try_acquire(session)
        if lease is not None:
            return self._granted(lease)
        if len(self._state.queue) >= self._config.max_waiters:
            raise ProtocolError(
                Code.LIMIT_EXCEEDED,
                f"{self._config.max_waiters} requests wait for a lease; no more are allowed",
            )
        deadline = call.body.get("deadline")
        self._state.park(session, call.seq, deadline, call.route)
        return PARKED

    def claim(self, call: Call, session: Session) -> Fields:
        """Claim the proxy that was reached."""
        lease = self._own_lease(call, session)
        if lease in session.expired:
            raise ProtocolError(
                Code.LEASE_EXPIRED,
                f"lease {lease} did not claim within"
                f" {self._config.claim_timeout:g} s and was taken back; acquire another",
            )
        name, reason = self._state.claim(session, lease, self._principals(call))
        if reason is not None:
            return {"claimed": False, "name": name, "reason": reason}
        return {"claimed": True, "name": name}

    def release(self, call: Call, session: Session) -> Fields:
        """Release a lease; a second time is no error."""
        return {"released": self._state.release(session, self._own_lease(call, session))}

    def adopt(self, call: Call, session: Session) -> Fields:
        """Take up a tunnel that is open already."""
        principals = self._principals(call)
        self._check_leases()
        adopted = self._state.adopt(session, principals)
        if adopted is None:
            return {"lease": None, "name": self._state.tracker.resolve(principals)}
        return {"lease": adopted[0], "name": adopted[1]}

    def cancel(self, call: Call, session: Session) -> Fields:
        """Give up an earlier request: what it was granted is taken back, and it never runs."""
        target = check_count(call.body.get("target"), "target", least=1)
        return {"cancelled": self._state.give_up(session, target)}

    def watch_session(self, call: Call, session: Session) -> Any:
        """Park until there is something to tell this session."""
        self._state.watch(session, Watch(call.seq, call.route))
        return PARKED

    def _check_tracked(self, rows: list[Row]) -> None:
        """Refuse gossip that would have too many proxies tracked."""
        tracker, most = self._state.tracker, self._config.max_tracked
        if tracker.tracked_count + len(rows) > most:  # else there is room whichever are new
            new = {row[0] for row in rows if tracker.get(row[0]) is None}
            if tracker.tracked_count + len(new) > most:
                raise ProtocolError(
                    Code.LIMIT_EXCEEDED,
                    f"{tracker.tracked_count} proxies are tracked, and {len(new)} would be new;"
                    f" {most} are allowed",
                )

    def _check_leases(self) -> None:
        if len(self._state.leases) >= self._config.max_leases:
            raise ProtocolError(
                Code.LIMIT_EXCEEDED,
                f"{self._config.max_leases} leases are held; no more are allowed",
            )

    def _granted(self, lease: int | None) -> Fields:
        fields = self._state.grant_fields(lease)
        if lease is None and (wait := self._state.retry_after()) is not None:
            fields["retry_after"] = wait
        return fields

    # -- fields that several operations have --------------------------------------------

    def _own_lease(self, call: Call, session: Session) -> int:
        lease = check_count(call.body.get("lease"), "lease", least=1)
        held = self._state.leases.get(lease)
        if held is not None and held.session is not session:
            raise ProtocolError(Code.NOT_OWNER, f"lease {lease} belongs to another session")
        return lease

    def _principals(self, call: Call) -> list[str]:
        principals = call.body.get("principals")
        config = self._config
        if type(principals) is not list:
            raise ProtocolError(Code.INVALID_ARGUMENT, "principals must be an array")
        if len(principals) > config.max_principals:
            raise ProtocolError(
                Code.LIMIT_EXCEEDED,
                f"{len(principals)} principals; {config.max_principals} are allowed",
            )
        for principal in principals:
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
            check_name(name, "name", self._config.max_name)
            check_text(group, "group", self._config.max_name)
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


class Operation(NamedTuple):
    """One operation of the protocol.

    Attributes:
        run: the method of `Requests` that does it.
        changes: whether it can change the state; then its reply is remembered.
        never_stale: whether it is done however late it arrives.
    """

    run: Callable[..., Any]
    changes: bool = False
    never_stale: bool = False


OPERATIONS: dict[str, Operation] = {
    "hello": Operation(Requests.hello),
    "ping": Operation(Requests.ping),
    "status": Operation(Requests.status),
    "explain": Operation(Requests.explain),
    PROBE: Operation(Requests.probe),
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
