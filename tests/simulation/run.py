"""Runs a plan: agents at work, faults, then quiet, in which everything must come right again."""

from __future__ import annotations

import asyncio
import logging
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.coverage.agents import Agent, PoolAgent
from benchmarks.coverage.network import Network
from helpers import virtual_time
from simulation.audit import AuditError, fail
from simulation.callers import Caller
from simulation.disk import FLIP, STEP
from simulation.host import USUAL_DELAY, Keep, SimulatedHost, SimulatedTracker, simulated
from simulation.plan import LONGEST, Fault, Plan
from trackd_client.errors import TrackdError

#: Seconds of quiet within which every proxy has a tunnel again, and until all is checked.
QUIET_SECONDS: Final = 300.0
CALM_SECONDS: Final = 30.0
#: Seconds of the quiet in which proxies are down and callers call; seconds that a caller may take
#: then to give up what it has cancelled.
_CALLING_SECONDS: Final = 15.0
_SETTLE_SECONDS: Final = 32.0
#: Seconds between two checks of what a restart would find.
_LOOK_SECONDS: Final = 3.0
#: Seconds until an agent that died is started again, at most.
_AWAY_SECONDS: Final = 8.0
#: Runs that a search for a short counterexample may take.
_SHRINK_RUNS: Final = 60


@dataclass(slots=True)
class Outcome:
    """What came of a run.

    Attributes:
        plan: what was run.
        problem: the promise that was broken, or None.
        reached: how often each rare state was reached, by its name.
        seconds: of virtual time.
        revision: of the daemon at the end.
    """

    plan: Plan
    problem: str | None = None
    reached: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    revision: int = 0


