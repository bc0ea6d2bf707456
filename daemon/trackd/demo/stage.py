"""The stage: one daemon, its agents, the simulated network, and how to wait for what must be true.

Everything but the daemon's and the agents' own work happens in one asyncio loop on the main
thread. The daemon is asked through `trackd_client`, in a thread of its own because that waits.
"""

import sys
from asyncio import gather, get_running_loop, sleep
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TypeVar

from trackd.demo.children import Child
from trackd.demo.network import Network
from trackd_client import TrackdError, Tracker

CLUSTER = "demo.example.com"
DAEMON_COMMAND = [sys.executable, "-m", "trackd", "run"]
AGENT_COMMAND = [sys.executable, "-m", "trackd.demo.agent"]

LOOK_INTERVAL = 0.05  # seconds between two looks at whether something is true
ANSWER_TIMEOUT = 2.0  # seconds; short, so that stopping never waits long for an absent daemon
GRACE = 3.0  # seconds that a child has to stop by itself

T = TypeVar("T")


class SceneFailedError(Exception):
    """An expected state did not come; the message says what was seen instead."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What the daemon says of itself."""

    tracked: int
    desired: int
    claimed: int
    in_flight: int
    sessions: int

    def __str__(self) -> str:
        return (
            f"tracked {self.tracked}, desired {self.desired}, "
            f"claimed {self.claimed}, in flight {self.in_flight}, sessions {self.sessions}"
        )


class Stage:
    """Starts, watches and stops everything that takes part.

    Attributes:
        network: The simulated network.
        agents: The agents that should be running.
        counts: What the daemon said last; None before the first time and while it is away.
        epoch: The daemon's epoch when it said that.
        deadline: When the present scene must be over, by `time.monotonic`.
    """

    def __init__(self, directory: Path, network: Network) -> None:
        self.network = network
        self.agents: list[Child] = []
        self.counts: Counts | None = None
        self.epoch = 0
        self.deadline = monotonic()
        self._directory = directory
        self._daemon: Child | None = None
        self._started: list[Child] = []
        self._tracker: Tracker | None = None
        self._trouble = ""
        self._agents_started = 0
        # One thread: a Tracker that one thread uses at a time has one connection.
        self._asker = ThreadPoolExecutor(max_workers=1)

    @property
    def _endpoint(self) -> str:
        return f"ipc://{self._directory / 'trackd.sock'}"

    # The daemon

    async def start_daemon(self) -> None:
        """Starts the daemon, and returns when it answers."""
        command = [
            *DAEMON_COMMAND,
            *("--cluster-name", CLUSTER),
            *("--endpoint", self._endpoint),
            *("--state-dir", str(self._directory / "state")),
        ]
        self._daemon = self._start("daemon", command)
        await self.until("the daemon answers", lambda _counts: True)

    def kill_daemon(self) -> None:
        """Kills it with SIGKILL; it leaves its socket and its state behind."""
        assert self._daemon is not None
        self._daemon.kill()
        self._daemon = None
        self.counts = None

    async def set_connection_count(self, count: int) -> None:
        """Sets how many connections there should be; 0 means one to each proxy."""
        await self._ask(lambda tracker: tracker.set_connection_count(count))

    async def look(self) -> None:
        """Asks the daemon for its counts."""
        try:
            status = await self._ask(lambda tracker: tracker.status())
        except TrackdError as error:
            self.counts, self._trouble = None, str(error)
        else:
            self.epoch = status.epoch
            self.counts = Counts(
                tracked=status["tracked"],
                desired=status["desired"],
                claimed=status["claimed"],
                in_flight=status["inflight"],
                sessions=status["sessions"],
            )

    async def _ask(self, question: Callable[[Tracker], T]) -> T:
        def ask() -> T:
            if self._tracker is None:
                self._tracker = Tracker(self._endpoint, timeout=ANSWER_TIMEOUT, name="demo")
            return question(self._tracker)

        return await get_running_loop().run_in_executor(self._asker, ask)

    # The agents

    def start_agent(self, endpoint: str | None = None) -> Child:
        """Starts one more agent; no two ever have the same name.

        Args:
            endpoint: The daemon that it asks; the stage's own without one.
        """
        self._agents_started += 1
        name = f"agent-{self._agents_started}"
        command = [
            *AGENT_COMMAND,
            *("--endpoint", endpoint or self._endpoint),
            *("--balancer", self.network.address),
            *("--name", name),
        ]
        agent = self._start(name, command)
        self.agents.append(agent)
        return agent

    async def stop_agent(self, agent: Child) -> None:
        """Asks an agent to stop, and checks that it does so in order."""
        self.agents.remove(agent)
        agent.ask_to_stop()
        code = await agent.stopped(GRACE)
        if code != 0:
            raise SceneFailedError(
                f"{agent.name} was asked to stop and ended with {code}\n{agent.last_words()}"
            )

    async def kill_agent(self, agent: Child) -> None:
        """Kills an agent with SIGKILL."""
        self.agents.remove(agent)
        agent.kill()

    # Waiting

    async def until(self, what: str, is_true: Callable[[Counts], bool]) -> None:
        """Waits until something is true.

        Args:
            what: What that is, for the message.
            is_true: Returns whether it is, from the daemon's counts of this moment and from
                the network as it is then.

        Raises:
            SceneFailedError: when the scene's deadline passes first, or a process ends that should
                not.
        """
        while True:
            await self.look()
            if self.counts is not None and is_true(self.counts):
                return
            self._check_that_all_live()
            if monotonic() > self.deadline:
                raise SceneFailedError(f"waited in vain until {what}; {self.describe()}")
            await sleep(LOOK_INTERVAL)

    async def pause(self, seconds: float) -> None:
        """Lets some time pass; `counts` stay fresh."""
        end = monotonic() + seconds
        await self.until("some time has passed", lambda _counts: monotonic() >= end)

    def describe(self) -> str:
        """What the network and the daemon look like now, for a message."""
        network = self.network
        bare = [one.name for one in network.live if network.ledger.holder(one.name) is None]
        return (
            f"{network.ledger.kept} tunnels to {len(network.live)} proxies; "
            f"without a tunnel: {', '.join(bare) or 'none'}; "
            f"the daemon says: {self.counts or self._trouble}"
        )

    def _check_that_all_live(self) -> None:
        for child in self._expected():
            if child.exit_code is not None:
                raise SceneFailedError(
                    f"{child.name} ended by itself with {child.exit_code}\n{child.last_words()}"
                )

    def _expected(self) -> list[Child]:
        """The processes that should be running."""
        return [*self.agents, *([self._daemon] if self._daemon else [])]

    # The end

    def _start(self, name: str, command: list[str]) -> Child:
        child = Child(name, command, self._directory / f"{name}.log")
        self._started.append(child)
        return child

    async def close(self) -> None:
        """Stops everything that runs, whatever state it is in, and never waits long."""
        agents = [child for child in self._started if child.name != "daemon"]
        await self._stop(agents)
        if self._tracker is not None:
            with suppress(TrackdError):
                await get_running_loop().run_in_executor(self._asker, self._tracker.close)
        self._asker.shutdown()
        await self._stop([child for child in self._started if child.name == "daemon"])
        await self.network.close()

    @staticmethod
    async def _stop(children: list[Child]) -> None:
        running = [child for child in children if child.exit_code is None]
        for child in running:
            child.ask_to_stop()
        await gather(*(child.stopped(GRACE) for child in running))
