"""The rules of the tracker, one after the other; the numbers are those of docs/rules.md."""

import math
from collections import UserList
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from trackd.rules.marks import Mark
from trackd.rules.tracker import GroupSummary, TrackedProxy, Tracker
from trackd_client.proxy import Proxy

CLUSTER = "example.com"
LARGEST = 2**64 - 1


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0
        self.readings = 0

    def __call__(self) -> float:
        self.readings += 1
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tracker(clock: Clock) -> Tracker:
    return Tracker(CLUSTER, clock=clock)


def connect(tracker: Tracker, *names: str) -> list[int]:
    """Claim each name with a lease of its own, whatever the rules of granting say."""
    leases = []
    for name in names:
        adopted = tracker.adopt([name])
        assert adopted is not None
        leases.append(adopted[0])
    return leases


def lease_of(tracker: Tracker) -> int:
    lease = tracker.try_acquire()
    assert lease is not None
    return lease


def grants(tracker: Tracker) -> int:
    """Count how many leases are granted in a row."""
    count = 0
    while tracker.try_acquire() is not None:
        count += 1
    return count


def names(tracker: Tracker) -> set[str]:
    return {proxy.name for proxy in tracker}


def state(tracker: Tracker) -> object:
    """Return all that a tracker knows."""
    return (
        sorted(tracker),
        dict(tracker.leases),
        tracker.last_lease,
        tracker.connection_count,
        tracker.proxy_expiry,
        tracker.desired_count,
        tracker.claimed_desired_count,
        tracker.next_expiry,
        tracker.groups(),
    )


# -- rule 1: cluster name and default expiry ------------------------------------------


@pytest.mark.rule(1)
def test_an_empty_cluster_name_is_an_error() -> None:
    with pytest.raises(ValueError, match="cluster_name"):
        Tracker("")


@pytest.mark.rule(1)
def test_arguments_may_be_given_by_position() -> None:
    tracker = Tracker(CLUSTER, 60.0, lambda: 5.0)
    tracker.track_expected([Proxy("a")])
    assert (tracker.cluster_name, tracker.next_expiry) == (CLUSTER, 65.0)


@pytest.mark.rule(1)
def test_a_proxy_expires_after_180_seconds_unless_told_otherwise(clock: Clock) -> None:
    tracker = Tracker(cluster_name=CLUSTER, clock=clock)
    tracker.track_expected([Proxy("a")])
    assert tracker.next_expiry == clock.now + 180.0


@pytest.mark.rule(1)
@pytest.mark.parametrize("expiry", [0, 0.0, -0.0, -1, -0.5])
def test_a_proxy_expiry_of_zero_or_less_means_the_default(clock: Clock, expiry: float) -> None:
    tracker = Tracker(CLUSTER, expiry, clock)
    assert tracker.proxy_expiry == 180.0
    tracker.proxy_expiry = 60
    tracker.proxy_expiry = expiry
    assert tracker.proxy_expiry == 180.0


@pytest.mark.rule(1)
def test_a_changed_proxy_expiry_holds_for_later_mentions(tracker: Tracker, clock: Clock) -> None:
    tracker.track_expected([Proxy("a"), Proxy("b")])
    tracker.proxy_expiry = 10.0
    assert tracker.next_expiry == clock.now + 180.0
    tracker.track_expected([Proxy("b")])
    assert tracker.next_expiry == clock.now + 10.0


# -- rule 2: gossip -------------------------------------------------------------------


@pytest.mark.rule(2)
def test_a_mention_inserts_a_proxy_with_all_that_it_says(tracker: Tracker, clock: Clock) -> None:
    tracker.track_expected([Proxy("a", "g", 7, 30.0)])
    assert tracker.get("a") == TrackedProxy("a", "g", 7, clock.now + 30.0)


@pytest.mark.rule(2)
@pytest.mark.parametrize(
    ("newest", "place"),
    [
        pytest.param(Proxy("a", "g", 5), ("g", 5), id="a larger generation"),
        pytest.param(Proxy("a", "g", 3), ("g", 3), id="a smaller generation"),
        pytest.param(Proxy("a", "h", 4), ("h", 4), id="another group"),
        pytest.param(Proxy("a"), ("", 0), id="neither"),
    ],
)
def test_the_newest_message_wins(tracker: Tracker, newest: Proxy, place: tuple[str, int]) -> None:
    tracker.track_expected([Proxy("a", "g", 4)])
    assert tracker.track_expected([newest]) == ["a"]
    proxy = tracker.get("a")
    assert proxy is not None
    assert (proxy.group, proxy.generation) == place
    assert tracker.tracked_count == tracker.desired_count == 1


@pytest.mark.rule(2)
@pytest.mark.parametrize("ttl", [None, 0, 0.0, -1, -0.5])
def test_a_ttl_that_is_missing_or_not_positive_means_proxy_expiry(
    clock: Clock, ttl: float | None
) -> None:
    tracker = Tracker(CLUSTER, 60.0, clock)
    tracker.track_expected([Proxy("a", ttl=ttl)])
    assert tracker.next_expiry == clock.now + 60.0


@pytest.mark.rule(2)
@pytest.mark.parametrize("first", [1000.0, 1.0])
def test_a_message_that_drops_the_ttl_wins_too(
    tracker: Tracker, clock: Clock, first: float
) -> None:
    tracker.track_expected([Proxy("a", ttl=first)])
    tracker.track_expected([Proxy("a")])
    assert tracker.next_expiry == clock.now + 180.0


@pytest.mark.rule(2)
def test_a_mention_counts_from_the_time_of_its_message(tracker: Tracker, clock: Clock) -> None:
    tracker.track_expected([Proxy("a", ttl=10.0)])
    clock.now += 7.5
    tracker.track_expected([Proxy("a", ttl=10.0)])
    assert tracker.next_expiry == clock.now + 10.0


@pytest.mark.rule(2)
def test_the_last_mention_in_a_message_wins(tracker: Tracker, clock: Clock) -> None:
    message = [Proxy("a", "g", 9, 5.0), Proxy("b", ttl=20.0), Proxy("a", "h", 2, 20.0)]
    assert tracker.track_expected(message) == ["a", "b"]
    assert tracker.get("a") == TrackedProxy("a", "h", 2, clock.now + 20.0)
    assert tracker.next_expiry == clock.now + 20.0


