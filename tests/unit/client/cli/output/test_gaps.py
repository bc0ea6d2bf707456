"""Since when proxies have had no tunnel."""

from __future__ import annotations

from trackd_client.cli.output.gaps import MOST_GAPS, find_gaps
from trackd_client.core.event import Event


def make_event(time: float, kind: str, **fields: object) -> Event:
    return Event(int(time), time, time, kind, fields)


def test_a_gap_begins_with_the_first_mention_or_the_last_release_and_a_claim_ends_it() -> None:
    events = [
        make_event(1.0, "proxy_tracked", name="p1"),
        make_event(1.0, "proxy_tracked", name="p2"),
        make_event(1.0, "proxy_tracked", name="p3"),
        make_event(2.0, "proxy_claimed", name="p2"),
        make_event(3.0, "proxy_claimed", name="p3"),
        make_event(4.0, "lease_released", name="p2"),
        make_event(5.0, "lease_released", name=None),
        make_event(6.0, "session_opened", name="p3"),
        make_event(7.0, "lease_released", name="p4"),
    ]
    assert find_gaps(events) == {"p1": 1.0, "p2": 4.0, "p4": 7.0}


def test_the_gaps_that_began_last_are_kept_when_there_are_too_many() -> None:
    events = [make_event(float(i), "proxy_tracked", name=f"p{i}") for i in range(MOST_GAPS + 5)]
    again = make_event(float(MOST_GAPS + 5), "lease_released", name="p0")
    found = find_gaps([events[0], *events[1:10], again, *events[10:]])
    assert len(found) == MOST_GAPS
    assert "p0" in found, "it began again"
    assert "p1" not in found
    assert f"p{MOST_GAPS + 4}" in found
