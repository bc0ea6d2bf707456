"""Which leases follow gossip to which names."""

import pytest

from trackd.rules.aliases import Aliases

pytestmark = pytest.mark.rule(7)


def test_a_name_that_several_leases_follow_to_is_known_until_the_last_one_is_gone() -> None:
    aliases = Aliases()
    aliases.add(2, ["a", "b"])
    aliases.add(1, ["b", "c"])
    assert aliases.by_lease == {2: ("a", "b"), 1: ("b", "c")}
    assert [aliases.leases_of(name) for name in "abcd"] == [[2], [1, 2], [1], []]
    aliases.drop(2)
    aliases.drop(2)
    assert [aliases.leases_of(name) for name in "abc"] == [[], [1], [1]]
    aliases.drop(1)
    assert not aliases.by_lease
    assert not aliases._by_name, "what is gone takes no room"