@pytest.mark.rule(2)
def test_an_empty_message_changes_nothing(tracker: Tracker, clock: Clock) -> None:
    tracker.track_expected([Proxy("a")])
    before = state(tracker)
    clock.now += 1.0
    assert tracker.track_expected([]) == []
    assert state(tracker) == before


@pytest.mark.rule(2)
def test_absence_from_a_message_never_removes_a_proxy(tracker: Tracker, clock: Clock) -> None:
    tracker.track_expected([Proxy("a", generation=1), Proxy("b", generation=1)])
    clock.now += 100.0
    tracker.track_expected([Proxy("a", generation=2)])
    tracker.sweep()
    assert names(tracker) == {"a", "b"}
    clock.now += 80.1
    assert tracker.sweep() == ["b"]


@pytest.mark.rule(2)
def test_an_empty_proxy_name_is_taken_as_it_is(tracker: Tracker) -> None:
    tracker.track_expected([Proxy("")])
    assert (tracker.tracked_count, tracker.desired_count) == (1, 1)


@pytest.mark.rule(2)
def test_a_message_tells_which_names_are_new_or_moved(tracker: Tracker, clock: Clock) -> None:
    assert tracker.track_expected([Proxy("a"), Proxy("b"), Proxy("c")]) == ["a", "b", "c"]
    clock.now += 1.0
    message = [Proxy("a"), Proxy("b", generation=1), Proxy("c", "g"), Proxy("d", ttl=3.0)]
    assert tracker.track_expected(message) == ["b", "c", "d"]
    clock.now += 1.0
    assert tracker.track_expected(message) == []


@pytest.mark.rule(2)
def test_a_message_that_moves_only_expiries_tells_nothing(tracker: Tracker, clock: Clock) -> None:
    tracker.track_expected([Proxy("a", ttl=5.0)])
    assert tracker.track_expected([Proxy("a", ttl=50.0)]) == []
    assert tracker.next_expiry == clock.now + 50.0


@pytest.mark.rule(2)
def test_a_name_that_ends_a_message_where_it_began_has_not_changed(tracker: Tracker) -> None:
    tracker.track_expected([Proxy("a", "g", 1)])
    assert tracker.track_expected([Proxy("a", "h", 2), Proxy("a", "g", 1)]) == []
    assert tracker.track_expected([Proxy("b", "h"), Proxy("b", "g", 1)]) == ["b"]


@pytest.mark.rule(2)
def test_a_further_mention_of_a_proxy_as_it_is_tracked_is_told_from_all_else(
    tracker: Tracker,
) -> None:
    tracker.track_rows([("a", "g", 1, None), ("b", "", 0, 30.0)])
    known = [["a", "g", 1, None], ["b", "", 0, None], ["b", "", 0, 9.5], ["b", "", 0, 7]]
    assert tracker.unknown(known) == ([], [])
    assert tracker.unknown(known, max_ttl=7.0) == ([], [2]), "9.5 is more than 7"
    ttls: list[object] = [math.inf, math.nan, True, "9", []]
    unknown: list[object] = [
        *(["c", "", 0, None], ["a", "h", 1, None], ["a", "g", 2, None]),  # new, or moved
        *(["a", "g", 1, 0.0], ["a", "g", 1, -1.0]),  # a TTL that means the default
        *(["a", "g", 1, ttl] for ttl in ttls),
        *(["a", "g", True, None], ["a", "g", 1.0, None], ["a", b"g", 1, None]),
        *([b"a", "g", 1, None], [["a"], "g", 1, None], [None, "g", 1, None]),
        *(["a", "g", 1], ["a", "g", 1, None, "newer"], ("a", "g", 1, None), [], "abcd", 5, None),
    ]
    places = list(range(4, 4 + len(unknown)))
    assert tracker.unknown([*known, *unknown]) == (places, [])
    assert tracker.unknown([*known, *unknown], max_ttl=7.0) == (places, [2])


@pytest.mark.rule(2)
def test_rows_that_are_already_checked_do_the_same(tracker: Tracker, clock: Clock) -> None:
    rows = [("a", "g", 7, 30.0), ("b", "", 0, None)]
    assert tracker.track_rows(rows) == {"a": None, "b": None}
    assert tracker.get("a") == TrackedProxy("a", "g", 7, clock.now + 30.0)
    assert tracker.get("b") == TrackedProxy("b", "", 0, clock.now + 180.0)
    assert tracker.track_rows([("a", "h", 8, None), ("b", "", 0, 1.0)]) == {"a": ("g", 7)}


# -- rules 3 and 4: expiry ------------------------------------------------------------


@pytest.mark.rule(3)
def test_at_exactly_its_expiry_a_proxy_still_counts(tracker: Tracker, clock: Clock) -> None:
    tracker.track_expected([Proxy("a", ttl=10.0)])
    clock.now += 10.0
    assert tracker.sweep() == []
    tracker.try_acquire()
    assert tracker.tracked_count == tracker.desired_count == 1


@pytest.mark.rule(3)
@pytest.mark.rule(4)
def test_just_after_its_expiry_a_proxy_is_swept(tracker: Tracker, clock: Clock) -> None:
    tracker.track_expected([Proxy("a", ttl=10.0), Proxy("b", ttl=11.0), Proxy("c", ttl=10.0)])
    clock.now += 10.0 + 1e-9
    assert sorted(tracker.sweep()) == ["a", "c"]
    assert names(tracker) == {"b"}
    assert (tracker.desired_count, tracker.next_expiry) == (1, 1011.0)
    assert tracker.sweep() == []


@pytest.mark.rule(4)
def test_every_try_acquire_begins_with_a_purge(tracker: Tracker, clock: Clock) -> None:
    tracker.track_expected([Proxy("a", ttl=10.0), Proxy("b", ttl=100.0)])
    connect(tracker, "b")
    clock.now += 10.5
    assert tracker.try_acquire() is None  # a would have been worth a lease
    assert names(tracker) == {"b"}


