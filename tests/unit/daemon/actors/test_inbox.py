"""The inbox: messages in order, and a receive timeout soon after its moment, never before."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from helpers.support import PATIENCE
from trackd.actors import inbox as module
from trackd.actors.inbox import Envelope, Inbox, ReceiveTimeout


class Clock:
    """A clock that stands still until it is set, unless it follows the real one."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def inbox(clock: Clock) -> Iterator[Inbox]:
    inbox = Inbox(clock)
    yield inbox
    inbox.close()
    os.close(inbox._wake)


def test_the_inbox_gives_its_messages_in_order(inbox: Inbox) -> None:
    assert inbox.empty()
    for number in range(3):
        inbox.put(Envelope(number))
    assert not inbox.empty()
    assert [inbox.get().message for _ in range(3)] == [0, 1, 2]


def test_a_moment_that_has_passed_is_due_at_once_and_once(inbox: Inbox) -> None:
    inbox.wake_at = 999.0
    inbox.put(Envelope("message"))
    assert isinstance(inbox.get().message, ReceiveTimeout)
    assert inbox.get().message == "message"
    assert inbox.wake_at is None


def test_at_exactly_its_moment_nothing_is_due_yet(inbox: Inbox, clock: Clock) -> None:
    """A proxy still counts at exactly its expiry."""
    inbox.wake_at = 1000.0
    inbox.put(Envelope("message"))
    assert inbox.get().message == "message"
    clock.now = 1000.002
    assert isinstance(inbox.get().message, ReceiveTimeout)


def test_a_message_is_not_held_up_by_a_moment_to_come(inbox: Inbox) -> None:
    inbox.wake_at = 5000.0
    inbox.put(Envelope("message"))
    begun = time.monotonic()
    assert inbox.get().message == "message"
    assert time.monotonic() - begun < PATIENCE  # the moment is 4,000 s away


def test_without_a_moment_it_sleeps_until_a_message_comes(inbox: Inbox, clock: Clock) -> None:
    got: list[Any] = []
    reader = threading.Thread(target=lambda: got.append(inbox.get().message))
    reader.start()
    clock.now = 10_000.0
    reader.join(0.05)
    assert reader.is_alive()
    inbox.put(Envelope("message"))
    reader.join(PATIENCE)
    assert got == ["message"]


def test_a_clock_that_jumps_over_the_moment_is_noticed(
    inbox: Inbox, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Timed waits stand still in suspend; the clock does not. So no wait is long."""
    assert module.LONGEST_WAIT <= 5.0
    monkeypatch.setattr(module, "LONGEST_WAIT", 0.02)
    inbox.wake_at = 4000.0
    got: list[Any] = []
    reader = threading.Thread(target=lambda: got.append(inbox.get().message))
    reader.start()
    reader.join(0.05)
    assert reader.is_alive()
    clock.now = 4000.5
    reader.join(PATIENCE)
    assert isinstance(got[0], ReceiveTimeout)
