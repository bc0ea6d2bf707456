"""The ticker: a sweep for each moment that it was told, soon after it, and never two at a time."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pykka
import pytest

from helpers.support import PATIENCE
from trackd.actors.messages import Ping, Sweep, WakeAt
from trackd.actors.ticker import ExpiryTicker


class Clock:
    """A clock that stands still until it is set, unless it follows the real one."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Tracker(pykka.ThreadingActor):
    """Stands where the tracker does, and keeps what it is told."""

    def __init__(self, told: queue.SimpleQueue[Any]) -> None:
        super().__init__()
        self._told = told

    def on_receive(self, message: Any) -> None:
        self._told.put(message)


Start = Callable[[Callable[[], float]], pykka.ActorRef[ExpiryTicker]]


@pytest.fixture
def told() -> queue.SimpleQueue[Any]:
    return queue.SimpleQueue()


@pytest.fixture
def ended() -> queue.SimpleQueue[str]:
    return queue.SimpleQueue()


@pytest.fixture
def start(told: queue.SimpleQueue[Any], ended: queue.SimpleQueue[str]) -> Iterator[Start]:
    def started(clock: Callable[[], float]) -> pykka.ActorRef[ExpiryTicker]:
        tracker = Tracker.start(told)
        return ExpiryTicker.start(lambda name, _thread: ended.put(name), tracker, clock)

    yield started
    pykka.ActorRegistry.stop_all(timeout=PATIENCE)


def test_it_answers_that_it_is_there(start: Start) -> None:
    start(time.monotonic).ask(Ping(), timeout=PATIENCE)


def test_it_tells_a_sweep_soon_after_the_moment_and_not_before(
    start: Start, told: queue.SimpleQueue[Any]
) -> None:
    ticker = start(time.monotonic)
    late = []
    for _ in range(5):
        moment = time.monotonic() + 0.02
        ticker.tell(WakeAt(moment))
        assert isinstance(told.get(timeout=PATIENCE), Sweep)
        late.append(time.monotonic() - moment)
    assert min(late) > 0
    assert sorted(late)[2] < 5, "the machine may stand still once"
    assert told.empty()


def test_it_tells_one_sweep_for_each_moment_however_late_the_next_is(
    start: Start, told: queue.SimpleQueue[Any], clock: Clock
) -> None:
    ticker = start(clock)
    clock.now = 2000.0
    ticker.tell(WakeAt(1500.0))
    assert isinstance(told.get(timeout=PATIENCE), Sweep)
    for _ in range(3):
        ticker.ask(Ping(), timeout=PATIENCE)
    assert told.empty(), "nothing more until the tracker says when"
    ticker.tell(WakeAt(1600.0))
    assert isinstance(told.get(timeout=PATIENCE), Sweep)


def test_the_newest_moment_takes_the_place_of_the_one_before(
    start: Start, told: queue.SimpleQueue[Any], clock: Clock
) -> None:
    ticker = start(clock)
    ticker.tell(WakeAt(9000.0))
    ticker.tell(WakeAt(1500.0))
    ticker.ask(Ping(), timeout=PATIENCE)
    clock.now = 1600.0
    ticker.tell(WakeAt(None))
    ticker.ask(Ping(), timeout=PATIENCE)
    clock.now = 9500.0
    ticker.ask(Ping(), timeout=PATIENCE)
    # That of 1500 may have come between the two, and may still be on its way to us.
    assert told.qsize() <= 1, "None: never"
    ticker.tell(WakeAt(9400.0))
    assert isinstance(told.get(timeout=PATIENCE), Sweep)


def test_it_costs_nothing_while_nothing_is_due(start: Start, told: queue.SimpleQueue[Any]) -> None:
    ticker = start(time.monotonic)
    ticker.tell(WakeAt(time.monotonic() + 3600))
    ticker.ask(Ping(), timeout=PATIENCE)
    (thread,) = (each for each in threading.enumerate() if each.name.startswith("ExpiryTicker"))
    assert thread.ident is not None
    clock = time.pthread_getcpuclockid(thread.ident)  # other threads of the tests may be busy
    before = time.clock_gettime(clock)
    time.sleep(0.2)
    assert time.clock_gettime(clock) - before < 0.1
    assert told.empty()


def test_its_end_is_told_whether_asked_for_or_not(
    start: Start, ended: queue.SimpleQueue[str], clock: Clock
) -> None:
    start(clock).stop()
    assert ended.get(timeout=PATIENCE) == "ExpiryTicker"
    start(clock).tell("nonsense")  # its mistake ends it, and it says so
    assert ended.get(timeout=PATIENCE) == "ExpiryTicker"
