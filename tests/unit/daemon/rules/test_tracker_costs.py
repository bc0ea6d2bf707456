"""What the tracker's operations cost, counted in steps, comparisons, entries and bytes.

Nothing here looks at a watch: a step is a line of Python run, which is the same on every machine.
"""

import math
import sys
import tracemalloc
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

import pytest

from trackd.rules.tracker import Tracker
from trackd_client.proxy import Proxy

SMALL, LARGE = 10, 10_000


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def filled(size: int, clock: Clock | None = None) -> Tracker:
    """Return a tracker of `size` proxies, half of them claimed."""
    tracker = Tracker("example.com", clock=clock or Clock())
    tracker.track_rows([(f"p{i}", "", 5, None) for i in range(size)])
    for i in range(0, size, 2):
        tracker.adopt([f"p{i}"])
    return tracker


def steps(call: Callable[[], object]) -> int:
    """Count the lines that a call runs, loops inside comprehensions included."""
    count = 0

    def trace(_frame: FrameType, event: str, _arg: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def cycle(tracker: Tracker) -> None:
    lease = tracker.try_acquire()
    assert lease is not None
    assert tracker.claim(lease, ["p1.example.com"]) == "p1"
    assert tracker.release(lease)


def refuse(tracker: Tracker) -> None:
    assert tracker.try_acquire() is None


OPERATIONS: dict[str, Callable[[Tracker], object]] = {
    "acquire, claim and release": cycle,
    "adopt": lambda tracker: tracker.adopt(["p1"]),
    "a claim that fails": lambda tracker: tracker.claim(1, ["p0"]),
    "is_claimed": lambda tracker: tracker.is_claimed(["x", "p0"]),
    "set_connection_count": lambda tracker: tracker.set_connection_count(3),
    "sweep": lambda tracker: tracker.sweep(),
    "next_expiry": lambda tracker: tracker.next_expiry,
    "a refresh": lambda tracker: tracker.track_expected([Proxy("p3", "", 5)]),
    "a new proxy": lambda tracker: tracker.track_expected([Proxy("new", "", 5)]),
    "a new largest generation": lambda tracker: tracker.track_expected([Proxy("p3", "", 6)]),
    "another TTL": lambda tracker: tracker.track_expected([Proxy("p3", "", 5, 9.0)]),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())
def test_an_operation_takes_as_many_steps_for_10_proxies_as_for_10_000(
    operation: Callable[[Tracker], object],
) -> None:
    small, large = filled(SMALL), filled(LARGE)
    operation(filled(SMALL))  # the first isinstance of a class takes steps of its own
    assert steps(lambda: operation(small)) == steps(lambda: operation(large))


def test_a_refusal_takes_as_many_steps_for_10_proxies_as_for_10_000() -> None:
    small, large = filled(SMALL), filled(LARGE)
    for tracker in (small, large):
        tracker.set_connection_count(1)
    assert steps(lambda: refuse(small)) == steps(lambda: refuse(large))


@pytest.mark.parametrize("of", ["groups", "generations of one group"])
def test_the_first_groups_take_as_many_steps_with_100_as_with_100_000(of: str) -> None:
    def read(size: int) -> int:
        tracker = filled(SMALL)
        for number in range(100):
            tracker.track_rows([(f"q{number}", f"a{number:02}", 5, None)])
        many = ((f"g{i}", 5) if of == "groups" else ("", i) for i in range(size))
        tracker.track_rows([(f"r{i}", *place, None) for i, place in enumerate(many)])
        assert [group.name for group in tracker.first_groups()[1:]] == [
            f"a{number:02}" for number in range(99)
        ]
        return steps(tracker.first_groups)

    assert read(SMALL) == read(100_000)


def test_the_steps_of_a_walk_are_counted() -> None:
    small, large = filled(SMALL), filled(LARGE)
    assert steps(lambda: list(large)) > 100 * steps(lambda: list(small))


def test_a_largest_generation_that_vanishes_takes_no_more_steps_in_a_large_group() -> None:
    def vanish(size: int) -> int:
        clock = Clock()
        tracker = filled(size, clock)
        tracker.track_rows([("top", "", 6, 1.0)])
        assert tracker.desired_count == 1
        clock.now = 2.0
        count = steps(tracker.sweep)
        assert (tracker.desired_count, tracker.claimed_desired_count) == (size, size // 2)
        return count

    assert vanish(SMALL) == vanish(LARGE)


def test_a_purge_after_a_message_of_10_000_refreshes_has_nothing_to_catch_up_with() -> None:
    def purge(size: int) -> int:
        clock = Clock()
        tracker = filled(size, clock)
        clock.now = 100.0
        tracker.track_rows([(f"p{i}", "", 5, None) for i in range(size)])
        clock.now = 200.0  # past the first expiries
        return steps(tracker.try_acquire)

    assert purge(SMALL) == purge(LARGE)


def test_a_purge_pays_for_each_proxy_once() -> None:
    def purge(size: int) -> int:
        clock = Clock()
        tracker = filled(size, clock)
        clock.now = 181.0
        return steps(tracker.sweep)

    each = (purge(2 * LARGE) - purge(LARGE)) / LARGE
    # Not quite the same: the collector's own callbacks count as well.
    assert each == pytest.approx((purge(2 * SMALL) - purge(SMALL)) / SMALL, rel=0.01)
    assert each < 30


def test_refreshing_one_proxy_over_and_over_grows_nothing() -> None:
    clock = Clock()
    tracker = filled(SMALL, clock)
    row = [("p1", "", 5, None)]
    for _ in range(100_000):
        clock.now += 0.001
        tracker.track_rows(row)
    assert len(tracker.mentions.by_number) == 2
    assert len(tracker.mentions._heap) == 2
    assert len(tracker._desired._groups[""].heap) == 1


def test_a_proxy_with_another_ttl_in_every_message_grows_nothing() -> None:
    tracker = filled(SMALL)
    for ttl in range(1, 20_000):
        tracker.track_rows([("p1", "", 5, 1000.0 + ttl)])
        assert len(tracker.mentions.by_number) == 2
        assert len(tracker.mentions._heap) <= 2 * 2 + 65


def test_generations_that_come_and_go_below_the_largest_grow_nothing() -> None:
    tracker = filled(SMALL)
    tracker.track_rows([("top", "", 10**9, None)])
    group = tracker._desired._groups[""]
    for generation in range(20_000):
        tracker.track_rows([("p1", "", generation, None)])
        tracker.track_rows([("p3", "", 7, None)])
        tracker.track_rows([("p3", "", 8, None)])
        assert len(group.heap) <= 24


def test_groups_that_come_and_go_leave_nothing() -> None:
    tracker = filled(SMALL)
    for i in range(1000):
        tracker.track_rows([("p1", f"g{i}", i, None)])
    assert len(tracker._desired._groups) == 2


def test_what_has_expired_leaves_nothing() -> None:
    clock = Clock()
    tracker = filled(SMALL, clock)
    tracker.track_rows([(f"q{i}", f"g{i}", i, 1.0 + i) for i in range(1000)])
    clock.now = 5000.0
    assert len(tracker.sweep()) == SMALL + 1000
    mentions = tracker.mentions
    assert tracker.next_expiry is None
    assert (mentions.by_number, mentions._heap, mentions._of) == ({}, [], {})
    assert (tracker._desired._groups, tracker._tracked) == ({}, {})


class CountedTime(float):
    """A time that counts how often times are compared."""

    comparisons = 0

    def __add__(self, other: float) -> Self:
        return type(self)(float(self) + other)

    def __lt__(self, other: float) -> bool:
        CountedTime.comparisons += 1
        return float(self) < float(other)

    __hash__ = float.__hash__

    def __eq__(self, other: object) -> bool:
        CountedTime.comparisons += 1
        return float(self) == other


def test_with_as_many_ttls_as_proxies_a_change_costs_a_logarithm() -> None:
    size = 4096
    most = 4 * size * math.log2(size)  # a walk would be at least size * size
    now = CountedTime(0.0)
    tracker = Tracker("example.com", clock=lambda: now)

    def cost(call: Callable[[], object]) -> int:
        CountedTime.comparisons = 0
        call()
        return CountedTime.comparisons

    falling = [(f"p{i}", "", 5, float(2 * size - i)) for i in range(size)]
    assert size < cost(lambda: tracker.track_rows(falling)) < most
    now = CountedTime(size / 2)
    assert cost(lambda: tracker.track_rows(falling)) < most
    now = CountedTime(2 * size + 1)
    assert cost(tracker.sweep) < 2 * most  # catches up with the refreshes, once
    assert tracker.tracked_count > 0
    now = CountedTime(4 * size)
    assert cost(tracker.sweep) < most
    assert tracker.tracked_count == 0


@pytest.mark.parametrize("direction", [1, -1])
def test_with_as_many_generations_as_proxies_nothing_is_walked(direction: int) -> None:
    def move(size: int) -> int:
        tracker = Tracker("example.com", clock=Clock())
        rows = [(f"p{i}", "", 10**6 + direction * i, None) for i in range(size)]
        moved = [(name, "h", generation, ttl) for name, _, generation, ttl in rows]
        return steps(lambda: tracker.track_rows(rows)) + steps(lambda: tracker.track_rows(moved))

    assert move(4000) < 2.5 * move(2000)


def test_a_tracked_proxy_takes_at_most_600_bytes() -> None:
    size = 20_000
    tracker = Tracker("example.com", clock=Clock())
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for i in range(size):
            tracker.track_rows([(f"proxy-{i:07d}.example.com", f"group {i % 3}", 2**40, None)])
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert used / size < 600
