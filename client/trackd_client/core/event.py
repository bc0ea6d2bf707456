"""An event: one change of the daemon's state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from trackd_client.errors import Code
from trackd_client.wire.errors import ProtocolError

#: The kind of the first event of a stream, and of the one after a gap.
SNAPSHOT: Final = "snapshot"
#: The kind of the event that says that events were lost for good.
GAP: Final = "gap"


class Event(NamedTuple):
    """One change of the daemon's state. docs/protocol.md lists the kinds ("Events").

    Attributes:
        revision: the number of the change, one more than that of the event before.
        time: seconds of the daemon's CLOCK_BOOTTIME.
        wall: Unix time of the daemon's clock.
        kind: what happened.
        fields: what the kind has. `snapshot` has `revision`, `proxies`, `leases` and `sessions`, as
            `Tracker.snapshot` returns them; `gap` has `after`, the last revision that was
            emitted, and `newest`, the daemon's.
    """

    revision: int
    time: float
    wall: float
    kind: str
    fields: Mapping[str, Any]


def read_event(value: object) -> Event:
    """Decode one event of a message.

    Raises:
        ProtocolError: the value is not an event.
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
