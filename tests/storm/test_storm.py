"""The short form of the storm; `make torture` has the long one."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from storm.storm import Storm

SEED = 1


@pytest.mark.slow
def test_a_storm_of_faults_breaks_no_rule_and_coverage_comes_back() -> None:
    with tempfile.TemporaryDirectory(prefix="storm-", ignore_cleanup_errors=True) as root:
        storm = Storm(Path(root), SEED, seconds=0.0)
        try:
            storm.run()
        finally:
            print(f"\nseed {SEED}: {dict(storm.count)}")
    assert storm.count["state garbled"] == 3
    assert storm.count["runtime directory removed"] == 1
