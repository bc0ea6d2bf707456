"""Every case runs against the synchronous client, the asyncio one, and that under uvloop."""

from __future__ import annotations

import contextlib
import json
import math
import resource
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from helpers.both_clients import Background, Maker
from helpers.support import paused, run_script, wait_until
from trackd_client import (
    AcquireTimeout,
    BadPayload,
    DaemonAbsent,
    NoAnswer,
    Proxy,
    SessionLost,
    TrackdError,
)
from trackd_client.core.base_tracker import State
from trackd_client.errors import (
    BadArgument,
    InvalidRequest,
    LimitExceeded,
    TrackerClosed,
    WrongCluster,
)
from trackd_client.testing import Daemon, MakeDaemon


def waiting(tracker: Any) -> int:
    return int(tracker.status()["waiting"])


# -- the life of a lease ------------------------------------------------------------------------


def test_an_agent_leases_claims_feeds_gossip_and_releases(daemon: Daemon, maker: Maker) -> None:
    tracker = maker.tracker(daemon.endpoint, cluster="example.com")
    lease = tracker.try_acquire()
    assert lease.id > 0
    assert (lease.claimed_name, lease.released) == (None, False)
    assert lease.claim("p1.example.com", "p1") is True
    assert lease.claimed_name == "p1"
    tracker.track_expected(Proxy("p1"), Proxy("p2"))
    assert tracker.is_claimed("p1.example.com")
    assert tracker.is_claimed("nobody", "p1") is True
    assert not tracker.is_claimed("p2")
    other = tracker.try_acquire()
    assert other.id == lease.id + 1
    assert tracker.try_acquire() is None
    other.release()
    lease.release()
    assert not tracker.is_claimed("p1")
    status = tracker.status()
    assert (status["claimed"], status["inflight"]) == (0, 0)


def test_a_released_lease_keeps_its_name_and_claims_no_more(daemon: Daemon, maker: Maker) -> None:
    tracker = maker.tracker(daemon.endpoint)
    lease = tracker.try_acquire()
    assert lease.claim("p1")
    lease.release()
    lease.release()
    assert lease.released
    assert lease.claimed_name == "p1"
    assert lease.claim("p2") is False
    assert not lease.lost
    assert not tracker.is_claimed("p2")


def test_leaving_a_leases_block_releases_it_also_by_an_exception(
    daemon: Daemon, maker: Maker
) -> None:
    tracker = maker.tracker(daemon.endpoint)
    lease = tracker.try_acquire()
    with contextlib.suppress(ZeroDivisionError), lease:
        assert lease.claim("p1")
        raise ZeroDivisionError
    assert lease.released
    assert not tracker.is_claimed("p1")


def test_a_proxy_is_claimed_once_and_the_loser_may_try_another(
    daemon: Daemon, maker: Maker
) -> None:
    tracker, rival = maker.tracker(daemon.endpoint), maker.tracker(daemon.endpoint)
    tracker.track_expected(Proxy("p1"), Proxy("p2"))
    first, second = tracker.try_acquire(), rival.try_acquire()
    assert first.claim("p1")
    assert second.is_claimed("p1")
    assert second.claim("p1") is False
    assert second.claimed_name is None
    assert second.claim("p2")
    assert second.claim("p1") is False, "it has claimed already"
    assert second.claimed_name == "p2"


def test_an_open_tunnel_is_adopted_unless_another_lease_holds_its_proxy(
    daemon: Daemon, maker: Maker
) -> None:
    tracker, rival = maker.tracker(daemon.endpoint), maker.tracker(daemon.endpoint)
    adopted = tracker.adopt("p1.example.com", "x")
    assert adopted.claimed_name == "p1"
    assert rival.adopt("p1") is None
    assert tracker.adopt("p1") is None
    adopted.release()
    assert rival.adopt("p1").claimed_name == "p1"


def test_teleports_gossip_is_understood_and_the_largest_generation_survives(
    daemon: Daemon, maker: Maker
) -> None:
    tracker = maker.tracker(daemon.endpoint)
    said = [
        {"version": "v2", "metadata": {"name": "p1"}, "gid": "blue", "ggen": 2**64 - 1},
        {"version": "v2", "metadata": {"name": "p2"}, "gid": "blue", "ggen": 1, "odd": []},
        {"version": "v2", "metadata": {"name": "p3"}},
    ]
    tracker.track_discovery(json.dumps({"proxies": said}).encode())
    status = tracker.status()
    assert (status["tracked"], status["desired"]) == (3, 2)
    assert {"group": "blue", "generation": 2**64 - 1} in [
        {"group": group["group"], "generation": group["generation"]} for group in status["groups"]
    ]
    with pytest.raises(BadPayload):
        tracker.track_discovery("{")
    assert tracker.status()["tracked"] == 3