class Simulation:
    """A host, its agents and the proxies that they dial."""

    def __init__(
        self, plan: Plan, directory: Path, reached: Counter[str], keep: Keep | None = None
    ) -> None:
        self.plan = plan
        self.chance = random.Random(plan.seed)
        self.network = Network(self._dice(), plan.proxies, plan.balancer)
        self.network.has_addresses = plan.addresses
        self.host = SimulatedHost(directory, self._dice(), reached, keep, **plan.settings)
        self.host.batch = plan.batch
        self.agents: list[Agent] = []
        self._loop = asyncio.get_running_loop()
        self._broken = self._loop.create_future()
        self._is_quiet = False
        self._closing: list[asyncio.Task[None]] = []

    def _dice(self) -> random.Random:
        return random.Random(self.chance.random())

    # -- agents --------------------------------------------------------------------------------

    def _start_pool(self) -> None:
        # The last one to start always has a process that the daemon sees.
        tracker = SimulatedTracker(
            self.host, "pool", visible=self._is_quiet or self.chance.random() < 0.8
        )
        agent = PoolAgent(self.network, self._dice(), tracker)
        self.agents.append(agent)
        agent.spawn(agent.start(self.chance.random()))

    def _start_caller(self) -> None:
        visible = self.chance.random() < 0.8
        tracker = SimulatedTracker(self.host, "caller", visible=visible)
        caller = Caller(self.network, self._dice(), tracker)
        self.agents.append(caller)
        caller.spawn(caller.run())

    def _kill_agent(self, number: int, away: float) -> None:
        if not self.agents:
            return
        agent = self.agents.pop(number % len(self.agents))
        if isinstance(agent, Caller) and number % 2:
            self._closing.append(self._loop.create_task(agent.end(graceful=True)))
        else:
            agent.die()
        start = self._start_pool if isinstance(agent, PoolAgent) else self._start_caller
        self._later(away, start)

    # -- faults --------------------------------------------------------------------------------

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        """Do something later, but not in the quiet: then everything is brought in order."""
        self._loop.call_later(seconds, lambda: None if self._is_quiet else act())

    def _strike(self, fault: Fault) -> None:
        host, disk, seconds = self.host, self.host.disk, fault.size * LONGEST
        site = self.network.sites[fault.number % len(self.network.sites)]
        match fault.kind:
            case "kill":
                host.kill(fault.size)
            case "statement":
                disk.arm(fault.number, fault.fate)
            case "commit":
                host.commit_fate = fault.fate
            case "step":
                disk.next_fates[STEP] = fault.fate
            case "flip":
                disk.next_fates[FLIP] = fault.fate
            case "kill before commit":
                host.kill_before_commit = True
            case "kill before reply":
                host.kill_before_reply = fault.number % 3
            case "full disk":
                disk.full = True
                self._later(seconds / 4, lambda: self._kill_agent(fault.number, seconds))
                self._later(seconds, disk.heal)
            case "stall":
                host.stalled = True
                self._later(seconds / 2, host.resume)
            case "bad wire":
                self._worsen_wire(fault.size)
                self._later(seconds, lambda: self._worsen_wire(0.0))
            case "agent dies":
                self._kill_agent(fault.number, fault.size * _AWAY_SECONDS)
            case "proxy stops":
                self._stop_proxy(fault.number, seconds)
            case "proxy retires":
                self.network.announce(site)
                self._later(seconds / 2, lambda: self._stop_proxy(fault.number, seconds))
            case _:
                raise AssertionError(fault.kind)

    def _worsen_wire(self, size: float) -> None:
        wire = self.host.wire
        wire.loss, wire.copies, wire.delay = 0.3 * size, 0.5 * size, USUAL_DELAY + size

    def _stop_proxy(self, number: int, seconds: float) -> None:
        site = self.network.sites[number % len(self.network.sites)]
        self.network.stop(site)
        self._later(seconds, lambda: self.network.start(site))

    # -- the run -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run the plan.

        Raises:
            AuditError: a promise was broken.
        """
        self._loop.set_exception_handler(self._note_error)
        work = self._loop.create_task(self._go())
        await asyncio.wait({work, self._broken}, return_when=asyncio.FIRST_COMPLETED)
        try:
            if self._broken.done():
                self._broken.result()
            await work
        finally:
            work.cancel()
            if self.host.desk is not None:
                self.host.disk.gone = True
                self.host.desk.kill()
            if self.host.kept is not None:
                self.host.kept.close()

    def _note_error(self, _loop: object, context: dict[str, Any]) -> None:
        error = context.get("exception") or AuditError(context["message"])
        if not self._broken.done():
            self._broken.set_exception(error)

    async def _go(self) -> None:
        self.host.start()
        for _ in range(self.plan.pools):
            self._start_pool()
        for _ in range(self.plan.callers):
            self._start_caller()
        for fault in self.plan.faults:
            self._later(fault.at, lambda fault=fault: self._strike(fault))  # type: ignore[misc]
        end = self._loop.time() + self.plan.seconds
        while self._loop.time() < end:
            await asyncio.sleep(_LOOK_SECONDS)
            self._look()
        await self._calm_down()
        await self._check_quiet()

    def _look(self) -> None:
        desk = self.host.desk
        if desk is not None and not self.host.stalled:
            self.host.audit.check_restart(desk)

    async def _calm_down(self) -> None:
        """End all faults: the disk works, messages arrive, agents run; later, proxies are up.

        The last fault is the same in every run: an agent dies on a full disk.
        """
        host = self.host
        host.disk.full = True
        await asyncio.sleep(_LOOK_SECONDS)
        self._kill_agent(0, 0.0)
        await asyncio.sleep(_LOOK_SECONDS)
        self._is_quiet = True
        host.disk.heal()
        host.kill_before_reply, host.kill_before_commit, host.commit_fate = None, False, None
        self._worsen_wire(0.0)
        host.resume()
        await asyncio.sleep(_CALLING_SECONDS)
        for site in self.network.sites:
            self.network.start(site)
        callers = [agent for agent in self.agents if isinstance(agent, Caller)]
        for caller in callers:
            caller.stop()
        await asyncio.sleep(_SETTLE_SECONDS)
        for caller in callers:
            self._check_caller(caller)
        for number, caller in enumerate(callers):
            self.agents.remove(caller)
            await caller.end(graceful=number % 2 == 0)
        while len(self.agents) < self.plan.pools:
            self._start_pool()
        tracker = next(agent.tracker for agent in self.agents if isinstance(agent, PoolAgent))
        end = self._loop.time() + QUIET_SECONDS
        while self._loop.time() < end:  # callers have set it to something
            with suppress(TrackdError):
                await tracker.set_connection_count(0)
                return
            await asyncio.sleep(1.0)
        fail(f"for {QUIET_SECONDS:g} s of quiet no call has succeeded")

    def _check_caller(self, caller: Caller) -> None:
        """Check that the daemon holds no lease for an agent which that agent does not know."""
        desk, conversation = self.host.desk, caller.tracker._conversation
        if desk is None or conversation.session is None:
            return
        session = desk.state.sessions.by_token.get(conversation.session.token)
        if session is not None and not session.leases <= set(caller.tracker._leases):
            fail(f"leases {session.leases} are held, {set(caller.tracker._leases)} are known")

    async def _check_quiet(self) -> None:
        full = await self.network.full(QUIET_SECONDS)
        if full is None:
            missing = [site.name for site in self.network.sites if not site.tunnels]
            fail(f"after {QUIET_SECONDS:g} s of quiet no tunnel leads to {', '.join(missing)}")
        await asyncio.sleep(CALM_SECONDS)
        desk = self.host.desk
        if desk is None or desk.actor._runtime.store_problem is not None:
            fail("in the quiet the daemon does not run, or cannot store anything")
        self.host.audit.check_idle(desk)
        pools = [agent for agent in self.agents if isinstance(agent, PoolAgent)]
        leases = [each for pool in pools for dial in pool._pool._dials for each in dial.leases]
        held = {lease.id for lease in leases if not lease.lost.is_set()}  # else it was adopted
        known = set(desk.state.leases)
        if held != known or desk.state.in_flight:
            fail(f"the daemon has the leases {known}, and the agents {held}")
        if len(desk.state.sessions) != len(pools):
            fail(f"{len(pools)} agents live, and there are {len(desk.state.sessions)} sessions")
        if any(len(site.tunnels) != 1 for site in self.network.sites):
            fail("in the quiet a proxy has two tunnels, or none")
        self._look()


@contextmanager
def _no_logs() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def run(plan: Plan, keep: Keep | None = None) -> Outcome:
    """Run a plan in virtual time, with SQLite or what else daemons keep their state in."""
    outcome = Outcome(plan)

    async def main() -> None:
        simulation = Simulation(plan, Path(directory), outcome.reached, keep)
        with simulated(simulation.host, random.Random(plan.seed)):
            try:
                await simulation.run()
            finally:
                outcome.seconds = asyncio.get_running_loop().time() - virtual_time.START
                outcome.revision = simulation.host.audit.revision

    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with _no_logs(), tempfile.TemporaryDirectory(prefix="trackd-", dir=place) as directory:
        try:
            virtual_time.run(main)
        except Exception as error:  # noqa: BLE001 - whatever is raised is a finding
            outcome.problem = f"{type(error).__name__}: {error}"
    return outcome


def shrink(plan: Plan) -> list[int]:
    """Return the places of few faults that suffice to break a promise, of a plan that does so."""
    kept = list(range(len(plan.faults)))
    runs, part = 0, max(1, len(kept) // 2)
    while kept and runs < _SHRINK_RUNS:
        for first in range(0, len(kept), part):
            tried = kept[:first] + kept[first + part :]
            runs += 1
            if run(plan.only(tried)).problem is not None:
                kept = tried
                break
            if runs >= _SHRINK_RUNS:
                break
        else:
            if part == 1:
                break
            part //= 2
    return kept


def explain(outcome: Outcome) -> str:
    """Return what was broken, the command that repeats it, and a short counterexample."""
    plan = outcome.plan
    if not plan.is_drawn:
        return f"{outcome.problem}\n  {plan.faults[0]}"
    kept = shrink(plan)
    shorter = run(plan.only(kept))
    faults = "".join(f"\n  {plan.faults[number]}" for number in kept)
    command = f"PYTHONPATH=tests .venv/bin/python -m simulation --first {plan.seed}"
    command += f" --seconds {plan.seconds:g}"
    return (
        f"seed {plan.seed}: {outcome.problem}\n{command}\n"
        f"with {len(kept)} of its {len(plan.faults)} faults: {shorter.problem}\n"
        f"{command} --faults {','.join(map(str, kept))}{faults}"
    )
