"""The client's side of a session, without any I/O: numbers, deadlines, replies, matching.

The synchronous and the asyncio client differ in how they send and wait; everything else is
here. A `Conversation` belongs to one tracker and may be used by many threads.

Each request has a number within its session, and names the numbers that are *done*: their
replies have arrived, or no call waits for them any longer. A request is sent again, with the
same number, until it is answered or its deadline passes; the daemon runs it once. When a call
gives up a request that may grant a lease, `cancel` takes the lease back, and only then is the
number done.
"""

from __future__ import annotations

import itertools
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from trackd_client._version import __version__
from trackd_client.core.reports import Reports
from trackd_client.errors import (
    LOST,
    Code,
    DaemonAbsent,
    NoAnswer,
    PermissionRefused,
    TrackerClosed,
    UsedAfterFork,
    WrongCluster,
    refusal,
)
from trackd_client.wire import requests
from trackd_client.wire.errors import ProtocolError
from trackd_client.wire.protocol import REQUEST, TOKEN_BYTES, Limits, Reply, decode_reply, encode
from trackd_client.wire.requests import RequestFields

#: Seconds after which a request without an answer is sent again over the same connection.
RESEND_SECONDS: Final = 1.0
#: The longest pause in seconds between two copies of a request that is sent for long: it may be
#: parked, or no call waits for it.
LONGEST_RESEND: Final = 30.0
#: Heartbeats within one time-to-live of a session that needs them.
HEARTBEATS: Final = 3
#: Operations over the connections of before, for a process that is another user now.
_ENDING: Final = frozenset(
    {"close", "release", "cancel", "watch_session", "heartbeat", "report", "hello"}
)
#: Operations that may grant a lease. The lease must not be lost with the reply.
GRANTING: Final = frozenset({"try_acquire", "acquire", "adopt"})


@dataclass(slots=True, eq=False)
class Session:
    """One session, from its opening to its end.

    Attributes:
        token: its secret.
        user: the effective uid of the process when it was begun.
        id: its number at the daemon, for people; 0 until it is open.
        heartbeat_ttl: seconds that it lives without a request, or None when the daemon can see
            the process.
        perhaps_open: whether a request to open it may have reached the daemon.
        lost: whether the daemon has forgotten it.
        reason: why it was lost, if that is known.
        outstanding: numbers of requests that are not done.
    """

    token: bytes
    user: int = field(default_factory=os.geteuid)
    id: int = 0
    heartbeat_ttl: float | None = None
    perhaps_open: bool = False
    lost: bool = False
    reason: str = ""
    outstanding: set[int] = field(default_factory=set)

    @property
    def heartbeat_pause(self) -> float | None:
        """Seconds between two heartbeats, or None when none is needed."""
        return None if self.heartbeat_ttl is None else self.heartbeat_ttl / HEARTBEATS


class Request(NamedTuple):
    """A request as it is sent, and sent again."""

    op: str
    seq: int
    frame: bytes
    session: Session | None


