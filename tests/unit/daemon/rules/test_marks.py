"""Rule 15: which proxies are terminating, and what follows for the desired set."""

from __future__ import annotations

import math

import pytest

from trackd.rules.marks import UNMARKED, Mark, Marks
from trackd.rules.tracker import Tracker
from trackd_client.proxy import Proxy

pytestmark = pytest.mark.rule(15)


class World:
    """A tracker and its clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.tracker = Tracker("example.com", clock=lambda: self.now)

    def desired(self) -> set[str]:
        return {name for name in self.tracker.names() if self.tracker.is_desired(name)}

    def say(
        self, name: str, terminating: bool | None, *, ttl: float = 60.0, generation: int = 0
    ) -> None:
        self.tracker.track_expected([Proxy(name, "", generation, ttl, terminating)])

    def at(self, seconds: float) -> None:
        """Move the clock to so many seconds after the beginning, and sweep."""
        self.now = 1000.0 + seconds
        self.tracker.sweep()

    def hold(self, name: str) -> int:
        adopted = self.tracker.adopt([name])
        assert adopted is not None
        return adopted[0]


@pytest.fixture
def world() -> World:
    world = World()
    world.tracker.track_expected([Proxy(name, ttl=3600.0) for name in ("p1", "p2", "p3")])
    return world


def test_a_terminating_proxy_stays_tracked_and_claimed_and_is_not_desired(
    world: World,
) -> None:
    tracker = world.tracker
    for name in ("p1", "p2", "p3"):
        world.hold(name)
    assert not tracker.need
    world.say("p2", True)
    assert world.desired() == {"p1", "p3"}
    assert tracker.is_tracked("p2")
    assert tracker.is_claimed(["p2"])
    assert (tracker.target, tracker.claimed_desired_count) == (2, 2)
    assert tracker.claimed_terminating_count == 1
    assert not tracker.need, "nothing is missing"


def test_a_replacement_is_granted_before_the_terminating_one_is_gone(world: World) -> None:
    tracker = world.tracker
    tracker.set_connection_count(2)
    world.hold("p1")
    retired = world.hold("p2")
    assert tracker.try_acquire() is None
    assert tracker.retire(retired)
    lease = tracker.try_acquire()
    assert lease is not None
    assert tracker.claim(lease, ["p3"]) == "p3"
    assert tracker.target - tracker.claimed_desired_count <= 0, "at no moment was one short"


def test_terminating_proxies_do_not_count_towards_the_largest_generation() -> None:
    world = World()
    for name, generation in [("a", 1), ("b", 1), ("c", 2)]:
        world.say(name, None, generation=generation)
    assert world.desired() == {"c"}
    world.say("c", True, generation=2)
    assert world.desired() == {"a", "b"}
    assert world.tracker.largest("") == 1
    assert world.tracker.newest("") == 2


def test_marks_do_not_count_when_all_proxies_of_a_group_are_terminating(
    world: World,
) -> None:
    world.hold("p3")
    for name in ("p1", "p2"):
        world.say(name, True)
    assert world.desired() == {"p3"}
    world.say("p3", True)
    assert world.desired() == {"p1", "p2", "p3"}
    assert not world.tracker.is_terminating("p3"), "its mark does not count"
    assert world.tracker.claimed_terminating_count == 0
    world.tracker.track_expected([Proxy("p4")])
    assert world.desired() == {"p4"}
    assert world.tracker.claimed_terminating_count == 1


def test_other_groups_are_not_concerned(world: World) -> None:
    world.tracker.track_expected([Proxy("q1", "other", 7, 60.0, True)])
    assert world.desired() == {"p1", "p2", "p3", "q1"}


def test_a_mark_lasts_until_the_expiry_of_the_last_mention_that_said_true(
    world: World,
) -> None:
    world.say("p1", True, ttl=10.0)
    world.say("p1", None, ttl=500.0)
    world.at(10.0)
    assert "p1" not in world.desired(), "at exactly its end it still holds"
    world.at(math.nextafter(1010.0, math.inf) - 1000.0)
    assert world.now > 1010.0
    assert "p1" in world.desired()


def test_a_repeated_true_renews_the_mark(world: World) -> None:
    world.say("p1", True, ttl=10.0)
    world.at(8.0)
    world.say("p1", True, ttl=10.0)
    world.at(18.0)
    assert "p1" not in world.desired()
    world.at(18.1)
    world.say("p1", None)
    assert world.tracker.marks.by_name == {}


def test_a_mention_that_says_false_ends_the_mark_and_one_without_a_word_does_not(
    world: World,
) -> None:
    world.say("p1", True)
    world.say("p1", None)
    assert "p1" not in world.desired()
    world.say("p1", False)
    assert "p1" in world.desired()


def test_a_change_of_group_or_generation_clears_the_mark_and_then_the_row_counts(
    world: World,
) -> None:
    world.say("p1", True)
    world.say("p1", None, generation=1)
    assert not world.tracker.is_marked("p1")
    world.say("p1", True, generation=2)
    assert world.tracker.is_marked("p1")
    world.tracker.track_expected([Proxy("p1", "other", 2, 60.0, True)])
    assert world.tracker.is_marked("p1")


def test_the_last_row_of_a_name_counts_also_when_it_says_nothing(world: World) -> None:
    world.tracker.track_expected([Proxy("p1", terminating=True), Proxy("p1")])
    assert not world.tracker.is_marked("p1")


def test_marks_end_only_in_a_sweep_and_in_the_purge_of_an_acquire(world: World) -> None:
    tracker = world.tracker
    tracker.set_connection_count(3)
    for name in ("p1", "p2"):
        world.hold(name)
    world.say("p3", True, ttl=10.0)
    world.say("p3", None, ttl=3600.0)
    world.now += 11.0
    assert tracker.adopt(["q"]) is not None
    assert tracker.is_marked("p3"), "an adoption purges nothing"
    assert tracker.try_acquire() is not None, "the purge ends the mark, so p3 is missing"
    assert not tracker.is_marked("p3")


def test_a_proxy_that_expires_takes_the_mark_of_gossip_with_it(world: World) -> None:
    world.say("p1", True, ttl=100.0)
    world.say("p1", None, ttl=10.0)
    world.at(11.0)
    assert not world.tracker.is_tracked("p1")
    world.say("p1", None)
    assert not world.tracker.is_marked("p1")
    world.say("p1", True)
    world.tracker.forget("p1")
    assert world.tracker.marks.by_name == {}


def test_a_retired_lease_marks_its_proxy_whatever_gossip_says(world: World) -> None:
    tracker = world.tracker
    lease = world.hold("p1")
    assert tracker.retire(lease)
    assert tracker.retire(lease), "a second time changes nothing"
    world.say("p1", False, ttl=3600.0)
    world.at(1000.0)
    assert tracker.is_marked("p1")


def test_a_retired_proxy_stays_marked_for_a_moment_after_the_release(world: World) -> None:
    lease = world.hold("p1")
    world.tracker.retire(lease)
    world.at(100.0)
    assert world.tracker.release(lease)
    world.say("p1", False)
    world.at(100.0 + 5.0)
    assert world.tracker.is_marked("p1")
    world.at(100.0 + 5.0 + 0.1)
    assert not world.tracker.is_marked("p1")


def test_the_hold_is_at_most_the_ttl(world: World) -> None:
    lease = world.hold("p1")
    world.tracker.retire(lease)
    world.say("p1", None, ttl=2.0)
    world.tracker.release(lease)
    world.now += 1.0
    world.say("p1", None, ttl=60.0)
    world.at(2.1)
    assert not world.tracker.is_marked("p1")


@pytest.mark.parametrize("by", ["claim", "adopt"])
def test_a_claim_of_the_name_ends_the_hold_and_never_what_gossip_says(
    world: World, by: str
) -> None:
    tracker = world.tracker
    dialling = tracker.try_acquire()
    assert dialling is not None
    for name in ("p1", "p2"):
        lease = world.hold(name)
        tracker.retire(lease)
        tracker.release(lease)
    world.say("p2", True)
    if by == "claim":
        assert tracker.claim(dialling, ["p1"]) == "p1"
    else:
        world.hold("p1")
    world.hold("p2")
    assert not tracker.is_marked("p1")
    assert tracker.is_marked("p2")


def test_only_a_lease_that_holds_a_proxy_can_be_retired(world: World) -> None:
    tracker = world.tracker
    lease = tracker.try_acquire()
    assert lease is not None
    with pytest.raises(ValueError, match="has not claimed"):
        tracker.retire(lease)
    tracker.release(lease)
    assert not tracker.retire(lease)


def test_a_name_that_is_retired_before_it_is_tracked_is_marked_from_its_first_mention(
    world: World,
) -> None:
    world.tracker.retire(world.hold("q1"))
    assert not world.tracker.is_marked("q1")
    world.say("q1", None)
    assert world.tracker.is_marked("q1")
    assert "q1" not in world.desired()


def test_repeated_gossip_is_known_only_when_it_says_what_is_known(world: World) -> None:
    tracker = world.tracker
    world.say("p1", True)
    known = [
        ["p1", "", 0, None, {"terminating": True}],
        ["p1", "", 0, None],
        ["p2", "", 0, 5.0, {"terminating": False}],
    ]
    assert tracker.unknown(known) == ([], [])
    unknown = [
        ["p1", "", 0, None, {"terminating": False}],
        ["p2", "", 0, None, {"terminating": True}],
        ["p1", "", 1, None, {"terminating": True}],
        ["p1", "", 0, 9.0, {"terminating": True}],
        ["p1", "", 0, None, {"terminating": 1, "more": 2}],
        ["p1", "", 0, None, None],
        ["p9", "", 0, None, {"terminating": True}],
        [["p1"], "", 0, None, {"terminating": True}],
    ]
    assert tracker.unknown([*known, *unknown], max_ttl=8.0) == (
        list(range(3, 3 + len(unknown))),
        [],
    )


@pytest.mark.parametrize("wrong", [1, "yes", [True]])
def test_a_word_on_termination_must_be_a_bool(world: World, wrong: object) -> None:
    with pytest.raises(ValueError, match="terminating of proxy 'p1'"):
        world.tracker.track_expected([Proxy("p1", terminating=wrong)])  # type: ignore[arg-type]


def test_marks_that_are_renewed_again_and_again_grow_nothing() -> None:
    marks = Marks()
    for i in range(10_000):
        marks.put("p", Mark(float(i), None))
        marks.put(f"q{i}", Mark(float(i), None))
        marks.put(f"q{i}", UNMARKED)
    assert len(marks.ends) < 200
    assert marks.next_end() == 9999.0
    assert marks.due(10_000.0) == {"p": UNMARKED}
    assert marks.due(10_000.0) == {"p": UNMARKED}, "asking changes nothing"


def test_of_two_parts_only_the_one_that_has_passed_ends() -> None:
    marks = Marks()
    marks.put("p", Mark(5.0, 10.0))
    assert marks.due(5.0) == {}
    assert marks.due(10.0) == {"p": Mark(None, 10.0)}
    assert marks.due(10.1) == {"p": UNMARKED}


def test_marks_that_went_are_dropped_when_they_outnumber_the_others_by_64() -> None:
    """The first end of those that stay is still known."""
    marks = Marks()
    ends = [1020.0, 1050.0, 1010.0, 1040.0, 1030.0]
    for number, end in enumerate(ends):
        marks.put(f"s{number}", Mark(end, None))
    marks.put("retired", Mark(None, math.inf))
    sizes = []
    for number in range(72):
        marks.put(f"p{number}", Mark(1.0, None))
        sizes.append(len(marks.ends))
        marks.put(f"p{number}", UNMARKED)
    most = 2 * 6 + 64
    assert sizes == [*range(6, most + 2)]
    assert len(marks.ends) == 5
    for end in sorted(ends):
        assert marks.next_end() == end
        (name,) = marks.due(end + 1.0)
        marks.put(name, UNMARKED)
    assert marks.next_end() is None
    assert marks.ends == []


def test_a_mark_without_an_end_waits_for_none() -> None:
    marks = Marks()
    marks.put("p1", Mark(None, math.inf))
    assert (marks.ends, marks.next_end()) == ([], None)


@pytest.mark.parametrize(("ttl", "seconds"), [(None, 7.0), (0.0, 7.0), (-1.0, 7.0), (1.0, 1.0)])
def test_a_mark_lasts_as_long_as_its_message_says(ttl: float | None, seconds: float) -> None:
    marks = Marks()
    found = marks.after([("p1", "", 0, ttl)], (), {"p1": True}, 100.0, 7.0)
    assert found == {"p1": Mark(100.0 + seconds, None)}