@pytest.mark.rule(4)
def test_nothing_else_looks_at_expiry(tracker: Tracker, clock: Clock) -> None:
    tracker.track_expected([Proxy("a", ttl=10.0), Proxy("b", ttl=10.0), Proxy("c", ttl=10.0)])
    leases = [lease_of(tracker), lease_of(tracker)]
    clock.now += 1000.0
    assert tracker.claim(leases[0], ["x", "a"]) == "a"
    assert tracker.adopt(["x", "b"]) == (3, "b")
    assert tracker.is_claimed(["x", "a"])
    assert tracker.release(leases[0])
    tracker.set_connection_count(2)
    tracker.track_expected([Proxy("d")])
    assert tracker.next_expiry == 1010.0
    assert (tracker.inflight, tracker.claimed_count, tracker.tracked_count) == (1, 1, 4)
    assert (tracker.desired_count, tracker.claimed_desired_count) == (4, 1)
    assert tracker.is_desired("a")
    assert tracker.missing(9) == ["a", "c", "d"]


@pytest.mark.rule(3)
def test_a_proxy_mentioned_in_time_never_expires(tracker: Tracker, clock: Clock) -> None:
    for _ in range(100):
        tracker.track_expected([Proxy("a", ttl=10.0)])
        clock.now += 10.0
        assert tracker.sweep() == []
    clock.now += 0.001
    assert tracker.sweep() == ["a"]


@pytest.mark.rule(3)
def test_the_next_expiry_is_that_of_the_proxy_that_expires_first(
    tracker: Tracker, clock: Clock
) -> None:
    tracker.track_expected([Proxy("a", ttl=50.0), Proxy("b", ttl=20.0), Proxy("c", ttl=30.0)])
    assert tracker.next_expiry == clock.now + 20.0
    tracker.track_expected([Proxy("b", ttl=40.0)])
    assert tracker.next_expiry == clock.now + 30.0
    clock.now += 45.0
    tracker.sweep()
    assert tracker.next_expiry == 1050.0


def test_without_proxies_there_is_no_next_expiry(tracker: Tracker, clock: Clock) -> None:
    expiries = [tracker.next_expiry]
    tracker.track_expected([Proxy("a", ttl=50.0)])
    clock.now += 51.0
    tracker.sweep()
    expiries.append(tracker.next_expiry)
    assert expiries == [None, None]


# -- rule 5: claims do not expire -----------------------------------------------------


@pytest.mark.rule(5)
def test_a_claimed_proxy_that_expires_stays_claimed(tracker: Tracker, clock: Clock) -> None:
    tracker.track_expected([Proxy("a", ttl=10.0)])
    (lease,) = connect(tracker, "a")
    clock.now += 11.0
    assert tracker.sweep() == ["a"]
    assert (tracker.tracked_count, tracker.claimed_count) == (0, 1)
    assert (tracker.desired_count, tracker.claimed_desired_count) == (0, 0)
    assert tracker.is_claimed([f"a.{CLUSTER}"])
    assert tracker.lease_name(lease) == "a"
    assert tracker.adopt(["a"]) is None


@pytest.mark.rule(5)
def test_a_claimed_proxy_that_returns_counts_again(tracker: Tracker, clock: Clock) -> None:
    connect(tracker, "a")
    assert tracker.claimed_desired_count == 0
    tracker.track_expected([Proxy("a", ttl=10.0)])
    assert tracker.claimed_desired_count == 1
    clock.now += 11.0
    tracker.sweep()
    assert tracker.claimed_desired_count == 0
    tracker.track_expected([Proxy("a")])
    assert tracker.claimed_desired_count == 1


# -- rule 6: granting -----------------------------------------------------------------


@pytest.mark.rule(6)
def test_the_first_lease_is_granted_before_any_gossip_and_alone(tracker: Tracker) -> None:
    assert grants(tracker) == 1


@pytest.mark.rule(6)
def test_while_nothing_is_tracked_one_lease_at_a_time_is_granted(tracker: Tracker) -> None:
    for name in "abc":
        assert grants(tracker) == 1
        assert tracker.claim(tracker.last_lease, [name]) == name
    assert (tracker.claimed_count, tracker.tracked_count) == (3, 0)


@pytest.mark.rule(6)
def test_a_released_bootstrap_lease_is_granted_again(tracker: Tracker) -> None:
    assert tracker.release(lease_of(tracker))
    assert grants(tracker) == 1


@pytest.mark.rule(6)
def test_once_something_is_claimed_and_tracked_bootstrap_is_over(tracker: Tracker) -> None:
    connect(tracker, "a")
    tracker.track_expected([Proxy("a")])
    assert grants(tracker) == 0


@pytest.mark.rule(6)
@pytest.mark.parametrize("count", [0, -1, -100])
def test_an_agent_mesh_wants_a_connection_to_every_desired_proxy(
    tracker: Tracker, count: int
) -> None:
    tracker.track_expected([Proxy(name) for name in "abcde"])
    tracker.set_connection_count(count)
    assert tracker.target == 5
    assert grants(tracker) == 5


@pytest.mark.rule(6)
@pytest.mark.parametrize(("count", "granted"), [(1, 1), (3, 3), (5, 5), (6, 5), (2**70, 5)])
def test_proxy_peering_limits_the_target(tracker: Tracker, count: int, granted: int) -> None:
    tracker.track_expected([Proxy(name) for name in "abcde"])
    tracker.set_connection_count(count)
    assert (tracker.connection_count, tracker.target) == (count, granted)
    assert grants(tracker) == granted


@pytest.mark.rule(6)
def test_leases_in_flight_and_desired_claims_count_against_the_target(tracker: Tracker) -> None:
    tracker.track_expected([Proxy(name) for name in "abcde"])
    connect(tracker, "a", "b")
    assert grants(tracker) == 3
    assert tracker.claim(tracker.last_lease, ["c"]) == "c"
    assert grants(tracker) == 0
    assert tracker.release(tracker.last_lease)
    assert grants(tracker) == 1


