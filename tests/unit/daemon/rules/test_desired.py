"""The index of desired proxies, and the first names of its groups."""

from __future__ import annotations

import random
from collections import Counter, deque
from typing import NamedTuple

import pytest

from trackd.rules import desired as desired_module
from trackd.rules.desired import MOST_GROUPS, Cohort, DesiredSet, _FirstNames


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("names", [50, 150, 250, 2000])
def test_the_first_names_are_those_of_the_whole_set_after_random_changes(
    seed: int, names: int
) -> None:
    draw = random.Random(seed)
    present: set[str] = set()
    first = _FirstNames(present)
    for _ in range(3000):
        name = f"g{draw.randrange(names):04}"
        if name in present:
            present.remove(name)
            first.remove(name)
        else:
            present.add(name)
            first.add(name)
        assert first.names() == sorted(present)[:MOST_GROUPS]
    for name in sorted(present):
        present.remove(name)
        first.remove(name)
        assert first.names() == sorted(present)[:MOST_GROUPS]


@pytest.mark.parametrize("seed", range(10))
def test_the_first_names_of_a_small_set_are_right_after_random_changes(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desired_module, "MOST_GROUPS", 3)
    draw = random.Random(seed)
    present: set[str] = set()
    first = _FirstNames(present)
    for _ in range(500):
        name = f"g{draw.randrange(14):02}"
        if name in present:
            present.remove(name)
            first.remove(name)
        else:
            present.add(name)
            first.add(name)
        assert first.names() == sorted(present)[:3]
        assert len(first._first) <= 6


def test_names_that_come_and_go_grow_nothing() -> None:
    index = DesiredSet()
    for number in range(2 * MOST_GROUPS):
        index.add(f"m{number:03}", 1, claimed=False)
    for number in range(5000):  # behind the first ones
        index.remove(index.add(f"z{number}", 1, claimed=False), claimed=False)
    assert len(index._first._others) < 1000


def test_names_that_are_pushed_from_the_first_ones_and_leave_grow_nothing() -> None:
    index = DesiredSet()
    falling = [f"g{number:05}" for number in reversed(range(5000))]
    cohorts = deque(index.add(name, 1, claimed=False) for name in falling[: 2 * MOST_GROUPS])
    for name in falling[2 * MOST_GROUPS :]:
        cohorts.append(index.add(name, 1, claimed=False))
        index.remove(cohorts.popleft(), claimed=False)
    assert len(index._first._others) < 1000
    assert len(index._first._first) <= 2 * MOST_GROUPS


def test_a_group_is_counted_with_all_its_generations() -> None:
    index = DesiredSet()
    index.add("g", 1, claimed=True)
    old = index.add("g", 2, claimed=False)
    index.add("g", 3, claimed=True)
    assert index.first_groups() == [("g", 3, 3, 1, 1)]
    index.remove(old, claimed=False)
    assert index.first_groups() == [("g", 3, 2, 1, 1)]


def test_at_most_100_groups_are_listed() -> None:
    assert MOST_GROUPS == 100


def test_cohorts_with_equal_counts_are_not_the_same() -> None:
    assert Cohort("g", 1, terminating=False) != Cohort("g", 1, terminating=False)


def test_generations_that_come_and_go_are_dropped_when_they_outnumber_the_others() -> None:
    """When there are 8 more of them; the largest of those that stay is still known."""
    index = DesiredSet()
    stay = [index.add("g", generation, claimed=False) for generation in (70, 90, 80)]
    heap_sizes = []
    for generation in range(1, 30):
        passing = index.add("g", generation, claimed=False)
        heap_sizes.append(len(index._groups["g"].heap))
        index.remove(passing, claimed=False)
    assert heap_sizes[:14] == [*range(4, 2 * 3 + 8 + 2), 4, 5]
    assert index.largest("g") == 90
    for cohort, next_largest in ((stay[1], 80), (stay[2], 70), (stay[0], None)):
        index.remove(cohort, claimed=False)
        assert index.largest("g") == next_largest


def test_names_that_come_and_go_are_dropped_when_they_outnumber_the_others() -> None:
    """When there are 8 more of them; those that stay follow in their order."""
    stay = [f"g{number:03}" for number in range(250)]
    present = set[str]()
    first = _FirstNames(present)
    for name in stay:
        present.add(name)
        first.add(name)
    sizes = []
    for number in range(600):
        name = f"z{number:03}"
        present.add(name)
        first.add(name)
        sizes.append(len(first._others))
        present.remove(name)
        first.remove(name)
    most = 2 * 251 + 8 + 1
    assert sizes[: most - 49] == [*range(51, most + 1), 51][: most - 49]
    for name in stay:
        assert first.names() == sorted(present)[:100]
        present.remove(name)
        first.remove(name)
    assert first.names() == []


class _Counted(NamedTuple):
    """A proxy that the index counts."""

    group: str
    generation: int
    terminating: bool
    claimed: bool
    offered: bool

    @property
    def key(self) -> tuple[bool, int]:
        return not self.terminating, self.generation


