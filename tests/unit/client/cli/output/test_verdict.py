"""How things stand, in one sentence."""

from __future__ import annotations

from typing import Any

import pytest

from trackd_client.cli.output.verdict import (
    decide,
    describe_coverage,
    describe_desired,
    describe_gaps,
    is_covered,
    judge,
    seconds_since_dial,
)
from trackd_client.core.coverage import count_missing
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


def test_a_tunnel_to_a_terminating_proxy_is_not_missing_while_it_is_there() -> None:
    told = CALM | {"target": 5, "claimed_desired": 2}
    assert [count_missing({**told, "claimed_terminating": n}) for n in (0, 2, 9)] == [3, 1, 0]
    assert count_missing(told) == 3
    assert is_covered({**told, "claimed_terminating": 3})


def test_a_lease_for_a_replacement_says_what_it_replaces() -> None:
    told = {"reason": "need", "target": 3, "claimed_desired": 3}
    assert "offers a tunnel" in decide({**told, "offered": 1}).text
    assert "terminating" in decide({**told, "claimed_terminating": 1}).text
    missing = {**told, "claimed_desired": 2, "offered": 1}
    assert decide(missing).text == "A lease now: 1 proxy has no tunnel."


def test_a_proxy_that_is_not_desired_says_why() -> None:
    row = {"desired": False, "tracked": True, "generation": 2, "largest": 2**64 - 1}
    assert describe_desired(row) == f"no, {2**64 - 1} is newer"
    assert describe_desired(row | {"largest": 2}) == "no, terminating"
    assert describe_desired(row | {"largest": 1}) == "no, terminating"
    assert describe_desired(row | {"tracked": False}) == "no, not tracked"
    assert describe_desired(row | {"desired": True}) == "yes"


def test_it_is_said_when_nothing_was_missing_last() -> None:
    short: dict[str, Any] = {
        "store": "ok",
        "tracked": 2,
        "target": 2,
        "claimed_desired": 1,
        "missing_seconds": 71.0,
    }
    full = short | {"claimed_desired": 2}
    for fields, full_at, sentence in (
        (full, 0.0, "full now; all tunnels together were missing for 1m 11s"),
        (short, -130.0, "last full 2m 10s ago; all tunnels together were missing for 1m 11s"),
        (
            short,
            None,
            "not full since the daemon started; all tunnels together were missing for 1m 11s",
        ),
    ):
        assert describe_coverage(fields, full_at) == sentence


def test_nothing_is_said_of_coverage_where_nothing_was_wanted_or_an_old_daemon_says_nothing() -> (
    None
):
    calm = {"store": "ok", "tracked": 0, "target": 0, "claimed_desired": 0}
    assert not describe_coverage(calm | {"missing_seconds": 0.0}, None)
    assert not describe_coverage(calm | {"target": 3}, None)
    assert describe_coverage(calm | {"missing_seconds": 3.0}, None), "something was wanted before"


def test_the_groups_that_miss_tunnels_are_named_where_there_are_several() -> None:
    gaps = [
        {"group": "east", "missing": 2, "missing_seconds": 71.0},
        {"group": "", "missing": 1, "missing_seconds": 3.0},
        {"group": "west", "missing": 0, "missing_seconds": 900.0},
        {"group": None, "missing": 4, "missing_seconds": 5.0},
    ]
    several = {"group_count": 3, "missing_by_group": gaps}
    words = 'missing by group: east 2 (1m 11s), "" 1 (3s), all others 4 (5s)'
    assert describe_gaps(several) == words
    assert not describe_gaps(several | {"group_count": 1}), "the line before says it all"
    assert not describe_gaps(several | {"missing_by_group": gaps[2:3]})
    assert not describe_gaps({"group_count": 3}), "an older daemon"
    many = [{"group": f"g{n}", "missing": 1, "missing_seconds": 1.0} for n in range(50)]
    assert describe_gaps(several | {"missing_by_group": many}).count("(") == 10
