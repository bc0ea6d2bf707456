"""Rule 7 in the daemon: a lease that follows takes the name that gossip has for its proxy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from helpers.writer import AgentOf, Clock, Desk, Host, open_session

pytestmark = pytest.mark.rule(7)

PRESENTED = ("host1.example.com", "uuid1.example.com", "uuid1")


class World:
    """A daemon with its clock, and two agents."""

    def __init__(self, directory: Path, host: Host) -> None:
        self.clock = Clock()
        self._directory = directory
        self.desk = self._start()
        self.one, self.other = (open_session(self.desk, host, number) for number in (1, 2))

    def _start(self) -> Desk:
        return Desk(self._directory, self.clock, admin_users=(1000,))

    def restart(self) -> None:
        """Kill the daemon, and start another one on its state."""
        self.desk.kill()
        self.desk = self._start()

    def ask(self, agent: AgentOf, op: str, **fields: Any) -> dict[str, Any]:
        return agent.ask(self.desk, op, **fields)

    def gossip(self, *names: str, by: AgentOf | None = None, ttl: float | None = None) -> None:
        self.ask(by or self.other, "track_expected", proxies=[[name, "", 1, ttl] for name in names])

    def claim(
        self, *principals: str, by: AgentOf | None = None, follow: bool = True
    ) -> tuple[int, dict[str, Any]]:
        """Adopt a proxy, and return the lease and the reply."""
        presented: Sequence[str] = principals or PRESENTED
        reply = self.ask(by or self.one, "adopt", principals=list(presented), follow=follow)
        return reply["lease"], reply

    def name_of(self, lease: int) -> str | None:
        return self.desk.state.tracker.lease_name(lease)

    def is_claimed(self, *principals: str) -> bool:
        claimed: bool = self.ask(self.other, "is_claimed", principals=list(principals))["claimed"]
        return claimed

    def notices(self, agent: AgentOf) -> list[dict[str, Any]]:
        notices: list[dict[str, Any]] = self.ask(agent, "watch_session")["notices"]
        return notices

    def events(self, *kinds: str) -> list[tuple[str, Mapping[str, Any]]]:
        events = self.desk.state.history.after(0, 1000)
        return [(kind, fields) for _, _, _, kind, fields in events if kind in kinds]


@pytest.fixture
def world(tmp_path: Path, host: Host) -> Iterator[World]:
    world = World(tmp_path, host)
    yield world
    world.desk.kill()


def renamed(lease: int, name: str) -> dict[str, Any]:
    return {"notice": "renamed", "lease": lease, "name": name}


def test_gossip_of_another_agent_renames_a_claim(world: World) -> None:
    lease, reply = world.claim()
    assert reply["name"] == "host1"
    world.gossip("uuid1")
    assert world.name_of(lease) == "uuid1"
    assert world.ask(world.other, "try_acquire")["lease"] is None, "nothing is missing"
    assert world.claim(by=world.other)[0] is None
    assert world.is_claimed("host1.example.com", "uuid1")
    assert not world.is_claimed("host1")
    assert world.notices(world.one) == [renamed(lease, "uuid1")]
    fields = {"lease": lease, "session": 1, "name": "uuid1", "before": "host1"}
    assert world.events("lease_renamed") == [("lease_renamed", fields)]


def test_a_dial_that_reaches_the_proxy_meets_the_claim_by_any_of_its_names(world: World) -> None:
    world.claim("host1.example.com", "uuid1.example.com")
    world.gossip("uuid1", "p2")
    lease = world.ask(world.other, "try_acquire")["lease"]
    fields = {"lease": lease, "principals": ["host1.example.com", "uuid1.example.com"]}
    reply = world.ask(world.other, "claim", **fields, follow=True)
    assert (reply["claimed"], reply["name"], reply["reason"]) == (False, "uuid1", "held")
    assert world.ask(world.other, "claim", **fields)["claimed"], "it was not asked to follow"


def test_gossip_that_comes_before_the_claim_gives_it_the_shortened_name(world: World) -> None:
    world.gossip("uuid1")
    assert world.claim("host1.example.com", "uuid1.example.com")[1]["name"] == "uuid1"


def test_without_the_wish_to_follow_a_claim_keeps_its_name(world: World) -> None:
    lease, _ = world.claim(follow=False)
    world.gossip("uuid1")
    assert world.name_of(lease) == "host1"
    assert world.ask(world.other, "try_acquire")["lease"] is not None


def test_a_claim_by_a_tracked_name_keeps_it_until_gossip_stops_to_name_it(world: World) -> None:
    world.gossip("host1", ttl=10.0)
    lease, _ = world.claim()
    world.gossip("uuid1", ttl=100.0)
    assert world.name_of(lease) == "host1", "gossip has two names for it, and counts both"
    world.clock.now += 11.0
    world.desk.sweep()
    assert world.name_of(lease) == "uuid1"


@pytest.mark.parametrize("group", [False, True])
def test_a_claim_takes_the_other_name_when_an_admin_has_its_own_forgotten(
    world: World, *, group: bool
) -> None:
    world.gossip("host1")
    lease, _ = world.claim()
    rows = [["uuid1", "g", 1, None]]
    world.ask(world.other, "track_expected", proxies=rows)
    world.ask(world.other, "forget", **({"group": ""} if group else {"name": "host1"}))
    assert world.name_of(lease) == "uuid1"


def test_it_follows_after_a_restart_by_any_of_many_names(world: World) -> None:
    lease, _ = world.claim(*(f"name{number}" for number in range(20)))
    world.restart()
    rows = world.ask(world.other, "snapshot", of="leases")["rows"]
    assert len(rows[0]["principals"]) == 8, "a listing has the first ones"
    world.gossip("name19")
    assert world.name_of(lease) == "name19"
    world.restart()
    assert world.name_of(lease) == "name19"
    assert world.notices(world.one) == [renamed(lease, "name19")]


def test_a_claim_follows_when_the_name_becomes_free(world: World) -> None:
    """Both are tunnels to one proxy, and the one that gossip does not know is advised to close."""
    lease, _ = world.claim()
    second, _ = world.claim("uuid1", by=world.other, follow=False)
    world.gossip("uuid1")
    assert world.name_of(lease) == "host1"
    assert world.notices(world.one) == [{"notice": "should_close", "lease": lease}]
    assert world.ask(world.other, "release", lease=second)["released"]
    assert world.name_of(lease) == "uuid1"


def test_a_released_lease_follows_nothing(world: World) -> None:
    lease, _ = world.claim()
    world.ask(world.one, "release", lease=lease)
    world.gossip("uuid1")
    assert not world.is_claimed("uuid1")
    assert not world.desk.state.aliases.by_lease


def test_of_two_leases_that_may_be_meant_the_older_one_follows(world: World) -> None:
    first, _ = world.claim("host1", "lb")
    second, _ = world.claim("host2", "lb", by=world.other)
    world.gossip("lb")
    assert (world.name_of(first), world.name_of(second)) == ("lb", "host2")
    assert world.notices(world.other) == [{"notice": "should_close", "lease": second}]


def test_an_offer_and_the_mark_of_a_retired_proxy_go_with_the_name(world: World) -> None:
    lease, _ = world.claim()
    world.ask(world.one, "retire", lease=lease)
    world.ask(world.one, "offer", lease=lease)
    world.gossip("uuid1", "p2")
    tracker = world.desk.state.tracker
    assert tracker.is_terminating("uuid1")
    assert tracker.marks.by_name.keys() == {"uuid1"}
    assert tracker.is_offered(lease)
    marked = ("proxy_marked", {"name": "uuid1", "terminating": True, "session": 1})
    assert world.events("proxy_marked") == [marked]
    world.restart()
    assert world.desk.state.tracker.is_offered(lease)


def test_a_lease_follows_to_the_name_of_one_that_is_offered(world: World) -> None:
    second, _ = world.claim("uuid1", by=world.other, follow=False)
    world.ask(world.other, "offer", lease=second)
    lease, _ = world.claim("host1.example.com", "x", "uuid2")
    assert world.name_of(lease) == "host1"
    third, _ = world.claim("y", "uuid1.example.com")
    assert world.name_of(third) == "uuid1", "it takes over what is offered"
    assert world.notices(world.other)[0]["cause"] == "handed_over"


@pytest.mark.parametrize("value", [1, "yes", [True]])
def test_whether_to_follow_is_true_or_false(world: World, value: object) -> None:
    for op in ("adopt", "claim"):
        fields = {"lease": 1, "principals": ["p1"], "follow": value}
        reply = world.ask(world.one, op, **fields)
        assert (reply["error"], reply["message"]) == (
            "invalid_argument",
            "follow must be true or false",
        )
