"""The writer with one agent, without threads and sockets; a module may have its own instead."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from helpers.writer import ROWS, AgentOf, Clock, Desk, Host


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    with host.seen():
        yield host


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def desk(clock: Clock, host: Host) -> Iterator[Desk]:
    desk = Desk(None, clock, max_outstanding=8)
    yield desk
    desk.kill()


@pytest.fixture
def agent(desk: Desk, host: Host) -> AgentOf:
    """An agent with a session, which has said that there are two proxies."""
    agent = AgentOf(1, host.start(10))
    agent.ask(desk, "open")
    agent.ask(desk, "track_expected", proxies=ROWS, done=[1, 1])
    return agent
