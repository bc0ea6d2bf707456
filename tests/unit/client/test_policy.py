"""When a pool dials again."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trackd_client import Policy
from trackd_client.policy import Pace


def longest(_low: float, high: float) -> float:
    """Jitter that always takes the bound."""
    return high


def test_the_bound_of_the_pause_after_failures_doubles_up_to_the_cap() -> None:
    pace = Pace(Policy(), longest)
    assert [pace.failed() for _ in range(7)] == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


def test_the_jitter_is_full() -> None:
    bounds = []

    def jitter(low: float, high: float) -> float:
        bounds.append((low, high))
        return low

    pace = Pace(Policy(failed_base=1.0), jitter)
    assert [pace.failed(), pace.failed()] == [0.0, 0.0]
    assert bounds == [(0.0, 1.0), (0.0, 2.0)]


@given(failures=st.integers(0, 2_000), base=st.floats(0.001, 100), cap=st.floats(0.001, 1000))
def test_no_number_of_failures_leaves_the_cap(failures: int, base: float, cap: float) -> None:
    pace = Pace(Policy(failed_base=base, failed_cap=cap), random.Random(1).uniform)
    pace.failures = failures
    assert 0.0 <= pace.failed() <= cap
    assert pace.failures == failures + 1


def test_a_connection_that_stayed_up_ends_the_counting_of_failures_and_only_that() -> None:
    pace = Pace(Policy(), longest)
    pace.failed()
    pace.failed()
    pace.duplicate("p1")
    pace.connected()
    assert pace.failed() == 2.0, "to reach a proxy is not to stay with it"
    pace.duplicate("p1")
    pace.stayed_up()
    assert pace.failed() == 0.5
    assert pace.duplicates == 1


def test_the_pause_after_duplicates_grows_in_a_line_up_to_its_cap() -> None:
    pace = Pace(Policy(duplicate_step=0.25, duplicate_cap=0.6), longest)
    assert [pace.duplicate("p1") for _ in range(4)] == [0.25, 0.5, 0.6, 0.6]
    pace.connected()
    assert pace.duplicate("p1") == 0.25


def test_failures_and_duplicates_do_not_count_for_each_other() -> None:
    pace = Pace(Policy(duplicate_step=0.1), longest)
    for _ in range(4):
        pace.failed()
    assert pace.duplicate("p1") == 0.1
    assert pace.failed() == 8.0


def test_many_duplicates_in_a_row_show_a_sticky_balancer_once() -> None:
    pace = Pace(Policy(duplicate_step=0.0, sticky_after=3, sticky_pause=7.0), longest)
    told = []
    pauses = []
    for _ in range(5):
        pauses.append(pace.duplicate("p1"))
        told.append(pace.is_suspicious and pace.judge(desired=3, missing=3))
    assert told == [False, False, True, False, False]
    assert pauses == [0.0, 0.0, 0.0, 7.0, 7.0]
    pace.connected()
    assert not pace.is_sticky
    assert pace.duplicate("p1") == 0.0


def test_duplicates_that_chance_explains_show_no_sticky_balancer() -> None:
    pace = Pace(Policy(duplicate_step=0.0, sticky_after=20), longest)
    for _ in range(20):
        pace.duplicate("p1")
    assert pace.is_suspicious
    assert not pace.judge(desired=60, missing=1), "an even balancer needs 60 dials on average"
    suspected_at = []
    for number in range(21, 280):
        pace.duplicate("p1")
        if pace.is_suspicious:
            suspected_at.append(number)
            assert pace.judge(desired=60, missing=1)
    assert suspected_at == [275], "an even balancer needs so many once in a hundred times"


@pytest.mark.parametrize(("desired", "missing"), [(0, 0), (3, 0), (1, 1), (5, 5)])
def test_where_chance_explains_nothing_the_bound_alone_counts(desired: int, missing: int) -> None:
    pace = Pace(Policy(sticky_after=2), longest)
    pace.duplicate("p1")
    assert not pace.is_suspicious
    pace.duplicate("p1")
    assert pace.judge(desired, missing)


def test_proxies_that_are_all_met_show_no_sticky_balancer_however_long_one_is_away() -> None:
    pace = Pace(Policy(sticky_after=20), longest)
    judged = 0
    for number in range(1000):
        pace.duplicate(f"p{number % 5}")
        if pace.is_suspicious:
            judged += 1
            assert not pace.judge(desired=6, missing=1)
    assert 0 < judged <= 1000 / 20, "the daemon is asked now and then"
    assert pace.duplicate("p0") == pace.policy.duplicate_cap
    pace.connected()
    for number in range(100):
        pace.duplicate(f"p{number % 2}")
        if pace.is_suspicious:
            pace.judge(desired=6, missing=1)
    assert pace.is_sticky, "two of five, again and again"


def test_a_pool_obeys_the_hint_of_the_daemon_and_nothing_else() -> None:
    pace = Pace(Policy(duplicate_step=0.0, sticky_after=3, sticky_pause=7.0), longest)
    pauses, suspicious = [], []
    for hinted in (*[False] * 30, True, True, False, False):
        pauses.append(pace.duplicate("p1", hinted=hinted))
        suspicious.append(pace.is_suspicious)
        if pace.is_suspicious:  # what is missing is to be asked, once
            assert pace.judge(desired=6, missing=1)
    assert pauses == [0.0] * 31 + [7.0, 0.0, 0.0], "another agent has claimed its proxy then"
    assert suspicious == [False] * 30 + [True, False, False, False]


def test_without_hints_a_pool_judges_by_itself_again() -> None:
    pace = Pace(Policy(sticky_after=3), longest)
    pace.duplicate("p1", hinted=True)
    assert pace.judge(desired=6, missing=1)
    pace.connected()
    suspicious = []
    for _ in range(3):
        pace.duplicate("p1")  # an older daemon
        suspicious.append(pace.is_suspicious)
    assert suspicious == [False, False, True]
