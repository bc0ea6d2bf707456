"""The requests that a relay keeps until they are answered."""

from __future__ import annotations

import pytest

from trackd.fleet import pending
from trackd.fleet.hop import Asker
from trackd.fleet.pending import Requests

ASKER = Asker(1000, 100, 42, 7, "agent", admin=False, remaining=None)


def add(requests: Requests, seq: int, *, deadline: float | None = None, frame: bytes = b"x") -> int:
    """Add a request of one agent, and return its number."""
    return requests.add((b"token", seq), b"route", seq, ASKER, deadline, frame).number


def test_requests_keep_their_order_and_their_numbers_are_used_once() -> None:
    requests = Requests(first=5)
    numbers = [add(requests, seq) for seq in range(1, 4)]
    assert numbers == [5, 6, 7]
    assert [each.seq for each in requests] == [1, 2, 3]
    taken = requests.take(6)
    assert taken is not None
    assert taken.seq == 2
    assert requests.take(6) is None
    assert add(requests, 2) == 8
    assert [each.number for each in requests] == [5, 7, 8]


def test_what_an_agent_repeats_is_found_until_it_is_answered() -> None:
    requests = Requests()
    number = add(requests, 1)
    found = requests.find((b"token", 1))
    assert found is not None
    assert found.number == number
    assert requests.find((b"token", 2)) is None
    assert requests.find((b"other", 1)) is None
    requests.take(number)
    assert requests.find((b"token", 1)) is None


def test_those_that_nobody_waits_for_are_dropped() -> None:
    requests = Requests()
    add(requests, 1, deadline=1.0)
    add(requests, 2)
    add(requests, 3, deadline=3.0)
    requests.drop_late(3.0)
    assert [each.seq for each in requests] == [2, 3]


def test_their_number_and_their_bytes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending, "MOST", 2)
    monkeypatch.setattr(pending, "MOST_BYTES", 10)
    requests = Requests()
    first = add(requests, 1)
    found = [requests.is_full]
    add(requests, 2)
    found.append(requests.is_full)
    assert found == [False, True]
    requests.take(first)
    monkeypatch.setattr(pending, "MOST", 3)
    add(requests, 3, frame=b"0123456789")
    assert requests.bytes == 11
    assert requests.is_full
