# ruff: noqa: D102 - `edits` is described once, in `Change`
"""Every kind of change of the durable state, as a value.

A change is made, stored, replayed and published from the same value:

- `trackd.state.decide` decides which changes a request makes;
- `trackd.state.apply` applies them, in the living daemon and at a restart alike;
- the changes of a batch, packed, are its row in the journal;
- `trackd.state.events` derives the events of a change.

So a change carries what its events need. `edits` returns the keys of the checkpoint that it edits.
In the journal a kind is known by its code, which never changes; a new field comes last and has a
default. A field that names a host, or its boot, stands there only where it names one. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import msgpack

from trackd.sessions.identity import Process

#: A thing of the checkpoint: its kind, and its key, which is text, bytes, an integer or a list.
Key = tuple[str, Any]
Keys = Iterable[Key]
#: The administrator who asked for something: uid and pid, and the host unless it is the daemon's.
By = tuple[int, int] | tuple[int, int, str] | None

#: The key of the counters and small values of the state.
META: Final[Key] = ("meta", "")

KINDS: Final[dict[int, type[Any]]] = {}
CODES: Final[dict[type[Any], int]] = {}

_Kind = TypeVar("_Kind")


class Change(Protocol):
    """A change, as a tuple of its fields."""

    def edits(self) -> Keys:
        """Return the keys of the checkpoint that the change edits."""

    def __iter__(self) -> Any:
        """Iterate over the fields."""


def _kind(code: int) -> Callable[[type[_Kind]], type[_Kind]]:
    """Register a kind of change under its code."""

    def register(kind: type[_Kind]) -> type[_Kind]:
        assert code not in KINDS
        KINDS[code], CODES[kind] = kind, code
        return kind

    return register


# -- the daemon -----------------------------------------------------------------------


@_kind(1)
class EpochBegan(NamedTuple):
    """The daemon started. `before` is the connection count before that; None in an empty state."""

    epoch: int
    tracker_id: str
    cluster: str
    connections: int
    configured: int
    before: int | None
    server: str
    pid: int

    def edits(self) -> Keys:
        return (META,)


@_kind(2)
class CountSet(NamedTuple):
    """The connection count was set."""

    connections: int
    before: int

    def edits(self) -> Keys:
        return (META,)


@_kind(3)
class Configured(NamedTuple):
    """The configuration has another connection count."""

    connections: int

    def edits(self) -> Keys:
        return (META,)


@_kind(4)
class Probed(NamedTuple):
    """Nothing changed: the store was written to, to see whether it works."""

    def edits(self) -> Keys:
        return ()


# -- sessions -------------------------------------------------------------------------


@_kind(10)
class SessionOpened(NamedTuple):
    """A session began; `start` is None when its process is not visible."""

    token: bytes
    number: int
    uid: int
    gid: int
    pid: int
    start: int | None
    name: str
    version: str
    labels: dict[str, str]
    command: str
    host: str = ""
    boot: str = ""

    @property
    def process(self) -> Process | None:
        """The process, if it is visible."""
        return _process_of(self)

    def edits(self) -> Keys:
        return (("session", self.token), META)


@_kind(11)
class SessionEnded(NamedTuple):
    """A session ended; its leases and parked requests have gone before.

    Attributes:
        replies: numbers of the replies that were kept for it.
    """

    token: bytes
    number: int
    reason: str
    name: str
    pid: int
    start: int | None
    uid: int
    replies: Sequence[int]
    by: By
    host: str = ""
    boot: str = ""

    @property
    def process(self) -> Process | None:
        """The process, if it was visible."""
        return _process_of(self)

    def edits(self) -> Keys:
        return (
            ("session", self.token),
            ("ended", self.token),
            META,
            *(("reply", (self.token, seq)) for seq in self.replies),
        )


@_kind(12)
class EndedDropped(NamedTuple):
    """Sessions that ended long ago are remembered no longer."""

    tokens: Sequence[bytes]

    def edits(self) -> Keys:
        return [("ended", token) for token in self.tokens]


@_kind(13)
class Replied(NamedTuple):
    """A request got its reply, which is kept until the session is done with it.

    Attributes:
        lease: the lease that the reply grants, or None.
        done: the numbers that the session is done with, as on the wire.
        covered: numbers of the kept replies that `done` covers.
    """

    token: bytes
    seq: int
    frame: bytes
    lease: int | None
    done: list[int]
    covered: Sequence[int]

    def edits(self) -> Keys:
        token = self.token
        keys: list[Key] = [("session", token), ("reply", (token, self.seq))]
        if self.covered:
            keys += [("reply", (token, seq)) for seq in self.covered]
        return keys


@_kind(14)
class Acknowledged(NamedTuple):
    """A session is done with requests; the fields are as in `Replied`."""

    token: bytes
    done: list[int]
    covered: Sequence[int]

    def edits(self) -> Keys:
        token = self.token
        return (("session", token), *(("reply", (token, seq)) for seq in self.covered))


@_kind(15)
class Parked(NamedTuple):
    """An acquire waits; its place in the queue is given by `order`, its turn by `tag`."""

    token: bytes
    seq: int
    order: int
    deadline: float | None
    tag: int

    def edits(self) -> Keys:
        return (("session", self.token),)


@_kind(16)
class Unparked(NamedTuple):
    """An acquire waits no longer; `served` when it was granted a lease."""

    token: bytes
    seq: int
    served: bool

    def edits(self) -> Keys:
        return (("session", self.token), META)


@_kind(17)
class Notified(NamedTuple):
    """A session has another notice to fetch."""

    token: bytes
    notice: dict[str, Any]

    def edits(self) -> Keys:
        return (("session", self.token),)


@_kind(18)
class Fetched(NamedTuple):
    """A session was sent all its notices."""

    token: bytes

    def edits(self) -> Keys:
        return (("session", self.token),)


# -- leases ---------------------------------------------------------------------------


@_kind(30)
class Granted(NamedTuple):
    """A session was granted a lease; `number` is the session's."""

    lease: int
    token: bytes
    number: int
    reason: str

    def edits(self) -> Keys:
        return (("lease", self.lease), META)


