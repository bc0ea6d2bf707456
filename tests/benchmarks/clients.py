"""What sends the requests: an agent of each kind, and what it does in one turn of a mix.

`Wire` and the echo's agent are one class and one code path: a DEALER that sends frames which
were encoded beforehand, and reads no more of a reply than it needs (the lease). So the ratio of
the two is the ratio of what answers them. `Library` is what users get; the others are what they
would use instead.
"""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any

import msgpack
import zmq

from benchmarks.mixes import HELD, Mix, names, own_name
from trackd_client import Proxy, Tracker
from trackd_client.wire.clock import boottime
from trackd_client.wire.protocol import REQUEST, encode

_NOW = int(zmq.DONTWAIT)
#: Seconds until the deadline that a request carries.
_TIMEOUT = 600.0


class Client(ABC):
    """One agent in a closed loop.

    Attributes:
        turn: does one turn of the mix: each request is sent once the one before is answered.
    """

    turn: Callable[[], None]

    @abstractmethod
    def close(self) -> None:
        """End whatever the peer knows of this agent."""


class Dealer(Client):
    """A DEALER with frames made beforehand, to trackd (with a session) or to the echo.

    Args:
        context: of this process.
        endpoint: of the peer.
        mix: what it asks for.
        agent: its number, so that no two agents claim the same proxy.
        session: whether the peer knows sessions; the echo does not.
        slots: requests that it keeps outstanding, when `send` and `receive` are used.

    Attributes:
        frames: the requests that are prepared and not yet sent.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        mix: Mix,
        agent: int = 0,
        *,
        session: bool = True,
        slots: int = 1,
    ) -> None:
        self._socket = context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.sndhwm = self._socket.rcvhwm = 0
        self._socket.connect(endpoint)
        self._session = session
        self._mix = mix
        self._slots = slots
        self._token = secrets.token_bytes(16)
        self._seq = 0
        self._names = [own_name(agent, slot) for slot in range(slots)]
        self.frames: deque[bytes] = deque()
        self._leases = [1] * slots
        self._sent = self._received = 0
        self._last = b""
        self._rows = [[name, "", 0, 1e6] for name in names(mix.gossip)]
        self.turn = self._cycle if mix is Mix.CYCLE else self._ask
        self.request("open" if session else "ping")

    def request(self, op: str, **fields: Any) -> dict[str, Any]:
        """Make one request, and return what is answered."""
        return self.exchange(self.frame(op, **fields))

    def exchange(self, frame: bytes) -> dict[str, Any]:
        """Send a frame, and return the fields of the next reply."""
        self._socket.send(frame)
        return self.next_reply()

    def tell(self, op: str, **fields: Any) -> None:
        """Send a request whose reply comes later."""
        self._socket.send(self.frame(op, **fields))

    def wait_in_line(self) -> None:
        """Send an `acquire` that will not be answered, and see that it was read."""
        self.tell("acquire")
        self.request("is_claimed", principals=[HELD])

    def next_reply(self) -> dict[str, Any]:
        """Return the fields of the next reply."""
        reply: dict[str, Any] = msgpack.unpackb(self._socket.recv())[2]
        if "error" in reply:
            raise RuntimeError(f"refused: {reply}")
        return reply

    def fresh_session(self, **fields: Any) -> None:
        """Open one more session over this connection, and speak for that one from now on."""
        self._token, self._seq = secrets.token_bytes(16), 0
        self.request("open", **fields)

    def prepare(self, requests: int) -> None:
        """Make the frames of so many requests, the next ones of this agent's session."""
        if self._mix is not Mix.CYCLE:
            op, fields = self._fields()
            self.frames.extend(self.frame(op, **fields) for _ in range(requests))
            return
        for _ in range(requests // (3 * self._slots) + 1):
            self.frames.extend(self.frame("try_acquire") for _ in self._names)
            for op, more in (("claim", self._names), ("release", [None] * self._slots)):
                for name in more:
                    fields = {} if name is None else {"principals": [name]}
                    # The lease is not known yet: it comes last, and is appended then.
                    frame = self.frame(op, **fields, lease=0)
                    self.frames.append(frame[:-1] + b"\xcf")

    def send(self) -> None:
        """Send the next request, of whichever kind comes next in this slot."""
        frame = self.frames.popleft()
        if self._mix is Mix.CYCLE:
            phase, slot = divmod(self._sent % (3 * self._slots), self._slots)
            self._sent += 1
            if phase:
                frame += self._leases[slot].to_bytes(8, "big")
        self._socket.send(frame, _NOW)

    def receive(self) -> None:
        """Take the oldest reply that is awaited; they come in order."""
        self._last = frame = self._socket.recv()
        if self._mix is Mix.CYCLE:
            phase, slot = divmod(self._received % (3 * self._slots), self._slots)
            self._received += 1
            if not phase:
                self._leases[slot] = msgpack.unpackb(frame)[2].get("lease", 1)

    def drop(self) -> None:
        """Close the socket only."""
        self._socket.close()

    def close(self) -> None:
        """Close the session, and the socket; fail when the last request was refused."""
        if self._session:
            if self._last and "error" in (reply := msgpack.unpackb(self._last)[2]):
                raise RuntimeError(f"{self._mix} was refused: {reply}")
            self._socket.send(self.frame("close"))
            while msgpack.unpackb(self._socket.recv())[2]["seq"] != self._seq:
                pass
        self._socket.close()

    def _ask(self) -> None:
        self._socket.send(self.frames.popleft())
        self._last = self._socket.recv()

    def _cycle(self) -> None:
        socket, frames = self._socket, self.frames
        socket.send(frames.popleft())
        lease = msgpack.unpackb(socket.recv())[2].get("lease", 1).to_bytes(8, "big")
        socket.send(frames.popleft() + lease)
        socket.recv()
        socket.send(frames.popleft() + lease)
        self._last = socket.recv()

    def _fields(self) -> tuple[str, dict[str, Any]]:
        if self._mix.gossip:
            return "track_expected", {"proxies": self._rows}
        if self._mix is Mix.REFUSED:
            return "try_acquire", {}
        return "is_claimed", {"principals": [HELD]}

    def frame(self, op: str, **fields: Any) -> bytes:
        """Return the frame of the next request, with all that the client library puts into one."""
        self._seq += 1
        done = self._seq - self._slots
        body: dict[str, Any] = {
            "op": op,
            "token": self._token,
            "done": [1, done] if done > 0 else [],
            "seq": self._seq,
            "deadline": boottime() + _TIMEOUT,
            **fields,
        }
        return encode(REQUEST, body)


class Library(Client):
    """`trackd_client.Tracker`, as agents use it."""

    def __init__(self, endpoint: str, mix: Mix, agent: int = 0) -> None:
        self._tracker = Tracker(endpoint, timeout=60.0)
        self._tracker.ping()
        self._name = own_name(agent)
        self._gossip = [Proxy(name, ttl=1e6) for name in names(mix.gossip)]
        turns = {Mix.IS_CLAIMED: self._is_claimed, Mix.REFUSED: self._refused}
        turns[Mix.CYCLE] = self._cycle
        self.turn = turns.get(mix, self._tell)

    def _is_claimed(self) -> None:
        self._tracker.is_claimed(HELD)

    def _refused(self) -> None:
        self._tracker.try_acquire()

    def _cycle(self) -> None:
        lease = self._tracker.try_acquire()
        assert lease is not None
        lease.claim(self._name)
        lease.release()

    def _tell(self) -> None:
        self._tracker.track_expected(*self._gossip)

    def close(self) -> None:
        """End the session."""
        self._tracker.close()


class RedisClient(Client):
    """redis-py, with the decisions as scripts."""

    def __init__(self, endpoint: str, mix: Mix, agent: int = 0) -> None:
        import redis

        from benchmarks.scripts import LeaseScripts

        self._client = redis.Redis(unix_socket_path=endpoint)
        self._scripts = LeaseScripts(self._client)
        self._mix, self._agent, self._name = mix, agent, own_name(agent)
        self._rows = [[name, "", 0, 1e6] for name in names(mix.gossip)]
        turns = {Mix.IS_CLAIMED: self._is_claimed, Mix.REFUSED: self._refused}
        turns[Mix.CYCLE] = self._cycle
        self.turn = turns.get(mix, self._tell)

    def _is_claimed(self) -> None:
        assert self._scripts.is_claimed(HELD) == 1

    def _refused(self) -> None:
        assert self._scripts.try_acquire(time.time()) == 0

    def _cycle(self) -> None:
        lease = self._scripts.try_acquire(time.time())
        assert self._scripts.claim(lease, self._name) == 1
        self._scripts.release(lease)

    def _tell(self) -> None:
        self._scripts.gossip(self._rows, time.time())

    def pipeline(self, slots: int) -> int:
        """Do a turn of the mix for each slot, in one pipeline for each request of it."""
        scripts, now = self._scripts, time.time()
        pipe = self._client.pipeline(transaction=False)
        if self._mix is Mix.IS_CLAIMED:
            for _ in range(slots):
                scripts.is_claimed(HELD, pipe)
            return len(pipe.execute())
        for _ in range(slots):
            scripts.try_acquire(now, pipe)
        leases = pipe.execute()
        if self._mix is Mix.REFUSED:
            return len(leases)
        for slot, lease in enumerate(leases):
            scripts.claim(lease, own_name(self._agent, slot), pipe)
        assert all(pipe.execute())
        for lease in leases:
            scripts.release(lease, pipe)
        return 3 * len(pipe.execute())

    def close(self) -> None:
        """Hang up."""
        self._client.close()


class ManagersClient(Client):
    """A stand-in of `multiprocessing.managers` for the rules."""

    def __init__(self, endpoint: str, mix: Mix, agent: int = 0) -> None:
        from benchmarks.managers import connect

        self._tracker = connect(endpoint)
        self._name = own_name(agent)
        self._gossip = [Proxy(name, ttl=1e6) for name in names(mix.gossip)]
        turns = {Mix.IS_CLAIMED: self._is_claimed, Mix.REFUSED: self._refused}
        turns[Mix.CYCLE] = self._cycle
        self.turn = turns.get(mix, self._tell)

    def _is_claimed(self) -> None:
        assert self._tracker.is_claimed([HELD])

    def _refused(self) -> None:
        assert self._tracker.try_acquire() is None

    def _cycle(self) -> None:
        lease = self._tracker.try_acquire()
        assert self._tracker.claim(lease, [self._name]) is not None
        self._tracker.release(lease)

    def _tell(self) -> None:
        self._tracker.track_expected(self._gossip)

    def close(self) -> None:
        """Nothing: it ends with the process's last reference."""
        del self._tracker
