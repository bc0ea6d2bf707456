"""The demo judges by what its simulated proxies saw: the judge itself is judged here."""

from __future__ import annotations

import json
import random
import uuid

import pytest

from trackd.demo.network import PROXY_TTL, Ledger, Network, Proxy
from trackd.demo.scenes import SCENES, verdict
from trackd.demo.view import Played, closing_table
from trackd.rules.tracker import Tracker
from trackd_client import Proxy as GossipedProxy
from trackd_client import parse_discovery

CLUSTER = "demo.example.com"


def all_scenes_passed() -> list[Played]:
    return [Played(scene.title, converged_in=1.0, dials=3, duplicates=1) for scene in SCENES]


def proxy(name: str = "east-1-01", group: str = "east", generation: int = 1) -> Proxy:
    return Proxy(name, group, generation, host_id=str(uuid.UUID(int=7)))


def test_one_tunnel_at_each_proxy_keeps_the_invariant() -> None:
    ledger = Ledger()
    ledger.keep("p1", "agent-1")
    ledger.keep("p2", "agent-1")
    assert ledger.broken == []
    assert verdict(all_scenes_passed(), ledger) == 0


@pytest.mark.parametrize("second", ["agent-2", "agent-1"])
def test_two_kept_tunnels_at_one_proxy_are_reported_and_fail_the_demo(second: str) -> None:
    ledger = Ledger()
    ledger.keep("p1", "agent-1")
    ledger.keep("p1", second)
    assert ledger.broken == [f"p1 has 2 tunnels: agent-1, {second}"]
    assert verdict(all_scenes_passed(), ledger) == 1
    table = closing_table(all_scenes_passed(), ledger)
    assert f"BROKEN: p1 has 2 tunnels: agent-1, {second}" in table
    assert "(no proxy ever had two tunnels): broken" in table


def test_a_break_is_still_reported_when_the_second_tunnel_has_ended() -> None:
    ledger = Ledger()
    ledger.keep("p1", "agent-1")
    ledger.keep("p1", "agent-2")
    ledger.close("p1", "agent-2")
    assert ledger.kept == 1
    assert verdict(all_scenes_passed(), ledger) == 1


def test_a_proxy_may_pass_from_one_agent_to_the_next() -> None:
    ledger = Ledger()
    ledger.keep("p1", "agent-1")
    ledger.close("p1", "agent-1")
    ledger.keep("p1", "agent-2")
    assert ledger.broken == []
    assert ledger.holder("p1") == "agent-2"
    assert ledger.held_by("agent-1") == []
    assert ledger.held_by("agent-2") == ["p1"]


def test_the_most_tunnels_ever_kept_are_remembered_until_they_are_forgotten() -> None:
    ledger = Ledger()
    for name in ("p1", "p2", "p3"):
        ledger.keep(name, "agent-1")
    ledger.close("p3", "agent-1")
    assert (ledger.kept, ledger.most_kept) == (2, 3)
    ledger.forget_most_kept()
    assert ledger.most_kept == 2


def test_a_scene_that_failed_or_was_never_played_fails_the_demo() -> None:
    played = all_scenes_passed()
    assert verdict(played, Ledger()) == 0
    assert verdict(played[:-1], Ledger()) == 1
    failed = Played(SCENES[-1].title, None, dials=0, duplicates=0, failure="waited in vain")
    assert verdict([*played[:-1], failed], Ledger()) == 1
    assert "FAILED: waited in vain" in closing_table([*played[:-1], failed], Ledger())


def test_the_closing_table_fits_a_narrow_terminal_and_adds_up() -> None:
    ledger = Ledger()
    for agent in ("agent-1", "agent-2", "agent-2"):
        ledger.dial(agent)
    ledger.duplicate("agent-2")
    lines = closing_table(all_scenes_passed(), ledger).splitlines()
    assert max(map(len, lines)) < 80
    total = next(line for line in lines if line.startswith("all "))
    assert total.split() == ["all", "3", "1"]


def test_gossip_says_what_the_client_understands() -> None:
    payload = json.dumps({"proxies": [proxy().gossip()]})
    assert list(parse_discovery(payload)) == [GossipedProxy("east-1-01", "east", 1, ttl=PROXY_TTL)]


def test_gossip_leaves_out_what_is_empty_or_zero() -> None:
    said = proxy(group="", generation=0).gossip()
    assert sorted(said) == ["metadata", "ttl", "version"]


@pytest.mark.parametrize("tracked", [False, True])
def test_principals_lead_to_the_gossip_name_before_and_after_the_first_gossip(
    *, tracked: bool
) -> None:
    rules = Tracker(cluster_name=CLUSTER, clock=lambda: 0.0)
    if tracked:
        rules.track_expected([GossipedProxy("east-1-01")])
    lease = rules.try_acquire()
    assert lease is not None
    assert rules.claim(lease, proxy().principals(CLUSTER)) == "east-1-01"


def test_a_draining_proxy_is_neither_dialled_nor_gossiped_any_more() -> None:
    network = Network(CLUSTER, random.Random(1))
    old = network.deploy("east", 1, count=2)
    new = network.deploy("east", 2, count=2)
    network.drain(old)
    assert (network.live, network.draining) == (new, old)
    network.remove(old)
    assert network.draining == []


def test_the_same_seed_deploys_the_same_proxies() -> None:
    first, second = (
        [one.principals(CLUSTER) for one in Network(CLUSTER, random.Random(5)).deploy("east", 1, 3)]
        for _ in range(2)
    )
    assert first == second
