"""Every public call of the client, made in a process of its own while the system refuses things.

`python -m helpers.every_call FAULT ENDPOINT` prints each call that raised what is no `TrackdError`,
and at the end how many calls it made. A fault is a function below. With `fork` for a fault, forked
children make the calls, and each that did not raise `UsedAfterFork` is printed.
"""

from __future__ import annotations

import asyncio
import errno
import inspect
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, NoReturn

import zmq

from trackd_client import (
    AgentPool,
    AsyncAgentPool,
    AsyncLease,
    AsyncTracker,
    Lease,
    Mirror,
    NoAnswer,
    Policy,
    Proxy,
    TrackdError,
    Tracker,
    parse_discovery,
)
from trackd_client.errors import UsedAfterFork

#: Seconds that a call may take.
TIMEOUT: Final = 0.3
#: Seconds after which a call in a forked child hangs.
CHILD_SECONDS: Final = 20
#: What is nearly always of the wrong type.
WRONG: Final[tuple[Any, ...]] = (
    None,
    3,
    -1.5,
    b"\xff",
    "",
    "x",
    [],
    {},
    object(),
    float("nan"),
    2**70,
    ["p"],
    "\ud800",
)

#: Those of them that are right for `wait_covered`: here it would wait without end.
ENDLESS: Final = (None, 2**70)

#: How each public method is called: its arguments. A test checks that none is missing.
ARGUMENTS: Final[dict[type, dict[str, tuple[Any, ...]]]] = {
    Tracker: {
        "acquire": (0.05,),
        "adopt": ("p",),
        "close": (),
        "config": (),
        "drop_host": ("nowhere",),
        "end_session": (10**6,),
        "events": (),
        "explain": ("p",),
        "fleet": (),
        "force_release": (10**6,),
        "forget": ("p",),
        "is_claimed": ("p",),
        "log": (0,),
        "metrics": (),
        "ping": (),
        "reload": (),
        "resume": (),
        "rows": ("proxies",),
        "set_connection_count": (0,),
        "snapshot": (),
        "status": (),
        "track_discovery": ('{"proxies": []}',),
        "track_expected": (Proxy("p"),),
        "try_acquire": (),
        "wait_covered": (0.05,),
        "yield_lead": (1,),
    },
    Lease: {
        "claim": ("p",),
        "is_claimed": ("p",),
        "let_go": (),
        "on_close": (print,),
        "offer": (),
        "release": (),
        "report": (),
        "retire": (),
    },
    AgentPool: {"drain": (0.05,), "feed": (Proxy("p"),), "start": (), "stats": ()},
}


def public_calls(kind: type) -> set[str]:
    """Return the names of the public methods of a class."""
    return {
        name
        for name in dir(kind)
        if not name.startswith("_") and callable(inspect.getattr_static(kind, name))
    }


# -- faults ---------------------------------------------------------------------------------------


@contextmanager
def nothing() -> Iterator[None]:
    """Refuse nothing."""
    yield


@contextmanager
def descriptors() -> Iterator[None]:
    """Refuse every descriptor."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))  # noqa: PTH208 - the names alone count
    fill = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, limits[1]))
    try:
        while True:
            fill.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for each in fill:
            os.close(each)


@contextmanager
def threads() -> Iterator[None]:
    """Refuse every thread."""

    def refuse(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    with replaced(threading.Thread, "start", refuse):
        yield


@contextmanager
def sockets() -> Iterator[None]:
    """Refuse every socket of ZeroMQ."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise zmq.ZMQError(errno.EMFILE)

    with replaced(zmq.Context, "socket", refuse):
        yield


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an attribute another value for the time of the block."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


FAULTS: Final = (nothing, descriptors, threads, sockets)


# -- calls ----------------------------------------------------------------------------------------


