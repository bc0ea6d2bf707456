"""Exceptions at any point of a call, as a signal handler raises them: nothing leaks."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import trackd_client
from helpers.both_clients import Maker, daemon, maker, shared_daemon
from helpers.support import PATIENCE, run_script, wait_until
from helpers.trackers import held
from trackd_client import Lease, Proxy, Tracker
from trackd_client.errors import AcquireTimeout
from trackd_client.testing import Daemon

__all__ = ["daemon", "maker", "shared_daemon"]

#: Sockets that nobody holds close themselves, with this warning.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

#: Where an exception leaves a lease to nobody; no library can catch it there.
GAPS = {("Lease.__enter__", "call"), ("Lease.__exit__", "call")}
SOURCE = str(Path(trackd_client.__file__).parent)


class Interrupted(BaseException):
    """What the signal handler of a program might raise.

    Attributes:
        last: the function and the event where it was raised last.
    """

    last = ("", "")


def interrupt_at(count: int, work: Callable[[], object]) -> bool:
    """Do some work, and raise `Interrupted` at its so-manyth chance within the client.

    CPython runs signal handlers when a function begins and after a call of a C function.

    Returns:
        Whether it came to that point.
    """
    left = count

    def profile(frame: FrameType, event: str, _: object) -> None:
        nonlocal left
        code = frame.f_code
        if code.co_name == "__del__":
            return  # the interpreter swallows what a finalizer raises
        if event in ("call", "c_return") and code.co_filename.startswith(SOURCE):
            left -= 1
            if left == 0:
                Interrupted.last = (code.co_qualname, event)
                raise Interrupted

    sys.setprofile(profile)
    try:
        work()
    except Interrupted:
        return True
    finally:
        sys.setprofile(None)
    return False


def every_point(work: Callable[[], object]) -> Iterator[int]:
    """Interrupt some work at each point in turn."""
    count = 1
    while interrupt_at(count, work):
        yield count
        count += 1


@pytest.fixture
def operator(daemon: Daemon) -> Iterator[Tracker]:
    with Tracker(daemon.endpoint, timeout=PATIENCE) as operator:
        yield operator


def leases_at(operator: Tracker) -> int:
    status = operator.status()
    return int(status["inflight"] + status["claimed"])


@pytest.mark.parametrize(
    "grant",
    [Tracker.try_acquire, Tracker.acquire, lambda t: t.acquire(0), lambda t: t.adopt("p")],
    ids=["try_acquire", "acquire", "acquire at once", "adopt"],
)
def test_a_grant_that_is_interrupted_at_any_point_is_taken_back(
    daemon: Daemon, operator: Tracker, grant: Callable[[Tracker], Lease]
) -> None:
    with Tracker(daemon.endpoint, timeout=PATIENCE) as tracker:
        tracker.is_claimed("p")
        granted: list[Lease] = []
        for point in every_point(lambda: granted.append(grant(tracker))):
            assert not granted, point
            wait_until(lambda: leases_at(operator) == 0)
        granted.pop().release()


def test_a_release_that_is_interrupted_at_any_point_is_completed_by_a_second(
    daemon: Daemon, operator: Tracker
) -> None:
    with Tracker(daemon.endpoint, timeout=PATIENCE) as tracker:
        leases = [held(tracker, "p")]

        def retry() -> None:
            lease = leases[-1]
            lease.release()
            assert lease.released

        for _ in every_point(lambda: leases[-1].release()):  # noqa: PLW0108 - the last at that time
            retry()
            wait_until(lambda: not operator.is_claimed("p"))
            leases.append(held(tracker, "p"))


def test_a_block_that_is_interrupted_as_it_ends_releases_its_lease(
    daemon: Daemon, operator: Tracker
) -> None:
    with Tracker(daemon.endpoint, timeout=PATIENCE) as tracker:
        leases = [held(tracker, "p")]
        for point in every_point(lambda: leases[-1].__exit__(None, None, None)):
            if point == 1:  # before anything of the block's end was done: as if within it
                leases[-1].release()
            wait_until(lambda: not operator.is_claimed("p"))
            leases.append(held(tracker, "p"))


def test_a_block_leaves_its_lease_only_when_it_is_interrupted_as_it_is_entered_or_left(
    daemon: Daemon, operator: Tracker
) -> None:
    with Tracker(daemon.endpoint, timeout=PATIENCE) as tracker:
        tracker.is_claimed("p")

        def hold() -> None:
            with tracker.adopt("p") as lease:  # type: ignore[union-attr]
                lease.is_claimed("p")

        left = []
        for _ in every_point(hold):
            if Interrupted.last in GAPS:
                left.append(Interrupted.last)
                (lease,) = tracker._leases.values()  # the block has lost it, the tracker has not
                lease.release()
            wait_until(lambda: not operator.is_claimed("p"))
        assert set(left) == GAPS


def test_a_close_that_is_interrupted_is_completed_by_a_second(
    daemon: Daemon, operator: Tracker
) -> None:
    count = 1
    while True:
        tracker = Tracker(daemon.endpoint, timeout=PATIENCE)
        held(tracker, "p")
        interrupted = interrupt_at(count, tracker.close)
        tracker.close()
        wait_until(lambda: not operator.is_claimed("p"))
        if not interrupted:
            break
        count += 1
    wait_until(lambda: operator.status()["sessions"] == 1)  # the operator's own


@pytest.mark.parametrize("made", [1, 2])
def test_an_exception_while_a_socket_is_made_does_not_keep_the_tracker_from_closing(
    daemon: Daemon, made: int
) -> None:
    """The traceback holds the socket for as long as the exception leaves the block."""
    code = f"""
