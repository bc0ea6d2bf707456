"""How other agents fare while some peers ask for as much as they can.

The floods come from a process of their own (`benchmarks.flooder`), to a daemon of their own.
`scale` is 1.0 for what the targets speak of; less makes everything smaller, for a look at whether
it works.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Final

from benchmarks.clients import Dealer
from benchmarks.mixes import HELD
from benchmarks.single import Progress, dealer, program, running, settle, track
from benchmarks.targets import TARGETS, Figure

#: Requests that wait in the daemon's queue at the same time: `status`, and pages of a listing.
_QUEUED: Final = 300
_PAGES: Final = 128
#: Rounds with and without a flood of HTTP requests, in turn.
_ROUNDS: Final = 5


def floods(progress: Progress, scale: float) -> list[Figure]:
    """Let an agent work beside others that ask for much."""
    turns = int(100 * scale) + 1
    with running() as daemon, dealer(daemon) as client:
        track(client, int(5000 * scale) + 1000)
        client.request("adopt", principals=[HELD])
        settle(client)
        alone = [_adopt(client) for _ in range(turns)]
        waits = []
        with program("benchmarks.flooder", daemon.endpoint) as ask:
            for number in range(turns):
                progress(f"floods: {number} of {turns}")
                assert ask(f"status {_QUEUED} 3") == "begun\n"
                waits.append(_adopt(client))
                assert int(ask()) == _QUEUED
            assert ask(f"pages {_PAGES} 2") == "begun\n"
            beside = [_is_claimed(client) for _ in range(turns)]
            assert int(ask()) >= _PAGES
    waits.sort()
    return [
        Figure(
            name=f"a claim behind {_QUEUED} queued status, above idle, p99",
            value=1000 * (waits[len(waits) * 99 // 100] - statistics.median(alone)),
            unit="ms",
            target=TARGETS["behind_status"],
            about=f"over 3 connections; p50 {1000 * statistics.median(waits):.2f} ms;"
            f" without them {1000 * statistics.median(alone):.2f} ms",
        ),
        Figure(
            name=f"is_claimed beside {_PAGES} page reads under way, p50",
            value=1000 * statistics.median(beside),
            unit="ms",
            target=TARGETS["beside_pages"],
            about=f"over 2 connections; longest {1000 * max(beside):.2f} ms",
        ),
    ]


def scrapes(progress: Progress, scale: float) -> list[Figure]:
    """Let an agent work beside three connections that ask for metrics without a pause."""
    seconds = 2.0 * scale
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as place,
        running(http=f"unix:{place}/http.sock") as daemon,
        dealer(daemon) as client,
    ):
        track(client, int(5000 * scale) + 1000)
        settle(client)
        ratios, replies = [], 0
        with program("benchmarks.flooder", daemon.endpoint) as ask:
            for number in range(_ROUNDS):
                progress(f"scrapes: round {number + 1} of {_ROUNDS}")
                alone = _rate(client, seconds)
                assert ask(f"http {place}/http.sock 3") == "begun\n"
                ratios.append(_rate(client, seconds) / alone)
                replies += int(ask())
    return [
        Figure(
            name="is_claimed beside a flood of /metrics / without: requests per second",
            value=statistics.median(ratios),
            target=TARGETS["beside_metrics"],
            about=f"3 connections, {replies / (_ROUNDS * seconds):.0f} responses per second",
        )
    ]


def _adopt(client: Dealer) -> float:
    """Claim a proxy, and return how many seconds it took."""
    begun = time.perf_counter()
    lease = client.request("adopt", principals=["free"])["lease"]
    seconds = time.perf_counter() - begun
    client.request("release", lease=lease)
    return seconds


def _is_claimed(client: Dealer) -> float:
    begun = time.perf_counter()
    client.request("is_claimed", principals=[HELD])
    return time.perf_counter() - begun


def _rate(client: Dealer, seconds: float) -> float:
    """Return how many requests a second an agent makes in a closed loop."""
    begun, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - begun) < seconds:
        client.request("is_claimed", principals=[HELD])
        count += 1
    return count / passed


PARTS: dict[str, Callable[[Progress, float], list[Figure]]] = {
    "floods": floods,
    "scrapes": scrapes,
}
