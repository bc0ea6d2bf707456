from __future__ import annotations

import pytest

from trackd.state.coverage import MOST_GAPS, OTHER, Coverage, GroupCount, GroupGap, GroupGaps


def test_each_missing_connection_counts_for_as_long_as_it_is_missing() -> None:
    coverage = Coverage(100.0)
    coverage.note(3, 3, 110.0)
    assert coverage.missing_seconds(112.0) == 6.0
    coverage.note(3, 1, 112.0)
    coverage.note(3, 0, 116.0)
    assert coverage.missing_seconds(200.0) == 10.0
    assert coverage.missing_seconds(200.0) == 10.0, "looking changes nothing"


def test_full_is_a_moment_at_which_something_was_wanted_and_nothing_missing() -> None:
    coverage = Coverage(100.0)
    assert coverage.full_at(101.0) is None
    coverage.note(0, 0, 102.0)
    assert coverage.full_at(103.0) is None, "without a target there is nothing to be full"
    coverage.note(2, 1, 104.0)
    assert coverage.full_at(105.0) is None
    coverage.note(2, 0, 106.0)
    assert coverage.full_at(107.0) == 107.0, "it still is"
    coverage.note(3, 1, 108.0)
    assert coverage.full_at(120.0) == 108.0
    coverage.note(3, 2, 121.0)
    assert coverage.full_at(130.0) == 108.0


def test_the_seconds_of_each_group_are_kept_by_its_name() -> None:
    gaps = GroupGaps(100.0)
    gaps.note(3, [GroupCount("a", 5, 2), GroupCount("b", 4, 1), GroupCount("c", 9, 0)], 100.0)
    assert gaps.seconds(103.0) == [("a", 6.0), ("b", 3.0), (OTHER, 0.0)]
    gaps.note(1, [GroupCount("a", 5, 0)], 103.0)
    assert gaps.seconds(110.0) == [("a", 6.0), ("b", 10.0), (OTHER, 0.0)]
    gaps.note(0, [GroupCount("b", 0, 0)], 110.0)
    assert gaps.seconds(120.0) == [("a", 6.0), (OTHER, 10.0)], "b is gone, its seconds are not"


def test_at_most_the_50_largest_groups_are_kept_one_by_one_and_the_sum_never_sinks() -> None:
    gaps = GroupGaps(0.0)
    count = 3 * MOST_GAPS
    gaps.note(count, [GroupCount(f"g{number:03}", 1, 1) for number in range(count)], 0.0)
    assert gaps.seconds(2.0)[-1] == (OTHER, 2.0 * (count - MOST_GAPS))
    large = [GroupCount(f"large{number:03}", 2 + number, 2) for number in range(MOST_GAPS)]
    gaps.note(count + 2 * MOST_GAPS, large, 2.0)
    *kept, (_, others) = gaps.seconds(3.0)
    assert [name for name, _ in kept] == [each.name for each in large]
    assert {seconds for _, seconds in kept} == {2.0}
    assert others == 3.0 * count, "what the small ones missed is there still"


def test_a_group_that_is_called_as_the_others_are_is_one_of_them() -> None:
    gaps = GroupGaps(0.0)
    gaps.note(2, [GroupCount(OTHER, 3, 2)], 0.0)
    assert gaps.seconds(2.0) == [(OTHER, 4.0)]


def test_a_group_that_another_state_does_not_have_misses_nothing() -> None:
    gaps = GroupGaps(0.0)
    gaps.note(2, [GroupCount("a", 1, 1), GroupCount("b", 1, 1)], 0.0)
    gaps.begin_state()
    gaps.note(1, [GroupCount("b", 1, 1)], 2.0)
    assert gaps.seconds(5.0) == [("a", 2.0), ("b", 5.0), (OTHER, 0.0)]


def test_the_groups_that_miss_most_now_come_first_and_all_others_last() -> None:
    gaps = GroupGaps(0.0)
    assert gaps.most_missing(1.0) == []
    counts = [GroupCount("a", 5, 1), GroupCount("b", 5, 2), GroupCount("c", 5, 1)]
    gaps.note(5, [*counts, GroupCount("d", 5, 0), GroupCount(OTHER, 5, 1)], 1.0)
    gaps.note(4, [GroupCount("c", 5, 0)], 1.5)
    assert gaps.most_missing(3.0) == [
        GroupGap("b", 2, 4.0),
        GroupGap("a", 1, 2.0),
        GroupGap("c", 0, 0.5),
        GroupGap(None, 1, 2.0),
    ]
    gaps.note(3, [GroupCount(OTHER, 5, 0)], 3.0)
    assert gaps.most_missing(9.0)[-1] == GroupGap(None, 0, 2.0)


def test_at_most_the_50_largest_groups_are_listed_and_the_rest_is_one_row() -> None:
    gaps = GroupGaps(0.0)
    count = 3 * MOST_GAPS
    gaps.note(count, [GroupCount(f"g{number:03}", 1, 1) for number in range(count)], 0.0)
    *kept, others = gaps.most_missing(0.1)
    assert len(kept) == MOST_GAPS
    assert others.missing == count - MOST_GAPS
    gaps.note(0, [GroupCount(f"g{number:03}", 1, 0) for number in range(count)], 0.1)
    assert sum(gap.seconds for gap in gaps.most_missing(7.0)) == pytest.approx(count * 0.1)


def test_one_wanted_connection_is_enough_to_be_full() -> None:
    coverage = Coverage(100.0)
    coverage.note(1, 0, 100.0)
    assert coverage.full_at(101.0) == 101.0


def test_a_state_that_takes_the_place_of_another_goes_on_from_its_first_counts() -> None:
    gaps = GroupGaps(100.0)
    gaps.note(3, [GroupCount("a", 5, 2), GroupCount("b", 5, 1)], 100.0)
    gaps.begin_state()
    gaps.note(2, [GroupCount("a", 5, 2)], 110.0)
    gaps.note(2, [GroupCount("c", 5, 0)], 111.0)
    assert gaps.seconds(120.0) == [("a", 40.0), ("b", 10.0), (OTHER, 0.0)]


def test_fifty_groups_are_kept_and_one_as_large_does_not_take_the_place_of_another() -> None:
    gaps = GroupGaps(100.0)
    counts = [GroupCount(f"g{i:02}", 10, 1) for i in range(60)]
    gaps.note(60, counts, 100.0)
    assert [name for name, _ in gaps.seconds(101.0)] == [*(f"g{i:02}" for i in range(50)), OTHER]
    gaps.note(62, [GroupCount("large", 11, 1), GroupCount("larger", 12, 1)], 100.0)
    kept = {name for name, _ in gaps.seconds(101.0)}
    assert {"large", "larger"} < kept
    assert len(kept) == 51
    assert sum(seconds for _, seconds in gaps.seconds(101.0)) == 62.0


def test_half_a_second_of_the_others_counts_too() -> None:
    gaps = GroupGaps(100.0)
    gaps.note(1, [], 100.0)
    assert gaps.seconds(100.5) == [(OTHER, 0.5)]
    assert gaps.most_missing(100.5) == [GroupGap(None, 1, 0.5)]


def test_a_group_that_has_missed_nothing_for_any_time_is_not_listed() -> None:
    gaps = GroupGaps(100.0)
    gaps.note(1, [GroupCount("a", 5, 1)], 100.0)
    gaps.note(0, [GroupCount("a", 5, 0)], 100.0)
    assert gaps.most_missing(200.0) == []
