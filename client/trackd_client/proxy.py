"""What gossip says of one reverse tunnel proxy.

A plain value that agents hand to `track_expected`. It checks nothing: the tracker and the wire
do, each with the limits that are its own.
"""

from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Proxy", "Target"]


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that gossip mentions.

    Attributes:
        name: The name that gossip uses for the proxy; one of its principals.
        group: The independent deployment of proxies that it belongs to.
        generation: Counts up with every roll-out of the group; unsigned 64-bit.
        ttl: Seconds until the mention expires. None, 0 or less: the daemon's `proxy_expiry`.
        terminating: True: the proxy is about to go, and no new tunnel to it is wanted. False: it is
            not. None: the mention says nothing of that, and what is known stays.
        address: Where to dial the proxy itself, past the load balancer: 1 to 255 printable ASCII
            characters without space, not beginning with `-`. "": nowhere. None: the mention says
            nothing of that, and what is known stays.
    """

    name: str
    group: str = ""
    generation: int = 0
    ttl: float | None = None
    terminating: bool | None = None
    address: str | None = None


class Target(NamedTuple):
    """The missing proxy that a lease is for, if its agent can dial it.

    The address is what gossip said: text of somebody else, which belongs in no shell command.

    Attributes:
        name: The name that gossip uses for the proxy.
        address: Where to dial it.
    """

    name: str
    address: str
