"""Sessions: whose they are, what is done in them, and how they end."""

from __future__ import annotations

import pytest

from trackd.sessions import sessions as sessions_module
from trackd.sessions.identity import Peer, Process
from trackd.sessions.sessions import (
    EXPIRED_LEASES,
    Ended,
    KeptReply,
    Lease,
    Session,
    Sessions,
    Waiter,
    sentence_of,
)
from trackd.sessions.use import Use


def session(number: int, process: Process | None = None) -> Session:
    token = number.to_bytes(16, "big")
    peer = Peer(1000, 1000, 0 if process is None else process.pid)
    return Session(number, token, peer, process, "", "", {}, 0.0, 0.0)


def test_requests_that_may_run_again_are_noted_up_to_a_bound() -> None:
    one = session(1)
    for seq in (1, 2, 3):
        one.note_repeatable(seq, 2)
    assert one.live.repeatable == {1, 2}


def test_what_comes_and_goes_leaves_a_session_as_it_was() -> None:
    """Most sessions have none of it, and share what is empty."""
    one, other = session(1), session(2)
    one.put_route(1, b"one")
    one.put_route(2, b"two")
    assert (one.live.routes, other.live.routes) == ({1: b"one", 2: b"two"}, {})
    assert [one.take_route(seq) for seq in (1, 1, 2)] == [b"one", None, b"two"]
    assert one.live.routes is other.live.routes

    one.keep_refusal(1, b"one")
    one.keep_refusal(2, b"two")
    one.drop_refusal(1)
    assert (one.live.refusals, other.live.refusals) == ({2: b"two"}, {})
    one.drop_refusal(2)
    assert one.live.refusals is other.live.refusals

    one.note_repeatable(1, 9)
    one.note_repeatable(2, 9)
    one.drop_repeatable(1)
    one.drop_repeatable(1)
    assert (one.live.repeatable, other.live.repeatable) == ({2}, set())
    one.drop_repeatable(2)
    assert one.live.repeatable is other.live.repeatable

    first, second = Waiter(one, 1, 1, 1, None), Waiter(one, 2, 2, 2, None)
    one.park(first)
    one.park(second)
    assert one.unpark(1) is first
    assert (one.parked, other.parked) == ({2: second}, {})
    assert one.unpark(2) is second
    assert one.parked is other.parked
    with pytest.raises(KeyError):
        one.unpark(2)


def test_the_end_of_a_session_is_said_in_words() -> None:
    assert sentence_of("closed") == "the session has ended: its client closed it"
    assert sentence_of("of another release") == "the session has ended: of another release"


def test_what_has_equal_content_is_not_the_same() -> None:
    one = session(1)
    for make in (
        lambda: session(1),
        lambda: Waiter(one, 1, 1, 1, None),
        lambda: Lease(one, 0.0, 0.0, (), 0.0),
        Use,
    ):
        assert make() != make()


def test_a_new_session_has_done_nothing_and_is_not_overdue() -> None:
    one = session(1)
    assert (one.live.requests, one.live.gossip, one.live.overdue) == (0, 0, False)
    assert not one.ended
    assert one.unanswered() == 0
    assert one.use.user == ("", -1)
    assert not Lease(one, 0.0, 0.0, (), 0.0).overdue
    assert EXPIRED_LEASES == 1024


def test_requests_without_a_reply_that_was_fetched_are_counted() -> None:
    one = session(1)
    for seq in (1, 2, 3, 4):
        one.keep_reply(seq, KeptReply(b"", None))
    one.keep_refusal(5, b"")
    one.park(Waiter(one, 6, 1, 1, None))
    one.park(Waiter(one, 7, 2, 2, None))
    one.live.covered = (1, 2, 3)
    assert one.unanswered() == 1 + 1 + 2
    assert one.take_covered() == (1, 2, 3)
    assert one.take_covered() == ()
    assert one.unanswered() == 4 + 1 + 2


