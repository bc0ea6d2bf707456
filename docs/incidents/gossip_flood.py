"""Incident: an agent sends gossip about proxies that do not exist, so thousands seem missing."""

from __future__ import annotations

from collections.abc import Callable

from stage import Stage, stay

from trackd_client import Proxy, Tracker

PROXIES = [Proxy("proxy-1", "east"), Proxy("proxy-2", "east")]
MESSAGES = 400


def good(tracker: Tracker, settled: Callable[[], None]) -> None:
    """Keep a tunnel to each proxy."""
    for proxy in PROXIES:
        tracker.acquire().claim(proxy.name)
        tracker.track_expected(*PROXIES)
    settled()
    stay()


def chatty(tracker: Tracker, settled: Callable[[], None]) -> None:
    """Send one message after another, each about proxies that do not exist."""
    for number in range(MESSAGES):
        names = (f"tmp-{number}-{i}" for i in range(5))
        tracker.track_expected(*(Proxy(name, "eats") for name in names))
    settled()
    stay()


if __name__ == "__main__":
    with Stage() as stage:
        stage.agent("agent-1", good)
        stage.agent("agent-2", chatty)
        stage.wait()
