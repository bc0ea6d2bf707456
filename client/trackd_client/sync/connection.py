"""One DEALER socket of the synchronous client: send, wait, notice reconnects. I/O only.

A connection means nothing to the daemon, since every request carries its session's token.
So a tracker keeps a handful of them, and each call has one to itself: a slow call never holds
up another thread's. libzmq reconnects by itself; what it lost meanwhile is sent again after
the new handshake, which the socket's monitor reports.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Final, TypeVar

import zmq

from trackd_client.core.conversation import closed_error
from trackd_client.core.place import Place
from trackd_client.core.sockets import (
    LONGEST_WAIT,
    Closable,
    check_room,
    configure,
    read_monitor,
    system_error,
)
from trackd_client.errors import AcquireTimeout, NoAnswer, TrackdError
from trackd_client.wire.clock import boottime
from trackd_client.wire.frames import fast_send

#: Milliseconds that a call waits only for its reply, before it looks at wake-ups and the monitor.
_SOON_MS: Final = 20
#: Calls of one tracker that are under way at the same time, and those that wait for a lease; more
#: of them wait for their turn.
_MOST_CALLS: Final = 64
_MOST_WAITING: Final = 128
#: Connections that are kept open for the next calls.
_MOST_IDLE: Final = 8
#: Seconds after which a call that waits for its turn looks again.
_LOOK_AGAIN: Final = 1.0
# Plain integers: the flags of pyzmq are enums, and slow.
_NOW: Final = int(zmq.DONTWAIT)


class Happened(Enum):
    """What ended a wait."""

    REPLY = "reply"
    CONNECTED = "connected"
    RECONNECTED = "reconnected"
    DISCONNECTED = "disconnected"
    WOKEN = "woken"
    TIMEOUT = "timeout"


class Wake:
    """A descriptor that many waits listen to; once set, it stays set until it is cleared."""

    def __init__(self) -> None:
        """Create the descriptor.

        Raises:
            SystemRefused: none is left.
        """
        try:
            self._file = io.FileIO(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        except OSError as error:
            raise system_error(error) from error
        self.fd = self._file.fileno()

    def set(self) -> None:
        """End every wait that listens, now and until `clear`. Any thread."""
        if not self._file.closed:
            os.eventfd_write(self.fd, 1)

    def wait(self, seconds: float) -> None:
        """Wait until it is set, or the time is up."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        poll.poll(seconds * 1000)

    def clear(self) -> None:
        """Let waits wait again."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)

    def close(self) -> None:
        """Close the descriptor; no wait may use it any longer."""
        self._file.close()


class Connection:
    """A socket that one thread uses at a time.

    Attributes:
        endpoint: what it connects to.
        connected: whether it is connected now, as far as it was noticed.
        was_connected: whether it ever was.
        abandoned: whether it holds requests that were never sent and that no call awaits.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, wake: Wake) -> None:
        """Begin to connect; that the daemon is there shows later.

        Args:
            context: of this process.
            endpoint: `ipc://PATH`.
            wake: ends waits from outside.
        """
        self.endpoint = endpoint
        self.connected = False
        self.was_connected = False
        self._seen_connected = False  # by the monitor, whose events come later than replies
        self.abandoned = False
        self._wake_fd = wake.fd
        self._monitor: zmq.Socket[bytes] | None = None
        self._socket = context.socket(zmq.DEALER)
        try:
            self._monitor = configure(self._socket)
            self._socket.rcvtimeo = _SOON_MS
            self._send_frame = fast_send(self._socket)
            self._socket.connect(endpoint)
            self._poller = zmq.Poller()
            for waited in (self._socket, self._monitor, self._wake_fd):
                self._poller.register(waited, zmq.POLLIN)
        except BaseException:
            self.close()
            raise

    def send(self, frame: bytes) -> None:
        """Send a frame, now or once the daemon is there."""
        with contextlib.suppress(zmq.Again):  # no room: it is sent again soon enough
            self._socket.send(frame, zmq.DONTWAIT)

    def ask(self, frame: bytes) -> bytes | None:
        """Send a frame, and return the next one that comes soon, or None.

        Nearly every reply comes within `_SOON_MS`, and one receive costs far less than a poll
        over all that can happen, which is left to `wait`. A reply is one frame; of a message
        with more of them, each is taken by itself, and skipped like any other stray.
        """
        try:
            self._send_frame(frame, _NOW)
            reply = self._socket.recv()
            self.connected = self.was_connected = True
            return reply
        except zmq.Again:
            return None

    def wait(self, seconds: float | None) -> tuple[Happened, bytes]:
        """Wait for the next thing to happen; the frame is empty but for a reply.

        Args:
            seconds: how long at most, or None forever. It may be over earlier.
        """
        if seconds is not None:
            # Timed waits stand still in suspend, and the clock of deadlines does not.
            seconds = min(max(0.0, seconds), LONGEST_WAIT)
        timeout = None if seconds is None else int(seconds * 1000) + 1
        for ready, _ in self._poller.poll(timeout):
            if ready is self._socket:
                return Happened.REPLY, self._socket.recv(_NOW)
            if ready is self._monitor:
                return self._read_monitor()
            return Happened.WOKEN, b""
        return Happened.TIMEOUT, b""

    def close(self) -> None:
        """Close the sockets. Only while no other thread uses this connection."""
        if self._monitor is not None and not self._monitor.closed:
            self._socket.disable_monitor()
            self._monitor.close(linger=0)
        self._socket.close(linger=0)

    def _read_monitor(self) -> tuple[Happened, bytes]:
        assert self._monitor is not None
        self.connected = read_monitor(self._monitor.recv_multipart(zmq.DONTWAIT))
        if not self.connected:
            return Happened.DISCONNECTED, b""
        again, self._seen_connected = self._seen_connected, True
        self.was_connected = True
        # libzmq itself delivers what was sent before the first handshake.
        return (Happened.RECONNECTED if again else Happened.CONNECTED), b""


