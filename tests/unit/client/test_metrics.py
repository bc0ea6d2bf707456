"""The text that Prometheus reads, made of what the operation `metrics` answers."""

from __future__ import annotations

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from trackd_client.metrics import exposition, total

FAMILIES = [
    ["trackd_sessions", "gauge", "Sessions that live.", [], [[[], 3]]],
    [
        "trackd_refusals",
        "counter",
        "Leases refused.",
        ["reason"],
        [[["satisfied"], 7], [["budget"], 2]],
    ],
    [
        "trackd_request_seconds",
        "histogram",
        "Time of requests.",
        ["operation"],
        [[["claim"], [[0.001, 4], [0.01, 5], ["+Inf", 6]], 0.25]],
    ],
]


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_parser_of_prometheus_reads_back_what_was_counted() -> None:
    assert samples(exposition(FAMILIES)) == {
        ("trackd_sessions", ()): 3,
        ("trackd_refusals_total", (("reason", "satisfied"),)): 7,
        ("trackd_refusals_total", (("reason", "budget"),)): 2,
        ("trackd_request_seconds_bucket", (("le", "0.001"), ("operation", "claim"))): 4,
        ("trackd_request_seconds_bucket", (("le", "0.01"), ("operation", "claim"))): 5,
        ("trackd_request_seconds_bucket", (("le", "+Inf"), ("operation", "claim"))): 6,
        ("trackd_request_seconds_count", (("operation", "claim"),)): 6,
        ("trackd_request_seconds_sum", (("operation", "claim"),)): 0.25,
    }


def test_each_family_says_what_it_is_and_of_which_kind() -> None:
    text = exposition(FAMILIES)
    assert "# HELP trackd_refusals_total Leases refused.\n" in text
    assert re.findall(r"# TYPE \S+ (\w+)", text) == ["gauge", "counter", "histogram"]


@pytest.mark.parametrize(
    "name", ['a"b', "line\nbreak", "back\\slash", "…other", "", 'x"} 1\nevil 2']
)
def test_a_hostile_label_stays_a_label(name: str) -> None:
    family = ["trackd_tracked_proxies", "gauge", "Tracked.", ["group"], [[[name], 1]]]
    found = samples(exposition([family]))
    assert found == {("trackd_tracked_proxies", (("group", name),)): 1}


def test_families_of_kinds_that_a_newer_daemon_may_have_are_left_out() -> None:
    newer = ["trackd_moods", "stateset", "Moods.", ["mood"], [[["good"], True, "more"]]]
    assert exposition([newer, *FAMILIES]) == exposition(FAMILIES)


def test_a_total_adds_up_the_samples_that_are_asked_for() -> None:
    assert total(FAMILIES, "trackd_refusals") == 9
    assert total(FAMILIES, "trackd_refusals", {"reason": "budget"}) == 2
    assert total(FAMILIES, "trackd_no_such") == 0
