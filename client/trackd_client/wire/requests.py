"""The requests of the protocol: one class for each operation, shared by client and daemon.

A class has the fields of its operation, in the order of docs/protocol.md. `encode` returns what the
client sends; `decode` checks what the daemon received, against its present settings. The fields
that every request may have (number, token, deadline and so on) are the business of both ends.

Nothing changes a request once it is made. The classes are not frozen all the same: making a frozen
one takes 2 to 3 % of the time of a read.
"""

# ruff: noqa: ARG003, D102 - `decode` is described once, and not all need the settings

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol, Self

from trackd_client.errors import Code, DialFailed
from trackd_client.wire.checks import (
    check_count,
    check_name,
    check_principals,
    check_seconds,
    check_text,
)
from trackd_client.wire.errors import ProtocolError
from trackd_client.wire.protocol import MAX_LABEL_BYTES, MAX_LABELS

#: What `snapshot` lists.
LISTINGS: Final = ("proxies", "leases", "sessions")
#: How a dial ended that claimed nothing, as `release` says it.
OUTCOMES: Final = (*DialFailed.reasons, "held")
#: Seconds that a failed dial may ask to wait, at most.
MAX_RETRY_AFTER: Final = 60.0
#: Reports of one request, at most.
MAX_REPORTS: Final = 10_000
#: Seconds of a reported round-trip time, at most.
MAX_RTT: Final = 60.0
#: Rows of a page of `snapshot`, and events of a reply to `log`, at most.
MAX_ROWS: Final = 1000

_INT64: Final = 2**63


class Accepted(Protocol):
    """What a daemon accepts: those of its settings that the fields of a request depend on."""

    @property
    def cluster_name(self) -> str:
        """The cluster that it serves."""

    @property
    def max_name(self) -> int:
        """Bytes of a name."""

    @property
    def max_principals(self) -> int:
        """Principals of one request."""

    @property
    def max_proxies(self) -> int:
        """Proxies of one `track_expected`."""


@dataclass(slots=True)
class RequestFields:
    """The fields of a request that has none.

    Attributes:
        op: the operation.
    """

    op: ClassVar[str]

    @classmethod
    def decode(cls, body: Mapping[str, Any], accepted: Accepted) -> Self:
        """Return the fields in the body of a request. Unknown ones are ignored; nil is a default.

        Raises:
            ProtocolError: the first one that is wrong: `invalid_argument`, `limit_exceeded`, or for
                `open` also `wrong_cluster`.
        """
        return cls()

    def encode(self) -> dict[str, Any]:
        """Return the fields to send: those that differ from their defaults."""
        kind: Any = type(self)
        return {
            name: value
            for name, default in _defaults_of(kind)
            if (value := getattr(self, name)) != default
        }


@functools.cache
def _defaults_of(kind: Any) -> list[tuple[str, Any]]:
    """Return the fields of a class with their defaults."""
    return [(field.name, field.default) for field in dataclasses.fields(kind)]


# without a session


@dataclass(slots=True)
class Hello(RequestFields):
    """Who is the daemon, and what does it accept?"""

    op = "hello"


@dataclass(slots=True)
class Ping(RequestFields):
    """Does the daemon serve, and which state?"""

    op = "ping"


@dataclass(slots=True)
class Status(RequestFields):
    """How many are there of everything?"""

    op = "status"


@dataclass(slots=True)
class Explain(RequestFields):
    """Why would a lease be granted or refused now, or what is known of one proxy?

    Attributes:
        name: of the proxy, or one of its principals; None: it is about leases.
    """

    op = "explain"

    name: str | None = None

    @classmethod
    def decode(cls, body: Mapping[str, Any], accepted: Accepted) -> Self:
        name = body.get("name")
        return cls() if name is None else cls(check_name(name, "name", accepted.max_name))


@dataclass(slots=True)
class Snapshot(RequestFields):
    """One page of a listing.

    Attributes:
        of: one of `LISTINGS`.
        cursor: from the reply with the page before; None: the first page of a new listing.
        limit: rows at most.
    """

    op = "snapshot"

    of: str
    cursor: list[int] | None = None
    limit: int = MAX_ROWS

    @classmethod
    def decode(cls, body: Mapping[str, Any], accepted: Accepted) -> Self:
        of, cursor = body.get("of"), body.get("cursor")
        if type(of) is not str or of not in LISTINGS:
            raise ProtocolError(Code.INVALID_ARGUMENT, f"of must be one of {', '.join(LISTINGS)}")
        if cursor is not None:
            if type(cursor) is not list or len(cursor) != 2:
                raise ProtocolError(Code.INVALID_ARGUMENT, "cursor must come from an earlier reply")
            for part in cursor:
                check_count(part, "cursor")
        return cls(of, cursor, _limit_of(body))


