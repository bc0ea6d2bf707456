"""Deadlines: the earliest of many that only move into the future."""

from __future__ import annotations

import random

import pytest

from trackd.rules.deadlines import Deadlines


class Thing:
    """Something with a deadline."""

    looks = 0

    def __init__(self, deadline: float | None) -> None:
        self.deadline = deadline


def deadline_of(thing: Thing) -> float | None:
    Thing.looks += 1
    return thing.deadline


def add(deadlines: Deadlines[Thing], number: int, deadline: float) -> Thing:
    thing = Thing(deadline)
    deadlines.add(deadline, number, thing)
    return thing


def test_ends_are_strict_and_in_the_order_of_the_numbers() -> None:
    deadlines = Deadlines(deadline_of)
    late, early, other = (add(deadlines, *each) for each in ((3, 5.0), (1, 6.0), (2, 7.0)))
    assert (deadlines.next(), deadlines.past(5.0)) == (5.0, [])
    assert deadlines.past(6.5) == [early, late], "they are in the order of their numbers"
    assert deadlines.past(6.5) == [early, late], "they stay until they are put off or gone"
    late.deadline, early.deadline = None, 9.0
    assert (deadlines.next(), deadlines.past(8.0)) == (7.0, [other])
    deadlines.clear()
    assert (deadlines.next(), deadlines.past(99.0)) == (None, [])


def test_random_deadlines_are_those_of_a_list() -> None:
    rng = random.Random(7)
    deadlines, things, now = Deadlines(deadline_of), dict[int, Thing](), 0.0
    for number in range(2000):
        now += rng.random()
        things[number] = add(deadlines, number, now + rng.randint(0, 9))
        for each in rng.sample(sorted(things), min(5, len(things))):
            assert things[each].deadline is not None
            things[each].deadline = max(things[each].deadline or 0.0, now + rng.randint(0, 9))
        if rng.random() < 0.9:
            gone = rng.choice(sorted(things))
            things.pop(gone).deadline = None
        ends = [thing.deadline for thing in things.values() if thing.deadline is not None]
        assert deadlines.next() == min(ends, default=None)
        late = [thing for thing in things.values() if (thing.deadline or now) < now]
        assert deadlines.past(now) == late


def test_each_deadline_that_was_put_off_is_corrected_once_and_nothing_walks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deadlines = Deadlines(deadline_of)
    things = [add(deadlines, i, 10.0) for i in range(10_000)]
    monkeypatch.setattr(Thing, "looks", 0)
    for thing in things:
        thing.deadline = 11.0
    assert Thing.looks == 0, "to put one off costs nothing here"
    assert deadlines.next() == 11.0
    assert Thing.looks <= len(things) + 1
    for second in range(10):
        assert (deadlines.past(second), deadlines.next()) == ([], 11.0)
    assert Thing.looks <= len(things) + 21


def test_things_that_are_gone_are_dropped_when_they_are_64_more_than_the_others() -> None:
    deadlines = Deadlines(deadline_of)
    stay = [add(deadlines, number, 100.0 - number) for number in range(10)]
    sizes = []
    for number in range(10, 145):
        thing = add(deadlines, number, 1.0)
        sizes.append(len(deadlines._heap))
        thing.deadline = None
    assert sizes == [*range(11, 65), *range(11, 2 * 11 + 64 + 1), *range(11, 16)]
    assert deadlines.past(91.5) == [stay[9]]


def test_of_those_that_stay_the_earliest_is_known_when_the_others_are_dropped() -> None:
    rng = random.Random(7)
    for _ in range(100):
        deadlines = Deadlines(deadline_of)
        things = [add(deadlines, number, rng.random()) for number in range(64)]
        for thing in rng.sample(things, 32):
            thing.deadline = None
        add(deadlines, 64, 1.0)
        assert deadlines.next() == min(each.deadline or 1.0 for each in things)
