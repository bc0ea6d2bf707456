"""The steps of a change, one by one: after each of them all that follows from it is known."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import pytest

from trackd.rules.marks import UNMARKED, Mark
from trackd.rules.registry import Place, Registry
from trackd.rules.targets import Address, Aim

SAID = Mark(50.0, None)
AIM = Aim("p1", "p1:1")


@pytest.fixture
def registry() -> Registry:
    """A registry with two proxies, of which one has an address."""
    registry = Registry("example.com")
    registry.put([("p1", "g", 1, None), ("p2", "g", 1, None)])
    registry.mentions.add(1, ["p1", "p2"], 100.0, 30.0, 0)
    registry.put_address("p1", Address("p1:1", 0, 7.0))
    return registry


def test_a_proxy_that_moves_is_aimed_at_in_its_new_place(registry: Registry) -> None:
    registry.put([("p1", "h", 1, None)])
    assert registry.place("p1") == Place("h", 1)
    assert registry.targets.next_aim(("", 0)) == AIM
    registry.put([("p2", "h", 2, None)])
    assert registry.targets.next_aim(("", 0)) is None, "its generation is not desired any more"
    registry.put([("p1", "h", 2, None)])
    assert registry.targets.next_aim(("", 0)) == AIM


def test_a_mark_takes_a_proxy_from_the_targets_and_keeps_the_source_of_its_group(
    registry: Registry,
) -> None:
    registry.note_source("p1", 7)
    registry.mark("p1", SAID)
    assert registry.targets.next_aim(("", 0)) is None
    assert registry.source_of("g") == 7
    registry.mark("p2", SAID)
    assert registry.source_of("g") == 7
    assert registry.targets.next_aim(("", 0)) == AIM, "the whole group is marked"
    registry.mark("p2", UNMARKED)
    registry.note_source("p2", 8)
    registry.mark("p1", UNMARKED)
    assert registry.source_of("g") == 8, "the latest counts"
    assert registry.targets.next_aim(("", 0)) == AIM


def test_what_gossip_is_compared_with_has_another_edition_after_each_change(
    registry: Registry,
) -> None:
    changes: list[Callable[[], object]] = [
        lambda: registry.put([("p3", "g", 1, None)]),
        lambda: registry.put([("p1", "h", 1, None)]),
        lambda: registry.mark("p1", SAID),
        lambda: registry.mark("p1", UNMARKED),
        lambda: registry.put_address("p1", Address("p1:2", 0, 7.0)),
        lambda: registry.put_address("p1", None),
        lambda: registry.put_address("p1", Address("p1:1", 0, 7.0)),
        lambda: registry.drop(["p1"]),
    ]
    editions = [Registry("example.com").edition, registry.edition]
    for change in changes:
        change()
        editions.append(registry.edition)
    assert len(set(map(id, editions))) == 2 + len(changes)


def test_only_what_gossip_said_ends_with_it(registry: Registry) -> None:
    registry.mark("p1", SAID._replace(retired=60.0))
    registry.mark("p3", Mark(None, 60.0))
    assert registry.without_gossip(["p1", "p2", "p3"]) == {"p1": Mark(None, 60.0)}


def test_a_lease_that_holds_a_name_takes_it_from_the_targets(registry: Registry) -> None:
    lease = registry.grant()
    assert registry.targets.next_aim(("", 0)) == AIM
    registry.hold(lease, "p1")
    assert registry.targets.next_aim(("", 0)) is None
    assert registry.free(lease) == "p1"
    assert registry.targets.next_aim(("", 0)) == AIM


@pytest.mark.parametrize("ends", ["holds", "is gone"])
def test_an_aim_ends_with_its_lease_although_the_address_is_gone(
    registry: Registry, ends: str
) -> None:
    lease = registry.grant()
    registry.aim(lease, AIM)
    assert registry.targets.next_aim(("", 0)) is None
    registry.put_address("p1", None)
    if ends == "holds":
        registry.hold(lease, "p2")
    else:
        assert registry.free(lease) is None
    assert (registry.targets.aims, registry.targets.aimed) == ({}, {})
    registry.put_address("p1", Address("p1:1", 0, 8.0))
    assert registry.targets.next_aim(("", 0)) == AIM


def test_a_name_that_is_offered_is_aimed_at_until_its_lease_ends(registry: Registry) -> None:
    lease = registry.grant()
    registry.hold(lease, "p1")
    registry.put_offer(lease)
    assert registry.is_offered(lease)
    assert registry.is_available("p1")
    assert registry.offered_desired_count == 1
    assert registry.targets.next_aim(("", 0)) == AIM
    registry.free(lease)
    assert not registry.is_offered(lease)
    assert registry.offered_desired_count == 0


def test_a_claim_that_is_not_tracked_may_be_offered(registry: Registry) -> None:
    lease = registry.grant()
    registry.hold(lease, "p9")
    registry.put_offer(lease)
    assert registry.offered_desired_count == 0
    registry.put([("p9", "g", 1, None)])
    assert registry.offered_desired_count == 1
    registry.mentions.add(2, ["p9"], 100.0, 30.0, 0)
    registry.drop(["p9"])
    assert registry.offered_desired_count == 0
    assert registry.is_offered(lease)


def test_the_hold_of_a_retired_name_is_five_seconds_and_no_longer_than_its_ttl(
    registry: Registry,
) -> None:
    assert registry.retire_hold("p1", 10.0) == Mark(None, 15.0)
    registry.mentions.add(2, ["p1"], 100.0, 2.5, 0)
    registry.mark("p1", Mark(50.0, inf))
    assert registry.retire_hold("p1", 10.0) == Mark(50.0, 12.5)
    assert registry.retire_hold("p9", 10.0) == Mark(None, 15.0), "it is not tracked"


def test_whose_addresses_are_shared_holds_for_those_that_are_known(registry: Registry) -> None:
    registry.put_address("p1", Address("p1:1", 1000, 7.0))
    registry.share_targets("same_uid")
    users = (("", 1000), ("", 1001), ("h", 1000))
    assert [registry.targets.next_aim(user) for user in users] == [AIM, None, None]
    registry.share_targets("off")
    assert registry.targets.next_aim(("", 1000)) is None
    registry.share_targets("any")
    assert registry.targets.next_aim(("", 1001)) == AIM


@pytest.mark.parametrize("expiry", [0.5, 1.0, 30.0])
def test_a_mention_without_ttl_expires_after_what_was_set(
    registry: Registry, expiry: float
) -> None:
    registry.proxy_expiry = expiry
    assert registry.proxy_expiry == expiry
    assert [registry.ttl_used(ttl) for ttl in (None, 0.0, -1.0, 0.25)] == [expiry] * 3 + [0.25]
    registry.proxy_expiry = 0
    assert registry.proxy_expiry == 180.0


def test_names_of_a_group_are_found_by_their_generations(registry: Registry) -> None:
    registry.put([("p3", "g", 2, None), ("p4", "g", 3, None), ("p5", "h", 2, None)])
    assert registry.names_of("g", 1, 2) == ["p1", "p2", "p3"]
    assert registry.names_of("g", 2, 3) == ["p3", "p4"]
    assert (registry.largest("g"), registry.newest("g"), registry.largest("x")) == (3, 3, None)


def test_groups_that_changed_are_taken_once_with_their_counts(registry: Registry) -> None:
    registry.watch_groups()
    lease = registry.grant()
    registry.hold(lease, "p1")
    registry.put([("p3", "h", 1, None)])
    assert sorted(registry.take_changed_groups()) == [("g", 2, 1), ("h", 1, 1)]
    assert registry.take_changed_groups() == []


def test_names_may_be_dropped_as_they_come(registry: Registry) -> None:
    registry.drop(name for name in ("p1", "p2"))
    assert (registry.tracked_count, registry.desired_count, registry.next_expiry) == (0, 0, None)


def test_a_tunnel_to_a_terminating_proxy_is_not_missing(registry: Registry) -> None:
    assert (registry.target, registry.missing_count) == (2, 2)
    lease = registry.grant()
    registry.hold(lease, "p1")
    assert registry.missing_count == 1
    registry.mark("p1", SAID)
    assert (registry.target, registry.claimed_terminating_count) == (1, 1)
    assert registry.missing_count == 0
    registry.hold(registry.grant(), "p2")
    assert registry.missing_count == 0


def test_an_offered_lease_is_replaced_once_the_target_is_met_without_it(
    registry: Registry,
) -> None:
    registry.drop(["p2"])
    assert registry.replaced == []
    lease = registry.grant()
    registry.hold(lease, "p1")
    registry.put_offer(lease)
    assert (registry.target, registry.replaced) == (1, [])
    registry.put([("p3", "g", 1, None)])
    registry.set_connection_count(1)
    assert registry.replaced == []
    registry.hold(registry.grant(), "p3")
    assert (registry.target, registry.replaced) == (1, [lease])


def test_names_are_those_that_are_tracked_and_those_that_are_claimed(registry: Registry) -> None:
    registry.hold(registry.grant(), "p1")
    registry.hold(registry.grant(), "p9")
    assert registry.names() == ["p1", "p2", "p9"]
    assert (registry.group_count, registry.first_groups()) == (1, [("g", 1, 2, 2, 1)])


def test_no_more_names_are_missing_than_are_asked_for_and_are_there(registry: Registry) -> None:
    registry.put([(f"q{number}", "g", 1, None) for number in range(3)])
    registry.hold(registry.grant(), "p2")
    assert registry.missing(0) == registry.missing(-1) == []
    assert registry.missing(2) == ["p1", "q0"]
    assert registry.missing(99) == ["p1", "q0", "q1", "q2"]


@pytest.mark.parametrize(("cluster", "expiry"), [(b"c", 1.0), ("", 1.0), ("c", "1"), ("c", inf)])
def test_wrong_settings_are_refused(cluster: Any, expiry: Any) -> None:
    wrong = "proxy_expiry" if cluster == "c" else "cluster_name"
    with pytest.raises(ValueError, match=wrong):
        Registry(cluster, expiry)


def test_groups_are_summed_up_with_their_generations(registry: Registry) -> None:
    registry.put([("p3", "g", 2, None)])
    assert registry.groups() == [("g", 2, 3, 1, 0, {1: 2, 2: 1})]


def test_leases_in_flight_count_for_the_target(registry: Registry) -> None:
    needs = [registry.need]
    for _ in range(2):
        registry.grant()
        needs.append(registry.need)
    registry.free(1)
    assert [*needs, registry.need] == [True, True, False, True]


@pytest.mark.rule(6)
def test_one_lease_is_granted_without_need_while_nothing_is_in_flight_or_claimed_and_tracked(
    registry: Registry,
) -> None:
    granted = [registry.bootstrap]
    lease = registry.grant()
    granted.append(registry.bootstrap)
    registry.hold(lease, "p1")
    granted.append(registry.bootstrap)
    registry.drop(["p1", "p2"])
    granted.append(registry.bootstrap)
    assert granted == [True, False, False, True], "in flight; claimed and tracked; not tracked"
    registry.grant()
    assert not registry.bootstrap


@pytest.mark.parametrize("is_offered", [False, True])
def test_a_lease_takes_another_name_and_stays_offered(
    registry: Registry, *, is_offered: bool
) -> None:
    lease = registry.grant()
    registry.hold(lease, "p1.local")
    if is_offered:
        registry.put_offer(lease)
    registry.rename(lease, "p1")
    assert dict(registry.leases) == {lease: "p1"}
    assert (registry.holder("p1"), registry.holder("p1.local")) == (lease, None)
    assert (registry.claimed_desired_count, registry.offered_desired_count) == (1, is_offered)
    assert registry.is_offered(lease) == is_offered
    assert registry.free(lease) == "p1"
    assert (registry.claimed_desired_count, registry.offered_desired_count) == (0, 0)


def test_a_name_may_be_known_as_written_or_without_the_cluster(registry: Registry) -> None:
    assert registry.aliases_of(["a.example.com", "b", "b", "", ".example.com"]) == [
        "a.example.com",
        "b",
        ".example.com",
        "a",
    ]
    registry.hold(registry.grant(), "held")
    for principals, name in (
        (["x.example.com", "p1"], "p1"),
        (["x", "p1.example.com"], "p1"),
        (["x", "held"], "held"),
        (["x", "held.example.com"], "held"),
        (["x.example.com", "y"], "x"),
        ([], None),
    ):
        assert registry.resolve_to_follow(principals) == name