#: Contexts that nothing may end: a traceback may hold a socket that is open, for which the end
#: would wait. A signal handler raised an exception while it was made.
_UNENDED: Final[list[zmq.Context[zmq.Socket[bytes]]]] = []

T = TypeVar("T", bound=Closable)


class Connections:
    """The connections of one tracker: each call borrows one.

    Its locks may be taken again by the thread that holds them, since a signal handler or a
    finalizer may interrupt a call at any point and call the tracker itself.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self._closing = Wake()
        try:
            self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        except zmq.ZMQError as error:
            raise system_error(error) from error
        self.lock = threading.RLock()  # guards what is below
        # For calls, and for calls that wait for a lease: how many there are, how many each thread
        # has, since handlers may nest them, and what waits.
        self._busy = [0, 0]
        self._nested: tuple[defaultdict[int, int], ...] = (defaultdict(int), defaultdict(int))
        self._turns = (threading.Condition(self.lock), threading.Condition(self.lock))
        self._idle: list[Connection] = []
        self._opened: list[Closable] = []
        self._lent = 0
        self._started = False
        self._closed = False
        self._interrupted = False  # while a socket was made, which may be open for good

    @contextlib.contextmanager
    def open(self, make: Callable[[zmq.Context[zmq.Socket[bytes]], Wake], T]) -> Iterator[T]:
        """Open something of one's own, and close it at the end.

        Args:
            make: is given the context, and the wake that is set when everything is closed.

        Raises:
            TrackerClosed: there will be none any more.
            SystemRefused: the system has no room for it.
        """
        with self.lock:
            self._check_open()
            self._lent += 1
        opened = None
        try:
            self._start()
            opened = make(self._context, self._closing)
            self._opened.append(opened)
            yield opened
        finally:
            with self.lock:
                self._lent -= 1
                if opened is not None:
                    self._opened.remove(opened)
                    opened.close()
                self._close_idle()

    def lend(
        self, wake: Wake | None = None, *, parks: bool = False, deadline: float | None = None
    ) -> Loan:
        """Lend a connection that is connected already, if there is one, for a `with` block.

        Args:
            wake: for a borrower that is woken on its own; it gets a new connection.
            parks: whether it is for a call that waits for a lease.
            deadline: until when the call may wait for its turn, in seconds of CLOCK_BOOTTIME, or
                None forever.
        """
        return Loan(self, wake, parks, deadline)

    def take(self, loan: Loan) -> Connection:
        """Hand out the connection of a loan.

        Raises:
            TrackerClosed: the tracker is closed.
            NoAnswer, AcquireTimeout: too many calls were under way until the deadline, or all of
                them are this thread's own.
            SystemRefused: the system has no room for a connection.
        """
        with self.lock:
            self._check_open()
            most = _MOST_WAITING if loan.parks else _MOST_CALLS
            while loan.wake is None and self._busy[loan.parks] >= most:
                self._await_turn(loan)
                self._check_open()
            self._lent += 1
            self._busy[loan.parks] += loan.wake is None
            self._nested[loan.parks][loan.thread] += loan.wake is None
            loan.counted = True  # nothing can interrupt between these
            if self._idle and loan.wake is None:
                loan.connection = self._idle[-1]
                del self._idle[-1]
        connection = loan.connection
        if connection is not None:
            if connection.connected or not self.place.has_moved_from(connection.endpoint):
                return connection
            loan.connection = None
            connection.close()
        self._start()
        try:
            loan.connection = Connection(
                self._context, self.place.find(), loan.wake or self._closing
            )
        except zmq.ZMQError as error:
            raise self.error_of(error) from error
        except BaseException as error:
            self._interrupted = True
            if (
                isinstance(error, OSError) and error.errno is not None
            ):  # the system's, not a handler's
                raise self.error_of(error) from error
            raise
        return loan.connection

    def give_back(self, loan: Loan) -> None:
        """Take back what was lent, once, however often it is given back."""
        with self.lock:
            connection, loan.connection = loan.connection, None
            if connection is not None and loan.wake is None and self._keeps(connection):
                self._idle.append(connection)
            elif connection is not None:
                connection.close()
            if loan.counted:
                self._lent -= 1
                self._busy[loan.parks] -= loan.wake is None
                self._nested[loan.parks][loan.thread] -= loan.wake is None
                loan.counted = False
                if not self._nested[loan.parks][loan.thread]:
                    self._nested[loan.parks].pop(loan.thread, None)
            self._turns[loan.parks].notify()
            self._close_idle()

    def close(self) -> None:
        """End the calls under way, and close everything; what is lent, when it comes back."""
        with self.lock:
            self._closed = True
            self._closing.set()
            for turn in self._turns:
                turn.notify_all()
            self._close_idle()

    def error_of(self, error: Exception) -> TrackdError:
        """Return the error for what a socket raised: it was closed, or the system refused it."""
        return closed_error() if self._closed else system_error(error)

    def _check_open(self) -> None:
        if self._closed:
            raise closed_error()

    def _keeps(self, connection: Connection) -> bool:
        return len(self._idle) < _MOST_IDLE and not connection.abandoned

    def _await_turn(self, loan: Loan) -> None:
        """Wait until a call of the same kind has ended, or a moment. Holds the lock."""
        if self._nested[loan.parks][loan.thread] == self._busy[loan.parks]:
            raise NoAnswer(
                f"{self._busy[loan.parks]} calls of this thread are under way within one another,"
                " and none can end before this one: a signal handler or a finalizer calls the"
                " tracker while an earlier one does; let it do nothing then"
            )
        left = _LOOK_AGAIN if loan.deadline is None else loan.deadline - boottime()
        if left <= 0:
            if loan.parks:
                raise AcquireTimeout(
                    f"{_MOST_WAITING} calls of this tracker wait for a lease already, and no lease"
                    " was granted in time"
                )
            raise NoAnswer(f"{_MOST_CALLS} calls of this tracker are under way already")
        self._turns[loan.parks].wait(min(left, _LOOK_AGAIN))

    def _start(self) -> None:
        """Check once that the system has room for the context."""
        with self.lock:
            if not self._started:
                check_room()
                # It starts with its first socket.
                try:
                    self._context.socket(zmq.PAIR).close()
                except zmq.ZMQError:
                    raise
                except BaseException:
                    self._interrupted = True
                    raise
                self._started = True

    def _close_idle(self) -> None:
        """Once closed, close what is not lent. Holds the lock."""
        if not self._closed:
            return
        while self._idle:
            self._idle.pop().close()
        if self._lent == 0 and not self._context.closed:
            self._closing.close()
            if not self._interrupted:
                self._context.term()
            elif self._context not in _UNENDED:
                _UNENDED.append(self._context)


class Loan:
    """A connection for the time of a `with` block.

    Attributes:
        wake: of the borrower, or None.
        parks: whether the call waits for a lease.
        deadline: until when it may wait for its turn, or None.
        connection: what is lent, while it is.
        counted: whether the loan is counted as lent.
        thread: the thread that borrows.
    """

    __slots__ = ("_connections", "connection", "counted", "deadline", "parks", "thread", "wake")

    def __init__(
        self, connections: Connections, wake: Wake | None, parks: bool, deadline: float | None
    ) -> None:
        self._connections = connections
        self.wake = wake
        self.parks = parks
        self.deadline = deadline
        self.connection: Connection | None = None
        self.counted = False
        self.thread = threading.get_ident()

    def __enter__(self) -> Connection:
        try:
            return self._connections.take(self)
        except BaseException:
            self._connections.give_back(self)
            raise

    def __exit__(self, *_: object) -> None:
        self._connections.give_back(self)

    def __del__(self) -> None:
        if getattr(
            self, "counted", False
        ):  # an exception came between the beginning of the block and its end
            self._connections.give_back(self)
