"""Whoever gives up an acquire, at whatever moment and in whatever way, strands no lease."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvloop

from helpers.both_clients import Background
from helpers.support import PATIENCE, complaints, run_script, wait_until
from trackd_client import AcquireTimeout, AsyncAgentPool, AsyncTracker, Proxy, Tracker
from trackd_client.aio.lease import AsyncLease
from trackd_client.core import calls
from trackd_client.errors import TrackerClosed
from trackd_client.sync.connection import Wake
from trackd_client.testing import Daemon

TIMES = 10_000
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
BOTH = ["asyncio", pytest.param("uvloop", marks=pytest.mark.slow)]


@pytest.fixture
def operator(trackd_daemon: Daemon) -> Iterator[Tracker]:
    """Looks at the daemon; one proxy is tracked, so that one lease at a time is granted."""
    with Tracker(trackd_daemon.endpoint) as tracker:
        tracker.track_expected(Proxy("p0"))
        yield tracker


@pytest.fixture(params=BOTH)
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
        yield runner


def counts(operator: Tracker) -> tuple[int, int]:
    status = operator.status()
    return status["inflight"], status["waiting"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_random_cancellations_and_timeouts_leave_nothing_in_flight_asyncio(
    trackd_daemon: Daemon, operator: Tracker, runner: asyncio.Runner
) -> None:
    ends: Counter[str] = Counter()
    chance = random.Random(4)

    async def one(tracker: AsyncTracker, way: str, seconds: float) -> None:
        try:
            if way == "timeout":
                lease = await tracker.acquire(seconds)
            else:
                async with asyncio.timeout(seconds):
                    lease = await tracker.acquire()
        except AcquireTimeout:
            ends["timed out"] += 1
        except TimeoutError:
            ends["cancelled"] += 1
        else:
            ends["granted"] += 1
            if way == "claims" and await lease.claim("p0"):
                ends["claimed"] += 1
            await lease.release()

    async def run() -> None:
        trackers = [AsyncTracker(trackd_daemon.endpoint) for _ in range(4)]
        for tracker in trackers:
            await tracker.ping()
        for _ in range(TIMES // 100):
            async with asyncio.TaskGroup() as group:
                for number in range(100):
                    way = chance.choice(["timeout", "cancel", "claims", "tasks"])
                    seconds = chance.choice([0.0, 0.0005, 0.002, 0.01, 0.05]) * chance.random()
                    if number % 33 == 0:  # so that some are granted, however slow the machine is
                        way, seconds = chance.choice(["timeout", "cancel", "claims"]), PATIENCE
                    task = group.create_task(one(trackers[number % 4], way, seconds + 1e-6))
                    if way == "tasks" and chance.random() < 0.5:
                        asyncio.get_running_loop().call_later(seconds, task.cancel)
        while counts(operator) != (0, 0):  # noqa: ASYNC110 - the daemon tells nobody
            await asyncio.sleep(0.01)
        assert operator.status()["claimed"] == 0
        for tracker in trackers:
            await tracker.close()

    started = time.monotonic()
    runner.run(run())
    print(f"{ends} in {time.monotonic() - started:.1f} s")
    assert min(ends["timed out"], ends["cancelled"], ends["granted"]) > TIMES // 100
    assert counts(operator) == (0, 0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_random_interruptions_and_timeouts_leave_nothing_in_flight_sync(
    trackd_daemon: Daemon, operator: Tracker
) -> None:
    """A thread cannot be cancelled; what a pool does to end an acquire takes its place."""
    threads = 8
    ends: Counter[str] = Counter()

    def many(tracker: Tracker, seed: int) -> None:
        chance = random.Random(seed)
        for number in range(TIMES // threads):
            seconds = chance.choice([0.0005, 0.002, 0.01]) * chance.random() + 1e-6
            if number % 33 == 0:  # so that some are granted, however slow the machine is
                seconds = PATIENCE
            wake, timer = None, None
            if seconds < PATIENCE and chance.random() < 0.3:
                wake = Wake()
                timer = threading.Timer(seconds / 2, wake.set)
                timer.start()
            try:
                lease = tracker._grant(calls.acquire(seconds), wake)
            except AcquireTimeout:
                ends["timed out"] += 1
            except TrackerClosed:
                ends["interrupted"] += 1
            else:
                assert lease is not None
                ends["granted"] += 1
                if chance.random() < 0.3 and lease.claim("p0"):
                    ends["claimed"] += 1
                lease.release()
            finally:
                if timer is not None and wake is not None:
                    timer.join()
                    wake.close()

    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        trackers = [stack.enter_context(Tracker(trackd_daemon.endpoint)) for _ in range(2)]
        for tracker in trackers:
            tracker.is_claimed("p0")
        for call in [Background(many, trackers[n % 2], n) for n in range(threads)]:
            call.result(250.0)
        wait_until(lambda: counts(operator) == (0, 0))
        assert operator.status()["claimed"] == 0
    print(f"{ends} in {time.monotonic() - started:.1f} s")
    assert min(ends["timed out"], ends["interrupted"], ends["granted"]) > TIMES // 100


async def _acquire(tracker: AsyncTracker) -> object:
    return await tracker.acquire()


async def _acquire_and_release(tracker: AsyncTracker) -> object:
    async with await tracker.acquire() as lease:
        return await lease.claim("p0")


async def _try_acquire(tracker: AsyncTracker) -> object:
    return await tracker.try_acquire()


async def _adopt(tracker: AsyncTracker) -> object:
    return await tracker.adopt("p7")


async def _pool(tracker: AsyncTracker) -> object:
    async def dial(lease: AsyncLease) -> None:
        await lease.claim("p0")
        await lease.should_close.wait()

    async with AsyncAgentPool(tracker, dial):
        await asyncio.sleep(0.02)
    return None


@pytest.mark.parametrize(
    "action",
    [_acquire, _acquire_and_release, _try_acquire, _adopt, _pool],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("opened", [True, False], ids=["opened", "fresh"])
def test_cancelling_at_every_await_leaves_nothing(
    trackd_daemon: Daemon,
    operator: Tracker,
    runner: asyncio.Runner,
    action: Callable[[AsyncTracker], Any],
    opened: bool,
) -> None:
    """The cancellation falls after 0, 1, 2, … steps of the loop, until the action is done first."""

    async def once(tracker: AsyncTracker, steps: int) -> bool:
        task = asyncio.create_task(action(tracker))
        for _ in range(steps):
            if task.done():
                break
            await asyncio.sleep(0)
        ended = task.done()
        task.cancel()
        try:
            lease = await task
        except asyncio.CancelledError:
            lease = None
        if isinstance(lease, AsyncLease):
            await lease.release()
        return ended

    async def run() -> int:
        steps = 0
        while True:
            async with AsyncTracker(trackd_daemon.endpoint) as tracker:
                if opened:
                    await tracker.is_claimed("p0")
                ended = await once(tracker, steps)
                # Its session lives on: what was stranded would show.
                while True:
                    status = operator.status()
                    if (status["inflight"], status["waiting"], status["claimed"]) == (0, 0, 0):
                        break
                    await asyncio.sleep(0.001)
            if ended:
                return steps
            steps = steps + 1 if steps < 60 else int(steps * 1.5)

    assert runner.run(run()) > 2
    wait_until(lambda: operator.status()["sessions"] == 1)


@pytest.mark.parametrize("steps", range(1, 6))
@pytest.mark.parametrize("heeds", [True, False], ids=["heeds advice", "heeds nothing"])
def test_a_drain_that_is_cancelled_leaves_no_lease_and_no_dial(
    trackd_daemon: Daemon, operator: Tracker, runner: asyncio.Runner, steps: int, heeds: bool
) -> None:
    async def run() -> None:
        claimed, over = asyncio.Event(), asyncio.Event()

        async def dial(lease: AsyncLease) -> None:
            assert await lease.claim("p0")
            claimed.set()
            try:
                await (lease.should_close.wait() if heeds else asyncio.sleep(PATIENCE))
            finally:
                over.set()

        async with AsyncTracker(trackd_daemon.endpoint) as tracker:
            pool = AsyncAgentPool(tracker, dial, max_concurrent_dials=1)
            pool.start()
            await claimed.wait()
            draining = asyncio.create_task(pool.drain())
            for _ in range(steps):
                await asyncio.sleep(0)
            draining.cancel()
            await asyncio.wait([draining])
            await asyncio.wait_for(over.wait(), PATIENCE / 2)
            await asyncio.to_thread(wait_until, lambda: not operator.is_claimed("p0"))

    runner.run(run())


def test_a_tracker_closed_while_a_task_is_being_cancelled_raises_nothing_else(
    trackd_daemon: Daemon, operator: Tracker, runner: asyncio.Runner
) -> None:
    holder = operator.try_acquire()
    assert holder is not None

    async def run() -> None:
        for _ in range(20):
            tracker = AsyncTracker(trackd_daemon.endpoint)
            tasks = [asyncio.create_task(tracker.acquire()) for _ in range(4)]
            await asyncio.sleep(0.005)
            closing = asyncio.create_task(tracker.close())
            for task in tasks[:2]:
                asyncio.get_running_loop().call_soon(task.cancel)
            await closing
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(result) for result in results} <= {
                TrackerClosed,
                asyncio.CancelledError,
            }, results

    runner.run(run())
    wait_until(lambda: operator.status()["sessions"] == 1)


SCRIPTS = {
    "a loop that ends with the tracker open": """