def test_the_connection_count_bounds_the_leases_and_explain_says_so(
    daemon: Daemon, maker: Maker
) -> None:
    tracker = maker.tracker(daemon.endpoint)
    tracker.track_expected(*(Proxy(f"p{i}") for i in range(5)))
    tracker.set_connection_count(1)
    lease = tracker.try_acquire()
    explained = tracker.explain()
    assert (explained["target"], explained["inflight"]) == (1, 1)
    assert (explained["would_grant"], explained["reason"]) == (False, "satisfied")
    assert explained["missing_count"] == 5
    assert tracker.try_acquire() is None
    tracker.set_connection_count(2)
    assert tracker.try_acquire() is not None
    lease.release()


def test_what_cannot_be_right_is_refused_and_changes_nothing(daemon: Daemon, maker: Maker) -> None:
    tracker = maker.tracker(daemon.endpoint)
    revision = tracker.explain()["revision"]
    for wrong in (Proxy(""), Proxy("x" * 256), Proxy("p", generation=-1), Proxy("a\nb")):
        with pytest.raises((InvalidRequest, LimitExceeded)):
            tracker.track_expected(Proxy("good"), wrong)
    with pytest.raises(LimitExceeded):
        tracker.track_expected(*(Proxy(f"p{i}") for i in range(10_001)))
    with pytest.raises(InvalidRequest):
        tracker.track_expected(Proxy("p", generation=2**64))
    with pytest.raises(TrackdError):
        tracker.is_claimed(*["p"] * 65)
    assert tracker.status()["tracked"] == 0
    assert tracker.explain()["revision"] == revision + 1, "the session, and nothing else"


def test_a_request_larger_than_a_frame_is_refused_before_it_is_sent(
    daemon: Daemon, maker: Maker
) -> None:
    tracker = maker.tracker(daemon.endpoint)
    served = tracker.status()["requests"]
    with pytest.raises(LimitExceeded, match="fewer proxies"):
        tracker.track_expected(*(Proxy(f"{i:0250}") for i in range(9_999)))
    # The session was opened, and its notices are awaited.
    assert tracker.status()["requests"] - served <= 3
    tracker.track_expected(Proxy("p1"))
    assert tracker.status()["tracked"] == 1


# -- waiting ------------------------------------------------------------------------------------


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


def test_an_argument_that_can_never_be_right_is_an_error_of_ours_and_a_value_error(
    daemon: Daemon, maker: Maker
) -> None:
    assert issubclass(BadArgument, ValueError)
    assert issubclass(BadArgument, TrackdError)
    tracker = maker.tracker(daemon.endpoint)
    for wrong in (-1.0, math.nan):
        with pytest.raises(BadArgument, match="seconds"):
            tracker.acquire(timeout=wrong)
    for wrong in (0.0, -1.0, math.nan):
        with pytest.raises(BadArgument, match="seconds"):
            maker.tracker(daemon.endpoint, timeout=wrong)
    for place in ("", "tcp://127.0.0.1:1", "/" + "x" * 107):
        with pytest.raises(BadArgument):
            maker.tracker(place)
    with pytest.raises(BadArgument, match="cluster's name is empty"):
        maker.tracker(endpoint=None, cluster="")
    with pytest.raises(BadArgument, match="max_concurrent_dials"):
        maker.pool(tracker, print, max_concurrent_dials=0)


def test_a_call_that_waits_holds_up_no_other_call_of_the_same_tracker(
    daemon: Daemon, maker: Maker
) -> None:
    tracker = maker.tracker(daemon.endpoint)
    tracker.track_expected(Proxy("p1"))
    holder = tracker.try_acquire()
    waiters = [Background(tracker.acquire) for _ in range(3)]
    wait_until(lambda: waiting(tracker) == 3)
    assert holder.claim("p1")
    assert tracker.is_claimed("p1")
    tracker.ping()
    assert not any(waits.done for waits in waiters)
    tracker.track_expected(*(Proxy(f"p{i}") for i in range(1, 5)))
    assert sorted(waits.result().id for waits in waiters) == [holder.id + i for i in (1, 2, 3)]


