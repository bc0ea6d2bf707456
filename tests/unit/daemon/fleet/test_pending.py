"""The requests that a relay keeps until they are answered."""

from __future__ import annotations

import pytest

from trackd.fleet import pending
from trackd.fleet.damping import Damper
from trackd.fleet.hop import Asker
from trackd.fleet.pending import ANSWERED, KEPT, REPEATED, Requests

ASKER = Asker(1000, 100, 42, 7, "agent", admin=False, remaining=None)


def add(
    requests: Requests,
    seq: int,
    *,
    uid: int = 1000,
    op: str = "claim",
    deadline: float | None = None,
    frame: bytes = b"x",
) -> int:
    """Add a request of one agent, and return its number."""
    return requests.add((uid, b"token", seq), op, b"route", ASKER, deadline, frame).number


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
    found = requests.find((1000, b"token", 1))
    assert found is not None
    assert found.number == number
    assert requests.find((1000, b"token", 2)) is None
    assert requests.find((1000, b"other", 1)) is None
    assert requests.find((1001, b"token", 1)) is None, "another user with the same token"
    requests.take(number)
    assert requests.find((1000, b"token", 1)) is None


def test_those_that_nobody_waits_for_are_dropped() -> None:
    requests = Requests()
    add(requests, 1, deadline=1.0)
    add(requests, 2)
    add(requests, 3, deadline=3.0)
    assert [each.seq for each in requests.take_late(3.0 + KEPT)] == [1]
    assert [each.seq for each in requests] == [2, 3]


def test_those_that_no_agent_repeats_are_dropped() -> None:
    requests = Requests()
    add(requests, 1)
    add(requests, 2, op="acquire")
    add(requests, 3)
    for request in list(requests)[:2]:
        requests.note_sent(request, 1.0)
    assert requests.take_late(1.0 + ANSWERED) == []
    assert [each.seq for each in requests.take_late(1.5 + ANSWERED)] == [1]
    assert requests.in_flight == 0
    assert requests.take_late(1.0 + REPEATED) == []
    assert [each.seq for each in requests.take_late(1.5 + REPEATED)] == [2]
    assert [each.seq for each in requests] == [3], "it was never sent"


def test_those_with_the_leader_are_counted_without_those_that_wait_there() -> None:
    requests = Requests()
    numbers = [add(requests, 1), add(requests, 2, op="acquire"), add(requests, 3)]
    for request in requests:
        requests.note_sent(request, 1.0)
        requests.note_sent(request, 2.0)
    assert requests.in_flight == 2
    assert [each.sent for each in requests] == [2.0, 2.0, 2.0]
    requests.take(numbers[0])
    requests.take(numbers[1])
    assert requests.in_flight == 1
    requests.take_back()
    assert requests.in_flight == 0
    assert [each.sent for each in requests] == [None]
    requests.take(numbers[2])
    assert requests.in_flight == 0


@pytest.mark.parametrize("bound", ["MOST", "MOST_BYTES"])
def test_their_number_and_their_bytes_are_bounded(
    monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    monkeypatch.setattr(pending, bound, 8)
    requests = Requests()
    numbers = []
    for uid in range(4):
        for seq in (1, 2):
            assert requests.has_room(uid)
            numbers.append(add(requests, seq, uid=uid))
        assert not requests.has_room(uid), "a user has a quarter"
    assert not requests.has_room(4), "they are full"
    requests.take(numbers[0])
    assert requests.has_room(0)
    assert requests.has_room(4)


def test_gossip_counts_with_what_is_remembered_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending, "MOST_BYTES", 400_000)
    requests, damper = Requests(), Damper(60.0, 600.0)
    due = damper.due([[str(number), "", 1, None] for number in range(1_000)], 0.0)
    made = requests.add((1, b"token", 1), "track_expected", b"", ASKER, None, b"x" * 9_000, due)
    assert not requests.has_room(1)
    requests.take(made.number)
    assert requests.has_room(1)
