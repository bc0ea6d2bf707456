"""An event: one change of the daemon's state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from trackd_client.errors import Code
from trackd_client.wire.errors import ProtocolError

#: The path of the event socket is that of the daemon's socket and this.
SUFFIX: Final = ".events"

#: The first event of a stream, and the one after a gap.
SNAPSHOT: Final = "snapshot"

#: Events were lost for good.
GAP: Final = "gap"


class Event(NamedTuple):
    """One change of the daemon's state; docs/protocol.md, "Events", lists the kinds.

    Attributes:
        revision: the number of the change: each event has that of the one before, plus one.
        time: seconds of the daemon's CLOCK_BOOTTIME.
        wall: Unix time of the daemon's clock.
        kind: what happened.
        fields: more of it. `snapshot` has `revision`, `proxies`, `leases` and `sessions`, as
            `Tracker.snapshot` returns them; `gap` has `after`, the last revision that was
            told, and `newest`, the daemon's.
    """

    revision: int
    time: float
    wall: float
    kind: str
    fields: Mapping[str, Any]


def read_event(value: object) -> Event:
    """Return the event that stands in a message.

    Raises:
        ProtocolError: it is none.
    """
    if type(value) is list and len(value) >= 5:
        revision, moment, wall, kind, fields = value[:5]
        if (
            type(revision) is int
            and isinstance(moment, int | float)
            and isinstance(wall, int | float)
            and type(kind) is str
            and type(fields) is dict
        ):
            return Event(revision, moment, wall, kind, fields)
    raise ProtocolError(Code.MALFORMED, "an event is an array of revision, times, kind and fields")
