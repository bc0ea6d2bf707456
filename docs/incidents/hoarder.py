"""Incident: an agent takes all leases and does not use them, so no other agent can dial."""

from __future__ import annotations

import threading
from collections.abc import Callable

from stage import Stage, stay

from trackd_client import Proxy, Tracker

PROXIES = [Proxy(f"proxy-{number}") for number in range(1, 7)]


def good(tracker: Tracker, settled: Callable[[], None]) -> None:
    """Claim two proxies, as an agent does."""
    for name in ("proxy-1", "proxy-2"):
        tracker.acquire().claim(name)
        tracker.track_expected(*PROXIES)
    settled()
    stay()


def hoarder(tracker: Tracker, settled: Callable[[], None]) -> None:
    """Take every lease. Its dials hang, and it never gives up."""
    while tracker.try_acquire() is not None:
        pass
    settled()
    stay()


def waiter(tracker: Tracker, settled: Callable[[], None]) -> None:
    """Wait for a lease that never comes."""
    threading.Thread(target=tracker.acquire, daemon=True).start()
    while not tracker.status()["waiting"]:
        pass
    settled()
    stay()


if __name__ == "__main__":
    with Stage(claim_timeout=0) as stage:
        stage.agent("agent-1", good)
        stage.agent("agent-2", hoarder)
        stage.agent("agent-3", waiter)
        stage.wait()
