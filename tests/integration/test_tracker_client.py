"""The synchronous client against a real daemon: each public name, each error, threads, fork."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

import trackd_client
from helpers.support import PATIENCE, RawPeer, paused, run_script, socket_path, wait_until
from trackd_client import (
    AcquireTimeout,
    BadPayload,
    DaemonAbsent,
    Lease,
    NoAnswer,
    Proxy,
    Refused,
    SessionLost,
    TrackdError,
    Tracker,
)
from trackd_client.core.base_tracker import State
from trackd_client.errors import InvalidRequest, LimitExceeded, TrackerClosed, WrongCluster
from trackd_client.testing import Daemon, MakeDaemon

NOBODY = 65534


@pytest.fixture(scope="module")
def shared() -> Iterator[Daemon]:
    """A daemon for the tests that leave it as they found it."""
    with tempfile.TemporaryDirectory(prefix="trackd-") as directory:
        daemon = Daemon(Path(directory))
        daemon.start()
        yield daemon
        daemon.close()


@pytest.fixture
def tracker(trackd_daemon: Daemon) -> Iterator[Tracker]:
    with Tracker(trackd_daemon.endpoint, timeout=PATIENCE) as tracker:
        yield tracker


def acquire(tracker: Tracker) -> Lease:
    lease = tracker.try_acquire()
    assert lease is not None
    return lease


def held(tracker: Tracker, *principals: str) -> Lease:
    lease = tracker.adopt(*principals)
    assert lease is not None
    return lease


def in_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[Any]]:
    """Run something in a thread; the list gets what it returned or raised."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(work())
        except TrackdError as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


def waiting(tracker: Tracker) -> int:
    return int(tracker.status()["waiting"])


# -- the package -----------------------------------------------------------------------


def test_the_public_names_are_these() -> None:
    assert trackd_client.__all__ == [
        "AcquireTimeout",
        "AgentPool",
        "AsyncAgentPool",
        "AsyncLease",
        "AsyncTracker",
        "BadPayload",
        "DaemonAbsent",
        "Event",
        "Lease",
        "Mirror",
        "NoAnswer",
        "Policy",
        "PoolEvent",
        "PoolStats",
        "Proxy",
        "Refused",
        "SessionLost",
        "TrackdError",
        "Tracker",
        "__version__",
        "errors",
        "parse_discovery",
    ]
    assert all(getattr(trackd_client, name) is not None for name in trackd_client.__all__)


def test_a_client_loads_neither_pykka_nor_the_daemon(shared: Daemon) -> None:
    code = """
import sys
from trackd_client import Proxy, Tracker
with Tracker(sys.argv[1]) as tracker:
    tracker.track_expected(Proxy("a"))
    with tracker.acquire() as lease:
        lease.claim("a")
roots = {name.partition(".")[0] for name in sys.modules}
print(sorted(roots & {"pykka", "trackd", "sqlite3", "asyncio", "rich", "click", "pytest"}))
"""
    done = run_script(code, shared.endpoint)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_every_error_is_a_trackd_error_and_what_python_calls_it() -> None:
    assert issubclass(DaemonAbsent, TrackdError)
    assert issubclass(DaemonAbsent, ConnectionError)
    assert issubclass(NoAnswer, TrackdError)
    assert issubclass(NoAnswer, TimeoutError)
    assert issubclass(AcquireTimeout, TrackdError)
    assert issubclass(AcquireTimeout, TimeoutError)
    assert issubclass(BadPayload, TrackdError)
    assert issubclass(BadPayload, ValueError)
    assert issubclass(Refused, TrackdError)
    assert issubclass(SessionLost, TrackdError)
    assert not issubclass(DaemonAbsent, NoAnswer)
    assert not issubclass(NoAnswer, Refused)


