"""Six recorded runs of the reference package, replayed to the last field."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trackd.rules.tracker import Tracker
from trackd_client.proxy import Proxy

TRACES = sorted((Path(__file__).parents[3] / "traces").glob("*.jsonl"))


class Replay:
    """Runs one operation after the other and tells what `expect` should say."""

    def __init__(self) -> None:
        self.now = 0.0
        self.tracker = Tracker("not yet")
        self.names: dict[int, str] = {}  # what each lease claimed; a released one keeps it

    def run(self, op: dict[str, Any]) -> dict[str, Any]:
        answer = getattr(self, op.pop("op"))(**op)
        return {
            **answer,
            "inflight": self.tracker.inflight,
            "claimed_n": self.tracker.claimed_count,
            "tracked_n": self.tracker.tracked_count,
        }

    def new(self, cluster: str, expiry: float) -> dict[str, Any]:
        try:
            self.tracker = Tracker(cluster, expiry, lambda: self.now)
        except ValueError:
            return {"error": True}
        return {"ok": True}

    def advance(self, seconds: float) -> dict[str, Any]:
        self.now += seconds
        return {"ok": True}

    def track(self, proxies: list[dict[str, Any]]) -> dict[str, Any]:
        self.tracker.track_expected(Proxy(**proxy) for proxy in proxies)
        return {"ok": True}

    def count(self, n: int) -> dict[str, Any]:
        self.tracker.set_connection_count(n)
        return {"ok": True}

    def acquire(self) -> dict[str, Any]:
        return {"lease": self.tracker.try_acquire()}

    def claim(self, lease: int, principals: list[str]) -> dict[str, Any]:
        name = self.tracker.claim(lease, principals)
        if name is not None:
            self.names[lease] = name
        return {"claimed": name is not None, "name": self.names.get(lease, "")}

    def release(self, lease: int) -> dict[str, Any]:
        self.tracker.release(lease)
        return {"ok": True}

    def is_released(self, lease: int) -> dict[str, Any]:
        return {"released": lease not in self.tracker.leases}

    def is_claimed(self, principals: list[str]) -> dict[str, Any]:
        return {"claimed": self.tracker.is_claimed(principals)}


def steps(path: Path) -> Iterator[tuple[int, dict[str, Any], dict[str, Any]]]:
    with path.open() as lines:
        for number, line in enumerate(lines, start=1):
            step = json.loads(line)
            expect = step["expect"]
            if "error" in expect:
                expect["error"] = True  # what the sentence says is the reference's own affair
            yield number, step["op"], expect


def test_there_are_traces() -> None:
    assert len(TRACES) >= 6


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_a_recorded_run_is_repeated_to_the_last_field(path: Path) -> None:
    replay = Replay()
    for number, op, expect in steps(path):
        seen = replay.run(dict(op))
        assert {key: seen.get(key) for key in expect} == expect, f"line {number}: {op}"
