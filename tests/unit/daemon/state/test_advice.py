"""Which connection is advised to close, and when. Pure: the clock is a number."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from trackd.rules.tracker import Tracker
from trackd.state.advice import Advice
from trackd_client import Proxy

THRESHOLD = 2.0
#: Seconds until a holder that keeps its lease is passed over.
PATIENCE = 20.0


class World:
    """A tracker whose leases hold p0, p1, ..., all with parked watches, and the advice on them."""

    def __init__(self, claimed: int, target: int, threshold: float = THRESHOLD) -> None:
        names = [f"p{i}" for i in range(claimed)]
        self.tracker = Tracker("c", clock=lambda: 0.0)
        self.tracker.set_connection_count(target)
        self.tracker.track_expected([Proxy(name) for name in names])
        self.leases: dict[int, Any] = {}
        for name in names:
            adopted = self.tracker.adopt([name])
            assert adopted is not None
            self.leases[adopted[0]] = SimpleNamespace(
                session=SimpleNamespace(live=SimpleNamespace(watch=object()))
            )
        self.advice = Advice(self.tracker, self.leases, threshold)
        self.advice.changed(0.0)

    def release(self, lease: int, now: float) -> None:
        assert self.tracker.release(lease)
        del self.leases[lease]
        self.advice.changed(now)

    def choose(self, now: float) -> int:
        """Return the lease that is advised at a moment at which an advice is due."""
        assert self.advice.due() == now
        chosen = self.advice.choose(now)
        assert chosen is not None
        return chosen


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


@pytest.mark.parametrize(("threshold", "patience"), [(0.1, 10.0), (1.0, 10.0), (5.0, 50.0)])
def test_a_holder_that_does_not_react_is_passed_over_in_the_end(
    threshold: float, patience: float
) -> None:
    world = World(claimed=2, target=1, threshold=threshold)
    first = world.choose(threshold)
    assert world.advice.choose(threshold + patience - 0.1) is None
    second = world.choose(threshold + patience)
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
    world.release(quick, 30.0)
    # One is in excess, and one that was advised may still be draining.
    assert world.advice.due() == THRESHOLD + 2 * PATIENCE
    world.release(slow, 31.0)
    assert world.advice.due() is None


def test_a_holder_that_does_not_watch_is_not_advised() -> None:
    world = World(claimed=2, target=1)
    for lease in world.leases.values():
        lease.session.live.watch = None
    assert world.advice.choose(THRESHOLD) is None
    assert world.advice.due() == THRESHOLD + 1.0
