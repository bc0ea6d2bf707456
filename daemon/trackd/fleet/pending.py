"""The requests of a host's agents that the leader has not answered yet. Pure.

They are kept until they are answered, and sent again to the next leader, in the order in which they
came. What an agent sends twice is one request: it has the same token and the same number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from trackd.fleet.damping import Due
from trackd.fleet.hop import Asker

#: Requests that are kept, and bytes of them all; of one user a quarter, so that all have a share.
MOST: Final = 100_000
MOST_BYTES: Final = 64 << 20
_SHARE: Final = 4
#: Bytes that a name takes that a message of gossip tells, beside those in its frame.
_NAME_BYTES: Final = 500
#: Requests that are with the leader at once, without those that wait there. Others wait in the
#: ROUTER, which takes from its connections in turn: nobody has thousands before those of others.
WINDOW: Final = 256

#: Operations whose replies may take as long as they like.
WAITING: Final = frozenset({"acquire", "watch_session"})

#: Seconds for which a request is kept after its deadline; after it was sent last, when it may wait
#: at the leader; and after it was sent last, when it is answered at once.
KEPT: Final = 5.0
REPEATED: Final = 600.0
ANSWERED: Final = 30.0

#: What a request is known by: the uid, the token or else the connection, and the agent's number.
Key = tuple[int, bytes, int]


@dataclass(slots=True)
class Pending:
    """A request.

    Attributes:
        number: the relay's own.
        key: what it is known by.
        op: its operation, as the agent wrote it.
        route: the connection of the agent that asked last.
        asker: who asks, without what remains of its time.
        deadline: seconds of this host's CLOCK_BOOTTIME, or None.
        frame: what the agent has sent.
        due: what the leader is told of the gossip in it; None: it was not damped.
        only_looks: whether it has no session, and so changes nothing.
        sent: when it was sent to the leader, by CLOCK_BOOTTIME; None: it was not.
    """

    number: int
    key: Key
    op: object
    route: bytes
    asker: Asker
    deadline: float | None
    frame: bytes
    due: Due | None = None
    only_looks: bool = False
    sent: float | None = None

    @property
    def seq(self) -> int:
        """The agent's number."""
        return self.key[2]

    @property
    def size(self) -> int:
        """Bytes that it counts."""
        return len(self.frame) + (0 if self.due is None else _NAME_BYTES * len(self.due.told))


class Requests:
    """All of them, in the order in which they came.

    Attributes:
        in_flight: how many are with the leader and will be answered soon.
    """

    def __init__(self, first: int = 1) -> None:
        """Begin without any.

        Args:
            first: the number of the first. A relay that starts again begins where its last one
                cannot have been: a late reply to that one is for nobody.
        """
        self.in_flight = 0
        self._next = first
        self._by_number: dict[int, Pending] = {}
        self._by_key: dict[Key, Pending] = {}
        self._bytes = 0
        self._used: dict[int, tuple[int, int]] = {}  # number and bytes, by uid

    def __len__(self) -> int:
        return len(self._by_number)

    def __iter__(self) -> Iterator[Pending]:
        return iter(self._by_number.values())

    def has_room(self, uid: int) -> bool:
        """Return whether one more of a user is kept."""
        count, size = self._used.get(uid, (0, 0))
        return (
            len(self) < MOST
            and self._bytes < MOST_BYTES
            and count < MOST // _SHARE
            and size < MOST_BYTES // _SHARE
        )

    def find(self, key: Key) -> Pending | None:
        """Return the request that is known by a key, if there is one."""
        return self._by_key.get(key)

    def add(
        self,
        key: Key,
        op: object,
        route: bytes,
        asker: Asker,
        deadline: float | None,
        frame: bytes,
        due: Due | None = None,
        *,
        only_looks: bool = False,
    ) -> Pending:
        """Keep a request, and return it; for the arguments see Pending."""
        made = Pending(self._next, key, op, route, asker, deadline, frame, due, only_looks)
        self._next += 1
        self._by_number[made.number] = self._by_key[key] = made
        self._count(made, 1)
        return made

    def note_sent(self, request: Pending, now: float) -> None:
        """Note that a request was sent to the leader."""
        if request.sent is None and request.op not in WAITING:
            self.in_flight += 1
        request.sent = now

    def take(self, number: int) -> Pending | None:
        """Return a request that is answered, and forget it."""
        found = self._by_number.pop(number, None)
        if found is not None:
            del self._by_key[found.key]
            self._count(found, -1)
            if found.sent is not None and found.op not in WAITING:
                self.in_flight -= 1
        return found

    def take_back(self) -> None:
        """Note that there is no leader any more that has them."""
        self.in_flight = 0
        for request in self:
            request.sent = None

    def take_late(self, now: float) -> list[Pending]:
        """Return and forget those that nobody waits for: their agents would have repeated them."""
        late = [
            each
            for each in self
            if (each.deadline is not None and each.deadline < now - KEPT)
            or (
                each.sent is not None
                and each.sent < now - (REPEATED if each.op in WAITING else ANSWERED)
            )
        ]
        for each in late:
            self.take(each.number)
        return late

    def _count(self, request: Pending, sign: int) -> None:
        uid = request.key[0]
        count, size = self._used.get(uid, (0, 0))
        self._bytes += sign * request.size
        if count + sign:
            self._used[uid] = (count + sign, size + sign * request.size)
        else:
            del self._used[uid]
