"""The counters of the state."""

from __future__ import annotations

from trackd.state.changes import Claimed, EpochBegan, Granted, Moment, Released
from trackd.state.counters import Histogram, Metrics


def test_a_histogram_counts_a_value_at_its_bound_and_adds_up() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.observe(value)
    assert histogram.sample() == [[], [[1.0, 2], [2.0, 4], ["+Inf", 5]], 14.0]


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
