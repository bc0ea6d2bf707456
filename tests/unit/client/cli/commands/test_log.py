"""Moments, as people write them for `trackctl log`."""

from __future__ import annotations

import time
from datetime import datetime

import pytest

from trackd_client.cli.commands.log import read_moment


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("03:12", "2026-11-24 03:12:00"),
        ("3:12", "2026-11-24 03:12:00"),
        ("03:12:07.5", "2026-11-24 03:12:07.5"),
        ("23:00", "2026-11-23 23:00:00"),
        ("2026-11-20 03:12", "2026-11-20 03:12:00"),
        ("2026-11-20T03:12:00", "2026-11-20 03:12:00"),
        ("90s", "2026-11-24 11:58:30"),
        ("10m ago", "2026-11-24 11:50:00"),
        ("2h", "2026-11-24 10:00:00"),
        ("1.5d", "2026-11-23 00:00:00"),
    ],
)
def test_a_moment_is_read_as_people_write_it(text: str, expected: str) -> None:
    now = datetime.fromisoformat("2026-11-24 12:00:00").timestamp()
    assert read_moment(text, now) == datetime.fromisoformat(expected).timestamp()
    assert read_moment(str(now), now) == now


@pytest.mark.parametrize("text", ["", "soon", "25:00", "3:99", "10x", "-5m", "2026-13-01"])
def test_what_is_no_moment_is_none(text: str) -> None:
    assert read_moment(text, time.time()) is None
