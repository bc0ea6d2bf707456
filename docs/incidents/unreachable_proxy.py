"""Incident: gossip mentions proxy-6, but the load balancer does not know it."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from stage import Stage, stay

from trackd_client import Proxy, Tracker

PROXIES = [Proxy(f"proxy-{number}", generation=4) for number in range(1, 7)]
BEHIND_THE_BALANCER = PROXIES[:5]
DIALS = 60


def agent(tracker: Tracker, settled: Callable[[], None]) -> None:
    """Dial through a balancer that takes turns among the proxies that it knows."""
    for reached in itertools.islice(itertools.cycle(BEHIND_THE_BALANCER), DIALS):
        lease = tracker.acquire()
        if lease.claim(f"{reached.name}.example.com", reached.name):
            tracker.track_expected(*PROXIES)
        else:
            lease.release()
    settled()
    stay()


if __name__ == "__main__":
    with Stage() as stage:
        stage.agent("agent-1", agent)
        stage.wait()
