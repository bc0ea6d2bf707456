"""The clients for threads and for asyncio are used alike: the same files, methods and arguments."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

import trackd_client
from trackd_client import AgentPool, AsyncAgentPool, AsyncLease, AsyncTracker, Lease, Tracker

PLACE: Final = Path(trackd_client.__file__).parent
#: What only the client for threads has, and why asyncio needs none.
THREADS_ALONE: Final = {
    "keeper.py": "a background thread; asyncio has tasks and timers in the loop that it runs in",
    "ending.py": "a thread that outlives its tracker, and its loop; both clients use it",
}
TWINS: Final[list[tuple[type, type]]] = [
    (Tracker, AsyncTracker),
    (Lease, AsyncLease),
    (AgentPool, AsyncAgentPool),
]
#: Methods that never wait, so that they are plain functions in both; generators wait elsewhere.
PLAIN: Final = {"let_go", "on_close", "report", "start", "stats", "events", "rows"}


def public(kind: type) -> dict[str, Any]:
    """Return the public attributes of a class that it or its bases define, and how it is made."""
    return {
        name: inspect.getattr_static(kind, name)
        for name in dir(kind)
        if not name.startswith("_") or name == "__init__"
    }


def methods() -> list[tuple[str, Callable[..., Any], Callable[..., Any]]]:
    """Return the public methods of each pair of classes, under their names."""
    return [
        (f"{kind.__name__}.{name}", value, public(twin)[name])
        for kind, twin in TWINS
        for name, value in public(kind).items()
        if inspect.isfunction(value)
    ]


METHODS: Final = methods()
IDS: Final = [name for name, _, _ in METHODS]


def as_for_threads(annotation: Any) -> str:
    """Return an annotation of asyncio as the client for threads has it."""
    text = str(annotation).replace("Async", "").replace(", None, None]", ", None]")
    return re.sub(r"Awaitable\[(\w+)\]", r"\1", text)


def test_both_folders_have_the_same_files() -> None:
    sync, aio = ({path.name for path in (PLACE / side).glob("*.py")} for side in ("sync", "aio"))
    assert sync == aio | THREADS_ALONE.keys()
    assert not aio & THREADS_ALONE.keys()


@pytest.mark.parametrize(("kind", "twin"), TWINS)
def test_both_classes_have_the_same_public_attributes(kind: type, twin: type) -> None:
    assert public(kind).keys() == public(twin).keys()
    assert {name for name, value in public(kind).items() if isinstance(value, property)} == {
        name for name, value in public(twin).items() if isinstance(value, property)
    }


@pytest.mark.parametrize(("name", "method", "twin"), METHODS, ids=IDS)
def test_both_methods_take_and_return_the_same(
    name: str, method: Callable[..., Any], twin: Callable[..., Any]
) -> None:
    ours, theirs = inspect.signature(method), inspect.signature(twin)
    assert [
        (p.name, p.kind, p.default, as_for_threads(p.annotation)) for p in ours.parameters.values()
    ] == [
        (p.name, p.kind, p.default, as_for_threads(p.annotation))
        for p in theirs.parameters.values()
    ]
    assert as_for_threads(ours.return_annotation) == as_for_threads(theirs.return_annotation)


@pytest.mark.parametrize(("name", "method", "twin"), METHODS, ids=IDS)
def test_what_waits_is_awaited_and_all_is_described(
    name: str, method: Callable[..., Any], twin: Callable[..., Any]
) -> None:
    is_made = name.endswith(".__init__")
    waits = not is_made and name.rsplit(".", 1)[1] not in PLAIN
    assert (inspect.iscoroutinefunction(method), inspect.iscoroutinefunction(twin)) == (
        False,
        waits,
    )
    assert is_made or (method.__doc__ and twin.__doc__)
