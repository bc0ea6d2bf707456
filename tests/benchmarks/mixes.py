"""Which requests are measured, and what they find at the peer."""

from __future__ import annotations

from enum import StrEnum

#: Proxies that are tracked while requests are measured.
TRACKED = 1000
#: A proxy that a lease holds all the time, and that nobody else claims.
HELD = "proxy-00000"


class Mix(StrEnum):
    """What an agent asks for, over and over."""

    IS_CLAIMED = "is_claimed"
    REFUSED = "refused try_acquire"
    CYCLE = "acquire-claim-release"
    GOSSIP_100 = "gossip of 100"
    GOSSIP_1000 = "gossip of 1,000"
    GOSSIP_10000 = "gossip of 10,000"

    @property
    def requests(self) -> int:
        """Requests in one turn of it."""
        return 3 if self is Mix.CYCLE else 1

    @property
    def gossip(self) -> int:
        """Proxies in one message of gossip, or 0 when it is something else."""
        word = self.value.removeprefix("gossip of ")
        return 0 if word == self.value else int(word.replace(",", ""))


def names(count: int) -> list[str]:
    """Return the names of so many proxies."""
    return [f"proxy-{number:05}" for number in range(count)]


def own_name(agent: int, slot: int = 0) -> str:
    """Return the proxy that one agent claims, and nobody else."""
    return f"proxy-{1 + agent * 64 + slot:05}"
