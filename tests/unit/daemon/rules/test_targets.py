"""Rule 16: which proxy a grant is aimed at, and what a failed aim costs."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Collection
from statistics import mean

import pytest

from trackd.rules import targets as targets_module
from trackd.rules.desired import Cohort
from trackd.rules.targets import FIRST_UNTARGETED, UNPROVEN, Address, Aim, Targets, Trust
from trackd.rules.tracker import Tracker
from trackd_client.proxy import Proxy

pytestmark = pytest.mark.rule(16)


class World:
    """A tracker and its clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.tracker = Tracker("example.com", clock=lambda: self.now)

    def say(self, *names: str, group: str = "", generation: int = 1, ttl: float = 1e6) -> None:
        """Mention proxies with their addresses, one after the other."""
        for name in names:
            proxy = Proxy(name, group, generation, ttl, address=f"{name}:1")
            self.tracker.track_expected([proxy])
            self.now += 1.0

    def acquire(self) -> tuple[int, str | None]:
        lease = self.tracker.try_acquire()
        assert lease is not None
        aim = self.tracker.target_of(lease)
        return lease, None if aim is None else aim.name

    def fail(self) -> str | None:
        """Let one dial fail, and return what it was aimed at."""
        lease, name = self.acquire()
        self.tracker.release(lease, failed=True)
        return name

    def reach(self) -> str:
        """Let one dial reach its target."""
        lease, name = self.acquire()
        assert name is not None
        assert self.tracker.claim(lease, [name]) == name
        return name


@pytest.fixture
def world() -> World:
    return World()


def test_a_grant_carries_the_name_and_address_of_a_missing_proxy(world: World) -> None:
    world.say("p1")
    lease = world.tracker.try_acquire()
    assert lease is not None
    assert world.tracker.target_of(lease) == Aim("p1", "p1:1")
    assert world.tracker.claim(lease, ["p1.example.com"]) == "p1"
    assert world.tracker.target_of(lease) is None


def test_without_an_address_nothing_is_kept_and_no_grant_carries_a_target(world: World) -> None:
    tracker = world.tracker
    tracker.track_expected([Proxy("p1"), Proxy("p2")])
    lease, name = world.acquire()
    assert name is None
    tracker.claim(lease, ["p1"])
    tracker.release(lease)
    assert not tracker.targets.by_name
    assert not tracker.targets._entries
    assert tracker.targets.trust == UNPROVEN


def test_the_tracker_by_itself_has_one_user(world: World) -> None:
    world.tracker.share_targets("same_uid")
    world.say("p1")
    assert world.acquire()[1] == "p1"


def test_no_two_leases_in_flight_are_aimed_at_one_name(world: World) -> None:
    world.say("p1", "p2")
    world.tracker.track_expected([Proxy("p3", "", 1), Proxy("p4", "", 1)])
    assert [world.acquire()[1] for _ in range(4)] == ["p1", "p2", None, None]


def test_the_proxy_that_is_missing_longest_comes_first(world: World) -> None:
    world.say("p1", "p2", "p3")
    tracker = world.tracker
    leases = {world.reach(): lease for lease in (1, 2, 3)}
    for name in ("p2", "p3", "p1"):
        world.now += 1.0
        tracker.release(leases[name])
    assert [world.acquire()[1] for _ in range(3)] == ["p2", "p3", "p1"]


def test_groups_take_turns(world: World) -> None:
    world.say("a1", "a2", "a3", group="a")
    world.say("b1", "b2", group="b")
    world.say("c1", group="c")
    named = [world.acquire()[1] for _ in range(6)]
    assert named == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_only_the_desired_generation_is_aimed_at(world: World) -> None:
    tracker = world.tracker
    world.say("old1", "old2", generation=1)
    world.say("new1", generation=2)
    assert world.acquire()[1] == "new1"
    tracker.release(1)
    tracker.forget("new1")
    assert world.acquire()[1] == "old1"
    world.say("new2", generation=2)
    assert tracker.target_of(2) == Aim("old1", "old1:1")
    tracker.release(2)
    assert world.acquire()[1] == "new2"


