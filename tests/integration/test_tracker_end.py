"""The end of a tracker: closing, processes that just end, and fork."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.both_clients import Background, Maker
from helpers.support import PATIENCE, open_files, paused, run_script, unmeasured, wait_until
from helpers.trackers import CALLS, acquire, held, in_thread, waiting
from trackd_client import DaemonAbsent, Proxy, SessionLost, TrackdError, Tracker
from trackd_client.errors import TrackerClosed
from trackd_client.testing import Daemon, MakeDaemon
from trackd_client.wire import places
from trackd_client.wire.requests import Heartbeat

# -- closing ---------------------------------------------------------------------------------


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


def test_a_tracker_that_was_never_used_closes(daemon: Daemon, maker: Maker) -> None:
    maker.tracker(daemon.endpoint).close()
    with maker.tracker("ipc:///nowhere/at-all"):
        pass


def test_a_closed_tracker_says_that_it_is_closed(shared_daemon: Daemon) -> None:
    tracker = Tracker(shared_daemon.endpoint)
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


@pytest.fixture
def busy_switching() -> Iterator[None]:
    """Let threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("busy_switching")
def test_closing_ends_the_calls_that_begin(daemon: Daemon, maker: Maker) -> None:
    """Whatever each was doing, first greetings included, it ends, and no session is left."""
    for _ in range(100):
        tracker = maker.tracker(daemon.endpoint, timeout=20.0)
        calls = [Background(tracker.acquire) for _ in range(6)]
        tracker.close()
        for call in calls:
            with contextlib.suppress(TrackerClosed):
                call.result()


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


def test_threads_may_all_close_at_once(shared_daemon: Daemon) -> None:
    before = open_files()
    for _ in range(200):
        tracker = Tracker(shared_daemon.endpoint)
        lease = acquire(tracker)
        together = threading.Barrier(3)

        def close(tracker: Tracker = tracker, together: threading.Barrier = together) -> None:
            together.wait()
            tracker.close()

        threads = [in_thread(close) for _ in range(2)]
        tracker._keeper.send(Heartbeat(), lease._session)  # so that the keeper is awake
        together.wait()
        for thread, outcome in threads:
            thread.join(PATIENCE)
            assert outcome == [None]
    wait_until(lambda: len(open_files() - before) < 20)  # 200 trackers have left nothing


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


# -- without closing -------------------------------------------------------------------------


def test_a_dropped_tracker_hangs_nobody(shared_daemon: Daemon, tmp_path: Path) -> None:
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
    assert run_script(code, shared_daemon.endpoint, f"{tmp_path}/none").stderr == ""


def test_a_process_that_just_ends_frees_all_that_it_held(shared_daemon: Daemon) -> None:
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
    done = run_script(code, shared_daemon.endpoint)
    assert (done.returncode, done.stderr) == (0, "")
    with Tracker(shared_daemon.endpoint) as tracker:
        wait_until(lambda: tracker.status()["sessions"] == 0)
        status = tracker.status()
        assert (status["claimed"], status["inflight"], status["waiting"]) == (0, 0, 0)


# -- fork ------------------------------------------------------------------------------------


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


def test_a_child_cannot_use_its_parents_tracker_and_does_it_no_harm(shared_daemon: Daemon) -> None:
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
    done = run_script(code, shared_daemon.endpoint)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_child_that_leaves_its_parents_blocks_ends_in_peace(shared_daemon: Daemon) -> None:
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
    done = run_script(code, shared_daemon.endpoint)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("ends", ["sys.exit()", "os._exit(0)", "raise KeyboardInterrupt"])
