"""`AsyncTracker`: the asyncio client, with the names of the synchronous one.

One socket, one future for each request, and one timer for all of them. A call may be cancelled at
any moment: a lease that it would have been granted is taken back.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import math
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final, Self

import zmq

from trackd_client.aio.connection import Outstanding, Reader, close_parts
from trackd_client.aio.lease import AsyncLease
from trackd_client.aio.operators import AsyncOperations
from trackd_client.core import calls
from trackd_client.core.base_tracker import CLOSE_SECONDS, log
from trackd_client.core.calls import BY_TIMEOUT, Call, Grant, T
from trackd_client.core.conversation import (
    Request,
    Session,
    cut_off_error,
    find_reply,
    lengthen,
)
from trackd_client.core.discovery import Reading, read_gossip
from trackd_client.core.reports import REPORT_SECONDS
from trackd_client.core.sockets import (
    LONGEST_WAIT,
    Closable,
    check_room,
    configure,
    no_answer_error,
    read_monitor,
    system_error,
)
from trackd_client.errors import (
    PASSING,
    TROUBLES,
    AcquireTimeout,
    DaemonAbsent,
    NoAnswer,
    Refused,
    SessionLost,
    TrackdError,
    WrongLoop,
)
from trackd_client.proxy import Proxy
from trackd_client.sync.ending import close_dropped, end_later
from trackd_client.wire import requests
from trackd_client.wire.clock import boottime
from trackd_client.wire.frames import fast_send
from trackd_client.wire.protocol import Reply
from trackd_client.wire.requests import RequestFields

# A plain integer: the flags of pyzmq are enums, and slow.
_NOW: Final = int(zmq.DONTWAIT)


class AsyncTracker(AsyncOperations[AsyncLease]):
    """A client of the local daemon, for one asyncio event loop.

    Leaving `async with`, or `close`, ends the session. Callbacks run in the event loop.
    """

    def _prepare(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening = asyncio.Lock()
        self._outstanding: dict[int, Outstanding] = {}
        self._connected = False
        self._was_connected = False
        # When outstanding requests are due or expire, by the loop's clock, with their numbers; what
        # has been answered since is passed over.
        self._agenda: list[tuple[float, int]] = []
        self._timer: asyncio.TimerHandle | None = None  # for the first of them
        self._wakes_at = math.inf
        self._opened = []
        self._heartbeat: asyncio.TimerHandle | None = None
        self._reporting: asyncio.TimerHandle | None = None  # set while reports wait
        self._endpoint = ""  # what the socket connects to
        self._context: zmq.Context[zmq.Socket[bytes]]
        self._socket: zmq.Socket[bytes]
        self._monitor: zmq.Socket[bytes]
        self._readers: tuple[Reader[AsyncTracker, Any], ...] = ()

    # -- what agents do -------------------------------------------------------------------

    async def track_expected(self, *proxies: Proxy) -> None:
        """Send gossip about proxies to the daemon; the newest message wins.

        Args:
            proxies: at most as many as the daemon takes in one message (10,000).
        """
        await self._call(calls.track_expected(proxies))

    async def track_discovery(self, payload: bytes | str) -> int:
        """Send gossip as it came down a tunnel, and return how many entries were skipped.

        See `Tracker.track_discovery`.
        """
        return await self._feed(read_gossip([payload]))

    async def _feed(self, reading: Reading) -> int:
        """Send what gossip mentions, and return how many of its entries were skipped."""
        self._conversation.check_usable()
        if not self._conversation.said_hello:
            await self.ping()  # its limits are known then
        messages, skipped = self._messages(reading)
        for message in messages:
            await self._call(message)
        return skipped

    async def set_connection_count(self, count: int) -> None:
        """Set how many connections all agents of this host want together.

        Args:
            count: 0 or less for one to every desired proxy; n > 0 for at most n.
        """
        await self._call(calls.set_connection_count(count))

    async def is_claimed(self, *principals: str) -> bool:
        """Return whether a lease of any agent holds the proxy with these principals."""
        return await self._call(calls.is_claimed(principals))

    async def try_acquire(self) -> AsyncLease | None:
        """Return a lease to dial with, or None when no dial is wanted now."""
        return await self._grant(calls.try_acquire())

    async def acquire(self, timeout: float | None = None) -> AsyncLease:  # noqa: ASYNC109 - as `Tracker.acquire`
        """Wait for a lease to dial with; the longest waiter is served first.

        Args:
            timeout: seconds to wait at most, 0 to ask once, or None for no limit.

        Raises:
            AcquireTimeout: no lease was granted in time.
        """
        lease: Any = await self._grant(calls.acquire(timeout))
        return lease  # type: ignore[no-any-return]

    async def adopt(self, *principals: str) -> AsyncLease | None:
        """Get a lease for a tunnel that is open already, after its session was lost.

        Returns:
            A lease that has claimed the proxy, or None when another lease holds it.
        """
        return await self._grant(calls.adopt(principals))

    # -- the end ------------------------------------------------------------------------------

    async def close(self) -> None:
        """End the session, which releases all of its leases. A second call does nothing.

        Other calls raise `TrackerClosed`. Without a daemon this returns after at most some
        seconds; a thread ends the session once there is one.
        """
        conversation = self._conversation
        if conversation.closed:
            return
        conversation.check_usable()
        session = conversation.close()
        if session is not None and conversation.lose(session):
            self._mark_lost(session)
        if self._loop is None:
            return
        ended = session is None or not session.perhaps_open
        try:
            if session is not None and not ended:
                ended = await self._end_session(session)
        finally:
            self._shut()
            if session is not None and not ended:
                log.info("the session will be ended when the daemon can: %s", self.endpoint)
                end_later(conversation, session, self._place)

    async def _end_session(self, session: Session) -> bool:
        """End a session that is open or perhaps open, and return whether the daemon has replied."""
        deadline = boottime() + min(self.timeout, CLOSE_SECONDS)
        try:
            for request in self._conversation.ending(session):
                await self._exchange(request, deadline)
        except TROUBLES:
            return False
        except TrackdError:
            pass  # it is not open
        return True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if not self._conversation.inherited:  # a forked child has nothing to close
            await self.close()

    # -- calls ------------------------------------------------------------------------------------

    async def _grant(self, grant: Grant) -> AsyncLease | None:
        """Make a call that may grant a lease; return the lease, or None when it was refused.

        Raises:
            AcquireTimeout: none was granted, and the call has a sentence that says so.
        """
        lease: AsyncLease | None = await self._request(
            grant.op,
            grant.fields,
            deadline=grant.deadline,
            take=self._take_lease,
            parks=grant.parks,
        )
        if lease is None and grant.refused:
            raise AcquireTimeout(grant.refused)
        return lease

    async def _call(self, call: Call[T], *, session: Session | None = None) -> T:
        """Make a call and return its result.

        Args:
            call: what to request, and how to read the reply.
            session: the session that it must be made in; None for the present one.
        """
        reply = await self._request(
            call.op,
            call.fields,
            in_session=call.in_session,
            session=session,
            never_stale=call.never_stale,
        )
        return call.result(reply)

    async def _request(
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
    ) -> Any:
        """Make one request and return its result.

        Args:
            op: the operation.
            fields: its own fields.
            in_session: whether the request is made within a session.
            session: the session that it must be made in; None for the present one.
            deadline: seconds of CLOCK_BOOTTIME, None for never; by default `timeout` from now.
            take: makes the result from the reply. No await stands between the reply and this,
                so that a cancel cannot lose a lease there.
            parks: whether the daemon may park the request; without a reply in time the result is
                None then.
            never_stale: whether the daemon runs it however late it arrives.
        """
        deadline, begin_by = self._deadlines(deadline)
        self._begin()
        await self._say_hello(begin_by)
        if in_session and session is None:
            session = await self._open_session(begin_by)
        stale = None if never_stale else deadline
        request = self._conversation.request(op, fields, stale, session)
        return await self._exchange(request, deadline, parks=parks, take=take)

    async def _exchange(
        self,
        request: Request,
        deadline: float | None,
        *,
        parks: bool = False,
        take: Callable[[Session, dict[str, Any]], Any] | None = None,
    ) -> Any:
        """Send a request, and again when needed, and wait for its reply; return what came of it."""
        assert self._loop is not None
        if self._socket.closed:  # while the call was on its way here
            raise cut_off_error()
        started = boottime()
        future: asyncio.Future[Reply] = self._loop.create_future()
        expires = None if deadline is None else self._loop.time() + deadline - started
        outstanding = Outstanding(request, future=future, expires=expires)
        self._post(outstanding)
        try:
            try:
                reply = await future
            except TimeoutError:
                waited = boottime() - started
                raise no_answer_error(
                    self.endpoint, request.op, waited, connected=self._connected
                ) from None
            return self._result(request, reply, take, copied=outstanding.copied)
        except (SessionLost, Refused):
            raise
        except BaseException as error:
            # No answer, cancelled or closed: the daemon may run the request all the same.
            self._give_up(request)
            if parks and isinstance(error, NoAnswer):
                return None  # no lease was granted in time
            if isinstance(error, DaemonAbsent) and not self._was_connected:
                self._withdraw(request.seq)
                self._connect_again()  # it must not be sent later
            raise
        finally:
            self._withdraw(request.seq)

    async def _say_hello(self, deadline: float | None) -> None:
        if not self._conversation.said_hello:
            hello = self._conversation.hello()
            self._conversation.take_hello(await self._exchange(hello, deadline))

    async def _open_session(self, deadline: float | None) -> Session:
        """Return the session; open one if there is none. One task opens, the others wait."""
        session = self._conversation.session
        if session is not None:
            return session
        started = boottime()
        try:
            async with asyncio.timeout(None if deadline is None else deadline - started):
                await self._opening.acquire()
        except TimeoutError:
            waited = boottime() - started
            raise no_answer_error(
                self.endpoint, "open", waited, connected=self._connected
            ) from None
        try:
            session = self._conversation.session
            if session is None:
                with self._conversation.opening(lambda: self._was_connected) as request:
                    fields = await self._exchange(request, deadline)
                session = request.session
                assert session is not None
                self._take_open(session, fields)
            return session
        finally:
            self._opening.release()

    def _make_lease(
        self, session: Session, fields: Mapping[str, Any], claim_by: float | None
    ) -> AsyncLease:
        return AsyncLease(self, session, fields, claim_by)

    # -- errands: requests that no call awaits ---------------------------------------------------

    def _keep(self, session: Session) -> None:
        self._errand(requests.WatchSession(), session)
        self._beat(session)

    def _beat(self, session: Session) -> None:
        """Send a heartbeat now, and again for as long as the session lasts."""
        assert self._loop is not None
        pause = session.heartbeat_pause
        if session.lost or pause is None:
            return
        # Timers stand still while the host is suspended; the time-to-live runs on.
        pause = min(pause, LONGEST_WAIT)
        tracker = weakref.ref(self)  # so that a tracker that is dropped is noticed
        self._heartbeat = self._loop.call_later(pause, _beat, tracker, session)
        if not any(waits.request.op == "heartbeat" for waits in self._outstanding.values()):
            self._errand(requests.Heartbeat(), session)

    def _errand(
        self, fields: RequestFields, session: Session, *, settles: Request | None = None
    ) -> None:
        if self._socket.closed or self._conversation.inherited:
            return
        request = self._conversation.request(fields.op, fields.encode(), None, session)
        self._post(Outstanding(request, settles=settles))

    def _report_soon(self) -> None:
        if self._reporting is None and self._loop is not None and not self._socket.closed:
            pause = max(0.0, self._conversation.reports.due() - boottime())
            self._reporting = self._loop.call_later(pause, _report, weakref.ref(self))

    def _report(self) -> None:
        """Send what leases have reported; an earlier batch is given up. Without a daemon, later."""
        assert self._loop is not None
        self._reporting = None
        if self._socket.closed:
            return
        if not self._connected:
            self._reporting = self._loop.call_later(REPORT_SECONDS, _report, weakref.ref(self))
            return
        request = self._take_reports()
        if request is None:
            return
        for outstanding in list(self._outstanding.values()):
            if outstanding.pause == math.inf:
                self._withdraw(outstanding.request.seq)
                self._conversation.settle(outstanding.request)
        self._post(Outstanding(request, pause=math.inf))
        if self._conversation.reports.due() < math.inf:
            self._report_soon()

    # -- the socket -------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Connect at the first call."""
        self._conversation.check_usable()
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            if not self._connected and self._place.has_moved_from(self._endpoint):
                self._connect_again()
            return
        if self._loop is not None:
            raise WrongLoop("this tracker belongs to another event loop; make one for each")
        try:
            check_room()
            self._context = zmq.Context()
        except zmq.ZMQError as error:
            raise system_error(error) from error
        readers: list[Reader[AsyncTracker, Any]] = []
        try:
            self._socket = self._context.socket(zmq.DEALER)
            self._monitor = configure(self._socket)
            self._send_frame = fast_send(self._socket)
            self._endpoint = self.endpoint
            self._socket.connect(self._endpoint)
            for socket, receive, take in (
                (self._monitor, self._monitor.recv_multipart, AsyncTracker._take_monitored),
                (self._socket, self._socket.recv, AsyncTracker._take),
            ):
                readers.append(Reader(weakref.ref(self), socket, partial(receive, _NOW), take))
        except (zmq.ZMQError, OSError) as error:
            for reader in readers:
                reader.close()
            self._context.destroy(linger=0)
            raise system_error(error) from error
        self._loop, self._readers = loop, tuple(readers)
        parts: Iterable[Closable] = itertools.chain(self._opened, self._readers)  # later ones, too
        close = partial(close_parts, parts, self._context)
        self._dropped = weakref.finalize(
            self, close_dropped, self._conversation, self._place, close
        )
        self._dropped.atexit = False  # the session ends with the process

    def _connect_again(self) -> None:
        """Connect to where the daemon is now. What calls await is sent again."""
        try:
            self._socket.disconnect(self._endpoint)
            self._endpoint = self.endpoint
            self._socket.connect(self._endpoint)
        except zmq.ZMQError as error:
            raise system_error(error) from error
        for outstanding in list(self._outstanding.values()):
            self._send(outstanding)

    def _post(self, outstanding: Outstanding) -> None:
        self._outstanding[outstanding.request.seq] = outstanding
        self._send(outstanding)

    def _withdraw(self, seq: int) -> Outstanding | None:
        return self._outstanding.pop(seq, None)

    def _send(self, outstanding: Outstanding) -> None:
        """Send a request, and again after its pause."""
        assert self._loop is not None
        if self._socket.closed or self._conversation.inherited:
            return
        if outstanding.pause == math.inf:
            if outstanding.due:
                return  # it is not sent again
            outstanding.due = math.inf
        else:
            outstanding.copied = outstanding.due > 0
            outstanding.due = self._loop.time() + outstanding.pause
            outstanding.pause = lengthen(outstanding.pause)
            self._plan(outstanding)
        with contextlib.suppress(zmq.ZMQError):  # no room, say: it is sent again soon enough
            self._send_frame(outstanding.request.frame, _NOW)
        self._readers[-1].look()

    def _plan(self, outstanding: Outstanding) -> None:
        """Put on the agenda when a request is due or expires."""
        assert self._loop is not None
        moment = outstanding.due
        if outstanding.expires is not None and outstanding.expires < moment:
            moment = outstanding.expires
        heapq.heappush(self._agenda, (moment, outstanding.request.seq))
        if moment < self._wakes_at:
            self._set_timer()

    def _set_timer(self) -> None:
        """Set the timer for what the agenda has first."""
        assert self._loop is not None
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._wakes_at = None, math.inf
        if self._agenda:
            self._wakes_at = self._agenda[0][0]
            # The timer holds nothing of the tracker, so that one that is dropped is noticed.
            self._timer = self._loop.call_at(self._wakes_at, _keep_time, weakref.ref(self))

    def _keep_time(self) -> None:
        """Send again what is due, end the calls whose time is up, and set the timer."""
        assert self._loop is not None
        now = self._loop.time()
        passed = []
        while self._agenda and self._agenda[0][0] <= now:
            passed.append(heapq.heappop(self._agenda)[1])
        for seq in passed:
            outstanding = self._outstanding.get(seq)
            if outstanding is None:
                continue
            future = outstanding.future
            if outstanding.expires is not None and outstanding.expires <= now:
                if future is not None and not future.done():
                    _fail(future, TimeoutError())
            elif outstanding.due <= now:
                self._send(outstanding)
            else:
                self._plan(outstanding)
        self._set_timer()

    def _take(self, frame: bytes) -> None:
        """Take a reply. Of a message of several frames, each is taken by itself."""
        reply = find_reply(frame)
        if reply is None:
            return
        outstanding = self._outstanding.get(reply.seq)
        if outstanding is not None and outstanding.future is None and reply.error in PASSING:
            return  # an errand, which is sent again after its pause
        if outstanding is not None:
            self._withdraw(reply.seq)
            if outstanding.future is None:
                self._take_errand(outstanding.request, outstanding.settles, reply)
            elif not outstanding.future.done():
                outstanding.future.set_result(reply)
        elif reply.body.get("lease") is not None:
            # A call may await a copy of this reply that comes right behind it: it is first.
            asyncio.get_running_loop().call_soon(
                self._stray, self._conversation.session, reply.body
            )

    def _take_monitored(self, frames: list[bytes]) -> None:
        """Note that the connection came or went, and send again what was lost with the last one."""
        self._connected = read_monitor(frames)
        self._connection_changed(self._connected)
        if self._connected:
            if self._was_connected:
                for outstanding in list(self._outstanding.values()):
                    self._send(outstanding)
                self._ask_features()
            self._was_connected = True

    def _ask_features(self) -> None:
        """Ask what the daemon can do, unless that is under way: it may be another one now."""
        session = self._conversation.session
        waits = any(waits.request.op == "hello" for waits in self._outstanding.values())
        if session is not None and not waits:
            self._errand(requests.Hello(), session)

    def _shut(self) -> None:
        """Close everything; calls under way raise `TrackerClosed`."""
        for timer in (self._heartbeat, self._reporting, self._timer):
            if timer is not None:
                timer.cancel()
        closed = cut_off_error()
        for seq in list(self._outstanding):
            outstanding = self._withdraw(seq)
            future = None if outstanding is None else outstanding.future
            if future is not None and not future.done():  # a cancelled one is
                _fail(future, closed)
        self._dropped.detach()
        for opened in self._opened:
            opened.close()
        self._socket.disable_monitor()
        for reader in self._readers:
            reader.close()
        self._context.term()


def _beat(tracker_ref: weakref.ref[AsyncTracker], session: Session) -> None:
    tracker = tracker_ref()
    if tracker is not None:
        tracker._beat(session)  # noqa: SLF001 - a part of it


def _report(tracker_ref: weakref.ref[AsyncTracker]) -> None:
    tracker = tracker_ref()
    if tracker is not None:
        tracker._report()  # noqa: SLF001 - a part of it


def _keep_time(tracker_ref: weakref.ref[AsyncTracker]) -> None:
    tracker = tracker_ref()
    if tracker is not None:
        tracker._keep_time()  # noqa: SLF001 - a part of it


def _fail(future: asyncio.Future[Reply], error: Exception) -> None:
    """Let a call raise an error; nobody complains when it was cancelled at the same time."""
    future.set_exception(error)
    future.exception()
