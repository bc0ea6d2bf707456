"""What the synchronous and the asyncio tracker share: leases, states, and all that is no I/O."""

from __future__ import annotations

import logging
import threading
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import partial
from typing import Any, Final, Generic

from trackd_client.core import calls
from trackd_client.core.arguments import check_callable, check_labels, check_number, check_type
from trackd_client.core.calls import BY_TIMEOUT, Call
from trackd_client.core.conversation import GRANTING, Conversation, Request, Session
from trackd_client.core.discovery import Reading, messages, sentence_of
from trackd_client.core.insist import insist
from trackd_client.core.lease import BaseLease, LeaseT
from trackd_client.core.limited_log import LimitedLog
from trackd_client.core.place import Place
from trackd_client.core.reading import read
from trackd_client.errors import CUT_OFF, BadArgument, Refused, SessionLost, TrackdError
from trackd_client.wire import requests
from trackd_client.wire.clock import boottime
from trackd_client.wire.places import PlaceError
from trackd_client.wire.protocol import Reply
from trackd_client.wire.requests import RequestFields

log = logging.getLogger("trackd_client")

#: Seconds that `close` waits for a daemon to confirm it.
CLOSE_SECONDS: Final = 1.0


class ConnectionState(StrEnum):
    """The connection of a tracker to its daemon; docs/client.md has the diagram."""

    CONNECTED = "connected"
    RECONNECTING = "reconnecting"
    LOST = "lost"