class Conversation:
    """What a tracker knows of its daemon and its session."""

    def __init__(
        self,
        *,
        cluster: str | None,
        name: str | None,
        labels: Mapping[str, str] | None,
        clock: Callable[[], float],
    ) -> None:
        """Begin without a session; the first call that needs one opens it.

        Args:
            cluster: the cluster that the daemon must serve, or None for any.
            name: what this client calls itself, for operators.
            labels: further names and values for operators.
            clock: returns seconds of CLOCK_BOOTTIME.
        """
        self.cluster = cluster
        self.served = ""  # the cluster that the daemon serves, once it has said so
        self.name = name or ""
        self.labels = dict(labels or {})
        self.limits = Limits()
        self.said_hello = False
        #: What the daemon can do beyond minor version 0.
        self.features: frozenset[str] = frozenset()
        self.closed = False
        self.session: Session | None = None
        self.reports = Reports()
        self._unopened: Session | None = None
        self._clock = clock
        self._clock_offset = 0.0
        self._hello_sent = 0.0
        self._pid = os.getpid()
        self.lock = threading.RLock()  # a signal handler or a finalizer may make a request too
        self._numbers = itertools.count(1)
        self._numbering = False

    @property
    def inherited(self) -> bool:
        """Whether this process is a forked child of the one that made the tracker."""
        return os.getpid() != self._pid

    def check_usable(self) -> None:
        """Refuse use after `close`, and in a child process.

        Raises:
            TrackerClosed: `close` was called.
            UsedAfterFork: this is a forked child of the process that made the tracker.
        """
        self.check_process()
        if self.closed:
            raise closed_error()

    def check_process(self) -> None:
        """Refuse use in a forked child.

        Raises:
            UsedAfterFork: this is a forked child of the process that made the tracker.
        """
        check_process(self._pid, "tracker")

    def request(
        self, op: str, fields: Mapping[str, Any], deadline: float | None, session: Session | None
    ) -> Request:
        """Return a new request.

        Args:
            op: the operation.
            fields: its own fields.
            deadline: seconds of this process's CLOCK_BOOTTIME after which it is stale, or
                None for never.
            session: the session that makes it, or None.

        Raises:
            LimitExceeded: it is larger than the daemon accepts.
            InvalidRequest: a value cannot be sent at all.
            PermissionRefused: the process is another user now than when it opened the session.
        """
        if session is not None and op not in _ENDING and session.user != os.geteuid():
            # The daemon would refuse each new connection, and would not say why.
            raise PermissionRefused(
                f"this process opened its session as user {session.user} and is user"
                f" {os.geteuid()} now; close this tracker and make another",
                Code.PERMISSION_DENIED,
            )
        body: dict[str, Any] = {"op": op, **fields}
        with self.lock:
            nested, self._numbering = self._numbering, True
            try:
                seq = next(self._numbers)
                if session is not None:
                    session.outstanding.add(seq)
                    body["token"] = session.token
                    # Within another request, of whose number nothing is known yet, none is done.
                    done = [] if nested else _complement(session.outstanding, seq)
                    body["done"] = done[: 2 * self.limits.max_outstanding]
            finally:
                self._numbering = nested
        body["seq"] = seq
        if deadline is not None:
            body["deadline"] = deadline + self._clock_offset
        try:
            frame = encode(REQUEST, body)
            if len(frame) > self.limits.max_frame:
                raise ProtocolError(
                    Code.LIMIT_EXCEEDED,
                    f"the request has {len(frame)} bytes; the daemon takes"
                    f" {self.limits.max_frame}: send fewer proxies at a time",
                )
        except ProtocolError as error:
            request = Request(op, seq, b"", session)
            self.settle(request)
            raise refusal(error.code, str(error)) from None
        return Request(op, seq, frame, session)

    def _request(self, fields: RequestFields, session: Session | None) -> Request:
        return self.request(fields.op, fields.encode(), None, session)

    def settle(self, request: Request) -> None:
        """Mark a request as done: its reply has arrived, or no call will ever want it."""
        if request.session is not None:
            with self.lock:
                request.session.outstanding.discard(request.seq)

    def result(self, request: Request, reply: Reply, *, copied: bool = False) -> dict[str, Any]:
        """Return the fields of a reply, and mark its request as done, unless it grants a lease.

        A request that grants is done once its lease is stored in the client, see `settle`: until
        then, `cancel` can take the lease back. Neither is one done that was refused and was sent
        more than once: the other copy may still arrive, and be granted a lease.

        Raises:
            SessionLost: the daemon does not know the session any more.
            TrackerClosed: the daemon does not know it any more because this side has ended it.
            Refused: the daemon refused the request.
        """
        code = reply.error
        if request.op not in GRANTING or (code is not None and not copied):
            self.settle(request)
        if code is None:
            return reply.body
        message = _in_one_line(str(reply.body.get("message", code)))
        if code in LOST and request.session is not None and self.closed:
            # Ended by our own `close`: the daemon replies so to all requests that waited.
            raise cut_off_error()
        if code in LOST and request.session is not None:
            message = f"{message}; the next call opens a fresh session"
        raise refusal(code, message, reply.retry_after, reply.body)

    def hello(self) -> Request:
        """Return the request that begins every conversation."""
        self._hello_sent = self._clock()
        return self._request(requests.Hello(), None)

    def take_hello(self, fields: Mapping[str, Any]) -> None:
        """Take over the daemon's clock, limits and features.

        Raises:
            WrongCluster: it serves another cluster than this tracker wants.
        """
        self.check_cluster(fields)
        self.served = str(fields.get("cluster", ""))
        self.take_features(fields)
        clock = fields.get("clock")
        if isinstance(clock, int | float):
            # Read by the daemon between these two moments. Nearly always the clocks are one.
            least, most = clock - self._clock(), clock - self._hello_sent
            self._clock_offset = 0.0 if least <= 0.0 <= most else least
        limits = fields.get("limits")
        if isinstance(limits, dict):
            known = {name: limits[name] for name in Limits._fields if type(limits.get(name)) is int}
            self.limits = Limits(**known)
        self.said_hello = True

    def take_features(self, fields: Mapping[str, Any]) -> None:
        """Take over what the daemon can do, from its reply to `hello`."""
        features = fields.get("features")
        if not isinstance(features, list):
            features = []
        self.features = frozenset(each for each in features if isinstance(each, str))

    @property
    def takes_outcomes(self) -> bool:
        """Whether the daemon takes in how dials end."""
        return "outcomes" in self.features

    def check_cluster(self, fields: Mapping[str, Any]) -> None:
        """Check the cluster in the reply to `hello`.

        Raises:
            WrongCluster: the daemon serves another cluster than this tracker wants.
        """
        cluster = fields.get("cluster")
        if self.cluster is not None and cluster != self.cluster:
            raise WrongCluster(
                f"the daemon serves the cluster {cluster!r}, not {self.cluster!r};"
                " check the endpoint",
                Code.WRONG_CLUSTER,
            )

    def local(self, moment: float) -> float:
        """Convert a moment of the daemon's clock to this process's CLOCK_BOOTTIME."""
        return moment - self._clock_offset

    def begin_session(self) -> Session:
        """Return the session to open: the one whose opening was not answered, or a fresh one.

        The same token opens the same session again, so a lost reply leaks nothing.

        Raises:
            TrackerClosed: the tracker was closed meanwhile; nothing would end the session.
        """
        with self.lock:
            self.check_usable()
            if self._unopened is None:
                self._unopened = Session(secrets.token_bytes(TOKEN_BYTES))
            return self._unopened

    def expect_open(self, session: Session) -> bool:
        """Mark a session as perhaps open, before it is opened; return whether it was already.

        Raises:
            TrackerClosed: the tracker was closed meanwhile; nothing would end the session.
        """
        with self.lock:
            self.check_usable()
            was, session.perhaps_open = session.perhaps_open, True
            return was

    def close(self) -> Session | None:
        """Open no session any more; return the one to end, open or not yet, or None."""
        with self.lock:
            self.closed = True
            return self.session or self._unopened

    def open(self, session: Session) -> Request:
        """Return the request that opens a session."""
        fields = requests.Open(self.name, __version__, self.labels, self.cluster)
        return self._request(fields, session)

    @contextmanager
    def opening(self, was_connected: Callable[[], bool]) -> Iterator[Request]:
        """Begin to open a session: the `with` block makes this request.

        Args:
            was_connected: returns whether the request may have reached a daemon, when the block
                raises `DaemonAbsent`.

        Raises:
            TrackerClosed: the tracker was closed meanwhile; nothing would end the session.
        """
        session = self.begin_session()
        request = self.open(session)
        perhaps_open = self.expect_open(session)
        try:
            yield request
        except DaemonAbsent:
            session.perhaps_open = perhaps_open or was_connected()
            raise

    def ending(self, session: Session) -> Iterator[Request]:
        """Return the requests that end a session, each to be made when the one before is answered.

        One that is perhaps open is opened first. The daemon remembers sessions that have ended,
        so that another copy of the request to open it comes too late.
        """
        if session.id == 0:
            yield self.open(session)
        yield self._request(requests.Close(), session)

    def take_open(self, session: Session, fields: Mapping[str, Any]) -> None:
        """Take over the number and the time-to-live of a session that is now open."""
        session.id = int(fields.get("session", 0))
        ttl = fields.get("heartbeat_ttl")
        session.heartbeat_ttl = float(ttl) if isinstance(ttl, int | float) else None
        self.session = session
        self._unopened = None

    def lose(self, session: Session, reason: str = "") -> bool:
        """Mark a session as lost; return whether it was not lost before."""
        with self.lock:
            news = not session.lost
            session.lost = True
            session.reason = session.reason or reason
            if self.session is session:
                self.session = None
            if self._unopened is session:
                self._unopened = None
        return news


