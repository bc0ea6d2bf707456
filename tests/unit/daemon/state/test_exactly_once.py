"""Replies are kept until their session is done with them, over restarts too."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.decisions import World, session_of
from helpers.writer import observe
from trackd.sessions.identity import Process
from trackd.sessions.sessions import ParkedWatch, Session
from trackd.state import exactly_once
from trackd_client.wire.errors import ProtocolError

LARGEST = 2**64 - 1


@pytest.fixture
def world() -> World:
    return World()


def test_giving_up_an_acquire_that_was_granted_takes_the_grant_back(world: World) -> None:
    session = world.open()
    lease = world.acquire(session)
    exactly_once.remember(world.decide, session, 2, b"granted", stored=True, lease=lease)
    assert exactly_once.give_up(world.decide, session, 2)
    assert world.state.leases == {}
    assert 2 in session.done
    world.check()
    assert 2 in session_of(world.reloaded(), session).done


def test_giving_up_an_acquire_that_waits_takes_it_out_of_the_queue(world: World) -> None:
    session = world.open()
    world.acquire(session)
    world.decide.park(session, 2, None, b"route")
    assert exactly_once.give_up(world.decide, session, 2)
    assert not world.state.queue
    assert session.parked == {}
    world.check()


def test_giving_up_what_has_not_arrived_keeps_it_from_ever_running(world: World) -> None:
    session = world.open()
    assert exactly_once.give_up(world.decide, session, 50)
    assert 50 in session.done
    assert 50 in session_of(world.reloaded(), session).done
    world.check()


def test_giving_up_twice_or_what_is_done_changes_nothing(world: World) -> None:
    session = world.open()
    lease = world.acquire(session)
    exactly_once.remember(world.decide, session, 2, b"granted", stored=True, lease=lease)
    exactly_once.acknowledge(world.decide, session, [1, 2])
    before = observe(world.state)
    assert not exactly_once.give_up(world.decide, session, 2), (
        "its reply has arrived; its lease is in use"
    )
    assert observe(world.state) == before
    assert lease in world.state.leases


def test_an_acquire_that_is_done_without_a_cancel_stays_done_over_a_restart(world: World) -> None:
    session = world.open()
    world.acquire(session)
    world.decide.park(session, 2, None, b"route")
    exactly_once.acknowledge(world.decide, session, [1, 2])
    assert not world.state.queue
    assert 2 in session_of(world.reloaded(), session).done
    world.check()


@given(
    st.sets(st.integers(1, 30)),
    st.lists(st.lists(st.integers(1, 30), max_size=6, unique=True), max_size=6),
)
def test_done_drops_the_replies_that_it_covers_and_is_stored_where_a_restart_needs_it(
    kept: set[int], updates: list[list[int]]
) -> None:
    world = World()
    one = world.open(Process(10, 1))
    stored = {seq for seq in kept if seq % 3 == 1}
    refused = {seq for seq in kept if seq % 3 == 2}
    parked = {seq for seq in kept if seq % 3 == 0}
    for seq in sorted(kept):
        if seq in parked:
            world.decide.park(one, seq, None, b"route")
        else:
            exactly_once.remember(world.decide, one, seq, b"", stored=seq in stored, lease=None)
    repeatable = {seq for seq in range(1, 31) if seq not in kept and seq % 2}
    for seq in repeatable:
        one.note_repeatable(seq, 64)
    done: set[int] = set()
    for update in updates:
        world.commit()
        exactly_once.acknowledge(
            world.decide, one, [bound for seq in sorted(update) for bound in (seq, seq)]
        )
        news = set(update) - done
        done |= news
        if news - stored - repeatable:
            if world.decide.unstored.pop(one, one) is None:  # as a store does that takes no notes
                exactly_once.drop_covered(world.decide, one)
            assert {seq for seq in range(32) if seq in one.done} == done
            assert one.replies.keys() == stored - done
        assert one.live.repeatable == repeatable - done
        assert one.live.refusals.keys() == refused - done
        assert one.parked.keys() == parked - done
        assert one.unanswered() == len(kept - done)
        assert {seq for seq in range(32) if seq in one.live.done} == done
    exactly_once.remember(world.decide, one, 99, b"", stored=True, lease=None)
    assert one.replies.keys() == {99} | stored - done, "the next change drops what is done"
    world.check()


def test_done_from_one_on_drops_replies_however_far_it_jumps(world: World) -> None:
    one = world.open(Process(10, 1))
    before = 0
    for last in (1, 2, 5, 6, 1000, LARGEST):
        for seq in {before + 1, last}:
            exactly_once.remember(world.decide, one, seq, b"", stored=True, lease=None)
        exactly_once.acknowledge(world.decide, one, [1, last])
        before = last
        assert one.unanswered() == 0
        assert one.live.done.ranges == [1, last]


def test_replies_that_a_session_is_done_with_are_dropped_without_another_change(
    world: World,
) -> None:
    one = world.open(Process(10, 1))
    for seq in range(1, 101):
        exactly_once.remember(world.decide, one, seq, b"", stored=True, lease=None)
    covered, made = [], world.decide.made
    for seq in range(1, 101):
        exactly_once.acknowledge(world.decide, one, [1, seq])
        covered.append(len(one.replies) - (100 - seq))
    assert max(covered) == 16, "and are not stored one by one"
    assert world.decide.made - made == 100 // 17
    assert one.unanswered() == 0


def answer(world: World, session: Session, *seqs: int) -> None:
    for seq in seqs:
        exactly_once.remember(world.decide, session, seq, b"", stored=True, lease=None)


@pytest.mark.parametrize(
    "steps",
    [
        [[1, 3]],
        [[2, 2]],
        [[2, 3], [1, 4]],
        [[3, 3], [1, 4]],
        [[1, 2], [1, 2, 5, 5], [1, 6]],
        [[1, 1], [1, 1, 3, 3], [1, 1, 3, 6]],
        [[5, 5], [5, 5, 7, 7], [1, 7]],
        [[1, 1, 6, 6], [1, 3, 6, 6], [1, 8]],
    ],
)
def test_in_whatever_order_replies_arrive_each_is_covered_once(
    world: World, steps: list[list[int]]
) -> None:
    """A client is done with nothing but what it says, and no reply is missed or counted twice."""
    one = world.open(Process(10, 1))
    answer(world, one, *range(1, 9))
    for ranges in steps:
        exactly_once.acknowledge(world.decide, one, ranges)
        done = {seq for seq in range(1, 9) if seq in one.live.done}
        assert sorted(one.live.covered) == sorted(done)
        assert one.unanswered() == 8 - len(done)
        assert one not in world.decide.unstored, "a restart finds all of these replies"
    exactly_once.drop_covered(world.decide, one)
    assert one.replies.keys() == set(range(1, 9)) - done
    world.check()


@pytest.mark.parametrize(
    ("ranges", "unstored"),
    [
        ([1, 1], False),
        ([1, 2], True),
        ([2, 2], True),
        ([1, 1, 3, 3], False),
        ([1, 4], True),
        ([4, 4], True),
        ([3, 4], True),
    ],
)
def test_what_would_run_again_after_a_restart_is_noted_to_be_stored(
    world: World, ranges: list[int], unstored: bool
) -> None:
    """One has changed something, two was refused, three has only read, four has not come."""
    one = world.open(Process(10, 1))
    answer(world, one, 1)
    exactly_once.remember(world.decide, one, 2, b"", stored=False, lease=None)
    one.note_repeatable(3, 64)
    exactly_once.acknowledge(world.decide, one, ranges)
    assert (one in world.decide.unstored) == unstored
    done = one.live.done
    assert one.live.repeatable == {3} - {seq for seq in (3,) if seq in done}
    assert one.live.refusals.keys() == {2} - {seq for seq in (2,) if seq in done}


def test_what_is_given_up_leaves_no_reply_behind(world: World) -> None:
    one = world.open(Process(10, 1))
    answer(world, one, 1)
    exactly_once.remember(world.decide, one, 2, b"", stored=False, lease=None)
    one.note_repeatable(3, 64)
    for seq in (1, 2, 3):
        assert exactly_once.give_up(world.decide, one, seq)
        assert seq in one.done
    assert not one.replies
    assert not one.live.refusals
    assert not one.live.repeatable
    assert one.unanswered() == 0
    world.check()


def test_gaps_without_end_are_refused_and_change_nothing() -> None:
    world = World(max_outstanding=1)
    one = world.open(Process(10, 1))
    answer(world, one, 1, 3, 5)
    exactly_once.acknowledge(world.decide, one, [1, 1, 3, 3])
    with pytest.raises(ProtocolError):
        exactly_once.acknowledge(
            world.decide, one, [bound for seq in range(1, 200, 2) for bound in (seq, seq)]
        )
    assert one.live.done.ranges == [1, 1, 3, 3]
    assert one.unanswered() == 1


def test_the_reply_to_a_request_that_gives_up_itself_goes_with_the_next_change(
    world: World,
) -> None:
    one = world.open(Process(10, 1))
    assert exactly_once.give_up(world.decide, one, 5)
    exactly_once.remember(world.decide, one, 5, b"", stored=True, lease=None)
    world.check()
    assert (list(one.replies), one.unanswered()) == ([5], 0)
    world.restart()
    (one,) = world.state.sessions
    assert (list(one.replies), one.unanswered()) == ([5], 0)
    exactly_once.remember(world.decide, one, 6, b"", stored=True, lease=None)
    assert (list(one.replies), one.unanswered()) == ([6], 1)
    world.check()


def test_a_watch_that_is_done_waits_no_more(world: World) -> None:
    one = world.open(Process(10, 1))
    one.live.watch = ParkedWatch(5, b"route")
    exactly_once.acknowledge(world.decide, one, [1, 4])
    assert one.live.watch is not None
    exactly_once.acknowledge(world.decide, one, [1, 5])
    assert one.live.watch is None