import sys
from trackd_client import Tracker
left = {made}
def profile(frame, event, _):
    global left
    if event == "call" and frame.f_code.co_name == "_add_socket":  # of a new socket
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
try:
    with Tracker(sys.argv[1], timeout=60.0) as tracker:
        tracker.ping()
        tracker._connections._idle.pop().close()
        sys.setprofile(profile)
        tracker.is_claimed("p")
except KeyboardInterrupt:
    print("interrupted")
"""
    done = run_script(code, daemon.endpoint)
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")


def test_a_release_whose_request_cannot_be_sent_is_sent_later(
    daemon: Daemon, maker: Maker, operator: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = maker.tracker(daemon.endpoint)
    lease = tracker.adopt("p")
    name = "_exchange"
    exchange = getattr(trackd_client.AsyncTracker if maker.is_async else Tracker, name)
    failures = [MemoryError()]

    def fail(*args: Any, **options: Any) -> Any:
        if failures:
            raise failures.pop()
        return exchange(*args, **options)

    monkeypatch.setattr(trackd_client.AsyncTracker if maker.is_async else Tracker, name, fail)
    with pytest.raises(MemoryError):
        lease.release()
    wait_until(lambda: not operator.is_claimed("p"))
    lease.release()
    assert lease.released


def test_a_keeper_whose_thread_was_refused_once_is_started_by_a_later_call(
    daemon: Daemon, operator: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = [RuntimeError("can't start new thread")] * 2
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if refusals and thread.name == "trackd-keeper":
            raise refusals.pop()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with Tracker(daemon.endpoint, timeout=PATIENCE) as tracker:
        lease = held(tracker, "p")
        assert tracker.is_claimed("p")
        assert not refusals
        assert not lease.lost
        tracker.ping()
        wait_until(lambda: any(t.name == "trackd-keeper" for t in threading.enumerate()))
    assert operator.status()["sessions"] == 0


def test_a_tracker_whose_thread_never_started_closes_and_ends_its_session(
    daemon: Daemon, operator: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    tracker = Tracker(daemon.endpoint, timeout=PATIENCE)
    lease = tracker.adopt("p")
    assert lease is not None
    lease.let_go()
    tracker.close()
    assert operator.status()["sessions"] == 0
    tracker.close()


def test_nothing_is_granted_in_time_is_still_a_timeout(daemon: Daemon) -> None:
    with Tracker(daemon.endpoint, timeout=PATIENCE) as tracker:
        tracker.track_expected(Proxy("p"))
        with tracker.acquire(0):
            for timeout in (0, 0.05):
                with pytest.raises(AcquireTimeout):
                    tracker.acquire(timeout)
