"""An event loop whose clock is virtual: it jumps to the next timer instead of waiting.

So an hour of agents costs what they compute, and the same seed gives the same run.
"""

from __future__ import annotations

import asyncio
import logging
import selectors
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest.mock import patch

T = TypeVar("T")

#: Seconds that the clock shows when a simulation begins.
START = 5000.0
#: Where the client reads CLOCK_BOOTTIME, and where its pools read CLOCK_MONOTONIC.
_BOOTTIME_IN = (
    *("aio.pool", "aio.tracker", "core.base_tracker", "core.calls", "core.lease"),
    "core.pool_core",
)
_MONOTONIC_IN = ("aio.pool", "core.pool_core")


class StandstillError(Exception):
    """Nothing will ever happen again: no timer is set, and nothing else wakes this loop."""


class _Jump(selectors.SelectSelector):
    """Waits for nothing: it moves the clock instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise StandstillError
        if timeout > 0:
            self.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now


@contextmanager
def _simulated(clock: Callable[[], float]) -> Iterator[None]:
    """Let the client read a clock instead of the kernel's, and log nothing."""
    log = logging.getLogger("trackd_client")
    with ExitStack() as stack:
        for name in _BOOTTIME_IN:
            stack.enter_context(patch(f"trackd_client.{name}.boottime", clock))
        for name in _MONOTONIC_IN:
            module = SimpleNamespace(monotonic=clock)
            stack.enter_context(patch(f"trackd_client.{name}.time", module))
        stack.enter_context(patch.object(log, "disabled", new=True))
        yield


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine in virtual time from START on, cancel what it leaves, return its result."""
    loop = VirtualLoop()
    try:
        with _simulated(loop.time):
            try:
                return loop.run_until_complete(main())
            finally:
                left = asyncio.all_tasks(loop)
                for task in left:
                    task.cancel()
                if left:
                    loop.run_until_complete(asyncio.wait(left))
    finally:
        loop.close()