@pytest.mark.parametrize("seed", range(8))
def test_all_counts_are_those_of_a_list_of_proxies(seed: int) -> None:
    draw = random.Random(seed)
    index = DesiredSet()
    watched: list[Cohort] = []
    index.watch = watched.append
    index.changed = set()
    proxies: list[tuple[_Counted, Cohort]] = []
    for _ in range(120):
        before = _desired_cohorts(proxies)
        watched.clear()
        index.changed.clear()
        i = draw.randrange(len(proxies)) if proxies else 0
        was, cohort = proxies[i] if proxies else (None, None)
        act = draw.choice(["add", "add", "remove", "claim", "offer"])
        if was is None or cohort is None or act == "add":
            claimed = draw.random() < 0.5
            offered = claimed and draw.random() < 0.5
            now = _Counted(
                draw.choice("ab"), draw.randrange(3), draw.random() < 0.5, claimed, offered
            )
            kind = {"terminating": now.terminating, "offered": offered}
            cohort = index.add(now.group, now.generation, claimed=claimed, **kind)
            cohort.source = len(proxies)
            proxies.append((now, cohort))
        elif act == "remove":
            now = was
            index.remove(cohort, claimed=was.claimed, offered=was.offered)
            del proxies[i]
        elif act == "claim" and not was.offered:
            now = was._replace(claimed=not was.claimed)
            (index.unclaim if was.claimed else index.claim)(cohort)
            proxies[i] = (now, cohort)
        elif act == "offer" and was.claimed:
            now = was._replace(offered=not was.offered)
            (index.end_offer if was.offered else index.offer)(cohort)
            proxies[i] = (now, cohort)
        else:
            continue
        assert index.changed == (set() if act == "offer" and was is not None else {now.group})
        after = _desired_cohorts(proxies)
        if before.get(now.group) is not after.get(now.group) and now.group in after:
            old = before.get(now.group)
            assert watched == [*([] if old is None else [old]), after[now.group]]
        else:
            assert watched == []
        _check_counts(index, proxies)


def _desired_cohorts(proxies: list[tuple[_Counted, Cohort]]) -> dict[str, Cohort]:
    best: dict[str, tuple[tuple[bool, int], Cohort]] = {}
    for proxy, cohort in proxies:
        if proxy.group not in best or proxy.key > best[proxy.group][0]:
            best[proxy.group] = (proxy.key, cohort)
    return {group: cohort for group, (_, cohort) in best.items()}


def _check_counts(index: DesiredSet, proxies: list[tuple[_Counted, Cohort]]) -> None:
    desired = _desired_cohorts(proxies)
    wanted = [proxy for proxy, cohort in proxies if cohort is desired[proxy.group]]
    assert index.count == len(wanted)
    assert index.claimed == sum(proxy.claimed for proxy in wanted)
    assert index.offered == sum(proxy.offered for proxy in wanted)
    unwanted = [proxy for proxy, cohort in proxies if index.is_terminating(cohort)]
    assert unwanted == [
        proxy for proxy, _ in proxies if proxy.terminating and not desired[proxy.group].terminating
    ]
    assert index.claimed_terminating == sum(proxy.claimed for proxy in unwanted)
    assert index.group_count == len(desired)
    for _, cohort in proxies:
        here = [proxy for proxy, each in proxies if each is cohort]
        assert cohort.tracked == len(here)
        assert cohort.claimed == sum(proxy.claimed for proxy in here)
        assert cohort.offered == sum(proxy.offered for proxy in here)
        assert cohort.desired == (cohort is desired[cohort.group])
        assert {(proxy.group, proxy.generation, proxy.terminating) for proxy in here} == {
            (cohort.group, cohort.generation, cohort.terminating)
        }
    summaries = []
    for group in ("a", "b"):
        here = [proxy for proxy, _ in proxies if proxy.group == group]
        if not here:
            assert (index.largest(group), index.newest(group)) == (None, None)
            assert (index.count_of(group), index.source(group)) == ((0, 0), None)
            continue
        best = desired[group]
        assert index.largest(group) == best.generation
        assert index.newest(group) == max(proxy.generation for proxy in here)
        assert index.count_of(group) == (best.tracked, best.claimed)
        assert index.source(group) == best.source
        counts = (group, best.generation, len(here), best.tracked, best.claimed)
        summaries.append((*counts, dict(Counter(proxy.generation for proxy in here))))
    assert index.groups() == summaries
    assert index.first_groups() == [each[:5] for each in summaries]


def test_what_is_not_said_of_a_proxy_is_that_it_is_not_marked_and_not_offered() -> None:
    index = DesiredSet()
    cohort = index.add("g", 1, claimed=True)
    assert (cohort.terminating, cohort.offered, index.offered) == (False, 0, 0)
    index.remove(cohort, claimed=True)
    assert (cohort.offered, index.count) == (0, 0)
