"""FleetMailbox: the inbox of the leader. Its ROUTER speaks CURVE over TCP with the relays of hosts.

It is a RouterMailbox whose frames come through relays (`trackd.fleet.hop`), one connection for all
agents of a host. The *route* of a request is the connection and the relay's number of the request.
Who asks is what the relay says, on the host whose key the connection has proved.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

import zmq

from trackd.actors.inbox import Envelope
from trackd.actors.mailbox import RouterMailbox
from trackd.fleet.authentication import HostKeys, host_of, secure
from trackd.fleet.hop import (
    BESIDE,
    Answer,
    Exited,
    Here,
    Hop,
    HopError,
    decode,
    encode_answer,
)
from trackd.fleet.hosts import Hosts
from trackd.fleet.keys import KeyPair
from trackd.fleet.pending import WAITING
from trackd.operations.call import Attested, Call
from trackd.sessions.identity import Peer, Process
from trackd_client.core.limited_log import LimitedLog
from trackd_client.wire.protocol import FRAME_SLACK

#: Milliseconds of ZMTP's heartbeats: between two, and of silence that ends a connection.
_HEARTBEAT_MS: Final = 1000
_SILENCE_MS: Final = 3000
_NUMBER_BYTES: Final = 8
#: Ends the route of what answers no request.
_NO_NUMBER: Final = bytes(_NUMBER_BYTES)


@dataclass(frozen=True, slots=True)
class HostSaid:
    """To the leader: a word of a relay.

    Attributes:
        host: its host.
        word: what it says.
        new: whether it comes by a new connection, or after a new boot.
    """

    host: str
    word: Here | Exited
    new: bool = False


class FleetCall(Call):
    """A request of another host; its relay is told, too, that it gets no reply."""

    __slots__ = ()

    def set(self, frame: bytes | None) -> None:
        """Queue the reply, or that there is none; one that waits gets its reply later."""
        super().set(b"" if frame is None and self.op not in WAITING else frame)


class FleetMailbox(RouterMailbox):
    """The inbox.

    Attributes:
        hosts: who is connected.
        refused: frames that were dropped since their key is not known (any more).
        read_until: when all that had arrived was read, by the fleet clock. What hosts have said
            since may not be read yet, however long ago they have said it.
    """

    call_class = FleetCall

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        max_frame: int,
        costly: Collection[str],
        *,
        own: KeyPair,
        keys: HostKeys,
        hosts: Hosts,
        admins: Collection[str],
        term: int,
        clock: Callable[[], float],
        log: LimitedLog,
    ) -> None:
        """Create the sockets.

        Args:
            context: the process's ZeroMQ context.
            max_frame: bytes of the largest frame of an agent that is served.
            costly: as in RouterMailbox.
            own: the keys of this host.
            keys: which hosts may connect.
            hosts: of this leader.
            admins: the hosts whose word on who is an admin counts.
            term: of this leader.
            clock: returns seconds of the fleet clock.
            log: for what broken relays send.
        """
        super().__init__(context, max_frame, costly)
        self.hosts = hosts
        self.admins = frozenset(admins)
        self.refused = 0
        self.read_until = 0.0
        self._keys = keys
        self._term = term
        self._clock = clock
        self._log = log
        secure(self._router, own)
        self._router.heartbeat_ivl = _HEARTBEAT_MS
        self._router.heartbeat_timeout = _SILENCE_MS
        self.limit_frames(max_frame)

    def limit_frames(self, max_frame: int) -> None:
        """Serve frames of agents up to so many bytes."""
        self._max_frame = max_frame
        self._router.maxmsgsize = max_frame + FRAME_SLACK + BESIDE

    def note_empty(self) -> None:
        """Note when all that had arrived was read."""
        self.read_until = self._clock()

    def answer(self, connection: bytes, frame: bytes) -> None:
        """Queue a word for a relay, as `send` queues a reply."""
        self.send(connection + _NO_NUMBER, frame)

    def say(self, connection: bytes, frame: bytes) -> bool:
        """Send a word to a relay at once; return False when there is no room for it."""
        return self._send(connection + _NO_NUMBER, frame)

    def _receive(self, flags: int) -> int:
        router = self._router
        connection = router.recv(flags)
        frame = router.recv(copy=False)
        alone = not frame.more
        while frame.more:
            frame = router.recv(copy=False)
        size = len(frame)
        host = host_of(frame, self._keys)
        if host is None and not size:
            self._wake_sent = False  # before the queue is read, so that no wake-up gets lost
        elif host is None:
            self.refused += 1
        elif alone:
            self._unread.note_route(connection, frame)
            try:
                self._take(host, connection, decode(frame, self._max_frame))  # type: ignore[arg-type] # as good as bytes
            except HopError as error:
                self._log.warning(
                    "hop", "a frame of %s is not what a relay sends", host, error=error
                )
        return size

    def _take(self, host: str, connection: bytes, message: Hop | Here | Exited) -> None:
        now = self._clock()
        if isinstance(message, Here):
            new = self.hosts.here(host, connection, message.boot, now)
            self._ready.append(Envelope(HostSaid(host, message, new)))
            return
        known = self.hosts.heard(host, connection, now)
        if known is None:
            return  # of an older connection: the relay sends again what was not answered
        if isinstance(message, Exited):
            self._ready.append(Envelope(HostSaid(host, message)))
            return
        asker = message.asker
        route = connection + message.number.to_bytes(_NUMBER_BYTES)
        peer = Peer(asker.uid, asker.gid, asker.pid, host)
        call = self._read_call(route, peer, message.frame, None)
        if call is None:
            return
        process = None
        if asker.start is not None:
            process = Process(asker.pid, asker.start, host, known.boot)
        call.attested = Attested(process, asker.command)
        call.admin = asker.admin and host in self.admins
        call.unlisted = asker.admin and not call.admin
        if asker.remaining is not None and "deadline" in call.body:
            call.body["deadline"] = now + asker.remaining
        self._ready.append(Envelope(call, call))  # type: ignore[arg-type] # as in RouterMailbox

    def _send(self, route: bytes, frame: bytes) -> bool:
        connection = route[:-_NUMBER_BYTES]
        if not self.hosts.has(connection):
            return True
        number = int.from_bytes(route[-_NUMBER_BYTES:])
        if number:
            frame = encode_answer(Answer(self._term, number, frame))
        return super()._send(connection, frame)
