"""The short form of `make soak`: some seconds of it, and what it calls a rise."""

from __future__ import annotations

import pytest

from soak.__main__ import SAMPLES, Sample, draw, rises, soak

STEADY = [Sample(40.0 + i % 3, 30 + i % 2, 8, 1.0 + i % 4 / 4, 0.5) for i in range(SAMPLES)]


def test_what_goes_up_and_down_does_not_rise() -> None:
    assert rises(STEADY) == []


def test_what_settles_in_the_first_half_does_not_rise() -> None:
    warming = [sample._replace(memory=20.0) for sample in STEADY[: SAMPLES // 2]]
    assert rises([*warming, *STEADY[SAMPLES // 2 :]]) == []


@pytest.mark.parametrize(
    ("name", "each"), [("memory", 0.1), ("descriptors", 0.1), ("threads", 0.1), ("file", 0.1)]
)
def test_a_leak_is_found(name: str, each: float) -> None:
    leaking = [
        sample._replace(**{name: getattr(sample, name) + i * each})
        for i, sample in enumerate(STEADY)
    ]
    (found,) = rises(leaking)
    assert found.startswith(f"{name} rose from ")


def test_some_seconds_are_measured_and_drawn() -> None:
    samples = soak(2.0, agents=2, count=20)
    assert len(samples) == 20
    assert all(sample.memory > 1 and sample.descriptors > 3 for sample in samples)
    assert [line.split()[0] for line in draw(samples).splitlines()] == list(Sample._fields)
