"""What a person sees: a live display on a terminal, one line an event anywhere else.

A view shows, and decides nothing. `rich` is optional: without it the output is plain lines.
"""

import asyncio
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from trackd.demo.network import Ledger, Proxy
from trackd.demo.stage import Stage

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

FRAME_INTERVAL = 0.125  # seconds between two pictures of the live display
COLOURS = (39, 208, 41, 170, 220, 44, 203, 141, 112, 180)  # of the 256, readable under black
EVENTS_SHOWN = 4


@dataclass(frozen=True, slots=True)
class Played:
    """What is known of a scene that was played.

    Attributes:
        title: Its title.
        converged_in: Seconds until what was to happen had happened; None when it failed.
        dials: Dials made during it.
        duplicates: Those that met a proxy already claimed.
        failure: Why it failed, or empty.
    """

    title: str
    converged_in: float | None
    dials: int
    duplicates: int
    failure: str = ""


class View(Protocol):
    """The display of the demo."""

    @property
    def breath(self) -> float:
        """Seconds between two scenes, for eyes to follow."""

    def show(self, text: str) -> None:
        """Shows one event."""

    def begin(self, title: str) -> None:
        """Shows that a scene begins."""

    def end(self, played: Played) -> None:
        """Shows how the scene ended."""

    async def draw(self) -> None:
        """Draws forever, until it is cancelled."""


class Lines:
    """One line an event, with the seconds since the start."""

    breath = 0.0

    def __init__(self, scenes: int) -> None:
        self._scenes = scenes
        self._begun = 0
        self._start = monotonic()

    def show(self, text: str) -> None:
        """Shows one event."""
        print(f"{monotonic() - self._start:5.1f}s  {text}", flush=True)  # noqa: T201

    def begin(self, title: str) -> None:
        """Shows that a scene begins."""
        self._begun += 1
        self.show(f"scene {self._begun} of {self._scenes}: {title}")

    def end(self, played: Played) -> None:
        """Shows how the scene ended."""
        if played.failure:
            self.show(f"FAILED: {played.failure}")
        else:
            self.show(f"converged in {played.converged_in:.2f} s, {played.dials} dials")

    async def draw(self) -> None:
        """Nothing to draw."""
        await asyncio.Event().wait()