@_kind(31)
class Claimed(NamedTuple):
    """A lease holds a name.

    Attributes:
        lease: its id.
        number: of its session.
        name: of the proxy.
        principals: what the claim presented: the first few, or all when the lease follows.
        follows: whether it follows gossip to another of them (rule 7).
    """

    lease: int
    number: int
    name: str
    principals: Sequence[str]
    follows: bool = False

    def edits(self) -> Keys:
        return (("lease", self.lease), META)


@_kind(32)
class Released(NamedTuple):
    """A lease is gone; `name` is what it held, or None."""

    lease: int
    number: int
    name: str | None
    cause: str
    by: By

    def edits(self) -> Keys:
        return (("lease", self.lease), META)


@_kind(33)
class ClaimTimedOut(NamedTuple):
    """A session remembers that a lease was taken back because it claimed nothing."""

    token: bytes
    lease: int

    def edits(self) -> Keys:
        return (("session", self.token),)


@_kind(34)
class DialSpent(NamedTuple):
    """The dial budget has so many tokens left, at this time."""

    tokens: float
    at: float

    def edits(self) -> Keys:
        return (META,)


# -- proxies --------------------------------------------------------------------------


@_kind(50)
class Tracked(NamedTuple):
    """Gossip named proxies that are new or have moved, perhaps beside others.

    Attributes:
        first: the number of the first mention; each run of rows with one TTL is a mention.
        by: the number of the session that sent the message.
        default_ttl: seconds, for rows without a TTL.
        rows: as on the wire; no name is there twice.
        changed: the index of each row that changes something; with the group and generation
            before when its proxy has moved.
        leaves: numbers of the mentions that the names leave.
    """

    first: int
    by: int
    default_ttl: float
    rows: Sequence[Any]
    changed: Sequence[int | tuple[int, str, int]]
    leaves: Sequence[int]

    def edits(self) -> Keys:
        ttls = 1 + sum(
            before[3] != after[3] for before, after in zip(self.rows, self.rows[1:], strict=False)
        )
        numbers = [*self.leaves, *range(self.first, self.first + ttls)]
        return (META, *_mention_keys(numbers))


@_kind(51)
class Mentioned(NamedTuple):
    """Gossip named tracked proxies, in other company than before; all have the same TTL."""

    number: int
    by: int
    ttl: float
    names: Sequence[str]
    leaves: Sequence[int]

    def edits(self) -> Keys:
        return _mention_keys([*self.leaves, self.number])


@_kind(52)
class Renewed(NamedTuple):
    """Gossip repeated the names of a mention."""

    number: int
    by: int
    ttl: float

    def edits(self) -> Keys:
        return (("mention", self.number),)


