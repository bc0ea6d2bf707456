"""The data of the page: the status, and the proxies with their holders. JSON, bounded.

It is made of what the daemon answers any client, at most once in a moment, and shared by all
viewers: a hundred of them cost the daemon no more than one. When it takes long to make, because
there is much of it, it is made less often.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Generic, Protocol, TypeVar

from trackd_client import metrics
from trackd_client.errors import TrackdError
from trackd_client.wire.clock import boottime

#: Proxies, and sessions, that are listed; more are only counted.
MOST_ROWS: Final = 2_000
#: Events that are listed, newest last.
MOST_EVENTS: Final = 50
#: Seconds for which a view is shared, at least.
MOMENT: Final = 0.5
#: A view is shared for so many times what it took to make, so that viewers leave the processor
#: to the agents.
SHARE: Final = 20

#: How often a second a view that is not shared may be made, and how often at once.
RATE: Final = 5.0
BURST: Final = 20.0
#: Responses a second, and how many at once: threads that respond take time from the one writer.
RESPONSES: Final = 50.0
RESPONSE_BURST: Final = 300.0

#: Unsigned numbers of 64 bits, of which JavaScript's own would lose the last digits.
_WIDE: Final = frozenset({"generation", "largest", "old_generation"})
#: What becomes a rate on the page, by the names of the counters without their prefix.
_COUNTED: Final = ("grants", "claims", "duplicates", "refusals", "releases")
#: The fields of the decision about a lease.
_WHY: Final = ("reason", "retry_after", "recent")
#: The fields of a row about the session that holds the proxy.
_HOLDER: Final = ("name", "command", "uid", "host")


ValueT = TypeVar("ValueT")


class Asked(Protocol):
    """The part of `trackd_client.Tracker` that the views ask: nothing that changes anything."""

    def status(self) -> dict[str, Any]:
        """Return the counts of everything."""

    def explain(self) -> dict[str, Any]:
        """Return why a lease would be granted or refused now."""

    def fleet(self) -> dict[str, Any]:
        """Return who leads the fleet, and its hosts; asked only where there is one."""

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


class Limited(Generic[ValueT]):
    """A view that is made for each request, until there are many; then it is shared.

    So what a request sees is what the daemon knows now, and a flood of requests costs the agents
    little.
    """

    def __init__(
        self,
        make: Callable[[], ValueT],
        rate: float = RATE,
        burst: float = BURST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take what makes the view.

        Args:
            make: asks the daemon.
            rate: how often a second it may be asked in the long run.
            burst: how often at once.
            clock: seconds.
        """
        self._make = make
        self._rate = rate
        self._burst = self._tokens = burst
        self._clock = clock
        self._at = clock()
        self._lock = threading.Lock()  # guards the rest; held while it is made
        self._last: list[ValueT] = []

    def get(self) -> ValueT:
        """Return the view, made now unless there were many requests. Any thread.

        Raises:
            TrackdError: the daemon did not answer now.
        """
        with self._lock:
            now = self._clock()
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
            self._at = now
            if self._tokens >= 1 or not self._last:
                self._tokens -= 1
                self._last.clear()
                self._last.append(self._make())
            return self._last[0]


class Pace:
    """Lets so many responses a second begin, after a burst; the others wait for their turn."""

    def __init__(
        self,
        rate: float = RESPONSES,
        burst: float = RESPONSE_BURST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._lock = threading.Lock()
        self._turn = 0.0  # when the next response would begin if there had been no burst

    def take(self) -> float:
        """Return for how many seconds a response has to wait. Any thread."""
        with self._lock:
            now = self._clock()
            self._turn = max(self._turn, now - self._burst / self._rate) + 1 / self._rate
            return max(0.0, self._turn - now)


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
            **({"fleet": tracker.fleet()} if status.get("leader") else {}),
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
                holders[session["session"]] = {
                    name: session[name] for name in _HOLDER if name in session
                }
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
