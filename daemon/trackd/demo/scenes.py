"""What is played, and what must be true at the end of each scene.

A scene changes something, waits until the agents have dealt with it, and raises SceneFailedError
when they have not by its deadline. The network knows what really happened, the daemon what it
believes; both are checked.
"""

import asyncio
import random
import secrets
import signal
import tempfile
from asyncio import sleep
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from trackd.demo.children import Child
from trackd.demo.network import Ledger, Network
from trackd.demo.stage import CLUSTER, Counts, SceneFailedError, Stage
from trackd.demo.view import Played, View, closing_table, open_view
from trackd_client import TrackdError

GROUPS = ("east", "west")
ROLLED_OUT = "east"
SCENE_TIMEOUT = 13.0  # seconds
SCENE_TIMEOUT_EACH = 0.1  # seconds more for each agent and each proxy
DRAIN_TIME = 1.0  # seconds that the old generation stays after the new one has its tunnels
WATCH_TIME = 1.0  # seconds to see that nothing more is dialled
DOWN_TIME = 0.5  # seconds between a kill of the daemon and its restart
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Play:
    """What a scene has to hand.

    Attributes:
        stage: The daemon, the agents, the network.
        show: Shows one event to a person.
        agents: How many agents there should be.
        proxies: How many proxies there should be.
    """

    stage: Stage
    show: Callable[[str], None]
    agents: int
    proxies: int

    @property
    def network(self) -> Network:
        """The simulated network."""
        return self.stage.network

    def is_full_mesh(self, counts: Counts) -> bool:
        """Every live proxy has its tunnel, and the daemon agrees that nothing is left to do."""
        return (
            all(self.network.ledger.holder(proxy.name) for proxy in self.network.live)
            and counts.desired == len(self.network.live)
            and counts.claimed == self.network.ledger.kept
            and counts.in_flight == 0
        )

    async def full_mesh(self) -> None:
        """Waits for the full mesh."""
        await self.stage.until("every proxy has its tunnel", self.is_full_mesh)


async def cold_start(play: Play) -> float:
    """Agents that know nothing find every proxy."""
    await play.stage.start_daemon()
    play.show("the daemon answers")
    for number, group in enumerate(GROUPS):
        share = len(range(number, play.proxies, len(GROUPS)))
        play.network.deploy(group, generation=1, count=share)
    start = monotonic()
    for _ in range(play.agents):
        play.stage.start_agent()
    play.show(f"{play.agents} agents start, and know of no proxy; there are {play.proxies}")
    await play.stage.until(
        "every agent has a session and every proxy its tunnel",
        lambda counts: counts.sessions == play.agents and play.is_full_mesh(counts),
    )
    return monotonic() - start


async def roll_out(play: Play) -> float:
    """A new generation of one group appears, and the old one drains."""
    network = play.network
    old = [proxy for proxy in network.live if proxy.group == ROLLED_OUT]
    start = monotonic()
    new = network.deploy(ROLLED_OUT, old[0].generation + 1, len(old))
    network.drain(old)
    play.show(f"{ROLLED_OUT}: generation {new[0].generation} appears, the old one drains")
    await play.full_mesh()
    seconds = monotonic() - start
    early = [proxy.name for proxy in old if network.ledger.holder(proxy.name) is None]
    if early:
        raise SceneFailedError(f"tunnels were closed before their proxies ended: {early}")
    play.show("every new proxy has its tunnel, and the old tunnels are still there")
    await play.stage.pause(DRAIN_TIME)
    network.remove(old)
    play.show("the old proxies end; their claims go, and then gossip of them expires")
    await play.stage.until(
        "nothing old is claimed or tracked",
        lambda counts: (
            play.is_full_mesh(counts)
            and counts.tracked == counts.desired == counts.claimed == len(network.live)
        ),
    )
    return seconds