def test_a_terminating_proxy_is_not_aimed_at(world: World) -> None:
    world.say("p1", "p2")
    world.tracker.track_expected([Proxy("p1", "", 1, 60.0, terminating=True)])
    assert world.acquire()[1] == "p2"
    world.tracker.track_expected([Proxy("p1", "", 1, 60.0, terminating=False)])
    assert world.acquire()[1] == "p1"


def test_a_mention_without_an_address_keeps_it_and_an_empty_one_withdraws_it(
    world: World,
) -> None:
    world.say("p1")
    world.tracker.track_expected([Proxy("p1", "", 1)])
    assert world.tracker.targets.by_name["p1"].text == "p1:1"
    world.tracker.track_expected([Proxy("p1", "", 1, address="")])
    assert not world.tracker.targets.by_name
    assert world.acquire()[1] is None


@pytest.mark.parametrize("moved", [Proxy("p1", "g", 1), Proxy("p1", "", 2)])
def test_a_change_of_place_clears_the_address_and_then_its_own_word_counts(
    world: World, moved: Proxy
) -> None:
    world.say("p1")
    world.tracker.track_expected([moved])
    assert not world.tracker.targets.by_name
    back = Proxy("p1", "", 3, address="b:1")
    world.tracker.track_expected([back])
    assert world.tracker.targets.by_name["p1"].text == "b:1"
    assert world.acquire()[1] == "p1"


def test_a_proxy_that_expires_or_is_forgotten_loses_its_address(world: World) -> None:
    world.say("p1", ttl=10.0)
    world.say("p2", "p3")
    world.tracker.forget("p2")
    world.now += 11.0
    assert world.tracker.sweep() == ["p1"]
    assert set(world.tracker.targets.by_name) == {"p3"}


def test_an_aim_outlives_its_address_and_then_fails_without_effect_on_the_new_one(
    world: World,
) -> None:
    world.say("p1")
    lease, _ = world.acquire()
    world.tracker.track_expected([Proxy("p1", "", 1, address="new:1")])
    assert world.tracker.target_of(lease) == Aim("p1", "p1:1")
    world.tracker.release(lease, failed=True)
    assert world.tracker.targets.by_name["p1"].failures == 0


def test_a_release_without_outcome_makes_its_target_the_first_again(world: World) -> None:
    world.say("p1", "p2", "p3")
    lease, name = world.acquire()
    assert world.acquire()[1] == "p2"
    world.tracker.release(lease)
    assert (name, world.acquire()[1]) == ("p1", "p1")


@pytest.mark.parametrize("how", ["fails", "takes another", "meets another"])
def test_a_failed_aim_keeps_its_name_from_being_aimed_at(world: World, how: str) -> None:
    world.say("p1", "p2", "p3")
    tracker = world.tracker
    tracker.adopt(["p3"])
    lease, _ = world.acquire()
    if how == "fails":
        tracker.release(lease, failed=True)
    elif how == "takes another":
        assert tracker.claim(lease, ["p2"])
    else:
        assert tracker.claim(lease, ["p3"]) is None
        assert tracker.target_of(lease) is None
        tracker.release(lease, failed=True)
    assert tracker.targets.by_name["p1"].failures == 1
    assert tracker.targets.by_name["p1"].held == world.now + 30.0
    assert (tracker.targets.trust.failures, tracker.targets.trust.untargeted) == (1, 3)


def test_a_hold_doubles_up_to_its_bound_and_ends_strictly_in_a_sweep(world: World) -> None:
    world.say("p1")
    seconds = 30.0
    for _ in range(7):
        tracker = world.tracker
        tracker.targets.trust = UNPROVEN
        assert world.fail() == "p1"
        end = world.now + min(seconds, 600.0)
        assert tracker.targets.next_end() == end
        world.now = end
        tracker.sweep()
        held = [tracker.targets.by_name["p1"].held]
        world.now += 0.001
        held.append(tracker.targets.by_name["p1"].held)  # only a sweep or a purge looks
        tracker.sweep()
        assert [*held, tracker.targets.by_name["p1"].held] == [end, end, None]
        seconds *= 2
    assert tracker.targets.by_name["p1"].failures == 7


