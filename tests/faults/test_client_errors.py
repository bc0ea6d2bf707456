"""Whatever the system refuses and whatever a program passes, what leaves the client is ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.both_clients import daemon, shared_daemon
from helpers.every_call import ARGUMENTS, FAULTS, public_calls
from helpers.support import run_script
from trackd_client import Tracker
from trackd_client.testing import Daemon

__all__ = ["daemon", "shared_daemon"]

TESTS = Path(__file__).resolve().parents[1]


def test_the_walk_makes_every_public_call() -> None:
    for kind, calls in ARGUMENTS.items():
        assert set(calls) == public_calls(kind), kind


@pytest.mark.slow
@pytest.mark.parametrize("fault", [fault.__name__ for fault in FAULTS])
def test_every_error_that_leaves_a_public_call_is_a_trackd_error(
    daemon: Daemon, fault: str
) -> None:
    made, stderr = walk(fault, daemon)
    assert made > 100
    assert "Traceback" not in stderr


def test_every_public_call_in_a_forked_child_is_refused(daemon: Daemon) -> None:
    made, stderr = walk("fork", daemon)
    assert made > 100
    assert stderr == ""
    with Tracker(daemon.endpoint) as operator:
        status = operator.status()
    assert (status["claimed"], status["inflight"]) == (0, 0)


def walk(fault: str, daemon: Daemon) -> tuple[int, str]:
    """Make every public call, check what they raise; return how many, and standard error."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "helpers.every_call", fault, daemon.endpoint],
        capture_output=True,
        text=True,
        timeout=600.0,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
    )
    assert done.returncode == 0, done.stderr
    *raised, calls = done.stdout.splitlines()
    assert not raised
    return int(calls.removeprefix("calls: ")), done.stderr


@pytest.mark.parametrize("patched", ["real threads", "greenlets"])
def test_threads_that_are_greenlets_are_refused_with_what_to_do(
    daemon: Daemon, patched: str
) -> None:
    """As `monkey.patch_all()` of gevent leaves them: a function in Python starts a greenlet."""
    code = f"""
import _thread, sys
def start_new_thread(function, args=(), kwargs=None):
    raise AssertionError("this would be a greenlet, which a call of libzmq stops")
if {patched == "greenlets"}:
    _thread.start_new_thread = start_new_thread
from trackd_client import TrackdError, Tracker
try:
    with Tracker(sys.argv[1], timeout=60.0) as tracker:
        tracker.adopt("p")
except TrackdError as error:
    print(error)
"""
    done = run_script(code, daemon.endpoint)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("patch with thread=False" in done.stdout) == (patched == "greenlets")


@pytest.mark.parametrize(
    ("before", "call"),
    [
        ("pass", "tracker.adopt('p')"),
        ("pass", "next(tracker.events())"),
        ("pass", "next(tracker.rows('proxies'))"),
        ("pass", "tracker.track_discovery('{\"proxies\": []}')"),
        ("pass", "pool.start()"),
        ("tracker.ping()", "pool.start()"),
        ("tracker.ping()", "tracker.try_acquire()"),
        ("lease = tracker.adopt('p')", "lease.claim('q')"),
    ],
)
def test_threads_that_become_greenlets_after_the_tracker_was_made_are_refused_at_the_next_call(
    daemon: Daemon, before: str, call: str
) -> None:
    code = f"""
import _thread, sys
from trackd_client import AgentPool, TrackdError, Tracker
def start_new_thread(function, args=(), kwargs=None):
    raise AssertionError("this would be a greenlet, which a call of libzmq stops")
with Tracker(sys.argv[1], timeout=60.0) as tracker:
    pool = AgentPool(tracker, print)
    {before}
    _thread.start_new_thread = start_new_thread
    try:
        {call}
    except TrackdError as error:
        print(error)
"""
    done = run_script(code, daemon.endpoint)
    assert (done.returncode, done.stderr) == (0, "")
    assert "patch with thread=False" in done.stdout
