"""What `trackctl explain` says of a decision."""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from trackd_client.cli.commands import explain
from trackd_client.core.event import Event

FULL: dict[str, Any] = {
    "would_grant": False,
    "reason": "satisfied",
    "bootstrap": False,
    "need": False,
    "connection_count": 0,
    "tracked": 10,
    "desired": 10,
    "target": 10,
    "claimed": 10,
    "claimed_desired": 10,
    "inflight": 0,
    "waiting": 0,
    "missing": [],
    "missing_count": 0,
    "recent": {"claims": 10, "duplicates": 0, "since": 1.0, "met": []},
}


TWO_MISSING = FULL | {
    "claimed": 8,
    "claimed_desired": 8,
    "missing": ["p9", "p10"],
    "missing_count": 2,
}


def recent(duplicates: int, *met: list[Any], chance: float = 0.2) -> dict[str, Any]:
    return {
        "recent": {
            "claims": 8,
            "duplicates": duplicates,
            "since": 1.0,
            "met": list(met),
            "expected": 8 + duplicates * chance,
            "expected_since_success": duplicates * chance,
        }
    }


def hint(balancer: str, *met: str) -> dict[str, Any]:
    return {"hint": {"balancer": balancer, "in_a_row": 38, "met": list(met), "met_count": len(met)}}


PAUSE: dict[str, Any] = {
    "failures": 3,
    "until": 9.0,
    "reason": "timeout",
    "retry_after": None,
    "session": 4,
    "uid": 0,
    "pid": 8,
    "agent": "dialler",
}


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (
            FULL
            | {
                "reason": "backoff",
                "retry_after": 1.24,
                "pause": PAUSE,
                "outcomes": {"dials": 40, "ended": {"claimed": 7, "tls": 2, "timeout": 31}},
            },
            [
                "No lease now: dials pause after failures; the next one may begin in 1.2 s.",
                (
                    "The pause of this host: 1.2 s more, after 3 failed dials; the last one timed"
                    " out, says pid 8 dialler."
                ),
                "Of the last 40 dials, 31 timed out, 2 failed in TLS.",
            ],
        ),
        (
            FULL | {"pause": PAUSE},
            [
                "No lease now: all proxies are covered.",
                (
                    "The pause of this host: one dial at a time may try, after 3 failed dials;"
                    " the last one timed out, says pid 8 dialler."
                ),
            ],
        ),
        (FULL, ["No lease now: all proxies are covered."]),
        (FULL | {"reason": "bootstrap"}, ["A lease now: one agent has to dial first."]),
        (
            TWO_MISSING | {"reason": "need"},
            ["2 proxies have no tunnel.", "Without a tunnel: p9, p10.", "No agent asks"],
        ),
        (
            TWO_MISSING | {"inflight": 2},
            ["an agent is dialling for every missing tunnel", "2 leases in flight may reach"],
        ),
        (TWO_MISSING | {"target": 8}, ["all proxies are covered", "the connection count allows"]),
        (
            TWO_MISSING | {"reason": "waiters", "waiting": 1, "inflight": 2},
            ["No lease now: all proxies are covered; 1 request is queued."],
        ),
        (
            TWO_MISSING | {"reason": "waiters", "waiting": 3},
            ["No lease now: 3 requests are queued and served first."],
        ),
        (TWO_MISSING | {"reason": "budget", "retry_after": 0.5}, ["dial_rate", "in 0.5 s"]),
        (TWO_MISSING | {"reason": "store"}, ["changes cannot be stored"]),
        (TWO_MISSING | {"reason": "of tomorrow"}, ["of tomorrow"]),
        (
            TWO_MISSING | recent(40, ["p1", 38], ["p2", 2]),
            ["40 reached a proxy that was held: p1 (38), p2 (2)", "sends most dials to p1"],
        ),
        (TWO_MISSING | recent(40, ["p1", 6], ["p2", 5]), ["less often than chance explains"]),
        (
            TWO_MISSING | recent(40, ["p1", 38]) | hint("sticky", "p1"),
            ["is sticky: 38 dials in a row met a held proxy, the last ones only p1. Look for"],
        ),
        (
            TWO_MISSING | recent(40, ["p1", 20], ["p2", 20]) | hint("sticky", "p1", "p2"),
            ["the last ones only p1, p2. Look for affinity by source address, a round robin that"],
        ),
        (
            TWO_MISSING | recent(40, ["p1", 20], ["p2", 20]) | hint("even", "p1", "p2"),
            ["38 dials in a row met a held proxy, the last ones nearly all of these: look for"],
        ),
    ],
)
def test_explain_says_what_is_decided_and_what_may_be_wrong(
    told: dict[str, Any], words: list[str]
) -> None:
    said = [sentence.text for sentence in explain.write_sentences(told)]
    for each in words:
        assert any(each in sentence for sentence in said), said


