"""A system that refuses descriptors and threads for a while: errors that pass, and no more."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from helpers.both_clients import daemon, shared_daemon
from helpers.support import PATIENCE, descriptors, run_script, wait_until
from helpers.trackers import held
from trackd_client import AsyncTracker, Tracker
from trackd_client.errors import SystemRefused
from trackd_client.sync import connection as connection_module
from trackd_client.testing import Daemon

__all__ = ["daemon", "shared_daemon"]

#: A block in which the process may open so many descriptors and no more.
SCRIPT = """
import os, resource, sys, time
from contextlib import contextmanager
import trackd_client
from trackd_client import AsyncTracker, TrackdError, Tracker
from trackd_client.errors import SystemRefused
@contextmanager
def descriptors_left(count):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    holes = [os.open("/dev/null", os.O_RDONLY) for _ in range(count)]
    highest = max(map(int, os.listdir("/proc/self/fd")))
    fill = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, limits[1]))
    try:
        while True:
            fill.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    for hole in holes:
        os.close(hole)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for each in fill:
            os.close(each)
"""


@pytest.fixture
def operator(daemon: Daemon) -> Iterator[Tracker]:
    with Tracker(daemon.endpoint, timeout=PATIENCE) as operator:
        yield operator


class Counted(connection_module.Connection):
    """A connection that is counted while it is open; the lock guards the count."""

    lock = threading.Lock()
    open = most = 0

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        with self.lock:
            Counted.open += 1
            Counted.most = max(Counted.most, Counted.open)

    def close(self) -> None:
        if not self._socket.closed:
            with self.lock:
                Counted.open -= 1
        super().close()


def test_a_tracker_has_a_bounded_number_of_connections_and_closes_idle_ones(
    daemon: Daemon, operator: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator.ping()
    before = descriptors(daemon.pid)
    monkeypatch.setattr(connection_module, "Connection", Counted)
    with Tracker(daemon.endpoint, timeout=60.0) as tracker:
        together, errors = threading.Barrier(300), list[BaseException]()

        def call() -> None:
            together.wait()
            try:
                tracker.is_claimed("p")
            except BaseException as error:  # noqa: BLE001 - the test looks at it
                errors.append(error)

        threads = [threading.Thread(target=call) for _ in range(300)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert 0 < Counted.most <= 80
        wait_until(lambda: descriptors(daemon.pid) - before <= 12)


def test_more_threads_than_connections_may_wait_for_a_lease(
    daemon: Daemon, operator: Tracker
) -> None:
    """Calls that wait leave room for others, and each gets its turn."""
    with Tracker(daemon.endpoint, timeout=60.0) as tracker:
        first = tracker.acquire(0)
        served = []

        def wait() -> None:
            with tracker.acquire() as lease:
                served.append(lease.id)

        threads = [threading.Thread(target=wait) for _ in range(200)]
        for thread in threads:
            thread.start()
        wait_until(lambda: operator.status()["waiting"] == 128, seconds=60.0)
        assert not tracker.is_claimed("p")
        first.release()
        for thread in threads:
            thread.join()
        assert len(served) == 200


def test_a_keeper_that_is_refused_a_connection_goes_on_later(
    daemon: Daemon, operator: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = [zmq.ZMQError(24), OSError(24, "Too many open files"), MemoryError()]
    real = connection_module.Connection

    def refuse(*args: Any) -> Any:
        if refusals and threading.current_thread().name == "trackd-keeper":
            raise refusals.pop()
        return real(*args)

    monkeypatch.setattr(connection_module, "Connection", refuse)
    with Tracker(daemon.endpoint, timeout=PATIENCE) as tracker:
        lease = held(tracker, "p")
        wait_until(lambda: not refusals)
        operator.force_release(lease.id)
        assert lease.lost.wait(PATIENCE)


def test_a_keeper_goes_on_after_an_error_of_its_own(
    daemon: Daemon, operator: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Tracker(daemon.endpoint, timeout=PATIENCE) as tracker:
        first, second = held(tracker, "p"), held(tracker, "q")
        failures = [SystemExit(), ValueError()]
        notice = tracker._notice

        def fail(*args: Any) -> None:
            if failures:
                raise failures.pop()
            notice(*args)

        monkeypatch.setattr(tracker, "_notice", fail)
        operator.force_release(first.id)
        wait_until(lambda: len(failures) == 1)
        operator.force_release(second.id)
        wait_until(lambda: not failures)
        third = held(tracker, "r")
        operator.force_release(third.id)
        assert third.lost.wait(PATIENCE)


def test_out_of_descriptors_is_an_error_that_passes_whatever_is_left(daemon: Daemon) -> None:
    code = f"""{SCRIPT}
