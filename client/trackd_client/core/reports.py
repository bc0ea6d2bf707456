"""Signs of life of tunnels on their way to the daemon (rule 18). No I/O.

A dial reports as often as it likes. At most once in a while all that was reported since is sent as
one batch, once. What could not be sent in time is dropped: an old sign of life proves nothing.
"""

from __future__ import annotations

import math
import threading
from typing import Any, Final, NamedTuple

from trackd_client.wire.requests import MAX_REPORTS

#: Seconds between two batches.
REPORT_SECONDS: Final = 1.0
#: Seconds for which a report proves something.
FRESH_SECONDS: Final = 5.0
#: Bytes of a request for each report in it, at most, the rest of the request included.
_BYTES: Final = 40


class Batch(NamedTuple):
    """What one request says.

    Attributes:
        rows: of each report the lease and the round-trip time, or None.
        deadline: when it proves nothing any more, in seconds of CLOCK_BOOTTIME.
    """

    rows: list[Any]
    deadline: float


class _Report(NamedTuple):
    session: object
    rtt: float | None
    at: float


class Reports:
    """The reports of one tracker that wait to be sent."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # a signal handler may report too
        self._waiting: dict[int, _Report] = {}
        self._next = 0.0

    def add(self, session: object, lease: int, rtt: float | None, now: float) -> None:
        """Add a report; it replaces an earlier one of the same lease that waits.

        Args:
            session: which has the lease.
            lease: its id.
            rtt: the round-trip time of its tunnel in seconds, or None.
            now: seconds of CLOCK_BOOTTIME.
        """
        with self.lock:
            if rtt is None and (earlier := self._waiting.get(lease)) is not None:
                rtt = earlier.rtt
            self._waiting[lease] = _Report(session, rtt, now)

    def due(self) -> float:
        """Return when the next batch is to be sent; infinity when nothing waits."""
        return self._next if self._waiting else math.inf

    def take(self, session: object, now: float, max_frame: int) -> Batch | None:
        """Return the next batch, unless nothing new is to be said.

        Args:
            session: the present one, or None; reports of other sessions are dropped.
            now: seconds of CLOCK_BOOTTIME.
            max_frame: bytes of a request, at most.
        """
        most = max(1, min(MAX_REPORTS, max_frame // _BYTES))
        with self.lock:
            self._next = now + REPORT_SECONDS
            fresh = {
                lease: report
                for lease, report in self._waiting.items()
                if report.session is session and now - report.at < FRESH_SECONDS
            }
            taken = list(fresh.items())[:most]
            self._waiting = dict(list(fresh.items())[most:])
        if not taken:
            return None
        oldest = min(report.at for _, report in taken)
        return Batch([[lease, report.rtt] for lease, report in taken], oldest + FRESH_SECONDS)
