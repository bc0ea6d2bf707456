"""The fleet clock in a simulated fleet: hosts with their own clocks, wall clocks that are set."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trackd.fleet.clock import BEGINNING, COLD_MOST, FleetClock, Stamp

ZERO_WALL = 1.7e9
#: What floats of the size of a Unix time may lose.
TOLERANCE = 1e-4


def test_a_fleet_begins_at_zero_whatever_the_clocks_say() -> None:
    clock = FleetClock(BEGINNING, boottime=5000.0, wall=ZERO_WALL)
    assert clock.now(5000.0) == 0.0
    assert clock.now(5007.5) == 7.5
    assert clock.stamp(5007.5, 123.0) == Stamp(7.5, 123.0)


@pytest.mark.parametrize(
    ("wall_goes_on", "fleet_goes_on"),
    [
        (0.0, 0.0),
        (12.5, 12.5),
        (60.0, 60.0),
        (60.5, 60.0),
        (86400.0, 60.0),
        (-0.5, 0.0),
        (-86400.0, 0.0),
        (math.nan, 0.0),
        (math.inf, 60.0),
        (-math.inf, 0.0),
    ],
)
def test_cold_the_wall_clock_counts_from_zero_to_sixty_seconds(
    wall_goes_on: float, fleet_goes_on: float
) -> None:
    clock = FleetClock(Stamp(1000.0, ZERO_WALL), 7.0, ZERO_WALL + wall_goes_on)
    assert clock.now(7.0) == 1000.0 + fleet_goes_on
    assert clock.now(8.0) == 1001.0 + fleet_goes_on


def test_hot_only_the_time_since_the_batch_arrived_counts() -> None:
    clock = FleetClock(Stamp(1000.0, ZERO_WALL), 7.0, ZERO_WALL + 55.0)
    clock.follow(Stamp(1003.0, ZERO_WALL + 1e9), 10.0)
    assert clock.now(10.0) == 1003.0
    assert clock.now(100.0) == 1093.0


def test_a_batch_that_is_found_moves_time_on_and_never_back() -> None:
    clock = FleetClock(Stamp(1000.0, ZERO_WALL), 7.0, ZERO_WALL)
    clock.follow(Stamp(1003.0, ZERO_WALL), 10.0)
    clock.catch_up(Stamp(1003.0, ZERO_WALL), 100.0)
    assert clock.now(100.0) == 1093.0
    clock.catch_up(Stamp(1200.0, ZERO_WALL), 110.0)
    assert clock.now(115.0) == 1205.0


def test_a_clock_that_goes_back_moves_nothing() -> None:
    clock = FleetClock(Stamp(1000.0, ZERO_WALL), 7.0, ZERO_WALL)
    assert clock.now(6.0) == 1000.0


# --- the simulation ------------------------------------------------------------------------------


@dataclass
class Host:
    """A candidate's host. Its clocks go at the right pace; wall clocks are set now and then."""

    boot: float  # CLOCK_BOOTTIME when true time is zero
    wall_error: float = 0.0
    clock: FleetClock | None = None
    seen: int = 0  # batches of the journal that have arrived

    def boottime(self, now: float) -> float:
        return self.boot + now

    def wall(self, now: float) -> float:
        return ZERO_WALL + now + self.wall_error


@dataclass
class Fleet:
    """What really happens, by true time."""

    hosts: list[Host]
    now: float = 0.0
    journal: list[tuple[float, Stamp]] = field(
        default_factory=list
    )  # when it was made, what it has
    leader: Host | None = None

    def last(self) -> Stamp:
        return self.journal[-1][1] if self.journal else BEGINNING

    def start(self, host: Host) -> None:
        """Let a candidate start again: it reads the journal."""
        if host is self.leader:
            self.leader = None
        host.clock = FleetClock(self.last(), host.boottime(self.now), host.wall(self.now))
        host.seen = len(self.journal)
        self.check(host)

    def check(self, host: Host) -> None:
        """Hold a clock that was started cold to its bounds."""
        assert host.clock is not None
        last = self.last()
        added = host.clock.now(host.boottime(self.now)) - last.fleet
        assert -TOLERANCE <= added <= COLD_MOST + TOLERANCE

    def deliver(self, host: Host) -> None:
        """Let the batches that a waiting candidate has not seen arrive now."""
        if host.clock is None or host is self.leader:
            return
        for _, stamp in self.journal[host.seen :]:
            host.clock.follow(stamp, host.boottime(self.now))
        host.seen = len(self.journal)

    def lead(self, host: Host) -> None:
        """Let a candidate take over: it has read all there is by then."""
        if host.clock is None:
            self.start(host)
        self.deliver(host)
        self.leader = host

    def commit(self) -> None:
        if self.leader is None:
            return
        host = self.leader
        assert host.clock is not None
        stamp = host.clock.stamp(host.boottime(self.now), host.wall(self.now))
        self.journal.append((self.now, stamp))
        host.seen = len(self.journal)


