"""Who leads after a transaction, and until when."""

from __future__ import annotations

import pytest

from trackd.fleet.term import OVER, LeaderKey, extend, fence_of, next_keepalive


def test_who_created_the_key_leads_with_its_revision() -> None:
    assert fence_of(7, None, lease=1) == 7


def test_who_finds_the_key_of_another_does_not_lead() -> None:
    assert fence_of(None, LeaderKey(lease=2, create_revision=5), lease=1) is None


def test_who_finds_its_own_key_leads_since_an_answer_was_lost() -> None:
    assert fence_of(None, LeaderKey(lease=1, create_revision=5), lease=1) == 5


def test_who_created_nothing_and_finds_nothing_does_not_lead() -> None:
    assert fence_of(None, None, lease=1) is None


def test_a_term_counts_from_when_the_keepalive_was_sent() -> None:
    assert extend(105.0, 5.0, sent=101.0, now=104.0) == 106.0


def test_a_late_answer_never_shortens_a_term() -> None:
    assert extend(105.0, 5.0, sent=99.0, now=104.0) == 105.0


@pytest.mark.parametrize("now", [105.0, 105.1])
def test_a_term_that_was_over_is_never_valid_again(now: float) -> None:
    over = extend(105.0, 5.0, sent=104.9, now=now)
    assert over == OVER
    assert extend(over, 5.0, sent=110.0, now=110.0) == OVER


def test_a_lease_that_is_gone_ends_the_term() -> None:
    assert extend(105.0, 0.0, sent=101.0, now=101.1) == OVER


def test_keepalives_are_a_third_of_the_ttl_apart_and_close_after_a_failure() -> None:
    assert next_keepalive(6.0, sent=100.0, now=100.5, acknowledged=True) == 1.5
    assert next_keepalive(6.0, sent=100.0, now=103.0, acknowledged=True) == 0.0
    assert next_keepalive(6.0, sent=100.0, now=101.0, acknowledged=False) == pytest.approx(0.3)
