"""The counters of the state."""

from __future__ import annotations

from trackd.state.counters import Histogram


def test_a_histogram_counts_a_value_at_its_bound_and_adds_up() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.observe(value)
    assert histogram.sample() == [[], [[1.0, 2], [2.0, 4], ["+Inf", 5]], 14.0]