async def peering(play: Play) -> float:
    """With a smaller connection count, lost tunnels come back up to the count and no further."""
    network, ledger = play.network, play.network.ledger
    count = max(1, play.proxies // 2)
    await play.stage.set_connection_count(count)
    restarted = network.rng.sample(network.live, play.proxies - count // 2)
    start = monotonic()
    network.restart(restarted)
    ledger.forget_most_kept()
    play.show(f"connection count {count}; {len(restarted)} proxies restart and drop their tunnels")
    await play.stage.until(
        f"there are {count} tunnels",
        lambda counts: ledger.kept == count and (counts.claimed, counts.in_flight) == (count, 0),
    )
    seconds = monotonic() - start
    await play.stage.pause(WATCH_TIME)
    if ledger.most_kept != count:
        raise SceneFailedError(f"{ledger.most_kept} tunnels were open at once, not {count}")
    await play.stage.set_connection_count(0)
    play.show(f"{count} came back and no more; connection count 0: back to the full mesh")
    await play.full_mesh()
    return seconds


async def agent_leaves(play: Play) -> float:
    """An agent exits in order; others take over its proxies, and a new one joins."""
    return await replace_busiest(play, play.stage.stop_agent)


async def agent_killed(play: Play) -> float:
    """An agent is killed; the daemon learns it from the kernel, and all goes on as before."""
    return await replace_busiest(play, play.stage.kill_agent)


async def replace_busiest(play: Play, end: Callable[[Child], Awaitable[None]]) -> float:
    """Ends the agent with the most tunnels and starts a new one."""
    stage, ledger = play.stage, play.network.ledger
    busiest = max(stage.agents, key=lambda agent: len(ledger.held_by(agent.name)))
    held = ledger.held_by(busiest.name)
    await stage.look()
    sessions = stage.counts and stage.counts.sessions
    start = monotonic()
    await end(busiest)
    new = stage.start_agent()
    play.show(f"{busiest.name} is gone and leaves {len(held)} proxies; {new.name} starts")
    await stage.until(
        f"others hold what {busiest.name} held, and {new.name} has its place",
        lambda counts: (
            not ledger.held_by(busiest.name)
            and play.is_full_mesh(counts)
            and counts.sessions == sessions
        ),
    )
    return monotonic() - start


async def daemon_killed(play: Play) -> float:
    """The daemon is killed and restarted; its agents hardly notice."""
    network = play.network
    # Some proxies restart just before, so that agents are at work when the daemon goes.
    restarted = set(network.rng.sample(network.live, max(1, play.proxies // 4)))
    network.restart(restarted)
    untouched = network.tunnels
    start = monotonic()
    play.stage.kill_daemon()
    play.show(f"the daemon is killed while {len(untouched)} tunnels are open")
    await sleep(DOWN_TIME)
    await play.stage.start_daemon()
    play.show("the daemon is back")
    await play.full_mesh()
    seconds = monotonic() - start
    if lost := untouched - network.tunnels:
        names = sorted(tunnel.proxy.name for tunnel in lost)
        raise SceneFailedError(f"tunnels were closed though their proxies lived: {names}")
    return seconds


async def all_leave(play: Play) -> float:
    """All agents exit in order, and nothing may stay behind."""
    start = monotonic()
    await asyncio.gather(*(play.stage.stop_agent(agent) for agent in [*play.stage.agents]))
    await play.stage.until(
        "nothing is claimed and nothing in flight",
        lambda counts: (
            play.network.ledger.kept == 0
            and (counts.claimed, counts.in_flight) == (0, 0)
            and counts.sessions <= 1  # our own
        ),
    )
    return monotonic() - start


@dataclass(frozen=True, slots=True)
class Scene:
    """One scene; `act` returns the seconds that it took to converge."""

    title: str
    act: Callable[[Play], Awaitable[float]]


SCENES = [
    Scene("cold start to full mesh", cold_start),
    Scene("roll-out of a new generation", roll_out),
    Scene("proxy peering with a smaller count", peering),
    Scene("an agent exits and is replaced", agent_leaves),
    Scene("an agent is killed and replaced", agent_killed),
    Scene("the daemon is killed and restarted", daemon_killed),
    Scene("all agents leave", all_leave),
]


async def play_all(
    play: Play, view: View, scenes: Sequence[Scene], patience: float, played: list[Played]
) -> None:
    """Plays scene after scene; stops at the first that fails, for the rest build on it."""
    ledger = play.network.ledger
    await play.network.open()
    for scene in scenes:
        view.begin(scene.title)
        dials, duplicates = ledger.dials.total(), ledger.duplicates.total()
        play.stage.deadline = monotonic() + patience
        seconds, failure = None, ""
        try:
            seconds = await scene.act(play)
        except (SceneFailedError, TrackdError) as error:
            failure = str(error)
        result = Played(
            title=scene.title,
            converged_in=seconds,
            dials=ledger.dials.total() - dials,
            duplicates=ledger.duplicates.total() - duplicates,
            failure=failure,
        )
        played.append(result)
        view.end(result)
        if failure:
            return
        await sleep(view.breath)


async def perform(*, agents: int, proxies: int, seed: int | None, plain: bool) -> int:
    """Sets the stage and plays all scenes.

    Returns:
        What `trackd.demo.main` returns.
    """
    seed = secrets.randbelow(10_000) if seed is None else seed
    rng = random.Random(seed)  # noqa: S311 - chance that can be repeated, not a secret
    patience = SCENE_TIMEOUT + SCENE_TIMEOUT_EACH * (agents + proxies)
    with tempfile.TemporaryDirectory(prefix="trackd-demo-") as directory:
        stage = Stage(Path(directory), Network(CLUSTER, rng))
        view = open_view(stage, [scene.title for scene in SCENES], plain=plain)
        view.show(f"{agents} agents, {proxies} proxies, seed {seed}")
        play = Play(stage, view.show, agents, proxies)
        return await present(play, view, SCENES, patience)


async def present(play: Play, view: View, scenes: Sequence[Scene], patience: float) -> int:
    """Plays scenes, clears everything away, and shows the result.

    Args:
        play: What the scenes have to hand.
        view: What a person sees.
        scenes: What is played.
        patience: Seconds that each scene may take.

    Returns:
        What `trackd.demo.main` returns.
    """
    caught: list[int] = []
    played: list[Played] = []
    playing = asyncio.create_task(play_all(play, view, scenes, patience, played))
    drawing = asyncio.create_task(view.draw())

    def stop(number: int) -> None:
        caught.append(number)
        playing.cancel()

    # A signal ends only the play: clearing away is bounded, and nothing interrupts it.
    for number in STOP_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    await asyncio.wait([playing, drawing], return_when=asyncio.FIRST_COMPLETED)
    playing.cancel()
    drawing.cancel()
    ends = await asyncio.gather(playing, drawing, return_exceptions=True)
    await play.stage.close()
    for end in ends:
        if isinstance(end, Exception):  # a bug of ours, or the output has no reader
            raise end
    if caught:
        print(f"trackd demo: stopped by {signal.Signals(caught[0]).name}")  # noqa: T201
        return 128 + caught[0]
    print(closing_table(played, play.network.ledger))  # noqa: T201
    return verdict(played, play.network.ledger, len(scenes))


def verdict(played: list[Played], ledger: Ledger, scenes: int = len(SCENES)) -> int:
    """The exit code: 0 only when every scene passed and the invariant was kept all the time."""
    passed = len(played) == scenes and not any(scene.failure for scene in played)
    return 0 if passed and not ledger.broken else 1
