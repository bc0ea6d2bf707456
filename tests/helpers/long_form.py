"""Which form of a test runs: a short one in `make test`, a long one in `make torture`."""

from __future__ import annotations

import os

#: Whether this is `make torture`.
IS_LONG = os.environ.get("TRACKD_TORTURE") == "1"


def choose(short: int, long: int) -> int:
    """Return the number that belongs to the form that runs."""
    return long if IS_LONG else short
