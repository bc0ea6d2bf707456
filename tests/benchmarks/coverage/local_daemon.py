"""The daemon's rules and state in this process, and trackd's asyncio client connected to them.

Only the sockets, the threads and the store are replaced: a request is the frame that the real
client sends, and it is answered by the daemon's own dispatch, decisions and timers.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from trackd.config.settings import Config
from trackd.host.roles import Roles
from trackd.operations.call import Call
from trackd.operations.context import Context
from trackd.operations.dispatch import Requests
from trackd.operations.replies import Replies
from trackd.operations.runtime import Runtime
from trackd.sessions.identity import Peer, Process
from trackd.state import timers
from trackd.state.decide import Decisions
from trackd.state.state import State
from trackd_client import AsyncTracker
from trackd_client.aio.connection import Outstanding
from trackd_client.wire.protocol import decode

#: Seconds from a request to its arrival, and from a reply to its arrival. A turn on a unix socket
#: takes less (docs/performance.md), so that this is no favour.
LATENCY = 0.0005
#: Seconds from the end of an agent's process to the moment when the daemon knows of it: the median
#: that docs/performance.md shows.
EXIT_SECONDS = 0.006
CLUSTER = "example.com"
_UID = 1000


class LocalDaemon:
    """A daemon without sockets, threads and store.

    Attributes:
        state: what it knows.
    """

    def __init__(self, chance: random.Random, **settings: Any) -> None:
        config = Config(cluster_name=CLUSTER, endpoint="ipc:///nowhere", state_dir="", **settings)
        self._loop = asyncio.get_running_loop()
        self.state = State(
            CLUSTER, dial_rate=config.dial_rate, dial_burst=config.dial_burst, history=0
        )
        runtime = Runtime("boot", self._loop.time(), 0.0)
        self._decide = Decisions(self.state, config, runtime.metrics, lambda _keys: None)
        self._decide.pauses._jitter = chance.random
        self._outbox: list[tuple[bytes, bytes]] = []
        replies = Replies(
            self._decide, lambda *sent: self._outbox.append(sent), config.max_outstanding
        )
        self._replies = replies
        roles = Roles((), ())
        self._requests = Requests(
            Context(self.state, self._decide, replies, config, roles, runtime, self._loop.time)
        )
        self._clients: dict[bytes, LocalTracker] = {}
        self._numbers = itertools.count(1)
        self._timer: asyncio.TimerHandle | None = None
        self._begin()
        self._decide.began = self._decide.now
        self._decide.begin_epoch("simulated", None)
        self._end()

    def join(self, client: LocalTracker) -> tuple[bytes, Peer]:
        """Return the connection of a client, and the process that it stands for."""
        number = next(self._numbers)
        route = number.to_bytes(4, "big")
        self._clients[route] = client
        return route, Peer(_UID, _UID, 1_000_000 + number)

    def receive(self, route: bytes, peer: Peer, frame: bytes) -> None:
        """Handle a request, and send the replies that it brings about."""
        decoded = decode(frame)
        assert decoded is not None
        body = decoded[1]
        self._begin()
        call = Call(self._outbox, route, peer, body["seq"], body)
        call.set(self._requests.answer(call))
        self._end()

    def process_exited(self, peer: Peer) -> None:
        """End the sessions of a process that the kernel says has ended."""
        self._begin()
        for session in self.state.sessions.of_process(_process_of(peer.pid)):
            self._decide.end_session(session, "process_exited")
        self._end()

    def _sweep(self) -> None:
        self._timer = None
        self._begin()
        timers.sweep(self._decide)
        self._end()

    def _begin(self) -> None:
        self._decide.begin(self._loop.time())

    def _end(self) -> None:
        """Do what TrackerActor does after a message: serve who waits, reply, set the timer."""
        decide = self._decide
        if self.state.queue:
            decide.serve_waiters()
        if decide.finished or decide.noticed:
            self._replies.settle(stores=True)
        decide.take()
        for route, frame in self._outbox:
            self._clients[route].deliver(frame)
        self._outbox.clear()
        self._replies.batch_ended()
        due = timers.next_timer(decide)
        if self._timer is not None and (due is None or due != self._timer.when()):
            self._timer.cancel()
            self._timer = None
        if due is not None and self._timer is None:
            # Ends are strict: at the moment itself nothing has ended yet.
            self._timer = self._loop.call_at(max(due, self._loop.time()) + 1e-6, self._sweep)


class SimulatedClient(AsyncTracker):
    """The asyncio client of a simulated process."""

    @abstractmethod
    def die(self) -> None:
        """End as a process does: nothing is sent any more, and the kernel notifies the daemon."""


class LocalTracker(SimulatedClient):
    """The asyncio client with a daemon in this process in place of a socket.

    Attributes:
        daemon: which.
    """

    def __init__(self, daemon: LocalDaemon, name: str) -> None:
        super().__init__("ipc:///nowhere", name=name)
        self.daemon = daemon
        self._route, self._peer = daemon.join(self)
        self._socket: Any = SimpleNamespace(closed=False)

    def die(self) -> None:
        """End as a process does: nothing is sent any more, and the kernel notifies the daemon."""
        self._socket.closed = True
        assert self._loop is not None
        self._loop.call_later(EXIT_SECONDS, self.daemon.process_exited, self._peer)

    def deliver(self, frame: bytes) -> None:
        """Take a reply after its way here."""
        assert self._loop is not None
        self._loop.call_later(LATENCY, self._take, frame)

    def _begin(self) -> None:
        self._conversation.check_usable()
        self._loop = asyncio.get_running_loop()
        self._connected = self._was_connected = True

    def _send(self, outstanding: Outstanding) -> None:
        if not self._socket.closed:  # nothing gets lost on the way, so nothing is sent again
            assert self._loop is not None
            frame = outstanding.request.frame
            self._loop.call_later(LATENCY, self.daemon.receive, self._route, self._peer, frame)

    def _take(self, frame: bytes) -> None:
        if not self._socket.closed:
            super()._take(frame)


def _process_of(pid: int) -> Process:
    return Process(pid, 1)


@contextmanager
def simulated_processes() -> Iterator[None]:
    """Let the daemon take every pid for a process that lives."""
    with (
        patch("trackd.operations.agents.start_time", lambda _pid: 1),
        patch("trackd.operations.agents.command_of", lambda _pid: "agent"),
    ):
        yield
