"""The stored state: plain values by kind, and what each journal record does to them.

A restart reads an `Image`: the rows of the checkpoint, then the journal's records in order.
`trackd.state.state` makes the records, and `trackd.state.restore` turns an image into a state.

Every record says what a thing became (never "add one"). So replaying it over a newer value of the
checkpoint does no harm: later records bring the newer value back. Only a notice may be there twice.

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

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from trackd.storage.history import CHUNK
from trackd.storage.records import Key, Record, StoredRow
from trackd_client.wire.done import Done


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

    def values(self) -> list[Any]:
        """Return the fields in order, as they are stored."""
        return [getattr(self, name) for name in self.__slots__]


@dataclass(slots=True)
class LeaseRow:
    """A lease as it is stored."""

    token: bytes
    name: str | None
    granted: float
    wall: float
    principals: list[str] = field(default_factory=list)

    def values(self) -> list[Any]:
        """Return the fields in order, as they are stored."""
        return [self.token, self.name, self.granted, self.wall, self.principals]


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

    def take(self, rows: Iterable[StoredRow]) -> None:
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

    def replay(self, record: Record) -> list[Key]:
        """Apply one journal record; return the keys that it changed."""
        kind, *values = record
        match kind:
            case "meta":
                name, value = values
                self.meta[name] = value
                return [("meta", name)]
            case "lease":
                lease, row = values
                self.leases[lease] = LeaseRow(*row)
                self.meta["last_lease"] = max(lease, self.meta.get("last_lease", 0))
                return [("lease", lease), ("meta", "last_lease")]
            case "free":
                self.leases.pop(values[0], None)
                return [("lease", values[0])]
            case "gossip":
                now, default_ttl, proxies, *session = values
                for name, group, generation, ttl in proxies:
                    self.proxies[name] = [
                        *(group, generation, now + (ttl or default_ttl)),
                        *(*session, ttl or default_ttl)[: 2 * len(session)],
                    ]
                return [("proxy", proxy[0]) for proxy in proxies]
            case "drop":
                for name in values[0]:
                    self.proxies.pop(name, None)
                return [("proxy", name) for name in values[0]]
            case "mention":
                expiry, names, session_id, *ttl = values
                for name in names:
                    row = self.proxies.get(name)
                    if row is not None:  # else the checkpoint already knows of its end
                        self.proxies[name] = [*row[:2], expiry, session_id, *ttl]
                return [("proxy", name) for name in names]
            case "forget":
                name, *tombstone = values
                self.proxies.pop(name, None)
                self.forgotten[name] = tombstone
                return [("proxy", name), ("forgotten", name)]
            case "forget_group":
                return self._forget_group(*values)
            case "source":
                number, *source = values
                self.sources[number] = source
                return [("source", number)]
            case "events":
                return [("history", chunk) for chunk in self._take_events(*values)]
            case _:
                return self._replay_of_session(kind, values)

    def _forget_group(self, group: str, low: int, high: int, until: float) -> list[Key]:
        names = [
            name for name, row in self.proxies.items() if row[0] == group and low <= row[1] <= high
        ]
        for name in names:
            del self.proxies[name]
        self.forgotten_groups[group] = [low, high, until]
        return [("forgotten_group", group), *(("proxy", name) for name in names)]

    def _take_events(self, first: int, packed: list[bytes]) -> set[int]:
        """Take in events; return the chunks that hold them."""
        self.events.update(enumerate(packed, first))
        return {revision - revision % CHUNK for revision in range(first, first + len(packed))}

    def _replay_of_session(self, kind: str, values: list[Any]) -> list[Key]:
        token, *rest = values
        keys: list[Key] = [("session", token)]
        if kind == "open":
            self.sessions[token] = SessionRow(*rest[0])
            return keys
        if kind == "end":
            self.sessions.pop(token, None)
            self.ended[token] = rest
            return [*keys, ("ended", token)]
        session = self.sessions.get(token)
        if session is None:
            # The checkpoint has its end already; a later record says it again.
            return keys
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
                notices = session.notices or []
                if rest[0] not in notices:  # else the checkpoint has it already
                    session.notices = [*notices, rest[0]]
            case "fetched":
                session.notices = []
            case "unwait":
                session.waits.pop(rest[0], None)
            case "expire":
                session.expired.append(rest[0])
                self.leases.pop(rest[0], None)
                keys.append(("lease", rest[0]))
            case _:
                pass
        return keys

    @staticmethod
    def _acknowledge(session: SessionRow, ranges: list[int]) -> None:
        done = Done(session.done)
        done.update(ranges)
        session.done = done.ranges
        for seq in [seq for seq in session.replies if seq in done]:
            del session.replies[seq]
