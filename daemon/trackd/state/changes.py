"""What a batch has changed: records for the store, and an event with a revision for each change.

The state records each change here when it makes it. At the end of the batch the actor takes all of
it, stores it, and then publishes the events. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from trackd.storage.history import History, pack
from trackd.storage.records import Key, Record


class Batch(NamedTuple):
    """What a batch has changed.

    Attributes:
        records: for the journal.
        touched: what the next checkpoint must take in.
        events: packed, for subscribers.
        kinds: the kind and the reason of each event, for the metrics.
    """

    records: list[Record]
    touched: list[Key]
    events: list[bytes]
    kinds: list[tuple[str, str]]


class Changes:
    """The changes of the batch under way, and the events of those before.

    Attributes:
        revision: that of the last change, across restarts.
        history: the last events.
        records: of this batch.
        touched: keys whose values differ from those in the checkpoint.
    """

    def __init__(
        self,
        history: int,
        history_age: float,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        """Begin without changes.

        Args:
            history: how many events to keep.
            history_age: seconds for which older events are kept.
            clock: seconds of CLOCK_BOOTTIME.
            wall: Unix time, for people.
        """
        self.revision = 0
        self.history = History(history, history_age)
        self.records: list[Record] = []
        self.touched: list[Key] = []
        self._events: list[bytes] = []
        self._kinds: list[tuple[str, str]] = []
        self._clock = clock
        self._wall = wall

    def __bool__(self) -> bool:
        return bool(self.records or self.touched or self._events)

    def record(self, record: Record, key: Key) -> None:
        """Add a record to the journal, and mark the key that it changes."""
        self.records.append(record)
        self.touched.append(key)

    def emit(self, kind: str, **fields: Any) -> None:
        """Emit an event, with the next revision."""
        self.revision += 1
        self._events.append(pack((self.revision, self._clock(), self._wall(), kind, fields)))
        self._kinds.append((kind, fields.get("reason") or fields.get("cause") or ""))

    def mark(self) -> None:
        """Add a record that changes nothing, so that the store is written to."""
        self.records.append(["meta", "probed", self._wall()])

    def take(self) -> Batch:
        """Return what the batch has changed, and begin a new one."""
        if self._events:
            kept = self._events[-self.history.most :] if self.history.most else []
            first = self.revision - len(kept) + 1
            if kept:
                chunks = self.history.extend(first, kept, self._clock())
                self.records.append(["events", first, kept])
                self.touched += [("history", chunk) for chunk in chunks]
            self.record(["meta", "revision", self.revision], ("meta", "revision"))
        batch = Batch(self.records, self.touched, self._events, self._kinds)
        self.records, self.touched, self._events, self._kinds = [], [], [], []
        return batch
