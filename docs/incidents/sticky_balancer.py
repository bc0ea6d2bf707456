"""Incident: the load balancer is sticky: it sends all dials from one address to one proxy."""

from __future__ import annotations

from collections.abc import Callable

from stage import Stage, stay

from trackd_client import Proxy, Tracker

PROXIES = [Proxy(f"proxy-{number}") for number in range(1, 7)]
DIALS = 20


def agent(tracker: Tracker, settled: Callable[[], None]) -> None:
    """Dial as an agent does. Each dial reaches proxy-2."""
    for _ in range(DIALS):
        lease = tracker.acquire()
        if lease.claim("proxy-2.example.com", "proxy-2"):
            tracker.track_expected(*PROXIES)
        else:
            lease.release()
    settled()
    stay()


if __name__ == "__main__":
    with Stage() as stage:
        for name in ("agent-1", "agent-2"):
            stage.agent(name, agent)
        stage.wait()
