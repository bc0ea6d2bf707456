"""What the daemon tells by itself: notices on the wire, and what the clients make of them."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.both_clients import Background, Maker
from helpers.support import PATIENCE, RawPeer, pack, wait_until
from helpers.trackers import claimed_in_time
from trackd_client import Proxy, SessionLost, Tracker
from trackd_client.core.base_tracker import ConnectionState
from trackd_client.errors import LeaseExpired
from trackd_client.testing import Daemon, MakeDaemon
from trackd_client.wire.clock import boottime

pytest_plugins = ["pytester"]


def park(raw: RawPeer, op: str = "watch_session") -> int:
    """Send a request that is answered later, and return its number."""
    body = raw.body(op)
    raw.send(pack(body))
    return int(body["seq"])


def ask(raw: RawPeer, op: str, open_seqs: list[int], **fields: Any) -> dict[str, Any]:
    """Make a request that leaves the parked ones undone."""
    body = raw.body(op, **fields)
    done: list[int] = []
    first = 1
    for number in [*sorted(open_seqs), body["seq"]]:
        if number > first:
            done += [first, number - 1]
        first = number + 1
    body["done"] = done
    return raw.ask(body)


# -- the wire -------------------------------------------------------------------------------------


def test_a_watch_is_parked_until_there_is_something_to_tell(
    make_trackd_daemon: MakeDaemon,
) -> None:
    daemon = make_trackd_daemon(claim_timeout=0.4)
    with RawPeer(daemon.endpoint) as raw:
        raw.open()
        watch = park(raw)
        granted = ask(raw, "try_acquire", [watch])
        assert granted["claim_by"] > 0
        told = raw.receive()
        assert told is not None
        assert told["seq"] == watch
        assert told["notices"] == [{"notice": "lease_expired", "lease": granted["lease"]}]


def test_a_newer_watch_takes_the_place_of_an_older_one(daemon: Daemon) -> None:
    with RawPeer(daemon.endpoint) as raw:
        raw.open()
        old, new = park(raw), 0
        body = raw.body("watch_session")
        body["done"] = [1, old - 1]
        raw.send(pack(body))
        new = body["seq"]
        told = raw.receive()
        assert told is not None
        assert (told["seq"], told["notices"]) == (old, [])
        closed = ask(raw, "close", [old, new])
        assert "error" not in closed


def test_a_watch_sent_again_is_answered_once_over_the_newest_connection(
    make_trackd_daemon: MakeDaemon,
) -> None:
    daemon = make_trackd_daemon(claim_timeout=0.4)
    with RawPeer(daemon.endpoint) as raw, RawPeer(daemon.endpoint) as again:
        raw.open()
        again.token = raw.token
        body = raw.body("watch_session")
        raw.send(pack(body))
        granted = ask(raw, "try_acquire", [body["seq"]])
        again.send(pack(body))
        told = again.receive()
        assert told is not None
        assert told["notices"][0]["lease"] == granted["lease"]
        # Answered already: the same words once more.
        raw.send(pack(body))
        repeated = raw.receive()
        assert repeated == told


def test_a_watch_is_answered_when_its_session_ends(daemon: Daemon) -> None:
    with RawPeer(daemon.endpoint) as raw:
        raw.open()
        watch = park(raw)
        body = raw.body("close")
        body["done"] = [1, watch - 1]
        raw.send(pack(body))
        answers = [raw.receive(), raw.receive()]
        by_seq = {answer["seq"]: answer for answer in answers if answer is not None}
        assert by_seq[watch]["error"] == "session_ended"
        assert "error" not in by_seq[body["seq"]]


def test_what_happens_while_nobody_watches_is_told_to_the_next_watch(
    make_trackd_daemon: MakeDaemon,
) -> None:
    daemon = make_trackd_daemon(claim_timeout=0.2)
    with RawPeer(daemon.endpoint) as raw, Tracker(daemon.endpoint) as operator:
        raw.open()
        lease = raw.request("try_acquire")["lease"]
        wait_until(lambda: operator.status()["inflight"] == 0)
        watch = park(raw)
        told = raw.receive()
        assert told is not None
        assert (told["seq"], told["notices"]) == (
            watch,
            [{"notice": "lease_expired", "lease": lease}],
        )
        assert raw.request("claim", lease=lease, principals=["p1"])["error"] == "lease_expired"


def test_a_refused_lease_says_when_the_dial_budget_has_another(
    make_trackd_daemon: MakeDaemon,
) -> None:
    daemon = make_trackd_daemon(dial_rate=0.001, dial_burst=2)
    with RawPeer(daemon.endpoint) as raw:
        raw.open()
        raw.request("track_expected", proxies=[[f"p{n}", "", 0, None] for n in range(5)])
        assert [raw.request("try_acquire")["lease"] for _ in range(2)] == [1, 2]
        refused = raw.request("try_acquire")
        assert refused["lease"] is None
        assert 500.0 < refused["retry_after"] <= 1000.0
        raw.request("release", lease=1)
        assert raw.request("try_acquire")["lease"] is None, "what was taken is spent"


@pytest.mark.both_stores
@pytest.mark.rule(13)
def test_the_dial_budget_is_one_for_all_agents_serves_waiters_first_and_survives_a_restart(
    make_trackd_daemon: MakeDaemon,
) -> None:
    daemon = make_trackd_daemon(dial_rate=0.1, dial_burst=3)
    with (
        Tracker(daemon.endpoint, timeout=20.0) as first,
        Tracker(daemon.endpoint, timeout=20.0) as second,
    ):
        first.track_expected(*(Proxy(f"p{n}") for n in range(9)))
        granted = [first.try_acquire(), second.try_acquire(), first.try_acquire()]
        assert all(lease is not None for lease in granted)
        assert second.try_acquire() is None
        assert first.explain()["reason"] == "budget"
        daemon.restart()
        assert second.try_acquire() is None or first.status()["last_lease"] <= 5
        waits = Background(first.acquire)
        wait_until(lambda: second.status()["waiting"] == 1 or waits.done)
        stolen = second.try_acquire()
        lease = waits.result()
        assert stolen is None or stolen.id > lease.id


def test_without_need_the_budget_is_no_reason(make_trackd_daemon: MakeDaemon) -> None:
    daemon = make_trackd_daemon(dial_rate=0.001, dial_burst=1)
    with RawPeer(daemon.endpoint) as raw:
        raw.open()
        assert raw.request("try_acquire")["lease"] == 1
        assert "retry_after" not in raw.request("try_acquire"), "one is in flight: rule 6 refuses"


# -- the clients ----------------------------------------------------------------------------------


def test_a_lease_that_does_not_claim_in_time_is_lost_and_its_holder_told(
    make_trackd_daemon: MakeDaemon, maker: Maker
) -> None:
    own = make_trackd_daemon(claim_timeout=2.0)
    tracker = maker.tracker(own.endpoint)
    begun = boottime()
    lease = tracker.try_acquire()
    remaining = lease.remaining_claim_time
    assert 2.0 - (boottime() - begun) <= remaining <= 2.0
    assert lease.lost.wait(PATIENCE), "nobody called"
    wait_until(lambda: lease.remaining_claim_time == 0.0)
    assert lease.released
    assert tracker.status()["inflight"] == 0
    assert tracker.state == ConnectionState.CONNECTED, "the session is well"
    again = claimed_in_time(tracker.try_acquire, "p1")
    assert again.remaining_claim_time is None
    lease.release()
    assert tracker.is_claimed("p1")


def test_a_claim_that_comes_too_late_says_so(make_trackd_daemon: MakeDaemon, maker: Maker) -> None:
    own = make_trackd_daemon(claim_timeout=0.2)
    tracker = maker.tracker(own.endpoint)
    lease = tracker.try_acquire()
    wait_until(lambda: tracker.status()["inflight"] == 0)
    with pytest.raises(LeaseExpired, match="acquire another"):
        lease.claim("p1")


def test_without_a_cap_a_lease_may_take_its_time(
    make_trackd_daemon: MakeDaemon, maker: Maker
) -> None:
    own = make_trackd_daemon(claim_timeout=0)
    lease = maker.tracker(own.endpoint).try_acquire()
    assert lease.remaining_claim_time is None


@pytest.mark.both_stores
@pytest.mark.slow
def test_a_lease_taken_back_while_the_daemon_was_away_is_told_after_its_restart(
    make_trackd_daemon: MakeDaemon, maker: Maker
) -> None:
    own = make_trackd_daemon(claim_timeout=0.5)
    tracker = maker.tracker(own.endpoint)
    lease = tracker.try_acquire()
    own.kill()
    wait_until(lambda: lease.remaining_claim_time == 0.0)
    own.start()
    assert lease.lost.wait(PATIENCE)


def test_advice_to_close_reaches_the_lease(make_trackd_daemon: MakeDaemon, maker: Maker) -> None:
    own = make_trackd_daemon(disconnect_threshold=0.05)
    tracker = maker.tracker(own.endpoint)
    tracker.track_expected(Proxy("p1"), Proxy("p2"))
    leases = [tracker.try_acquire(), tracker.try_acquire()]
    assert leases[0].claim("p1")
    assert leases[1].claim("p2")
    tracker.set_connection_count(1)
    wait_until(lambda: any(lease.should_close for lease in leases))
    advised = next(lease for lease in leases if lease.should_close)
    assert not advised.lost
    advised.release()
    wait_until(lambda: tracker.status()["claimed"] == 1)
    assert sum(bool(lease.should_close) for lease in leases) == 1


@pytest.mark.slow
def test_another_holder_is_advised_when_the_first_does_not_react(
    make_trackd_daemon: MakeDaemon,
) -> None:
    own = make_trackd_daemon(disconnect_threshold=0.05)
    with Tracker(own.endpoint) as tracker:
        tracker.track_expected(Proxy("p1"), Proxy("p2"))
        leases = [tracker.adopt("p1"), tracker.adopt("p2")]
        tracker.set_connection_count(1)
        wait_until(lambda: any(lease and lease.should_close for lease in leases))
        wait_until(lambda: all(lease and lease.should_close for lease in leases), seconds=60.0)


def test_callbacks_tell_each_state_and_one_that_raises_harms_nobody(
    make_trackd_daemon: MakeDaemon, maker: Maker
) -> None:
    own = make_trackd_daemon(state_dir="")
    told: list[object] = []

    def on_state(state: ConnectionState) -> None:
        told.append(state)
        raise ZeroDivisionError

    def on_lost(error: SessionLost) -> None:
        told.append(type(error))
        raise ZeroDivisionError

    tracker = maker.tracker(
        own.endpoint, timeout=20.0, on_state_change=on_state, on_session_lost=on_lost
    )
    lease = tracker.try_acquire()
    own.kill()
    wait_until(lambda: tracker.state == ConnectionState.RECONNECTING)
    own.start()
    assert lease.lost.wait(PATIENCE)
    wait_until(lambda: SessionLost in told)
    assert tracker.state == ConnectionState.LOST
    assert tracker.try_acquire().claim("p1")
    assert tracker.state == ConnectionState.CONNECTED
    wait_until(lambda: told[-1] == ConnectionState.CONNECTED)
    assert told[:2] == [ConnectionState.CONNECTED, ConnectionState.RECONNECTING]
    assert told.count(SessionLost) == 1


def test_a_tracker_may_be_closed_from_its_callback(
    make_trackd_daemon: MakeDaemon, maker: Maker
) -> None:
    own = make_trackd_daemon(state_dir="")
    made: list[Any] = []

    def on_lost(error: SessionLost) -> None:
        if not maker.is_async:
            made[0].close()

    made.append(maker.tracker(own.endpoint, timeout=20.0, on_session_lost=on_lost))
    lease = made[0].try_acquire()
    own.restart()
    assert lease.lost.wait(PATIENCE)
    made[0].close()


# -- the fixtures that users get ----------------------------------------------------------------


@pytest.mark.slow
def test_the_fixtures_serve_a_project_of_somebody_else(pytester: pytest.Pytester) -> None:
    pytester.makeconftest('pytest_plugins = ["trackd_client.testing"]')
    pytester.makepyfile(
        """
        import os
        from trackd_client import Tracker

        pids = []

        def test_it_runs_a_daemon(trackd_daemon):
            pids.append(trackd_daemon.pid)
            with Tracker(trackd_daemon.endpoint, cluster="example.com") as tracker:
                assert tracker.try_acquire().claim("p1")

        def test_it_runs_daemons_with_settings(make_trackd_daemon):
            one = make_trackd_daemon("one.example.com", connection_count=3)
            two = make_trackd_daemon("two.example.com", state_dir="")
            pids.extend([one.pid, two.pid])
            with Tracker(one.endpoint) as tracker:
                assert tracker.status()["connection_count"] == 3
                one.restart()
                assert tracker.status()["epoch"] == 2
            assert two.stop() == 0

        def test_that_fails(trackd_daemon):
            pids.append(trackd_daemon.pid)
            assert False

        def test_all_are_gone():
            assert len(pids) == 4
            assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
        """
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=3, failed=1)
