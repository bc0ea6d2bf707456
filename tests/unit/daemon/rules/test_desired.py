"""The index of desired proxies, and the first names of its groups."""

from __future__ import annotations

import random
from collections import deque

import pytest

from trackd.rules.desired import MOST_GROUPS, DesiredSet, _FirstNames


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("names", [50, 150, 250, 2000])
def test_the_first_names_are_those_of_the_whole_set_after_random_changes(
    seed: int, names: int
) -> None:
    draw = random.Random(seed)
    present: set[str] = set()
    first = _FirstNames(present)
    for _ in range(3000):
        name = f"g{draw.randrange(names):04}"
        if name in present:
            present.remove(name)
            first.remove(name)
        else:
            present.add(name)
            first.add(name)
        assert first.names() == sorted(present)[:MOST_GROUPS]
    for name in sorted(present):
        present.remove(name)
        first.remove(name)
        assert first.names() == sorted(present)[:MOST_GROUPS]


def test_names_that_come_and_go_grow_nothing() -> None:
    index = DesiredSet()
    for number in range(2 * MOST_GROUPS):
        index.add(f"m{number:03}", 1, claimed=False)
    for number in range(5000):  # behind the first ones
        index.remove(index.add(f"z{number}", 1, claimed=False), claimed=False)
    assert len(index._first._others) < 1000


def test_names_that_are_pushed_from_the_first_ones_and_leave_grow_nothing() -> None:
    index = DesiredSet()
    falling = [f"g{number:05}" for number in reversed(range(5000))]
    cohorts = deque(index.add(name, 1, claimed=False) for name in falling[: 2 * MOST_GROUPS])
    for name in falling[2 * MOST_GROUPS :]:
        cohorts.append(index.add(name, 1, claimed=False))
        index.remove(cohorts.popleft(), claimed=False)
    assert len(index._first._others) < 1000
    assert len(index._first._first) <= 2 * MOST_GROUPS


def test_a_group_is_counted_with_all_its_generations() -> None:
    index = DesiredSet()
    index.add("g", 1, claimed=True)
    old = index.add("g", 2, claimed=False)
    index.add("g", 3, claimed=True)
    assert index.first_groups() == [("g", 3, 3, 1, 1)]
    index.remove(old, claimed=False)
    assert index.first_groups() == [("g", 3, 2, 1, 1)]