def test_a_proxy_is_frozen_and_its_name_comes_first() -> None:
    proxy = Proxy("p1", group="", generation=2, ttl=None)
    assert proxy == Proxy(name="p1", generation=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        proxy.name = "p2"  # type: ignore[misc]


# -- what agents do --------------------------------------------------------------------


def test_an_agent_goes_all_the_way_from_gossip_to_release(tracker: Tracker) -> None:
    tracker.track_expected(Proxy("p1", generation=2), Proxy("p2", generation=2))
    lease = tracker.acquire(timeout=30.0)
    assert (lease.id, lease.claimed_name, lease.released) == (1, None, False)
    assert lease.claim("p1.example.com", "p1") is True
    assert (lease.claimed_name, lease.released) == ("p1", False)
    assert tracker.is_claimed("p1")
    assert tracker.is_claimed("p1.example.com")
    assert not tracker.is_claimed("p2")

    status = tracker.status()
    assert (status["tracked"], status["desired"], status["target"]) == (2, 2, 2)
    assert (status["claimed"], status["inflight"], status["sessions"]) == (1, 0, 1)
    assert (status["cluster"], status["mode"], status["store"]) == (
        "example.com",
        "agent mesh",
        "ok",
    )

    lease.release()
    assert (lease.claimed_name, lease.released) == ("p1", True)
    assert not tracker.is_claimed("p1")


def test_a_lost_race_leaves_the_lease_free_to_try_another_proxy(tracker: Tracker) -> None:
    tracker.track_expected(Proxy("p1"), Proxy("p2"))
    first, second = acquire(tracker), acquire(tracker)
    assert tracker.try_acquire() is None
    assert first.claim("p1")
    assert not second.claim("p1.example.com")
    assert (second.claimed_name, second.released) == (None, False)
    assert not second.claim()
    assert second.claim("p2")
    assert not second.claim("p3"), "a lease claims once"
    assert second.claimed_name == "p2"


def test_releasing_twice_is_releasing_once(tracker: Tracker) -> None:
    tracker.track_expected(Proxy("p1"))
    first = acquire(tracker)
    assert first.claim("p1")
    first.release()
    second = acquire(tracker)
    assert second.claim("p1")
    first.release()
    assert tracker.is_claimed("p1")
    assert not first.claim("p2"), "a released lease claims nothing"


def test_a_block_releases_its_lease_even_when_it_fails(tracker: Tracker) -> None:
    with pytest.raises(RuntimeError, match="the dial failed"), tracker.acquire() as lease:
        raise RuntimeError("the dial failed")
    assert lease.released
    assert tracker.status()["inflight"] == 0


def test_closing_a_tracker_ends_its_session_and_frees_its_leases(
    tracker: Tracker, trackd_daemon: Daemon
) -> None:
    tracker.is_claimed("p1")
    with Tracker(trackd_daemon.endpoint) as other:
        lease = held(other, "p1")
        in_flight = other.try_acquire()
        assert tracker.is_claimed("p1")
        assert tracker.status()["sessions"] == 2
    assert not tracker.is_claimed("p1")
    assert lease.released
    assert in_flight is None or in_flight.released
    assert (tracker.status()["sessions"], tracker.status()["inflight"]) == (1, 0)


def test_adopting_holds_an_open_tunnel_whatever_the_count_says(tracker: Tracker) -> None:
    tracker.track_expected(Proxy("p1"), Proxy("p2"))
    tracker.set_connection_count(1)
    first, second = held(tracker, "p1.example.com"), held(tracker, "p2")
    assert (first.claimed_name, second.claimed_name) == ("p1", "p2")
    assert tracker.adopt("p1") is None
    assert tracker.adopt() is None


def test_the_connection_count_chooses_between_mesh_and_peering(tracker: Tracker) -> None:
    tracker.track_expected(*(Proxy(f"p{i}") for i in range(5)))
    tracker.set_connection_count(3)
    assert tracker.status()["mode"] == "proxy peering"
    assert tracker.status()["target"] == 3
    leases = [tracker.try_acquire() for _ in range(4)]
    assert [lease is not None for lease in leases] == [True, True, True, False]
    tracker.set_connection_count(-1)
    assert tracker.status()["mode"] == "agent mesh"
    assert tracker.try_acquire() is not None


def test_explain_tells_the_numbers_behind_a_refusal(tracker: Tracker) -> None:
    tracker.track_expected(Proxy("p1"), Proxy("p2"))
    assert acquire(tracker).claim("p1")
    before = tracker.explain()
    assert (before["would_grant"], before["reason"], before["missing"]) == (True, "need", ["p2"])
    acquire(tracker)
    after = tracker.explain()
    assert (after["would_grant"], after["target"], after["inflight"]) == (False, 2, 1)
    assert tracker.try_acquire() is None


def test_discovery_payloads_are_taken_as_bytes_and_as_text(tracker: Tracker) -> None:
    document = {
        "proxies": [
            {"version": "v2", "metadata": {"name": "p1"}, "gid": "g", "ggen": 2**64 - 1},
            {"version": "v2", "metadata": {"name": "p2"}, "ttl": 60_000_000_000, "new": 1},
        ]
    }
    tracker.track_discovery(json.dumps(document))
    tracker.track_discovery(json.dumps(document).encode())
    groups = {group["group"]: group["generation"] for group in tracker.status()["groups"]}
    assert groups == {"": 0, "g": 2**64 - 1}
    with pytest.raises(BadPayload, match=r"proxies\[0\]\.metadata\.name"):
        tracker.track_discovery('{"proxies": [{"metadata": {}}]}')
    with pytest.raises(BadPayload, match="not JSON"):
        tracker.track_discovery(b"\xff{")
    assert tracker.status()["tracked"] == 2


def test_a_proxy_whose_ttl_has_passed_is_wanted_no_more(tracker: Tracker) -> None:
    tracker.track_expected(Proxy("short", ttl=0.05), Proxy("long"))
    wait_until(lambda: tracker.status()["tracked"] == 1)
    assert tracker.explain()["missing"] == ["long"]


# -- waiting ---------------------------------------------------------------------------


def test_acquire_waits_until_another_agent_gives_something_back(
    tracker: Tracker, trackd_daemon: Daemon
) -> None:
    blocking = acquire(tracker)
    with Tracker(trackd_daemon.endpoint) as other:
        thread, outcome = in_thread(other.acquire)
        wait_until(lambda: waiting(tracker) == 1)
        blocking.release()
        thread.join(PATIENCE)
        assert [lease.id for lease in outcome] == [2]


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


@pytest.mark.parametrize("seconds", [-1, float("nan")])
def test_a_wait_of_no_length_is_refused(shared: Daemon, seconds: float) -> None:
    with Tracker(shared.endpoint) as tracker, pytest.raises(ValueError, match="timeout"):
        tracker.acquire(seconds)


@pytest.mark.parametrize("seconds", [1e9, 1e30, float("inf")])
def test_a_wait_may_be_as_long_as_anybody_likes(shared: Daemon, seconds: float) -> None:
    with Tracker(shared.endpoint) as tracker:
        tracker.acquire(seconds).release()


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e30])
def test_a_tracker_without_a_deadline_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        Tracker("/tmp/x", timeout=seconds)


