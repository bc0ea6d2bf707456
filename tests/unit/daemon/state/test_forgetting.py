"""What is left of a proxy, a group or a generation that an administrator has forgotten."""

from __future__ import annotations

import pytest

from helpers.decisions import World
from trackd.sessions.identity import Peer, Process
from trackd.state import forgetting, gossip

ADMIN = Peer(0, 0, 1)


@pytest.fixture
def world() -> World:
    """One in which three proxies of two generations are marked and have addresses."""
    world = World(disconnect_threshold=50.0, claim_timeout=0.0)
    rows = [("p0", "g", 0, 50.0), ("p1", "g", 1, 60.0), ("p2", "h", 1, 70.0)]
    names = [row[0] for row in rows]
    addresses = {name: f"{name}:1" for name in names}
    gossip.track(world.decide, world.gossip, rows, dict.fromkeys(names, True), addresses)
    return world


def left(world: World) -> set[str]:
    """Return the proxies that are there, and check that they alone have marks and addresses."""
    tracker = world.state.tracker
    names = set(tracker.names())
    assert tracker.marks.by_name.keys() == names
    assert tracker.targets.by_name.keys() == names
    world.check()
    return names


def test_a_forgotten_proxy_takes_its_mark_and_its_address_along(world: World) -> None:
    assert forgetting.forget_proxy(world.decide, "other", ADMIN) is None
    tombstone = forgetting.forget_proxy(world.decide, "p1", ADMIN)
    assert tombstone is not None
    assert tombstone.until == world.clock.now + 60
    assert left(world) == {"p0", "p2"}


def test_a_forgotten_group_takes_all_of_its_generations_along(world: World) -> None:
    assert forgetting.forget_group(world.decide, "other", None, ADMIN) is None
    found = forgetting.forget_group(world.decide, "g", None, ADMIN)
    assert found is not None
    assert (sorted(found.names), found.until) == (["p0", "p1"], world.clock.now + 60)
    assert left(world) == {"p2"}


def test_of_a_forgotten_generation_nothing_else_goes(world: World) -> None:
    assert forgetting.forget_group(world.decide, "g", 7, ADMIN) is None
    found = forgetting.forget_group(world.decide, "g", 0, ADMIN)
    assert found is not None
    assert (found.names, found.until) == (["p0"], world.clock.now + 50)
    assert left(world) == {"p1", "p2"}


@pytest.mark.rule(7)
def test_a_lease_takes_another_name_when_the_group_of_its_own_is_forgotten() -> None:
    world = World()
    session = world.open(Process(10, 1))
    gossip.track(world.decide, world.gossip, [("a", "g", 1, None), ("b", "h", 1, None)])
    world.decide.adopt(session, ["a", "b"], follow=True)
    assert world.state.tracker.lease_name(1) == "a"
    forgetting.forget_group(world.decide, "g", None, ADMIN)
    assert world.state.tracker.lease_name(1) == "b"


@pytest.mark.parametrize("what", ["proxy", "group"])
def test_what_is_forgotten_restarts_the_wait_for_advice(what: str) -> None:
    world = World(disconnect_threshold=50.0, claim_timeout=0.0)
    session = world.open(Process(10, 1))
    gossip.track(world.decide, world.gossip, [(f"p{i}", f"g{i}", 1, 1000.0) for i in range(4)])
    for i in range(3):
        world.decide.adopt(session, [f"p{i}"])
    world.decide.set_count(1)
    assert world.decide.advice.due() == world.clock.now + 50
    world.clock.now += 5
    if what == "proxy":
        forgetting.forget_proxy(world.decide, "p3", ADMIN)
    else:
        forgetting.forget_group(world.decide, "g3", None, ADMIN)
    assert world.decide.advice.due() == world.clock.now + 50
