"""What gossip says of one reverse tunnel proxy.

A plain value that agents hand to `track_expected`. It checks nothing: the tracker and the wire
do, each with the limits that are its own.
"""

from dataclasses import dataclass

__all__ = ["Proxy"]


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that gossip mentions.

    Attributes:
        name: The name that gossip uses for the proxy; one of its principals.
        group: The independent deployment of proxies that it belongs to.
        generation: Counts up with every roll-out of the group; unsigned 64-bit.
        ttl: Seconds until the mention expires. None, 0 or less: the daemon's `proxy_expiry`.
    """

    name: str
    group: str = ""
    generation: int = 0
    ttl: float | None = None