def test_replies_count_for_the_user_and_for_all_as_long_as_they_are_kept() -> None:
    """With 256 bytes each beside their own."""
    all_sessions = Sessions()
    one, same_user, other = session(1), session(2), session(3)
    other.peer = Peer(1001, 1001, 0)
    for each in (one, same_user, other):
        all_sessions.add(each)
    one.keep_reply(1, KeptReply(b"12345", 7))
    one.keep_refusal(2, b"123")
    same_user.keep_reply(1, KeptReply(b"1", None))
    other.keep_refusal(1, b"")
    assert one.replies == {1: KeptReply(b"12345", 7)}
    assert one.live.refusals == {2: b"123"}

    def used() -> tuple[int, int, int]:
        bytes_of = [all_sessions.use_of(("", uid)).reply_bytes for uid in (1000, 1001)]
        return bytes_of[0], bytes_of[1], all_sessions.total.reply_bytes

    assert used() == (3 * 256 + 9, 256, 4 * 256 + 9)
    one.drop_refusal(2)
    one.drop_refusal(2)
    assert used() == (2 * 256 + 6, 256, 3 * 256 + 6)
    one.drop_reply(1)
    assert (one.replies, one.live.refusals) == ({}, {})
    assert used() == (256 + 1, 256, 2 * 256 + 1)
    one.keep_reply(3, KeptReply(b"123456", None))
    one.keep_refusal(4, b"")
    all_sessions.remove(one, "closed", 0.0)
    assert used() == (256 + 1, 256, 2 * 256 + 1)
    all_sessions.remove(same_user, "closed", 0.0)
    all_sessions.remove(other, "closed", 0.0)
    assert used() == (0, 0, 0)


def test_a_user_knows_which_sessions_are_done_with_kept_replies_until_these_are_dropped() -> None:
    all_sessions = Sessions()
    one, same_user, other = session(1), session(2), session(3)
    other.peer = Peer(1001, 1001, 0)
    for each in (one, same_user, other):
        all_sessions.add(each)
        each.keep_reply(1, KeptReply(b"", None))

    def covering() -> tuple[list[Session], list[Session], list[Session]]:
        return list(one.use.covering), list(other.use.covering), list(all_sessions.total.covering)

    one.cover([])
    assert covering() == ([], [], [])
    one.keep_reply(2, KeptReply(b"", None))
    one.cover([1])
    one.cover([2])
    same_user.cover([1])
    other.cover([1])
    assert covering() == ([one, same_user], [other], [one, same_user, other])
    assert one.take_covered() == [1, 2]
    assert covering() == ([same_user], [other], [same_user, other])
    all_sessions.remove(same_user, "closed", 0.0)
    assert covering() == ([], [other], [other])
    alone = session(4)
    alone.cover([1])
    assert list(alone.use.covering) == [alone], "before it is one of all sessions"


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


def test_the_sessions_of_a_process_share_what_the_kernel_says_of_it() -> None:
    all_sessions = Sessions()
    one, two, three = (session(number, Process(10, 1)) for number in (1, 2, 3))
    three.peer = three.peer._replace(gid=5)
    for each in (one, two, three):
        all_sessions.add(each)
    assert one.process is two.process is three.process
    assert one.peer is two.peer
    assert three.peer == Peer(1000, 5, 10), "its group has changed in between"


def test_a_user_is_known_as_long_as_one_of_the_sessions_is_open() -> None:
    all_sessions = Sessions()
    assert all_sessions.last_id == 0
    first, second = session(1), session(2)
    all_sessions.add(first)
    all_sessions.add(second)
    use = all_sessions.use_of(("", 1000))
    assert (use.user, use.sessions, use.leases, use.waiters) == (("", 1000), 2, 0, 0)
    assert all_sessions.users == {("", 1000): use}
    assert first.use is second.use is use
    all_sessions.remove(first, "closed", 0.0)
    assert use.sessions == 1
    assert all_sessions.use_of(("", 1000)) is use
    assert first.ended
    assert list(all_sessions) == [second]
    assert all_sessions.by_id == {2: second}
    all_sessions.remove(second, "admin", 1.0)
    assert all_sessions.users == {}
    assert all_sessions.use_of(("", 1000)).sessions == 0
    assert all_sessions.ended[second.token] == Ended("admin", 1.0, 1000)
    assert all_sessions.ended[second.token].user == ("", 1000)


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
    assert sessions_module.ENDED_TOKENS == 10_000
    monkeypatch.setattr(sessions_module, "ENDED_TOKENS", 3)
    all_sessions = Sessions()
    ends = [session(n) for n in range(1, 6)]
    for number, one in enumerate(ends):
        all_sessions.add(one)
        all_sessions.remove(one, "closed", 100.0 + number)
    assert all_sessions.long_ended(105.0) == [ends[0].token, ends[1].token]
    assert len(all_sessions.long_ended(102.0 + 600.0)) == 2
    assert len(all_sessions.long_ended(102.1 + 600.0)) == 3
    assert len(all_sessions.ended) == 5, "it only says which"


def test_silent_sessions_are_those_without_a_process_whose_time_is_up() -> None:
    all_sessions = Sessions()
    quiet, loud, seen = session(1), session(2), session(3, Process(10, 1))
    for one in (loud, quiet, seen):
        all_sessions.add(one)
        if one.process is None:
            all_sessions.expect_heartbeat(one, 50.0)
    loud.live.overdue = True
    all_sessions.expect_heartbeat(loud, 60.0)
    assert not loud.live.overdue
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