for left in range(14):
    tracker = None
    try:
        with descriptors_left(left):
            tracker = Tracker(sys.argv[1], timeout=60.0)
            tracker.ping()
            lease = tracker.adopt("p")
    except SystemRefused as error:
        print(left, "refused")
    if tracker is not None:
        with tracker:
            tracker.adopt("q").release()
"""
    done = run_script(code, daemon.endpoint, timeout=120.0)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.startswith("0 refused\n1 refused\n2 refused\n3 refused\n"), done.stdout


def test_a_release_without_descriptors_is_made_when_there_are_some(daemon: Daemon) -> None:
    code = f"""{SCRIPT}
with Tracker(sys.argv[1], timeout=60.0) as tracker:
    lease = tracker.adopt("p")
    while tracker._connections._idle:
        tracker._connections._idle.pop().close()
    counts = []  # a thread of libzmq closes the descriptors a little later
    while len(set(counts[-100:])) > 1 or len(counts) < 100:
        counts.append(len(os.listdir("/proc/self/fd")))
        time.sleep(0.01)
    with descriptors_left(0):
        lease.release()
    assert lease.released
    while tracker.is_claimed("p"):
        pass
"""
    done = run_script(code, daemon.endpoint, timeout=120.0)
    assert (done.returncode, done.stdout) == (0, "")
    assert "will be released when the daemon can" in done.stderr


def test_an_asyncio_tracker_goes_on_after_errors_of_its_tasks(
    daemon: Daemon, operator: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with AsyncTracker(daemon.endpoint, timeout=PATIENCE) as tracker:
            first = await tracker.adopt("p")
            second = await tracker.adopt("q")
            assert first is not None
            assert second is not None
            failures: list[BaseException] = [zmq.ZMQError(24), MemoryError()]
            notice = tracker._notice

            def fail(*args: Any) -> None:
                if failures:
                    raise failures.pop()
                notice(*args)

            monkeypatch.setattr(tracker, "_notice", fail)
            operator.force_release(first.id)
            await asyncio.to_thread(wait_until, lambda: len(failures) == 1)
            operator.force_release(second.id)
            await asyncio.to_thread(wait_until, lambda: not failures)
            third = await tracker.adopt("r")
            assert third is not None
            operator.force_release(third.id)
            await asyncio.wait_for(third.lost.wait(), PATIENCE)

    asyncio.run(main())


@pytest.mark.parametrize("which", [1, 2])
def test_an_event_loop_that_is_refused_a_reader_leaves_a_tracker_that_begins_later(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    """The system bounds what epoll watches."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        add_reader, calls = loop.add_reader, itertools.count(1)

        def refuse_one(*args: Any) -> None:
            if next(calls) == which:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            add_reader(*args)

        monkeypatch.setattr(loop, "add_reader", refuse_one)
        async with AsyncTracker(daemon.endpoint, timeout=PATIENCE) as tracker:
            with pytest.raises(SystemRefused):
                await tracker.is_claimed("p")
            assert not await tracker.is_claimed("p")

    asyncio.run(main())


def test_an_asyncio_tracker_without_descriptors_begins_later(daemon: Daemon) -> None:
    code = f"""{SCRIPT}
import asyncio
async def main():
    for left in range(12):
        tracker = AsyncTracker(sys.argv[1], timeout=60.0)
        try:
            with descriptors_left(left):
                await tracker.adopt("p")
        except SystemRefused:
            print(left, "refused")
        async with tracker:
            await (await tracker.adopt("q")).release()
        unused = AsyncTracker(sys.argv[1], timeout=60.0)
        with descriptors_left(0):
            try:
                await unused.adopt("p")
            except SystemRefused:
                await unused.close()
asyncio.run(main())
"""
    done = run_script(code, daemon.endpoint, timeout=120.0)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.startswith("0 refused\n1 refused\n2 refused\n3 refused\n"), done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone is not bound by this limit")
def test_out_of_threads_is_an_error_that_does_not_abort_the_program() -> None:
    code = """
import resource
from trackd_client import Tracker
from trackd_client.errors import SystemRefused
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
tracker = Tracker("/nowhere/socket", timeout=0.3)
for _ in range(2):
    try:
        tracker.ping()
    except SystemRefused as error:
        print(error)
tracker.close()
"""
    done = run_script(code, user=65534)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("can't start new thread") == 2