steps = st.lists(
    st.tuples(
        st.sampled_from(["pass", "pass", "commit", "commit", "deliver", "lead", "start", "set"]),
        st.integers(0, 2),
        st.floats(0.0, 100.0),
        st.floats(-1e6, 1e6),
    ),
    max_size=60,
)
boots = st.lists(st.floats(0.0, 1e7), min_size=3, max_size=3)


def play(
    boots: list[float], steps: list[tuple[str, int, float, float]], *, cold: bool
) -> tuple[Fleet, list[float]]:
    """Return what happened, and how far wall clocks were wrong at each cold start."""
    fleet = Fleet([Host(boot) for boot in boots])
    wrong: list[float] = []
    for host in fleet.hosts:
        fleet.start(host)
    fleet.lead(fleet.hosts[0])
    fleet.commit()
    for host in fleet.hosts:
        fleet.deliver(host)
    for what, number, seconds, step in steps:
        host = fleet.hosts[number]
        if what == "pass":
            fleet.now += seconds
        elif what == "commit":
            fleet.commit()
        elif what == "deliver":
            fleet.deliver(host)
        elif what == "lead":
            fleet.lead(host)
        elif what == "set":
            host.wall_error = step
        elif cold:
            # A wall clock can add at most what it has gained since the batch was made.
            made_at, stamp = fleet.journal[-1]
            gained = host.wall(fleet.now) - stamp.wall - (fleet.now - made_at)
            wrong.append(min(COLD_MOST, max(0.0, gained)))
            fleet.start(host)
    fleet.commit()
    return fleet, wrong


@given(boots, steps)
def test_fleet_time_never_goes_back(
    boots: list[float], steps: list[tuple[str, int, float, float]]
) -> None:
    fleet, _ = play(boots, steps, cold=True)
    times = [stamp.fleet for _, stamp in fleet.journal]
    assert times == sorted(times)


@given(boots, steps)
def test_hot_it_never_goes_faster_than_time_itself(
    boots: list[float], steps: list[tuple[str, int, float, float]]
) -> None:
    fleet, _ = play(boots, steps, cold=False)
    for (before, earlier), (after, later) in zip(fleet.journal, fleet.journal[1:], strict=False):
        assert later.fleet - earlier.fleet <= after - before + TOLERANCE


@given(boots, steps)
def test_cold_it_is_ahead_by_no_more_than_the_wall_clocks_were_wrong(
    boots: list[float], steps: list[tuple[str, int, float, float]]
) -> None:
    fleet, wrong = play(boots, steps, cold=True)
    (began, first), (ended, last) = fleet.journal[0], fleet.journal[-1]
    assert last.fleet - first.fleet <= ended - began + sum(wrong) + TOLERANCE


@given(st.floats(0.0, 1e7), st.floats(0.0, 1e7), st.lists(st.floats(0.0, 5.0), max_size=20))
def test_hot_it_loses_only_what_batches_took_to_arrive(
    boot: float, other_boot: float, delays: list[float]
) -> None:
    now, lost = 100.0, 0.0
    leader = FleetClock(BEGINNING, boot + now, 0.0)
    begin = now
    for delay in delays:
        now += 10.0
        stamp = leader.stamp(boot + now, 0.0)
        waiting = FleetClock(BEGINNING, other_boot, 0.0)
        waiting.follow(stamp, other_boot + now + delay)
        lost += delay
        now += delay
        # It takes over. The next one waits on the host of the one before.
        leader, boot, other_boot = waiting, other_boot, boot
    assert math.isclose(leader.now(boot + now), now - begin - lost, abs_tol=1e-6)
