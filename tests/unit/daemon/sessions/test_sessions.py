"""Sessions: whose they are, what is done in them, and how they end."""

from __future__ import annotations

import pytest

from trackd.sessions import sessions as sessions_module
from trackd.sessions.identity import Peer, Process
from trackd.sessions.sessions import (
    ENDED_SECONDS,
    Session,
    Sessions,
)


def session(number: int, process: Process | None = None) -> Session:
    token = number.to_bytes(16, "big")
    peer = Peer(1000, 1000, 0 if process is None else process.pid)
    return Session(number, token, peer, process, "", "", {}, 0.0, 0.0)


def test_requests_that_may_run_again_are_noted_up_to_a_bound() -> None:
    one = session(1)
    for seq in (1, 2, 3):
        one.note_repeatable(seq, 2)
    assert one.live.repeatable == {1, 2}


# -- all sessions ----------------------------------------------------------------------------


def test_sessions_are_found_by_token_and_by_process_oldest_first() -> None:
    process = Process(10, 1)
    all_sessions = Sessions()
    all_sessions.add(session(2, process))
    all_sessions.add(session(1, process))
    all_sessions.add(session(3, Process(10, 2)))
    all_sessions.add(session(4))
    assert [s.id for s in all_sessions.of_process(process)] == [1, 2]
    assert all_sessions.of_process(Process(11, 1)) == []
    assert set(all_sessions.processes()) == {process, Process(10, 2)}
    assert len(all_sessions) == 4
    assert all_sessions.last_id == 4


def test_the_last_session_of_a_process_is_told_apart() -> None:
    process = Process(10, 1)
    all_sessions = Sessions()
    first, second = session(1, process), session(2, process)
    all_sessions.add(first)
    all_sessions.add(second)
    all_sessions.remove(first, "closed", 0.0)
    assert all_sessions.has_process(process)
    all_sessions.remove(second, "closed", 0.0)
    assert not all_sessions.has_process(process)
    assert all_sessions.processes() == []


def test_ended_tokens_are_forgotten_after_ten_minutes_or_when_there_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sessions_module, "ENDED_TOKENS", 3)
    all_sessions = Sessions()
    ends = [session(n) for n in range(1, 6)]
    for number, one in enumerate(ends):
        all_sessions.add(one)
        all_sessions.remove(one, "closed", 100.0 + number)
    assert all_sessions.long_ended(105.0) == [ends[0].token, ends[1].token]
    assert len(all_sessions.long_ended(102.0 + ENDED_SECONDS)) == 2
    assert len(all_sessions.long_ended(102.1 + ENDED_SECONDS)) == 3
    assert len(all_sessions.ended) == 5, "it only says which"


def test_silent_sessions_are_those_without_a_process_whose_time_is_up() -> None:
    all_sessions = Sessions()
    quiet, loud, seen = session(1), session(2), session(3, Process(10, 1))
    for one in (loud, quiet, seen):
        all_sessions.add(one)
        if one.process is None:
            all_sessions.expect_heartbeat(one, 50.0)
    all_sessions.expect_heartbeat(loud, 60.0)
    assert all_sessions.next_heartbeat() == 50.0
    assert all_sessions.silent(50.0) == []
    assert all_sessions.silent(50.1) == [quiet]
    all_sessions.remove(quiet, "no_heartbeat", 50.1)
    assert all_sessions.next_heartbeat() == 60.0


def test_the_next_heartbeat_is_found_without_a_look_at_every_session() -> None:
    """It is asked for after each batch of changes."""
    compared = 0

    class Counted(float):
        def __lt__(self, other: float) -> bool:
            nonlocal compared
            compared += 1
            return float(self) < float(other)

        def __gt__(self, other: float) -> bool:
            nonlocal compared
            compared += 1
            return float(self) > float(other)

    all_sessions = Sessions()
    for number in range(1, 2001):
        one = session(number)
        all_sessions.add(one)
        all_sessions.expect_heartbeat(one, Counted(number))
    compared = 0
    for _ in range(100):
        assert all_sessions.next_heartbeat() == 1.0
    assert compared <= 1000
    all_sessions.expect_heartbeat(next(iter(all_sessions)), Counted(5000.0))
    assert all_sessions.next_heartbeat() == 2.0
    assert [one.id for one in all_sessions.silent(4.0)] == [2, 3]
    assert [one.id for one in all_sessions.silent(4.0)] == [2, 3], "they are still there"
