"""A simulated host: the daemon as one process after the other, its clients, and what joins them.

Real are the daemon's actor with its batch loop, state, rules and store, and the asyncio client with
its session, its copies of requests and its pool. Simulated are the clock (`helpers.virtual_time`),
the socket, the threads, the processes and the disk.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import struct
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import zmq

from benchmarks.coverage.local_daemon import SimulatedClient
from helpers.kept import Kept
from helpers.writer import Desk, Host
from simulation.audit import Audit
from simulation.disk import COMMIT, Disk, Fate, Killed
from trackd.actors.messages import (
    ProcessExited,
    Publish,
    Sweep,
    UnwatchProcess,
    WakeAt,
    WatchProcess,
)
from trackd.sessions.identity import Peer, Process
from trackd.state.pauses import Pauses
from trackd.storage.store import DamagedError, StoreError
from trackd_client.wire.protocol import decode

#: Seconds that a message takes at most where the wire is good: as long as a busy host may need.
USUAL_DELAY = 0.05
#: Seconds from the end of a process to the moment when the daemon knows of it.
EXIT_SECONDS = 0.006
#: Seconds from a message to the batch that takes it in, at most.
BATCH_SECONDS = 0.002
#: Seconds until a daemon that could not start is started again.
RESTART_SECONDS = 1.0
_UID = 1000
#: Returns what daemons keep their state in, whose calls are statements of a disk.
Keep = Callable[[Disk], Kept]


class Wire:
    """The unix socket at its worst: requests and replies are late, lost, doubled, out of order.

    Attributes:
        loss: the share of messages that is lost.
        copies: the share that arrives twice, the second time up to some seconds later.
        delay: seconds that a message takes at most.
    """

    def __init__(self, chance: random.Random, reached: Counter[str]) -> None:
        self.loss = self.copies = 0.0
        self.delay = USUAL_DELAY
        self._chance = chance
        self._reached = reached

    def carry(self, deliver: Any, *message: Any) -> None:
        """Deliver a message after its way, once, twice or never."""
        loop = asyncio.get_running_loop()
        if self._chance.random() < self.loss:
            self._reached["message lost"] += 1
            return
        loop.call_later(self._chance.uniform(0.0, self.delay), deliver, *message)
        if self._chance.random() < self.copies:
            self._reached["message doubled"] += 1
            loop.call_later(self._chance.uniform(0.0, 5.0), deliver, *message)


class _Desk(Desk):
    """A process of the daemon whose replies go to the simulated host."""

    def __init__(self, host: SimulatedHost, **settings: Any) -> None:
        self._host = host
        loop = asyncio.get_running_loop()
        super().__init__(host.directory, loop.time, host.disk, kept=host.kept, **settings)
        self.audience.listening = True

    def _collect(self, route: bytes, frame: bytes) -> bool:
        self._host.send(route, frame)
        return True

    @property
    def is_between_steps(self) -> bool:
        """Whether a checkpoint is under way."""
        if self._kept is None:
            return self.sqlite._checkpoint._next_base is not None
        store: Any = self.actor._store
        return store._next is not None


class SimulatedHost:
    """A host with a daemon that is started again whenever it ends.

    Attributes:
        directory: the state directory.
        disk: what it is on.
        kept: what the daemon keeps its state in instead, or None. Its calls are statements of the
            disk, too.
        wire: what joins daemon and clients.
        processes: which processes live.
        desk: the present process of the daemon, or None while there is none.
        batch: messages that a batch takes at most.
        stalled: whether the daemon does not run, although it lives.
        kill_before_reply: replies that the next batch with changes may send before the daemon is
            killed, or None.
        commit_fate: what becomes of the next commit of events, or None.
        kill_before_commit: whether the daemon is killed when it has handled a message that changes
            something, before it stores that.
    """

    def __init__(
        self,
        directory: Path,
        chance: random.Random,
        reached: Counter[str],
        keep: Keep | None = None,
        **settings: Any,
    ) -> None:
        self.directory = directory
        self.reached = reached
        self.disk = Disk(reached)
        self.kept = None if keep is None else keep(self.disk)
        self.wire = Wire(random.Random(chance.random()), reached)
        self.processes = Host()
        self.desk: _Desk | None = None
        self.batch = 1
        self.stalled = False
        self.kill_before_reply: int | None = None
        self.kill_before_commit = False
        self.commit_fate: Fate | None = None
        self.audit = Audit(self.processes, reached, settings)
        self._settings = settings
        self._chance = random.Random(chance.random())
        self._numbers = itertools.count(1)
        self._clients: dict[bytes, SimulatedTracker] = {}
        self._inbox: deque[Any] = deque()
        self._pending: asyncio.TimerHandle | None = None
        self._wake: asyncio.TimerHandle | None = None
        self._watched: set[Process] = set()
        self._committing = False

    # -- the daemon as a process -----------------------------------------------------------

    def start(self) -> None:
        """Start the daemon; when that fails, again after a moment."""
        if self.desk is not None:
            return
        self.disk.gone = False
        self._committing = False
        try:
            self.desk = _Desk(self, **self._settings)
        except (Killed, StoreError):
            self.reached["killed or failed while it started"] += 1
            self._start_later(RESTART_SECONDS)
            return
        self.audit.started(self.desk)
        for client in self._clients.values():
            self._join(client)
        self._look_at_messages()

    def kill(self, restart_after: float) -> None:
        """End the daemon between two of its steps, and start it again later."""
        if self.desk is None:
            return
        state = self.desk.state
        if state.queue:
            self.reached["killed while requests are parked"] += 1
        if self.desk.actor._runtime.store_problem is not None:
            self.reached["killed while the store fails"] += 1
        if self.desk.is_between_steps:
            self.reached["killed between two steps of a checkpoint"] += 1
        self.disk.gone = True
        self.desk.kill()
        self.desk = None
        self._inbox.clear()
        self._watched.clear()
        self.kill_before_reply = None
        self.kill_before_commit = self.stalled = False
        for timer in (self._pending, self._wake):
            if timer is not None:
                timer.cancel()
        self._pending = self._wake = None
        for client in self._clients.values():
            client.set_connected(None)
        self._start_later(restart_after)

    def _start_later(self, seconds: float) -> None:
        asyncio.get_running_loop().call_later(seconds, self.start)

    # -- what comes in -----------------------------------------------------------------------

    def receive(self, client: SimulatedTracker, route: bytes, frame: bytes) -> None:
        """Take a request from the wire, unless it was sent to an earlier process."""
        if self.desk is not None and client.route == route:
            self._put((client, frame))

    def _put(self, message: Any) -> None:
        self._inbox.append(message)
        self._run_soon()

    def _run_soon(self) -> None:
        if self._pending is None and self._inbox and not self.stalled:
            loop = asyncio.get_running_loop()
            self._pending = loop.call_later(self._chance.uniform(0, BATCH_SECONDS), self._run)

    def resume(self) -> None:
        """Let a stalled daemon run again."""
        self.stalled = False
        self.audit.calm_since = asyncio.get_running_loop().time()
        self._run_soon()

    def _run(self) -> None:
        """Handle one batch: what has come in, up to a number."""
        self._pending = None
        desk = self.desk
        if desk is None or self.stalled:
            return
        try:
            for _ in range(min(self.batch, len(self._inbox))):
                self._handle(desk, self._inbox.popleft())
                if self.kill_before_commit and desk.actor._decide.batch:
                    self.reached["killed before its batch is stored"] += 1
                    raise Killed
            self.end_batch(desk)
        except Killed:
            self.kill(self._chance.uniform(0.0, RESTART_SECONDS))
            return
        except (StoreError, DamagedError):  # cannot even read what is stored: it ends
            self.reached["ended since it could not read"] += 1
            self.kill(RESTART_SECONDS)
            return
        if desk.ended and self.kept is not None:  # it could not find out what it had stored
            self.reached["left what it had stored to the next"] += 1
            self.kill(RESTART_SECONDS)
            return
        assert not desk.ended, "the daemon met an error of its own"
        self._run_soon()

    def _handle(self, desk: _Desk, message: Any) -> None:
        if not isinstance(message, tuple):
            desk.actor.on_receive(message)
            return
        client, frame = message
        decoded = decode(frame)
        assert decoded is not None
        self.audit.before_request(desk, client.number, decoded[1])
        desk.send(decoded[1], client.peer, client.route)

    def end_batch(self, desk: _Desk) -> None:
        """Store the batch and let its replies leave, and check what can be seen of that."""
        events = self.audit.before_commit(desk)
        if events and self.commit_fate is not None:
            self.disk.next_fates[COMMIT], self.commit_fate = self.commit_fate, None
        self._committing = events > 0
        desk.end_batch()
        self._committing = False
        self.audit.after_commit(desk)
        self._look_at_messages()

    # -- what goes out -----------------------------------------------------------------------

    def send(self, route: bytes, frame: bytes) -> None:
        """Let a reply leave the daemon."""
        if self._committing and self.kill_before_reply is not None:
            if self.kill_before_reply <= 0:
                self.reached["killed between commit and reply"] += 1
                raise Killed
            self.kill_before_reply -= 1
        client = self._clients.get(route)
        if client is not None and self.desk is not None:
            self.audit.replied(self.desk, client.number, frame)
            self.wire.carry(client.deliver, route, frame)

    def _look_at_messages(self) -> None:
        """Do what the other actors do with what was sent to them."""
        desk = self.desk
        if desk is None:
            return
        for recorder in (desk.ticker, desk.watcher, desk.publisher):
            messages, recorder.messages = recorder.messages, []
            for message in messages:
                if isinstance(message, WakeAt):
                    self._wake_at(message.time)
                elif isinstance(message, WatchProcess):
                    self._watched.add(message.process)
                    if not self._is_alive(message.process):
                        self._notice_exit(message.process)
                elif isinstance(message, UnwatchProcess):
                    self._watched.discard(message.process)
                elif isinstance(message, Publish):
                    self.audit.published(message)

    def _wake_at(self, moment: float | None) -> None:
        loop = asyncio.get_running_loop()
        if self._wake is not None and moment is not None and self._wake.when() <= moment:
            return
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        if moment is not None:
            # Ends are strict: at the moment itself nothing has ended yet.
            self._wake = loop.call_at(max(moment, loop.time()) + 1e-6, self._sweep)

    def _sweep(self) -> None:
        self._wake = None
        self._put(Sweep())

    # -- processes ---------------------------------------------------------------------------

    def new_process(self) -> Process:
        """Let a process of an agent begin."""
        return self.processes.start(1_000_000 + next(self._numbers))

    def process_ends(self, process: Process) -> None:
        """End a process; the kernel notifies whoever watches it."""
        del self.processes.alive[process.pid]
        self.audit.process_ended(process.pid)
        if process in self._watched:
            self._notice_exit(process)

    def _is_alive(self, process: Process) -> bool:
        return self.processes.alive.get(process.pid) == process.start

    def _notice_exit(self, process: Process) -> None:
        asyncio.get_running_loop().call_later(EXIT_SECONDS, self._exited, self.desk, process)

    def _exited(self, desk: _Desk | None, process: Process) -> None:
        if desk is self.desk:
            self._put(ProcessExited(process, asyncio.get_running_loop().time()))

    def join(self, client: SimulatedTracker) -> None:
        """Connect a client, now or once there is a daemon."""
        self._clients[client.route] = client
        if self.desk is not None:
            self._join(client)

    def _join(self, client: SimulatedTracker) -> None:
        delay = self._chance.uniform(0.0, 0.2)
        asyncio.get_running_loop().call_later(delay, self._connect, self.desk, client)

    def _connect(self, desk: _Desk | None, client: SimulatedTracker) -> None:
        if desk is not self.desk or self._clients.pop(client.route, None) is None:
            return
        route = next(self._numbers).to_bytes(4, "big")
        self._clients[route] = client
        client.set_connected(route)

    def leave(self, client: SimulatedTracker) -> None:
        """Close the connection of a client."""
        self._clients.pop(client.route, None)


class SimulatedTracker(SimulatedClient):
    """The asyncio client of an agent's process, on a simulated socket.

    Attributes:
        number: of this client; its requests have numbers of their own.
        route: its connection, or b"" and a number before the first one.
        peer: its process as the kernel tells the daemon.
    """

    def __init__(self, host: SimulatedHost, name: str, *, visible: bool = True) -> None:
        super().__init__("ipc:///nowhere", name=name)
        self._host = host
        self.process = host.new_process()
        self.number = self.process.pid
        self.peer = Peer(_UID, _UID, self.process.pid if visible else 0)
        self.route = b"new" + self.number.to_bytes(4, "big")

    def die(self) -> None:
        """End as a process does."""
        if self.process.pid not in self._host.processes.alive:
            return
        if self._loop is not None:
            self._socket.closed = True  # type: ignore[misc] # not a real one
            for timer in (self._heartbeat, self._reporting, self._timer):
                if timer is not None:
                    timer.cancel()
            self._host.leave(self)
        self._host.process_ends(self.process)

    def deliver(self, route: bytes, frame: bytes) -> None:
        """Take a reply from the wire, unless it came over an earlier connection."""
        if route == self.route and not self._socket.closed:
            self._take(frame)

    def set_connected(self, route: bytes | None) -> None:
        """Note the begin of a connection, or None: its end; as a real socket reports them."""
        kind = zmq.Event.DISCONNECTED
        if route is not None:
            self.route, kind = route, zmq.Event.HANDSHAKE_SUCCEEDED
        elif not self._connected:
            return
        self._take_monitored([struct.pack("=HI", kind, 0), b""])

    def _begin(self) -> None:
        self._conversation.check_usable()
        if self._loop is not None:
            return
        self._loop = asyncio.get_running_loop()
        nothing = lambda *_: None  # noqa: E731 - what a simulated socket does when it is closed
        socket: Any = SimpleNamespace(
            closed=False, connect=nothing, disconnect=nothing, disable_monitor=nothing
        )
        self._socket = socket
        reader: Any = SimpleNamespace(look=nothing, close=self._close_socket)
        self._readers = (reader,)
        self._context = SimpleNamespace(term=nothing)  # type: ignore[assignment] # likewise
        self._dropped = SimpleNamespace(detach=nothing)  # type: ignore[assignment] # likewise
        self._send_frame = self._send_to_host
        self._host.join(self)

    def _send_to_host(self, frame: bytes, _flags: int) -> None:
        if self._connected and not self._socket.closed:
            self._host.audit.asked(self.number, frame)
            self._host.wire.carry(self._host.receive, self, self.route, frame)

    def _close_socket(self) -> None:
        self._socket.closed = True  # type: ignore[misc] # not a real one
        self._host.leave(self)


@contextmanager
def simulated(host: SimulatedHost, chance: random.Random) -> Iterator[None]:
    """Let daemon and client see the simulated processes, clocks and dice, and shrink limits.

    A checkpoint begins after a few rows, and a step writes one thing.
    """
    loop = asyncio.get_running_loop()
    ticks = itertools.count()
    clock = SimpleNamespace(
        perf_counter=lambda: next(ticks) * 0.0004, time=loop.time, time_ns=ticks.__next__
    )
    alive = host.processes.alive
    tokens = SimpleNamespace(token_bytes=chance.randbytes)
    with ExitStack() as stack:
        stack.enter_context(host.processes.seen())
        for name, value in {
            "trackd.operations.agents.has_exited": lambda pid: pid not in alive,
            "trackd.operations.agents.command_of": lambda _pid: "agent",
            "trackd.state.decide.Pauses": partial(Pauses, jitter=chance.random),
            "trackd.actors.writer.suspended_seconds": lambda: 0.0,
            "trackd.actors.writer.time": clock,
            "trackd.storage.checkpoint.time": clock,
            "trackd.storage.checkpoint._DUE_ROWS": chance.choice((3, 8, 30)),
            "trackd.storage.checkpoint._STEP_ROWS": 1,
            "trackd.storage.checkpoint._STEP_SECONDS": 0.001,
            "trackd.storage.reserve.RESERVE_BYTES": 4096,
            "trackd_client.core.conversation.secrets": tokens,
            "trackd_client.aio.tracker.end_later": lambda *_: None,
        }.items():
            stack.enter_context(patch(name, value))
        yield