def test_a_forked_child_of_an_asyncio_agent_ends_in_peace(daemon: Daemon, ends: str) -> None:
    code = f"""
import asyncio, os, sys
from trackd_client import AsyncTracker
from trackd_client.errors import UsedAfterFork
async def main():
    async with AsyncTracker(sys.argv[1], timeout=60.0) as tracker:
        await tracker.ping()
        async with await tracker.adopt("p") as lease:
            other = await tracker.adopt("q")
            child = os.fork()
            if not child:
                for call in (lease.release, tracker.try_acquire, tracker.status, tracker.close):
                    try:
                        await call()
                    except UsedAfterFork:
                        continue
                    os._exit(3)
                {ends}
            assert os.waitpid(child, 0)[1] in (0, 1 << 8, 130 << 8, 2)
            assert await tracker.is_claimed("p")
            assert await tracker.is_claimed("q")
            assert not lease.released and not lease.lost
            await other.release()
            assert not await tracker.is_claimed("q")
        assert not await tracker.is_claimed("p")
asyncio.run(main())
print("parent")
"""
    done = run_script(code, daemon.endpoint)
    assert (done.returncode, done.stdout) == (0, "parent\n"), done.stderr


def test_a_fork_amid_calls_of_other_threads_hangs_neither_side(shared_daemon: Daemon) -> None:
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
    done = run_script(code, shared_daemon.endpoint)
    assert (done.returncode, done.stderr) == (0, "")


# -- sessions that nobody would end ----------------------------------------------------------


def sessions_at(daemon: Daemon) -> int:
    with Tracker(daemon.endpoint, timeout=PATIENCE) as operator:
        return int(operator.status()["sessions"])


def test_a_session_closed_during_a_long_outage_is_ended_after_it(
    make_trackd_daemon: MakeDaemon, maker: Maker
) -> None:
    own = make_trackd_daemon()
    tracker = maker.tracker(own.endpoint, timeout=PATIENCE)
    assert tracker.adopt("p")
    own.kill()
    tracker.timeout = 0.5
    tracker.close()
    own.start()
    wait_until(lambda: sessions_at(own) == 0)


@pytest.mark.parametrize("kind", ["sync", "asyncio"])
def test_a_process_ends_although_it_has_sessions_to_end(
    make_trackd_daemon: MakeDaemon, kind: str
) -> None:
    own = make_trackd_daemon()
    code = """
import asyncio, os, signal, sys
from trackd_client import AsyncTracker, Tracker
def sync():
    with Tracker(sys.argv[1], timeout=60.0) as tracker:
        tracker.adopt("p")
        os.kill(int(sys.argv[2]), signal.SIGSTOP)
async def main():
    async with AsyncTracker(sys.argv[1], timeout=60.0) as tracker:
        await tracker.adopt("p")
        os.kill(int(sys.argv[2]), signal.SIGSTOP)
sync() if sys.argv[3] == "sync" else asyncio.run(main())
"""
    done = run_script(code, own.endpoint, str(own.pid), kind)
    os.kill(own.pid, signal.SIGCONT)
    assert (done.returncode, done.stderr) == (0, "")
    wait_until(lambda: sessions_at(own) == 0)


def test_a_session_that_is_perhaps_open_is_ended(
    make_trackd_daemon: MakeDaemon, maker: Maker
) -> None:
    """Its request to open it lies at a daemon that is stopped, and runs after the close."""
    own = make_trackd_daemon()
    tracker = maker.tracker(own.endpoint, timeout=PATIENCE)
    tracker.ping()
    tracker.timeout = 0.5
    with paused(own.pid):
        with pytest.raises(TrackdError):
            tracker.adopt("p")
        tracker.close()
    wait_until(lambda: sessions_at(own) == 0)


