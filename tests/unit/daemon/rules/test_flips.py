"""A name flips by gossip once a second at most; the last word waits."""

from __future__ import annotations

import pytest

from trackd.rules.flips import Flips
from trackd.rules.marks import Mark, Marks

pytestmark = pytest.mark.rule(15)

#: A message of gossip.
ROWS = [("p1", "", 1, 30.0), ("p2", "", 1, None)]


def admit(flips: Flips, marks: Marks, said: dict[str, bool], now: float) -> dict[str, bool]:
    return dict(flips.admit(marks, ROWS, said, now, 180.0, 7))


def test_the_first_flip_counts_at_once_and_the_next_one_after_a_second() -> None:
    flips, marks = Flips(), Marks()
    assert admit(flips, marks, {"p1": True}, 100.0) == {"p1": True}
    marks.put("p1", Mark(130.0, None))
    flips.note(["p1"], 100.0)
    assert admit(flips, marks, {"p1": False, "p2": True}, 100.4) == {"p2": True}
    assert flips.waiting["p1"] == (101.0, None, 7)
    assert flips.next_due() == 101.0
    assert flips.take_due(100.9) == {}
    assert list(flips.take_due(101.0)) == ["p1"]
    assert (flips.next_due(), flips.waiting) == (None, {})
    assert admit(flips, marks, {"p1": False}, 101.0) == {"p1": False}


def test_the_newest_word_waits_and_one_that_flips_nothing_ends_the_wait() -> None:
    flips, marks = Flips(), Marks()
    flips.note(["p2"], 100.0)
    assert admit(flips, marks, {"p2": True}, 100.1) == {}
    assert admit(flips, marks, {"p2": True}, 100.5) == {}
    assert flips.waiting == {"p2": (101.0, 280.5, 7)}
    assert admit(flips, marks, {"p2": False}, 100.6) == {"p2": False}, "it is not marked"
    assert (flips.waiting, flips.next_due()) == ({}, None)


def test_a_word_that_changes_no_mark_never_waits() -> None:
    flips, marks = Flips(), Marks()
    marks.put("p1", Mark(130.0, None))
    marks.put("p2", Mark(None, 130.0))
    flips.note(["p1", "p2"], 100.0)
    assert admit(flips, marks, {"p1": True, "p2": True}, 100.5) == {"p1": True, "p2": True}
    assert admit(flips, marks, {"p2": False}, 100.6) == {"p2": False}, "its lease marks it"


def test_names_that_flipped_long_ago_take_no_memory() -> None:
    flips = Flips()
    for number in range(10_000):
        flips.note([f"p{number}"], number * 0.01)
    assert len(flips._last) <= 101


def test_a_name_is_forgotten_a_second_after_its_last_flip() -> None:
    flips = Flips()
    flips.note(["p1"], 100.0)
    flips.note(["p2"], 100.5)
    flips.note(["p1"], 100.9)
    flips.note(["p3"], 101.5)
    assert flips._last == {"p1": 100.9, "p3": 101.5}
    flips.note(["p4"], 101.875)
    flips.note(["p4"], 102.5)
    assert flips._last == {"p4": 102.5}


@pytest.mark.parametrize(
    ("ttl", "seconds"), [(None, 180.0), (0.0, 180.0), (-1.0, 180.0), (1.0, 1.0)]
)
def test_a_mark_that_waits_lasts_as_long_as_its_message_says(
    ttl: float | None, seconds: float
) -> None:
    flips = Flips()
    flips.note(["p1"], 100.0)
    assert flips.admit(Marks(), [("p1", "", 1, ttl)], {"p1": True}, 100.5, 180.0, 7) == {}
    assert flips.waiting == {"p1": (101.0, 100.5 + seconds, 7)}
