"""Which entries of a message only repeat what is tracked, by their TTL."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trackd.rules.marks import UNMARKED, Mark
from trackd.rules.targets import Address
from trackd.rules.tracker import Tracker
from trackd_client.proxy import Proxy

MOST = 60.0


@pytest.mark.parametrize("more", [[], [{}], [{"terminating": False}]], ids=str)
@pytest.mark.parametrize("ttl", [None, 0.5, 1, 1.0, 59, MOST])
def test_a_ttl_up_to_the_most_is_known(ttl: Any, more: list[Any]) -> None:
    tracker = Tracker("example.com")
    tracker.track_expected([Proxy("a", "g", 1)])
    assert tracker.unknown([["a", "g", 1, ttl, *more]], MOST) == ([], [])


@pytest.mark.parametrize("more", [[], [{}], [{"terminating": False}]], ids=str)
@pytest.mark.parametrize("ttl", [0, 0.0, -1.0, float("inf"), float("nan"), True, "1"])
def test_a_ttl_that_is_none_is_unknown(ttl: Any, more: list[Any]) -> None:
    tracker = Tracker("example.com")
    tracker.track_expected([Proxy("a", "g", 1)])
    assert tracker.unknown([["a", "g", 1, ttl, *more]], MOST) == ([0], [])


@pytest.mark.parametrize("ttl", [60.001, 61, sys.float_info.max])
def test_a_longer_ttl_is_told_apart_so_that_it_can_be_cut(ttl: float) -> None:
    tracker = Tracker("example.com")
    tracker.track_expected([Proxy("a", "g", 1)])
    assert tracker.unknown([["a", "g", 1, ttl]], MOST) == ([], [0])
    assert tracker.unknown([["a", "g", 1, ttl, {}]], MOST) == ([0], []), "as any other word"


NAMES = st.sampled_from(["a", "b"])
MARKS = st.sampled_from([UNMARKED, Mark(9.0, None), Mark(None, 9.0)])
TEXTS = st.sampled_from([None, "h:1", "h:2"])
EDITS = st.one_of(
    st.tuples(st.just("track"), NAMES, st.sampled_from(["", "g"]), st.integers(1, 2)),
    st.tuples(st.just("drop"), NAMES),
    st.tuples(
        st.just("mark"), NAMES, st.sampled_from([UNMARKED, Mark(9.0, None), Mark(None, 9.0)])
    ),
    st.tuples(st.just("address"), NAMES, TEXTS, st.floats(0.0, 9.0)),
    st.tuples(st.just("adopt"), NAMES),
)
ENTRIES = [
    [name, group, generation, 5.0, *more]
    for name in ("a", "b")
    for group in ("", "g")
    for generation in (1, 2)
    for more in (
        [],
        [{"terminating": True}],
        [{"terminating": False}],
        [{"address": ""}],
        [{"address": "h:1"}],
        [{"address": "h:2"}],
    )
]


@given(st.lists(EDITS, max_size=20))
def test_what_is_known_is_the_same_while_the_edition_is(edits: list[tuple[Any, ...]]) -> None:
    tracker = Tracker("example.com", clock=lambda: 0.0)
    tracker.track_expected([Proxy("a", generation=1), Proxy("b", generation=1)])
    for edit in edits:
        edition, found = tracker.edition, tracker.unknown(ENTRIES)
        match edit:
            case "track", name, group, generation:
                tracker.track_expected([Proxy(name, group, generation)])
            case "drop", name:
                if tracker.is_tracked(name):
                    tracker.drop([name])
            case "mark", name, mark:
                tracker.mark(name, mark)
            case "address", name, text, since:
                tracker.put_address(name, None if text is None else Address(text, 0, since))
            case _, name:
                tracker.hold(tracker.grant(), name)
        assert tracker.edition is not edition or tracker.unknown(ENTRIES) == found


def test_what_is_only_repeated_leaves_the_edition() -> None:
    tracker = Tracker("example.com", clock=lambda: 0.0)
    tracker.track_expected([Proxy("a")])
    tracker.put_address("a", Address("h:1", 0, 1.0))
    tracker.mark("a", Mark(5.0, None))
    edition = tracker.edition
    tracker.mark("a", Mark(9.0, None))
    tracker.put_address("a", Address("h:1", 0, 9.0))
    tracker.hold(tracker.grant(), "a")
    assert tracker.edition is edition