# -- limits ----------------------------------------------------------------------------

LONGEST = "é" * 127 + "x"
RIGHT_NAMES = ["p", "x" * 255, LONGEST, " ", "p\u00a01", "日本", "🦊"]
WRONG_NAMES = {
    "empty": ("", InvalidRequest, "empty"),
    "256 bytes": ("x" * 256, LimitExceeded, "256 bytes; 255"),
    "256 bytes in 128 characters": ("é" * 128, LimitExceeded, "256 bytes; 255"),
    "a newline": ("p\n1", InvalidRequest, "control"),
    "NUL": ("p\0", InvalidRequest, "control"),
    "DEL": ("p\x7f", InvalidRequest, "control"),
    "C1": ("p\x85", InvalidRequest, "control"),
}
wrong_names = pytest.mark.parametrize(
    ("name", "error", "says"), WRONG_NAMES.values(), ids=WRONG_NAMES
)


@pytest.mark.parametrize("name", RIGHT_NAMES)
def test_a_name_of_up_to_255_bytes_is_served(shared: Daemon, name: str) -> None:
    with Tracker(shared.endpoint) as tracker:
        tracker.track_expected(Proxy(name, group=name, ttl=0.001))
        assert held(tracker, name).claimed_name == name
        assert tracker.is_claimed(name)


@wrong_names
def test_a_wrong_name_in_gossip_is_refused_with_its_place(
    shared: Daemon, name: str, error: type[Refused], says: str
) -> None:
    with Tracker(shared.endpoint) as tracker:
        before = tracker.status()["tracked"]
        with pytest.raises(error, match=rf"proxies\[1\]\.name.*{says}"):
            tracker.track_expected(Proxy("right"), Proxy(name))
        assert tracker.status()["tracked"] == before, "a refused message changes nothing"


@wrong_names
def test_a_wrong_principal_is_refused(
    shared: Daemon, name: str, error: type[Refused], says: str
) -> None:
    with Tracker(shared.endpoint) as tracker, tracker.acquire() as lease:
        for ask in (lease.claim, tracker.is_claimed, tracker.adopt):
            with pytest.raises(error, match=f"principal.*{says}"):
                ask("right", name)
        assert lease.claimed_name is None