@pytest.mark.rule(6)
def test_claims_of_proxies_that_are_not_desired_do_not_count(tracker: Tracker) -> None:
    tracker.track_expected([Proxy("old", generation=1), Proxy("new", generation=2)])
    connect(tracker, "old", "unknown")
    assert (tracker.claimed_count, tracker.claimed_desired_count) == (2, 0)
    assert grants(tracker) == 1


@pytest.mark.rule(6)
def test_only_the_largest_generation_of_a_group_is_desired(tracker: Tracker) -> None:
    tracker.track_expected([Proxy("a", generation=1), Proxy("b", generation=1)])
    tracker.track_expected([Proxy("c", generation=3), Proxy("d", generation=2)])
    assert [name for name in "abcd" if tracker.is_desired(name)] == ["c"]
    assert (tracker.desired_count, tracker.target) == (1, 1)


@pytest.mark.rule(6)
def test_every_group_has_its_own_largest_generation(tracker: Tracker) -> None:
    tracker.track_expected(
        [Proxy("a", "", 9), Proxy("b", "g", 1), Proxy("c", "g", 2), Proxy("d", "h", 0)]
    )
    assert [name for name in "abcd" if tracker.is_desired(name)] == ["a", "c", "d"]
    assert grants(tracker) == 3


@pytest.mark.rule(6)
def test_a_full_roll_out_moves_every_connection(tracker: Tracker, clock: Clock) -> None:
    tracker.track_expected([Proxy(name, generation=1) for name in ("a1", "b1")])
    old = connect(tracker, "a1", "b1")
    tracker.track_expected([Proxy(name, generation=2) for name in ("a2", "b2")])
    assert (tracker.desired_count, tracker.claimed_desired_count) == (2, 0)
    for name in ("a2", "b2"):
        assert tracker.claim(lease_of(tracker), [name]) == name
    assert tracker.try_acquire() is None
    clock.now += 100.0
    tracker.track_expected([Proxy(name, generation=2) for name in ("a2", "b2")])
    clock.now += 100.0
    assert sorted(tracker.sweep()) == ["a1", "b1"]
    assert all(tracker.release(lease) for lease in old)
    assert tracker.try_acquire() is None
    assert (tracker.claimed_count, tracker.claimed_desired_count) == (2, 2)


@pytest.mark.rule(6)
def test_when_the_largest_generation_expires_the_one_before_is_desired_again(
    tracker: Tracker, clock: Clock
) -> None:
    tracker.track_expected([Proxy(name, generation=1) for name in "abc"])
    connect(tracker, "a")
    tracker.track_expected([Proxy("d", generation=2, ttl=10.0)])
    assert (tracker.desired_count, tracker.claimed_desired_count) == (1, 0)
    clock.now += 11.0
    assert grants(tracker) == 2
    assert (tracker.desired_count, tracker.claimed_desired_count) == (3, 1)


@pytest.mark.rule(6)
def test_a_smaller_count_revokes_nothing_and_refuses_until_it_is_met(tracker: Tracker) -> None:
    tracker.track_expected([Proxy(name) for name in "abcd"])
    leases = connect(tracker, "a", "b", "c")
    tracker.set_connection_count(2)
    assert tracker.claimed_count == 3
    assert grants(tracker) == 0
    tracker.release(leases[0])
    assert grants(tracker) == 0
    tracker.release(leases[1])
    assert grants(tracker) == 1


@pytest.mark.rule(6)
def test_lease_ids_count_from_one_and_are_never_reused(tracker: Tracker) -> None:
    tracker.track_expected([Proxy("a"), Proxy("b")])
    assert [lease_of(tracker), lease_of(tracker)] == [1, 2]
    assert tracker.try_acquire() is None  # a refusal takes no id
    tracker.release(2)
    tracker.release(1)
    assert [lease_of(tracker), lease_of(tracker)] == [3, 4]
    assert tracker.last_lease == 4


@pytest.mark.rule(6)
def test_a_granted_lease_is_in_flight(tracker: Tracker) -> None:
    lease = lease_of(tracker)
    assert tracker.inflight == 1
    assert lease in tracker.leases
    assert tracker.lease_name(lease) is None
    assert dict(tracker.leases) == {lease: None}


# -- rule 7: principals ---------------------------------------------------------------


@pytest.mark.rule(7)
@pytest.mark.parametrize(
    ("principals", "name"),
    [
        pytest.param(["a"], "a", id="tracked"),
        pytest.param(["held"], "held", id="claimed"),
        pytest.param(["x", "a"], "a", id="tracked, though not the first"),
        pytest.param(["x", "held"], "held", id="claimed, though not the first"),
        pytest.param(["held", "a"], "held", id="the order decides, not tracked before claimed"),
        pytest.param(["a", "held"], "a", id="the order decides, not claimed before tracked"),
        pytest.param(["a.example.com"], "a", id="without the cluster"),
        pytest.param(["x.example.com", "a"], "a", id="known as written before the first"),
        pytest.param(["x", "a.example.com"], "x", id="only the first loses the cluster"),
        pytest.param(["x.example.com", "y"], "x", id="unknown"),
        pytest.param(["b.example.com"], "b.example.com", id="tracked with the cluster"),
        pytest.param(["b"], "b", id="not the same as with the cluster"),
        pytest.param(["x.example.com.example.com"], "x.example.com", id="one cluster alone"),
        pytest.param(["x.EXAMPLE.COM"], "x.EXAMPLE.COM", id="case matters"),
        pytest.param(["xexample.com"], "xexample.com", id="the dot matters"),
        pytest.param(["example.com"], "example.com", id="the cluster itself"),
        pytest.param(["x.example.com."], "x.example.com.", id="a dot after the cluster"),
        pytest.param(["example.com.x"], "example.com.x", id="the cluster in front"),
        pytest.param([".example.com"], None, id="nothing before the cluster"),
        pytest.param([".example.com", "x"], None, id="nothing, and the second is unknown"),
        pytest.param([".example.com", "a"], "a", id="nothing, and the second is known"),
        pytest.param([""], None, id="an empty name, which is tracked"),
        pytest.param(["", "a"], None, id="an empty name, which is tracked, first"),
        pytest.param([], None, id="no principals"),
        pytest.param(("x", "a"), "a", id="a tuple"),
        pytest.param(UserList(["x", "a"]), "a", id="any sequence"),
    ],
)
def test_principals_resolve_to_one_name(
    tracker: Tracker, principals: Sequence[str], name: str | None
) -> None:
    tracker.track_expected([Proxy("a"), Proxy("b.example.com"), Proxy("")])
    connect(tracker, "held")
    assert tracker.resolve(principals) == name