@dataclass(slots=True)
class Log(RequestFields):
    """The last events.

    Attributes:
        after: a revision.
        limit: events at most.
        older: whether to begin with those between which there are gaps.
    """

    op = "log"

    after: int = 0
    limit: int = MAX_ROWS
    older: bool = False

    @classmethod
    def decode(cls, body: Mapping[str, Any], accepted: Accepted) -> Self:
        after = body.get("after")
        after = 0 if after is None else check_count(after, "after")
        older = _flag_of(body, "older")
        return cls(after, _limit_of(body), older)


@dataclass(slots=True)
class Metrics(RequestFields):
    """The counters of the daemon.

    Attributes:
        names: the families to return; None: all. Unknown ones, of any type, are no error.
    """

    op = "metrics"

    names: list[Any] | None = None

    @classmethod
    def decode(cls, body: Mapping[str, Any], accepted: Accepted) -> Self:
        return cls(_names_of(body))


@dataclass(slots=True)
class Config(RequestFields):
    """The settings of the daemon.

    Attributes:
        names: the settings to return; None: all. Unknown ones, of any type, are no error.
    """

    op = "config"

    names: list[Any] | None = None

    @classmethod
    def decode(cls, body: Mapping[str, Any], accepted: Accepted) -> Self:
        return cls(_names_of(body))


@dataclass(slots=True)
class Fleet(RequestFields):
    """Who leads the fleet, and how are its hosts?"""

    op = "fleet"


# of a session


@dataclass(slots=True)
class Open(RequestFields):
    """Open the session. Of one that is open already, nobody reads the fields.

    Attributes:
        name: of the client, for operators; on the wire "" unless it is there, as the next.
        version: of the client.
        labels: further texts for operators, by name; on the wire none unless they are there.
        cluster: that the daemon must serve; None: any.
    """

    op = "open"

    name: str
    version: str
    labels: dict[str, str]
    cluster: str | None = None

    @classmethod
    def decode(cls, body: Mapping[str, Any], accepted: Accepted) -> Self:
        cluster = body.get("cluster")
        if cluster is not None and cluster != accepted.cluster_name:
            raise ProtocolError(
                Code.WRONG_CLUSTER,
                f"this daemon serves the cluster {accepted.cluster_name!r}, not {cluster!r:.99}",
            )
        name, version, labels = body.get("name"), body.get("version"), body.get("labels")
        name = "" if name is None else check_text(name, "name", accepted.max_name)
        version = "" if version is None else check_text(version, "version", accepted.max_name)
        if labels is None:
            labels = {}
        elif type(labels) is not dict:
            raise ProtocolError(Code.INVALID_ARGUMENT, "labels must be a map")
        if len(labels) > MAX_LABELS:
            raise ProtocolError(
                Code.LIMIT_EXCEEDED, f"{len(labels)} labels; {MAX_LABELS} are allowed"
            )
        for key, value in labels.items():
            check_name(key, "a label's name", MAX_LABEL_BYTES)
            check_text(value, f"label {key}", MAX_LABEL_BYTES)
        return cls(name, version, labels, cluster)


@dataclass(slots=True)
class Close(RequestFields):
    """End the session, and release its leases."""

    op = "close"


@dataclass(slots=True)
class Heartbeat(RequestFields):
    """The client is alive."""

    op = "heartbeat"


@dataclass(slots=True)
class Report(RequestFields):
    """Tunnels are alive.

    Attributes:
        reports: of each the lease, and the round-trip time of its tunnel in seconds, or None.
    """

    op = "report"

    reports: list[Any]

    @classmethod
    def decode(cls, body: Mapping[str, Any], accepted: Accepted) -> Self:
        rows = body.get("reports")
        if type(rows) is not list:
            raise ProtocolError(Code.INVALID_ARGUMENT, "reports must be an array")
        if len(rows) > MAX_REPORTS:
            raise ProtocolError(
                Code.LIMIT_EXCEEDED,
                f"{len(rows)} reports in one request; {MAX_REPORTS} are allowed",
            )
        for i, row in enumerate(rows):
            _check_report(row, f"reports[{i}]")
        return cls(rows)


def _check_report(row: Any, place: str) -> None:
    if type(row) is not list or len(row) != 2:
        raise ProtocolError(
            Code.INVALID_ARGUMENT, f"{place} must be an array of a lease and a round-trip time"
        )
    check_count(row[0], f"{place}[0]", least=1)
    if row[1] is not None and not 0 <= check_seconds(row[1], f"{place}[1]") <= MAX_RTT:
        raise ProtocolError(Code.INVALID_ARGUMENT, f"{place}[1] must be from 0 to {MAX_RTT:g}")


