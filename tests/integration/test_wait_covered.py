"""`wait_covered` of both clients, with a daemon and without one."""

from __future__ import annotations

import threading

import pytest

from helpers.both_clients import Maker
from helpers.support import PATIENCE
from trackd_client import DaemonAbsent, NoAnswer, Proxy, Tracker
from trackd_client.errors import BadArgument
from trackd_client.testing import MakeDaemon


def test_it_returns_when_enough_tunnels_are_there(
    make_trackd_daemon: MakeDaemon, maker: Maker
) -> None:
    daemon = make_trackd_daemon()
    tracker = maker.tracker(daemon.endpoint)
    assert not tracker.wait_covered(0)
    assert tracker.wait_covered(0, allow_none=True)
    covered: list[bool] = []
    with Tracker(daemon.endpoint) as agent:
        agent.track_expected(Proxy("p1"), Proxy("p2"))
        thread = threading.Thread(target=lambda: covered.append(tracker.wait_covered(60.0)))
        thread.start()
        assert agent.adopt("p1")
        assert tracker.wait_covered(PATIENCE, at_least=1)
        assert tracker.wait_covered(PATIENCE, missing_at_most="50%")
        assert not tracker.wait_covered(0.01)
        assert thread.is_alive()
        assert agent.adopt("p2")
        thread.join(PATIENCE)
        assert covered == [True]
    with pytest.raises(BadArgument):
        tracker.wait_covered(1.0, at_least=0)
    assert tracker.status().sessions == 0, "who only looks opens no session"


def test_it_waits_for_a_daemon(make_trackd_daemon: MakeDaemon, maker: Maker) -> None:
    daemon = make_trackd_daemon()
    tracker = maker.tracker(daemon.endpoint, timeout=0.3)
    with Tracker(daemon.endpoint) as agent:
        agent.track_expected(Proxy("p1"))
        assert agent.adopt("p1")
        daemon.kill()
        with pytest.raises((DaemonAbsent, NoAnswer)):
            tracker.wait_covered(0.01)
        covered: list[bool] = []
        thread = threading.Thread(target=lambda: covered.append(tracker.wait_covered(None)))
        thread.start()
        daemon.start()
        thread.join(PATIENCE)
        assert covered == [True]