@pytest.mark.rule(7)
def test_an_expired_but_claimed_name_is_still_known(tracker: Tracker, clock: Clock) -> None:
    tracker.track_expected([Proxy("a.example.com", ttl=1.0)])
    connect(tracker, "a.example.com")
    clock.now += 2.0
    tracker.sweep()
    assert tracker.resolve(["a.example.com"]) == "a.example.com"


# -- rule 8: claiming -----------------------------------------------------------------


@pytest.mark.rule(8)
def test_a_claim_takes_the_lease_out_of_flight(tracker: Tracker) -> None:
    tracker.track_expected([Proxy("a"), Proxy("b")])
    lease = lease_of(tracker)
    assert tracker.claim(lease, [f"a.{CLUSTER}", "x"]) == "a"
    assert (tracker.inflight, tracker.claimed_count) == (0, 1)
    assert (tracker.lease_name(lease), tracker.holder("a")) == ("a", lease)


@pytest.mark.rule(8)
def test_a_proxy_is_claimed_once_whatever_name_it_presents(tracker: Tracker) -> None:
    tracker.track_expected([Proxy("a"), Proxy("b")])
    first, second = lease_of(tracker), lease_of(tracker)
    assert tracker.claim(first, ["a"]) == "a"
    assert tracker.claim(second, [f"a.{CLUSTER}"]) is None
    assert tracker.claim(second, ["x", "a"]) is None
    assert tracker.holder("a") == first


@pytest.mark.rule(8)
def test_a_failed_claim_changes_nothing_and_may_be_tried_again(tracker: Tracker) -> None:
    tracker.track_expected([Proxy("a"), Proxy("b")])
    connect(tracker, "a")
    lease = lease_of(tracker)
    before = state(tracker)
    assert tracker.claim(lease, ["a"]) is None
    assert tracker.claim(lease, []) is None
    assert tracker.claim(lease, [f".{CLUSTER}"]) is None
    assert state(tracker) == before
    assert tracker.claim(lease, ["b"]) == "b"


@pytest.mark.rule(8)
def test_a_lease_claims_once(tracker: Tracker) -> None:
    tracker.track_expected([Proxy("a"), Proxy("b")])
    lease = lease_of(tracker)
    assert tracker.claim(lease, ["a"]) == "a"
    before = state(tracker)
    assert tracker.claim(lease, ["b"]) is None
    assert tracker.claim(lease, ["a"]) is None
    assert state(tracker) == before


@pytest.mark.rule(8)
@pytest.mark.parametrize("lease", [0, -1, 2, 2**70])
def test_a_lease_that_was_never_granted_claims_nothing(tracker: Tracker, lease: int) -> None:
    tracker.track_expected([Proxy("a")])
    assert tracker.try_acquire() == 1
    before = state(tracker)
    assert tracker.claim(lease, ["a"]) is None
    assert state(tracker) == before


@pytest.mark.rule(8)
def test_a_released_lease_claims_nothing(tracker: Tracker) -> None:
    lease = lease_of(tracker)
    tracker.release(lease)
    assert tracker.claim(lease, ["a"]) is None
    assert (tracker.inflight, tracker.claimed_count) == (0, 0)


@pytest.mark.rule(8)
def test_claiming_a_name_that_is_not_tracked_does_not_track_it(tracker: Tracker) -> None:
    lease = lease_of(tracker)
    assert tracker.claim(lease, [f"a.{CLUSTER}"]) == "a"
    assert (tracker.tracked_count, tracker.claimed_count) == (0, 1)
    assert (tracker.claimed_desired_count, tracker.get("a")) == (0, None)


# -- rule 9: releasing ----------------------------------------------------------------


@pytest.mark.rule(9)
def test_releasing_frees_the_claim(tracker: Tracker) -> None:
    tracker.track_expected([Proxy("a")])
    (lease,) = connect(tracker, "a")
    assert tracker.release(lease)
    assert not tracker.is_claimed(["a"])
    assert (tracker.claimed_count, tracker.claimed_desired_count, tracker.inflight) == (0, 0, 0)
    assert lease not in tracker.leases
    assert tracker.lease_name(lease) is None
    assert tracker.holder("a") is None
    assert tracker.claim(lease_of(tracker), ["a"]) == "a"


@pytest.mark.rule(9)
def test_releasing_takes_an_unclaimed_lease_out_of_flight(tracker: Tracker) -> None:
    lease = lease_of(tracker)
    assert tracker.release(lease)
    assert tracker.inflight == 0
    assert lease not in tracker.leases


@pytest.mark.rule(9)
def test_a_second_release_is_a_no_op(tracker: Tracker) -> None:
    first = lease_of(tracker)
    assert tracker.claim(first, ["a"]) == "a"
    assert tracker.release(first)
    second = lease_of(tracker)
    assert tracker.claim(second, ["a"]) == "a"
    before = state(tracker)
    assert not tracker.release(first)
    assert not tracker.release(99)
    assert state(tracker) == before
    assert tracker.holder("a") == second


# -- rule 10: asking ------------------------------------------------------------------


@pytest.mark.rule(10)
def test_is_claimed_resolves_as_a_claim_does(tracker: Tracker) -> None:
    tracker.track_expected([Proxy("a"), Proxy("free")])
    connect(tracker, "a", "held")
    assert tracker.is_claimed(["a"])
    assert tracker.is_claimed([f"a.{CLUSTER}"])
    assert tracker.is_claimed(["x", "held"])
    assert not tracker.is_claimed(["free", "a"])
    assert not tracker.is_claimed(["x", f"a.{CLUSTER}"])
    assert not tracker.is_claimed([])
    assert not tracker.is_claimed([f".{CLUSTER}"])


# -- rule 11: generations -------------------------------------------------------------