@_kind(58)
class RenewedEach(NamedTuple):
    """Gossip repeated the names of several mentions, each with a TTL of its own."""

    numbers: Sequence[int]
    by: int
    ttls: Sequence[float]

    def edits(self) -> Keys:
        return [("mention", number) for number in self.numbers]


@_kind(53)
class Expired(NamedTuple):
    """Gossip has stopped to mention proxies; each row is a name, its group and generation."""

    rows: Sequence[tuple[str, str, int]]
    leaves: Sequence[int]

    def edits(self) -> Keys:
        return (META, *_mention_keys(self.leaves))


@_kind(54)
class Forgotten(NamedTuple):
    """An administrator had a proxy forgotten; old gossip is ignored until a time.

    Attributes:
        dropped: names of the oldest tombstones, which made room.
    """

    name: str
    group: str
    generation: int
    until: float
    leaves: Sequence[int]
    dropped: Sequence[str]
    by: By

    def edits(self) -> Keys:
        names = (self.name, *self.dropped)
        return (META, *_mention_keys(self.leaves), *(("tombstone", name) for name in names))


@_kind(55)
class TombstonesDropped(NamedTuple):
    """Tombstones do not hold any longer."""

    names: Sequence[str]
    groups: Sequence[str]

    def edits(self) -> Keys:
        return [
            *(("tombstone", name) for name in self.names),
            *(("group_tombstone", group) for group in self.groups),
        ]


@_kind(56)
class GroupForgotten(NamedTuple):
    """An administrator had a group forgotten, or one generation of it.

    Attributes:
        low: gossip of this generation
        high: up to this one is ignored
        until: this time.
        rows: name and generation of each proxy that was dropped.
        leaves: numbers of the mentions that the names leave.
        dropped: the groups whose tombstones, the oldest, made room.
    """

    group: str
    low: int
    high: int
    until: float
    rows: Sequence[tuple[str, int]]
    leaves: Sequence[int]
    dropped: Sequence[str]
    by: By

    def edits(self) -> Keys:
        groups = (self.group, *self.dropped)
        return (
            META,
            *_mention_keys(self.leaves),
            *(("group_tombstone", group) for group in groups),
        )


@_kind(57)
class SourceRemembered(NamedTuple):
    """A session that gossiped has ended, and is remembered; `dropped` made room."""

    number: int
    uid: int
    pid: int
    agent: str
    dropped: Sequence[int]
    host: str = ""

    def edits(self) -> Keys:
        return [("source", number) for number in (self.number, *self.dropped)]


@_kind(60)
class Marked(NamedTuple):
    """Names are marked as terminating from now on, or not, or until another time.

    Attributes:
        by: the number of the session that said so; None: a time has come.
        rows: each name, and until when gossip and a lease mark it, as in `trackd.rules.marks`.
        flipped: the tracked proxies that became marked (True), or not any more (False).
    """

    by: int | None
    rows: Sequence[tuple[str, float | None, float | None]]
    flipped: Sequence[tuple[str, bool]]

    def edits(self) -> Keys:
        marks: list[Key] = [("mark", row[0]) for row in self.rows]
        return [META, *marks] if self.flipped else marks  # each of them is an event


# -- targets --------------------------------------------------------------------------


@_kind(90)
class Addressed(NamedTuple):
    """The addresses of proxies, and what aims have shown of them, are these from now on.

    Attributes:
        by: the number of the session that said so, or None.
        rows: each name, and the fields of `trackd.rules.targets.Address`, or none of them: the
            address is forgotten.
        changed: the tracked proxies whose address is another one now, and it, or None.
    """

    by: int | None
    rows: Sequence[Sequence[Any]]
    changed: Sequence[tuple[str, str | None]]

    def edits(self) -> Keys:
        addresses: list[Key] = [("address", row[0]) for row in self.rows]
        return [META, *addresses] if self.changed else addresses  # each of them is an event


@_kind(91)
class Aimed(NamedTuple):
    """A lease in flight is aimed at a proxy, at this address; or (None) not any longer."""

    lease: int
    name: str | None
    address: str | None

    def edits(self) -> Keys:
        return (("lease", self.lease),)


@_kind(92)
class TargetsTrusted(NamedTuple):
    """How far aims are trusted from now on: the fields of `trackd.rules.targets.Trust`."""

    failures: int
    untargeted: int
    after: int

    def edits(self) -> Keys:
        return (META,)


# -- outcomes of dials ----------------------------------------------------------------


