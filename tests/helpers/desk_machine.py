"""A state machine of hypothesis whose system is the real writer with its store, and real time.

Models know nothing of the daemon but what it replies. Time passes as it does for a daemon that is
never late: its ticker wakes it just after each moment that it has announced.
"""

from __future__ import annotations

import itertools
import tempfile
import types
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from helpers.kept import Kept, KeptInSQLite
from helpers.writer import AgentOf, Clock, Desk, Host, Sent
from trackd.actors.messages import WakeAt

#: A user that is neither root nor whoever runs the tests, so that quotas hold for it.
UID = 4321
#: A request, by its session's token and its number.
Key = tuple[bytes, int]

picks = st.integers(0, 1_000_000)


@contextmanager
def checkpoints_all_the_time() -> Iterator[None]:
    """Begin a checkpoint after few rows, with few rows a step, so that restarts read from them."""
    ticks = itertools.count()
    fake = types.SimpleNamespace(perf_counter=lambda: next(ticks) * 0.0004, time_ns=id)
    with (
        patch("trackd.storage.checkpoint._DUE_ROWS", 4),
        patch("trackd.storage.checkpoint._STEP_ROWS", 2),
        patch("trackd.storage.checkpoint._STEP_SECONDS", 0.001),
        patch("trackd.storage.checkpoint.time", fake),
    ):
        yield


class DeskMachine(RuleBasedStateMachine):
    """Starts, kills and wakes the daemon, and collects what it replies.

    Attributes:
        clock: of the daemon.
        host: its processes.
        kept: what its store is kept in.
        desk: the present daemon.
        arrived: the replies of the last batch, by their requests.
        sent: the bodies of all requests.
    """

    SETTINGS: dict[str, Any] = {}  # noqa: RUF012 - never changed

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        directory = self.stack.enter_context(tempfile.TemporaryDirectory(prefix="trackd-"))
        self.directory = Path(directory)
        self.clock, self.host = Clock(), Host()
        self.stack.enter_context(self.host.seen())
        self.kept = self.stack.enter_context(self.keep())
        self.arrived: dict[Key, Sent] = {}
        self.sent: dict[Key, dict[str, Any]] = {}
        self._tokens = 0
        try:
            self.start()
        except BaseException:
            self.stack.close()
            raise

    def keep(self) -> Kept:
        """Return what the state is kept in, after making its steps small."""
        self.stack.enter_context(checkpoints_all_the_time())
        return KeptInSQLite(self.directory)

    def teardown(self) -> None:
        with self.stack:
            self.desk.kill()

    def start(self) -> None:
        """Start the daemon on what is stored."""
        self.desk = Desk(self.directory, self.clock, kept=self.kept, **self.SETTINGS)
        self.desk.end_batch()  # as the first look into the inbox does
        self.collect(self.desk.sent)

    def agent(self, pid: int = 0, uid: int = UID) -> AgentOf:
        """Return an agent with a token of its own; pid 0: the daemon does not see its process."""
        self._tokens += 1
        process = self.host.start(pid) if pid else None
        return AgentOf(self._tokens, process, uid)

    def collect(self, replies: list[Sent]) -> None:
        self.arrived = {}
        for sent in replies:
            key = sent.route, sent.body["seq"]
            assert key not in self.arrived, "two replies to one request"
            self.arrived[key] = sent

    def ask(self, agent: AgentOf, op: str, **fields: Any) -> dict[str, Any] | None:
        """Make a request; return its reply, or None when it has none yet."""
        body = agent.body(op, **fields)
        self.sent[agent.token, body["seq"]] = body
        return self.ask_again(agent, body["seq"])

    def ask_again(self, agent: AgentOf, seq: int) -> dict[str, Any] | None:
        """Send a request that was sent before; return its reply, or None when it has none yet."""
        self.desk.send(self.sent[agent.token, seq], agent.peer, route=agent.token)
        self.collect(self.desk.end_batch())
        assert not self.desk.ended
        reply = self.arrived.get((agent.token, seq))
        return None if reply is None else reply.body

    def exits(self, agent: AgentOf) -> None:
        """Let the kernel tell that an agent's process has ended."""
        assert agent.process is not None
        self.host.alive.pop(agent.process.pid, None)
        self.collect(self.desk.exited(agent.process))

    def kill(self) -> None:
        """Kill the daemon, and start another one."""
        self.desk.kill()
        self.start()

    def wake(self, until: float) -> bool:
        """Let time pass until the daemon's next wake; False: none is before `until`."""
        wakes = [message.time for message in self.desk.ticker.messages if type(message) is WakeAt]
        due = wakes[-1] if wakes else None
        if due is None or max(due, self.clock.now) + 0.001 > until:
            return False
        self.clock.now = max(due, self.clock.now) + 0.001
        self.desk.ticker.messages.clear()
        self.collect(self.desk.sweep())
        return True


def run_machine(machine: type[DeskMachine], examples: int, steps: int) -> None:
    """Run a machine as one test."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
