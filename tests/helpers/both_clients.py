"""One way to write a case for both clients: the asyncio one is driven from a thread of its own.

A case is plain synchronous code that gets a `Maker`. Behind it stands `Tracker` itself, or an
`AsyncTracker` whose coroutines are awaited in the thread of an event loop, asyncio's or
uvloop's. The pools are adapted likewise. A `conftest.py` imports the fixtures `maker`, and
`daemon`, which is shared by the tests of a module and found empty by each.
"""

from __future__ import annotations

import asyncio
import inspect
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import pytest
import uvloop

from helpers.support import wait_until
from trackd_client import AgentPool, AsyncAgentPool, AsyncTracker, Proxy, TrackdError, Tracker
from trackd_client.core.base_tracker import BaseTracker
from trackd_client.core.lease import BaseLease
from trackd_client.core.pool_core import PoolCore
from trackd_client.testing import Daemon

#: Seconds after which a coroutine that a case waits for is hanging.
PATIENCE: Final = 60.0


class LoopThread:
    """An event loop in a thread of its own; each coroutine is awaited from outside."""

    def __init__(self, factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self.loop = factory()
        self.problems: list[str] = []
        self.loop.set_exception_handler(self._note)
        # Dials of a pool are synchronous code here too, each in a thread of this executor.
        self.loop.set_default_executor(ThreadPoolExecutor(64))
        self._thread = threading.Thread(target=self.loop.run_forever, name="loop")
        self._thread.start()

    def run(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call a function in the loop's thread, await what it returns, and adapt that."""

        async def call() -> Any:
            result = function(*args, **options)
            return await result if inspect.isawaitable(result) else result

        return self.adapt(asyncio.run_coroutine_threadsafe(call(), self.loop).result(PATIENCE))

    def adapt(self, value: Any) -> Any:
        """Return what stands for a value in synchronous code: the value itself, mostly."""
        if isinstance(value, asyncio.Event):
            return AdaptedEvent(value, self)
        if inspect.isasyncgen(value):
            return AdaptedIterator(value, self)
        if isinstance(value, BaseLease | BaseTracker | PoolCore):
            return Adapted(value, self)
        return value

    def close(self) -> None:
        """End the loop, and fail when it had anything to complain about."""
        self.run(self.loop.shutdown_default_executor)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        left = asyncio.all_tasks(self.loop)
        self.loop.close()
        assert not self.problems, self.problems
        assert not left, f"tasks left behind: {left}"

    def _note(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.problems.append(f"{context.get('message')}: {context.get('exception')!r}")


class Adapted:
    """Stands for a tracker, a lease or a pool of asyncio; calls wait for what they await."""

    def __init__(self, target: Any, loop: LoopThread) -> None:
        self._target = target
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        return partial(self._loop.run, value) if callable(value) else self._loop.adapt(value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:
            setattr(self._target, name, value)

    def __repr__(self) -> str:
        return repr(self._target)

    def __enter__(self) -> Self:
        self._loop.run(self._target.__aenter__)
        return self

    def __exit__(self, *ended_by: object) -> None:
        self._loop.run(self._target.__aexit__, *ended_by)


class AdaptedEvent:
    """Stands for an event of asyncio, as `threading.Event`."""

    def __init__(self, event: asyncio.Event, loop: LoopThread) -> None:
        self._event = event
        self._loop = loop

    def __bool__(self) -> bool:
        return bool(self._event)

    def is_set(self) -> bool:
        return self._event.is_set()

    def set(self) -> None:
        self._loop.run(self._event.set)

    def wait(self, seconds: float | None = None) -> bool:
        async def wait() -> bool:
            try:
                return await asyncio.wait_for(self._event.wait(), seconds)
            except TimeoutError:
                return False

        return bool(self._loop.run(wait))


class AdaptedIterator:
    """Stands for an asynchronous generator, as a generator."""

    def __init__(self, target: AsyncGenerator[Any, Any], loop: LoopThread) -> None:
        self._target = target
        self._loop = loop

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        async def advance() -> tuple[Any, bool]:
            try:
                return await anext(self._target), True
            except StopAsyncIteration:
                return None, False

        value, found = self._loop.run(advance)
        if not found:
            raise StopIteration
        return value

    def close(self) -> None:
        self._loop.run(self._target.aclose)


class Maker:
    """Makes trackers and pools of one kind, and closes the trackers at the end."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.is_async = kind != "sync"
        self.loop: LoopThread | None = None
        if self.is_async:
            self.loop = LoopThread(uvloop.new_event_loop if kind == "uvloop" else _asyncio_loop)
        self._made: list[Any] = []

    def tracker(self, endpoint: str | None, **options: Any) -> Any:
        """Return a tracker, whose methods all wait."""
        tracker: Any
        if self.loop is None:
            tracker = Tracker(endpoint, **options)
        else:
            tracker = self.loop.run(AsyncTracker, endpoint, **options)
        self._made.append(tracker)
        return tracker

    def pool(self, tracker: Any, dial: Callable[[Any], object], **options: Any) -> Any:
        """Return a pool whose dial is synchronous code, in a thread of its own."""
        loop = self.loop
        if loop is None:
            return AgentPool(tracker, dial, **options)

        async def dial_in_thread(lease: Any) -> None:
            await asyncio.to_thread(dial, loop.adapt(lease))

        return loop.run(AsyncAgentPool, tracker._target, dial_in_thread, **options)

    def close(self) -> None:
        """Close whatever is still open."""
        for tracker in self._made:
            tracker.close()
        if self.loop is not None:
            self.loop.close()


def _asyncio_loop() -> asyncio.AbstractEventLoop:
    return asyncio.SelectorEventLoop()


class Background:
    """A call that runs in a thread while the case goes on; `result` waits for it."""

    def __init__(self, function: Callable[..., Any], *args: Any, **options: Any) -> None:
        self.ended_at = 0.0
        self._outcome: Any = None
        self._error: BaseException | None = None

        def run() -> None:
            try:
                self._outcome = function(*args, **options)
            except BaseException as error:  # noqa: BLE001 - raised again by `result`
                self._error = error
            self.ended_at = time.monotonic()

        # A call that hangs fails its test, and must not keep the tests from ending.
        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether it has returned or raised."""
        return not self._thread.is_alive()

    def result(self, seconds: float = PATIENCE) -> Any:
        """Return what it returned, or raise what it raised."""
        self._thread.join(seconds)
        assert self.done, "the call hangs"
        if self._error is not None:
            raise self._error
        return self._outcome


def forget_all(endpoint: str) -> None:
    """Empty a daemon that nobody uses any more; fail when somebody has left something."""
    with Tracker(endpoint) as operator:
        wait_until(lambda: operator.status()["sessions"] == 0)
        status = operator.status()
        assert (status["inflight"], status["claimed"], status["waiting"]) == (0, 0, 0), status
        operator.set_connection_count(0)
        operator.resume()
        while operator.status()["tracked"]:
            gone = operator.explain()["missing"]
            operator.track_expected(*(Proxy(name, generation=2**64 - 1, ttl=1e-6) for name in gone))
            lease = operator.try_acquire()  # purges
            if lease is not None:
                lease.release()


@pytest.fixture(scope="module")
def shared_daemon() -> Iterator[Daemon]:
    """A daemon for all tests of a module."""
    with tempfile.TemporaryDirectory(prefix="trackd-") as directory:
        daemon = Daemon(Path(directory))
        daemon.start()
        try:
            yield daemon
        finally:
            daemon.close()


@pytest.fixture
def daemon(shared_daemon: Daemon) -> Iterator[Daemon]:
    """The module's daemon, empty; a test that leaves a session or a lease there fails."""
    yield shared_daemon
    try:
        forget_all(shared_daemon.endpoint)
    except TrackdError as error:
        raise AssertionError(f"{error}; its log:\n{shared_daemon.log.read_text()}") from error


@pytest.fixture(params=["sync", "asyncio", pytest.param("uvloop", marks=pytest.mark.slow)])
def maker(request: pytest.FixtureRequest, daemon: Daemon) -> Iterator[Maker]:
    """Makes trackers of each kind; the case runs once for each."""
    made = Maker(request.param)
    try:
        yield made
    finally:
        made.close()
