"""How things stand, in one sentence."""

from __future__ import annotations

import pytest

from trackd_client.cli.output.verdict import desired, verdict

CALM = {"store": "ok", "tracked": 1, "target": 1, "claimed_desired": 1, "inflight": 0}


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({}, "every wanted proxy is claimed"),
        ({"tracked": 0}, "no proxy is known"),
        ({"target": 3, "inflight": 2}, "2 wanted, 2 being dialled"),
        ({"target": 3}, "2 wanted, and nobody dials"),
        ({"store": "failing"}, "changes cannot be stored"),
    ],
)
def test_the_verdict_says_in_words_how_things_stand(told: dict[str, object], words: str) -> None:
    assert words in verdict(CALM | told).text


def test_a_proxy_that_is_not_desired_says_why() -> None:
    row = {"desired": False, "tracked": True, "largest": 2**64 - 1}
    assert desired(row) == f"no, {2**64 - 1} is newer"
    assert desired(row | {"tracked": False}) == "no, not tracked"
    assert desired(row | {"desired": True}) == "yes"
