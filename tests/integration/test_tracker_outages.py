"""A tracker whose daemon is absent, silent, or of another cluster."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from helpers.both_clients import Maker
from helpers.support import PATIENCE, paused, run_script, wait_until
from helpers.trackers import CALLS, acquire, held, in_thread, silent_router
from trackd_client import DaemonAbsent, NoAnswer, Tracker
from trackd_client.core.base_tracker import ConnectionState
from trackd_client.errors import WrongCluster
from trackd_client.testing import Daemon, MakeDaemon

# -- a daemon that is absent -----------------------------------------------------------------


NOBODY = 65534


def test_without_a_socket_the_error_says_where_it_looked(tmp_path: Path, maker: Maker) -> None:
    tracker = maker.tracker(f"ipc://{tmp_path}/none.sock", timeout=0.1)
    with pytest.raises(DaemonAbsent, match=r"none\.sock"):
        tracker.try_acquire()
    with pytest.raises(DaemonAbsent):
        tracker.acquire(timeout=0.05)
    with pytest.raises(ConnectionError):
        tracker.status()
    assert tracker.state == ConnectionState.RECONNECTING


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
        pytest.raises(DaemonAbsent, match="no process listens on it; start the daemon"),
    ):
        tracker.ping()


def test_a_socket_that_one_may_not_open_says_so(shared_daemon: Daemon) -> None:
    shared_daemon.directory.chmod(0o711)
    code = """
import sys
from trackd_client import DaemonAbsent, Tracker
try:
    Tracker(sys.argv[1], timeout=0.2).ping()
except DaemonAbsent as error:
    print(error)
"""
    done = run_script(code, shared_daemon.endpoint, user=NOBODY)
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


@pytest.mark.both_stores
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

        def left() -> tuple[int, int]:
            status = tracker.status()
            return status["sessions"], status["inflight"]

        wait_until(lambda: left() == (1, 0))


# -- one that is silent, or of another cluster -----------------------------------------------


def test_a_listener_that_never_replies_gives_no_answer(tmp_path: Path) -> None:
    with (
        silent_router(tmp_path) as endpoint,
        Tracker(endpoint, timeout=0.2) as tracker,
        pytest.raises(NoAnswer, match=r"did not answer hello within [\d.]+ s; .*look at its log"),
    ):
        tracker.ping()


def test_a_listener_that_speaks_something_else_gives_no_answer(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/other")
        listener.listen()
        with Tracker(f"{tmp_path}/other", timeout=0.2) as tracker, pytest.raises(NoAnswer):
            tracker.ping()


def test_threads_that_all_begin_with_a_silent_daemon_give_up_side_by_side(tmp_path: Path) -> None:
    with silent_router(tmp_path) as endpoint, Tracker(endpoint, timeout=2.0) as tracker:
        begun = time.monotonic()
        threads = [in_thread(tracker.try_acquire) for _ in range(20)]
        for thread, outcome in threads:
            thread.join(PATIENCE)
            assert [type(error) for error in outcome] == [NoAnswer]
        assert time.monotonic() - begun < 20, "one after the other would be forty seconds"


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


def test_another_cluster_is_refused(daemon: Daemon, maker: Maker) -> None:
    tracker = maker.tracker(daemon.endpoint, cluster="other.example")
    for call in (tracker.try_acquire, tracker.status):
        with pytest.raises(
            WrongCluster, match=r"'example\.com', not 'other\.example'.*endpoint"
        ) as caught:
            call()
        assert caught.value.code == "wrong_cluster"
        assert not isinstance(caught.value, ConnectionError | TimeoutError)
    maker.tracker(daemon.endpoint, cluster="example.com").ping()