async def main():
    global tracker
    tracker = AsyncTracker(endpoint)
    await tracker.is_claimed("p")
    waits = asyncio.create_task(tracker.acquire())
    await asyncio.sleep(0.05)
    await tracker.close()
    try:
        await waits
    except TrackdError:
        pass
""",
    "a pool that is closed while it waits": """
async def main():
    async def dial(lease):
        await asyncio.sleep(60)
    async with AsyncTracker(endpoint) as tracker, AsyncAgentPool(tracker, dial, drain_timeout=0.05):
        await asyncio.sleep(0.05)
""",
    "a loop that is interrupted": """
async def main():
    async with AsyncTracker(endpoint) as tracker:
        tasks = [asyncio.create_task(tracker.acquire()) for _ in range(3)]
        await asyncio.sleep(0.05)
        asyncio.current_task().cancel()
        try:
            await asyncio.gather(*tasks)
        except asyncio.CancelledError:
            pass
""",
    "a pool whose loop ends under it": """
async def main():
    async def dial(lease):
        await lease.claim("p")
        await asyncio.sleep(60)
    tracker = AsyncTracker(endpoint)
    pool = AsyncAgentPool(tracker, dial)
    pool.start()
    await asyncio.sleep(0.05)
    await tracker.close()
""",
}


@pytest.mark.parametrize("loop", BOTH)
@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_nothing_is_complained_of_in_development_mode(
    trackd_daemon: Daemon, script: str, loop: str
) -> None:
    code = f"""