def test_a_claim_by_another_way_ends_the_hold_and_the_count(world: World) -> None:
    world.say("p1")
    world.fail()
    lease, name = world.acquire()
    assert name is None
    world.tracker.claim(lease, ["p1"])
    address = world.tracker.targets.by_name["p1"]
    assert (address.failures, address.held) == (0, None)
    assert world.tracker.targets.next_end() is None


def test_a_new_address_is_a_new_chance(world: World) -> None:
    world.say("p1")
    world.fail()
    world.tracker.track_expected([Proxy("p1", "", 1, address="new:1")])
    world.tracker.targets.trust = UNPROVEN
    assert world.acquire()[1] == "p1"


def test_after_failures_in_a_row_ever_more_grants_carry_no_target(world: World) -> None:
    world.say(*(f"p{i:02}" for i in range(20)))
    seen = []
    for _ in range(6):
        seen.append(world.fail())
        pause = 0
        while world.tracker.targets.trust.untargeted:
            assert world.fail() is None
            pause += 1
        seen.append(str(pause))
    assert seen[1::2] == ["3", "6", "12", "24", "48", "48"]
    assert len(set(seen[::2])) == 6


def test_while_aims_fail_one_at_a_time_is_tried_and_a_success_ends_that(world: World) -> None:
    world.say("p1", "p2", "p3", "p4")
    world.fail()
    for _ in range(FIRST_UNTARGETED):
        world.fail()
    probe, name = world.acquire()
    assert name == "p2"
    assert world.acquire()[1] is None
    world.tracker.claim(probe, ["p2"])
    assert world.acquire()[1] == "p3"
    assert world.tracker.targets.trust.failures == -1


def test_a_success_forgives_one_failure(world: World) -> None:
    world.say("p1", "p2", "p3", "p4")
    world.reach()
    assert world.fail() == "p2"
    assert world.acquire()[1] == "p3"


def test_a_dial_that_meets_its_own_target_held_has_succeeded(world: World) -> None:
    world.say("p1", "p2")
    lease, _ = world.acquire()
    world.tracker.adopt(["p1"])
    assert world.tracker.claim(lease, ["p1"]) is None
    assert world.tracker.targets.trust.failures == -1
    assert world.tracker.targets.by_name["p1"].failures == 0
    assert world.tracker.target_of(lease) is None


def test_failures_of_dials_under_way_at_once_count_once(world: World) -> None:
    world.say("p1", "p2", "p3", "p4")
    leases = [world.acquire()[0] for _ in range(3)]
    for lease in leases:
        world.tracker.release(lease, failed=True)
    assert world.tracker.targets.trust == (1, FIRST_UNTARGETED, 3)
    assert all(world.tracker.targets.by_name[name].failures == 1 for name in ("p1", "p2", "p3"))


def test_only_the_user_who_said_an_address_is_given_it_unless_all_share(world: World) -> None:
    tracker, targets = world.tracker, world.tracker.targets
    world.say("p1", "p2")
    tracker.put_address("p2", targets.by_name["p2"]._replace(uid=7))
    assert targets.next_aim(("", 7)) == Aim("p1", "p1:1")
    tracker.share_targets("same_uid")
    assert targets.next_aim(("", 0)) == Aim("p1", "p1:1")
    assert targets.next_aim(("", 7)) == Aim("p2", "p2:1")
    assert targets.next_aim(("", 8)) is None
    assert targets.next_aim(("a", 7)) is None
    tracker.put_address("p1", targets.by_name["p1"]._replace(uid=7, host="a"))
    assert targets.next_aim(("a", 7)) == Aim("p1", "p1:1")
    assert targets.next_aim(("", 7)) == Aim("p2", "p2:1")
    assert targets.next_aim(("b", 7)) is None
    tracker.share_targets("off")
    assert [targets.next_aim(("", uid)) for uid in (0, 7, 8)] == [None] * 3
    tracker.share_targets("any")
    assert targets.next_aim(("", 8)) == Aim("p1", "p1:1")