def test_calls_of_many_threads_all_get_their_own_answers(daemon: Daemon, maker: Maker) -> None:
    tracker = maker.tracker(daemon.endpoint)
    tracker.track_expected(*(Proxy(f"p{i}") for i in range(40)))

    def claim(name: str) -> str:
        lease = tracker.acquire(10)
        assert lease.claim(name)
        return str(lease.claimed_name)

    calls = {f"p{i}": Background(claim, f"p{i}") for i in range(40)}
    assert {name: call.result() for name, call in calls.items()} == {name: name for name in calls}
    assert tracker.status()["claimed"] == 40
    assert tracker.status()["sessions"] == 1


# -- the end ------------------------------------------------------------------------------------


def test_closing_releases_all_leases_and_a_second_time_does_nothing(
    daemon: Daemon, maker: Maker
) -> None:
    tracker, operator = maker.tracker(daemon.endpoint), maker.tracker(daemon.endpoint)
    tracker.track_expected(Proxy("p1"), Proxy("p2"))
    claimed, inflight = tracker.try_acquire(), tracker.try_acquire()
    assert claimed.claim("p1")
    tracker.close()
    tracker.close()
    status = operator.status()
    assert (status["claimed"], status["inflight"], status["sessions"]) == (0, 0, 0)
    assert claimed.released
    assert inflight.released
    claimed.release()
    with pytest.raises(TrackerClosed):
        tracker.try_acquire()


def test_a_tracker_that_was_never_used_closes(daemon: Daemon, maker: Maker) -> None:
    maker.tracker(daemon.endpoint).close()
    with maker.tracker("ipc:///nowhere/at-all"):
        pass


def test_closing_ends_the_calls_that_wait(daemon: Daemon, maker: Maker) -> None:
    tracker, operator = maker.tracker(daemon.endpoint), maker.tracker(daemon.endpoint)
    tracker.try_acquire()
    waiters = [Background(tracker.acquire, timeout) for timeout in (None, 20.0)]
    wait_until(lambda: waiting(operator) == 2)
    tracker.close()
    for waits in waiters:
        with pytest.raises(TrackerClosed):
            waits.result()
    assert operator.status()["sessions"] == 0
    assert waiting(operator) == 0


def test_closing_ends_the_calls_that_begin(daemon: Daemon, maker: Maker) -> None:
    """Whatever each was doing, first greetings included, it ends, and no session is left."""
    for _ in range(10):
        tracker = maker.tracker(daemon.endpoint, timeout=20.0)
        calls = [Background(tracker.acquire) for _ in range(6)]
        tracker.close()
        for call in calls:
            with contextlib.suppress(TrackerClosed):
                call.result()
    # The fixture finds no session.


# -- when the daemon is not well ------------------------------------------------------------------


def test_without_a_socket_the_error_says_where_it_looked(tmp_path: Path, maker: Maker) -> None:
    tracker = maker.tracker(f"ipc://{tmp_path}/none.sock", timeout=0.1)
    with pytest.raises(DaemonAbsent, match=r"none\.sock"):
        tracker.try_acquire()
    with pytest.raises(DaemonAbsent):
        tracker.acquire(timeout=0.05)
    with pytest.raises(ConnectionError):
        tracker.status()
    assert tracker.state == State.RECONNECTING


def test_a_daemon_that_does_not_answer_is_another_error(
    make_trackd_daemon: MakeDaemon, maker: Maker
) -> None:
    own = make_trackd_daemon()
    tracker = maker.tracker(own.endpoint, timeout=20.0)
    tracker.ping()
    tracker.timeout = 0.2
    with paused(own.pid), pytest.raises(NoAnswer, match="did not answer ping"):
        tracker.ping()
    tracker.timeout = 20.0
    tracker.ping()


def test_another_cluster_is_refused(daemon: Daemon, maker: Maker) -> None:
    tracker = maker.tracker(daemon.endpoint, cluster="other.example.com")
    for call in (tracker.try_acquire, tracker.status):
        with pytest.raises(WrongCluster, match=r"example\.com"):
            call()