import asyncio, os, subprocess, sys
if not sys.flags.dev_mode:
    sys.exit(subprocess.run([sys.executable, "-X", "dev", "-c", os.environ["SCRIPT"],
                             *sys.argv[1:]]).returncode)
import gc
import uvloop
from trackd_client import AsyncAgentPool, AsyncTracker, TrackdError
endpoint = sys.argv[1]
{script}
factory = uvloop.new_event_loop if sys.argv[2] == "uvloop" else None
with asyncio.Runner(loop_factory=factory) as runner:
    runner.run(main())
gc.collect()
print("done")
"""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCRIPT", code)
        ended = run_script(code, trackd_daemon.endpoint, loop)
    assert (ended.returncode, ended.stdout, complaints(ended.stderr)) == (0, "done\n", "")


def test_a_loop_that_is_closed_with_a_tracker_open_does_not_hang(trackd_daemon: Daemon) -> None:
    """Its author is warned of the open socket; the session ends with the process."""
    code = """
import asyncio, sys
from trackd_client import AsyncTracker
async def main():
    global tracker
    tracker = AsyncTracker(sys.argv[1])
    await tracker.try_acquire()
    asyncio.create_task(tracker.acquire())
    await asyncio.sleep(0.05)
asyncio.run(main())
print("done")
"""
    ended = run_script(code, trackd_daemon.endpoint)
    assert (ended.returncode, ended.stdout) == (0, "done\n")
    assert "was destroyed" not in ended.stderr
    with Tracker(trackd_daemon.endpoint) as operator:
        wait_until(lambda: counts(operator) == (0, 0))
