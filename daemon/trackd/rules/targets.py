"""Which proxy a dial is aimed at (rule 16): the addresses that gossip says, and what came of them.

A grant may carry the name and address of a missing proxy. The index keeps the names that a grant
could carry in order, so that nothing is walked. It never reads a clock. Which users may be given
whose addresses is a setting: `targets`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from heapq import heapify, heappop, heappush
from typing import Any, Final, Literal, NamedTuple

from trackd.rules.desired import Cohort
from trackd.rules.user import User

#: Whose addresses a grant may carry: nobody's, those that its own user has said, or all.
Sharing = Literal["off", "same_uid", "any"]

#: Seconds for which nobody is aimed at a name after a failed aim; doubled by each further one.
FIRST_HOLD: Final = 30.0
LONGEST_HOLD: Final = 600.0
#: Grants that carry no target after an aim that failed; doubled by each further one in a row.
FIRST_UNTARGETED: Final = 3
MOST_UNTARGETED: Final = 48


class Address(NamedTuple):
    """What is known of the address of a tracked proxy.

    Attributes:
        text: the address.
        uid: the user whose gossip said it.
        since: when it was said first, or the proxy was released last, if that is later: seconds.
        failures: aims in a row that failed.
        held: until when nobody is aimed at it, or None.
        host: the host of that user; "" for the daemon's own.
    """

    text: str
    uid: int
    since: float
    failures: int = 0
    held: float | None = None
    host: str = ""

    @property
    def user(self) -> User:
        """The user whose gossip said it."""
        return self.host, self.uid


class Aim(NamedTuple):
    """What a lease in flight is aimed at."""

    name: str
    address: str


class Trust(NamedTuple):
    """Whether aims succeed on this host.

    Attributes:
        failures: aims in a row that failed; 1 less once an aim has succeeded.
        untargeted: how many of the next grants carry no target.
        after: the lease granted last before the last failure; of earlier ones no failure counts.
    """

    failures: int
    untargeted: int
    after: int

    def failed(self, lease: int, last_lease: int) -> Trust:
        """Return what follows when the aim of a lease fails."""
        if lease <= self.after:
            return self
        if self.failures < 0:  # another one has just succeeded
            return Trust(0, 0, last_lease)
        pause = min(MOST_UNTARGETED, FIRST_UNTARGETED << min(self.failures, 16))
        return Trust(self.failures + 1, pause, last_lease)

    def succeeded(self) -> Trust:
        """Return what follows when a lease claims the name that it is aimed at."""
        return Trust(-1, 0, self.after)

    def left_out(self) -> Trust:
        """Return what follows when a grant carries no target for the failures before."""
        return self._replace(untargeted=self.untargeted - 1)


#: Before the first aim: one failure ends it.
UNPROVEN: Final = Trust(0, 0, 0)


class _Queue:
    """The names of one cohort that a grant of one user could carry, missing longest first."""

    __slots__ = ("cohort", "heap", "length", "owner")

    def __init__(self, cohort: Cohort, owner: User | None) -> None:
        self.cohort = cohort
        self.owner = owner
        self.heap: list[tuple[float, str]] = []  # entries of names that have left stay for a while
        self.length = 0


class Targets:
    """The addresses by name, and the aims by lease. A change costs O(log a) with a addresses.

    Attributes:
        sharing: whose addresses a grant may carry.
        by_name: the addresses.
        aims: what each lease in flight is aimed at, for those that are.
        aimed: the lease that is aimed at a name.
        trust: whether aims succeed.
        ends: a heap of ends of holds and names. Entries may be out of date.
    """

    __slots__ = ("_entries", "_queues", "_turns", "aimed", "aims", "by_name", "ends", "sharing",
                 "trust")  # fmt: skip

    def __init__(self) -> None:
        self.sharing: Sharing = "any"
        self.by_name: dict[str, Address] = {}
        self.aims: dict[int, Aim] = {}
        self.aimed: dict[str, int] = {}
        self.trust = UNPROVEN
        self.ends: list[tuple[float, str]] = []
        self._entries: dict[str, tuple[_Queue, tuple[float, str]]] = {}
        self._queues: dict[Cohort, dict[User | None, _Queue]] = {}
        # For each user the queues of desired cohorts that are not empty, in their turn.
        self._turns: dict[User | None, OrderedDict[_Queue, None]] = {}

    # -- what is durable ----------------------------------------------------------------

    def put(self, name: str, address: Address | None) -> None:
        """Keep the address of a name in place of the one before; None forgets it."""
        if address is None:
            self.by_name.pop(name, None)
        else:
            self.by_name[name] = address
            if address.held is not None:
                heappush(self.ends, (address.held, name))
        if len(self.ends) > 2 * len(self.by_name) + 64:
            self.ends = [
                (each.held, name) for name, each in self.by_name.items() if each.held is not None
            ]
            heapify(self.ends)

    def aim(self, lease: int, aim: Aim) -> None:
        """Aim a lease at a name; its group is then behind the other groups."""
        self.aims[lease] = aim
        self.aimed[aim.name] = lease
        entry = self._entries.get(aim.name)
        if entry is not None and entry[0].cohort.desired:
            self._turns[entry[0].owner].move_to_end(entry[0])

    def end_aim(self, lease: int) -> None:
        """Take its aim from a lease that has one."""
        del self.aimed[self.aims.pop(lease).name]

    # -- which name is next -------------------------------------------------------------

    def next_aim(self, user: User) -> Aim | None:
        """Return what a grant to a user carries now, or None.

        While aims fail, only one at a time is tried.
        """
        trust = self.trust
        if trust.untargeted or (trust.failures > 0 and self.aims):
            return None
        turns = self._turns.get(self._owner(user))
        if not turns:
            return None
        queue = next(iter(turns))
        while True:
            name = queue.heap[0][1]
            if self._entries.get(name) == (queue, queue.heap[0]):
                return Aim(name, self.by_name[name].text)
            heappop(queue.heap)

    def place(self, name: str, cohort: Cohort | None) -> None:
        """Take over that something has changed that decides whether a grant could carry a name.

        Args:
            name: of a proxy.
            cohort: where it is tracked; None: it is not, or a lease holds it.
        """
        address, entry = self.by_name.get(name), self._entries.get(name)
        if (
            address is None
            or cohort is None
            or address.held is not None
            or name in self.aimed
            or self.sharing == "off"
        ):
            if entry is not None:
                self._remove(name)
            return
        owner = self._owner(address.user)
        if entry is not None:
            queue, (since, _) = entry
            if (queue.cohort, queue.owner, since) == (cohort, owner, address.since):
                return
            self._remove(name)
        queues = self._queues.setdefault(cohort, {})
        if owner not in queues:
            queue = queues[owner] = _Queue(cohort, owner)
            if cohort.desired:
                self._turns.setdefault(owner, OrderedDict())[queue] = None
        queue = queues[owner]
        pair = (address.since, name)
        self._entries[name] = queue, pair
        heappush(queue.heap, pair)
        queue.length += 1

    def change_desired(self, cohort: Cohort) -> None:
        """Take over that a cohort is desired from now on, or not any longer."""
        for owner, queue in self._queues.get(cohort, {}).items():
            if cohort.desired:
                self._turns.setdefault(owner, OrderedDict())[queue] = None
            else:
                self._end_turn(queue)

    def _owner(self, user: User) -> User | None:
        return user if self.sharing == "same_uid" else None

    def _remove(self, name: str) -> None:
        queue, _ = self._entries.pop(name)
        queue.length -= 1
        if not queue.length:
            queues = self._queues[queue.cohort]
            del queues[queue.owner]
            if not queues:
                del self._queues[queue.cohort]
            self._end_turn(queue)
        elif len(queue.heap) > 2 * queue.length + 8:
            kept = {pair for pair in queue.heap if self._entries.get(pair[1]) == (queue, pair)}
            queue.heap = list(kept)
            heapify(queue.heap)

    def _end_turn(self, queue: _Queue) -> None:
        turns = self._turns.get(queue.owner)
        if turns is not None and queue in turns:
            del turns[queue]
            if not turns:
                del self._turns[queue.owner]

    # -- what follows from gossip, dials and time; nothing here changes anything ----------

    def after(
        self,
        rows: Iterable[Any],
        moved: Collection[str],
        said: Mapping[str, str],
        user: User,
        now: float,
    ) -> dict[str, Address | None]:
        """Return the addresses that a message of gossip changes.

        Args:
            rows: the message: the name of each row comes first.
            moved: the names that the message tracks, or puts into another group or generation.
            said: what it says of the addresses, by name; "" withdraws one.
            user: who sent it.
            now: seconds.
        """
        known, (host, uid) = self.by_name, user
        names = {row[0] for row in rows} if said else ()
        found: dict[str, Address | None] = {name: None for name in moved if name in known}
        for name, text in said.items():
            old = known.get(name)
            if name not in names or (old is None and not text):
                continue
            if not text:
                found[name] = None
            elif old is None or name in moved:
                found[name] = Address(text, uid, now, host=host)
            elif old.text != text:
                found[name] = Address(text, uid, old.since, host=host)
        return found

    def known(self, names: Iterable[str]) -> list[str]:
        """Return those of some names that have an address."""
        return [name for name in names if name in self.by_name] if self.by_name else []

    def after_failure(self, lease: int, now: float) -> dict[str, Address | None]:
        """Return the address that nobody is aimed at for a while, since an aim has failed."""
        name, text = self.aims[lease]
        old = self.by_name.get(name)
        if old is None or old.text != text:
            return {}
        hold = min(LONGEST_HOLD, FIRST_HOLD * 2.0 ** min(old.failures, 32))
        return {name: old._replace(failures=old.failures + 1, held=now + hold)}

    def after_claim(self, name: str) -> dict[str, Address | None]:
        """Return the address whose failures a claim of its name has ended."""
        old = self.by_name.get(name)
        return {name: old._replace(failures=0, held=None)} if old and old.failures else {}

    def after_release(self, name: str, now: float) -> dict[str, Address | None]:
        """Return the address of a name that is missing from now on."""
        old = self.by_name.get(name)
        return {} if old is None else {name: old._replace(since=now)}

    def due(self, now: float) -> dict[str, Address | None]:
        """Return the addresses whose hold has ended strictly before now, without it."""
        found: dict[str, Address | None] = {}
        while (end := self.next_end()) is not None and end < now:
            name = heappop(self.ends)[1]
            found[name] = self.by_name[name]._replace(held=None)
        for name in found:
            held = self.by_name[name].held
            if held is not None:
                heappush(self.ends, (held, name))
        return found

    def next_end(self) -> float | None:
        """Return the earliest end of a hold, or None."""
        while self.ends:
            end, name = self.ends[0]
            address = self.by_name.get(name)
            if address is not None and address.held == end:
                return end
            heappop(self.ends)
        return None


__all__ = ["UNPROVEN", "Address", "Aim", "Sharing", "Targets", "Trust"]
