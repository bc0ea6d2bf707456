"""Somebody who iterates over events in a thread, and what all that is told must be like."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, Self

from helpers.both_clients import Background
from helpers.support import PATIENCE, wait_until
from trackd_client import Event
from trackd_client.core.mirror import Mirror


class Watch:
    """Iterates over the events of a tracker in a thread, and keeps them.

    Attributes:
        told: the events.
        mirror: what they make of the last snapshot.
    """

    def __init__(self, tracker: Any, **options: Any) -> None:
        self.told: list[Event] = []
        self.mirror = Mirror()
        self.may_read = threading.Event()
        self.may_read.set()
        self._tracker = tracker
        self._events = tracker.events(**options)
        self._run = Background(self._iterate)

    def _iterate(self) -> None:
        for event in self._events:
            self.mirror = _follow(self.mirror, event)
            self.told.append(event)
            self.may_read.wait(PATIENCE)

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.told]

    @property
    def ended(self) -> bool:
        return self._run.done

    def begun(self) -> Self:
        """Return when it has told something."""
        wait_until(lambda: self.told or self.ended)
        return self

    def until(self, condition: Callable[[], object]) -> None:
        """Wait for a condition; fail at once when the iteration ended by an error."""
        wait_until(lambda: condition() or (self.ended and self._run.result() is None))

    def reaches(self, revision: int) -> None:
        """Wait until everything up to a revision is told."""
        self.until(lambda: any(e.revision >= revision and e.kind != "gap" for e in self.told[-2:]))

    def result(self) -> None:
        """Wait for the end of the iteration, and raise what it raised."""
        self._run.result()

    def close(self) -> None:
        """End it by closing the tracker."""
        self.may_read.set()
        self._tracker.close()
        self.result()


def assert_complete(told: list[Event]) -> None:
    """Check that the events follow one another."""
    revisions = [event.revision for event in told]
    assert revisions == list(range(revisions[0], revisions[0] + len(told)))


def mirrored(told: Iterable[Event]) -> Mirror:
    """Return what events make of the last snapshot among them."""
    mirror = Mirror()
    for event in told:
        mirror = _follow(mirror, event)
    return mirror


def _follow(mirror: Mirror, event: Event) -> Mirror:
    if event.kind == "snapshot":
        return Mirror(event.fields)
    if event.kind != "gap":
        mirror.apply(event)
    return mirror


def stripped(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows without the fields that no event tells."""
    untold = (
        *("expires", "mentioned_by", "granted", "wall", "claim_by", "principals", "gid"),
        *("visible", "version", "labels", "opened", "waiting", "requests", "gossip", "deadline"),
    )
    return [{key: value for key, value in row.items() if key not in untold} for row in rows]


def assert_same(mirror: Mirror, snapshot: dict[str, Any]) -> None:
    """Check that events have made of one snapshot what another one says."""
    mirrored = mirror.snapshot()
    assert mirrored["revision"] == snapshot["revision"]
    for of in ("proxies", "leases", "sessions"):
        assert stripped(mirrored[of]) == stripped(snapshot[of])
        assert [row.keys() for row in mirrored[of]] == [row.keys() for row in snapshot[of]]


def assert_truthful(told: list[Event]) -> None:
    """Check that nothing is missing but what a gap tells of, and that a snapshot follows it."""
    assert told[0].kind == "snapshot"
    for last, event in pairwise(told):
        if last.kind == "gap":
            assert event.kind == "snapshot"
            assert event.revision >= last.revision
        elif event.kind == "gap":
            assert event.fields == {"after": last.revision, "newest": event.revision}
        else:
            assert event.revision == last.revision + 1
