"""Rounds of load, peers in turn, every figure a ratio to the echo's in the same round."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Self

from benchmarks.mixes import Mix
from benchmarks.peers import Peer, environ
from benchmarks.worker import Job, Seen
from helpers.support import processor_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How many agents ask, and how.

    Attributes:
        name: for tables.
        agents: processes, each with one connection.
        slots: requests that each keeps outstanding.
        idle: agents more, connected with a session, that say nothing (spread over the processes).
    """

    name: str
    agents: int
    slots: int = 1
    idle: int = 0


ONE = Shape(name="1 agent", agents=1)
SIXTEEN = Shape(name="16 agents", agents=16)
OUTSTANDING = Shape(name="4 agents x 64", agents=4, slots=64)
CONNECTED = Shape(name="500 connected, 16 busy", agents=16, idle=484)

#: Who sends, and to which peer: the columns of the table. The library has a daemon of its own, so
#: that `wire` and `before` ask daemons that have done as much.
COLUMNS = {
    "echo": "echo",
    "wire": "trackd",
    "before": "before",
    "library": "library",
    "redis": "redis",
    "managers": "managers",
}
ECHO = "echo"
#: Requests per second that nothing reaches in closed loops, all agents together.
_MOST_PER_SECOND = 70_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row of the table: a mix in a shape."""

    shape: Shape
    mix: Mix

    @property
    def name(self) -> str:
        """For tables, and for `--only`."""
        return f"{self.shape.name}, {self.mix}"

    def can(self, column: str) -> bool:
        """Tell whether a column has an answer to this case."""
        return not (column == "managers" and self.shape.slots > 1)


CASES = (
    *(Case(shape=ONE, mix=mix) for mix in Mix),
    *(
        Case(shape=shape, mix=mix)
        for shape in (SIXTEEN, OUTSTANDING, CONNECTED)
        for mix in (Mix.IS_CLAIMED, Mix.REFUSED, Mix.CYCLE)
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one column did in one round.

    Attributes:
        rate: requests per second, of all agents.
        p50: seconds of one turn, median over the agents; 0 when turns overlap.
        p99: likewise.
        busy: processor time that the peer used, as a share of the time that passed.
        cost: processor seconds that the peer used for one request.
    """

    rate: float
    p50: float
    p99: float
    busy: float
    cost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """All rounds of one case, by column."""

    case: Case
    rounds: Mapping[str, Sequence[Round]]

    def ratio(self, column: str, figure: str) -> float | None:
        """Return the median over the rounds of a figure's ratio to the echo's, or None."""
        mine, echo = self.rounds.get(column), self.rounds.get(ECHO)
        if not mine or not echo:
            return None
        pairs = [(getattr(m, figure), getattr(e, figure)) for m, e in zip(mine, echo, strict=True)]
        return statistics.median(m / e for m, e in pairs) if all(e for _, e in pairs) else None

    def median(self, column: str, figure: str) -> float | None:
        """Return the median over the rounds of a figure, or None."""
        rounds = self.rounds.get(column)
        return statistics.median(getattr(r, figure) for r in rounds) if rounds else None

    def as_json(self) -> dict[str, object]:
        """Return all of it as plain values."""
        return {
            "case": self.case.name,
            "shape": self.case.shape.name,
            "mix": self.case.mix.value,
            "rounds": {name: [asdict(r) for r in rounds] for name, rounds in self.rounds.items()},
        }


class Workers:
    """The processes that make load."""

    def __init__(self) -> None:
        self._workers: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            assert worker.stdin is not None
            assert worker.stdout is not None
            worker.stdin.close()
            worker.stdout.close()
            worker.kill()
            worker.wait()

    def round(self, jobs: Sequence[Job], peer_pid: int) -> Round:
        """Let a worker do each job, all at the same time."""
        while len(self._workers) < len(jobs):
            self._workers.append(
                subprocess.Popen(
                    [sys.executable, "-m", "benchmarks.worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=environ(),
                )
            )
        workers = self._workers[: len(jobs)]
        for worker, job in zip(workers, jobs, strict=True):
            print(json.dumps(asdict(job)), file=worker.stdin, flush=True)
        for worker in workers:
            if self._line(worker) != "ready\n":
                raise RuntimeError("a worker failed; what it printed stands above")
        used = processor_seconds(peer_pid)
        for worker in workers:
            print(file=worker.stdin, flush=True)
        seen = [Seen(**json.loads(self._line(worker))) for worker in workers]
        used = processor_seconds(peer_pid) - used
        return Round(
            rate=sum(each.requests / each.seconds for each in seen),
            p50=statistics.median(each.p50 for each in seen),
            p99=statistics.median(each.p99 for each in seen),
            busy=used / max(each.seconds for each in seen),
            cost=used / sum(each.requests for each in seen),
        )

    @staticmethod
    def _line(worker: subprocess.Popen[str]) -> str:
        assert worker.stdout is not None
        line = worker.stdout.readline()
        if not line:
            raise RuntimeError("a worker ended; what it printed stands above")
        return line


def measure(
    cases: Iterable[Case],
    peers: Mapping[str, Peer],
    *,
    columns: Sequence[str],
    rounds: int,
    seconds: float,
    progress: Callable[[str], None],
) -> list[Measured]:
    """Measure cases one after the other, each in rounds that alternate between the columns.

    Args:
        cases: the rows.
        peers: by name; a column whose peer is missing is left out.
        columns: which of `COLUMNS` to measure.
        rounds: of each column; the median of them counts.
        seconds: that one round of one column takes.
        progress: is told what is measured next.
    """
    results = []
    with ExitStack() as stack:
        workers = stack.enter_context(Workers())
        for case in cases:
            told = [c for c in columns if COLUMNS[c] in peers and case.can(c)]
            for name in {COLUMNS[column] for column in told}:
                peers[name].arrange(case.mix)
            seen: dict[str, list[Round]] = {column: [] for column in told}
            for number in range(rounds):
                progress(f"{case.name}: round {number + 1} of {rounds}")
                # Whoever comes first differs from round to round.
                turn = number % len(told)
                for column in (*told[turn:], *told[:turn]):
                    peer = peers[COLUMNS[column]]
                    jobs = _jobs(case, column, peer.endpoint, seconds)
                    seen[column].append(workers.round(jobs, peer.pid))
            results.append(Measured(case=case, rounds=seen))
    return results


def _jobs(case: Case, column: str, endpoint: str, seconds: float) -> list[Job]:
    shape = case.shape
    most = _MOST_PER_SECOND * (8 if shape.slots > 1 else 1)
    return [
        Job(
            kind=column,
            endpoint=endpoint,
            mix=case.mix,
            agent=agent,
            slots=shape.slots,
            idle=shape.idle // shape.agents + (agent < shape.idle % shape.agents),
            seconds=seconds,
            prepare=200 + int(seconds * (500 if case.mix.gossip else most / shape.agents)),
        )
        for agent in range(shape.agents)
    ]