def test_a_replacement_is_aimed_at_the_proxy_that_is_offered(world: World) -> None:
    world.say("p1", "p2")
    world.reach()
    world.reach()
    tracker = world.tracker
    tracker.offer(2)
    lease, name = world.acquire()
    assert name == "p2"
    assert tracker.claim(lease, ["p2"]) == "p2"
    assert tracker.targets.trust.failures == -1
    assert world.tracker.try_acquire() is None


def test_a_proxy_that_is_offered_is_missing_from_then_on(world: World) -> None:
    world.say("p1")
    assert world.reach() == "p1"
    world.say("p2")
    assert world.tracker.offer(1)
    assert [world.acquire()[1] for _ in range(2)] == ["p2", "p1"]


@pytest.mark.parametrize("address", ["a b", "-oProxyCommand=x", "ä:1", "a\n", "x" * 256, 7])
def test_a_bad_address_is_refused_by_the_tracker(world: World, address: str) -> None:
    with pytest.raises(ValueError, match="is no address of proxy 'p1'"):
        world.tracker.track_expected([Proxy("p1", address=address)])
    assert world.tracker.tracked_count == 0


def test_what_repeats_a_known_address_is_known(world: World) -> None:
    tracker = world.tracker
    world.say("p1")
    tracker.track_expected([Proxy("p2", "", 1)])
    known = [
        ["p1", "", 1, 5.0, {"address": "p1:1"}],
        ["p1", "", 1, None, {"address": "p1:1", "terminating": False}],
        ["p2", "", 1, None, {"address": ""}],
    ]
    assert tracker.unknown(known) == ([], [])
    other = [
        ["p1", "", 1, 5.0, {"address": "p1:2"}],
        ["p1", "", 1, 5.0, {"address": ""}],
        ["p1", "", 1, 5.0, {"address": "p1:1", "terminating": True}],
        ["p1", "", 1, 5.0, {"address": ["p1:1"]}],
        ["p2", "", 1, 5.0, {"address": "p2:1"}],
        ["p2", "", 2, 5.0, {"address": ""}],
        [["p2"], "", 1, 5.0, {"address": ""}],
    ]
    assert tracker.unknown(other) == (list(range(len(other))), [])