class Picture:
    """The live display: fits 80x24 with the defaults, and is cut at the bottom beyond that."""

    breath = 1.0

    def __init__(self, console: "Console", stage: Stage, titles: Sequence[str]) -> None:
        self._console = console
        self._stage = stage
        self._titles = titles
        self._played: list[Played] = []
        self._scene_start: float | None = None
        self._start = monotonic()
        self._events: deque[str] = deque(maxlen=EVENTS_SHOWN)

    def show(self, text: str) -> None:
        """Shows one event."""
        self._events.append(f"{monotonic() - self._start:5.1f}s  {text}")

    def begin(self, title: str) -> None:
        """Shows that a scene begins."""
        del title  # the list of scenes shows it
        self._scene_start = monotonic()

    def end(self, played: Played) -> None:
        """Shows how the scene ended."""
        self._played.append(played)
        self._scene_start = None

    async def draw(self) -> None:
        """Draws in the loop's own thread, so that nothing changes under the pen."""
        from rich.live import Live

        with Live(console=self._console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(self._picture(), refresh=True)
                await asyncio.sleep(FRAME_INTERVAL)

    def _picture(self) -> "RenderableType":
        from rich.console import Group
        from rich.rule import Rule

        return Group(
            *self._scenes(),
            Rule("proxies, each with the number of the agent that holds it", style="dim"),
            *self._proxies(),
            Rule("agents", style="dim"),
            self._agents(),
            Rule("counts", style="dim"),
            *self._counts(),
            Rule("events", style="dim"),
            *self._events,
        )

    def _scenes(self) -> Iterator["Text"]:
        from rich.text import Text

        for number, title in enumerate(self._titles):
            line = Text(no_wrap=True)
            if number < len(self._played):
                played = self._played[number]
                mark, style = ("✘", "bold red") if played.failure else ("✔", "green")
                seconds = played.converged_in
            elif number == len(self._played) and self._scene_start is not None:
                mark, style, seconds = "▶", "bold", monotonic() - self._scene_start
            else:
                mark, style, seconds = " ", "dim", None
            line.append(f"{mark} {number + 1} {title:<40}", style)
            if seconds is not None:
                line.append(f"{seconds:7.2f} s", style)
            yield line

    def _proxies(self) -> Iterator["Text"]:
        from rich.text import Text

        network = self._stage.network
        rows: dict[tuple[str, int, bool], list[Proxy]] = {}
        for draining, proxies in ((True, network.draining), (False, network.live)):
            for proxy in proxies:
                rows.setdefault((proxy.group, proxy.generation, draining), []).append(proxy)
        for (group, generation, draining), proxies in sorted(rows.items()):
            line = Text(f"{group} generation {generation} ")
            line.append(f"{'draining' if draining else '':<9}", "dim")
            for proxy in proxies:
                holder = network.ledger.holder(proxy.name)
                line.append(*cell(holder))
                line.append(" ")
            yield line

    def _agents(self) -> "RenderableType":
        from rich.columns import Columns
        from rich.text import Text

        ledger = self._stage.network.ledger
        texts = []
        for agent in self._stage.agents:
            text = Text(no_wrap=True)
            text.append(*cell(agent.name))
            text.append(f" pid {agent.pid:<7}")
            text.append(f"{len(ledger.held_by(agent.name)):3} tunnels")
            text.append(f"{ledger.dials[agent.name]:5} dials", "dim")
            texts.append(text)
        return Columns(texts, width=37)

    def _counts(self) -> Iterator["Text"]:
        from rich.text import Text

        ledger = self._stage.network.ledger
        daemon = Text("daemon   ")
        daemon.append(str(self._stage.counts) if self._stage.counts else "away", "bold")
        yield daemon
        network = Text("network  ")
        network.append(
            f"dials {ledger.dials.total()}, already claimed {ledger.duplicates.total()}, "
            f"tunnels {ledger.kept}, ",
            "bold",
        )
        network.append(
            *(("invariant BROKEN", "bold red") if ledger.broken else ("invariant kept", "green"))
        )
        yield network


def cell(agent: str | None) -> tuple[str, str]:
    """A block of three columns for an agent, or an empty one, and its style."""
    if agent is None:
        return " · ", "grey62 on grey23"
    number = int(agent.rpartition("-")[2])
    return f"{number:^3}", f"black on color({COLOURS[number % len(COLOURS)]})"


def open_view(stage: Stage, titles: Sequence[str], *, plain: bool) -> View:
    """The live display where that is wanted and possible, lines otherwise."""
    if not plain and sys.stdout.isatty():
        try:
            from rich.console import Console
        except ImportError:
            return Lines(len(titles))
        console = Console()
        if console.is_terminal and not console.is_dumb_terminal:
            return Picture(console, stage, titles)
    return Lines(len(titles))


def closing_table(played: Sequence[Played], ledger: Ledger) -> str:
    """What the whole demo came to, as a table."""
    rows = [("scene", "converged in", "dials", "already claimed")]
    for number, scene in enumerate(played, 1):
        seconds = "FAILED" if scene.converged_in is None else f"{scene.converged_in:.2f} s"
        rows.append((f"{number} {scene.title}", seconds, str(scene.dials), str(scene.duplicates)))
    rows.append(("all", "", str(ledger.dials.total()), str(ledger.duplicates.total())))
    width = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(width[0]), *(map(str.rjust, row[1:], width[1:]))]) for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    lines.insert(-1, "-" * len(lines[0]))
    lines += [f"FAILED: {scene.failure}" for scene in played if scene.failure]
    lines += [f"BROKEN: {sentence}" for sentence in ledger.broken]
    verdict = "broken" if ledger.broken else "kept"
    lines.append(f"invariant ({ledger.invariant}): {verdict}")
    return "\n".join(lines)
