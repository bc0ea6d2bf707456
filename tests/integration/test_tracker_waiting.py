"""Calls of a tracker that wait for a lease: who is served, for how long, and giving up."""

from __future__ import annotations

import contextlib
import math
import resource
import time
from pathlib import Path

import pytest

from helpers.both_clients import Background, Maker
from helpers.support import PATIENCE, RawPeer, paused, wait_until
from helpers.trackers import acquire, in_thread, lossy_way, waiting
from trackd_client import AcquireTimeout, NoAnswer, Proxy, SessionLost, Tracker
from trackd_client.testing import Daemon, MakeDaemon

# -- waiting ---------------------------------------------------------------------------------


def test_a_waiting_agent_is_served_by_a_release(daemon: Daemon, maker: Maker) -> None:
    tracker, other = maker.tracker(daemon.endpoint), maker.tracker(daemon.endpoint)
    tracker.track_expected(Proxy("p1"))
    holder = tracker.try_acquire()
    waits = Background(other.acquire)
    wait_until(lambda: waiting(tracker) == 1)
    holder.release()
    lease = waits.result()
    assert lease.id == holder.id + 1
    assert waiting(tracker) == 0


def test_a_call_that_waits_holds_up_no_other_call_of_the_same_tracker(
    daemon: Daemon, maker: Maker
) -> None:
    tracker = maker.tracker(daemon.endpoint)
    tracker.track_expected(Proxy("p1"))
    holder = tracker.try_acquire()
    waiters = [Background(tracker.acquire) for _ in range(3)]
    wait_until(lambda: waiting(tracker) == 3)
    assert holder.claim("p1")
    for _ in range(20):
        assert tracker.is_claimed("p1")
    tracker.ping()
    assert not any(waits.done for waits in waiters)
    tracker.track_expected(*(Proxy(f"p{i}") for i in range(1, 5)))
    assert sorted(waits.result().id for waits in waiters) == [holder.id + i for i in (1, 2, 3)]


def test_a_waiter_stays_in_line_over_a_restart(make_trackd_daemon: MakeDaemon) -> None:
    daemon = make_trackd_daemon()
    with (
        Tracker(daemon.endpoint, timeout=PATIENCE) as tracker,
        Tracker(daemon.endpoint, timeout=PATIENCE) as other,
    ):
        blocking = acquire(tracker)
        thread, outcome = in_thread(other.acquire)
        wait_until(lambda: waiting(tracker) == 1)
        daemon.restart()
        assert waiting(tracker) == 1
        blocking.release()
        thread.join(PATIENCE)
        assert [lease.id for lease in outcome] == [2]


def test_a_waiting_agent_learns_by_itself_that_its_session_is_lost(
    make_trackd_daemon: MakeDaemon, maker: Maker
) -> None:
    own = make_trackd_daemon(state_dir="")
    tracker = maker.tracker(own.endpoint, timeout=20.0)
    tracker.try_acquire()
    waits = Background(tracker.acquire)
    wait_until(lambda: waiting(tracker) == 1)
    own.restart()
    with pytest.raises(SessionLost, match="fresh session"):
        waits.result()


# -- how long --------------------------------------------------------------------------------


def test_an_acquire_that_is_not_served_in_time_raises_and_leaves_no_waiter(
    daemon: Daemon, maker: Maker
) -> None:
    tracker = maker.tracker(daemon.endpoint)
    holder = tracker.try_acquire()
    with pytest.raises(AcquireTimeout) as caught:
        tracker.acquire(timeout=0.05)
    assert isinstance(caught.value, TimeoutError)
    wait_until(lambda: waiting(tracker) == 0)
    holder.release()
    assert tracker.status()["inflight"] == 0


def test_acquire_that_times_out_leaves_nothing_behind(tracker: Tracker) -> None:
    blocking = acquire(tracker)
    for seconds in (0, 0.05, 0.2):
        begun = time.monotonic()
        with pytest.raises(AcquireTimeout):
            tracker.acquire(timeout=seconds)
        assert time.monotonic() - begun >= seconds
    wait_until(lambda: waiting(tracker) == 0)
    blocking.release()
    wait_until(lambda: tracker.status()["inflight"] == 0)
    assert tracker.acquire(timeout=0).id > blocking.id


@pytest.mark.parametrize("timeout", [0, 0.0])
def test_an_acquire_that_may_not_wait_asks_all_the_same(
    daemon: Daemon, maker: Maker, timeout: float
) -> None:
    tracker = maker.tracker(daemon.endpoint)
    lease = tracker.acquire(timeout=timeout)
    assert lease.id > 0
    with pytest.raises(AcquireTimeout):
        tracker.acquire(timeout=timeout)
    wait_until(lambda: waiting(tracker) == 0)


