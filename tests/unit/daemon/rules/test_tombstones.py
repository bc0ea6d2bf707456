"""Which gossip of a forgotten proxy or group is ignored, until when, and how many are kept."""

from __future__ import annotations

import pytest

from trackd.rules import tombstones as tombstones_module
from trackd.rules.registry import Place
from trackd.rules.tombstones import GroupTombstone, Tombstones

UNTIL = 100.0


def keeps_away(
    tombstones: Tombstones, name: str, group: str, generation: int, now: float = UNTIL
) -> bool:
    return tombstones.keeps_away((name, group, generation, None), now)


def test_gossip_of_the_same_group_and_of_no_newer_generation_is_ignored() -> None:
    tombstones = Tombstones()
    tombstones.add("a", Place("g", 5), UNTIL)
    assert [keeps_away(tombstones, "a", "g", generation) for generation in (4, 5, 6)] == [
        True,
        True,
        False,
    ]
    assert not keeps_away(tombstones, "a", "h", 5)
    assert not keeps_away(tombstones, "b", "g", 5)
    assert tombstones.get("a") == ("g", 5, UNTIL)
    assert tombstones.get("b") is None


def test_a_tombstone_holds_at_exactly_its_end_and_not_after() -> None:
    tombstones = Tombstones()
    tombstones.add("a", Place("g", 5), UNTIL)
    tombstones.add("b", Place("g", 5), UNTIL + 1)
    assert tombstones.past(UNTIL) == []
    assert keeps_away(tombstones, "a", "g", 5, UNTIL)
    assert tombstones.past(UNTIL + 0.1) == ["a"]
    assert not keeps_away(tombstones, "a", "g", 5, UNTIL + 0.1)
    tombstones.drop("a")
    assert list(tombstones) == [("b", ("g", 5, UNTIL + 1))]
    with pytest.raises(KeyError):
        tombstones.drop("a")


def test_gossip_of_a_group_is_ignored_from_its_lowest_to_its_highest_generation() -> None:
    tombstones = Tombstones()
    tombstones.add_group("g", GroupTombstone(3, 5, UNTIL))
    assert [keeps_away(tombstones, "x", "g", generation) for generation in range(2, 7)] == [
        False,
        True,
        True,
        True,
        False,
    ]
    assert not keeps_away(tombstones, "x", "h", 4)
    assert not keeps_away(tombstones, "x", "g", 4, UNTIL + 0.1)
    assert (tombstones.past_groups(UNTIL), tombstones.past_groups(UNTIL + 0.1)) == ([], ["g"])
    assert tombstones.get_group("g") == (3, 5, UNTIL)
    tombstones.drop_group("g")
    assert tombstones.get_group("g") is None
    assert not keeps_away(tombstones, "x", "g", 4)


def test_a_proxy_has_its_own_tombstone_beside_that_of_its_group() -> None:
    tombstones = Tombstones()
    tombstones.add_group("g", GroupTombstone(3, 3, UNTIL))
    tombstones.add("a", Place("g", 5), UNTIL)
    assert len(tombstones) == 2
    assert keeps_away(tombstones, "a", "g", 5)
    assert not keeps_away(tombstones, "b", "g", 5)


def test_the_oldest_make_room_and_one_that_is_set_again_is_the_newest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert (tombstones_module._MOST, tombstones_module._MOST_GROUPS) == (10_000, 1_000)
    monkeypatch.setattr(tombstones_module, "_MOST", 3)
    monkeypatch.setattr(tombstones_module, "_MOST_GROUPS", 2)
    tombstones = Tombstones()
    for name in ("a", "b"):
        assert tombstones.too_many(name) == []
        tombstones.add(name, Place("g", 1), UNTIL)
    assert tombstones.too_many("c") == []
    tombstones.add("c", Place("g", 1), UNTIL)
    assert tombstones.too_many("d") == ["a"]
    assert tombstones.too_many("c") == [], "it has its room already"
    tombstones.add("a", Place("g", 2), UNTIL)
    assert tombstones.too_many("d") == ["b"]
    tombstones.add("d", Place("g", 1), UNTIL)
    assert tombstones.too_many("e") == ["b", "c"]
    assert tombstones.too_many("b") == ["c"], "never itself"
    for group in ("g", "h"):
        assert tombstones.too_many_groups(group) == []
        tombstones.add_group(group, GroupTombstone(1, 1, UNTIL))
    assert tombstones.too_many_groups("i") == ["g"]
    tombstones.add_group("g", GroupTombstone(1, 2, UNTIL))
    assert tombstones.too_many_groups("i") == ["h"]
