"""Incident: a roll-out has stopped after its first proxy, so the others are no longer desired."""

from __future__ import annotations

from collections.abc import Callable

from stage import Stage, stay

from trackd_client import Proxy, Tracker

OLD = [Proxy(f"proxy-{number}", "east", 7) for number in range(1, 7)]
NEW = Proxy("proxy-1", "east", 8)


def agent(tracker: Tracker, settled: Callable[[], None]) -> None:
    """Keep a tunnel to each proxy; then only proxy-1 comes back as generation 8."""
    for proxy in OLD:
        tracker.acquire().claim(proxy.name)
        tracker.track_expected(*OLD)
    tracker.track_expected(NEW)
    settled()
    stay()


if __name__ == "__main__":
    with Stage() as stage:
        stage.agent("agent-1", agent)
        stage.wait()
