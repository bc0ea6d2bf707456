"""Gossip as the state takes it in: what is stored, and what a restart makes of it."""

from __future__ import annotations

import pytest

from helpers.decisions import World
from trackd.sessions.identity import Peer
from trackd.sessions.sessions import Session
from trackd.state import gossip, timers


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.rule(12)
def test_a_ttl_runs_through_the_time_without_a_daemon(world: World) -> None:
    world.track("short", ttl=10.0)
    world.track("long", ttl=100.0)
    world.commit()
    world.clock.now += 50
    world.restart()
    timers.sweep(world.decide)
    assert [proxy.name for proxy in world.state.tracker] == ["long"]


def test_gossip_without_ttl_keeps_the_default_of_the_moment_it_was_heard(world: World) -> None:
    world.restart(proxy_expiry=60.0)
    world.track("p1")
    expiry = world.clock.now + 60.0
    reloaded = world.reloaded(proxy_expiry=5.0)
    found = reloaded.tracker.get("p1")
    assert found is not None
    assert found.expiry == expiry


def test_a_further_mention_does_what_gossip_that_is_looked_at_closely_does(world: World) -> None:
    rows: list[tuple[str, str, int, float | None]]
    rows = [("p1", "", 1, None), ("p2", "", 1, 9.0), ("p3", "", 1, 9.0)]
    rows.append(("p1", "", 1, 50.0))
    others = World()
    for each in (world, others):
        gossip.track(each.decide, each.gossip, [(f"p{i}", "", 1, 30.0 * i) for i in (1, 2, 3)])
        each.check()
        each.clock.now += 1.0
    speaker = Session(7, b"", Peer(0, 0, 0), None, "", "", {}, 0.0, 0.0)
    revision = world.state.revision
    gossip.mention(world.decide, speaker, rows)
    gossip.track(others.decide, speaker, rows)
    assert world.state.revision == revision
    assert sorted(world.state.tracker) == sorted(others.state.tracker)
    for each in (world, others):
        mentions = each.state.tracker.mentions
        assert [mentions.of(name).by for name in ("p1", "p2", "p3")] == [7, 7, 7]
    assert world.metrics.gossip_proxies == others.metrics.gossip_proxies
    world.check()


def test_gossip_repeated_with_a_ttl_for_each_proxy_is_one_change(world: World) -> None:
    """Else such a message would cost as much as a change for each proxy."""
    names = [f"p{i}" for i in range(100)]
    gossip.track(
        world.decide, world.gossip, [(name, "", 1, 100.0 + i) for i, name in enumerate(names)]
    )
    world.check()
    rows = [(name, "", 1, 200.0 + i) for i, name in enumerate(names)]
    rows[50] = ("p50", "", 1, 1.0)
    made = world.decide.made
    gossip.mention(world.decide, world.gossip, rows)
    assert world.decide.made == made + 1
    ttls = [world.state.tracker.mentions.of(name).ttl for name in names]
    assert ttls == [row[3] for row in rows]
    assert world.state.tracker.next_expiry == world.clock.now + 1.0
    world.check()