def test_half_of_a_surrogate_pair_is_refused(shared: Daemon) -> None:
    with Tracker(shared.endpoint) as tracker:
        with pytest.raises(InvalidRequest):
            tracker.is_claimed("\ud800")
        assert not tracker.is_claimed("p")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (Proxy("wrong", generation=-1), "generation"),
        (Proxy("wrong", generation=True), "generation"),
        (Proxy("wrong", generation=1.0), "generation"),  # type: ignore[arg-type]
        (Proxy("wrong", generation=2**64), "cannot be sent"),
        (Proxy("wrong", group=None), "group"),  # type: ignore[arg-type]
        (Proxy("wrong", group="a\tb"), "group"),
        (Proxy("wrong", ttl=float("nan")), "ttl"),
        (Proxy("wrong", ttl=float("inf")), "ttl"),
        (Proxy("wrong", ttl="1"), "ttl"),  # type: ignore[arg-type]
        (Proxy(b"p"), "name"),  # type: ignore[arg-type]
        (Proxy(None), "name"),  # type: ignore[arg-type]
    ],
    ids=repr,
)
def test_a_wrong_field_of_gossip_is_refused(shared: Daemon, wrong: Proxy, says: str) -> None:
    with Tracker(shared.endpoint) as tracker:
        with pytest.raises(InvalidRequest, match=says):
            tracker.track_expected(wrong)
        assert "wrong" not in tracker.explain()["missing"]


def test_sixty_four_principals_are_served_and_one_more_is_not(shared: Daemon) -> None:
    most = [f"p{i}" for i in range(64)]
    with Tracker(shared.endpoint) as tracker, tracker.acquire() as lease:
        assert not tracker.is_claimed(*most)
        assert lease.claim(*most)
        for ask in (lease.claim, tracker.is_claimed, tracker.adopt):
            with pytest.raises(LimitExceeded, match="65 principals; 64 are allowed"):
                ask(*most, "p64")


def test_ten_thousand_proxies_are_served_and_one_more_is_not(tracker: Tracker) -> None:
    most = [Proxy(f"proxy-{i}", generation=2**64 - 1) for i in range(10_000)]
    tracker.track_expected(*most)
    assert tracker.status()["tracked"] == 10_000
    with pytest.raises(LimitExceeded, match="10001 proxies in one message; 10000 are allowed"):
        tracker.track_expected(*most, Proxy("one more"))
    assert tracker.status()["tracked"] == 10_000


def test_a_message_beyond_a_mebibyte_is_refused_before_it_is_sent(shared: Daemon) -> None:
    with Tracker(shared.endpoint) as tracker:
        tracker.ping()
        with pytest.raises(LimitExceeded, match="send fewer proxies at a time"):
            tracker.track_expected(*(Proxy(f"{i:0255}") for i in range(5_000)))
        assert tracker.status()["pid"] == shared.pid


@pytest.mark.parametrize("count", [2**63, -(2**63) - 1, 2**64, 1.0, True, "3", None])
def test_a_wrong_connection_count_is_refused(shared: Daemon, count: Any) -> None:
    with Tracker(shared.endpoint) as tracker:
        with pytest.raises(InvalidRequest):
            tracker.set_connection_count(count)
        assert tracker.status()["connection_count"] == 0


def test_what_a_client_says_of_itself_is_bounded(shared: Daemon) -> None:
    with Tracker(shared.endpoint, name="x" * 255, labels={str(i): "v" for i in range(16)}) as it:
        assert not it.is_claimed("p")
    for wrong in (
        Tracker(shared.endpoint, name="x" * 256),
        Tracker(shared.endpoint, name="a\nb"),
        Tracker(shared.endpoint, labels={str(i): "v" for i in range(17)}),
        Tracker(shared.endpoint, labels={"": "v"}),
        Tracker(shared.endpoint, labels={"k": "v" * 256}),
        Tracker(shared.endpoint, labels={"k": 1}),  # type: ignore[dict-item]
    ):
        with wrong, pytest.raises(Refused):
            wrong.is_claimed("p")


# -- absent, silent, refusing ----------------------------------------------------------


@contextlib.contextmanager
def silent_router(directory: Path) -> Iterator[str]:
    """Serve an endpoint with a ROUTER that takes everything and answers nothing."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        router.bind(f"ipc://{directory}/silent")
        yield f"{directory}/silent"


def test_no_socket_at_all_means_that_the_daemon_is_absent(tmp_path: Path) -> None:
    with (
        Tracker(f"{tmp_path}/none", timeout=0.1) as tracker,
        pytest.raises(DaemonAbsent, match=r"no such socket; is the daemon running.*trackd run"),
    ):
        tracker.ping()


def test_a_socket_without_a_listener_means_that_the_daemon_is_absent(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{tmp_path}/dead")
    with (
        Tracker(f"{tmp_path}/dead", timeout=0.1) as tracker,
        pytest.raises(DaemonAbsent, match="nobody listens; start the daemon"),
    ):
        tracker.ping()


def test_a_socket_that_one_may_not_open_says_so(shared: Daemon) -> None:
    shared.directory.chmod(0o711)
    code = """