def test_explain_suspects_nobody_when_chance_explains_it() -> None:
    few = explain.write_sentences(TWO_MISSING | recent(8, ["p1", 2], ["p2", 2]))
    assert not any("balancer" in sentence.text for sentence in few)
    done = explain.write_sentences(FULL | recent(200, ["p1", 190]) | hint("sticky", "p1"))
    assert not any("balancer" in sentence.text for sentence in done), "nothing is missing"


def test_explain_never_advises_to_forget_what_gossip_names() -> None:
    said = explain.write_sentences(TWO_MISSING | recent(40, ["p1", 6], ["p2", 5]))
    assert not any("forget" in sentence.text for sentence in said)


def test_explain_suspects_nothing_of_a_daemon_that_does_not_count_chances() -> None:
    old = {"claims": 8, "duplicates": 40, "since": 1.0, "met": [["p1", 40]]}
    assert not explain.is_suspicious(old)


def test_reported_histories_that_were_chance_are_not_suspicious() -> None:
    # 24 of 274 missing, and 22 of 256 claims won: what a fair balancer brings.
    fair = {"claims": 22, "expected": 256 * 24 / 274, "expected_since_success": 1.0}
    assert not explain.is_suspicious(fair)


Balancer = Callable[[random.Random, int], Iterator[int]]


def take_turns(chosen: random.Random, count: int) -> Iterator[int]:
    return itertools.cycle(chosen.sample(range(count), count))


def choose_at_random(chosen: random.Random, count: int) -> Iterator[int]:
    while True:
        yield chosen.randrange(count)


def stick(chosen: random.Random, count: int) -> Iterator[int]:
    return itertools.repeat(chosen.randrange(count))


def alternate(chosen: random.Random, count: int) -> Iterator[int]:
    return itertools.cycle(chosen.sample(range(count), 2))


def drain(chosen: random.Random, count: int) -> Iterator[int]:
    """Reach only half of the proxies; the others get no new connections."""
    known = chosen.sample(range(count), count // 2)
    while True:
        yield chosen.choice(known)


def play(balancer: Balancer, seed: int) -> bool | None:
    """Return whether a history is suspicious; None when nothing is missing at its end.

    Tunnels close now and then, so that something is missing for most of the time.
    """
    chosen = random.Random(seed)
    count, dials, closing = chosen.choice([3, 6, 20, 50]), chosen.randrange(5, 400), 0.1
    reached, held = balancer(chosen, count), set[int]()
    claims: deque[tuple[bool, float]] = deque(maxlen=256)
    for proxy in itertools.islice(reached, dials):
        if held and chosen.random() < closing:
            held.remove(chosen.choice(sorted(held)))
        if len(held) == count:
            continue  # nothing is missing: no agent dials
        claims.append((proxy not in held, (count - len(held)) / count))
        held.add(proxy)
    if len(held) == count:
        return None
    since = 0.0
    for won, chance in claims:
        since = 0.0 if won else since + chance
    return explain.is_suspicious(
        {
            "claims": sum(won for won, _ in claims),
            "expected": sum(chance for _, chance in claims),
            "expected_since_success": since,
        }
    )


@pytest.mark.parametrize(
    ("balancer", "fair"),
    [
        (choose_at_random, True),
        (take_turns, True),
        (stick, False),
        (alternate, False),
        (drain, False),
    ],
)
def test_a_fair_balancer_is_rarely_suspected_and_an_unfair_one_mostly(
    balancer: Balancer, fair: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    verdicts = [verdict for seed in range(3000) if (verdict := play(balancer, seed)) is not None]
    share = sum(verdicts) / len(verdicts)
    with capsys.disabled():
        word = f"false alarms {share:.2%}" if fair else f"misses {1 - share:.2%}"
        print(f"\n{balancer.__name__}: {word} of {len(verdicts)} histories")
    assert len(verdicts) > 1000
    if fair:
        assert share <= 0.01
    else:
        assert share >= 0.5


def test_a_proxy_has_no_tunnel_since_its_last_one_ended_or_since_it_is_known() -> None:
    tracked, granted, claimed, released = (
        Event(revision, 100.0 + revision, 0.0, kind, {"name": "p1"})
        for revision, kind in enumerate(
            ("proxy_tracked", "lease_granted", "proxy_claimed", "lease_released")
        )
    )
    assert explain.find_last_end([tracked]) == tracked
    assert explain.find_last_end([tracked, claimed, released]) == released
    assert explain.find_last_end([claimed, released, tracked]) == tracked, "it had expired"
    assert explain.find_last_end([granted]) is None, "older events are gone"
