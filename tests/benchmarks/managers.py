"""The standard library's answer: the rules, shared by `multiprocessing.managers`.

A program of its own: `python -m benchmarks.managers PATH`.
"""

from __future__ import annotations

import sys
from multiprocessing.managers import BaseManager
from typing import Any

from trackd.rules.tracker import Tracker

_KEY = b"benchmark"
_TRACKER = Tracker("example.com")


class TrackerManager(BaseManager):
    """Serves one tracker."""


TrackerManager.register("tracker", callable=lambda: _TRACKER)


def connect(path: str) -> Any:
    """Return a stand-in for the tracker of the process that serves a socket."""
    manager = TrackerManager(address=path, authkey=_KEY)
    manager.connect()
    return manager.tracker()  # type: ignore[attr-defined] # made by register


if __name__ == "__main__":
    TrackerManager(address=sys.argv[1], authkey=_KEY).get_server().serve_forever()
