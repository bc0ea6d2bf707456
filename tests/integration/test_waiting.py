"""Rule 13: whoever waits longest is served first, by whatever makes room, and nobody polls."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from helpers.agents import Agent
from helpers.both_clients import Background, Maker
from helpers.support import PATIENCE, RawPeer, pack, wait_until
from trackd_client import AcquireTimeout, AsyncTracker, Proxy, Tracker
from trackd_client.errors import LimitExceeded
from trackd_client.testing import Daemon, MakeDaemon
from trackd_client.wire.clock import boottime

pytestmark = pytest.mark.rule(13)


class Line:
    """Agents that wait in a known order: each joins once the one before stands in line."""

    def __init__(self, endpoint: str, count: int) -> None:
        self.operator = Tracker(endpoint)
        self.trackers = [Tracker(endpoint, name=f"place {place}") for place in range(count)]
        self.served: list[int] = []
        self.calls: list[Background] = []
        for place, tracker in enumerate(self.trackers):
            self.calls.append(Background(self._wait, tracker, place))
            wait_until(partial(self._has_joined, place))  # others may leave the line meanwhile

    def _wait(self, tracker: Tracker, place: int) -> int:
        lease = tracker.acquire()
        self.served.append(place)
        return lease.id

    def _has_joined(self, place: int) -> bool:
        sessions = self.operator.snapshot().sessions
        stands = any(row.name == f"place {place}" and row.waiting for row in sessions)
        return stands or self.calls[place].done  # served at once, or failed

    @property
    def waiting(self) -> int:
        return int(self.operator.status()["waiting"])

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.close()
        self.operator.close()


@pytest.fixture
def busy(daemon: Daemon) -> Iterator[tuple[Daemon, Tracker]]:
    """A daemon whose one proxy is claimed, and the agent that has it."""
    with Tracker(daemon.endpoint) as holder:
        holder.track_expected(Proxy("p0"))
        lease = holder.try_acquire()
        assert lease is not None
        assert lease.claim("p0")
        yield daemon, holder


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - whatever it is about, it tells nobody
        await asyncio.sleep(0.001)


def proxies(first: int, last: int) -> list[Proxy]:
    return [Proxy(f"p{number}") for number in range(first, last + 1)]


# -- who is served, and when ----------------------------------------------------------------------


def test_proxies_that_appear_serve_the_waiters_in_their_order_one_each(
    busy: tuple[Daemon, Tracker],
) -> None:
    daemon, holder = busy
    line = Line(daemon.endpoint, 4)
    for number in range(1, 5):
        holder.track_expected(Proxy(f"p{number}"))
        wait_until(lambda n=number: len(line.served) == n)  # type: ignore[misc]
        assert line.waiting == 4 - number
    assert line.served == [0, 1, 2, 3]
    ids = [call.result() for call in line.calls]
    assert ids == sorted(ids)
    line.close()


@pytest.mark.parametrize("cause", ["release", "close", "gossip", "count", "no claim"])
def test_the_longest_waiter_is_served_by_whatever_makes_room(
    make_trackd_daemon: MakeDaemon, cause: str
) -> None:
    daemon = make_trackd_daemon(claim_timeout=3.0 if cause == "no claim" else 0)
    with Tracker(daemon.endpoint) as holder:
        holder.track_expected(*proxies(0, 1))
        holder.set_connection_count(1)
        lease = holder.try_acquire()
        assert lease is not None
        if cause != "no claim":
            assert lease.claim("p0")
        line = Line(daemon.endpoint, 2)
        if cause == "release":
            lease.release()
        elif cause == "close":
            holder.close()
        elif cause == "gossip":
            line.operator.track_expected(Proxy("p0", generation=0), Proxy("p1", generation=1))
        elif cause == "count":
            holder.set_connection_count(2)
        assert line.calls[0].result() == lease.id + 1
        assert line.served == [0]
        assert line.waiting == 1
        line.operator.set_connection_count(10)
        line.trackers[0].close()
        line.operator.track_expected(*proxies(0, 5))
        line.calls[1].result()
        line.close()


def test_an_expiry_serves_a_waiter_at_the_first_moment_after_it(daemon: Daemon) -> None:
    """Bootstrap, once nothing is tracked; and not a coarse sweep later."""
    lateness = []
    with Tracker(daemon.endpoint) as holder, Tracker(daemon.endpoint) as waiter:
        for _ in range(5):
            holder.track_expected(Proxy("p0", ttl=600.0))
            lease = holder.try_acquire()
            assert lease is not None
            assert lease.claim("p0")
            call = Background(waiter.acquire)
            wait_until(lambda: holder.status()["waiting"] == 1)
            before = boottime()
            holder.track_expected(Proxy("p0", ttl=0.3))
            after = boottime()
            granted = call.result()
            now = boottime()
            assert now > before + 0.3, "at its expiry the proxy still counts"
            lateness.append(now - after - 0.3)
            granted.release()
            lease.release()
    median = statistics.median(lateness)
    print(f"served after the expiry: median {median * 1e3:.1f} ms of {lateness}")
    assert median < 0.5, "well before the next sweep of an idle daemon"


def test_asking_from_outside_never_jumps_the_queue(busy: tuple[Daemon, Tracker]) -> None:
    daemon, holder = busy
    line = Line(daemon.endpoint, 2)
    stop = threading.Event()
    stolen: list[int] = []

    def jump() -> None:
        with Tracker(daemon.endpoint) as outsider:
            while not stop.is_set():
                lease = outsider.try_acquire()
                if lease is not None:
                    stolen.append(len(line.served))

    jumper = Background(jump)
    holder.track_expected(*proxies(1, 2))
    ids = [call.result() for call in line.calls]
    stop.set()
    jumper.result()
    assert sorted(ids) == ids
    assert not stolen
    line.close()


# -- leaving the line ---------------------------------------------------------------------------


def test_who_times_out_is_cancelled_or_dies_is_never_granted_anything(
    busy: tuple[Daemon, Tracker],
) -> None:
    daemon, holder = busy
    give_up = threading.Event()

    async def cancelled() -> None:
        async with AsyncTracker(daemon.endpoint) as tracker:
            waits = asyncio.create_task(tracker.acquire())
            await until(give_up.is_set)
            waits.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waits

    with Agent(daemon.endpoint) as killed, Tracker(daemon.endpoint) as late:
        killed.tell("wait", 60.0)
        wait_until(lambda: holder.status()["waiting"] == 1)
        gives_up = Background(asyncio.run, cancelled())
        wait_until(lambda: holder.status()["waiting"] == 2)
        times_out = Background(late.acquire, 1.0)
        wait_until(lambda: holder.status()["waiting"] == 3 or times_out.done)
        line = Line(daemon.endpoint, 1)
        with pytest.raises(AcquireTimeout):
            times_out.result()
        give_up.set()
        gives_up.result()
        killed.kill()
        wait_until(lambda: line.waiting == 1)
        last = line.operator.status()["last_lease"]
        holder.track_expected(Proxy("p1"))
        assert line.calls[0].result() == last + 1, "nobody else was granted one"
        line.close()


def test_a_lease_granted_to_an_agent_that_was_killed_goes_to_the_next(
    busy: tuple[Daemon, Tracker],
) -> None:
    daemon, holder = busy
    with Agent(daemon.endpoint) as first:
        first.tell("wait", 60.0)
        wait_until(lambda: holder.status()["waiting"] == 1)
        line = Line(daemon.endpoint, 1)
        holder.track_expected(Proxy("p1"))
        granted = first.answer()
        first.kill()
        assert line.calls[0].result() == granted + 1
        line.close()


def test_a_lease_granted_to_a_request_that_was_given_up_goes_to_the_next(
    busy: tuple[Daemon, Tracker],
) -> None:
    """The grant and the cancelling cross on their way."""
    daemon, holder = busy
    with RawPeer(daemon.endpoint) as raw:
        raw.open()
        acquire = raw.body("acquire")
        raw.send(pack(acquire))
        wait_until(lambda: holder.status()["waiting"] == 1)
        line = Line(daemon.endpoint, 1)
        holder.track_expected(Proxy("p1"))
        wait_until(lambda: holder.status()["inflight"] == 1)
        cancelled = raw.body("cancel", target=acquire["seq"])
        cancelled["done"] = [1, acquire["seq"] - 1]
        assert raw.ask(cancelled)["cancelled"] is True
        line.calls[0].result()
        again = raw.body("cancel", target=acquire["seq"])
        again["done"] = [1, acquire["seq"] - 1]
        assert raw.ask(again)["cancelled"] is False
        assert holder.status()["inflight"] == 1
        close = raw.body("close")
        raw.ask(close)
        line.close()


def test_no_more_may_wait_than_the_limit_says(make_trackd_daemon: MakeDaemon) -> None:
    daemon = make_trackd_daemon(max_waiters=2)
    with Tracker(daemon.endpoint) as holder:
        lease = holder.try_acquire()
        assert lease is not None
        line = Line(daemon.endpoint, 2)
        with Tracker(daemon.endpoint) as third:
            with pytest.raises(LimitExceeded, match="2 requests wait"):
                third.acquire(PATIENCE)
            assert line.waiting == 2
            lease.release()
            line.calls[0].result()
            waits = Background(third.acquire)
            wait_until(lambda: line.waiting == 2)
            line.trackers[0].close()
            line.calls[1].result()
            line.trackers[1].close()
            waits.result()
        line.close()


# -- many, and across restarts ---------------------------------------------------------------------


@pytest.mark.slow
def test_two_hundred_agents_are_served_in_order_and_none_of_them_polls(
    make_trackd_daemon: MakeDaemon,
) -> None:
    daemon = make_trackd_daemon()
    count = 200
    served: list[int] = []
    leases: list[int] = []
    gone = {17, 60, 61, 150}  # cancelled
    killed_at = {0, 30, 100, 200}  # an agent that will be killed joins before these

    async def run() -> None:
        operator = AsyncTracker(daemon.endpoint)
        await operator.track_expected(Proxy("p0"))
        holder = await operator.try_acquire()
        assert holder is not None
        assert await holder.claim("p0")

        async def waiting(number: int) -> None:
            while (await operator.status())["waiting"] != number:
                pass

        trackers = [AsyncTracker(daemon.endpoint) for _ in range(count)]
        doomed: list[Agent] = []
        tasks: list[asyncio.Task[None]] = []

        async def wait(place: int) -> None:
            lease = await trackers[place].acquire()
            served.append(place)
            leases.append(lease.id)

        async def join_doomed() -> None:
            agent = Agent(daemon.endpoint)
            doomed.append(agent)
            agent.tell("wait", 600.0)
            await waiting(len(tasks) + len(doomed))

        try:
            for place in range(count):
                if place in killed_at:
                    await join_doomed()
                tasks.append(asyncio.create_task(wait(place)))
                await waiting(len(tasks) + len(doomed))
            await join_doomed()
            for place in gone:
                tasks[place].cancel()
            for agent in doomed:
                agent.kill()
            await waiting(count - len(gone))

            requests = (await operator.status())["requests"]
            began = time.monotonic()
            await asyncio.sleep(2.2)
            still = (await operator.status())["requests"]
            # Each tracker has two requests that wait, and sends them after 1 s and 3 s, and later.
            looks = (time.monotonic() - began) / 2.2  # 1, unless the machine was busy
            assert still - requests <= 1 + 2 * 2 * looks * (count + 1), (
                "nobody asks again and again"
            )

            for number in range(1, count - len(gone) + 1):
                await operator.track_expected(Proxy(f"p{number}"))
                await until(lambda n=number: len(served) == n)  # type: ignore[misc]
                assert len(served) == number, "one grant per need"
            assert (await operator.status())["waiting"] == 0
            requests = (await operator.status())["requests"] - still
        finally:
            for agent in doomed:
                agent.close()
            for tracker in [*trackers, operator]:
                await tracker.close()
        print(f"{len(served)} served in order; {requests} requests meanwhile, gossip included")

    started = time.monotonic()
    asyncio.run(run())
    print(f"in {time.monotonic() - started:.1f} s")
    assert served == [place for place in range(count) if place not in gone]
    assert leases == list(range(2, 2 + len(served))), "no lease was granted to anybody else"


@pytest.mark.both_stores
def test_a_restart_keeps_the_order_and_each_waiter_stays_in_line_by_itself(
    make_trackd_daemon: MakeDaemon,
) -> None:
    daemon = make_trackd_daemon()
    with Tracker(daemon.endpoint, timeout=20.0) as holder:
        holder.track_expected(Proxy("p0"))
        lease = holder.try_acquire()
        assert lease is not None
        assert lease.claim("p0")
        line = Line(daemon.endpoint, 8)
        for _ in range(2):
            daemon.restart()
            wait_until(lambda: line.waiting == 8)
        assert holder.status()["epoch"] == 3
        for number in range(1, 9):
            holder.track_expected(Proxy(f"p{number}"))
            wait_until(lambda n=number: len(line.served) == n)  # type: ignore[misc]
        assert line.served == list(range(8))
        line.close()


@pytest.mark.both_stores
@pytest.mark.slow
def test_a_deadline_runs_on_while_the_daemon_is_away(
    make_trackd_daemon: MakeDaemon, maker: Maker
) -> None:
    own = make_trackd_daemon()
    tracker = maker.tracker(own.endpoint)
    lease = tracker.try_acquire()
    waits = Background(tracker.acquire, 2.0)
    wait_until(lambda: tracker.status()["waiting"] == 1 or waits.done)
    own.kill()
    with pytest.raises((AcquireTimeout, ConnectionError)):
        waits.result()
    own.start()
    wait_until(lambda: tracker.status()["waiting"] == 0)
    lease.release()
    assert tracker.status()["inflight"] == 0
