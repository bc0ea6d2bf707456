"""The numbers of a session that are done: a set of ranges, which stays small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trackd_client.errors import Code
from trackd_client.wire.checks import check_done
from trackd_client.wire.done import Done
from trackd_client.wire.errors import ProtocolError

#: More ranges than any test has.
MOST = 1000


def refused(check: Callable[..., object], *args: Any, **limits: Any) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        check(*args, **limits)
    return caught.value


@st.composite
def flat_ranges(draw: st.DrawFn, largest: int = 40) -> list[int]:
    """Draw ranges as they may stand on the wire: ascending, adjacent ones allowed."""
    flat: list[int] = []
    position = draw(st.integers(1, largest))
    while position <= largest and draw(st.booleans()):
        last = draw(st.integers(position, largest))
        flat += [position, last]
        position = last + 1 + draw(st.integers(0, 5))
    return flat


def members(flat: list[int]) -> set[int]:
    pairs = zip(flat[::2], flat[1::2], strict=True)
    return {n for first, last in pairs for n in range(first, last + 1)}


@given(st.lists(flat_ranges(), max_size=8))
@example([[1, 3], [1, 3, 5, 9], [1, 3, 5, 12], [4, 4]])  # a request that waits, and then ends
@example([[1, 3, 5, 9], [1, 3, 5, 6]])
@example([[1, 2, 3, 4], [1, 2, 3, 9]])
def test_done_is_the_set_of_all_numbers_that_were_ever_named(updates: list[list[int]]) -> None:
    done, model = Done(), set[int]()
    for update in updates:
        before = set(model)
        model |= members(update)
        told = list(update)
        assert done.update(update) == (model != before)
        assert update == told, "what was handed over is the caller's"
        assert {n for n in range(50) if n in done} == model
        assert members(done.ranges) == model
        gaps = zip(done.ranges[1:-1:2], done.ranges[2::2], strict=True)
        assert all(last + 1 < first for last, first in gaps), "ranges that touch are one"
        assert check_done(list(done.ranges), MOST) == done.ranges


@given(flat_ranges())
def test_done_survives_being_stored(flat: list[int]) -> None:
    done = Done()
    done.update(flat)
    assert Done(done.ranges).ranges == done.ranges
    assert not Done(done.ranges).update(done.ranges)


def test_done_holds_a_bounded_number_of_ranges() -> None:
    assert check_done([1, 1, 3, 3], 2) == [1, 1, 3, 3]
    assert refused(check_done, [1, 1, 3, 3, 5, 5], 2).code == Code.LIMIT_EXCEEDED


def test_done_that_would_hold_too_many_ranges_stays_as_it_was() -> None:
    done = Done([1, 1, 3, 3])
    assert refused(done.update, [5, 5], 2).code == Code.LIMIT_EXCEEDED
    assert done.ranges == [1, 1, 3, 3]
    assert done.update([2, 2, 5, 5], 2)
    assert done.ranges == [1, 3, 5, 5]
