"""Reads a state file of version 1, as trackd 0.1.0 wrote it. This module never changes.

Its checkpoint held values from various moments after its base, so that its journal had to be
replayed over newer values: every record says what a thing became. `read` returns the state as the
rows of a checkpoint of version 2. Pure but for the reading.

=========== ==================================================== =======================
record      fields                                               changes the key
=========== ==================================================== =======================
``meta``    name, value                                          (meta, name)
``open``    token, session row                                   (session, token)
``end``     token, reason, when, uid                             (session, token), (ended, token)
``reply``   token, number, frame, lease or None, done            (session, token)
``done``    token, done                                          (session, token)
``wait``    token, number, order, deadline, tag                  (session, token)
``unwait``  token, number                                        (session, token)
``notice``  token, notice                                        (session, token)
``fetched`` token                                                (session, token)
``expire``  token, lease                                         (session, token), (lease, id)
``lease``   id, lease row                                        (lease, id)
``free``    id                                                   (lease, id)
``gossip``  when, default TTL, proxies as on the wire, session   (proxy, name) for each
``drop``    names of proxies that expired                        (proxy, name) for each
``mention`` expiry, names, session, TTL                          (proxy, name) for each
``forget``  name, group, generation, until                       (proxy, name), (forgotten, name)
``source``  session, uid, pid, agent of a session that ended (source, session)
``events``  revision of the first, packed events                 (history, chunk) for each
=========== ==================================================== =======================

Another record, ``forget_group``, has a group, the lowest and the highest of its generations that
are forgotten, and until when. It changes (forgotten_group, group), and (proxy, name) for each.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, NamedTuple

import msgpack

from trackd_client.wire.done import Done

#: Revisions of one chunk of the history.
_CHUNK: Final = 128

Record = list[Any]


class Kept(NamedTuple):
    """What a file holds.

    Attributes:
        rows: the kind, key and value of each row.
        last_row: the number of the last row of its journal.
    """

    rows: list[tuple[str, Any, Any]]
    last_row: int


NOTHING: Final = Kept([], 0)


def read(db: sqlite3.Connection, boot: bytes) -> Kept:
    """Return what a file of version 1 holds; nothing when it is of another boot.

    Args:
        db: the file.
        boot: the boot id of the running kernel, packed.

    Raises:
        sqlite3.Error: the file cannot be read.
        ValueError, TypeError, LookupError: its content makes no sense.
    """
    found = {
        (kind, key): value for kind, key, value in db.execute("SELECT kind, key, value FROM state")
    }
    if found.pop(("boot", msgpack.packb("boot_id")), None) != boot:
        return NOTHING
    newest = ("boot", msgpack.packb("newest_deleted"))
    last_row = int(_unseal(found[newest], b"boot" + newest[1])) if newest in found else 0
    found.pop(newest, None)
    image = Image()
    image.take(
        (kind, _unpack(key), _unseal(value, kind.encode() + key))
        for (kind, key), value in found.items()
    )
    for number, blob in db.execute("SELECT id, records FROM journal ORDER BY id"):
        for record in _unseal(blob):
            image.replay(record)
        last_row = number
    return Kept(image.rows(), last_row)


def _unpack(blob: bytes) -> Any:
    return msgpack.unpackb(blob, strict_map_key=False)


def _unseal(blob: bytes, place: bytes = b"") -> Any:
    packed = blob[4:]
    if zlib.crc32(packed, zlib.crc32(place)).to_bytes(4, "big") != blob[:4]:
        raise ValueError("a checksum is wrong")
    return _unpack(packed)


@dataclass(slots=True)
class SessionRow:
    """A session as it is stored; the fields are those of `trackd.sessions.sessions.Session`."""

    id: int
    uid: int
    gid: int
    pid: int
    start: int | None
    name: str
    version: str
    labels: dict[str, str]
    opened: float
    wall: float
    done: list[int] = field(default_factory=list)
    replies: dict[int, list[Any]] = field(default_factory=dict)  # number: [frame, lease]
    waits: dict[int, list[Any]] = field(default_factory=dict)  # number: [order, deadline, tag]
    expired: list[int] = field(default_factory=list)
    command: str = ""
    notices: list[dict[str, Any]] | None = None  # not fetched; None in a file that has none


@dataclass(slots=True)
class LeaseRow:
    """A lease as it is stored."""

    token: bytes
    name: str | None
    granted: float
    wall: float
    principals: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Image:
    """Everything that the store holds."""

    meta: dict[str, Any] = field(default_factory=dict)
    sessions: dict[bytes, SessionRow] = field(default_factory=dict)
    ended: dict[bytes, list[Any]] = field(default_factory=dict)  # token: [reason, when, uid]
    leases: dict[int, LeaseRow] = field(default_factory=dict)
    # name: [group, generation, expiry, number of the session that mentioned it last, TTL]
    proxies: dict[str, list[Any]] = field(default_factory=dict)
    forgotten: dict[str, list[Any]] = field(
        default_factory=dict
    )  # name: [group, generation, until]
    # group: [lowest generation, highest generation, until]
    forgotten_groups: dict[str, list[Any]] = field(default_factory=dict)
    sources: dict[int, list[Any]] = field(default_factory=dict)  # session: [uid, pid, agent]
    events: dict[int, bytes] = field(default_factory=dict)  # by revision, packed
    # key of a chunk: a list of packed events for each share of the history
    older_events: dict[int, list[list[bytes]]] = field(default_factory=dict)

    def take(self, rows: Iterable[tuple[str, Any, Any]]) -> None:
        """Read the checkpoint."""
        for kind, key, value in rows:
            match kind:
                case "meta":
                    self.meta[key] = value
                case "session":
                    self.sessions[key] = SessionRow(*value)
                case "ended":
                    self.ended[key] = value
                case "lease":
                    self.leases[key] = LeaseRow(*value)
                case "proxy":
                    self.proxies[key] = value
                case "forgotten":
                    self.forgotten[key] = value
                case "forgotten_group":
                    self.forgotten_groups[key] = value
                case "source":
                    self.sources[key] = value
                case "history":
                    first, events, *older = value
                    self._take_events(first, events)
                    if older:
                        self.older_events[key] = older
                case _:
                    pass  # the store's own, or of a newer version

    def replay(self, record: Record) -> None:
        """Apply one journal record."""
        kind, *values = record
        match kind:
            case "meta":
                name, value = values
                self.meta[name] = value
            case "lease":
                lease, row = values
                self.leases[lease] = LeaseRow(*row)
                self.meta["last_lease"] = max(lease, self.meta.get("last_lease", 0))
            case "free":
                self.leases.pop(values[0], None)
            case "gossip":
                now, default_ttl, proxies, *session = values
                for name, group, generation, ttl in proxies:
                    self.proxies[name] = [
                        *(group, generation, now + (ttl or default_ttl)),
                        *(*session, ttl or default_ttl)[: 2 * len(session)],
                    ]
            case "drop":
                for name in values[0]:
                    self.proxies.pop(name, None)
            case "mention":
                expiry, names, session_id, *ttl = values
                for name in names:
                    row = self.proxies.get(name)
                    if row is not None:  # else the checkpoint already knows of its end
                        self.proxies[name] = [*row[:2], expiry, session_id, *ttl]
            case "forget":
                name, *tombstone = values
                self.proxies.pop(name, None)
                self.forgotten[name] = tombstone
            case "forget_group":
                self._forget_group(*values)
            case "source":
                number, *source = values
                self.sources[number] = source
            case "events":
                self._take_events(*values)
            case _:
                self._replay_of_session(kind, values)

    def _forget_group(self, group: str, low: int, high: int, until: float) -> None:
        for name, row in list(self.proxies.items()):
            if row[0] == group and low <= row[1] <= high:
                del self.proxies[name]
        self.forgotten_groups[group] = [low, high, until]

    def _take_events(self, first: int, packed: list[bytes]) -> None:
        self.events.update(enumerate(packed, first))

    def _replay_of_session(self, kind: str, values: list[Any]) -> None:
        token, *rest = values
        if kind == "open":
            self.sessions[token] = SessionRow(*rest[0])
            return
        if kind == "end":
            self.sessions.pop(token, None)
            self.ended[token] = rest
            return
        session = self.sessions.get(token)
        if session is None:
            return  # the checkpoint has its end already; a later record says it again
        match kind:
            case "reply":
                seq, frame, lease, done = rest
                session.replies[seq] = [frame, lease]
                session.waits.pop(seq, None)
                self._acknowledge(session, done)
            case "done":
                self._acknowledge(session, rest[0])
            case "wait":
                seq, order, deadline, *tag = rest
                session.waits[seq] = [order, deadline, *tag]
            case "notice":
                session.notices = [*(session.notices or []), rest[0]]
            case "fetched":
                session.notices = []
            case "unwait":
                session.waits.pop(rest[0], None)
            case "expire":
                session.expired.append(rest[0])
                self.leases.pop(rest[0], None)
            case _:
                pass

    @staticmethod
    def _acknowledge(session: SessionRow, ranges: list[int]) -> None:
        done = Done(session.done)
        done.update(ranges)
        session.done = done.ranges
        for seq in [seq for seq in session.replies if seq in done]:
            del session.replies[seq]

    # -- as version 2 has it ----------------------------------------------------------

    def rows(self) -> list[tuple[str, Any, Any]]:
        """Return the rows of a checkpoint of version 2."""
        meta = {
            "revision": 0,
            "epoch": 0,
            "tracker_id": "",
            "cluster": "",
            "last_lease": 0,
            "last_session": 0,
            "connection_count": 0,
            "configured_count": None,
            "budget": [0.0, 0.0],
            "last_served": 0,
            **self.meta,
        }
        rows: list[tuple[str, Any, Any]] = [("meta", "", meta)] if self.meta else []
        for token, session in self.sessions.items():
            rows.append(("session", token, self._session_row(session)))
            rows += [("reply", [token, seq], reply) for seq, reply in session.replies.items()]
        for lease, row in self.leases.items():
            values = [row.token, row.name, row.granted, row.wall, row.principals]
            rows.append(("lease", lease, values))
        rows += [("ended", token, ended) for token, ended in self.ended.items()]
        rows += [("tombstone", name, tombstone) for name, tombstone in self.forgotten.items()]
        rows += [("group_tombstone", group, row) for group, row in self.forgotten_groups.items()]
        rows += [("source", number, source) for number, source in self.sources.items()]
        return rows + self._history_rows() + self._mention_rows()

    def _session_row(self, session: SessionRow) -> list[Any]:
        last_served = self.meta.get("last_served", 0)
        waits = []
        for i, (seq, (order, deadline, *tag)) in enumerate(
            sorted(session.waits.items(), key=lambda wait: wait[1][0])
        ):
            # A file without tags: as if each had come before anybody was served.
            waits.append([seq, order, deadline, tag[0] if tag else last_served + 1 + i])
        # A file without notices does not say which of these were fetched; twice does no harm.
        notices = session.notices
        if notices is None:
            notices = [{"notice": "lease_expired", "lease": lease} for lease in session.expired]
        # What a step of the checkpoint took in was replayed as well; no notice comes twice.
        notices = [each for i, each in enumerate(notices) if each not in notices[:i]]
        return [
            session.id,
            session.uid,
            session.gid,
            session.pid,
            session.start,
            session.name,
            session.version,
            session.labels,
            session.opened,
            session.wall,
            session.command,
            session.done,
            waits,
            sorted(session.expired)[-1024:],
            notices,
        ]

    def _history_rows(self) -> list[tuple[str, Any, Any]]:
        newest = self.meta.get("revision", 0)
        chunks: dict[int, list[int]] = defaultdict(list)
        for revision in sorted(self.events, reverse=True):
            if revision != newest:
                break  # a gap: what is older belongs to another history
            chunks[revision - revision % _CHUNK].insert(0, revision)
            newest -= 1
        rows: list[tuple[str, Any, Any]] = []
        for key in chunks.keys() | self.older_events.keys():
            revisions = chunks.get(key, [])
            events = [self.events[each] for each in revisions]
            first = revisions[0] if revisions else key
            rows.append(("history", key, [first, events, *self.older_events.get(key, [])]))
        return rows

    def _mention_rows(self) -> list[tuple[str, Any, Any]]:
        rows: list[tuple[str, Any, Any]] = []
        default = 180.0
        mentioned = sorted(
            (row[2], row[4] if row[4:] else default, row[3] if row[3:] else 0, *row[:2], name)
            for name, row in self.proxies.items()
        )
        for number, (said, run) in enumerate(groupby(mentioned, itemgetter(0, 1, 2)), 1):
            places = groupby(run, itemgetter(3, 4))
            names = [[*place, [row[5] for row in rows]] for place, rows in places]
            rows += [("mention", number, list(said)), ("names", number, names)]
        return rows
