"""Rule 19: which connection is advised to close, and when. Pure: the clock is a number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.writer import Clock, Desk, Host, open_session
from trackd.rules.liveness import Lives
from trackd.rules.tracker import Tracker
from trackd.state.advice import Advice, slowest
from trackd_client import Proxy

pytestmark = pytest.mark.rule(19)

THRESHOLD = 2.0
#: Seconds until a holder that keeps its lease is passed over.
PATIENCE = 30.0
#: Seconds that figures are waited for.
FIGURES = 60.0


class World:
    """A tracker whose leases hold p0, p1, ..., all with parked watches, and the advice on them."""

    def __init__(
        self,
        claimed: int,
        target: int,
        threshold: float = THRESHOLD,
        undesired: Iterable[str] = (),
    ) -> None:
        names = [f"p{i}" for i in range(claimed)]
        self.tracker = Tracker("c", clock=lambda: 0.0)
        self.tracker.set_connection_count(target)
        self.tracker.track_expected([Proxy(name) for name in names])
        self.leases: dict[int, Any] = {}
        self.lives = Lives()
        for name in (*names, *undesired):
            adopted = self.tracker.adopt([name])
            assert adopted is not None
            self.leases[adopted[0]] = SimpleNamespace(
                session=SimpleNamespace(live=SimpleNamespace(watch=object()))
            )
        self.advice = Advice(self.tracker, self.leases, self.lives, threshold)
        self.advice.changed(0.0)

    def report(self, *rtts: float | None) -> None:
        """Let the leases report, the first of the tracker first."""
        for lease, rtt in zip(self.leases, rtts, strict=False):
            if lease not in self.lives.by_lease:
                self.lives.begin(lease)
            self.lives.report(self.lives.by_lease[lease], rtt, 0.0)

    def release(self, lease: int, now: float) -> None:
        assert self.tracker.release(lease)
        del self.leases[lease]
        self.lives.end(lease)
        self.advice.changed(now)

    def choose(self, now: float) -> int:
        """Return the lease that is advised at a moment at which an advice is due."""
        assert self.advice.due() == now
        chosen = self.advice.choose(now)
        assert chosen is not None
        return chosen

    def wait_for_advice(self, now: float) -> tuple[float, int]:
        """Look whenever that is due, from a moment on; return when what was advised."""
        while True:
            due = self.advice.due()
            assert due is not None
            now = max(now, due)
            if (chosen := self.advice.choose(now)) is not None:
                return now, chosen


def test_nothing_is_advised_before_the_threshold_or_without_excess() -> None:
    world = World(claimed=3, target=1)
    assert world.advice.choose(THRESHOLD - 0.1) is None
    assert world.choose(THRESHOLD)
    assert World(claimed=1, target=1).advice.due() is None
    assert World(claimed=3, target=1, threshold=0.0).advice.due() is None


def test_one_at_a_time_is_advised_as_long_as_each_reacts() -> None:
    world = World(claimed=3, target=1)
    first = world.choose(THRESHOLD)
    assert world.advice.choose(THRESHOLD + 1.0) is None
    world.release(first, 3.0)
    second = world.choose(3.0 + THRESHOLD)
    assert second != first
    world.release(second, 6.0)
    assert world.advice.due() is None


@pytest.mark.parametrize("threshold", [0.1, 1.0, 5.0])
def test_a_holder_that_does_not_react_is_passed_over_in_the_end(threshold: float) -> None:
    world = World(claimed=2, target=1, threshold=threshold)
    first = world.choose(threshold)
    assert world.advice.choose(threshold + PATIENCE - 0.1) is None
    second = world.choose(threshold + PATIENCE)
    assert second != first
    world.release(second, 100.0)
    assert world.advice.due() is None


def test_holders_of_whom_none_reacts_are_advised_again_in_turn() -> None:
    world = World(claimed=3, target=2)
    moments = [THRESHOLD + i * PATIENCE for i in range(6)]
    advised = [world.choose(moment) for moment in moments]
    assert set(advised[:3]) == set(world.leases)
    assert advised[3:] == advised[:3]


def test_a_change_meanwhile_does_not_shorten_the_time_to_react() -> None:
    world = World(claimed=3, target=2)
    first = world.choose(THRESHOLD)
    world.advice.changed(5.0)
    assert world.advice.due() == THRESHOLD + PATIENCE
    world.advice.changed(THRESHOLD + PATIENCE)
    assert world.choose(2 * THRESHOLD + PATIENCE) != first


def test_those_that_are_slow_to_close_count_as_closing() -> None:
    world = World(claimed=3, target=1)
    slow = world.choose(THRESHOLD)
    quick = world.choose(THRESHOLD + PATIENCE)
    world.release(quick, THRESHOLD + PATIENCE + 1)
    # One is in excess, and one that was advised may still be draining.
    assert world.advice.due() == THRESHOLD + 2 * PATIENCE
    world.release(slow, THRESHOLD + PATIENCE + 2)
    assert world.advice.due() is None


def test_a_holder_that_does_not_watch_is_not_advised() -> None:
    world = World(claimed=2, target=1)
    for lease in world.leases.values():
        lease.session.live.watch = None
    assert world.advice.choose(THRESHOLD) is None
    assert world.advice.due() == THRESHOLD + 1.0


# -- which one ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("leases", "chosen"),
    [
        ([(1, None), (2, None), (3, None)], 3),
        ([(1, 0.5), (2, 0.1), (3, None)], 1),
        ([(1, 0.1), (2, None), (3, None)], 1),
        ([(1, 0.500), (2, 0.495), (3, 0.489)], 2),
        ([(1, 0.0), (2, 0.005), (3, 0.002)], 3),
        ([(7, 60.0), (5, 59.0)], 7),
        ([(1, 0.02), (2, 0.01)], 2),
    ],
)
def test_the_slowest_is_first_the_youngest_of_equal_ones_and_who_says_nothing_last(
    leases: list[tuple[int, float | None]], chosen: int
) -> None:
    assert slowest(leases) == chosen
    assert slowest(list(reversed(leases))) == chosen


def test_the_slowest_one_closes_first_and_the_next_one_after_the_next_wait() -> None:
    world = World(claimed=4, target=2)
    world.report(0.1, 0.4, 0.3, 0.1)
    first = world.choose(THRESHOLD)
    world.release(first, 4.0)
    second = world.choose(4.0 + THRESHOLD)
    assert (first, second) == (2, 3)
    world.release(second, 7.0)
    assert world.advice.due() is None


def test_figures_that_are_missing_are_waited_for_but_not_for_ever() -> None:
    world = World(claimed=3, target=2)
    world.report(0.1, None, None)
    assert world.advice.choose(THRESHOLD) is None
    assert world.advice.due() == THRESHOLD + 5.0
    assert world.advice.choose(THRESHOLD + FIGURES - 0.1) is None
    at, chosen = world.wait_for_advice(THRESHOLD)
    assert at >= THRESHOLD + FIGURES
    assert chosen == 1, "those that say nothing come last"


def test_figures_are_waited_for_until_exactly_a_minute_after_the_threshold() -> None:
    world = World(claimed=3, target=2)
    world.report(0.1, None, None)
    assert world.advice.choose(THRESHOLD + FIGURES) == 1


def test_the_wait_begins_when_the_daemon_does() -> None:
    world = World(claimed=3, target=1)
    assert Advice(world.tracker, world.leases, world.lives, THRESHOLD).due() == THRESHOLD


def test_one_that_is_offered_is_not_too_many() -> None:
    world = World(claimed=2, target=1)
    assert world.tracker.offer(1)
    assert world.advice.due() == 10 * THRESHOLD


def test_a_tunnel_to_a_terminating_proxy_is_not_too_many() -> None:
    world = World(claimed=2, target=1)
    world.tracker.track_expected([Proxy("p1", terminating=True)])
    assert world.advice.due() is None


def test_what_is_not_desired_waits_also_when_no_desired_one_can_be_advised() -> None:
    world = World(claimed=2, target=1, undesired=["old"])
    old = max(world.leases)
    for lease in world.leases.keys() - {old}:
        world.leases[lease].session.live.watch = None
    for seconds in (THRESHOLD, 10 + THRESHOLD + 0.5, 10 * THRESHOLD - 0.1):
        assert world.advice.choose(seconds) is None
    assert world.advice.choose(10 * THRESHOLD + 1.0) == old


def test_advice_comes_soon_once_all_desired_ones_have_figures() -> None:
    world = World(claimed=3, target=2)
    world.report(0.1, 0.5)
    assert world.advice.choose(THRESHOLD) is None
    world.report(0.1, 0.5, 0.2)
    at, chosen = world.wait_for_advice(THRESHOLD)
    assert at < THRESHOLD + 10.0
    assert chosen == 2


def test_where_nobody_reports_the_youngest_closes_without_a_wait_for_figures() -> None:
    world = World(claimed=3, target=1)
    assert world.choose(THRESHOLD) == 3


def test_what_is_not_desired_is_advised_much_later_and_after_the_desired_ones() -> None:
    world = World(claimed=2, target=1, undesired=["old"])
    old = max(world.leases)
    assert world.choose(THRESHOLD) == 2
    world.release(2, 3.0)
    assert world.advice.choose(3.0 + THRESHOLD) is None
    assert world.choose(3.0 + 10 * THRESHOLD) == old
    world.release(old, 40.0)
    assert world.advice.due() is None


def test_what_is_not_desired_needs_no_figures() -> None:
    world = World(claimed=1, target=1, undesired=["old"])
    world.report(None)
    assert world.choose(10 * THRESHOLD) == max(world.leases)


def test_a_desired_one_is_never_too_many_because_of_others() -> None:
    world = World(claimed=2, target=2, undesired=["old", "older"])
    assert {world.choose(10 * THRESHOLD), world.choose(10 * THRESHOLD + PATIENCE)} == {3, 4}


# -- in the daemon --------------------------------------------------------------------------------


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path, Clock(), disconnect_threshold=THRESHOLD)
    yield desk
    desk.kill()


def test_claims_and_releases_begin_the_wait_again_and_the_setting_is_live(
    desk: Desk, host: Host
) -> None:
    agent = open_session(desk, host, 1)
    agent.ask(desk, "track_expected", proxies=[[f"p{i}", "", 1, 9000] for i in range(4)])
    leases = [agent.ask(desk, "adopt", principals=[f"p{i}"])["lease"] for i in range(3)]
    agent.ask(desk, "set_connection_count", count=1)
    decide, clock = desk.actor._decide, desk.actor._clock
    assert isinstance(clock, Clock)
    clock.now += 1
    assert decide.advice.due() == clock.now - 1 + THRESHOLD
    agent.ask(desk, "adopt", principals=["p3"])
    assert decide.advice.due() == clock.now + THRESHOLD
    clock.now += 1
    agent.ask(desk, "release", lease=leases[0])
    assert decide.advice.due() == clock.now + THRESHOLD
    flight = agent.ask(desk, "track_expected", proxies=[["p9", "", 2, 9000]])
    assert flight["changed"] == 1
    decide.reconfigure(decide.config.__class__(cluster_name="c", disconnect_threshold=7.0))
    assert decide.advice.due() is None, "p9 is missing: nobody is too many"
    agent.ask(desk, "adopt", principals=["p9"])
    assert decide.advice.due() == clock.now + 10 * 7.0
    decide.reconfigure(decide.config.__class__(cluster_name="c"))
    assert decide.advice.due() is None
