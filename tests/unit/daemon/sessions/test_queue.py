"""The queue of parked acquires: order, deadlines, and whoever leaves early."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trackd.sessions.identity import Peer
from trackd.sessions.queue import Queue
from trackd.sessions.sessions import Session, Waiter

pytestmark = pytest.mark.rule(13)

SESSION = Session(1, b"\x00" * 16, Peer(0, 0, 0), None, "", "", {}, 0.0, 0.0)


def waiter(order: int, deadline: float | None = None) -> Waiter:
    return Waiter(SESSION, order, order, order, deadline)


def queue_of(*waiters: Waiter) -> Queue:
    queue = Queue()
    for each in waiters:
        queue.add(each)
    return queue


def test_whoever_waits_longest_is_first() -> None:
    first, second = waiter(1), waiter(2)
    queue = queue_of(first, second)
    assert queue.first() is first
    queue.remove(first)
    assert queue.first() is second
    queue.remove(second)
    assert queue.first() is None
    assert not queue


def test_whoever_leaves_from_the_middle_leaves_the_order_alone() -> None:
    waiters = [waiter(n) for n in range(1, 6)]
    queue = queue_of(*waiters)
    queue.remove(waiters[2])
    assert list(queue) == [waiters[0], waiters[1], waiters[3], waiters[4]]


def test_the_order_goes_on_counting_from_what_a_restart_brought_back() -> None:
    queue = queue_of(waiter(7), waiter(12))
    assert queue.last_order == 12
    queue.remove(next(iter(queue)))
    assert queue.last_order == 12


def test_the_first_order_is_one() -> None:
    assert Queue().last_order == 0


def test_the_next_deadline_is_the_earliest_of_those_who_wait() -> None:
    late, early, never = waiter(1, 20.0), waiter(2, 10.0), waiter(3)
    queue = queue_of(late, early, never)
    assert queue.next_deadline() == 10.0
    queue.remove(early)
    assert queue.next_deadline() == 20.0
    queue.remove(late)
    assert queue.next_deadline() is None
    assert queue.first() is never


def test_whoever_waited_long_enough_is_told_once_at_exactly_the_deadline() -> None:
    first, second = waiter(1, 20.0), waiter(2, 10.0)
    queue = queue_of(first, second)
    assert queue.late(9.999) == []
    assert queue.late(10.0) == [second]
    assert list(queue) == [first, second], "taking them out is for whoever answers them"
    queue.remove(second)
    assert queue.late(1e9) == [first]
    assert queue.late(1e9) == []


def test_early_leavers_with_far_deadlines_do_not_pile_up() -> None:
    queue = Queue()
    for order in range(1, 10_000):
        each = waiter(order, 1e9 + order)
        queue.add(each)
        queue.remove(each)
    assert len(queue._deadlines) < 200
    assert len(queue._turns) < 200


def test_whoever_stays_keeps_turn_and_deadline_when_the_leavers_are_dropped() -> None:
    """Leavers are dropped when there are 64 more of them than of waiters."""
    stay = [Waiter(SESSION, n, n, 20 - n, 2e9 - n) for n in range(1, 11)]
    queue = queue_of(*stay, Waiter(SESSION, 11, 11, 50, None))
    turns, deadlines = [], []
    for order in range(12, 89):
        leaver = Waiter(SESSION, order, order, order, 1e9)
        queue.add(leaver)
        turns.append(len(queue._turns))
        deadlines.append(len(queue._deadlines))
        queue.remove(leaver)
    assert turns == [*range(12, 2 * 12 + 64 + 1)]
    assert deadlines == [*range(11, 2 * 12 + 64)]
    for order in (89, 90):
        leaver = Waiter(SESSION, order, order, order, 1e9)
        queue.add(leaver)
        turns.append(len(queue._turns))
        deadlines.append(len(queue._deadlines))
        queue.remove(leaver)
    assert turns[-2:] == [12, 13]
    assert deadlines[-2:] == [2 * 12 + 64, 11]
    assert queue.next_deadline() == 2e9 - 10
    assert queue.late(2e9) == stay[::-1]
    served = []
    while (first := queue.first()) is not None:
        served.append(first.order)
        queue.remove(first)
    assert served == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 11]


@given(st.lists(st.tuples(st.sampled_from("arl"), st.integers(0, 50)), max_size=60))
def test_it_equals_a_plain_list(actions: list[tuple[str, int]]) -> None:
    queue, model = Queue(), list[Waiter]()
    now = 0.0
    for order, (action, number) in enumerate(actions, 1):
        if action == "a":
            model.append(waiter(order, None if number % 3 == 0 else now + number))
            queue.add(model[-1])
        elif action == "r" and model:
            queue.remove(model.pop(number % len(model)))
        elif action == "l":
            now += number
            late = queue.late(now)
            overdue = [each for each in model if each.deadline is not None and each.deadline <= now]
            assert late == sorted(overdue, key=lambda each: (each.deadline, each.order))
            for each in late:
                queue.remove(each)
                model.remove(each)
        assert list(queue) == model
        assert len(queue) == len(model)
        deadlines = [each.deadline for each in model if each.deadline is not None]
        assert queue.next_deadline() == min(deadlines, default=None)


def session(number: int) -> Session:
    return Session(number, bytes([number]) * 16, Peer(0, 0, 0), None, "", "", {}, 0.0, 0.0)


def park(queue: Queue, owner: Session) -> Waiter:
    order = queue.last_order + 1
    parked = Waiter(owner, order, order, queue.next_tag(owner), None)
    owner.park(parked)
    queue.add(parked)
    return parked


def take_out(queue: Queue, leaver: Waiter, *, served: bool) -> None:
    queue.remove(leaver)
    leaver.session.unpark(leaver.seq)
    if served:
        queue.last_served = max(queue.last_served, leaver.tag)


def test_a_session_that_parks_many_is_served_in_turn_with_the_others() -> None:
    queue, many, one, late = Queue(), session(1), session(2), session(3)
    for _ in range(1000):
        park(queue, many)
    park(queue, one)
    served = []
    for i in range(6):
        first = queue.first()
        assert first is not None
        take_out(queue, first, served=True)
        served.append(first.session.id)
        if first.session is one:
            park(queue, one)
        if i == 1:
            park(queue, late)
    assert served == [1, 2, 1, 2, 3, 1]


def test_the_tag_of_a_waiter_is_one_more_than_that_of_its_session_or_the_last_served() -> None:
    queue, one, other = Queue(), session(1), session(2)
    assert queue.last_served == 0
    waiters = [park(queue, one), park(queue, one), park(queue, one), park(queue, other)]
    assert [each.tag for each in waiters] == [1, 2, 3, 1]
    take_out(queue, waiters[0], served=True)
    take_out(queue, waiters[1], served=True)
    assert park(queue, session(3)).tag == 3
    assert park(queue, one).tag == 4


def test_those_who_are_passed_over_come_back_with_their_session_in_their_old_places() -> None:
    queue, one, other = Queue(), session(1), session(2)
    waiters = [park(queue, one), park(queue, one), park(queue, other)]
    assert queue.first() is waiters[0]
    queue.set_aside()
    assert queue.first() is waiters[2]
    queue.set_aside()
    queue.set_aside()
    assert queue.first() is None
    assert queue.aside == {1: [waiters[0], waiters[1]], 2: [waiters[2]]}
    assert list(queue) == waiters, "they wait all the same"
    queue.bring_back(1)
    assert queue.first() is waiters[0]
    queue.bring_back(2)
    queue.bring_back(2)
    assert queue.aside == {}
    served = []
    while (first := queue.first()) is not None:
        served.append(first)
        take_out(queue, first, served=True)
    assert served == [waiters[0], waiters[2], waiters[1]]


@given(st.lists(st.tuples(st.sampled_from("ppsl"), st.integers(0, 20)), max_size=80))
def test_it_serves_as_the_rule_says_and_two_to_another_session_at_most(
    actions: list[tuple[str, int]],
) -> None:
    queue, owners = Queue(), [session(n) for n in range(1, 5)]
    waiting: list[tuple[int, Waiter]] = []  # tag by the rule, in the order of arrival
    largest_served = 0
    passed: dict[int, list[int]] = {}  # by who waits: the sessions that were served meanwhile
    left_early = False
    for action, number in actions:
        if action == "p":
            owner = owners[number % 4]
            own = [tag for tag, each in waiting if each.session is owner]
            tag = 1 + (own[-1] if own else largest_served)
            waiting.append((tag, park(queue, owner)))
            passed.setdefault(owner.id, [])
        elif action == "l" and waiting:
            _, leaver = waiting.pop(number % len(waiting))
            take_out(queue, leaver, served=False)
            left_early = True
        elif waiting:
            turn = min(waiting, key=lambda each: each[0])
            assert queue.first() is turn[1]
            waiting.remove(turn)
            largest_served = max(largest_served, turn[0])
            take_out(queue, turn[1], served=True)
            for owner_id, others in passed.items():
                if owner_id != turn[1].session.id:
                    others.append(turn[1].session.id)
            passed[turn[1].session.id] = []
        passed = {each.session.id: passed[each.session.id] for _, each in waiting}
        assert [(each.tag, each) for each in queue] == waiting
        if not left_early:
            for others in passed.values():
                assert all(others.count(other) <= 2 for other in others)
