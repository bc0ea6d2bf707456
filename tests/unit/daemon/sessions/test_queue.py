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
    return Waiter(SESSION, order, order, deadline, b"route")


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
