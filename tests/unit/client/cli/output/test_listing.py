"""The order of rows."""

from __future__ import annotations

from typing import Any

from trackd_client.cli.output import listing


def test_rows_without_a_value_come_last_and_those_alike_by_name() -> None:
    rows: list[dict[str, Any]] = [
        {"n": "b", "a": None},
        {"n": "z", "a": 3},
        {"n": "y", "a": 3},
        {"n": "x", "a": 1},
    ]
    ordered = listing.sort_rows(rows, "a", "n", reverse=True)
    assert [row["n"] for row in ordered] == ["y", "z", "x", "b"]