def test_nothing_walks(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grant, a claim and a release look at as many entries with 3,000 addresses as with 30."""

    def count(size: int) -> int:
        world = World()
        proxies = [Proxy(f"p{i}", f"g{i % 10}", 1, 1e6, address="a:1") for i in range(size)]
        world.tracker.track_expected(proxies)
        steps = 0

        def counting(original: Callable[..., object]) -> Callable[..., object]:
            def call(*args: object) -> object:
                nonlocal steps
                steps += 1
                return original(*args)

            return call

        with monkeypatch.context() as patch:
            for name in ("heappush", "heappop", "heapify"):
                patch.setattr(targets_module, name, counting(getattr(targets_module, name)))
            for i in range(size // 3):
                lease, target = world.acquire()
                assert target is not None
                if i % 3 == 0:
                    world.tracker.release(lease)
                else:
                    world.tracker.claim(lease, [target])
        return steps // (size // 3)

    assert count(3000) <= count(30) + 1


def test_entries_of_names_that_have_left_do_not_pile_up(world: World) -> None:
    world.say(*(f"p{i}" for i in range(10)))
    for _ in range(500):
        world.now += 1.0
        lease, name = world.acquire()
        assert name is not None
        world.tracker.claim(lease, [name])
        world.tracker.release(lease)
    (queue,) = {queue for queue, _ in world.tracker.targets._entries.values()}
    assert len(queue.heap) <= 2 * 10 + 9


# -- simulated: what addresses cost and save ------------------------------------------------


def dials(
    seed: int, proxies: int, agents: int, addressed: bool, dead: Collection[int] = ()
) -> tuple[int, int]:
    """Simulate a cold start behind a random balancer on a virtual clock.

    A dial through the balancer or at a good address takes 0.1 s, and one at a dead address times
    out after 5 s. Each agent dials one after the other, each dial with a lease of its own.

    Returns:
        The dials until each proxy whose address is not dead has a tunnel, and until all have.
    """
    rng = random.Random(seed)
    now = 0.0
    tracker = Tracker("c", clock=lambda: now)
    names = [f"p{i:03}" for i in range(proxies)]
    tracker.track_expected(
        [Proxy(name, "", 1, 1e9, address=f"{name}:1" if addressed else None) for name in names]
    )
    good = {name for i, name in enumerate(names) if i not in dead}
    made = until_good = 0
    events = [(i * 0.001, i, 0, "") for i in range(agents)]  # moment, agent, lease, reached
    while tracker.claimed_count < proxies:
        now, agent, lease, reached = heapq.heappop(events)
        if lease:
            if not reached:
                tracker.release(lease, failed=True)
            elif tracker.claim(lease, [reached]) is None:
                tracker.release(lease)
        claimed = {name for name in tracker.leases.values() if name is not None}
        if not until_good and good <= claimed:
            until_good = made
        granted = tracker.try_acquire()
        if granted is None:
            heapq.heappush(events, (now + 0.05, agent, 0, ""))
            continue
        made += 1
        aim = tracker.target_of(granted)
        name = rng.choice(names) if aim is None else aim.name
        if aim is not None and name not in good:
            heapq.heappush(events, (now + 5.0, agent, granted, ""))
        else:
            heapq.heappush(events, (now + 0.1, agent, granted, name))
    return until_good or made, made


def mean_dials(proxies: int, agents: int, *, addressed: bool, dead: Collection[int] = ()) -> float:
    return mean(dials(seed, proxies, agents, addressed, dead)[1] for seed in range(300))


def harmonic(n: int) -> float:
    return sum(1 / i for i in range(1, n + 1))


@pytest.mark.parametrize("agents", [1, 3, 10])
@pytest.mark.parametrize("proxies", [3, 6, 30])
def test_with_addresses_n_proxies_take_n_dials(proxies: int, agents: int) -> None:
    assert dials(1, proxies, agents, True)[1] == proxies
    without = mean(dials(seed, proxies, agents, False)[1] for seed in range(100))
    assert without == pytest.approx(proxies * harmonic(proxies), rel=0.15)


@pytest.mark.parametrize("agents", [1, 3])
@pytest.mark.parametrize("dead", [0, 3, 5])
def test_one_address_that_never_answers_costs_its_own_dial_and_no_other_proxy(
    dead: int, agents: int
) -> None:
    found = [dials(seed, 6, agents, True, {dead})[0] for seed in range(300)]
    assert mean(found) <= 7.0
    # The first dial of all fails: until one has succeeded, the balancer has its way.
    if dead or agents > 1:
        assert max(found) <= 6


@pytest.mark.parametrize(
    ("proxies", "agents"), [(2, 1), (3, 1), (6, 1), (30, 1), (6, 3), (30, 3), (6, 6), (30, 10)]
)
def test_addresses_that_nobody_can_reach_cost_at_most_half_again_as_many_dials(
    proxies: int, agents: int
) -> None:
    without = mean_dials(proxies, agents, addressed=False)
    unreachable = mean_dials(proxies, agents, addressed=True, dead=range(proxies))
    assert unreachable <= 1.5 * without


# -- the index by itself ----------------------------------------------------------------------


def test_a_failure_after_a_success_is_forgiven_and_each_further_one_costs_more() -> None:
    trust = Trust(5, 2, 3).succeeded()
    assert trust == (-1, 0, 3)
    assert trust.failed(3, 9) is trust, "it was granted before"
    pauses = []
    trust = trust.failed(4, 9)
    assert trust == (0, 0, 9)
    for lease in range(10, 17):
        trust = trust.failed(lease, lease)
        pauses.append(trust.untargeted)
    assert pauses == [3, 6, 12, 24, 48, 48, 48]
    assert trust == (7, 48, 16)
    assert trust.left_out() == (7, 47, 16)


def test_ends_of_holds_that_went_are_dropped_when_they_outnumber_the_addresses_by_64() -> None:
    """The first end of those that stay is still known."""
    targets = Targets()
    ends = [20.0, 50.0, 10.0, 40.0, 30.0]
    for number, end in enumerate(ends):
        targets.put(f"s{number}", Address("a", 0, 0.0, 1, end))
    targets.put("free", Address("a", 0, 0.0))
    sizes = []
    for number in range(72):
        targets.put(f"p{number}", Address("a", 0, 0.0, 1, 1.0))
        sizes.append(len(targets.ends))
        targets.put(f"p{number}", None)
    most = 2 * 6 + 64
    assert sizes == [*range(6, most + 2)]
    assert len(targets.ends) == 5
    for end in sorted(ends):
        assert targets.next_end() == end
        assert targets.due(end) == {}
        found = targets.due(end + 1.0)
        assert targets.due(end + 1.0) == found, "to ask changes nothing"
        ((name, free),) = found.items()
        assert free == Address("a", 0, 0.0, 1, None)
        targets.put(name, free)
    assert targets.next_end() is None
    assert targets.ends == []


def test_entries_that_went_are_dropped_when_they_outnumber_the_others_by_8() -> None:
    targets, cohort = Targets(), Cohort("", 1, terminating=False, desired=True)

    def add(name: str, since: float) -> None:
        targets.put(name, Address(f"{name}:1", 0, since))
        targets.place(name, cohort)

    def drop(name: str) -> None:
        targets.put(name, None)
        targets.place(name, None)

    since = {"s0": 20.0, "s1": 50.0, "s2": 10.0, "s3": 40.0, "s4": 30.0}
    for name, seconds in since.items():
        add(name, seconds)
    (queue,) = targets._turns[None]
    sizes = []
    for number in range(30):
        add(f"p{number}", 100.0)
        drop(f"p{number}")
        sizes.append(len(queue.heap))
    assert sizes[:15] == [*range(6, 2 * 5 + 8 + 1), 5, 6]
    for name in sorted(since, key=lambda name: since[name]):
        assert targets.next_aim(("", 0)) == Aim(name, f"{name}:1")
        drop(name)
    assert targets.next_aim(("", 0)) is None
    assert (targets._queues, targets._turns, targets._entries) == ({}, {}, {})


def test_a_lease_may_be_aimed_at_a_name_that_no_other_grant_could_carry() -> None:
    targets = Targets()
    targets.aim(3, Aim("p1", "p1:1"))
    assert targets.aimed == {"p1": 3}
    targets.end_aim(3)
    assert (targets.aims, targets.aimed) == ({}, {})


def test_a_message_changes_the_addresses_of_the_names_that_it_mentions() -> None:
    targets = Targets()
    for name in ("same", "other", "gone", "moved", "silent"):
        targets.put(name, Address("old:1", 7, 1.0, 2, 30.0))
    said = {
        "same": "old:1",
        "other": "new:1",
        "gone": "",
        "moved": "new:1",
        "first": "new:1",
        "nothing": "",
        "not mentioned": "new:1",
    }
    rows = [(name,) for name in (*said, "silent") if name != "not mentioned"]
    moved = ("moved", "silent", "first", "nothing")
    assert targets.after(rows, moved, said, ("h", 8), 5.0) == {
        "other": Address("new:1", 8, 1.0, host="h"),
        "gone": None,
        "moved": Address("new:1", 8, 5.0, host="h"),
        "silent": None,
        "first": Address("new:1", 8, 5.0, host="h"),
    }


def test_each_failed_aim_doubles_the_hold_up_to_ten_minutes() -> None:
    targets = Targets()
    targets.put("p1", Address("p1:1", 0, 0.0))
    targets.aim(1, Aim("p1", "p1:1"))
    holds = []
    for failures in range(1, 8):
        targets.put(*targets.after_failure(1, 100.0).popitem())
        address = targets.by_name["p1"]
        assert address.failures == failures
        holds.append((address.held or 0.0) - 100.0)
    assert holds == [30.0, 60.0, 120.0, 240.0, 480.0, 600.0, 600.0]
    assert targets.after_claim("p1") == {"p1": Address("p1:1", 0, 0.0)}
    targets.put("p1", Address("p1:1", 0, 0.0, 10**6))
    targets.put(*targets.after_failure(1, 100.0).popitem())
    assert targets.by_name["p1"].held == 700.0