@pytest.mark.rule(11)
@pytest.mark.parametrize(
    ("smaller", "larger"),
    [
        (0, LARGEST),
        (LARGEST - 1, LARGEST),
        (2**63 - 1, 2**63),
        (2**53, 2**53 + 1),
        (9, 10),
    ],
)
def test_generations_are_compared_as_unsigned_64_bit(
    tracker: Tracker, smaller: int, larger: int
) -> None:
    tracker.track_expected([Proxy("a", "g", smaller), Proxy("b", "h", larger)])
    tracker.track_expected([Proxy("c", "g", larger), Proxy("d", "h", smaller)])
    assert [name for name in "abcd" if tracker.is_desired(name)] == ["b", "c"]
    assert [group.generation for group in tracker.groups()] == [larger, larger]


@pytest.mark.rule(11)
@pytest.mark.parametrize("generation", [-1, 2**64, 2**100])
def test_other_generations_are_refused(tracker: Tracker, generation: int) -> None:
    with pytest.raises(ValueError, match="generation of proxy 'a' must be 0 to"):
        tracker.track_expected([Proxy("a", generation=generation)])


@pytest.mark.rule(11)
@pytest.mark.parametrize("generation", [True, 1.0, "1"])
def test_a_generation_of_another_type_is_named_as_such(
    tracker: Tracker, generation: object
) -> None:
    with pytest.raises(ValueError, match="generation of proxy 'a' must be an int"):
        tracker.track_expected([Proxy("a", generation=generation)])  # type: ignore[arg-type]


# -- rule 12: the clock ---------------------------------------------------------------


@pytest.mark.rule(12)
def test_only_the_injected_clock_tells_the_time(tracker: Tracker, clock: Clock) -> None:
    tracker.track_expected([Proxy("a", ttl=1e-9)])
    lease_of(tracker)
    assert tracker.tracked_count == 1
    clock.now += 1.0
    assert tracker.sweep() == ["a"]


@pytest.mark.rule(12)
def test_the_clock_is_read_once_for_a_message(tracker: Tracker, clock: Clock) -> None:
    tracker.track_expected([Proxy(str(i), ttl=float(i)) for i in range(100)])
    assert clock.readings == 1


@pytest.mark.rule(12)
@pytest.mark.parametrize(
    "call",
    [
        lambda tracker: tracker.sweep(),
        lambda tracker: tracker.track_expected([Proxy("a"), Proxy("c")]),
        lambda tracker: tracker.try_acquire(),
    ],
)
def test_a_clock_that_fails_leaves_everything_as_it_was(
    tracker: Tracker, clock: Clock, call: Callable[[Tracker], object]
) -> None:
    class BrokenClockError(Exception):
        pass

    broken = False

    def faulty() -> float:
        if broken:
            raise BrokenClockError
        return clock()

    tracker = Tracker(CLUSTER, clock=faulty)
    tracker.track_expected([Proxy("a", ttl=1.0), Proxy("b")])
    clock.now += 2.0
    broken = True
    before = state(tracker)
    with pytest.raises(BrokenClockError):
        call(tracker)
    assert state(tracker) == before


# -- rule 14: adopting ----------------------------------------------------------------


@pytest.mark.rule(14)
def test_adopting_grants_and_claims_in_one_step(tracker: Tracker) -> None:
    tracker.track_expected([Proxy("a"), Proxy("b")])
    assert tracker.try_acquire() == 1
    assert tracker.adopt([f"a.{CLUSTER}"]) == (2, "a")
    assert (tracker.inflight, tracker.claimed_count, tracker.last_lease) == (1, 1, 2)
    assert (tracker.claimed_desired_count, tracker.holder("a")) == (1, 2)
    assert tracker.try_acquire() is None


@pytest.mark.rule(14)
def test_adopting_goes_beyond_the_connection_count(tracker: Tracker) -> None:
    tracker.track_expected([Proxy(name) for name in "abc"])
    tracker.set_connection_count(1)
    connect(tracker, "a", "b", "unknown")
    assert tracker.claimed_count == 3


@pytest.mark.rule(14)
def test_a_name_that_a_lease_holds_is_not_adopted(tracker: Tracker) -> None:
    tracker.track_expected([Proxy("a"), Proxy("b")])
    connect(tracker, "a")
    before = state(tracker)
    assert tracker.adopt(["a"]) is None
    assert tracker.adopt([f"a.{CLUSTER}"]) is None
    assert tracker.adopt([]) is None
    assert tracker.adopt([f".{CLUSTER}"]) is None
    assert state(tracker) == before


@pytest.mark.rule(14)
def test_an_adopted_lease_is_released_like_any_other(tracker: Tracker) -> None:
    (lease,) = connect(tracker, "a")
    assert tracker.claim(lease, ["b"]) is None
    assert tracker.release(lease)
    assert tracker.claimed_count == 0


# -- what is wrong in an argument -----------------------------------------------------