import sys
from trackd_client import DaemonAbsent, Tracker
try:
    Tracker(sys.argv[1], timeout=0.2).ping()
except DaemonAbsent as error:
    print(error)
"""
    done = run_script(code, shared.endpoint, user=NOBODY)
    assert "may not open the socket; join the group that owns it" in done.stdout, done


def test_a_file_that_is_no_socket_is_called_that(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with (
        Tracker(f"{tmp_path}/file", timeout=0.1) as tracker,
        pytest.raises(DaemonAbsent, match="not a socket"),
    ):
        tracker.ping()


def test_waiting_for_ever_is_not_for_a_daemon_that_is_absent(tmp_path: Path) -> None:
    with Tracker(f"{tmp_path}/none", timeout=0.1) as tracker, pytest.raises(DaemonAbsent):
        tracker.acquire()


def test_a_listener_that_never_replies_gives_no_answer(tmp_path: Path) -> None:
    with (
        silent_router(tmp_path) as endpoint,
        Tracker(endpoint, timeout=0.2) as tracker,
        pytest.raises(NoAnswer, match=r"did not answer hello within 0\.2.*look at its log"),
    ):
        tracker.ping()


def test_a_listener_that_speaks_something_else_gives_no_answer(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/other")
        listener.listen()
        with Tracker(f"{tmp_path}/other", timeout=0.2) as tracker, pytest.raises(NoAnswer):
            tracker.ping()


def test_a_daemon_that_hangs_gives_no_answer_to_old_and_new_clients(trackd_daemon: Daemon) -> None:
    with Tracker(trackd_daemon.endpoint, timeout=PATIENCE) as old:
        lease = acquire(old)
        with paused(trackd_daemon.pid):
            old.timeout = 0.2
            with pytest.raises(NoAnswer, match="overloaded or stuck"):
                old.is_claimed("p")
            with Tracker(trackd_daemon.endpoint, timeout=0.2) as new, pytest.raises(NoAnswer):
                new.ping()
        old.timeout = PATIENCE
        assert lease.claim("p"), "after the pause all goes on"


def test_a_refusal_is_neither_absence_nor_silence(shared: Daemon) -> None:
    with (
        Tracker(shared.endpoint, cluster="other.example") as tracker,
        pytest.raises(WrongCluster, match=r"'example\.com', not 'other\.example'.*endpoint") as got,
    ):
        tracker.try_acquire()
    assert got.value.code == "wrong_cluster"
    assert not isinstance(got.value, ConnectionError | TimeoutError)
    with Tracker(shared.endpoint, cluster="example.com") as tracker:
        tracker.ping()


CALLS: dict[str, Callable[[Tracker, Lease], object]] = {
    "track_expected": lambda t, _: t.track_expected(Proxy("p")),
    "track_discovery": lambda t, _: t.track_discovery('{"proxies": []}'),
    "set_connection_count": lambda t, _: t.set_connection_count(0),
    "is_claimed": lambda t, _: t.is_claimed("p"),
    "try_acquire": lambda t, _: t.try_acquire(),
    "acquire": lambda t, _: t.acquire(0.2),
    "acquire at once": lambda t, _: t.acquire(0),
    "adopt": lambda t, _: t.adopt("p"),
    "status": lambda t, _: t.status(),
    "explain": lambda t, _: t.explain(),
    "ping": lambda t, _: t.ping(),
    "claim": lambda _, lease: lease.claim("p"),
    "lease.is_claimed": lambda _, lease: lease.is_claimed("p"),
}


@pytest.mark.slow
def test_every_call_has_a_deadline(trackd_daemon: Daemon) -> None:
    with Tracker(trackd_daemon.endpoint, timeout=PATIENCE) as tracker:
        lease, other = acquire(tracker), held(tracker, "other")
        with paused(trackd_daemon.pid):
            tracker.timeout = 0.2
            for name, call in CALLS.items():
                begun = time.monotonic()
                with pytest.raises(TimeoutError):
                    call(tracker, lease)
                assert 0.2 <= time.monotonic() - begun < PATIENCE / 2, name
            begun = time.monotonic()
            other.release()
            assert time.monotonic() - begun < PATIENCE / 2, "release does not even fail"
        tracker.timeout = PATIENCE
        wait_until(lambda: not tracker.is_claimed("other"))
        wait_until(lambda: tracker.status()["inflight"] == 1)
        assert tracker.status()["sessions"] == 1


def test_calls_that_were_given_up_leave_no_sessions_behind(make_trackd_daemon: MakeDaemon) -> None:
    daemon = make_trackd_daemon()
    with Tracker(daemon.endpoint, timeout=PATIENCE) as tracker:
        tracker.ping()
        daemon.kill()
        tracker.timeout = 0.05
        for _ in range(10):
            with pytest.raises(DaemonAbsent):
                tracker.try_acquire()
        daemon.start()
        tracker.timeout = PATIENCE
        tracker.is_claimed("p")
        status = tracker.status()
        assert (status["sessions"], status["inflight"]) == (1, 0)


# -- where the daemon is ---------------------------------------------------------------


def test_the_endpoint_may_be_a_path_or_come_from_the_environment(
    shared: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(socket_path(shared))
    with Tracker(path) as tracker:
        tracker.ping()
        assert tracker.endpoint == shared.endpoint
    monkeypatch.setenv("TRACKD_ENDPOINT", path)
    with Tracker() as tracker:
        tracker.ping()


@pytest.mark.parametrize("endpoint", ["", "tcp://127.0.0.1:1", "ipc://@x", "/" + "x" * 107, "a/"])
def test_an_endpoint_that_cannot_be_is_refused_at_once(endpoint: str) -> None:
    with pytest.raises(ValueError, match=r"ipc://|too long"):
        Tracker(endpoint)


# -- the end of a tracker --------------------------------------------------------------


def test_a_closed_tracker_says_that_it_is_closed(shared: Daemon) -> None:
    tracker = Tracker(shared.endpoint)
    lease = held(tracker, "p")
    tracker.close()
    tracker.close()
    for name, call in CALLS.items():
        with pytest.raises((TrackerClosed, SessionLost)) as got:
            call(tracker, lease)
        assert name == "claim" or got.type is TrackerClosed, name
    lease.release()
    assert lease.released
    assert lease.claimed_name == "p"


def test_a_tracker_that_was_never_used_closes(tmp_path: Path) -> None:
    with Tracker(f"{tmp_path}/none"):
        pass


def test_closing_does_not_wait_long_for_a_daemon_that_is_gone(
    make_trackd_daemon: MakeDaemon,
) -> None:
    daemon = make_trackd_daemon()
    tracker = Tracker(daemon.endpoint, timeout=PATIENCE)
    acquire(tracker)
    daemon.kill()
    begun = time.monotonic()
    tracker.close()
    assert time.monotonic() - begun < PATIENCE / 2


def test_close_ends_a_wait_in_another_thread(trackd_daemon: Daemon) -> None:
    with Tracker(trackd_daemon.endpoint) as other:
        acquire(other)
        tracker = Tracker(trackd_daemon.endpoint)
        thread, outcome = in_thread(tracker.acquire)
        wait_until(lambda: waiting(other) == 1)
        tracker.close()
        thread.join(PATIENCE)
        assert [type(error) for error in outcome] == [TrackerClosed]
        assert (waiting(other), other.status()["sessions"]) == (0, 1)


def test_close_under_way_ends_the_calls_of_all_threads_alike(trackd_daemon: Daemon) -> None:
    lost: list[SessionLost] = []
    for _ in range(10):
        tracker = Tracker(trackd_daemon.endpoint, on_session_lost=lost.append)
        acquire(tracker)

        def hammer(tracker: Tracker = tracker) -> None:
            while True:
                tracker.is_claimed("p")

        threads = [in_thread(hammer) for _ in range(3)]
        time.sleep(0.01)
        tracker.close()
        for thread, outcome in threads:
            thread.join(PATIENCE)
            assert [type(error) for error in outcome] == [TrackerClosed]
    assert not lost, "a session that was closed is not lost"
    with Tracker(trackd_daemon.endpoint) as last:
        assert last.status()["sessions"] == 0
        assert last.status()["inflight"] == 0


def test_threads_may_all_close_at_once(shared: Daemon) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the names alone count
    for _ in range(200):
        tracker = Tracker(shared.endpoint)
        lease = acquire(tracker)
        together = threading.Barrier(3)

        def close(tracker: Tracker = tracker, together: threading.Barrier = together) -> None:
            together.wait()
            tracker.close()

        threads = [in_thread(close) for _ in range(2)]
        tracker._keeper.release(lease.id, lease._stay)  # so that the keeper is awake
        together.wait()
        for thread, outcome in threads:
            thread.join(PATIENCE)
            assert outcome == [None]
    assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208


def test_a_dropped_tracker_hangs_nobody(shared: Daemon, tmp_path: Path) -> None:
    code = """
