"""A hundred thousand events and a kill of the daemon, before watchers quick, slow and asleep."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from helpers.both_clients import Maker
from helpers.event_watch import Watch, assert_same, assert_truthful, mirrored
from helpers.support import PATIENCE, paused, peak_rss, reset_peak_rss, rss, wait_until
from trackd_client import Event, Tracker
from trackd_client.testing import MakeDaemon

EVENTS = 100_000
PROXIES = 500
#: Bytes that a watcher who does not read may cost the daemon, or itself.
COSTS = 150 * 1024 * 1024

#: Rolls out a generation after the other, each of which is an event for every proxy.
STORM = f"""
import sys
from trackd_client import Proxy, Tracker
with Tracker(sys.argv[1], timeout=60) as tracker:
    for generation in range({EVENTS // PROXIES}):
        tracker.track_expected(*(Proxy(f"p{{i}}", "g", generation) for i in range({PROXIES})))
    for i in range(20):
        tracker.adopt(f"p{{i}}")
    print("over", flush=True)
    sys.stdin.readline()
"""

#: Begins to watch, reads nothing until it is told a revision, and then everything up to there.
SLEEPER = """
import json, sys
from pathlib import Path
from trackd_client import Tracker
from trackd_client.core.mirror import Mirror

def rss():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))

with Tracker(sys.argv[1], timeout=60) as tracker:
    events = tracker.events()
    told = [next(events)]
    before = rss()
    print("watching", flush=True)
    last = int(sys.stdin.readline())
    grown = rss() - before
    for event in events:
        told.append(event)
        if event.kind != "gap" and event.revision >= last:
            break
    print(json.dumps({"grown": grown, "told": told}))
"""


@contextmanager
def running(code: str, endpoint: str) -> Iterator[subprocess.Popen[str]]:
    """Run code in a process of its own that talks by lines; it is gone in the end."""
    with subprocess.Popen(
        [sys.executable, "-c", code, endpoint],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip()


def tell(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{text}\n")
    process.stdin.flush()


@pytest.mark.both_stores(long=True)
@pytest.mark.slow
def test_watchers_of_a_storm_know_everything_or_what_they_have_lost(
    make_trackd_daemon: MakeDaemon,
) -> None:
    daemon = make_trackd_daemon()
    with ExitStack() as stack:
        makers = [Maker(kind) for kind in ("sync", "asyncio", "uvloop")]
        for maker in makers:
            stack.callback(maker.close)
        watches = [Watch(maker.tracker(daemon.endpoint, timeout=5.0)).begun() for maker in makers]
        for watch in watches:
            stack.callback(watch.close)
        operator = stack.enter_context(Tracker(daemon.endpoint, timeout=PATIENCE))
        slow, asleep = (stack.enter_context(running(SLEEPER, daemon.endpoint)) for _ in range(2))
        assert (line(slow), line(asleep)) == ("watching", "watching")

        storm = stack.enter_context(running(STORM, daemon.endpoint))
        with paused(asleep.pid):  # its messages fill the kernel's buffers, and then the daemon's
            before = rss(daemon.pid)
            reset_peak_rss(daemon.pid)
            wait_until(lambda: operator.status()["revision"] > EVENTS // 2)
            cost = peak_rss(daemon.pid) - before
            daemon.restart()
            assert line(storm) == "over"
            assert operator.status()["revision"] > EVENTS
        print("the daemon grew by", cost >> 20, "MiB")
        assert cost < COSTS

        snapshot = operator.snapshot()
        assert [row["desired"] for row in snapshot["proxies"]] == [True] * PROXIES
        assert len(snapshot["leases"]) == 20
        for watch in watches:
            watch.reaches(snapshot["revision"])
            print(len(watch.told), "events,", watch.kinds.count("gap"), "gaps")
            assert_truthful(watch.told)
            assert_same(watch.mirror, snapshot)
            if "gap" not in watch.kinds:
                assert watch.kinds.count("daemon_started") == 1
        for sleeper in (slow, asleep):
            tell(sleeper, str(snapshot["revision"]))
            said: dict[str, Any] = json.loads(line(sleeper))
            told = [Event(*each) for each in said["told"]]
            print(said["grown"] >> 20, "MiB,", len(told), "events")
            assert said["grown"] < COSTS
            assert_truthful(told)
            assert_same(mirrored(told), snapshot)
