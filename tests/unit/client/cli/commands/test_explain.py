"""What `trackctl explain` says of a decision."""

from __future__ import annotations

from typing import Any

import pytest

from trackd_client.cli.commands import explain

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


def recent(duplicates: int, *met: list[Any]) -> dict[str, Any]:
    return {"recent": {"claims": 8, "duplicates": duplicates, "since": 1.0, "met": list(met)}}


@pytest.mark.parametrize(
    ("told", "words"),
    [
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
        (TWO_MISSING | recent(40, ["p1", 6], ["p2", 5]), ["reach none that is missing"]),
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
    done = explain.write_sentences(FULL | recent(200, ["p1", 190]))
    assert not any("balancer" in sentence.text for sentence in done), "nothing is missing"
