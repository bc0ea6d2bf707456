"""Signal handlers and finalizers that call the tracker, whatever it is doing: nothing hangs."""

from __future__ import annotations

from operator import attrgetter

import pytest

from helpers.both_clients import daemon, shared_daemon
from helpers.support import run_script, wait_until
from trackd_client import AgentPool, Lease, Tracker
from trackd_client.testing import Daemon

__all__ = ["daemon", "shared_daemon"]

#: Tries of each script, and the seconds after which it hangs.
TRIES = 1_000
HANGS = 240.0

#: A handler that runs every few hundred microseconds of processor time.
TIMER = """
import gc, signal, sys, threading
from trackd_client import TrackdError, Tracker
tries = int(sys.argv[2])
runs = nested = 0
def every(seconds, act):
    def handle(*_):
        global runs, nested
        if nested:
            return
        nested, runs = 1, runs + 1
        try:
            act()
        finally:
            nested = 0
    signal.signal(signal.SIGPROF, handle)
    signal.setitimer(signal.ITIMER_PROF, seconds, seconds)
def no_more():
    signal.setitimer(signal.ITIMER_PROF, 0)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "work",
    [
        "tracker.is_claimed('p')",
        "tracker.adopt('p').release()",
        "tracker.ping()",
        # Asleep it uses no processor time, so that few signals come: most are to come awake.
        "lease.lost.wait(0.0001 if runs % 10 == 0 else 0.0)",
        "lease.lost.set(); lease = tracker.adopt('q'); lease.release()",
    ],
)
def test_a_signal_handler_may_call_a_tracker_that_is_in_the_middle_of_a_call(
    daemon: Daemon, work: str
) -> None:
    code = f"""{TIMER}
with Tracker(sys.argv[1], timeout=60.0) as tracker, tracker.adopt("own") as lease:
    every(0.0003, lambda: (tracker.is_claimed("p"), lease.lost.is_set()))
    while runs < tries:
        {work}
    no_more()
"""
    done = run_script(code, daemon.endpoint, str(TRIES), timeout=HANGS)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_a_signal_handler_may_make_the_first_call_or_close_the_tracker_at_any_point(
    daemon: Daemon,
) -> None:
    code = f"""{TIMER}
import random
closed = 0
for number in range(tries // 10):
    with Tracker(sys.argv[1], timeout=60.0) as tracker:
        every(random.uniform(0.0001, 0.004), tracker.close if number % 2 else tracker.ping)
        try:
            while True:
                # A close that the daemon did not answer in time ends the session a little later.
                tracker.adopt("p" + str(number)).release()
                if number % 2 == 0 and runs > number:
                    break
        except TrackdError as error:
            closed += 1
        no_more()
assert closed == tries // 20, closed
"""
    done = run_script(code, daemon.endpoint, str(TRIES), timeout=HANGS)
    assert (done.returncode, done.stderr) == (0, "")
    with Tracker(daemon.endpoint) as operator:
        wait_until(lambda: operator.status()["sessions"] == 0)


@pytest.mark.slow
def test_a_finalizer_may_call_a_tracker_that_is_in_the_middle_of_a_call(daemon: Daemon) -> None:
    code = f"""{TIMER}
gc.set_threshold(1)
class Tunnel:
    def __init__(self):
        self.itself = self
    def __del__(self):
        global runs
        runs += 1
        tracker.is_claimed("p")
with Tracker(sys.argv[1], timeout=60.0) as tracker:
    while runs < tries:
        Tunnel()
        tracker.is_claimed("p")
    gc.collect()
"""
    done = run_script(code, daemon.endpoint, str(TRIES), timeout=HANGS)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_a_signal_handler_may_drain_a_pool(daemon: Daemon) -> None:
    code = f"""{TIMER}
from trackd_client import AgentPool, Proxy
for number in range(tries // 100):
    with Tracker(sys.argv[1], timeout=60.0) as tracker:
        def dial(lease):
            lease.claim("p")
            lease.should_close.wait()
        with AgentPool(tracker, dial) as pool:
            every(0.002, pool.drain)
            while not pool._stopping:
                pool.feed(Proxy("p"))
                pool.stats()
            no_more()
"""
    done = run_script(code, daemon.endpoint, str(TRIES), timeout=HANGS)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "lock",
    [
        "_lock",
        "_tracker._opening",
        "_tracker._closing",
        "_tracker._state_lock",
        "_tracker._limited_log.lock",
        "_tracker._connections.lock",
        "_tracker._keeper.lock",
        "_tracker._conversation.lock",
        "_tracker._conversation.reports.lock",
    ],
)
def test_a_drain_that_has_interrupted_a_call_waits_for_nothing_that_cannot_end(
    daemon: Daemon, lock: str
) -> None:
    def dial(lease: Lease) -> None:
        lease.claim("p")
        lease.should_close.wait()

    with Tracker(daemon.endpoint) as tracker, AgentPool(tracker, dial) as pool:
        wait_until(lambda: pool.stats().claims)
        with attrgetter(lock)(pool):  # as the call that a signal handler has interrupted
            assert pool.drain() is False
        assert pool.drain() is True
        assert tracker.status()["claimed"] == 0


def test_handlers_that_nest_waits_without_end_are_refused_instead_of_waiting_for_themselves(
    daemon: Daemon,
) -> None:
    code = """
import logging, signal, sys
from trackd_client import AgentPool, Lease, Tracker
logging.disable()  # a thread whose start was interrupted starts later, and says so
sys.setrecursionlimit(10_000)
depth, refusals = 0, []
def handle(*_):
    global depth
    if refusals:
        return
    depth += 1
    signal.setitimer(signal.ITIMER_REAL, 0.001)
    try:
        # Not forever: pyzmq drops what a handler raises while it makes a socket, and then the call
        # that was interrupted there goes on waiting.
        tracker.acquire(20.0)
    except TimeoutError as error:
        refusals.append(str(error))
        raise
with Tracker(sys.argv[1], timeout=60.0) as tracker:
    tracker.ping()
    signal.signal(signal.SIGALRM, handle)
    try:
        handle()
    except TimeoutError:
        print(depth > 128, refusals[0])
"""
    done = run_script(code, daemon.endpoint, timeout=HANGS)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("True 128 calls of this thread are under way within one another")
