"""Which entries of a message only repeat what is tracked, by their TTL."""

from __future__ import annotations

import sys
from typing import Any

import pytest

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