class Walk:
    """Makes calls, and notes those that raise what they must not."""

    def __init__(self) -> None:
        self.made = 0

    def note(self, what: str, error: BaseException) -> None:
        if not isinstance(error, TrackdError):
            print(f"{what} raised {error!r}", flush=True)

    def make(self, what: str, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Make a call of the synchronous client, and take the first of what an iterator yields."""
        self.made += 1
        try:
            result = call(*args, **options)
            if inspect.isgenerator(result):
                next(result, None)
                result.close()
        except Exception as error:  # noqa: BLE001 - looked at
            self.note(what, error)
            return None
        if isinstance(result, Lease):  # in flight, the next `acquire` would wait for its end
            self.make(f"{what}.release", result.release)
        return result

    async def make_async(self, what: str, call: Callable[..., Any], *args: Any) -> Any:
        """Make a call of the asyncio client."""
        self.made += 1
        try:
            result = call(*args)
            if inspect.isasyncgen(result):
                await anext(result, None)
                await result.aclose()
            elif inspect.isawaitable(result):
                result = await result
        except Exception as error:  # noqa: BLE001 - looked at
            self.note(what, error)
            return None
        if isinstance(result, AsyncLease):
            await self.make_async(f"{what}.release", result.release)
        return result


def arguments(kind: type, name: str, *, wrong: bool) -> Iterator[tuple[Any, ...]]:
    """Yield the right arguments of a call, and perhaps wrong ones."""
    right = ARGUMENTS[kind][name]
    yield right
    if right and wrong:
        for each in WRONG:
            if name != "wait_covered" or each not in ENDLESS:
                yield (each,)


def walk_sync(walk: Walk, fault: Callable[[], Any], endpoint: str) -> None:
    """Make every call of the synchronous client, of new trackers and of used ones."""

    def dial(lease: Lease) -> None:
        lease.claim("p")

    calls = [(kind, name) for kind, names in ARGUMENTS.items() for name in names]
    for used in (False, True):
        for kind, name in calls:
            tracker = Tracker(endpoint, timeout=TIMEOUT)
            wants = used or kind is Lease
            lease = None
            while wants and lease is None:
                with suppress(NoAnswer):  # TIMEOUT may be short for this machine
                    lease = tracker.adopt(f"{kind.__name__}.{name}.{used}")
            pool = AgentPool(tracker, dial, drain_timeout=TIMEOUT)
            target = {Tracker: tracker, Lease: lease, AgentPool: pool}[kind]
            with fault():
                for args in arguments(kind, name, wrong=used and fault is nothing):
                    walk.make(f"{kind.__name__}.{name}{args!r}", getattr(target, name), *args)
            walk.make("drain", pool.drain, TIMEOUT)
            with fault():
                walk.make("close", tracker.close)
        with fault():
            walk.make("Tracker", lambda: Tracker(endpoint, timeout=TIMEOUT).close())
            walk.make("AgentPool", AgentPool, tracker, dial)


async def walk_async(walk: Walk, fault: Callable[[], Any], endpoint: str) -> None:
    """Make every call of the asyncio client, of new trackers and of used ones."""
    kinds: dict[type, type] = {AsyncTracker: Tracker, AsyncLease: Lease, AsyncAgentPool: AgentPool}

    async def dial(lease: AsyncLease) -> None:
        await lease.claim("p")

    calls = [(kind, twin, name) for kind, twin in kinds.items() for name in ARGUMENTS[twin]]
    for used in (False, True):
        for kind, twin, name in calls:
            tracker = AsyncTracker(endpoint, timeout=TIMEOUT)
            wants = used or kind is AsyncLease
            lease = None
            while wants and lease is None:
                with suppress(NoAnswer):
                    lease = await tracker.adopt(f"{kind.__name__}.{name}.{used}")
            pool = AsyncAgentPool(tracker, dial, drain_timeout=TIMEOUT)
            target = {AsyncTracker: tracker, AsyncLease: lease, AsyncAgentPool: pool}[kind]
            with fault():
                for args in arguments(twin, name, wrong=used and fault is nothing):
                    what = f"{kind.__name__}.{name}{args!r}"
                    await walk.make_async(what, getattr(target, name), *args)
            await walk.make_async("drain", pool.drain, TIMEOUT)
            with fault():
                await walk.make_async("close", tracker.close)


async def walk_children(endpoint: str) -> int:
    """Make every call of both clients in a forked child of its own, and return how many."""

    def dial(lease: Lease) -> None:
        lease.claim("p")

    async def dial_async(lease: AsyncLease) -> None:
        await lease.claim("p")

    tracker, twin = Tracker(endpoint), AsyncTracker(endpoint)
    lease, twin_lease = tracker.adopt("p"), await twin.adopt("q")
    assert lease is not None
    assert twin_lease is not None
    targets: dict[type, tuple[Any, ...]] = {
        Tracker: (tracker, Tracker(endpoint), twin, AsyncTracker(endpoint)),
        Lease: (lease, twin_lease),
        AgentPool: (AgentPool(tracker, dial), AsyncAgentPool(twin, dial_async)),
    }
    calls = [
        (getattr(target, name), args)
        for kind, names in ARGUMENTS.items()
        for name, args in names.items()
        for target in targets[kind]
    ]
    flags = (lease.lost, lease.should_close, twin_lease.lost, twin_lease.should_close)
    calls += [(flag.wait, ()) for flag in flags]
    for call, args in calls:
        child = os.fork()
        if child == 0:
            signal.alarm(CHILD_SECONDS)
            await make_in_child(call, *args)
        elif os.waitpid(child, 0)[1]:  # noqa: ASYNC222 - nothing else runs in this loop
            print(f"the child that called {call} hung", flush=True)
    tracker.close()
    await twin.close()
    return len(calls)


async def make_in_child(call: Callable[..., Any], *args: Any) -> NoReturn:
    """Make a call, print what it did unless it raised `UsedAfterFork`, and end this process."""
    try:
        result = call(*args)
        if inspect.isgenerator(result):
            result = next(result)
        elif inspect.isasyncgen(result):
            result = await anext(result)
        elif inspect.isawaitable(result):
            result = await result
    except UsedAfterFork:
        pass
    except Exception as error:  # noqa: BLE001 - looked at
        print(f"{call} raised {error!r}", flush=True)
    else:
        print(f"{call} returned {result!r}", flush=True)
    os._exit(0)


def walk_values(walk: Walk) -> None:
    """Construct every public thing of wrong values."""
    trackers: list[Any] = [Tracker, AsyncTracker]
    pools: list[Any] = [AgentPool, AsyncAgentPool]
    policy: Any = Policy
    for wrong in WRONG:
        value: Any = wrong
        for kind in trackers:
            for name in ("endpoint", "cluster", "timeout", "name", "labels", "on_session_lost"):
                made = walk.make(f"{kind.__name__}({name}={wrong!r})", kind, **{name: wrong})
                if isinstance(made, Tracker):
                    made.close()
        with Tracker("/nowhere/socket", timeout=TIMEOUT) as tracker:
            for kind in pools:
                for args in ([wrong, print], [tracker, wrong]):
                    walk.make(f"{kind.__name__}{args}", kind, *args)
                for name in inspect.signature(kind).parameters.keys() - {"tracker", "dial"}:
                    walk.make(f"pool({name}={wrong!r})", kind, tracker, print, **{name: wrong})
        for name in inspect.signature(Policy).parameters:
            walk.make(f"Policy({name}={wrong!r})", policy, **{name: wrong})
        walk.make(f"Mirror({wrong!r})", Mirror, value)
        walk.make(f"Mirror().apply({wrong!r})", Mirror().apply, value)
        walk.make(f"parse_discovery({wrong!r})", parse_discovery, value)


def main() -> None:
    """Walk under the fault that the command line names."""
    if sys.argv[1] == "fork":
        print(f"calls: {asyncio.run(walk_children(sys.argv[2]))}")
        return
    fault = next(each for each in FAULTS if each.__name__ == sys.argv[1])
    walk = Walk()
    walk_sync(walk, fault, sys.argv[2])
    asyncio.run(walk_async(walk, fault, sys.argv[2]))
    if fault is nothing:
        walk_values(walk)
    print(f"calls: {walk.made}")


if __name__ == "__main__":
    main()
