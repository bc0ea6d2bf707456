"""RouterMailbox: a ZeroMQ ROUTER as the inbox of the TrackerActor.

This inbox (`trackd.actors.inbox` has the others) receives from a ROUTER, so that a request of a
remote agent is an ordinary pykka *ask*: the envelope's message is a `Call`, and its reply handle is
that same `Call`: pykka's loop passes what the actor returns to `Call.set`, which puts the reply
into the outbox. Actors of this process put into a local queue and wake the one blocking receive
through an inproc DEALER. So all messages have one order, and one thread handles them.

Messages come in *batches*: what has arrived, up to a number, to bytes, and to a time. At its end
the mailbox calls `end_batch`, which commits and then calls `flush`, which sends the outbox. Nothing
that a batch did can be seen from outside before that.

A batch is received in *parts*, each handled before the next one is received. A costly request ends
its part, so at most one of them waits here. All others wait in the ROUTER, which takes from its
connections in turn. So a peer that asks for much delays others by one costly request for each of
theirs, and by the time of a batch, however much it has sent.

Of a request the mailbox reads the frame, the number and the operation. What is wrong with it is
handed over in `Call.problem`. `get` never raises, since pykka would leave the actor half dead: a
failure becomes a `MailboxFailed` message.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import zmq

from trackd.actors.inbox import Envelope
from trackd.actors.unread import SMALL, UnreadReplies
from trackd.host.processes import PeerCache
from trackd.operations.call import Call
from trackd.operations.repeats import SMALL as SMALL_GOSSIP
from trackd.operations.repeats import Repeats
from trackd.sessions.identity import Peer
from trackd_client.errors import Code
from trackd_client.wire.checks import check_count
from trackd_client.wire.errors import ProtocolError
from trackd_client.wire.frames import fast_send
from trackd_client.wire.protocol import FRAME_SLACK, REQUEST, decode, read_seq

#: Requests received before their batch is committed and answered.
BATCH = 128
#: Bytes after which a batch ends. A message takes up to 80 times its size once it is decoded
#: (an array of a million empty maps), so that a batch of the largest would take 10 GiB.
BATCH_BYTES = 1024 * 1024
#: Seconds after which a batch ends, so that its replies leave. Long enough for a hundred cheap
#: requests to share a commit.
BATCH_SECONDS = 0.004
#: Bytes after which a part of a batch ends: gossip costs as much as it is long.
PART_BYTES = 64 * 1024
#: Messages of a batch up to which it is asked whether there is another.
_FEW = 8
# Plain integers: the flags of pyzmq are enums, whose `|` and `&` cost more than the calls.
_NOW = int(zmq.DONTWAIT)
_MORE_NOW = int(zmq.SNDMORE | zmq.DONTWAIT)
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)
#: Messages queued inside libzmq for each peer: low, since each may be as large as a frame.
_RECEIVE_HWM = 64
_SEND_HWM = 1000
#: Small replies that found no room, tried again with the next batch.
_MAX_UNSENT = 2000
#: Milliseconds that a connection may take for its handshake.
_HANDSHAKE_MS = 5000
_BACKLOG = 4096
#: Milliseconds that the last replies have to leave the process when it stops.
_LINGER_MS = 200
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class MailboxFailed:
    """Receiving failed for good; the actor ends when it handles this message."""

    error: Exception


class RouterMailbox:
    """The inbox: `put` from any thread; all else in the actor's thread.

    Attributes:
        call_class: of the requests that it hands over.
    """

    call_class = Call

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        max_frame: int,
        costly: Collection[str] = (),
    ) -> None:
        """Create the sockets; nothing outside this process can reach them until `bind`.

        Args:
            context: the process's ZeroMQ context.
            max_frame: bytes of the largest frame that is served.
            costly: the operations whose requests may cost as much as a hundred others.
        """
        self.end_batch: Callable[[], None] = lambda: None
        self.received = 0
        self.batch_began = 0.0  # by time.perf_counter
        self._max_frame = max_frame
        self._costly = frozenset(costly)
        self._peers = PeerCache()
        self._outbox: list[tuple[bytes, bytes]] = []
        self._repeats = Repeats()
        self._unread = UnreadReplies()
        self._unsent: deque[tuple[bytes, bytes]] = deque(maxlen=_MAX_UNSENT)
        self._ready: deque[Envelope[Any]] = deque()
        self._taken = 0  # messages of the batch
        self._room = 0  # bytes that the batch may still take; 0: nothing more
        self._ends = 0.0  # when the batch ends, by time.perf_counter
        self._part_over = False
        self._local: deque[Envelope[Any]] = deque()
        self._wake_lock = threading.Lock()
        self._wake_sent = False
        self._router = context.socket(zmq.ROUTER)
        self._router.linger = 0
        self._router.rcvhwm = _RECEIVE_HWM
        self._router.sndhwm = _SEND_HWM
        self._router.maxmsgsize = max_frame + FRAME_SLACK
        self._router.router_mandatory = True
        self._router.handshake_ivl = _HANDSHAKE_MS
        self._router.backlog = _BACKLOG
        self._wake = context.socket(zmq.DEALER)
        self._wake.linger = 0
        wake_endpoint = f"inproc://mailbox-{next(_numbers)}"
        self._router.bind(wake_endpoint)
        self._wake.connect(wake_endpoint)
        self._send_frame = fast_send(self._router)

    def put(self, envelope: Envelope[Any], /) -> None:
        """Add a message of this process. Never blocks; wake-ups are coalesced."""
        self._local.append(envelope)
        if not self._wake_sent:
            with self._wake_lock, contextlib.suppress(zmq.ZMQError):
                # A closed socket: the actor is gone, and pykka's teardown empties the queue.
                self._wake_sent = True
                self._wake.send(b"", zmq.DONTWAIT)

    def empty(self) -> bool:
        """Return whether the local queue is empty: a teardown does not wait for remote requests."""
        return not self._local

    def get(self) -> Envelope[Any]:
        """Return the next message; between batches commit, flush, and wait."""
        while True:
            in_time = time.perf_counter() < self._ends
            if self._ready and in_time:
                return self._ready.popleft()
            if self._local:
                return self._local.popleft()
            try:
                if in_time and self._room > 0 and self._taken < BATCH:
                    self._receive_part()
                    continue
                self.end_batch()
                self._begin_batch()
            except Exception as error:  # noqa: BLE001 - raising here would leave a dead actor alive
                return Envelope(MailboxFailed(error))
            if self._ready:  # one at least, however slow the machine is
                return self._ready.popleft()

    def bind(self, endpoint: str, descriptor: int | None = None) -> None:
        """Serve an endpoint. Runs in the actor's thread, once its state is recovered.

        Args:
            endpoint: where.
            descriptor: a socket that listens there already, which libzmq then only accepts
                from; its path is never touched.
        """
        if descriptor is not None:
            self._router.use_fd = descriptor
        self._router.bind(endpoint)

    def limit_frames(self, max_frame: int) -> None:
        """Serve frames up to so many bytes. Runs in the actor's thread.

        libzmq asks for the limit when a connection is made. One that is older is cut off by a
        frame that goes beyond the old limit; its client connects and sends again.
        """
        self._max_frame = max_frame
        self._router.maxmsgsize = max_frame + FRAME_SLACK

    def send(self, route: bytes, frame: bytes) -> None:
        """Queue a reply to a request that was parked earlier."""
        self._outbox.append((route, frame))

    def note_empty(self) -> None:
        """Do nothing: all that had arrived was read just now."""

    def discard(self) -> None:
        """Drop the replies of the batch so far."""
        self._outbox.clear()

    @property
    def has_unsent(self) -> bool:
        """Whether replies wait for room; `flush` tries them again."""
        return bool(self._unsent)

    def flush(self) -> None:
        """Send the replies of the batch.

        A reply for a peer that has gone is dropped: the client fetches it again over its
        next connection. A small one that finds no room is tried once more after the next batch.
        """
        if self._unsent:
            again = list(self._unsent)
            self._unsent.clear()
            for message in again:
                self._send(*message)
        for route, frame in self._outbox:
            if not self._send(route, frame) and len(frame) <= SMALL:
                self._unsent.append((route, frame))
        self._outbox.clear()

    def close(self) -> None:
        """Close the sockets. For the server, after the actor's thread has ended."""
        with self._wake_lock:
            self._wake.close()
        self._router.close(linger=_LINGER_MS)

    def _send(self, route: bytes, frame: bytes) -> bool:
        if len(frame) > SMALL and not self._unread.admit(route, len(frame)):
            return False
        try:
            self._send_frame(route, _MORE_NOW)
            self._send_frame(frame, _NOW)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._unread.forget_route(route)
        return True

    def _begin_batch(self) -> None:
        """Begin with what the last batch left over, or with what has arrived, or wait for it.

        A message that had to be waited for is a batch by itself: nearly always it came alone, and
        looking for more takes as long as reading a request.
        """
        self._taken = len(self._ready)
        self._room = 0
        if not self._ready:
            if self._router.get(_EVENTS) & _POLLIN:  # type: ignore[operator] # an int
                self.batch_began = time.perf_counter()
                self._room = BATCH_BYTES
                self._receive_part()
                self._ends = self.batch_began + BATCH_SECONDS
                return
            self.note_empty()
            self._receive(0)
        self.batch_began = time.perf_counter()
        self._ends = self.batch_began + BATCH_SECONDS

    def _receive_part(self) -> None:
        """Receive what has arrived, up to a costly request and the bounds of a batch."""
        router = self._router
        self._part_over = False
        stop = self._room - PART_BYTES
        with contextlib.suppress(zmq.Again):
            while self._taken < BATCH:
                # Where there are many, finding out by trying is cheaper in the end.
                if self._taken < _FEW and not router.get(_EVENTS) & _POLLIN:  # type: ignore[operator]
                    break
                self._room -= self._receive(_NOW)
                self._taken += 1
                if self._part_over or self._room <= max(0, stop):
                    return
        self._room = 0  # nothing more had arrived
        self.note_empty()

    def _receive(self, flags: int) -> int:
        """Receive one message; return the bytes of its first frame.

        Raises:
            zmq.Again: there is none, and the flags say not to wait.
        """
        router = self._router
        route = router.recv(flags)
        frame = router.recv(copy=False)
        problem = None
        if frame.more:
            problem = ProtocolError(Code.MALFORMED, "a message is one frame")
            while router.recv(copy=False).more:
                pass  # one at a time: they may be many
        try:
            peer = self._peers[frame.get("Peer-Address")]  # type: ignore[index] # text
        except zmq.ZMQError:
            peer = None  # inproc, or a transport that does not say who is there
        size = len(frame)
        if peer is None and not size:
            self._wake_sent = False  # before the queue is read, so that no wake-up gets lost
            return 0
        self._unread.note_route(route, frame)
        self._hand_over(route, peer, frame, problem)
        return size

    def _hand_over(
        self, route: bytes, peer: Peer | None, frame: zmq.Frame, problem: ProtocolError | None
    ) -> None:
        call = self._read_call(route, peer, frame, problem)
        if call is not None:
            self._ready.append(Envelope(call, call))  # type: ignore[arg-type] # set and set_exception are all that pykka's loop asks of a reply handle

    def _read_call(
        self,
        route: bytes,
        peer: Peer | None,
        frame: zmq.Frame | bytes,
        problem: ProtocolError | None,
    ) -> Call | None:
        """Return the request in a frame; None for a message of another kind."""
        self.received += 1
        body: dict[str, Any] = {}
        seq, heard = 0, None
        if problem is None:
            try:
                if len(frame) <= SMALL_GOSSIP:
                    decoded = decode(frame)  # type: ignore[arg-type] # as good as bytes, without a copy of them
                else:
                    decoded, heard = self._repeats.decode(bytes(frame))  # type: ignore[arg-type] # a frame is a buffer
                if decoded is None or decoded[0] != REQUEST:
                    return None
                body = decoded[1]
                seq = check_count(body.get("seq"), "seq", least=1)
                if len(frame) > self._max_frame:
                    raise ProtocolError(
                        Code.LIMIT_EXCEEDED,
                        f"the message has {len(frame)} bytes; {self._max_frame} are allowed",
                        seq,
                    )
            except ProtocolError as error:
                # Its traceback would hold on to all that was decoded, and this frame to it.
                problem = error.with_traceback(None)
                problem.__context__ = None
                seq = error.seq or read_seq(body.get("seq"))
        op = body.get("op")
        self._part_over = type(op) is str and op in self._costly
        call = self.call_class(self._outbox, route, peer, seq, body, problem)
        call.heard = heard
        return call