def test_the_session_of_a_tracker_that_is_dropped_ends(daemon: Daemon) -> None:
    trackers = [Tracker(daemon.endpoint)]
    assert trackers[0].adopt("p") is not None
    thread = next(each for each in threading.enumerate() if each.name == "trackd-keeper")

    def drop() -> None:
        trackers.clear()
        gc.collect()

    with pytest.warns(ResourceWarning, match="dropped without close"):
        drop()
    wait_until(lambda: sessions_at(daemon) == 0)
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_the_session_of_an_asyncio_tracker_that_is_dropped_ends(daemon: Daemon) -> None:
    code = """
import asyncio, gc, sys
from trackd_client import AsyncTracker
async def main():
    async with AsyncTracker(sys.argv[1], timeout=60.0) as operator:
        tracker = AsyncTracker(sys.argv[1], timeout=60.0)
        assert await tracker.adopt("p")
        assert (await operator.status())["sessions"] == 1
        del tracker
        gc.collect()
        while (await operator.status())["sessions"]:
            await asyncio.sleep(0.01)
asyncio.run(main())
"""
    done = run_script(code, daemon.endpoint)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_tracker_whose_first_call_failed_closes(tmp_path: Path, maker: Maker) -> None:
    before = threading.enumerate()  # one of a test before this one may still be about to end
    tracker = maker.tracker(f"{tmp_path}/none", timeout=0.05)
    with pytest.raises(TrackdError):
        tracker.adopt("p")
    tracker.close()
    begun = [each for each in threading.enumerate() if each not in before]
    assert not [each for each in begun if each.name == "trackd-keeper"]


def test_a_request_of_a_call_that_failed_is_not_sent_once_there_is_a_daemon(
    make_trackd_daemon: MakeDaemon, maker: Maker
) -> None:
    own = make_trackd_daemon(start=False)
    tracker = maker.tracker(own.endpoint, timeout=0.3)
    with pytest.raises(TrackdError):
        tracker.adopt("p")
    own.start()
    with Tracker(own.endpoint) as operator:
        for _ in range(5):
            assert operator.status()["sessions"] == 0


# -- where the daemon is ---------------------------------------------------------------------


def test_an_agent_that_starts_before_its_daemon_finds_it_wherever_it_starts(
    make_trackd_daemon: MakeDaemon,
    maker: Maker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, own = tmp_path / "run", tmp_path / "own"
    (run / "default").mkdir(parents=True)
    monkeypatch.setattr(places, "RUN", run)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(own))
    monkeypatch.delenv("TRACKD_ENDPOINT", raising=False)
    tracker = maker.tracker(None, cluster="example.com", timeout=0.3)
    with pytest.raises(DaemonAbsent):
        tracker.adopt("p")
    daemon = make_trackd_daemon()
    (run / "default" / "trackd.sock").symlink_to(daemon.endpoint.removeprefix("ipc://"))
    tracker.timeout = PATIENCE
    lease = tracker.adopt("p")
    assert lease
    with Tracker(daemon.endpoint) as operator:
        operator.force_release(lease.id)
    wait_until(lambda: lease.lost)


def test_a_relative_endpoint_holds_when_the_program_changes_its_directory(
    daemon: Daemon, tmp_path: Path
) -> None:
    code = """
import os, sys
from pathlib import Path
from trackd_client import Tracker
socket = Path(sys.argv[1].removeprefix("ipc://"))
os.chdir(socket.parent.parent)
with Tracker(f"{socket.parent.name}/{socket.name}", timeout=60.0) as tracker:
    os.chdir("/")
    tracker.adopt("p").release()
    print(tracker.endpoint)
"""
    done = run_script(code, daemon.endpoint)
    assert (done.stdout.strip(), done.stderr) == (daemon.endpoint, "")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change its user")
@unmeasured
def test_a_process_that_changed_its_user_is_refused_with_what_to_do(
    make_trackd_daemon: MakeDaemon,
) -> None:
    own = make_trackd_daemon(socket_mode="0666")
    Path(own.endpoint.removeprefix("ipc://")).parent.parent.chmod(0o755)
    code = """
import os, sys
from trackd_client import AsyncTracker, Tracker
from trackd_client.errors import PermissionRefused
tracker = Tracker(sys.argv[1], timeout=60.0)
tracker.adopt("p")
os.seteuid(65534)
for _ in range(2):
    try:
        tracker.adopt("q")
    except PermissionRefused as error:
        print(error)
tracker.close()
with Tracker(sys.argv[1], timeout=60.0) as fresh:
    assert fresh.adopt("p")
"""
    done = run_script(code, own.endpoint)
    assert (done.returncode, done.stderr) == (0, "")
    sentence = "this process opened its session as user 0 and is user 65534 now"
    assert done.stdout.count(sentence) == 2