CALLS: list[tuple[str, Callable[[Any], Any]]] = [
    ("cluster_name", lambda _: Tracker(b"c")),  # type: ignore[arg-type]
    ("proxy_expiry", lambda _: Tracker("c", "1")),  # type: ignore[arg-type]
    ("proxy_expiry", lambda _: Tracker("c", float("nan"))),
    ("proxy_expiry", lambda _: Tracker("c", float("inf"))),
    ("proxy_expiry", lambda _: Tracker("c", 10**400)),
    ("proxy_expiry", lambda t: setattr(t, "proxy_expiry", True)),
    ("clock", lambda _: Tracker("c", clock=7.0)),  # type: ignore[arg-type]
    ("connection_count", lambda t: t.set_connection_count(1.0)),
    ("connection_count", lambda t: t.set_connection_count(True)),
    ("connection_count", lambda t: t.set_connection_count(None)),
    ("proxies", lambda t: t.track_expected(None)),
    ("proxies", lambda t: t.track_expected(Proxy("n"))),
    ("proxies", lambda t: t.track_expected("n")),
    ("lease", lambda t: t.claim(True, ["b"])),
    ("lease", lambda t: t.claim(2.0, ["b"])),
    ("lease", lambda t: t.claim("2", ["b"])),
    ("lease", lambda t: t.claim(None, ["b"])),
    ("lease", lambda t: t.release(True)),
    ("lease", lambda t: t.release(1.0)),
    ("lease", lambda t: t.lease_name(True)),
    ("lease", lambda t: t.retire(True)),
    ("lease", lambda t: t.offer("1")),
    ("principals", lambda t: t.claim(2, "b")),
    ("principals", lambda t: t.claim(2, b"b")),
    ("principals", lambda t: t.claim(2, b"")),
    ("principals", lambda t: t.claim(2, bytearray())),
    ("principals", lambda t: t.claim(2, None)),
    ("principals", lambda t: t.claim(2, {"b"})),
    ("principals", lambda t: t.claim(2, iter(["b"]))),
    ("principals", lambda t: t.claim(2, ["b", b"b"])),
    ("principals", lambda t: t.claim(2, ["b", None])),
    ("principals", lambda t: t.adopt("b")),
    ("principals", lambda t: t.adopt([1])),
    ("principals", lambda t: t.is_claimed("a")),
    ("principals", lambda t: t.is_claimed(["a", 1])),
    ("principals", lambda t: t.resolve("a")),
    ("name", lambda t: t.holder(b"a")),
    ("name", lambda t: t.get(1)),
    ("name", lambda t: t.is_desired([])),
    ("limit", lambda t: t.missing("9")),
]


@pytest.mark.parametrize(("what", "call"), CALLS)
def test_a_wrong_argument_is_a_value_error_that_names_it_and_changes_nothing(
    tracker: Tracker, what: str, call: Callable[[Any], Any]
) -> None:
    tracker.track_expected([Proxy("a"), Proxy("b")])
    connect(tracker, "a")
    assert tracker.try_acquire() == 2
    before = state(tracker)
    with pytest.raises(ValueError, match=what):
        call(tracker)
    assert state(tracker) == before


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"name": b"n"}, "name"),
        ({"name": None}, "name"),
        ({"group": 1}, "group"),
        ({"group": None}, "group"),
        ({"generation": True}, "generation"),
        ({"generation": 1.0}, "generation"),
        ({"generation": "1"}, "generation"),
        ({"generation": None}, "generation"),
        ({"generation": -1}, "generation"),
        ({"generation": 2**64}, "generation"),
        ({"ttl": "1"}, "ttl"),
        ({"ttl": True}, "ttl"),
        ({"ttl": float("nan")}, "ttl"),
        ({"ttl": float("inf")}, "ttl"),
        ({"ttl": float("-inf")}, "ttl"),
        ({"ttl": 10**400}, "ttl"),
    ],
)
def test_one_wrong_proxy_refuses_the_whole_message(
    tracker: Tracker, clock: Clock, wrong: dict[str, Any], what: str
) -> None:
    tracker.track_expected([Proxy("a", generation=1)])
    before = state(tracker)
    clock.now += 1.0
    message = [Proxy("b"), Proxy(**{"name": "a", "generation": 1, **wrong}), Proxy("c")]
    with pytest.raises(ValueError, match=what):
        tracker.track_expected(message)
    with pytest.raises(ValueError, match="Proxy"):
        tracker.track_expected([Proxy("b"), ("a", "", 0, None)])  # type: ignore[list-item]
    assert state(tracker) == before


def test_a_message_may_be_any_iterable(tracker: Tracker) -> None:
    assert tracker.track_expected(Proxy(name) for name in "ab") == ["a", "b"]
    assert tracker.track_expected({Proxy("c")}) == ["c"]


def test_whole_seconds_may_be_ints(tracker: Tracker, clock: Clock) -> None:
    tracker.track_expected([Proxy("a", ttl=5)])
    assert tracker.next_expiry == clock.now + 5.0


# -- views ----------------------------------------------------------------------------


def test_groups_are_summed_up(tracker: Tracker) -> None:
    tracker.track_expected(
        [Proxy("a", "g", 1), Proxy("b", "g", 2), Proxy("c", "g", 2), Proxy("d", "", 7)]
    )
    connect(tracker, "a", "b")
    assert tracker.groups() == [
        GroupSummary("", generation=7, tracked=1, desired=1, claimed=0, generations={7: 1}),
        GroupSummary("g", generation=2, tracked=3, desired=2, claimed=1, generations={1: 1, 2: 2}),
    ]


def test_a_group_without_proxies_is_gone(tracker: Tracker, clock: Clock) -> None:
    tracker.track_expected([Proxy("a", "g"), Proxy("b", "h", ttl=1.0)])
    tracker.track_expected([Proxy("a", "i")])
    clock.now += 2.0
    tracker.sweep()
    assert [group.name for group in tracker.groups()] == ["i"]


def test_missing_are_the_desired_proxies_that_nobody_holds(tracker: Tracker) -> None:
    tracker.track_expected([Proxy("old", generation=1)])
    tracker.track_expected([Proxy(name, generation=2) for name in "abc"])
    connect(tracker, "b")
    assert tracker.missing(10) == ["a", "c"]
    assert tracker.missing(1) == ["a"]
    assert tracker.missing(0) == tracker.missing(-1) == []


def test_the_view_of_leases_is_live_and_read_only(tracker: Tracker) -> None:
    leases = tracker.leases
    connect(tracker, "a")
    assert leases == {1: "a"}
    with pytest.raises(TypeError):
        leases[2] = "b"  # type: ignore[index]


# -- restart --------------------------------------------------------------------------


def test_a_restored_tracker_goes_on_where_the_other_stopped(tracker: Tracker, clock: Clock) -> None:
    tracker.track_expected([Proxy("a", "g", LARGEST, 50.0), Proxy("b", "g", 1, 20.0)])
    tracker.track_expected([Proxy("c", "h", 2, 30.0), Proxy("d", "h", 2)])
    connect(tracker, "a", "gone")
    tracker.set_connection_count(3)
    assert tracker.try_acquire() == 3
    assert tracker.try_acquire() == 4
    tracker.release(4)
    successor = Tracker(CLUSTER, clock=clock)
    successor.restore(
        proxies=tracker,
        leases=tracker.leases,
        last_lease=tracker.last_lease,
        connection_count=tracker.connection_count,
    )
    assert state(successor) == state(tracker)
    for seconds in (5.0, 15.0, 0.001, 10.0, 20.0):
        clock.now += seconds
        for one in (tracker, successor):
            one.track_expected([Proxy("d", "h", 2)])
        assert sorted(successor.sweep()) == sorted(tracker.sweep())
        assert successor.try_acquire() == tracker.try_acquire()
        assert state(successor) == state(tracker)


