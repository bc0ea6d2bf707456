"""How things stand, in one sentence and one word each."""

from __future__ import annotations

from typing import Any

from trackd_client.cli.output.listing import Row
from trackd_client.cli.output.render import (
    Cell,
    shown,
)


def verdict(told: dict[str, Any]) -> Cell:
    """Return in words how things stand."""
    missing = told["target"] - told["claimed_desired"]
    if told["store"] == "failing":
        return Cell("changes cannot be stored: agents are refused until they can", "red")
    if not told["tracked"]:
        return Cell("no proxy is known: the first dial brings gossip", "yellow")
    if missing <= 0:
        return Cell("every wanted proxy is claimed", "green")
    if told["inflight"]:
        return Cell(f"{missing} wanted, {told['inflight']} being dialled", "yellow")
    return Cell(f"{missing} wanted, and nobody dials", "yellow")


def desired(row: Row) -> str:
    """Return whether a proxy is desired, or why not."""
    if row["desired"]:
        return "yes"
    if row["tracked"]:
        return f"no, {shown(row['largest'])} is newer"
    return "no, not tracked"
