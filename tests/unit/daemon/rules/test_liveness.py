"""Rule 18, the pure part: until when a lease that has reported may be silent."""

from __future__ import annotations

import pytest

from trackd.rules.liveness import Life, Lives, grace_of, smooth

pytestmark = pytest.mark.rule(18)

TIMEOUT = 40.0
GRACE = 10.0
#: Just after a moment: ends are strict.
AFTER = 1e-6


def lives_of(*leases: int, timeout: float = TIMEOUT, now: float = 0.0) -> tuple[Lives, list[Life]]:
    """Return leases that have reported at a moment."""
    lives = Lives()
    lives.set_timeout(timeout, now)
    for lease in leases:
        lives.begin(lease)
        lives.report(lives.by_lease[lease], None, now)
    return lives, list(lives.by_lease.values())


@pytest.mark.parametrize(
    ("timeout", "grace"), [(0.5, 5.0), (20.0, 5.0), (20.4, 5.1), (400.0, 100.0)]
)
def test_the_grace_is_a_quarter_and_at_least_five_seconds(timeout: float, grace: float) -> None:
    assert grace_of(timeout) == pytest.approx(grace)


def test_a_round_trip_time_is_smoothed_by_an_eighth() -> None:
    assert smooth(None, 0.4) == 0.4
    assert smooth(0.4, 1.2) == pytest.approx(0.5)
    lives, (one, other) = lives_of(1, 2)
    for life, rtt in ((one, 0.4), (other, None), (one, 1.2), (one, None), (other, 4.5)):
        lives.report(life, rtt, 1.0)
    assert one.rtt == pytest.approx(0.5)
    assert other.rtt == 4.5
    assert lives.rtt == pytest.approx(1.0), "all of them together"


def test_silence_is_strictly_longer_than_the_timeout_and_each_report_begins_it_again() -> None:
    lives, (one, other) = lives_of(1, 2)
    lives.report(other, None, 3.0)
    assert (lives.next(), lives.due(TIMEOUT)) == (TIMEOUT, [])
    assert lives.due(TIMEOUT + AFTER) == [one]
    lives.report(one, None, TIMEOUT + 1)
    assert lives.next() == TIMEOUT + 3
    assert lives.due(TIMEOUT + 3 + AFTER) == [other]


def test_a_stale_lease_has_the_grace_and_is_due_again_then() -> None:
    lives, (one,) = lives_of(1)
    lives.mark_stale(1)
    lives.begin_grace(one, TIMEOUT + 1)
    assert (lives.stale, lives.next()) == (1, TIMEOUT + 1 + GRACE)
    assert lives.due(TIMEOUT + 1 + GRACE) == []
    assert lives.due(TIMEOUT + 1 + GRACE + AFTER) == [one]
    lives.end(1)
    assert (lives.stale, lives.next(), lives.by_lease) == (0, None, {})


def test_without_a_timeout_nothing_is_ever_due_and_reports_are_known_all_the_same() -> None:
    lives, (one,) = lives_of(1, timeout=0.0)
    lives.report(one, 0.25, 7.0)
    assert (lives.next(), lives.due(1e9)) == (None, [])
    assert (one.reported, one.rtt, lives.reported) == (7.0, 0.25, 7.0)


def test_another_timeout_gives_each_its_whole_time() -> None:
    lives, _ = lives_of(1, 2)
    lives.set_timeout(8.0, 30.0)
    assert (lives.next(), len(lives.due(38.0 + AFTER))) == (38.0, 2)
    lives.set_timeout(0.0, 31.0)
    assert lives.next() is None
    lives.mark_stale(1)
    lives.set_timeout(0.0, 32.0)
    assert lives.next() == 37.0, "a stale one was notified, and is released all the same"
    lives.set_timeout(TIMEOUT, 33.0)
    assert (lives.next(), len(lives.due(33.0 + TIMEOUT + AFTER))) == (33.0 + GRACE, 2)


def test_a_look_that_is_a_little_late_gives_what_is_due_a_second_once() -> None:
    lives, (one, other) = lives_of(1, 2)
    lives.report(other, None, 30.0)
    now = TIMEOUT + 0.5
    assert (lives.due(now, late=0.5), lives.next()) == ([], now + 1.0)
    assert lives.due(now + 1.1, late=0.1) == [one], "a busy host must not put it off for ever"
    lives.report(one, None, now + 1.1)
    assert lives.due(now + 1.2 + TIMEOUT, late=0.1) == [], "a report earns it another second"
    assert other.deadline == 30.0 + TIMEOUT or other.overdue


def test_a_suspend_gives_each_its_whole_time_once() -> None:
    lives, (one, other) = lives_of(1, 2)
    lives.report(one, None, 30.0)
    lives.mark_stale(2)
    lives.begin_grace(other, 41.0)
    assert lives.due(45.0, late=7.0) == []
    assert (one.deadline, other.deadline) == (45.0 + TIMEOUT, 45.0 + GRACE)
    assert lives.due(55.5, late=7.0) == [other], "once; the other one has its time already"
    assert one.deadline == 45.0 + TIMEOUT
    lives.restart(60.0)
    assert (one.deadline, other.deadline) == (60.0 + TIMEOUT, 60.0 + GRACE)


def test_a_look_that_is_a_second_late_follows_a_suspend() -> None:
    lives, (one,) = lives_of(1)
    assert lives.due(TIMEOUT + 5.0, late=0.999) == []
    assert one.deadline == TIMEOUT + 5.0 + 1.0
    lives, (one,) = lives_of(1)
    assert lives.due(TIMEOUT + 5.0, late=1.0) == []
    assert one.deadline == TIMEOUT + 5.0 + TIMEOUT


def test_before_any_report_a_lease_is_neither_stale_nor_overdue() -> None:
    assert Life(1) != Life(1), "each is of another lease"
    assert (Life(1).stale, Life(1).overdue) == (False, False)


def test_a_lease_that_was_stale_before_a_restart_still_counts() -> None:
    lives = Lives()
    lives.begin(1, stale=True)
    lives.begin(2, stale=False)
    assert lives.stale == 1
    lives.report(lives.by_lease[2], None, 5.0)
    assert lives.next() is None, "there is no timeout yet"


def test_a_timeout_may_be_less_than_a_second() -> None:
    lives, (one,) = lives_of(1, timeout=0.5)
    assert lives.next() == 0.5
    assert lives.due(0.5 + AFTER) == [one]
