"""Who said what is known of living sessions and of a thousand that have ended."""

from __future__ import annotations

import pytest

from helpers.decisions import World
from trackd.sessions.identity import Peer, Process
from trackd.state import gossip
from trackd.state.sources import Source, Sources, source_of


@pytest.fixture
def world() -> World:
    return World()


def test_a_source_is_described_while_it_lives_and_after_its_end(world: World) -> None:
    session = world.open(Process(10, 1))
    gossip.track(world.decide, session, [("p1", "", 1, None)])
    sources, sessions = world.state.sources, world.state.sessions
    fields = {"session": 1, "uid": 1000, "pid": 10, "agent": "name", "ended": False}
    assert sources.describe(session.id, sessions) == fields
    world.decide.end_session(session, "closed")
    assert sources.describe(session.id, sessions) == fields | {"ended": True}
    assert sources.describe(None, sessions) is None
    nobody = {"session": 99, "uid": None, "pid": None, "agent": "", "ended": True}
    assert sources.describe(99, sessions) == nobody


def test_a_source_of_another_host_is_described_with_it(world: World) -> None:
    peer = Peer(1000, 1000, 10, "web-1")
    session = world.decide.open_session(b"t" * 16, peer, None, "", "1", {}, "agent")
    assert source_of(session) == Source(1000, 10, "agent", "web-1"), "without a name its command"
    found = world.state.sources.describe(session.id, world.state.sessions)
    assert found is not None
    assert found["host"] == "web-1"


def test_of_those_that_ended_a_thousand_are_remembered_the_oldest_go_first() -> None:
    sources = Sources()
    for number in range(1, 1001):
        assert sources.too_many() == []
        sources.add(number, Source(0, number, ""))
    assert sources.too_many() == [1]
    sources.add(1001, Source(0, 1001, ""))
    assert sources.too_many() == [1, 2]
    sources.drop(1)
    assert sources.get(1) is None
    with pytest.raises(KeyError):
        sources.drop(1)
