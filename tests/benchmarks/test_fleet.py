"""The fleet's benchmark in small: the pool beats loops that poll, in time and in dials."""

from __future__ import annotations

import pytest

from benchmarks import fleet


@pytest.mark.slow
def test_a_fleet_of_pools_needs_less_time_than_polling_and_fewer_dials_than_going_without() -> None:
    def measure(loop: str) -> fleet.Result:
        # So few proxies that chance hardly ever needs as many dials as one process has agents.
        return fleet.measure(loop, members=120, proxies=8, processes=2, seed=1, patience=100.0)

    pool, polling, naive = map(measure, fleet.LOOPS)
    print("\n" + fleet.table([pool, polling, naive]))
    assert pool.seconds < polling.seconds
    assert pool.dials < naive.dials
    assert pool.at_once < naive.at_once
