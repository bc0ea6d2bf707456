"""The turns of calls: too many at once wait, unless they wait for their own thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.support import PATIENCE
from trackd_client.core.place import Place
from trackd_client.errors import NoAnswer
from trackd_client.sync import connection
from trackd_client.sync.connection import Connections, Loan
from trackd_client.wire.clock import boottime

MOST = 3


@pytest.fixture
def connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connections]:
    monkeypatch.setattr(connection, "_MOST_CALLS", MOST)
    monkeypatch.setattr(connection, "_MOST_WAITING", MOST)
    connections = Connections(Place(f"ipc://{tmp_path}/s", None))
    yield connections
    connections.close()


def borrow(connections: Connections, *, parks: bool, count: int) -> list[Loan]:
    """Borrow connections in this thread, as calls that are nested in one another do."""
    loans = [connections.lend(parks=parks) for _ in range(count)]
    for loan in loans:
        connections.take(loan)
    return loans


@pytest.mark.parametrize("parks", [False, True], ids=["calls", "waits"])
def test_a_thread_does_not_wait_for_a_turn_that_only_it_could_give_up(
    connections: Connections, parks: bool
) -> None:
    loans = borrow(connections, parks=parks, count=MOST)
    with (
        pytest.raises(NoAnswer, match=f"{MOST} calls of this thread .* within one another"),
        connections.lend(parks=parks, deadline=None),
    ):
        pass
    connections.give_back(loans.pop())
    with connections.lend(parks=parks, deadline=None):
        pass
    for loan in loans:
        connections.give_back(loan)
    assert not any(connections._nested)


def test_a_thread_with_calls_of_its_own_waits_for_the_turn_of_another_thread(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    loans = borrow(connections, parks=False, count=MOST - 1)
    lent, may_end = threading.Event(), threading.Event()

    def call() -> None:
        with connections.lend():
            lent.set()
            may_end.wait(PATIENCE)

    other = threading.Thread(target=call)
    other.start()
    assert lent.wait(PATIENCE)
    loan = connections.lend(deadline=boottime() + PATIENCE)
    wait = connections._await_turn

    def end_the_other(late: Loan) -> None:
        may_end.set()
        wait(late)

    monkeypatch.setattr(connections, "_await_turn", end_the_other)
    connections.take(loan)
    other.join()
    for each in (*loans, loan):
        connections.give_back(each)