import gc, sys, warnings
from trackd_client import DaemonAbsent, Tracker
warnings.simplefilter("ignore", ResourceWarning)
for _ in range(3):
    Tracker(sys.argv[1]).ping()
    try:
        Tracker(sys.argv[2], timeout=0.05).ping()
    except DaemonAbsent:
        pass
    gc.collect()
held = Tracker(sys.argv[1]).acquire(0)
del held
gc.collect()
"""
    assert run_script(code, shared.endpoint, f"{tmp_path}/none").stderr == ""


def test_a_process_that_just_ends_frees_all_that_it_held(shared: Daemon) -> None:
    code = """
import sys, threading
from trackd_client import Tracker
tracker = Tracker(sys.argv[1])
assert tracker.adopt("p")
held = tracker.acquire()
threading.Thread(target=tracker.acquire, daemon=True).start()
while tracker.status()["waiting"] == 0:
    pass
"""
    done = run_script(code, shared.endpoint)
    assert (done.returncode, done.stderr) == (0, "")
    with Tracker(shared.endpoint) as tracker:
        wait_until(lambda: tracker.status()["sessions"] == 0)
        status = tracker.status()
        assert (status["claimed"], status["inflight"], status["waiting"]) == (0, 0, 0)


# -- fork ------------------------------------------------------------------------------


def test_a_child_cannot_use_its_parents_tracker_and_does_it_no_harm(shared: Daemon) -> None:
    code = """
