"""The path of a request: from the wire to a change of the state, and back to a reply.

`Requests.answer` is the whole path of one request: who asks, for which session, has it been
answered before, is it stale, what does it want. The operations are functions: those of agents in
`trackd.operations.agents`, those that anybody may ask for in `trackd.operations.reports`, those
of admins in `trackd.operations.admin`, those of a fleet in `trackd.operations.fleet`. All of it
runs in the actor's thread. Its only I/O is to read /proc and the sizes of files. What
the peer got wrong is a `ProtocolError`; any other exception is a fault of ours.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Final

from trackd.host.logs import fields as log_fields
from trackd.operations import admin, agents, fleet, quotas, reports
from trackd.operations.call import Call
from trackd.operations.context import Context
from trackd.operations.operation import PARKED, PROBE, Fields, Operation
from trackd.sessions.identity import Peer
from trackd.sessions.sessions import ParkedWatch, Session, sentence_of
from trackd.state import exactly_once
from trackd_client.errors import Code
from trackd_client.wire.checks import check_done, check_seconds
from trackd_client.wire.done import Done
from trackd_client.wire.errors import ProtocolError
from trackd_client.wire.protocol import REPLY, SESSIONLESS, TOKEN_BYTES, encode, error_body
from trackd_client.wire.requests import Open, RequestFields

log = logging.getLogger("trackd.requests")

#: Operations that need no session; `probe` is the daemon's own.
_SESSIONLESS = SESSIONLESS | {PROBE}
#: Seconds after which a mutation that could not be stored is worth another try.
STORE_RETRY = 1.0
#: The fields of a reply that the log shows as its outcome.
_OUTCOMES = ("claimed", "released", "cancelled", "changed", "retry_after", "error")


class Requests:
    """Answers requests against one state."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.config = context.config
        self.state = context.state
        self.decide = context.decide
        self.replies = context.replies
        self._max_done_ranges = context.config.max_done_ranges

    def answer(self, call: Call) -> bytes | None:
        """Serve one request; return the frame of its reply, or None when it gets no reply now."""
        if call.problem is not None:
            return self._refuse(call, call.problem)
        try:
            return self._answer(call)
        except ProtocolError as error:
            with suppress(ProtocolError):
                self._take_done(call)  # unless it is what is wrong
            return self._refuse(call, error)

    def take_unstored_done(self) -> None:
        """Take in what sessions were done with while the store failed, now that it works."""
        for token, done in self.context.runtime.unstored_done.items():
            session = self.state.sessions.by_token.get(token)
            if session is not None:
                with suppress(ProtocolError):  # too many gaps; together with what is known already
                    exactly_once.acknowledge(self.decide, session, done.ranges)
        self.context.runtime.unstored_done.clear()

    def _refuse(self, call: Call, error: ProtocolError) -> bytes:
        self.context.runtime.metrics.errors[error.code] += 1
        body = error_body(call.seq, self.decide.revision, error.code, str(error))
        body.update(error.fields)
        if error.code == Code.UNAVAILABLE:
            body["retry_after"] = STORE_RETRY
        return encode(REPLY, body)

    def _answer(self, call: Call) -> bytes | None:
        body = call.body
        op = body.get("op")
        if type(op) is not str or (operation := OPERATIONS.get(op)) is None:
            raise ProtocolError(Code.UNKNOWN_OPERATION, f"there is no operation {op!r:.80}")
        call.op = op
        if body.get("namespace") not in (None, ""):
            raise ProtocolError(Code.INVALID_ARGUMENT, 'namespace must be ""')
        if call.peer is None:
            raise ProtocolError(
                Code.PERMISSION_DENIED, "the kernel does not say which process sent the request"
            )
        if op in _SESSIONLESS:
            request = operation.decode(body, self.config)
            return self.replies.frame(call.seq, operation.run(self.context, call, request))

        token = body.get("token")
        if type(token) is not bytes or len(token) != TOKEN_BYTES:
            raise ProtocolError(Code.INVALID_ARGUMENT, f"token must be {TOKEN_BYTES} bytes")
        session = self.state.sessions.by_token.get(token)
        if session is None:
            return self._without_session(call, op, token, call.peer)
        if not call.peer.has_user_of(session.peer):
            raise ProtocolError(Code.PERMISSION_DENIED, "the session belongs to another user")
        if session.process is None:
            self.decide.note_sign_of_life(session)
        session.live.requests += 1
        done, deadline = body.get("done"), body.get("deadline")
        if done is not None:
            self._acknowledge(session, check_done(done, self._max_done_ranges))

        seq, live = call.seq, session.live
        if seq in live.done:
            return None
        kept = session.replies.get(seq)
        if kept is not None:
            if (damper := self.context.runtime.damper) is not None:
                damper.note_copy(body, session.peer.host)
            return kept.frame
        if seq in live.refusals:
            return live.refusals[seq]
        if live.watch is not None and live.watch.seq == seq:
            live.watch = ParkedWatch(seq, call.route)
            return None
        if seq in session.parked:
            session.put_route(seq, call.route)
            return None
        if deadline is not None and not operation.never_stale and self._is_stale(call, deadline):
            return None
        if operation.admin:
            self.context.check_admin(call, op, f"{op} needs the role admin")
        if operation.changes:
            self._check_store()
            if not operation.never_stale:
                self._check_room(session)
        elif operation.repeatable:
            session.note_repeatable(seq, self.config.max_outstanding)
        return self._run(session, call, operation)

    def _take_done(self, call: Call) -> None:
        """Take in what a session is done with from a request that was refused before it was run."""
        token, done = call.body.get("token"), call.body.get("done")
        if done is None or type(token) is not bytes or call.peer is None or call.op in _SESSIONLESS:
            return
        session = self.state.sessions.by_token.get(token)
        if session is not None and call.peer.has_user_of(session.peer):
            self._acknowledge(session, check_done(done, self._max_done_ranges))

    def _acknowledge(self, session: Session, ranges: list[int]) -> None:
        """Take in what a session is done with; while the store fails, only note it for later.

        It can end a wait, which must be stored.
        """
        runtime = self.context.runtime
        if runtime.store_problem is None:
            exactly_once.acknowledge(self.decide, session, ranges)
        else:
            noted = runtime.unstored_done.setdefault(session.token, Done())
            noted.update(ranges, self._max_done_ranges)

    def _run(self, session: Session, call: Call, operation: Operation) -> bytes | None:
        """Run an operation of a session, and remember its reply."""
        before = self.decide.made
        request = None
        try:
            request = operation.decode(call.body, self.config)
            fields = operation.run(self.context, call, session, request)
        except ProtocolError as error:
            frame = self._refuse(call, error)
            self._log(call, session, request, {"error": error.code})
            if operation.changes and self._has_room(session, operation):
                exactly_once.remember(
                    self.decide, session, call.seq, frame, stored=False, lease=None
                )
            return frame
        if log.isEnabledFor(logging.DEBUG):
            self._log(call, session, request, {} if fields is PARKED else fields)
        if fields is PARKED:
            return None
        frame = self.replies.frame(call.seq, fields)
        if operation.changes and not session.ended and self._has_room(session, operation):
            # Operations that run without room (release, cancel) may run again and do nothing then.
            stored = self.decide.made > before
            exactly_once.remember(
                self.decide, session, call.seq, frame, stored=stored, lease=fields.get("lease")
            )
        return frame

    def _log(
        self, call: Call, session: Session, request: RequestFields | None, fields: Fields
    ) -> None:
        """Log at debug what a request did; None: its fields could not be decoded."""
        lease = fields.get("lease") or getattr(request, "lease", None)
        shown = {
            "operation": call.op,
            "session": session.id,
            "lease": lease,
            "proxy": fields.get("name"),
            **{key: fields[key] for key in _OUTCOMES if key in fields},
        }
        log.debug(
            "request",
            extra=log_fields(**{key: each for key, each in shown.items() if each is not None}),
        )

    def _without_session(self, call: Call, op: str, token: bytes, peer: Peer) -> bytes | None:
        """Serve a request whose token has no session: `open`, or one that came too late."""
        ended = self.state.sessions.ended.get(token)
        if ended is not None:
            if ended.user != peer.user:
                raise ProtocolError(Code.PERMISSION_DENIED, "the session belonged to another user")
            if op == "close":
                return self.replies.frame(call.seq, {})
            raise ProtocolError(Code.SESSION_ENDED, sentence_of(ended.reason), reason=ended.reason)
        if op == "close":
            return self.replies.frame(call.seq, {})
        if op != "open":
            raise ProtocolError(
                Code.SESSION_UNKNOWN,
                "the daemon does not know this session; it was opened before the daemon lost its"
                " state",
            )
        deadline = call.body.get("deadline")
        if deadline is not None and self._is_stale(call, deadline):
            return None
        self._check_store()
        request = Open.decode(call.body, self.config)
        fields = agents.open_session(self.context, call, request, token)
        opened = self.state.sessions.by_token[token]
        opened.note_repeatable(call.seq, self.config.max_outstanding)
        return self.replies.frame(call.seq, fields)

    def _check_store(self) -> None:
        if self.context.runtime.store_problem is not None:
            raise ProtocolError(
                Code.UNAVAILABLE,
                f"changes cannot be stored just now ({self.context.runtime.store_problem});"
                " nothing was changed",
            )

    def _is_stale(self, call: Call, deadline: object) -> bool:
        """Return whether a request is to be dropped because it arrived after its deadline.

        Raises:
            ProtocolError: it did, and its client wants to know.
        """
        call.deadline = check_seconds(deadline, "deadline")
        late = self.context.now() - call.deadline
        wanted = call.body.get("reply_if_stale")
        if late <= 0 or wanted is None or wanted is False:
            return late > 0
        if wanted is not True:
            raise ProtocolError(Code.INVALID_ARGUMENT, "reply_if_stale must be a boolean")
        raise ProtocolError(
            Code.STALE, f"the request arrived {late:.3g} s after its deadline and was not handled"
        )

    def _check_room(self, session: Session) -> None:
        if not self.replies.has_number(session):
            raise ProtocolError(
                Code.LIMIT_EXCEEDED,
                f"the session has {self.config.max_outstanding} requests that wait or whose"
                " replies it has not marked as done",
            )
        quotas.check_reply(self.context, session)

    def _has_room(self, session: Session, operation: Operation) -> bool:
        """Return whether there is room for a reply: for most operations `_check_room` was asked."""
        if not operation.never_stale:
            return True
        has_number = self.replies.has_number(session, spare=True)
        return has_number and quotas.has_reply_room(self.context, session)


OPERATIONS: Final[dict[str, Operation]] = {
    **agents.OPERATIONS,
    **reports.OPERATIONS,
    **admin.OPERATIONS,
    **fleet.OPERATIONS,
}
#: The operations whose requests the mailbox hands over one at a time.
COSTLY: Final = frozenset(name for name, operation in OPERATIONS.items() if operation.costly)
