"""The metrics of the daemon: gauges of its state, and the counters of `trackd.state.counters`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trackd.state.counters import Histogram, Metrics

Family = list[Any]


def counter_families(metrics: Metrics) -> list[Family]:
    """Return the counters and histograms."""
    return [
        _by("trackd_grants", "Leases granted, by the reason.", "reason", metrics.grants),
        _by(
            "trackd_refusals",
            "Leases refused or asked to wait, by the reason.",
            "reason",
            metrics.refusals,
        ),
        counter("trackd_claims", "Proxies claimed, adopted tunnels included.", metrics.claims),
        counter(
            "trackd_duplicates",
            "Claims and adoptions that met a proxy which another lease holds.",
            metrics.duplicates,
        ),
        _by("trackd_releases", "Leases released, by the cause.", "cause", metrics.releases),
        counter("trackd_sessions_opened", "Sessions opened.", metrics.sessions_opened),
        _by("trackd_sessions_ended", "Sessions ended.", "reason", metrics.sessions_ended),
        counter("trackd_gossip_messages", "Gossip messages.", metrics.gossip_messages),
        counter("trackd_gossip_proxies", "Mentions of proxies.", metrics.gossip_proxies),
        counter(
            "trackd_gossip_lowered_generations",
            "Mentions that lowered the generation of a proxy within its group.",
            metrics.lowered_generations,
        ),
        counter("trackd_expiries", "Proxies that expired.", metrics.expiries),
        _by("trackd_errors", "Requests answered with an error.", "code", metrics.errors),
        _by("trackd_admin_acts", "Acts of administrators.", "operation", metrics.admin_acts),
        counter("trackd_events", "Changes of the state.", metrics.events),
        [
            "trackd_request_seconds",
            "histogram",
            "Time from the receipt of a request's batch to its reply, by operation.",
            ["operation"],
            [each.sample([op]) for op, each in sorted(metrics.request_seconds.items())],
        ],
        _histogram("trackd_batch_requests", "Requests of one batch.", metrics.batch_requests),
        _histogram("trackd_commit_seconds", "Time of a commit.", metrics.commit_seconds),
        _histogram(
            "trackd_crash_to_release_seconds",
            "Time from the kernel's word that a process has exited to the commit that frees"
            " its leases.",
            metrics.crash_seconds,
        ),
    ]


def gauge(name: str, text: str, value: float) -> Family:
    """Return a gauge without labels."""
    return [name, "gauge", text, [], [[[], value]]]


def gauges(name: str, text: str, labels: Sequence[str], samples: list[Any]) -> Family:
    """Return a gauge with labels; a sample is the label's values and a number."""
    return [name, "gauge", text, list(labels), samples]


def counter(name: str, text: str, value: float) -> Family:
    """Return a counter without labels."""
    return [name, "counter", text, [], [[[], value]]]


def _by(name: str, text: str, label: str, counts: Mapping[str, int]) -> Family:
    samples = [[[value], number] for value, number in sorted(counts.items())]
    return [name, "counter", text, [label], samples]


def _histogram(name: str, text: str, histogram: Histogram) -> Family:
    return [name, "histogram", text, [], [histogram.sample()]]
