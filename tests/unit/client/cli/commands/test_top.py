"""The keys of `trackctl top`."""

from __future__ import annotations

from trackd_client.cli.commands.top import read_keys


def test_keys_are_told_apart_however_they_come() -> None:
    assert read_keys("q\x1b[A\x1b[5~\ts\x1b") == ["q", "up", "page up", "tab", "s", "escape"]
