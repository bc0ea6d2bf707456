"""Incident: a tunnel is dead while its agent lives; another agent takes its proxy over."""

from __future__ import annotations

from collections.abc import Callable

from stage import PATIENCE, Stage, stay

from trackd_client import Proxy, Tracker

PROXIES = [Proxy("proxy-1"), Proxy("proxy-2")]


def deaf(tracker: Tracker, settled: Callable[[], None]) -> None:
    """Keep two tunnels. One answers once, and then no more; nobody notices that here."""
    for proxy in PROXIES:
        lease = tracker.acquire()
        lease.claim(proxy.name)
        tracker.track_expected(*PROXIES)
    lease.report(rtt=0.02)
    settled()
    stay()


def other(tracker: Tracker, settled: Callable[[], None]) -> None:
    """Wait until a tunnel is missing, and dial."""
    tracker.acquire(PATIENCE).claim("proxy-2")
    settled()
    stay()


if __name__ == "__main__":
    with Stage(tunnel_timeout=1) as stage:
        stage.agent("agent-1", deaf)
        stage.agent("agent-2", other)
        stage.wait()