@_kind(70)
class DialFailed(NamedTuple):
    """The dial of a lease failed; `retry_after` is what its other end asked for, or None."""

    lease: int
    number: int
    reason: str
    retry_after: float | None

    def edits(self) -> Keys:
        return (META,)


@_kind(71)
class Paused(NamedTuple):
    """Dials pause, for a failure that counted.

    Attributes:
        token: of the session that pauses; None: the whole host.
        number: of the session that reported the failure.
        failures: those in a row that counted.
        until: when the pause ends.
        reason: why the dial failed.
        retry_after: the seconds that its other end asked for, or None.
        uid: the user of the session.
        pid: its process.
        agent: what it calls itself, or its command.
        host: the host of the session; "" for the daemon's own.
    """

    token: bytes | None
    number: int
    failures: int
    until: float
    reason: str
    retry_after: float | None
    uid: int
    pid: int
    agent: str
    host: str = ""

    def edits(self) -> Keys:
        return (META,) if self.token is None else (META, ("pause", self.token))


@_kind(72)
class Resumed(NamedTuple):
    """A pause is over, and failures count from 1 again.

    Attributes:
        token: of the session that paused; None: the whole host.
        number: of the session whose dial ended it; None: the time, or an administrator.
        why: `held`, `stayed_up`, `asked`, or `session_ended`.
        by: the administrator, or None.
    """

    token: bytes | None
    number: int | None
    why: str
    by: By

    def edits(self) -> Keys:
        return (META,) if self.token is None else (META, ("pause", self.token))


# -- signs of life --------------------------------------------------------------------


@_kind(100)
class ReportsBegan(NamedTuple):
    """A lease has reported for the first time; it is judged by rule 18 from now on."""

    lease: int

    def edits(self) -> Keys:
        return (("lease", self.lease),)


@_kind(101)
class LeaseStale(NamedTuple):
    """A lease that has reported was silent for too long; `name` is what it holds, or None."""

    lease: int
    number: int
    name: str | None

    def edits(self) -> Keys:
        return (("lease", self.lease), META)


# -- hand-overs -----------------------------------------------------------------------


@_kind(80)
class Offered(NamedTuple):
    """A session offers a lease of its own, which holds a name, to the next one that claims it."""

    lease: int
    number: int
    name: str

    def edits(self) -> Keys:
        return (("lease", self.lease), META)


@_kind(35)
class Renamed(NamedTuple):
    """A lease holds the name that gossip has for its proxy, instead of an untracked one."""

    lease: int
    number: int
    name: str
    before: str

    def edits(self) -> Keys:
        return (("lease", self.lease), META)


def _process_of(change: SessionOpened | SessionEnded) -> Process | None:
    if change.start is None:
        return None
    return Process(change.pid, change.start, change.host, change.boot)


def _mention_keys(numbers: Iterable[int]) -> list[Key]:
    return [(kind, number) for number in numbers for kind in ("mention", "names")]


# -- in the journal -------------------------------------------------------------------

#: Where the host stands in the kinds that have one. What follows it is "" where the host is.
_HOSTLESS: Final = {
    kind: kind._fields.index("host") for kind in KINDS.values() if "host" in kind._fields
}


class Moment(NamedTuple):
    """The changes of one moment.

    Attributes:
        at: seconds of CLOCK_BOOTTIME.
        wall: Unix time, for people.
        changes: in order.
    """

    at: float
    wall: float
    changes: list[Change]


def pack(batch: Sequence[Moment]) -> bytes:
    """Return a batch as it stands in the journal."""
    packed: bytes = msgpack.packb(
        [
            (at, wall, [(CODES[type(change)], *_stored_of(change)) for change in changes])
            for at, wall, changes in batch
        ]
    )
    return packed


def _stored_of(change: Change) -> Iterable[Any]:
    """Return the fields of a change that are stored: none that would name the daemon's own host."""
    most = _HOSTLESS.get(type(change))
    return change if most is None or change[most] else change[:most]  # type: ignore[index] # a tuple


def hostless(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a row, the last field of which is a host, as it is stored: see `_stored_of`."""
    return row if row[-1] else row[:-1]


def unpack(packed: bytes) -> list[Moment]:
    """Return a batch that `pack` has packed; ValueError or TypeError for anything else."""
    batch = []
    for at, wall, changes in msgpack.unpackb(packed, strict_map_key=False):
        known = []
        for code, *values in changes:
            if code not in KINDS:
                raise ValueError(f"there is no change {code!r}")
            known.append(KINDS[code](*values))
        batch.append(Moment(at, wall, known))
    return batch
