"""How the cost of each operation grows with what the daemon holds.

For each axis one daemon for each size, all of them alive at the same time; rounds go through the
sizes in turn, and every figure is a ratio to the smallest size in the same round. What is compared
is the processor time that the daemon used for one turn, all of its threads together: how long an
answer takes depends on the core on which the kernel happened to put each of many daemons.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import zmq

from benchmarks.clients import Dealer
from benchmarks.mixes import HELD, Mix
from benchmarks.single import Progress, running, settle, track
from benchmarks.targets import TARGETS, Figure

Step = Callable[[Dealer, int], None]
#: Requests of one session that wait at most (`max_outstanding` is 1,024).
_WAITING_EACH = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """Something that there may be more of.

    Attributes:
        name: what it is.
        sizes: how many; the smallest comes first.
        fill: has a daemon hold so many.
        steps: the operations to time, by name.
        settings: of the daemons.
    """

    name: str
    sizes: Sequence[int]
    fill: Step
    steps: Mapping[str, Step]
    settings: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """The cost of one operation along one axis, each as a ratio to the smallest size."""

    axis: str
    operation: str
    sizes: Sequence[int]
    ratios: Sequence[float]
    first_us: float

    def as_json(self) -> dict[str, object]:
        """Return all of it as plain values."""
        return {
            "axis": self.axis,
            "operation": self.operation,
            "sizes": list(self.sizes),
            "ratios": list(self.ratios),
            "first_us": self.first_us,
        }

    @property
    def figure(self) -> Figure:
        """The worst point, against the target."""
        return Figure(
            name=f"{self.operation} at {self.sizes[-1]:,} {self.axis} / at {self.sizes[0]:,}",
            value=self.ratios[-1],
            target=TARGETS["growth"] if self.axis in JUDGED else None,
            about=f"{self.first_us:.0f} us at {self.sizes[0]:,}",
        )


# -- operations -------------------------------------------------------------------------


def _cycle(client: Dealer, number: int) -> None:
    lease = client.request("try_acquire")["lease"]
    assert lease is not None
    assert client.request("claim", lease=lease, principals=[f"free-{number % 7}"])["claimed"]
    client.request("release", lease=lease)


def _adopt(client: Dealer, number: int) -> None:
    lease = client.request("adopt", principals=[f"free-{number % 7}"])["lease"]
    client.request("release", lease=lease)


def _is_claimed(client: Dealer, _number: int) -> None:
    client.request("is_claimed", principals=[HELD])


def _refused(client: Dealer, _number: int) -> None:
    assert client.request("try_acquire")["lease"] is None


def _refresh(client: Dealer, _number: int) -> None:
    client.request("track_expected", proxies=[[HELD, "", 0, 1e6]])


def _vanish(client: Dealer, _number: int) -> None:
    """Let one proxy be the largest generation of the group, and then leave it again."""
    client.request("track_expected", proxies=[["roller", "", 2**64 - 1, 1e6]])
    client.request("track_expected", proxies=[["roller", "", 0, 1e6]])


# -- what there may be more of ----------------------------------------------------------


def _tracked(client: Dealer, count: int) -> None:
    track(client, count)


def _full(client: Dealer, count: int) -> None:
    """Track so many, and want no connection beyond the one that is held."""
    track(client, count)
    client.request("adopt", principals=[HELD])
    client.request("set_connection_count", count=1)


def _sessions(client: Dealer, count: int) -> None:
    track(client, 10)
    for _ in range(count):
        client.fresh_session()


def _leases(client: Dealer, count: int) -> None:
    track(client, 10)
    for number in range(count):
        client.request("adopt", principals=[f"held-{number}"])


def _waiting(client: Dealer, count: int) -> None:
    _full(client, 10)
    for number in range(count):
        if not number % _WAITING_EACH:
            client.fresh_session()
        client.wait_in_line()
    client.fresh_session()


def _groups(client: Dealer, count: int) -> None:
    for first in range(0, count, 10_000):
        last = min(count, first + 10_000)
        rows = [[f"proxy-{n:05}", f"g{n}", 0, 1e6] for n in range(first, last)]
        client.request("track_expected", proxies=rows)


def _generations(client: Dealer, count: int) -> None:
    for first in range(0, count, 10_000):
        last = min(count, first + 10_000)
        rows = [[f"proxy-{n:05}", "", n, 1e6] for n in range(first, last)]
        client.request("track_expected", proxies=rows)


_GRANTED: dict[str, Step] = {"acquire-claim-release": _cycle, "is_claimed": _is_claimed}
_GOSSIP: dict[str, Step] = {
    "refresh of one proxy": _refresh,
    "largest generation vanishes": _vanish,
}
_FULL = "tracked, none wanted"
AXES = (
    Axis(
        name="tracked",
        sizes=(10, 100, 1000, 10_000, 100_000, 1_000_000),
        fill=_tracked,
        steps=_GRANTED | _GOSSIP,
        settings={"max_tracked": 2_000_000},
    ),
    Axis(
        name=_FULL,
        sizes=(10, 1000, 100_000, 1_000_000),
        fill=_full,
        steps={"refused try_acquire": _refused},
        settings={"max_tracked": 2_000_000},
    ),
    Axis(
        name="sessions",
        sizes=(1, 10, 100, 1000, 5000),
        fill=_sessions,
        steps=_GRANTED,
        settings={},
    ),
    Axis(
        name="leases held",
        sizes=(0, 100, 1000, 10_000, 100_000),
        fill=_leases,
        steps=_GRANTED,
        settings={},
    ),
    Axis(
        name="waiting",
        sizes=(0, 10, 100, 1000, 10_000),
        fill=_waiting,
        steps={"adopt-release": _adopt, "refused try_acquire": _refused, "is_claimed": _is_claimed},
        settings={"max_waiters": 20_000},
    ),
    Axis(
        name="groups",
        sizes=(1, 10, 100, 1000, 10_000, 100_000),
        fill=_groups,
        steps=_GRANTED | _GOSSIP,
        settings={},
    ),
    Axis(
        name="generations",
        sizes=(1, 10, 100, 1000, 10_000, 100_000),
        fill=_generations,
        steps=_GRANTED | _GOSSIP,
        settings={},
    ),
)
#: Along these the targets bound the growth; the other curves are for people.
JUDGED = frozenset({"tracked", _FULL})


def measure(axis: Axis, *, rounds: int, turns: int, most: int, progress: Progress) -> list[Curve]:
    """Measure all operations of one axis, at the sizes up to `most`."""
    sizes = [size for size in axis.sizes if size <= most]
    seen: dict[str, list[list[float]]] = {name: [[] for _ in sizes] for name in axis.steps}
    with ExitStack() as stack:
        clients = []
        for size in sizes:
            progress(f"growth: {size:,} {axis.name}")
            client = stack.enter_context(_daemon_with(axis, size))
            clients.append(client)
        for number in range(rounds):
            progress(f"growth, {axis.name}: round {number + 1} of {rounds}")
            for name, step in axis.steps.items():
                for place in range(len(sizes)):
                    i = (place + number) % len(sizes)
                    seen[name][i].append(_time(step, *clients[i], turns))
    curves = []
    for name, times in seen.items():
        ratios = [
            statistics.median(mine / first for mine, first in zip(each, times[0], strict=True))
            for each in times
        ]
        first = statistics.median(times[0]) * 1e6
        curves.append(
            Curve(axis=axis.name, operation=name, sizes=sizes, ratios=ratios, first_us=first)
        )
    return curves


@contextmanager
def _daemon_with(axis: Axis, size: int) -> Iterator[tuple[Dealer, int]]:
    with zmq.Context() as context, running(**axis.settings) as daemon:
        client = Dealer(context, daemon.endpoint, Mix.IS_CLAIMED)
        fastest = settle(client)
        axis.fill(client, size)
        settle(client, fastest)
        yield client, daemon.pid
        client.drop()


def _time(step: Step, client: Dealer, pid: int, turns: int) -> float:
    """Return the processor time of the daemon for one turn, in seconds."""
    before = _processor_time(pid)
    for number in range(turns):
        step(client, number)
    return (_processor_time(pid) - before) / turns


def _processor_time(pid: int) -> float:
    """Return the seconds that the threads of a process have run so far, to the microsecond."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