@dataclass(slots=True)
class WatchSession(RequestFields):
    """Wait for notices to the session."""

    op = "watch_session"


@dataclass(slots=True)
class TrackExpected(RequestFields):
    """Track the proxies of a gossip message.

    Attributes:
        proxies: their rows as they were received: most repeat what the daemon knows, and need no
            check. `check_row` checks one.
    """

    op = "track_expected"

    proxies: list[Any]

    @classmethod
    def decode(cls, body: Mapping[str, Any], accepted: Accepted) -> Self:
        proxies = body.get("proxies")
        if type(proxies) is not list:
            raise ProtocolError(Code.INVALID_ARGUMENT, "proxies must be an array")
        if len(proxies) > accepted.max_proxies:
            raise ProtocolError(
                Code.LIMIT_EXCEEDED,
                f"{len(proxies)} proxies in one message; {accepted.max_proxies} are allowed",
            )
        return cls(proxies)


@dataclass(slots=True)
class SetConnectionCount(RequestFields):
    """Set the connection count.

    Attributes:
        count: 0 or less: one to every desired proxy; otherwise at most so many.
    """

    op = "set_connection_count"

    count: int

    @classmethod
    def decode(cls, body: Mapping[str, Any], accepted: Accepted) -> Self:
        return cls(check_count(body.get("count"), "count", least=-_INT64, most=_INT64 - 1))


@dataclass(slots=True)
class IsClaimed(RequestFields):
    """Does a lease hold the proxy that the principals name?

    Attributes:
        principals: of the proxy.
    """

    op = "is_claimed"

    principals: list[str]

    @classmethod
    def decode(cls, body: Mapping[str, Any], accepted: Accepted) -> Self:
        return cls(
            check_principals(body.get("principals"), accepted.max_principals, accepted.max_name)
        )


@dataclass(slots=True)
class TryAcquire(RequestFields):
    """Grant a lease, or refuse it."""

    op = "try_acquire"


@dataclass(slots=True)
class Acquire(RequestFields):
    """Grant a lease as soon as there is one."""

    op = "acquire"


@dataclass(slots=True)
class Claim(RequestFields):
    """Claim the reached proxy for a lease.

    Attributes:
        lease: its id.
        principals: of the proxy, as they were received. That the lease belongs to another session
            is the error that wins, so `check_principals` comes after that.
        follow: whether the lease takes the name that gossip has for its proxy, once it has one.
    """

    op = "claim"

    lease: int
    principals: Any
    follow: bool = False

    @classmethod
    def decode(cls, body: Mapping[str, Any], accepted: Accepted) -> Self:
        lease = check_count(body.get("lease"), "lease", least=1)
        return cls(lease, body.get("principals"), _flag_of(body, "follow"))


@dataclass(slots=True)
class Retire(RequestFields):
    """Mark the proxy that a lease holds as terminating.

    Attributes:
        lease: its id.
    """

    op = "retire"

    lease: int

    @classmethod
    def decode(cls, body: Mapping[str, Any], accepted: Accepted) -> Self:
        return cls(check_count(body.get("lease"), "lease", least=1))


@dataclass(slots=True)
class Offer(RequestFields):
    """Offer the proxy that a lease holds to the next lease that reaches it.

    Attributes:
        lease: its id.
    """

    op = "offer"

    lease: int

    @classmethod
    def decode(cls, body: Mapping[str, Any], accepted: Accepted) -> Self:
        return cls(check_count(body.get("lease"), "lease", least=1))


@dataclass(slots=True)
class Release(RequestFields):
    """Release a lease.

    Attributes:
        lease: its id.
        failed: how its dial ended, one of `OUTCOMES`; None: nothing is said.
        retry_after: the seconds that the other end asked for; None: it did not.
    """

    op = "release"

    lease: int
    failed: str | None = None
    retry_after: float | None = None

    @classmethod
    def decode(cls, body: Mapping[str, Any], accepted: Accepted) -> Self:
        lease = check_count(body.get("lease"), "lease", least=1)
        if "failed" not in body and "retry_after" not in body:  # nearly always
            return cls(lease)
        failed, retry_after = body.get("failed"), body.get("retry_after")
        if failed is not None and (type(failed) is not str or failed not in OUTCOMES):
            raise ProtocolError(
                Code.INVALID_ARGUMENT, f"failed must be one of {', '.join(OUTCOMES)}"
            )
        if retry_after is not None:
            retry_after = check_seconds(retry_after, "retry_after")
            if not 0 <= retry_after <= MAX_RETRY_AFTER:
                raise ProtocolError(
                    Code.INVALID_ARGUMENT, f"retry_after must be from 0 to {MAX_RETRY_AFTER:g}"
                )
            if failed in (None, "held"):
                raise ProtocolError(Code.INVALID_ARGUMENT, "retry_after needs a failed dial")
        return cls(lease, failed, retry_after)


