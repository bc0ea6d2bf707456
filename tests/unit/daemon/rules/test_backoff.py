"""The pause after failed dials, on a clock that the test moves."""

from __future__ import annotations

import pytest

from trackd.rules.backoff import (
    BASE,
    HOST_REASONS,
    LONGEST,
    SESSION_REASONS,
    Backoff,
    Pause,
    pause_seconds,
)
from trackd_client.errors import DialFailed

pytestmark = pytest.mark.rule(17)

UNTIL = 100.0


def pause(failures: int = 1, until: float = UNTIL, after: int = 7) -> Pause:
    return Pause(failures, until, after, "refused", None, 3, 1000, 42, "agent")


def test_without_a_failure_nothing_pauses() -> None:
    backoff = Backoff()
    assert backoff.held_until(0.0) is None
    assert backoff.due(0.0) is None
    assert not backoff.is_proven(1e9)
    assert backoff.counts(1)
    assert backoff.next_failures() == 1


def test_each_failure_doubles_the_pause_up_to_a_bound_and_chance_draws_from_its_upper_half() -> (
    None
):
    bounds = [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0]
    assert [pause_seconds(failures, None, 1.0) for failures in range(1, 8)] == bounds
    assert [pause_seconds(failures, None, 0.0) for failures in range(1, 8)] == [
        bound / 2 for bound in bounds
    ]
    assert bounds[0] == BASE
    assert pause_seconds(10**6, None, 1.0) == LONGEST


def test_a_pause_is_not_shorter_than_the_other_end_asked_for() -> None:
    assert pause_seconds(1, 20.0, 0.5) == 20.0
    assert pause_seconds(6, 1.0, 1.0) == 15.0
    assert pause_seconds(1, 0.0, 1.0) == 0.5


def test_at_exactly_its_end_a_pause_still_holds() -> None:
    backoff = Backoff(pause())
    assert backoff.held_until(UNTIL - 1) == backoff.held_until(UNTIL) == UNTIL
    assert backoff.held_until(UNTIL + 0.001) is None


def test_only_failures_of_leases_that_were_granted_after_the_last_one_count() -> None:
    backoff = Backoff(pause(after=7))
    assert [backoff.counts(lease) for lease in (6, 7, 8)] == [False, False, True]
    assert backoff.next_failures() == 2


def test_one_probe_at_a_time_until_it_claims_or_is_gone_or_its_time_is_up() -> None:
    backoff = Backoff(pause())
    now = UNTIL + 1
    backoff.begin_probe(8, now)
    assert backoff.held_until(now) == now + 5.0
    assert backoff.due(now) == now + 5.0
    backoff.end_lease(6)
    backoff.note_claim(6, UNTIL - 1)
    assert backoff.held_until(now) is not None, "another lease is not the probe"
    backoff.end_lease(8)
    assert backoff.held_until(now) is None
    backoff.begin_probe(9, now)
    backoff.note_claim(9, now)
    assert backoff.held_until(now) is None
    backoff.begin_probe(10, now)
    assert backoff.held_until(now + 5.0) is not None
    assert backoff.held_until(now + 5.0 + 0.001) is None


def test_a_claim_proves_that_dials_succeed_when_its_lease_is_old_enough() -> None:
    backoff = Backoff(pause())
    granted = UNTIL + 1
    backoff.note_claim(7, granted - 50)
    assert not backoff.is_proven(granted + 60), "it was granted before the failure"
    backoff.begin_probe(8, granted)
    backoff.note_claim(8, granted)
    assert backoff.due(granted) == granted + 10.0
    assert not backoff.is_proven(granted + 10.0)
    assert backoff.is_proven(granted + 10.0 + 0.001)
    assert backoff.held_until(granted + 10.0 + 0.001) is None
    backoff.end_lease(8)
    assert not backoff.is_proven(granted + 60), "it did not last"


def test_another_failure_forgets_the_claims_before_it() -> None:
    backoff = Backoff(pause())
    backoff.note_claim(8, UNTIL)
    backoff.begin(pause(2, UNTIL + 30, after=9))
    assert backoff.held_until(UNTIL + 20) == UNTIL + 30
    assert not backoff.is_proven(UNTIL + 60)
    backoff.note_claim(10, UNTIL)
    backoff.end()
    assert backoff.held_until(UNTIL + 20) is None
    assert backoff.due(UNTIL + 20) is None
    assert backoff.next_failures() == 1


def test_another_failure_makes_room_for_another_probe() -> None:
    backoff = Backoff(pause())
    backoff.begin_probe(8, UNTIL + 1)
    backoff.begin(pause(2, UNTIL + 2, after=8))
    assert backoff.held_until(UNTIL + 3) is None


def test_claims_without_end_do_not_pile_up() -> None:
    backoff = Backoff(pause())
    for lease in range(8, 10_000):
        backoff.note_claim(lease, UNTIL + lease)
    assert len(backoff._claims) == 16


def test_the_reasons_are_those_of_the_client() -> None:
    assert set(DialFailed.reasons) == HOST_REASONS | SESSION_REASONS
