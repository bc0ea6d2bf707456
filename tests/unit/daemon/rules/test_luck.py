"""What dials that met held proxies say of the load balancer."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator

import pytest

from trackd.rules.luck import LEAST, Luck

Balancer = Callable[[random.Random, list[str]], Iterator[str]]


def choose_at_random(chosen: random.Random, names: list[str]) -> Iterator[str]:
    while True:
        yield chosen.choice(names)


def take_turns(_chosen: random.Random, names: list[str]) -> Iterator[str]:
    return itertools.cycle(names)


def stick(chosen: random.Random, names: list[str]) -> Iterator[str]:
    return itertools.repeat(chosen.choice(names))


def alternate(chosen: random.Random, names: list[str]) -> Iterator[str]:
    return itertools.cycle(chosen.sample(names, 2))


def keep_step(_chosen: random.Random, names: list[str]) -> Iterator[str]:
    """Take turns in step with another client: every second proxy is never reached."""
    return itertools.cycle(names[::2])


def row(balancer: Balancer, known: int, missing: int, seed: int, dials: int = 2000) -> list[str]:
    """Return the different words of the hints during a row of dials that meets no missing proxy.

    Args:
        balancer: which of the held proxies each dial meets.
        known: how many proxies there are.
        missing: how many of them are not among those that it sends to.
        seed: of its choices.
        dials: how many at most.
    """
    luck, words = Luck(), []
    held = [f"p{number}" for number in range(known - missing)]
    met = balancer(random.Random(seed), held)
    for number, name in enumerate(itertools.islice(met, dials)):
        luck.met(name, missing / known, number * 0.5)
        hint = None if number % 7 else luck.hint(known, number * 0.5)
        if hint is not None and hint.balancer not in words:
            words.append(hint.balancer)
    return words


@pytest.mark.parametrize("balancer", [choose_at_random, take_turns])
@pytest.mark.parametrize(("known", "missing"), [(3, 1), (6, 1), (6, 2), (30, 1), (30, 5), (300, 9)])
def test_a_proxy_that_is_away_never_makes_an_even_balancer_sticky(
    balancer: Balancer, known: int, missing: int
) -> None:
    for seed in range(5):
        assert row(balancer, known, missing, seed) == ["even"], seed


@pytest.mark.parametrize(
    ("balancer", "known", "missing"),
    [
        (stick, 2, 1),
        (stick, 6, 5),
        (stick, 6, 1),
        (stick, 300, 1),
        (alternate, 6, 4),
        (alternate, 30, 1),
        (keep_step, 30, 1),
    ],
)
def test_a_balancer_that_sticks_to_few_or_alternates_is_sticky(
    balancer: Balancer, known: int, missing: int
) -> None:
    for seed in range(5):
        assert row(balancer, known, missing, seed) == ["sticky"], seed


def test_half_of_the_proxies_in_turns_are_as_few_as_in_a_phase_lock() -> None:
    assert row(take_turns, 6, 3, 0) == ["sticky"]
    assert row(take_turns, 7, 3, 0) == ["even"]


@pytest.mark.parametrize("proxies", [2, 6, 30])
def test_a_fair_balancer_that_reaches_all_brings_a_hint_once_in_a_hundred_rows(
    proxies: int,
) -> None:
    hinted = rows = 0
    for seed in range(1000):
        chosen, luck = random.Random(seed), Luck()
        for now in itertools.count():
            reached = chosen.randrange(proxies)
            if reached == 0:
                break  # the only one that is missing
            luck.met(f"p{reached}", 1 / proxies, float(now))
        rows += 1
        hinted += luck.hint(proxies, luck.in_a_row) is not None
    assert hinted / rows < 0.02


def test_the_hint_says_how_many_dials_it_goes_by_and_whom_they_met() -> None:
    assert LEAST == 20
    luck = Luck()
    for number in range(LEAST - 1):
        luck.met("p1" if number % 3 else "p2", 0.5, 100.0)
    assert luck.hint(6, 100.0) is None, "there are too few"
    luck.met("p1", 0.5, 100.0)
    assert luck.hint(6, 100.0) == ("sticky", LEAST, ["p1", "p2"])


def test_a_row_that_chance_explains_brings_no_hint() -> None:
    luck = Luck()
    for _ in range(LEAST + 10):
        luck.met("p1", 0.1, 100.0)
    assert luck.hint(10, 100.0) is None, "it happens once in twenty times"


def test_a_claim_ends_the_row_and_so_does_a_minute_without_dials() -> None:
    luck = Luck()
    for _ in range(LEAST):
        luck.met("p1", 0.5, 100.0)
    luck.claimed()
    luck.met("p1", 0.5, 100.0)
    assert (luck.in_a_row, luck.hint(2, 100.0)) == (1, None)
    for _ in range(LEAST):
        luck.met("p1", 0.5, 100.0)
    assert luck.hint(2, 160.0) is not None
    assert luck.hint(2, 160.1) is None
    luck.met("p1", 0.5, 160.1)
    assert luck.in_a_row == 1


def test_a_balancer_that_has_been_mended_is_not_sticky_for_long() -> None:
    luck = Luck()
    for _ in range(500):
        luck.met("p1", 0.2, 100.0)
    for number in range(128):
        luck.met(f"p{number % 5}", 0.2, 100.0)
    hint = luck.hint(6, 100.0)
    assert hint is not None
    assert (hint.balancer, hint.in_a_row) == ("even", 628)


def test_a_hint_goes_by_the_last_128_dials_of_a_row() -> None:
    luck = Luck()
    for number in range(130):
        luck.met(f"p{number}", 0.5, 100.0)
    hint = luck.hint(1000, 100.0)
    assert hint is not None
    assert hint.in_a_row == 130
    assert hint.met == [f"p{number}" for number in range(2, 130)]


def test_a_row_begins_anew_after_a_claim_but_not_within_a_minute_without_dials() -> None:
    luck = Luck()
    assert luck.in_a_row == 0
    for _ in range(20):
        luck.met("before", 0.5, 100.0)
    luck.claimed()
    for _ in range(20):
        luck.met("after", 0.1, 100.0)
    assert luck.hint(10, 100.0) is None, "chance explains the dials since"
    luck.met("after", 3.0, 160.0)
    assert luck.hint(10, 160.0) == ("sticky", 21, ["after"])


def test_many_of_very_many_proxies_are_not_few() -> None:
    """Of 300 an even balancer meets about 19 with 20 dials."""
    luck = Luck()
    for number in range(20):
        luck.met(f"p{number % 15}", 0.5, 100.0)
    hint = luck.hint(300, 100.0)
    assert hint is not None
    assert hint.balancer == "even"
