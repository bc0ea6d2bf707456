"""Since when proxies have had no tunnel, as their events say it. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from trackd_client.core.event import Event

#: The events after which a proxy has no tunnel, in words.
BEGINNINGS: Final = {
    "lease_released": "its last one ended",
    "proxy_tracked": "gossip named it first",
}
#: Names of which that is kept, at most: the last ones.
MOST_GAPS: Final = 10_000


def find_gaps(events: Iterable[Event]) -> dict[str, float]:
    """Return since when proxies have had no tunnel, by name, in seconds of the daemon's clock.

    Proxies of which the events do not say it, or that were claimed since then, are left out.

    Args:
        events: oldest first.
    """
    began: dict[str, float] = {}
    for event in events:
        name = event.fields.get("name")
        if event.kind in BEGINNINGS and name is not None:
            began.pop(name, None)  # so that the first one is the one that began first
            began[name] = event.time
            if len(began) > MOST_GAPS:
                del began[next(iter(began))]
        elif event.kind == "proxy_claimed":
            began.pop(event.fields["name"], None)
    return began