def test_an_infinite_timeout_is_none(daemon: Daemon, maker: Maker) -> None:
    tracker = maker.tracker(daemon.endpoint)
    holder = tracker.acquire(timeout=math.inf)
    waits = Background(tracker.acquire, timeout=math.inf)
    wait_until(lambda: waiting(tracker) == 1)
    holder.release()
    assert waits.result().id == holder.id + 1


@pytest.mark.parametrize("seconds", [-1, float("nan")])
def test_a_wait_of_no_length_is_refused(shared_daemon: Daemon, seconds: float) -> None:
    with Tracker(shared_daemon.endpoint) as tracker, pytest.raises(ValueError, match="timeout"):
        tracker.acquire(seconds)


@pytest.mark.parametrize("seconds", [1e9, 1e30, float("inf")])
def test_a_wait_may_be_as_long_as_anybody_likes(shared_daemon: Daemon, seconds: float) -> None:
    with Tracker(shared_daemon.endpoint) as tracker:
        tracker.acquire(seconds).release()


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e30])
def test_a_tracker_without_a_deadline_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        Tracker("/tmp/x", timeout=seconds)


# -- what is lost on its way ----------------------------------------------------------------


def test_a_request_that_was_lost_on_its_way_into_the_queue_is_sent_again(
    daemon: Daemon, maker: Maker, tmp_path: Path
) -> None:
    with lossy_way(daemon, tmp_path, "acquire", "watch_session") as endpoint:
        tracker = maker.tracker(endpoint)
        lease = Background(tracker.acquire).result()
        with Tracker(daemon.endpoint) as operator:
            assert operator.force_release(lease.id)["released"]
        wait_until(lambda: lease.lost)
        assert lease.revoked
        tracker.close()


# -- what is given up ------------------------------------------------------------------------


@pytest.mark.slow
def test_a_grant_whose_request_was_sent_twice_is_not_taken_back(
    make_trackd_daemon: MakeDaemon, maker: Maker
) -> None:
    """Both copies are answered, one right after the other, and the second is nobody's."""
    own = make_trackd_daemon()
    tracker = maker.tracker(own.endpoint, timeout=20.0)
    tracker.track_expected(Proxy("p1"))
    with paused(own.pid):
        call = Background(tracker.try_acquire)
        time.sleep(1.3)  # resent after one second: RESEND_SECONDS
    lease = call.result()
    tracker.ping()
    assert tracker.status()["inflight"] == 1
    assert lease.claim("p1")


def test_a_copy_of_a_grant_that_nobody_awaits_is_given_back(trackd_daemon: Daemon) -> None:
    """The daemon is slow, the client sends twice, and gives up: nothing may stay in flight."""
    with (
        Tracker(trackd_daemon.endpoint, timeout=PATIENCE) as tracker,
        RawPeer(trackd_daemon.endpoint) as raw,
    ):
        tracker.is_claimed("p")
        with paused(trackd_daemon.pid):
            tracker.timeout = 1.3  # once more after a second
            with contextlib.suppress(NoAnswer):
                tracker.try_acquire()
        tracker.timeout = PATIENCE
        tracker.ping()
        wait_until(lambda: raw.request("status")["inflight"] == 0)
        acquire(tracker)


@pytest.mark.slow
def test_a_release_that_cannot_be_stored_is_made_when_it_can_be(
    make_trackd_daemon: MakeDaemon, maker: Maker
) -> None:
    own = make_trackd_daemon()
    tracker = maker.tracker(own.endpoint)
    lease = tracker.try_acquire()
    assert lease.claim("p1")
    _, hard = resource.prlimit(own.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    try:
        lease.release()
        assert lease.released
        assert tracker.is_claimed("p1"), "the store does not work"
    finally:
        resource.prlimit(own.pid, resource.RLIMIT_FSIZE, (hard, hard))
    wait_until(lambda: not tracker.is_claimed("p1"))


@pytest.mark.slow
def test_an_acquire_given_up_while_nothing_can_be_stored_leaves_nothing(
    make_trackd_daemon: MakeDaemon, maker: Maker
) -> None:
    own = make_trackd_daemon()
    tracker = maker.tracker(own.endpoint)
    lease = tracker.try_acquire()
    waits = Background(tracker.acquire, 2.0)
    wait_until(lambda: waiting(tracker) == 1 or waits.done)
    _, hard = resource.prlimit(own.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    try:
        lease.release()  # would serve the waiter
        with pytest.raises(AcquireTimeout):
            waits.result()
    finally:
        resource.prlimit(own.pid, resource.RLIMIT_FSIZE, (hard, hard))
    wait_until(lambda: tracker.status()["store"] == "ok")
    wait_until(lambda: (tracker.status()["inflight"], waiting(tracker)) == (0, 0))
