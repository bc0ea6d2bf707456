"""The counters of the state."""

from __future__ import annotations

from collections import Counter

from trackd.state.changes import (
    Change,
    Claimed,
    DialFailed,
    EpochBegan,
    Expired,
    Granted,
    LeaseStale,
    Moment,
    Released,
    SessionEnded,
    SessionOpened,
)
from trackd.state.counters import Histogram, Metrics


def test_a_histogram_counts_a_value_at_its_bound_and_adds_up() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.observe(value)
    assert histogram.sample() == [[], [[1.0, 2], [2.0, 4], ["+Inf", 5]], 14.0]


def test_values_between_two_bounds_are_taken_to_be_spread_evenly() -> None:
    histogram = Histogram((1.0, 2.0, 4.0))
    assert (histogram.total, histogram.quantile(0.5)) == (0, 0.0)
    histogram.observe(0.5, 2)
    histogram.observe(3.0, 2)
    shares = (0.25, 0.5, 0.75, 1.0)
    assert [histogram.quantile(share) for share in shares] == [0.5, 1.0, 3.0, 4.0]
    histogram.observe(9.0, 4)
    assert (histogram.total, histogram.sum) == (8, 0.5 * 2 + 3.0 * 2 + 9.0 * 4)
    assert [histogram.quantile(share) for share in shares] == [1.0, 4.0, 4.0, 4.0]


def test_the_bounds_of_histograms_stay_as_they_are() -> None:
    """They are labels, `le`: queries and alerts of operators name them."""
    metrics = Metrics()
    metrics.requests("ping", 0.0, 1)
    milliseconds = {
        "request": (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 50, 250, 1000),
        "commit": (0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 25, 100, 1000),
        "crash": (0.5, 1, 2.5, 5, 10, 25, 100, 1000, 10_000),
        "dial": (10, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000),
    }
    bounds = {
        "request": metrics.request_seconds["ping"].bounds,
        "commit": metrics.commit_seconds.bounds,
        "crash": metrics.crash_seconds.bounds,
        "dial": metrics.durations.dials["claimed"].bounds,
    }
    assert {
        name: tuple(round(1000 * bound, 6) for bound in each) for name, each in bounds.items()
    } == milliseconds
    minute, day = 60, 86_400
    lifetimes = (1, 10, minute, 10 * minute, 60 * minute, day / 4, day, 7 * day, 30 * day)
    assert metrics.durations.tunnels["asked"].bounds == lifetimes
    assert metrics.batch_requests.bounds == tuple(2**power for power in range(8))


def test_all_counters_begin_at_0() -> None:
    for name, counted in vars(Metrics()).items():
        if isinstance(counted, Counter):
            assert set(counted.values()) <= {0}, name
        elif isinstance(counted, Histogram):
            assert counted.total == 0, name
        elif isinstance(counted, int):
            assert counted == 0, name


def test_each_change_that_is_counted_counts_once_and_expiries_by_their_proxies() -> None:
    metrics = Metrics()
    batch: list[Change] = [
        SessionOpened(b"t", 1, 1000, 1000, 42, 7, "n", "1", {}, "c"),
        Granted(1, b"t", 1, "need"),
        Granted(2, b"t", 1, "bootstrap"),
        Claimed(1, 1, "p", []),
        LeaseStale(1, 1, "p"),
        DialFailed(2, 1, "tls", None),
        Released(2, 1, None, "asked", None),
        Expired([("p", "g", 1), ("q", "g", 1)], []),
        SessionEnded(b"t", 1, "closed", "n", 42, 7, 1000, [], None),
    ]
    metrics.take([Moment(1.0, 1.0, batch)])
    assert (metrics.sessions_opened, +metrics.sessions_ended) == (1, {"closed": 1})
    assert (+metrics.grants, metrics.claims) == ({"need": 1, "bootstrap": 1}, 1)
    assert (metrics.stale, +metrics.releases) == (1, {"asked": 1})
    assert (+metrics.dial_failures, metrics.expiries) == ({"tls": 1}, 2)
    dials = {outcome: dial.total for outcome, dial in metrics.durations.dials.items() if dial.total}
    assert dials == {"claimed": 1, "tls": 1}


def test_only_in_a_fleet_lost_hosts_are_counted_from_0() -> None:
    metrics = Metrics()
    counted = (metrics.sessions_ended, metrics.releases, metrics.durations.tunnels)
    assert not any("host_lost" in each for each in counted)
    metrics.expect_hosts()
    assert (metrics.sessions_ended["host_lost"], metrics.releases["host_lost"]) == (0, 0)
    assert all("host_lost" in each for each in counted)
    metrics.releases["host_lost"] += 1
    metrics.expect_hosts()
    assert metrics.releases["host_lost"] == 1, "it leads again"


def test_leases_of_a_state_that_was_set_aside_have_no_duration_in_the_next_one() -> None:
    metrics = Metrics()
    metrics.take([Moment(1.0, 1.0, [Granted(1, b"", 1, "need"), Granted(2, b"", 1, "need")])])
    metrics.take([Moment(2.0, 2.0, [EpochBegan(1, "", "", 0, 0, None, "", 1)])])
    metrics.take([Moment(9.0, 9.0, [Granted(1, b"", 1, "need"), Claimed(1, 1, "p", [])])])
    metrics.take([Moment(9.5, 9.5, [Released(2, 1, None, "asked", None)])])
    dials = {outcome: each.sum for outcome, each in metrics.durations.dials.items()}
    assert dials == dict.fromkeys(dials, 0.0)
    assert sum(metrics.durations.dials["claimed"].counts) == 1
    assert sum(metrics.durations.dials["unreported"].counts) == 0


def test_what_is_known_of_a_dial_is_forgotten_with_the_state_too() -> None:
    metrics = Metrics()
    metrics.take([Moment(1.0, 1.0, [Granted(1, b"", 1, "need")])])
    metrics.durations.note_outcome(1, "held")
    metrics.take([Moment(2.0, 2.0, [EpochBegan(1, "", "", 0, 0, None, "", 1)])])
    again: list[Change] = [Granted(1, b"", 1, "need"), Released(1, 1, None, "asked", None)]
    metrics.take([Moment(3.0, 3.0, again)])
    dials = metrics.durations.dials
    assert (dials["held"].total, dials["unreported"].total) == (0, 1)


def test_only_the_leases_that_are_there_are_remembered() -> None:
    metrics = Metrics()
    for lease in range(1, 100):
        metrics.take([Moment(1.0, 1.0, [Granted(lease, b"", 1, "need")])])
        metrics.durations.note_outcome(lease, "held")
        if lease % 2:
            metrics.take([Moment(2.0, 2.0, [Claimed(lease, 1, f"p{lease}", [])])])
        name = f"p{lease}" if lease % 2 else None
        metrics.take([Moment(3.0, 3.0, [Released(lease, 1, name, "asked", None)])])
        metrics.durations.note_outcome(lease, "held")  # it is gone
    assert not metrics.durations._began
    assert not metrics.durations._outcomes
    assert sum(metrics.durations.tunnels["asked"].counts) == 50
    assert sum(metrics.durations.dials["held"].counts) == 49


def test_a_tunnel_of_a_host_that_was_lost_has_lasted_too() -> None:
    metrics = Metrics()
    metrics.take([Moment(1.0, 1.0, [Granted(1, b"", 1, "need"), Claimed(1, 1, "p", [])])])
    metrics.take([Moment(3.0, 3.0, [Released(1, 1, "p", "host_lost", None)])])
    assert metrics.durations.tunnels["host_lost"].sum == 2.0