def test_a_restored_proxy_that_is_past_its_time_leaves_at_the_next_sweep(
    tracker: Tracker, clock: Clock
) -> None:
    tracker.restore(
        proxies=[("late", "", 0, clock.now), ("early", "", 0, clock.now - 5.0)],
        leases={},
        last_lease=0,
        connection_count=0,
    )
    assert (tracker.tracked_count, tracker.next_expiry) == (2, clock.now - 5.0)
    assert tracker.sweep() == ["early"]


def test_a_restored_proxy_obeys_the_next_mention(tracker: Tracker, clock: Clock) -> None:
    tracker.restore(
        proxies=[("a", "g", 1, clock.now + 500.0), ("b", "g", 1, clock.now + 1.0)],
        leases={},
        last_lease=0,
        connection_count=0,
    )
    assert tracker.track_expected([Proxy("a", "g", 1, 10.0), Proxy("b", "g", 1)]) == []
    clock.now += 11.0
    assert tracker.sweep() == ["a"]


def test_a_restored_proxy_that_lives_long_does_not_keep_others_alive(
    tracker: Tracker, clock: Clock
) -> None:
    tracker.restore(
        proxies=[("long", "", 0, clock.now + 500.0)], leases={}, last_lease=0, connection_count=0
    )
    tracker.track_expected([Proxy("short")])
    assert tracker.next_expiry == clock.now + 180.0
    clock.now += 181.0
    assert tracker.sweep() == ["short"]


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"leases": {1: "a", 2: "a"}}, id="two leases hold one name"),
        pytest.param({"leases": {3: None}}, id="a lease beyond the last"),
        pytest.param({"leases": {0: None}}, id="a lease before the first"),
        pytest.param({"leases": {True: None}}, id="a lease that is a bool"),
        pytest.param({"leases": {1: ""}}, id="an empty name"),
        pytest.param({"leases": {1: 5}}, id="a name that is no str"),
        pytest.param({"last_lease": -1, "leases": {}}, id="a negative last lease"),
        pytest.param({"last_lease": None}, id="no last lease"),
        pytest.param({"connection_count": "1"}, id="a count that is no int"),
        pytest.param({"proxies": [("a", "", 0, 1.0), ("a", "", 1, 2.0)]}, id="a proxy twice"),
        pytest.param({"proxies": [("a", "", -1, 1.0)]}, id="a negative generation"),
        pytest.param({"proxies": [("a", "", 0, float("nan"))]}, id="an expiry that is no time"),
        pytest.param({"proxies": [("a", "", 0, None)]}, id="no expiry"),
    ],
)
def test_a_state_that_makes_no_sense_is_not_restored(
    tracker: Tracker, wrong: dict[str, Any]
) -> None:
    right = {
        "proxies": [("p", "", 0, 1.0)],
        "leases": {1: "p", 2: None},
        "last_lease": 2,
        "connection_count": 1,
    }
    before = state(tracker)
    with pytest.raises(ValueError):
        tracker.restore(**{**right, **wrong})
    assert state(tracker) == before
    tracker.restore(**right)  # type: ignore[arg-type]
    assert (tracker.claimed_desired_count, tracker.inflight) == (1, 1)


@pytest.mark.parametrize(
    "use",
    [
        lambda tracker: tracker.track_expected([Proxy("a")]),
        lambda tracker: tracker.try_acquire(),
        lambda tracker: tracker.release(tracker.try_acquire()),
    ],
)
def test_only_a_fresh_tracker_is_restored(
    tracker: Tracker, use: Callable[[Tracker], object]
) -> None:
    use(tracker)
    with pytest.raises(ValueError, match="neither tracked nor granted"):
        tracker.restore(proxies=[], leases={}, last_lease=9, connection_count=0)


def test_a_proxy_that_is_forgotten_leaves_its_place_and_its_claim(tracker: Tracker) -> None:
    tracker.track_expected([Proxy("a", "g", 3)])
    lease = lease_of(tracker)
    assert tracker.claim(lease, ["a"]) == "a"
    assert tracker.forget("a") == ("g", 3)
    assert (tracker.tracked_count, tracker.holder("a")) == (0, lease)
    assert tracker.forget("a") is None
    with pytest.raises(ValueError, match="name must be a str"):
        tracker.forget(b"a")  # type: ignore[arg-type]


def restore(tracker: Tracker, **more: Any) -> None:
    fields: dict[str, Any] = {"proxies": [], "leases": {}, "last_lease": 0, "connection_count": 0}
    tracker.restore(**(fields | more))


def test_restored_proxies_of_one_expiry_and_ttl_are_one_mention(tracker: Tracker) -> None:
    rows = [
        ("a", "g", 1, 20.0, 5.0),
        ("b", "g", 1, 20.0, 0.5),
        ("c", "g", 2, 20.0, 5.0),
        ("d", "", 0, 9.0),
    ]
    restore(tracker, proxies=rows, marks={"c": Mark(15.0, None)})
    assert [tracker.ttl_of(name) for name in "abcd"] == [5.0, 0.5, 5.0, tracker.proxy_expiry]
    assert [mention.names for mention in tracker.mentions.by_number.values()] == [
        ["d"],
        ["b"],
        ["a", "c"],
    ]
    assert tracker.is_terminating("c")
    assert tracker.next_expiry == 9.0


@pytest.mark.parametrize("ttl", [0, 0.0, -1.0])
def test_a_ttl_to_restore_is_positive(tracker: Tracker, ttl: float) -> None:
    with pytest.raises(ValueError, match="ttl of 'a' must be positive"):
        restore(tracker, proxies=[("a", "g", 1, 20.0, ttl)])
    assert tracker.tracked_count == 0