@dataclass(slots=True)
class Adopt(RequestFields):
    """Grant a lease and claim in one step, for a tunnel that is open.

    Attributes:
        principals: of the proxy.
        follow: as in `Claim`.
    """

    op = "adopt"

    principals: list[str]
    follow: bool = False

    @classmethod
    def decode(cls, body: Mapping[str, Any], accepted: Accepted) -> Self:
        return cls(
            check_principals(body.get("principals"), accepted.max_principals, accepted.max_name),
            _flag_of(body, "follow"),
        )


@dataclass(slots=True)
class Cancel(RequestFields):
    """Give up an earlier request.

    Attributes:
        target: its number.
    """

    op = "cancel"

    target: int

    @classmethod
    def decode(cls, body: Mapping[str, Any], accepted: Accepted) -> Self:
        return cls(check_count(body.get("target"), "target", least=1))


# of admins


@dataclass(slots=True)
class ForceRelease(RequestFields):
    """Take a lease away from its session.

    Attributes:
        lease: its id.
    """

    op = "force_release"

    lease: int

    @classmethod
    def decode(cls, body: Mapping[str, Any], accepted: Accepted) -> Self:
        return cls(check_count(body.get("lease"), "lease", least=1))


@dataclass(slots=True)
class EndSession(RequestFields):
    """End a session, and release its leases.

    Attributes:
        session: its number.
    """

    op = "end_session"

    session: int

    @classmethod
    def decode(cls, body: Mapping[str, Any], accepted: Accepted) -> Self:
        return cls(check_count(body.get("session"), "session", least=1))


@dataclass(slots=True)
class Forget(RequestFields):
    """Stop tracking a proxy, or a group.

    Attributes:
        name: of the proxy; None: it is a group.
        group: its name; None: it is a proxy.
        generation: only this one of the group; None: up to the largest.
    """

    op = "forget"

    name: str | None = None
    group: str | None = None
    generation: int | None = None

    @classmethod
    def decode(cls, body: Mapping[str, Any], accepted: Accepted) -> Self:
        name, group, generation = body.get("name"), body.get("group"), body.get("generation")
        if group is None:
            if generation is not None:
                raise ProtocolError(Code.INVALID_ARGUMENT, "generation needs a group")
            return cls(check_name(name, "name", accepted.max_name))
        if name is not None:
            raise ProtocolError(Code.INVALID_ARGUMENT, "name and group exclude each other")
        check_text(group, "group", accepted.max_name)
        if generation is not None:
            check_count(generation, "generation")
        return cls(None, group, generation)


@dataclass(slots=True)
class Resume(RequestFields):
    """End the pauses after failed dials."""

    op = "resume"


@dataclass(slots=True)
class Reload(RequestFields):
    """Read the configuration again."""

    op = "reload"


@dataclass(slots=True)
class DropHost(RequestFields):
    """End all sessions of a host of the fleet.

    Attributes:
        host: its name.
    """

    op = "drop_host"

    host: str

    @classmethod
    def decode(cls, body: Mapping[str, Any], accepted: Accepted) -> Self:
        return cls(check_name(body.get("host"), "host", accepted.max_name))


@dataclass(slots=True)
class YieldLead(RequestFields):
    """Let another candidate lead the fleet.

    Attributes:
        term: the term that is to end; the leader of a later one leads on.
    """

    op = "yield_lead"

    term: int

    @classmethod
    def decode(cls, body: Mapping[str, Any], accepted: Accepted) -> Self:
        return cls(check_count(body.get("term"), "term", least=1))


# fields of several operations


def _limit_of(body: Mapping[str, Any]) -> int:
    limit = body.get("limit")
    return MAX_ROWS if limit is None else check_count(limit, "limit", least=1, most=MAX_ROWS)


def _flag_of(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and type(value) is not bool:
        raise ProtocolError(Code.INVALID_ARGUMENT, f"{name} must be true or false")
    return bool(value)


def _names_of(body: Mapping[str, Any]) -> list[Any] | None:
    names = body.get("names")
    if names is not None and type(names) is not list:
        raise ProtocolError(Code.INVALID_ARGUMENT, "names must be an array")
    return names
