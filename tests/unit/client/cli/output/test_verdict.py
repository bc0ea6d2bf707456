"""How things stand, in one sentence."""

from __future__ import annotations

from typing import Any

import pytest

from trackd_client.cli.output.verdict import (
    describe_desired,
    is_covered,
    judge,
    seconds_since_dial,
)
from trackd_client.core.event import Event
from trackd_client.wire.clock import boottime

CALM = {"store": "ok", "tracked": 1, "target": 1, "claimed_desired": 1, "inflight": 0, "desired": 1}


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({}, "the only proxy has a tunnel"),
        ({"tracked": 0}, "no proxy is known"),
        ({"target": 3, "inflight": 2}, "2 of 3 proxies have no tunnel; 2 agents are dialling"),
        ({"target": 3}, "2 of 3 proxies have no tunnel; no agent is dialling"),
        ({"target": 50, "claimed_desired": 50}, "all 50 proxies have a tunnel"),
        ({"desired": 9}, "1 of 9 proxies has a tunnel, as many as wanted"),
        (
            {"target": 2, "desired": 9, "inflight": 1},
            "1 of 2 wanted connections has no tunnel; 1 agent is dialling",
        ),
        ({"store": "failing"}, "changes cannot be stored"),
    ],
)
def test_the_verdict_says_in_words_how_things_stand(told: dict[str, object], words: str) -> None:
    assert words in judge(CALM | told).text


def test_an_agent_that_pauses_between_dials_counts_as_dialling() -> None:
    status = CALM | {"target": 3}
    assert judge(status, 2.0).text == "2 of 3 proxies have no tunnel; the last dial began 2s ago"


class Logged:
    """Stands for a tracker whose daemon granted leases a moment ago, for these reasons."""

    def __init__(self, *reasons: str) -> None:
        self._reasons = reasons
        self._conversation = self

    def local(self, moment: float) -> float:
        return moment

    def log(self, after: int) -> dict[str, Any]:
        now = boottime()
        return {
            "events": [
                Event(after + number, now - 5, 1e9, "lease_granted", {"reason": reason})
                for number, reason in enumerate(self._reasons, 1)
            ]
        }


def test_an_adoption_is_no_dial() -> None:
    assert seconds_since_dial(Logged("adopt"), 7) is None  # type: ignore[arg-type] # all that is asked
    ago = seconds_since_dial(Logged("need", "adopt"), 7)  # type: ignore[arg-type] # likewise
    assert ago is not None
    assert ago >= 5


@pytest.mark.parametrize(
    ("told", "covered"),
    [({}, True), ({"tracked": 0}, False), ({"target": 2}, False), ({"store": "failing"}, False)],
)
def test_scripts_learn_whether_all_is_covered(told: dict[str, object], covered: bool) -> None:
    assert is_covered(CALM | told) is covered


def test_a_proxy_that_is_not_desired_says_why() -> None:
    row = {"desired": False, "tracked": True, "largest": 2**64 - 1}
    assert describe_desired(row) == f"no, {2**64 - 1} is newer"
    assert describe_desired(row | {"tracked": False}) == "no, not tracked"
    assert describe_desired(row | {"desired": True}) == "yes"
