"""Incident: the proxies restart one after the other, and each announces that it goes."""

from __future__ import annotations

from collections.abc import Callable

from stage import Stage, stay

from trackd_client import Proxy, Tracker

NAMES = [f"proxy-{number}" for number in range(1, 5)]


def agent(tracker: Tracker, settled: Callable[[], None]) -> None:
    """Keep a tunnel to each proxy; two have restarted, and the third one is about to."""
    leases = {}
    for name in NAMES:
        leases[name] = tracker.acquire()
        leases[name].claim(name)
        tracker.track_expected(*(Proxy(each, terminating=False) for each in NAMES))
    for name in ("proxy-1", "proxy-2"):
        tracker.track_expected(Proxy(name, terminating=True))
        leases[name].release()  # the proxy has closed the tunnel
        tracker.track_expected(Proxy(name, terminating=False))  # it is back
        tracker.acquire().claim(name)
    tracker.track_expected(Proxy("proxy-3", terminating=True))
    settled()
    stay()


if __name__ == "__main__":
    with Stage() as stage:
        stage.agent("agent-1", agent)
        stage.wait()
