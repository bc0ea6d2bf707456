"""A claim that gossip knows by another of the names that it presented."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.writer import AgentOf, Clock, Desk

NAMES = ["host1.example.com", "uuid1.example.com", "uuid1"]


class World:
    """A daemon and two agents at it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = Clock()
        self.desk = Desk(directory, self.clock)
        self.one, self.other = AgentOf(1, None, uid=1000), AgentOf(2, None, uid=1000)
        for each in (self.one, self.other):
            each.ask(self.desk, "open")

    def track(self, *names: str, ttl: float | None = None) -> None:
        self.one.ask(self.desk, "track_expected", proxies=[[name, "", 1, ttl] for name in names])

    def claim(self, agent: AgentOf, *principals: str) -> int:
        lease: int = agent.ask(self.desk, "try_acquire")["lease"]
        assert agent.ask(self.desk, "claim", lease=lease, principals=[*principals])["claimed"]
        return lease

    def held(self) -> dict[int, str | None]:
        return dict(self.desk.state.tracker.leases)

    def last(self) -> list[Any]:
        events: list[Any] = self.other.ask(self.desk, "log")["events"][-1][3:]
        return events


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.desk.kill()


def test_gossip_that_comes_after_the_claim_brings_no_second_tunnel(world: World) -> None:
    lease = world.claim(world.one, *NAMES)
    assert world.held() == {lease: "host1"}
    world.track("uuid1")
    assert world.held() == {lease: "uuid1"}
    assert world.last() == [
        "proxy_claimed",
        {"name": "uuid1", "lease": lease, "session": 1, "before": "host1", "cause": "renamed"},
    ]
    assert world.other.ask(world.desk, "try_acquire")["lease"] is None, "nothing is missing"
    reply = world.other.ask(world.desk, "is_claimed", principals=NAMES)
    assert (reply["claimed"], reply["name"]) == (True, "uuid1")
    assert world.desk.actor._runtime.metrics.claims == 1
    world.one.ask(world.desk, "release", lease=lease)
    assert world.other.ask(world.desk, "try_acquire")["lease"]


def test_the_name_that_rule_7_makes_of_the_first_counts_as_well(world: World) -> None:
    world.track("uuid1", ttl=5.0)
    lease = world.claim(world.one, *NAMES)
    assert world.held() == {lease: "uuid1"}
    world.track("host1", ttl=50.0)
    assert world.held() == {lease: "uuid1"}, "what is tracked is never given up"
    world.clock.now += 6.0
    world.desk.sweep()
    assert world.held() == {lease: "host1"}
    assert world.other.ask(world.desk, "try_acquire")["lease"] is None


def test_a_name_that_is_forgotten_gives_way_to_another(world: World) -> None:
    world.track("uuid1", "host1.example.com")
    lease = world.claim(world.one, *NAMES)
    assert world.held() == {lease: "host1.example.com"}
    root = AgentOf(3, None, uid=0)
    root.ask(world.desk, "open")
    assert root.ask(world.desk, "forget", name="host1.example.com")["forgotten"]
    assert world.held() == {lease: "uuid1"}


def test_of_two_claims_that_presented_a_name_the_first_gets_it(world: World) -> None:
    first = world.claim(world.one, "a", "common")
    second = world.one.ask(world.desk, "adopt", principals=["b", "common"])["lease"]
    world.track("common")
    assert world.held() == {first: "common", second: "b"}
    world.one.ask(world.desk, "release", lease=first)
    world.track("b", "common")
    assert world.held() == {second: "b"}


def test_a_name_that_another_lease_holds_is_left_to_it(world: World) -> None:
    first = world.claim(world.one, "a")
    second = world.one.ask(world.desk, "adopt", principals=["b", "x", "a.example.com"])["lease"]
    world.track("a", "c")
    assert world.held() == {first: "a", second: "b"}


def test_a_restart_keeps_the_name_and_goes_on_from_what_was_presented(world: World) -> None:
    first = world.claim(world.one, *NAMES)
    second = world.one.ask(world.desk, "adopt", principals=["host2", "uuid2"])["lease"]
    world.track("uuid1")
    world.desk.kill()
    world.desk = Desk(world.directory, world.clock)
    assert world.held() == {first: "uuid1", second: "host2"}
    world.track("uuid2")
    assert world.held() == {first: "uuid1", second: "uuid2"}
    presented = world.desk.state.presented
    assert presented.of("uuid2") == [second]
    world.one.ask(world.desk, "release", lease=second)
    assert presented.of("uuid2") == []