def test_a_kill_and_a_restart_of_the_daemon_show_as_latency_alone(
    make_trackd_daemon: MakeDaemon, maker: Maker
) -> None:
    own = make_trackd_daemon()
    states: list[State] = []
    tracker = maker.tracker(own.endpoint, timeout=20.0, on_state_change=states.append)
    tracker.track_expected(Proxy("p1"), Proxy("p2"))
    claimed, inflight = tracker.try_acquire(), tracker.try_acquire()
    assert claimed.claim("p1")
    assert tracker.state == State.CONNECTED
    own.kill()
    wait_until(lambda: tracker.state == State.RECONNECTING)
    calls = [Background(inflight.claim, "p2"), Background(tracker.is_claimed, "p1")]
    own.start()
    assert [call.result() for call in calls] == [True, True]
    wait_until(lambda: states == [State.CONNECTED, State.RECONNECTING, State.CONNECTED])
    assert tracker.status()["epoch"] == 2
    assert not claimed.lost
    claimed.release()
    assert not tracker.is_claimed("p1")


def test_a_lost_session_is_told_once_and_the_next_call_opens_another(
    make_trackd_daemon: MakeDaemon, maker: Maker
) -> None:
    own = make_trackd_daemon(state_dir="")
    lost: list[SessionLost] = []
    states: list[State] = []
    tracker = maker.tracker(
        own.endpoint, timeout=20.0, on_session_lost=lost.append, on_state_change=states.append
    )
    tracker.track_expected(Proxy("p1"), Proxy("p2"))
    claimed, inflight = tracker.try_acquire(), tracker.try_acquire()
    assert claimed.claim("p1")
    own.restart()
    assert claimed.lost.wait(20), "told without a call"
    wait_until(lambda: tracker.state == State.LOST)
    assert inflight.lost
    assert (claimed.released, claimed.claimed_name) == (True, "p1")
    with pytest.raises(SessionLost):
        inflight.claim("p2")
    claimed.release()
    adopted = tracker.adopt("p1")
    assert adopted.id == 1, "a new state counts anew"
    assert tracker.is_claimed("p1")
    assert tracker.state == State.CONNECTED
    wait_until(lambda: len(lost) == 1 and states[-1] == State.CONNECTED)
    assert states[0] == State.CONNECTED
    assert State.LOST in states


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
    waits = Background(tracker.acquire, 1.0)
    wait_until(lambda: waiting(tracker) == 1)
    _, hard = resource.prlimit(own.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    try:
        lease.release()  # would serve the waiter
        with pytest.raises(AcquireTimeout):
            waits.result()
    finally:
        resource.prlimit(own.pid, resource.RLIMIT_FSIZE, (hard, hard))
    wait_until(lambda: tracker.status()["store"] == "ok")
    wait_until(lambda: (tracker.status()["inflight"], waiting(tracker)) == (0, 0))


def test_a_fork_cannot_use_its_parents_tracker(daemon: Daemon) -> None:
    for make in (
        "tracker = Tracker(sys.argv[1]); tracker.ping(); use = tracker.ping",
        "tracker = AsyncTracker(sys.argv[1]); use = lambda: asyncio.run(tracker.ping())",
    ):
        code = f"""
import asyncio, os, sys
from trackd_client import AsyncTracker, Tracker
from trackd_client.errors import UsedAfterFork
{make}
pid = os.fork()
if not pid:
    try:
        use()
    except UsedAfterFork:
        os._exit(7)
    os._exit(1)
_, status = os.waitpid(pid, 0)
print(os.waitstatus_to_exitcode(status))
if isinstance(tracker, Tracker):
    tracker.close()
"""
        assert run_script(code, daemon.endpoint).stdout == "7\n"


# -- the names ------------------------------------------------------------------------------------


def test_both_clients_have_the_same_public_names() -> None:
    from trackd_client import AgentPool, AsyncAgentPool, AsyncLease, AsyncTracker, Lease, Tracker

    for sync, other in (
        (Tracker, AsyncTracker),
        (Lease, AsyncLease),
        (AgentPool, AsyncAgentPool),
    ):
        names = {name for name in dir(sync) if not name.startswith("_")}
        assert names == {name for name in dir(other) if not name.startswith("_")}


def test_threads_that_begin_together_open_one_session(daemon: Daemon, maker: Maker) -> None:
    tracker, operator = maker.tracker(daemon.endpoint), maker.tracker(daemon.endpoint)
    start = threading.Barrier(8)

    def begin() -> None:
        start.wait()
        tracker.is_claimed("p1")

    for call in [Background(begin) for _ in range(8)]:
        call.result()
    assert operator.status()["sessions"] == 1
