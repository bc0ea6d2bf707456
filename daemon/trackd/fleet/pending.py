"""The requests of a host's agents that the leader has not answered yet. Pure.

They are kept until they are answered, and sent again to the next leader, in the order in which they
came. What an agent sends twice is one request: it has the same token and the same number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from trackd.fleet.hop import Asker

#: Requests that are kept, and bytes of them all.
MOST: Final = 100_000
MOST_BYTES: Final = 64 << 20

#: What a request is known by: the token, or else the connection, and the agent's number.
Key = tuple[bytes, int]


@dataclass(slots=True)
class Pending:
    """A request.

    Attributes:
        number: the relay's own.
        key: what it is known by.
        route: the connection of the agent that asked last.
        seq: the agent's number.
        asker: who asks, without what remains of its time.
        deadline: seconds of this host's CLOCK_BOOTTIME, or None.
        frame: what the agent has sent.
        rows: the gossip in it that was damped, or nothing.
        of_status: whether it asks for the status, which differs by host in parts.
        only_looks: whether it has no session, and so changes nothing.
        sent: when it was sent to a leader last, by CLOCK_BOOTTIME; None: not to this one.
    """

    number: int
    key: Key
    route: bytes
    seq: int
    asker: Asker
    deadline: float | None
    frame: bytes
    rows: Sequence[Any] = ()
    of_status: bool = False
    only_looks: bool = False
    sent: float | None = None


class Requests:
    """All of them, by number."""

    def __init__(self, first: int = 1) -> None:
        """Begin without any.

        Args:
            first: the number of the first. A relay that starts again begins where its last one
                cannot have been: a late reply to that one is for nobody.
        """
        self.bytes = 0
        self._next = first
        self._by_number: dict[int, Pending] = {}
        self._by_key: dict[Key, Pending] = {}

    def __len__(self) -> int:
        return len(self._by_number)

    def __iter__(self) -> Iterator[Pending]:
        return iter(self._by_number.values())

    @property
    def is_full(self) -> bool:
        """Whether no more are kept."""
        return len(self) >= MOST or self.bytes >= MOST_BYTES

    def find(self, key: Key) -> Pending | None:
        """Return the request that is known by a key, if there is one."""
        return self._by_key.get(key)

    def add(
        self,
        key: Key,
        route: bytes,
        seq: int,
        asker: Asker,
        deadline: float | None,
        frame: bytes,
        rows: Sequence[Any] = (),
    ) -> Pending:
        """Keep a request, and return it."""
        made = Pending(self._next, key, route, seq, asker, deadline, frame, rows)
        self._next += 1
        self._by_number[made.number] = self._by_key[key] = made
        self.bytes += len(frame)
        return made

    def take(self, number: int) -> Pending | None:
        """Return a request that is answered, and forget it."""
        found = self._by_number.pop(number, None)
        if found is not None:
            self._by_key.pop(found.key, None)
            self.bytes -= len(found.frame)
        return found

    def drop_late(self, before: float) -> None:
        """Forget the requests whose deadline was before a time: nobody waits for an answer."""
        late = [
            each.number for each in self if each.deadline is not None and each.deadline < before
        ]
        for number in late:
            self.take(number)