class BaseTracker(Generic[LeaseT]):
    """The part of a tracker that does no I/O. Only one of its threads changes it at a time."""

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        cluster: str | None = None,
        timeout: float = 5.0,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        on_session_lost: Callable[[SessionLost], None] | None = None,
        on_state_change: Callable[[ConnectionState], None] | None = None,
    ) -> None:
        """Find the place of the daemon; nothing is connected yet.

        Args:
            endpoint: `ipc://PATH` or a path. Without it: `$TRACKD_ENDPOINT`, else
                `trackd.sock` in the directory of the cluster, else in `/run/trackd/default`,
                else in `$XDG_RUNTIME_DIR/trackd/default`, looked for at each connect.
            cluster: the cluster that the daemon must serve, or None for any.
            timeout: seconds that a call may take; a restart of the daemon counts.
            name: what this agent calls itself, for operators.
            labels: further names and values for operators, at most 16.
            on_session_lost: called once for each session that the daemon no longer knows,
                in the thread that noticed it (often the background thread of `Tracker`).
            on_state_change: called with each new `state`, in the thread that noticed it.
                An exception of a callback is logged and ignored.

        Raises:
            BadArgument: an argument is of the wrong type or out of range, or the endpoint is
                not a place (a bare name without a slash, say).
        """
        check_type(endpoint, str, "endpoint", optional=True)
        check_type(cluster, str, "cluster", optional=True)
        check_type(name, str, "name", optional=True)
        check_labels(labels)
        check_callable(on_session_lost, "on_session_lost")
        check_callable(on_state_change, "on_state_change")
        check_number(timeout, "timeout")
        if not 0 < timeout < threading.TIMEOUT_MAX:
            raise BadArgument("timeout must be a finite number greater than 0")
        try:
            self._place = Place(endpoint, cluster)
        except PlaceError as error:
            raise BadArgument(str(error)) from None
        self.timeout = timeout
        self._limited_log = LimitedLog(log)
        self._conversation = Conversation(cluster=cluster, name=name, labels=labels, clock=boottime)
        self._on_session_lost = on_session_lost
        self._on_state_change = on_state_change
        self._state = ConnectionState.RECONNECTING
        self._state_lock = threading.RLock()  # guards the state, and the two below
        self._callbacks: deque[Callable[[], None]] = deque()
        self._calling_back = False
        self._was_cut = False
        self._leases: dict[int, LeaseT] = {}
        self._prepare()

    @abstractmethod
    def _prepare(self) -> None:
        """Create what the I/O needs, without connecting."""

    @property
    def endpoint(self) -> str:
        """The endpoint of the daemon, `ipc://PATH`, as it is found now."""
        return self._place.find()

    @property
    def state(self) -> ConnectionState:
        """The connection: connected, reconnecting, or lost until the next call."""
        return self._state

    def _log_broken(self, error: BaseException) -> None:
        """Log an error in the background, after which the tracker goes on."""
        self._limited_log.warning(
            f"background {type(error).__name__}",
            "the tracker goes on after %r",
            error,
            error=None if isinstance(error, OSError) else error,
        )

    def _log_no_thread(self, error: BaseException) -> None:
        """Log that the system refused the background thread, which a later call starts."""
        self._limited_log.warning("no thread", "a later call starts the thread: %s", error)

    # -- calls -----------------------------------------------------------------------------

    def _deadlines(self, deadline: float | None) -> tuple[float | None, float]:
        """Return until when a call waits for its result, and until when it waits for a daemon.

        Args:
            deadline: seconds of CLOCK_BOOTTIME, None for never, or `BY_TIMEOUT`.
        """
        if deadline == BY_TIMEOUT:
            deadline = boottime() + self.timeout
        # A call without a limit waits for a lease forever, not for a daemon.
        return deadline, boottime() + self.timeout if deadline is None else deadline

    def _result(
        self,
        request: Request,
        reply: Reply,
        take: Callable[[Session, dict[str, Any]], Any] | None,
        *,
        copied: bool = False,
    ) -> Any:
        """Return what came of a request, which is done then.

        Args:
            request: made by a call or for an errand.
            reply: to it.
            take: makes the result from the session and the fields of the reply; None: the fields
                are the result.
            copied: whether it was sent more than once.

        Raises:
            TrackdError: the daemon refused it. A session that is lost is marked as such.
        """
        try:
            answer: Any = self._conversation.result(request, reply, copied=copied)
        except SessionLost as error:
            self._conversation.settle(request)
            if request.session is not None:
                self._lose(request.session, error)
            raise
        except Refused:
            if copied:
                insist(partial(self._give_up, request))
            raise
        if take is not None and request.session is not None:
            answer = read(f"a reply to {request.op}", take, request.session, answer)
        self._conversation.settle(request)
        return answer

    def _messages(self, reading: Reading) -> tuple[list[Call[None]], int]:
        """Return the calls that send gossip, and how many of its entries they skip."""
        parts, skipped = messages(reading, self._conversation.limits)
        if skipped:
            self._limited_log.warning("skipped", "%s", sentence_of(skipped))
        return [calls.track_expected(part) for part in parts], len(skipped)

    def _give_up(self, request: Request) -> None:
        """Give up a request; the daemon takes back what it may have granted."""
        session = request.session
        if session is None or session.lost or request.op not in GRANTING:
            self._conversation.settle(request)
        else:
            self._errand(requests.Cancel(request.seq), session, settles=request)

    def _stray(self, session: Session | None, fields: Mapping[str, Any]) -> None:
        """Handle a reply for which no call waits: release the lease that it may grant."""
        number = fields.get("lease")
        if session is not None and type(number) is int and number not in self._leases:
            self._errand(requests.Release(number), session)

    # -- errands: requests that no call awaits ---------------------------------------------

    @abstractmethod
    def _errand(
        self, fields: RequestFields, session: Session, *, settles: Request | None = None
    ) -> None:
        """Send a request until it is answered; the reply settles another request as well."""

    def _take_errand(self, request: Request, settles: Request | None, reply: Reply) -> None:
        """Handle the reply of an errand, which is done then."""
        session = request.session
        assert session is not None
        if settles is not None:
            self._conversation.settle(settles)
        try:
            fields = self._result(request, reply, None)
        except TrackdError:
            return  # the daemon cannot do it; another try would not help
        if request.op == "hello":
            self._conversation.take_features(fields)
        if request.op == "report":
            for number in fields.get("gone", ()):
                lease = self._leases.get(number)
                if lease is not None and lease._session is session:  # noqa: SLF001
                    self._revoke(lease)
        if request.op == "watch_session":
            self._errand(requests.WatchSession(), session)
            for notice in fields.get("notices", ()):
                self._notice(session, notice)

    @abstractmethod
    def _report_soon(self) -> None:
        """Send what leases have reported, once it is time for the next batch. Never waits."""

    def _take_reports(self) -> Request | None:
        """Return the request that says what leases have reported, or None. It is sent once."""
        conversation, session = self._conversation, self._conversation.session
        batch = conversation.reports.take(session, boottime(), conversation.limits.max_frame)
        if batch is None or session is None:
            return None
        fields = requests.Report(batch.rows)
        return conversation.request(fields.op, fields.encode(), batch.deadline, session)

    # -- leases ----------------------------------------------------------------------------

    @abstractmethod
    def _make_lease(
        self, session: Session, fields: Mapping[str, Any], claim_by: float | None
    ) -> LeaseT:
        """Return the lease that a reply grants."""

    def _take_lease(self, session: Session, fields: Mapping[str, Any]) -> LeaseT | None:
        """Return the lease in a reply, or None when it was refused."""
        number = fields["lease"]
        if number is None:
            return None
        claim_by = fields.get("claim_by")
        if claim_by is not None:
            claim_by = self._conversation.local(claim_by)
        lease = self._leases[number] = self._make_lease(session, fields, claim_by)
        if session.lost:  # while the reply was on its way
            self._mark_lost(session)
        return lease

    def _release_later(self, lease: BaseLease) -> None:
        """Release a lease without waiting for the daemon's reply."""
        self._conversation.check_process()
        self._errand(lease._release_fields(), lease._session)  # noqa: SLF001 - a lease is its tracker's
        self._forget(lease)

    def _forget(self, lease: BaseLease) -> None:
        """Forget a lease that is released. Not before: an exception leaves it to be done."""
        lease._released = True  # noqa: SLF001
        self._leases.pop(lease.id, None)

    # -- the session and the connection -----------------------------------------------------

    @abstractmethod
    def _keep(self, session: Session) -> None:
        """Watch a session that has just been opened, and send its heartbeats."""

    def _take_open(self, session: Session, fields: Mapping[str, Any]) -> None:
        """Begin to use a session that the daemon has opened, once."""
        if session.id == 0:  # else a signal handler was here before
            read("a reply to open", self._conversation.take_open, session, fields)
            self._keep(session)
            self._session_opened(session)

    def _lose(self, session: Session, error: SessionLost) -> None:
        """Mark a session and all of its leases as lost, once, and call back."""
        with self._state_lock:  # else a fresh session might be connected before this one is lost
            if not self._conversation.lose(session, error.reason):
                return
            self._set_state(ConnectionState.LOST)
            if self._on_session_lost is not None:
                self._callbacks.append(partial(self._on_session_lost, error))
        self._mark_lost(session)
        log.warning("session lost: %s", error)
        self._call_back()

    def _mark_lost(self, session: Session) -> None:
        for number, lease in list(self._leases.items()):
            if lease._session is session:  # noqa: SLF001 - a lease is its tracker's
                if session.reason == CUT_OFF:
                    self._revoke(lease)  # others dial its proxy soon
                else:
                    self._leases.pop(number, None)
                    lease.lost.set()

    def _notice(self, session: Session, notice: Mapping[str, Any]) -> None:
        """Apply a notice of the daemon to the lease that it is about."""
        lease = self._leases.get(notice.get("lease", 0))
        if lease is None or lease._session is not session:  # noqa: SLF001
            return
        match notice.get("notice"):
            case "should_close":
                lease.should_close.set()
            case "lease_expired":
                self._leases.pop(lease.id, None)
                lease.lost.set()
            case "renamed":
                lease._rename(notice.get("name"))  # noqa: SLF001 - a lease is its tracker's
            case "lease_revoked":
                self._revoke(lease)

    def _revoke(self, lease: LeaseT) -> None:
        """Mark a lease as taken back; its tunnel must close."""
        self._leases.pop(lease.id, None)
        lease.revoked = True
        lease.lost.set()
        lease.should_close.set()

    def _session_opened(self, session: Session) -> None:
        """Note that a session is open, unless it was lost meanwhile."""
        with self._state_lock:
            if not session.lost:
                self._set_state(ConnectionState.CONNECTED)
        self._call_back()

    def _connection_changed(self, connected: bool) -> None:
        with self._state_lock:
            if not connected:
                self._was_cut = True
            elif self._was_cut:  # by a restart, perhaps of another version: the next call asks
                self._was_cut = self._conversation.said_hello = False
            if not connected and self._state is ConnectionState.CONNECTED:
                self._set_state(ConnectionState.RECONNECTING)
            elif connected and self._state is ConnectionState.RECONNECTING:
                self._set_state(ConnectionState.CONNECTED)
        self._call_back()

    def _set_state(self, state: ConnectionState) -> None:
        """Change the state, and queue its callback for `_call_back`. Holds the lock."""
        if state is not self._state:
            self._state = state
            if self._on_state_change is not None:
                self._callbacks.append(partial(self._on_state_change, state))

    def _call_back(self) -> None:
        """Run the queued callbacks in their order, one at a time over all threads.

        No lock is held while one runs, so that it may use the tracker or close it.
        """
        while True:
            with self._state_lock:
                if self._calling_back or not self._callbacks:
                    return
                callback = self._callbacks.popleft()
                self._calling_back = True
            try:
                callback()
            except Exception:
                # The thread that keeps the session must go on.
                log.exception("a callback of the tracker failed")
            finally:
                self._calling_back = False
