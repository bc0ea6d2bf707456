"""A tracker whose daemon is killed and started again, with its state or without."""

from __future__ import annotations

import logging
import threading

import pytest

from helpers.both_clients import Background, Maker
from helpers.support import PATIENCE, wait_until
from helpers.trackers import acquire, held
from trackd_client import Proxy, SessionLost, Tracker
from trackd_client.core.base_tracker import ConnectionState
from trackd_client.errors import TrackerClosed
from trackd_client.testing import MakeDaemon

# -- one that keeps its state ----------------------------------------------------------------


@pytest.mark.both_stores
def test_a_kill_and_a_restart_of_the_daemon_show_as_latency_alone(
    make_trackd_daemon: MakeDaemon, maker: Maker
) -> None:
    own = make_trackd_daemon()
    states: list[ConnectionState] = []
    tracker = maker.tracker(own.endpoint, timeout=20.0, on_state_change=states.append)
    tracker.track_expected(Proxy("p1"), Proxy("p2"))
    claimed, inflight = tracker.try_acquire(), tracker.try_acquire()
    assert claimed.claim("p1")
    assert tracker.state == ConnectionState.CONNECTED
    own.kill()
    wait_until(lambda: tracker.state == ConnectionState.RECONNECTING)
    calls = [Background(inflight.claim, "p2"), Background(tracker.is_claimed, "p1")]
    own.start()
    assert [call.result() for call in calls] == [True, True]
    wait_until(
        lambda: (
            states
            == [ConnectionState.CONNECTED, ConnectionState.RECONNECTING, ConnectionState.CONNECTED]
        )
    )
    assert tracker.status()["epoch"] == 2
    assert not claimed.lost
    claimed.release()
    assert not tracker.is_claimed("p1")


def test_leases_outlive_a_daemon_that_keeps_state(make_trackd_daemon: MakeDaemon) -> None:
    daemon = make_trackd_daemon()
    with Tracker(daemon.endpoint, timeout=PATIENCE) as tracker:
        tracker.track_expected(Proxy("p1", "g", 2**64 - 1), Proxy("p2", "g", 2**64 - 1))
        lease, in_flight = held(tracker, "p1"), acquire(tracker)
        daemon.restart()
        assert tracker.is_claimed("p1")
        assert in_flight.claim("p2")
        assert not lease.lost
        assert tracker.status()["epoch"] == 2


def test_release_without_a_daemon_is_delivered_when_one_is_there(
    make_trackd_daemon: MakeDaemon,
) -> None:
    daemon = make_trackd_daemon()
    with Tracker(daemon.endpoint, timeout=PATIENCE) as tracker:
        lease, kept = held(tracker, "p"), held(tracker, "kept")
        daemon.kill()
        tracker.timeout = 0.1
        lease.release()
        assert lease.released
        daemon.start()
        tracker.timeout = PATIENCE
        wait_until(lambda: tracker.status()["claimed"] == 1)
        assert tracker.is_claimed("kept")
        assert not kept.released
        assert not kept.lost


# -- one that forgot -------------------------------------------------------------------------


def test_a_lost_session_is_told_once_and_the_next_call_opens_another(
    make_trackd_daemon: MakeDaemon, maker: Maker
) -> None:
    own = make_trackd_daemon(state_dir="")
    lost: list[SessionLost] = []
    states: list[ConnectionState] = []
    tracker = maker.tracker(
        own.endpoint, timeout=20.0, on_session_lost=lost.append, on_state_change=states.append
    )
    tracker.track_expected(Proxy("p1"), Proxy("p2"))
    claimed, inflight = tracker.try_acquire(), tracker.try_acquire()
    assert claimed.claim("p1")
    own.restart()
    assert claimed.lost.wait(PATIENCE), "told without a call"
    wait_until(lambda: tracker.state == ConnectionState.LOST)
    assert inflight.lost
    assert (claimed.released, claimed.claimed_name) == (True, "p1")
    assert inflight.released
    with pytest.raises(SessionLost, match="gone with the session"):
        inflight.claim("p2")
    claimed.release()
    adopted = tracker.adopt("p1")
    assert adopted.id == 1, "a new state counts anew"
    assert tracker.is_claimed("p1")
    assert tracker.state == ConnectionState.CONNECTED
    wait_until(lambda: len(lost) == 1 and states[-1] == ConnectionState.CONNECTED)
    assert states[0] == ConnectionState.CONNECTED
    assert ConnectionState.LOST in states


def test_a_session_opened_while_the_loss_of_the_last_one_is_told_is_connected_for_good(
    make_trackd_daemon: MakeDaemon,
) -> None:
    daemon = make_trackd_daemon(state_dir="")
    told: list[object] = []
    opened = threading.Event()

    class Slow(logging.Handler):
        """Holds up the thread that has found out."""

        def emit(self, record: logging.LogRecord) -> None:
            if record.msg.startswith("session lost"):
                assert opened.wait(PATIENCE)

    slow = Slow()
    logging.getLogger("trackd_client").addHandler(slow)
    try:
        with Tracker(
            daemon.endpoint,
            timeout=PATIENCE,
            on_session_lost=lambda error: told.append(type(error)),
            on_state_change=told.append,
        ) as tracker:
            lease = held(tracker, "p")
            daemon.restart()
            assert lease.lost.wait(PATIENCE)
            held(tracker, "p")
            opened.set()
            wait_until(
                lambda: ConnectionState.CONNECTED in told[told.index(ConnectionState.LOST) :]
            )
            assert told[-3:] == [ConnectionState.LOST, SessionLost, ConnectionState.CONNECTED]
            assert tracker.state == ConnectionState.CONNECTED
    finally:
        logging.getLogger("trackd_client").removeHandler(slow)


def test_a_callback_may_close_the_tracker_or_fail(make_trackd_daemon: MakeDaemon) -> None:
    daemon = make_trackd_daemon(state_dir="")
    closed = threading.Event()

    def close(_error: SessionLost) -> None:
        closing.close()
        closed.set()

    def fail(_error: SessionLost) -> None:
        raise RuntimeError("the callback's own mistake")

    closing = Tracker(daemon.endpoint, timeout=PATIENCE, on_session_lost=close)
    held(closing, "a")
    with Tracker(daemon.endpoint, timeout=PATIENCE, on_session_lost=fail) as failing:
        lease = held(failing, "b")
        daemon.restart()
        assert closed.wait(PATIENCE)
        assert lease.lost.wait(PATIENCE)
        with pytest.raises(TrackerClosed):
            closing.ping()
        again = held(failing, "b")
        daemon.restart()
        assert again.lost.wait(PATIENCE), "what keeps the session works after a failed callback"
