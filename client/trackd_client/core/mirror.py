"""A mirror: the rows of a snapshot, kept up to date by events. No I/O.

An event says what a thing became. So it does no harm to apply one twice, or to rows that have it
already, as long as all later events are applied as well. A field that no event has keeps its value;
in a row that an event added it is nil or empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from trackd_client.core.arguments import check_type
from trackd_client.core.event import Event
from trackd_client.core.reading import read
from trackd_client.errors import BadArgument

Row = dict[str, Any]

#: The listings of a snapshot, each with the field that is the key of its rows.
KEYS: Final = {"sessions": "session", "leases": "lease", "proxies": "name"}
LISTINGS: Final = tuple(KEYS)


class Mirror:
    """The proxies, leases and sessions of a daemon, as of one revision.

    Fill it with `put`, or from the `fields` of a `snapshot` event; then apply every later event.

    Attributes:
        revision: the revision of the last event that was applied.
        proxies: rows by name; a proxy is here when it is tracked or claimed.
        leases: rows by id.
        sessions: rows by number.
    """

    def __init__(self, snapshot: Mapping[str, Any] | None = None) -> None:
        """Begin with the rows of a snapshot, or without any.

        Raises:
            BadArgument: they are not the fields of a `snapshot` event.
        """
        self.revision = 0
        self.proxies: dict[str, Row] = {}
        self.leases: dict[int, Row] = {}
        self.sessions: dict[int, Row] = {}
        if snapshot is not None:
            try:
                self.revision = snapshot["revision"]
                for of in LISTINGS:
                    self.put(of, snapshot[of])
            except (KeyError, TypeError, ValueError) as error:
                raise BadArgument(
                    f"a mirror needs the fields of a `snapshot` event, not {snapshot!r:.100}"
                ) from error

    def put(self, of: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows of a listing; a row replaces the one with the same key."""
        key = KEYS[of]
        table: dict[Any, Row] = getattr(self, of)
        for row in rows:
            table[row[key]] = dict(row)

    def apply(self, event: Event) -> None:
        """Apply an event; one of an unknown kind changes only the revision.

        Raises:
            BadArgument: it is no `Event`.
            NoAnswer: its fields are not as the protocol says.
        """
        check_type(event, Event, "event")
        read(f"an event {event.kind}", self._apply, event)

    def _apply(self, event: Event) -> None:
        self.revision = event.revision
        fields = event.fields
        match event.kind:
            case "session_opened":
                self._open(event)
            case "session_ended":
                self.sessions.pop(fields["session"], None)
            case "lease_granted":
                self._grant(event)
            case "lease_released":
                self.leases.pop(fields["lease"], None)
                if fields["name"] is not None:
                    self._unclaim(fields["name"])
            case "lease_stale":
                row = self.leases.get(fields["lease"])
                if row is not None:
                    row["stale"] = True
            case "proxy_claimed":
                self._claim(event)
            case "lease_renamed":
                self._unclaim(fields["before"])
                self._claim(event)
            case "lease_offered":
                if (row := self.leases.get(fields["lease"])) is not None:
                    row["offered"] = True
            case "proxy_tracked" | "proxy_changed":
                self._proxy(fields["name"]).update(
                    group=fields["group"],
                    generation=fields["generation"],
                    tracked=True,
                    mentioned_by=fields["session"],
                )
            case "proxy_marked":
                row = self.proxies.get(fields["name"])
                if row is not None:
                    _mark(row, terminating=fields["terminating"])
            case "proxy_addressed":
                row = self.proxies.get(fields["name"])
                if row is not None:
                    _address(row, fields["address"])
            case "proxy_expired" | "proxy_forgotten":
                self._untrack(fields["name"])

    def snapshot(self) -> dict[str, Any]:
        """Return the rows as `Tracker.snapshot` has them, with derived fields up to date.

        Raises:
            NoAnswer: a field of a row or an event is not as the protocol says.
        """
        return read("events or rows", self._snapshot)

    def _snapshot(self) -> dict[str, Any]:
        self._count_leases()
        self._choose_desired()
        return {
            "revision": self.revision,
            "proxies": sorted(self.proxies.values(), key=lambda row: str(row["name"])),
            "leases": sorted(self.leases.values(), key=lambda row: int(row["lease"])),
            "sessions": sorted(self.sessions.values(), key=lambda row: int(row["session"])),
        }

    def _open(self, event: Event) -> None:
        number = event.fields["session"]
        row = self.sessions.get(number)
        if row is None:
            row = self.sessions[number] = {
                "session": number,
                "gid": None,
                "visible": None,
                "version": "",
                "labels": {},
                "opened": event.time,
                "wall": event.wall,
                "leases": 0,
                "inflight": 0,
                "waiting": 0,
                "requests": 0,
                "gossip": 0,
                "deadline": None,
            }
        row.update({name: event.fields[name] for name in ("uid", "pid", "name", "command")})
        if "host" in event.fields:
            row["host"] = event.fields["host"]

    def _grant(self, event: Event) -> None:
        number, session = event.fields["lease"], event.fields["session"]
        row = self.leases.get(number)
        if row is None:
            row = self.leases[number] = {
                "lease": number,
                "granted": event.time,
                "wall": event.wall,
                "claim_by": None,
                "principals": [],
            }
        self._own(row, session)
        row["name"] = None

    def _claim(self, event: Event) -> None:
        name, number, session = (event.fields[field] for field in ("name", "lease", "session"))
        row = self.leases.get(number)
        if row is not None:
            row.update(name=name, claim_by=None)
        proxy = self._proxy(name)
        proxy["lease"] = number
        self._own(proxy, session)

    def _own(self, row: Row, session: int | None) -> None:
        """Let a lease or a proxy belong to a session, or to none."""
        owner = {} if session is None else self.sessions.get(session, {})
        row.update(session=session, pid=owner.get("pid"))
        row.pop("host", None)
        if "host" in owner:
            row["host"] = owner["host"]

    def _proxy(self, name: str) -> Row:
        row = self.proxies.get(name)
        if row is None:
            row = self.proxies[name] = {
                "name": name,
                "group": None,
                "generation": None,
                "expires": None,
                "tracked": False,
                "desired": False,
                "largest": None,
                "lease": None,
                "session": None,
                "pid": None,
                "mentioned_by": None,
            }
        return row

    def _unclaim(self, name: str) -> None:
        row = self._proxy(name)
        row["lease"] = None
        self._own(row, None)
        if not row["tracked"]:
            del self.proxies[name]

    def _untrack(self, name: str) -> None:
        row = self._proxy(name)
        row.update(group=None, generation=None, expires=None, tracked=False, mentioned_by=None)
        _mark(row, terminating=False)
        _address(row, None)
        if row["lease"] is None:
            del self.proxies[name]

    def _count_leases(self) -> None:
        for row in self.sessions.values():
            row.update(leases=0, inflight=0)
        for lease in self.leases.values():
            holder = self.sessions.get(lease["session"])
            if holder is not None:
                holder["leases"] += 1
                holder["inflight"] += lease["name"] is None

    def _choose_desired(self) -> None:
        tracked = [row for row in self.proxies.values() if row["tracked"]]
        kept = {row["group"] for row in tracked if not row.get("terminating")}
        largest: dict[str, int] = {}
        for row in tracked:
            group, generation = row["group"], row["generation"]
            if not row.get("terminating") or group not in kept:  # then no mark counts there
                largest[group] = max(generation, largest.get(group, generation))
        for row in self.proxies.values():
            group = row["group"]
            row["largest"] = largest.get(group)
            row["desired"] = (
                row["tracked"]
                and row["generation"] == row["largest"]
                and not (row.get("terminating") and group in kept)
            )


def _mark(row: Row, *, terminating: bool) -> None:
    """Give a row its mark, which it has only when it is true, as in a listing."""
    row.pop("terminating", None)
    if terminating:
        row["terminating"] = True


def _address(row: Row, address: str | None) -> None:
    """Give a row its address, which it has only when one is known, as in a listing."""
    row.pop("address", None)
    if address is not None:
        row["address"] = address
