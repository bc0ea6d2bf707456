"""What `trackctl top` knows, fetched by three threads.

One follows the events and keeps a mirror of the daemon's state by them; the other asks now and
then for what no event says; the third sees when no daemon listens, or it does not answer.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from trackd_client import Tracker
from trackd_client.cli.output.event_lines import People
from trackd_client.cli.output.listing import seconds_until
from trackd_client.core.event import GAP, SNAPSHOT, Event
from trackd_client.core.mirror import Mirror, Row
from trackd_client.core.sockets import absent_error, diagnose
from trackd_client.errors import TrackdError, TrackerClosed
from trackd_client.metrics import total

#: Seconds between two looks at whether anybody listens and answers.
_PROBE_SECONDS: Final = 0.5
#: Seconds within which a daemon that is well answers.
_PROMPT_SECONDS: Final = 1.0
#: Last events that are kept.
EVENTS: Final = 5
_RATES: Final = {
    "grants": "trackd_grants",
    "claims": "trackd_claims",
    "duplicates": "trackd_duplicates",
    "releases": "trackd_releases",
    "gossip": "trackd_gossip_messages",
}


class Feed:
    """What the daemon says, fetched by three threads."""

    def __init__(self, tracker: Tracker, interval: float) -> None:
        """Prepare; entering the block begins.

        Args:
            tracker: is closed at the end.
            interval: seconds between two questions.
        """
        self.lock = threading.Lock()  # guards all that follows
        self.mirror = Mirror()
        self.people = People()
        self.events: deque[Event] = deque(maxlen=EVENTS)
        self.status: dict[str, Any] = {}
        self.sessions: dict[int, Row] = {}
        self.rates: dict[str, float] = {}
        self._refusal = ""  # of a question
        self._silence = ""  # of the daemon, for the time that it lasts
        self.failure: Exception | None = None
        self.granted = float("-inf")  # Unix time of the last lease
        self._tracker = tracker
        self._prober = Tracker(tracker.endpoint, timeout=_PROMPT_SECONDS)
        self._interval = interval
        self._ending = threading.Event()
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name=work.__name__)
            for work in (self._follow, self._ask, self._probe)
        ]

    @property
    def trouble(self) -> str:
        """Why nothing new comes, or nothing."""
        return self._silence or self._refusal

    def seconds_until(self, moment: float | None) -> float | None:
        """Return how many seconds it is to a moment of the daemon's clock, or None without one."""
        return seconds_until(self._tracker, moment)

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._tracker.close()
        self._prober.close()
        for thread in self._threads:
            thread.join()

    def _guarded(self, work: Callable[[], None]) -> None:
        """Do one thread's work; what ends it early ends the view."""
        try:
            work()
        except TrackerClosed:
            pass
        except Exception as error:  # noqa: BLE001 - raised by the main thread, after the terminal
            self.failure = error

    def _follow(self) -> None:
        newest = self._tracker.status()["revision"]
        before = self._tracker.log(after=max(0, newest - EVENTS))["events"]
        with self.lock:
            self.events.extend(before)
        for event in self._tracker.events():
            with self.lock:
                self.people.note(event)
                if event.kind == "lease_granted":
                    self.granted = event.wall
                if event.kind == SNAPSHOT:
                    self.mirror = Mirror(event.fields)
                elif event.kind != GAP:
                    self.mirror.apply(event)
                if event.kind == SNAPSHOT:
                    continue
                if event.kind == GAP or not self.events or event[:2] > self.events[-1][:2]:
                    self.events.append(event)

    def _probe(self) -> None:
        """See soon that no daemon listens or answers: a question would wait for its timeout."""
        endpoint = self._prober.endpoint
        while not self._ending.wait(_PROBE_SECONDS):
            silence = ""
            if diagnose(endpoint) is not None:
                silence = str(absent_error(endpoint))
            else:
                try:
                    self._prober.ping()
                except TrackerClosed:
                    return
                except TrackdError as error:
                    silence = str(error)
            with self.lock:
                self._silence = silence

    def _ask(self) -> None:
        counted: dict[str, float] = {}
        before = time.monotonic()
        while True:
            try:
                status = self._tracker.status()
                families = self._tracker.metrics()["families"]
                sessions: dict[int, Row] = {
                    row.session: row for row in self._tracker.rows("sessions")
                }
            except TrackerClosed:
                raise
            except TrackdError as error:
                with self.lock:
                    self._refusal = str(error)
            else:
                now = time.monotonic()
                counts = {name: total(families, family) for name, family in _RATES.items()}
                counts["requests"] = status["requests"]
                with self.lock:
                    self._refusal = ""
                    self.status, self.sessions = status, sessions
                    if counted:
                        self.rates = {
                            # A daemon that was started again counts from 0.
                            name: max(0.0, count - counted[name]) / (now - before)
                            for name, count in counts.items()
                        }
                counted, before = counts, now
            if self._ending.wait(self._interval):
                return
