"""The fleet's benchmark in small: the pool beats loops that poll, in time and in dials."""

from __future__ import annotations

import pytest

from benchmarks import fleet


@pytest.mark.slow
def test_a_fleet_of_pools_needs_less_time_than_polling_and_fewer_dials_than_going_without() -> None:
    for seed in range(1, 6):  # chance, and other load on the machine, may spoil some of them

        def measure(loop: str, seed: int = seed) -> fleet.Result:
            return fleet.measure(
                loop, members=120, proxies=16, processes=2, seed=seed, patience=100.0
            )

        pool, polling, naive = map(measure, fleet.LOOPS)
        print("\n" + fleet.table([pool, polling, naive]))
        if (
            pool.seconds < polling.seconds
            and pool.dials < naive.dials
            and pool.at_once < naive.at_once
        ):
            return
    pytest.fail("in none of five runs")
