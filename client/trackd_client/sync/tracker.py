"""`Tracker`: the synchronous client. Threads may share a tracker."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Self

import zmq

from trackd_client.core import calls
from trackd_client.core.base_tracker import CLOSE_SECONDS, log
from trackd_client.core.calls import BY_TIMEOUT, Call, Grant, T
from trackd_client.core.conversation import (
    RESEND_SECONDS,
    Request,
    Session,
    cut_off_error,
    lengthen,
    read_reply,
)
from trackd_client.core.discovery import Reading, read_gossip
from trackd_client.core.insist import insist
from trackd_client.core.sockets import check_threads, is_held, no_answer_error
from trackd_client.errors import (
    AcquireTimeout,
    DaemonAbsent,
    NoAnswer,
    Refused,
    SessionLost,
    TrackdError,
)
from trackd_client.proxy import Proxy
from trackd_client.sync.connection import Connection, Connections, Happened, Wake
from trackd_client.sync.ending import close_dropped, end_later, end_session
from trackd_client.sync.keeper import Keeper
from trackd_client.sync.lease import Lease
from trackd_client.sync.operators import Operations
from trackd_client.wire.clock import boottime
from trackd_client.wire.requests import RequestFields


class Tracker(Operations[Lease]):
    """A client of the local daemon, for threads.

    Nothing is connected until the first call. The first call that needs a session opens one;
    `close` ends it. Leases live as long as the session. Threads may share a tracker; a child
    process must make its own.
    """

    def _prepare(self) -> None:
        check_threads()
        # A signal handler or a finalizer may call the tracker while its thread holds these.
        self._opening = threading.RLock()
        self._closing = threading.RLock()
        self._close_begun = False
        self._ending: Session | None = None
        self._connections = Connections(self._place)
        try:
            self._keeper = Keeper(self._conversation, self, self._connections)
        except BaseException:
            self._connections.close()
            raise
        close = partial(_close_parts, self._keeper, self._connections)
        self._dropped = weakref.finalize(
            self, close_dropped, self._conversation, self._place, close
        )
        self._dropped.atexit = False  # the session ends with the process

    # -- what agents do -------------------------------------------------------------------

    def track_expected(self, *proxies: Proxy) -> None:
        """Send gossip about proxies to the daemon; the newest message wins.

        Args:
            proxies: at most as many as the daemon takes in one message (10,000).
        """
        self._call(calls.track_expected(proxies))

    def track_discovery(self, payload: bytes | str) -> int:
        """Send gossip to the daemon as it came down a tunnel: Teleport's JSON discovery payload.

        An entry that no proxy can be is skipped, and a warning is logged, at most one in half a
        minute. What is too large for one message is sent in several.

        Returns:
            How many entries were skipped.

        Raises:
            BadPayload: the payload is not a JSON object with an array "proxies".
        """
        return self._feed(read_gossip([payload]))

    def _feed(self, reading: Reading) -> int:
        """Send what gossip mentions, and return how many of its entries were skipped."""
        self._check_usable()
        if not self._conversation.said_hello:
            self.ping()  # its limits are known then
        messages, skipped = self._messages(reading)
        for message in messages:
            self._call(message)
        return skipped

    def set_connection_count(self, count: int) -> None:
        """Set how many connections all agents of this host want together.

        Args:
            count: 0 or less for one to every desired proxy; n > 0 for at most n.
        """
        self._call(calls.set_connection_count(count))

    def is_claimed(self, *principals: str) -> bool:
        """Return whether a lease of any agent holds the proxy with these principals."""
        return self._call(calls.is_claimed(principals))

    def try_acquire(self) -> Lease | None:
        """Return a lease to dial with, or None when no dial is wanted now."""
        return self._grant(calls.try_acquire())

    def acquire(self, timeout: float | None = None) -> Lease:
        """Wait for a lease to dial with; the longest waiter is served first.

        Args:
            timeout: seconds to wait at most, 0 to ask once, or None for no limit.

        Raises:
            AcquireTimeout: no lease was granted in time.
        """
        lease: Any = self._grant(calls.acquire(timeout))
        return lease  # type: ignore[no-any-return]

    def adopt(self, *principals: str) -> Lease | None:
        """Get a lease for a tunnel that is open already, after its session was lost.

        Returns:
            A lease that has claimed the proxy, or None when another lease holds it.
        """
        return self._grant(calls.adopt(principals))

    def _blocks_others(self) -> bool:
        """Return whether this thread holds a lock of the tracker, so that others may wait for it.

        Between two calls it holds none: this is a signal handler then, which interrupted a call.
        """
        conversation = self._conversation
        return any(
            is_held(lock)
            for lock in (
                self._opening,
                self._closing,
                self._state_lock,
                self._limited_log.lock,
                self._connections.lock,
                self._keeper.lock,
                conversation.lock,
                conversation.reports.lock,
            )
        )

    # -- the end ------------------------------------------------------------------------------

    def close(self) -> None:
        """End the session, which releases all of its leases. A second call does nothing.

        Calls in other threads raise `TrackerClosed`. Without a daemon this returns after at most
        some seconds; a thread ends the session once there is one.
        """
        self._conversation.check_process()
        try:
            with self._closing:
                if self._close_begun:
                    return
                self._close_begun = True
            self._end()
        except BaseException:
            self._close_begun = False  # interrupted: a second call completes it
            raise

    def _end(self) -> None:
        """End the session and close everything; what was done already does no harm again."""
        conversation = self._conversation
        session = self._ending = self._ending or conversation.close()
        if session is not None:
            conversation.lose(session)
            self._mark_lost(session)
        self._keeper.stop(CLOSE_SECONDS)
        self._dropped.detach()
        ended = session is None or not session.perhaps_open
        if session is not None and not ended:
            seconds = min(self.timeout, CLOSE_SECONDS)
            with suppress(TrackdError), self._connections.lend(deadline=boottime()) as connection:
                ended = end_session(conversation, session, connection, seconds)
        self._connections.close()
        if session is not None and not ended:
            log.info("the session will be ended when the daemon can: %s", self.endpoint)
            end_later(conversation, session, self._place)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._conversation.inherited:  # a forked child has nothing to close
            self.close()

    # -- requests -------------------------------------------------------------------------------

    def _grant(self, grant: Grant, wake: Wake | None = None) -> Lease | None:
        """Make a call that may grant a lease; return the lease, or None when it was refused.

        An exception after the reply, by a signal handler for instance, gives the lease back.

        Args:
            grant: the call.
            wake: ends the wait early, with `TrackerClosed`.

        Raises:
            AcquireTimeout: none was granted, and the call has a sentence that says so.
        """
        granted: list[Lease] = []

        def take(session: Session, answer: dict[str, Any]) -> None:
            lease = self._take_lease(session, answer)
            if lease is not None:
                granted.append(lease)

        try:
            self._request(
                grant.op,
                grant.fields,
                deadline=grant.deadline,
                take=take,
                parks=grant.parks,
                wake=wake,
            )
            if not granted and grant.refused:
                raise AcquireTimeout(grant.refused)
            return granted[0] if granted else None
        except BaseException:
            for lease in granted:
                insist(lease.let_go)
            raise

    def _call(self, call: Call[T], *, session: Session | None = None) -> T:
        """Make a call and return its result.

        Args:
            call: what to request, and how to read the reply.
            session: the session that it must be made in; None for the present one.
        """
        reply = self._request(
            call.op,
            call.fields,
            in_session=call.in_session,
            session=session,
            never_stale=call.never_stale,
        )
        return call.result(reply)

    def _request(
        self,
        op: str,
        fields: Mapping[str, Any],
        *,
        in_session: bool = True,
        session: Session | None = None,
        deadline: float | None = BY_TIMEOUT,
        take: Callable[[Session, dict[str, Any]], Any] | None = None,
        parks: bool = False,
        never_stale: bool = False,
        wake: Wake | None = None,
    ) -> Any:
        """Make one request and return its result.

        Args:
            op: the operation.
            fields: its own fields.
            in_session: whether the request is made within a session.
            session: the session that it must be made in; None for the present one.
            deadline: seconds of CLOCK_BOOTTIME, None for never; by default `timeout` from now.
            take: makes the result from the reply, before other calls may use the connection.
            parks: whether the daemon may park the request; it is then sent again more and more
                seldom, and without a reply in time the result is None.
            never_stale: whether the daemon runs it however late it arrives.
            wake: ends the call when it is set; without it, only `close` does.
        """
        deadline, begin_by = self._deadlines(deadline)
        self._check_usable()
        self._keeper.ensure()
        try:
            with self._connections.lend(wake, parks=parks, deadline=deadline) as connection:
                if not self._conversation.said_hello:
                    self._say_hello(connection, begin_by)
                if in_session and session is None:
                    session = self._open_session(connection, begin_by)
                stale = None if never_stale else deadline
                request = self._conversation.request(op, fields, stale, session)
                return self._exchange(connection, request, deadline, parks=parks, take=take)
        except zmq.ZMQError as error:  # closed by a signal handler, for instance
            raise self._connections.error_of(error) from error

    def _exchange(
        self,
        connection: Connection,
        request: Request,
        deadline: float | None,
        *,
        parks: bool = False,
        take: Callable[[Session, dict[str, Any]], Any] | None = None,
    ) -> Any:
        """Send a request, and again when needed, and wait for its reply; return what came of it."""
        started = boottime()
        copied = False
        try:
            pause = RESEND_SECONDS
            resend = started + pause
            frame: bytes | None = None
            if parks:
                connection.send(request.frame)
            else:
                frame = connection.ask(request.frame)
            happened = Happened.TIMEOUT if frame is None else Happened.REPLY
            while True:
                if happened is Happened.REPLY and frame is not None:
                    reply = read_reply(frame)
                    if reply is not None and reply.seq == request.seq:
                        return self._result(request, reply, take, copied=copied)
                    if reply is not None:
                        self._stray(request.session, reply.body)
                elif happened is Happened.WOKEN:
                    raise cut_off_error()
                elif happened is Happened.RECONNECTED or boottime() >= resend:
                    connection.send(request.frame)
                    copied = True
                    pause = lengthen(pause) if parks else pause
                    resend = boottime() + pause
                now = boottime()
                if deadline is not None and now >= deadline:
                    raise self._unanswered(connection, request.op, now - started)
                ends = resend if deadline is None else min(deadline, resend)
                happened, frame = connection.wait(ends - now)
        except (SessionLost, Refused):
            raise
        except BaseException as error:
            # No answer, interrupted or closed: the daemon may run the request all the same.
            insist(partial(self._give_up, request))
            if parks and isinstance(error, NoAnswer) and deadline is not None:
                return None  # no lease was granted in time
            raise

    def _unanswered(
        self, connection: Connection, op: str, seconds: float
    ) -> DaemonAbsent | NoAnswer:
        connection.abandoned = not connection.was_connected  # it must not send that later
        return no_answer_error(self.endpoint, op, seconds, connected=connection.connected)

    def _say_hello(self, connection: Connection, deadline: float | None) -> None:
        hello = self._conversation.hello()
        self._conversation.take_hello(self._exchange(connection, hello, deadline))

    def _open_session(self, connection: Connection, deadline: float | None) -> Session:
        """Return the session; open one if there is none. One thread opens, the others wait."""
        session = self._conversation.session
        if session is not None:
            return session
        wait = -1 if deadline is None else max(0.0, deadline - boottime())
        if not self._opening.acquire(timeout=wait):
            raise self._unanswered(connection, "open", self.timeout)
        try:
            session = self._conversation.session
            if session is None:
                with self._conversation.opening(lambda: connection.was_connected) as request:
                    fields = self._exchange(connection, request, deadline)
                session = request.session
                assert session is not None
                self._take_open(session, fields)
            return session
        finally:
            self._opening.release()

    def _make_lease(
        self, session: Session, fields: Mapping[str, Any], claim_by: float | None
    ) -> Lease:
        return Lease(self, session, fields, claim_by)

    def _keep(self, session: Session) -> None:
        self._keeper.keep(session)

    def _errand(
        self, fields: RequestFields, session: Session, *, settles: Request | None = None
    ) -> None:
        self._keeper.send(fields, session, settles=settles)

    def _report_soon(self) -> None:
        self._keeper.wake()


def _close_parts(keeper: Keeper, connections: Connections) -> None:
    keeper.stop(0.0)
    connections.close()
