"""How many tunnels are enough, and when to look again."""

from __future__ import annotations

import math
from itertools import islice
from typing import Any

import pytest

from trackd_client.core.coverage import Wanted, count_missing, pauses
from trackd_client.errors import BadArgument


def status(target: int, desired: int, terminating: int = 0) -> dict[str, int]:
    return {"target": target, "claimed_desired": desired, "claimed_terminating": terminating}


def test_a_tunnel_to_a_terminating_proxy_is_not_missing_while_it_is_there() -> None:
    assert [count_missing(status(5, 2, n)) for n in (0, 2, 9)] == [3, 1, 0]
    assert count_missing({"target": 5, "claimed_desired": 2}) == 3


@pytest.mark.parametrize(
    ("wanted", "enough", "short"),
    [
        (Wanted(), status(4, 4), status(4, 3)),
        (Wanted(), status(4, 3, 1), status(0, 0)),
        (Wanted(allow_none=True), status(0, 0), status(1, 0)),
        (Wanted(at_least=2), status(9, 2), status(9, 1, 8)),
        (Wanted(missing_at_most=2), status(9, 7), status(9, 6)),
        (Wanted(missing_at_most="10%"), status(19, 18), status(19, 17)),
        (Wanted(missing_at_most="100%"), status(1, 0), status(0, 0)),
    ],
)
def test_what_is_enough(wanted: Wanted, enough: dict[str, int], short: dict[str, int]) -> None:
    wanted.check()
    assert wanted.is_enough(enough)
    assert not wanted.is_enough(short)


@pytest.mark.parametrize(
    "wrong",
    [
        {"at_least": 0},
        {"at_least": True},
        {"at_least": "2"},
        {"missing_at_most": -1},
        {"missing_at_most": 0.1},
        {"missing_at_most": "10"},
        {"missing_at_most": "%"},
        {"missing_at_most": "101%"},
        {"missing_at_most": "9" * 5000 + "%"},
        {"missing_at_most": chr(0x661) + "%"},
    ],
)
def test_what_is_no_number_of_tunnels_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadArgument, match=next(iter(wrong))):
        Wanted(**wrong).check()


def test_the_pauses_grow_and_end_with_the_time() -> None:
    first = list(islice(pauses(None), 9))
    assert first == sorted(first)
    assert first[0] < first[-1] == first[-2]
    assert list(pauses(0)) == []
    assert 0 < next(pauses(0.001), 0.001) <= 0.001
    assert next(pauses(math.inf)) == first[0]
    with pytest.raises(BadArgument, match="timeout"):
        pauses("1")  # type: ignore[arg-type]