import os, sys, threading
from trackd_client import Proxy, Tracker
from trackd_client.errors import UsedAfterFork
tracker = Tracker(sys.argv[1])
lease = tracker.adopt("p")
child = os.fork()
if not child:
    calls = [
        lambda: tracker.track_expected(Proxy("a")), lambda: tracker.set_connection_count(1),
        lambda: tracker.is_claimed("a"), tracker.try_acquire, tracker.acquire, tracker.status,
        lambda: tracker.acquire(0), lambda: tracker.adopt("a"), tracker.explain, tracker.ping,
        tracker.close, lambda: lease.claim("a"), lease.release,
    ]
    for number, call in enumerate(calls):
        try:
            call()
        except UsedAfterFork as error:
            assert str(os.getppid()) in str(error)
            continue
        sys.exit(f"call {number} raised nothing")
    with Tracker(sys.argv[1]) as own:
        assert own.is_claimed("p")
    sys.exit()  # not os._exit: all the finalizers of the child run too
assert os.waitpid(child, 0)[1] == 0
assert tracker.is_claimed("p")
assert not lease.released
lease.release()
assert not tracker.is_claimed("p")
tracker.close()
"""
    done = run_script(code, shared.endpoint)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_child_that_leaves_its_parents_blocks_ends_in_peace(shared: Daemon) -> None:
    code = """
import os, sys
from trackd_client import Tracker
with Tracker(sys.argv[1]) as tracker, tracker.adopt("p") as lease:
    child = os.fork()
    if not child:
        sys.exit()
    assert os.waitpid(child, 0)[1] == 0
    assert tracker.is_claimed("p")
    assert not lease.released
"""
    done = run_script(code, shared.endpoint)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_fork_amid_calls_of_other_threads_hangs_neither_side(shared: Daemon) -> None:
    code = """
import os, sys, threading
from trackd_client import Tracker
from trackd_client.errors import UsedAfterFork
tracker, over = Tracker(sys.argv[1]), threading.Event()
def hammer():
    while not over.is_set():
        tracker.is_claimed("p")
threads = [threading.Thread(target=hammer) for _ in range(3)]
for thread in threads:
    thread.start()
for _ in range(10):
    child = os.fork()
    if not child:
        try:
            tracker.is_claimed("p")
        except UsedAfterFork:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
over.set()
for thread in threads:
    thread.join()
