"""The benchmarks in small: every row is there, in the table and in the file. No time is judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import floods, growth, load, single
from benchmarks.__main__ import main
from benchmarks.mixes import Mix
from benchmarks.peers import TESTS, absent
from benchmarks.targets import Figure, Target


def small(path: Path, *only: str) -> dict[str, Any]:
    """Run the smallest benchmark of what has one of these words in its name."""
    words = [word for name in only for word in ("--only", name)]
    size = ["--rounds=1", "--seconds=0.02", "--scale=0.01", "--most=10"]
    before = ["--before", str(TESTS.parent)]
    assert main([*size, *before, "--json", str(path / "bench.json"), *words]) == 0
    written: dict[str, Any] = json.loads((path / "bench.json").read_text())
    return written


def test_each_mix_is_measured_with_every_client_that_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = small(tmp_path, "1 agent, ")
    table = capsys.readouterr().out
    columns = {column for column, peer in load.COLUMNS.items() if peer not in absent()}
    assert [row["mix"] for row in written["load"]] == list(Mix)
    for row in written["load"]:
        assert row["case"] in table
        assert set(row["rounds"]) == columns
        for rounds in row["rounds"].values():
            assert all(each["rate"] > 0 and each["p50"] > 0 for each in rounds)


@pytest.mark.slow
def test_everything_else_is_measured_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes = [case.name for case in load.CASES if case.shape is not load.ONE]
    written = small(tmp_path, *shapes, *single.PARTS, *floods.PARTS, "growth")
    printed = capsys.readouterr().out
    assert set(shapes) <= {row["case"] for row in written["load"]}
    curves = {(curve["axis"], curve["operation"]) for curve in written["growth"]}
    assert curves == {(axis.name, step) for axis in growth.AXES for step in axis.steps}
    assert all(figure["name"] in printed for figure in written["figures"])
    for word in (
        "idle",
        "memory",
        "gossip",
        "SIGKILL",
        "restart",
        "checkpoint",
        "queued",
        "/metrics",
        "throughput",
    ):
        assert any(word in figure["name"] for figure in written["figures"]), word


def test_only_what_is_worse_than_a_quarter_of_its_target_fails_the_guard() -> None:
    most, least = Target(bound=1.2), Target(bound=0.6, least=True)
    assert [Figure(name="", value=v, target=most).far_off for v in (1.1, 4.7, 4.9)] == [
        False,
        False,
        True,
    ]
    assert [Figure(name="", value=v, target=least).far_off for v in (0.7, 0.16, 0.14)] == [
        False,
        False,
        True,
    ]
