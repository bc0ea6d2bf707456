"""The dial budget: a token bucket on a clock that the test moves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trackd.rules.budget import Budget


def test_a_burst_is_free_and_then_the_rate_is_kept() -> None:
    budget = Budget(rate=2.0, burst=3)
    for _ in range(3):
        assert budget.wait(100.0) == 0.0
        budget.take(100.0)
    assert budget.wait(100.0) == 0.5
    assert budget.wait(100.25) == pytest.approx(0.25)
    assert budget.wait(100.5) == 0.0
    budget.take(100.5)
    assert budget.wait(100.5) == 0.5


def test_it_never_holds_more_than_the_burst() -> None:
    budget = Budget(rate=1.0, burst=2)
    budget.wait(1_000_000.0)
    budget.take(1_000_000.0)
    budget.take(1_000_000.0)
    assert budget.wait(1_000_000.0) == 1.0


@pytest.mark.parametrize("rate", [0.0, -1.0])
def test_without_a_rate_there_is_no_limit(rate: float) -> None:
    budget = Budget(rate=rate, burst=1)
    for _ in range(10):
        assert budget.wait(5.0) == 0.0
        budget.take(5.0)
    assert budget.limited is False
    assert budget.level() == (1.0, 0.0), "nothing is taken"


def test_it_begins_full_at_any_moment_and_a_slow_rate_is_one() -> None:
    budget = Budget(rate=0.5, burst=1)
    assert budget.limited is True
    assert budget.wait(0.0) == 0.0
    budget.take(0.0)
    assert budget.wait(0.0) == 2.0


def test_another_rate_and_burst_hold_from_now_on() -> None:
    budget = Budget(rate=1.0, burst=4)
    for _ in range(4):
        budget.take(10.0)
    budget.change(0.5, 2, 11.0)
    assert (budget.rate, budget.burst) == (0.5, 2)
    assert budget.level() == (1.0, 11.0), "what was saved before is kept"
    assert budget.tokens(12.0) == 1.5
    assert budget.tokens(100.0) == 2.0


def test_a_limit_where_none_was_begins_with_a_full_burst() -> None:
    budget = Budget(rate=0.0, burst=1)
    budget.change(1.0, 3, 7.0)
    assert budget.level() == (3.0, 7.0)


def test_a_budget_goes_on_where_another_left_and_time_has_passed_meanwhile() -> None:
    first = Budget(rate=1.0, burst=4)
    for _ in range(4):
        assert first.wait(10.0) == 0.0
        first.take(10.0)
    second = Budget(rate=1.0, burst=4)
    second.restore(*first.level())
    assert second.wait(10.0) == 1.0
    assert second.wait(12.0) == 0.0
    second.take(12.0)
    second.take(12.0)
    assert second.wait(12.0) == 1.0


def test_a_smaller_burst_holds_for_what_was_saved_before_it() -> None:
    budget = Budget(rate=1.0, burst=2)
    budget.restore(50.0, 10.0)
    budget.wait(10.0)
    budget.take(10.0)
    budget.take(10.0)
    assert budget.wait(10.0) == 1.0


@given(
    rate=st.floats(0.5, 100.0),
    burst=st.integers(1, 20),
    steps=st.lists(st.floats(0.0, 2.0), max_size=60),
)
def test_over_any_stretch_no_more_is_taken_than_burst_and_rate_allow(
    rate: float, burst: int, steps: list[float]
) -> None:
    budget = Budget(rate, burst)
    now = 1000.0
    taken: list[float] = []
    for step in steps:
        now += step
        while budget.wait(now) == 0.0:
            budget.take(now)
            taken.append(now)
    for i, begin in enumerate(taken):
        for j in range(i, len(taken)):
            assert j - i + 1 <= burst + rate * (taken[j] - begin) + 1e-6


@given(rate=st.floats(0.1, 1000.0), burst=st.integers(1, 5))
def test_who_waits_as_long_as_told_gets_a_token(rate: float, burst: int) -> None:
    budget = Budget(rate, burst)
    now = 500.0
    for _ in range(burst + 5):
        wait = budget.wait(now)
        assert wait >= 0.0
        now += wait
        assert budget.wait(now) == pytest.approx(0.0, abs=1e-6)
        budget.take(now)