tracker.close()
"""
    done = run_script(code, shared.endpoint)
    assert (done.returncode, done.stderr) == (0, "")


# -- threads ---------------------------------------------------------------------------


def test_a_thread_that_waits_holds_up_no_other(tracker: Tracker) -> None:
    blocking = acquire(tracker)
    threads = [in_thread(tracker.acquire) for _ in range(3)]
    wait_until(lambda: waiting(tracker) == 3)
    for _ in range(20):
        assert not tracker.is_claimed("p")
    tracker.track_expected(*(Proxy(f"p{i}") for i in range(4)))
    for thread, _ in threads:
        thread.join(PATIENCE)
    assert sorted(outcome[0].id for _, outcome in threads) == [2, 3, 4]
    assert blocking.claim("p0")


def test_threads_that_all_begin_with_a_silent_daemon_give_up_side_by_side(tmp_path: Path) -> None:
    with silent_router(tmp_path) as endpoint, Tracker(endpoint, timeout=1.0) as tracker:
        begun = time.monotonic()
        threads = [in_thread(tracker.try_acquire) for _ in range(20)]
        for thread, outcome in threads:
            thread.join(PATIENCE)
            assert [type(error) for error in outcome] == [NoAnswer]
        assert time.monotonic() - begun < 10, "one after the other would be twenty seconds"


def test_many_threads_share_one_session_and_get_their_own_answers(tracker: Tracker) -> None:
    names = [f"p{i}" for i in range(200)]
    tracker.track_expected(*(Proxy(name) for name in names))
    claimed: list[tuple[int, str]] = []

    def work() -> None:
        for _ in range(25):
            lease = acquire(tracker)
            assert any(lease.claim(name) for name in names[lease.id - 1 :])
            assert lease.claimed_name is not None
            claimed.append((lease.id, lease.claimed_name))

    threads = [in_thread(work) for _ in range(8)]
    for thread, outcome in threads:
        thread.join(60)
        assert outcome == [None]
    assert len({number for number, _ in claimed}) == len({name for _, name in claimed}) == 200
    status = tracker.status()
    assert (status["claimed"], status["inflight"], status["sessions"]) == (200, 0, 1)


# -- restarts --------------------------------------------------------------------------


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
            wait_until(lambda: State.CONNECTED in told[told.index(State.LOST) :])
            assert told[-3:] == [State.LOST, SessionLost, State.CONNECTED]
            assert tracker.state == State.CONNECTED
    finally:
        logging.getLogger("trackd_client").removeHandler(slow)


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


def test_a_daemon_that_forgot_makes_every_lease_lost(make_trackd_daemon: MakeDaemon) -> None:
    daemon = make_trackd_daemon(state_dir="")
    told: list[SessionLost] = []
    with Tracker(daemon.endpoint, timeout=PATIENCE, on_session_lost=told.append) as tracker:
        claimed, in_flight = held(tracker, "p"), acquire(tracker)
        daemon.restart()
        assert claimed.lost.wait(PATIENCE), "told without being asked"
        assert in_flight.lost.wait(PATIENCE)
        assert (claimed.released, in_flight.released) == (True, True)
        assert claimed.claimed_name == "p"
        with pytest.raises(SessionLost, match="gone with the session"):
            in_flight.claim("p")
        claimed.release()
        assert held(tracker, "p").id == 1, "the next call opens a fresh session"
        wait_until(lambda: len(told) == 1)


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


# -- sessions --------------------------------------------------------------------------


def test_a_tracker_asks_for_no_session_before_it_needs_one(shared: Daemon) -> None:
    with Tracker(shared.endpoint) as tracker:
        tracker.ping()
        assert tracker.status()["sessions"] == 0
        tracker.explain()
        assert tracker.status()["sessions"] == 0
        tracker.is_claimed("p")
        assert tracker.status()["sessions"] == 1


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


# -- what all agents together may have --------------------------------------------------


def test_gossip_that_would_track_too_many_proxies_is_refused_whole(
    make_trackd_daemon: MakeDaemon,
) -> None:
    daemon = make_trackd_daemon(max_tracked=3)
    with Tracker(daemon.endpoint) as tracker:
        tracker.track_expected(Proxy("a"), Proxy("b"))
        with pytest.raises(LimitExceeded, match="2 proxies are tracked, and 2 would be new; 3 are"):
            tracker.track_expected(Proxy("a", generation=7), Proxy("c"), Proxy("d"))
        assert tracker.status()["groups"][0]["generation"] == 0
        tracker.track_expected(Proxy("a"), Proxy("b"), Proxy("c"))
        tracker.track_expected(Proxy("a"), Proxy("b"), Proxy("c"))
        assert tracker.status()["tracked"] == 3


def test_no_more_leases_are_granted_than_are_allowed(make_trackd_daemon: MakeDaemon) -> None:
    daemon = make_trackd_daemon(max_leases=2)
    with Tracker(daemon.endpoint) as tracker, Tracker(daemon.endpoint) as other:
        first = tracker.adopt("a")
        assert first is not None
        assert other.adopt("b") is not None
        for call in (tracker.try_acquire, lambda: tracker.acquire(1), lambda: tracker.adopt("c")):
            with pytest.raises(LimitExceeded, match="2 leases are held; no more are allowed"):
                call()
        first.release()
        assert tracker.adopt("c") is not None