def lengthen(pause: float) -> float:
    """Return the pause in seconds after the next copy of a request that is sent for long."""
    return min(2 * pause, LONGEST_RESEND)


def check_process(pid: int, what: str) -> None:
    """Refuse use in a forked child.

    Args:
        pid: the process that made what is used.
        what: its kind, for the error.

    Raises:
        UsedAfterFork: this is another process.
    """
    if os.getpid() != pid:
        raise UsedAfterFork(
            f"this {what} belongs to the process {pid}; make another in this one, after the fork"
        )


def closed_error() -> TrackerClosed:
    """Return the error for the use of a closed tracker."""
    return TrackerClosed("the tracker is closed; make another")


def cut_off_error() -> TrackerClosed:
    """Return the error for a call that `close` ended."""
    return TrackerClosed("the tracker was closed while the call was under way")


def find_reply(frame: bytes) -> Reply | None:
    """Return the reply in a frame, or None for whatever else comes."""
    try:
        return decode_reply(frame)
    except ProtocolError:
        return None


def read_reply(frame: bytes) -> Reply | None:
    """Return the reply in a frame, or None for a message to skip.

    Raises:
        NoAnswer: what listens on the socket does not speak this protocol.
    """
    try:
        return decode_reply(frame)
    except ProtocolError as error:
        raise NoAnswer(f"what listens on the socket is not a trackd daemon: {error}") from None


def _in_one_line(text: str) -> str:
    """Return a daemon's sentence as programs log it: what no terminal prints is escaped."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _complement(outstanding: set[int], last: int) -> list[int]:
    """Return the numbers from 1 to `last` that are not outstanding, as flat ranges."""
    if len(outstanding) == 1 and last in outstanding:  # nearly always
        return [1, last - 1] if last > 1 else []
    ranges: list[int] = []
    first = 1
    for number in sorted(outstanding):
        if number > first:
            ranges += (first, number - 1)
        first = number + 1
    if first <= last:
        ranges += (first, last)
    return ranges
