"""What the page is told: how things stand, and the proxies with their holders. JSON, bounded.

It is made of what the daemon answers any client, at most once in a moment, and shared by all
viewers: a hundred of them cost the daemon no more than one. When it takes long to make, because
there is much to tell, it is made less often.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Protocol

from trackd_client import metrics
from trackd_client.errors import TrackdError
from trackd_client.wire.clock import boottime

#: Proxies, and sessions, that are told of; more are only counted.
MOST_ROWS: Final = 2_000
#: Events that are told of, newest last.
MOST_EVENTS: Final = 50
#: Seconds for which a view is shared, at least.
MOMENT: Final = 0.5
#: A view is shared for so many times what it took to make, so that viewers leave the processor
#: to the agents.
SHARE: Final = 20

#: Unsigned numbers of 64 bits, of which JavaScript's own would lose the last digits.
_WIDE: Final = frozenset({"generation", "largest", "old_generation"})
#: What becomes a rate on the page, by the names of the counters without their prefix.
_COUNTED: Final = ("grants", "claims", "duplicates", "refusals", "releases")
#: What is told of the decision about a lease.
_WHY: Final = ("reason", "retry_after", "recent")
#: What a row tells of the session that holds the proxy.
_HOLDER: Final = ("name", "command", "uid")


class Asked(Protocol):
    """The part of `trackd_client.Tracker` that the views ask: nothing that changes anything."""

    def status(self) -> dict[str, Any]:
        """Return the counts of everything."""

    def explain(self) -> dict[str, Any]:
        """Return why a lease would be granted or refused now."""

    def metrics(self) -> dict[str, Any]:
        """Return all that the daemon counts, as `families`."""

    def log(self, after: int = 0) -> dict[str, Any]:
        """Return the `events` with a larger revision, oldest first."""

    def rows(self, of: str) -> Iterator[dict[str, Any]]:
        """Return the rows of a listing, read as they are needed."""


class Shared:
    """A view that everybody sees for a moment, a failure to make it included."""

    def __init__(
        self, make: Callable[[], bytes], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._make = make
        self._clock = clock
        self._lock = threading.Lock()  # guards the rest; held while it is made
        self._value = b""
        self._failure: TrackdError | None = None
        self._until = clock()

    def get(self) -> bytes:
        """Return the view, made now unless it was made a moment ago. Any thread.

        Raises:
            TrackdError: the daemon did not answer, now or a moment ago.
        """
        with self._lock:
            began = self._clock()
            if began >= self._until:
                self._failure = None
                try:
                    self._value = self._make()
                except TrackdError as error:
                    self._failure = error
                ended = self._clock()
                self._until = ended + max(MOMENT, SHARE * (ended - began))
            if self._failure is not None:
                raise self._failure
            return self._value


def state(tracker: Asked) -> bytes:
    """Return how things stand: status, what is decided and why, counters, the last events."""
    status = tracker.status()
    explain = tracker.explain()
    families = tracker.metrics()["families"]
    log = tracker.log(max(0, status["revision"] - MOST_EVENTS))
    return _json(
        {
            "clock": boottime(),
            "wall": time.time(),
            "status": {**_exact(status), "groups": [_exact(each) for each in status["groups"]]},
            "why": {name: explain.get(name) for name in _WHY},
            "counters": {name: metrics.total(families, f"trackd_{name}") for name in _COUNTED},
            "history": log["history"],
            "events": [
                [event.revision, event.wall, event.kind, _exact(event.fields)]
                for event in log["events"][-MOST_EVENTS:]
            ],
        }
    )


def proxies(tracker: Asked) -> bytes:
    """Return the proxies, with what is known of the sessions that hold them."""
    rows = [_exact(row) for row in itertools.islice(tracker.rows("proxies"), MOST_ROWS + 1)]
    held = {row["session"] for row in rows[:MOST_ROWS] if row["session"] is not None}
    holders = {}
    if held:
        for session in itertools.islice(tracker.rows("sessions"), MOST_ROWS):
            if session["session"] in held:
                holders[session["session"]] = {name: session[name] for name in _HOLDER}
    return _json(
        {
            "clock": boottime(),
            "most": MOST_ROWS,
            "more": len(rows) > MOST_ROWS,
            "proxies": rows[:MOST_ROWS],
            "holders": holders,
        }
    )


def _exact(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: str(value) if name in _WIDE and value is not None else value
        for name, value in fields.items()
    }


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=bytes.hex).encode()
