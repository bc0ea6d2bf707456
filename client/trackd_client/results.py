"""What a tracker returns to operators: `status`, `explain`, `snapshot` and the rows of listings.

Each is a frozen class. It has the fields of the daemon's reply as attributes, and is a read-only
dictionary of exactly those fields, in their order::

    status = tracker.status()
    status.claimed == status["claimed"]
    json.dumps(status)

Fields that only a newer daemon sends are items too, without an attribute. A field that an older
daemon does not send is no item: its attribute is the default below, or None. docs/protocol.md
describes the fields; a test holds the classes against it. No I/O.

Points in time are seconds of the daemon's CLOCK_BOOTTIME, unless they are Unix time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Final, NoReturn

__all__ = [
    "EtcdAlarm",
    "EtcdHealth",
    "EtcdMember",
    "Explanation",
    "Fleet",
    "FleetCandidate",
    "FleetHost",
    "Group",
    "GroupGap",
    "Hint",
    "LeaseRow",
    "Outcomes",
    "Pause",
    "ProxyExplanation",
    "ProxyRow",
    "ProxyTarget",
    "RecentClaims",
    "Reload",
    "Result",
    "SessionRow",
    "Snapshot",
    "Source",
    "Status",
    "Tombstone",
    "Tunnels",
    "UserUsage",
]

#: Characters after which a `repr` names no further field, and of one value in it.
_REPR: Final = 120
_REPR_VALUE: Final = 40


class Result(dict[str, Any]):
    """Fields of a reply, which cannot be changed; `dict(result)` is a copy that can be.

    Subclasses declare the fields that they know: each annotation becomes a read-only attribute.
    Keywords of a subclass name the fields that are results themselves, or lists of them.
    """

    __slots__ = ()
    _nested: ClassVar[Mapping[str, type[Result]]] = {}

    def __init_subclass__(cls, **nested: type[Result]) -> None:
        """Make the attributes of a subclass from its annotations."""
        super().__init_subclass__()
        cls._nested = nested
        for name in cls.__annotations__:
            setattr(cls, name, property(partial(_read, name, vars(cls).get(name))))

    def __init__(self, fields: Mapping[str, Any], /) -> None:
        """Copy the fields of a reply."""
        super().__init__(fields)
        for name, kind in self._nested.items():
            if name in self:
                super().__setitem__(name, _wrap(kind, self[name]))

    def __repr__(self) -> str:
        """Return the class and the first fields, in about a hundred characters."""
        shown: list[str] = []
        for name, value in self.items():
            if sum(map(len, shown)) > _REPR:
                shown.append(f"... {len(self)} fields")
                break
            text = repr(value)
            shown.append(
                f"{name}={text if len(text) <= _REPR_VALUE else f'{text[:_REPR_VALUE]}...'}"
            )
        return f"{type(self).__name__}({', '.join(shown)})"

    def __reduce__(self) -> tuple[type[Result], tuple[dict[str, Any]]]:
        """Return what `copy` and `pickle` make another one from."""
        return type(self), (dict(self),)

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        """Refuse a change.

        Raises:
            TypeError: always.
        """
        raise TypeError(f"a {type(self).__name__} cannot be changed; dict(...) returns a copy")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse


def _read(name: str, default: Any, result: Result) -> Any:
    """Return a field, or the default where the daemon did not send it."""
    return result.get(name, default)


def _wrap(kind: type[Result], value: Any) -> Any:
    """Return a map as a result, and a list of maps as a list of results."""
    if isinstance(value, dict):
        return kind(value)
    if isinstance(value, list):
        return [_wrap(kind, each) for each in value]
    return value


# -- rows -----------------------------------------------------------------------------------


class ProxyRow(Result):
    """A proxy that is tracked, or claimed without being tracked.

    Attributes:
        name: its name in gossip.
        tracked: whether gossip names it.
        group: its group; None: it is not tracked.
        generation: its generation; None: it is not tracked.
        expires: the point in time at which its gossip expires; None: it is not tracked, or it
            appeared while a snapshot was read.
        desired: whether a connection to it is wanted: it is tracked, of the largest generation,
            and not terminating.
        largest: the largest generation of its group; None: it is not tracked.
        lease: id of the lease that holds it, or None.
        session: number of the session that holds it, or None.
        pid: process id of its holder, or None.
        host: the host of its holder, in a fleet; empty: the daemon's own.
        mentioned_by: number of the session that mentioned it last, or None.
        terminating: whether it is about to go, as gossip or the lease that holds it says.
        address: where it can be dialled itself, as gossip says; empty: nothing is known.
    """

    __slots__ = ()
    name: str
    tracked: bool
    group: str | None
    generation: int | None
    expires: float | None
    desired: bool
    largest: int | None
    lease: int | None
    session: int | None
    pid: int | None
    host: str = ""
    mentioned_by: int | None
    terminating: bool = False
    address: str = ""


class LeaseRow(Result):
    """A lease.

    Attributes:
        lease: its id.
        session: number of the session that owns it.
        pid: process id of its owner; None: it appeared while a snapshot was read.
        host: the host of its owner, in a fleet; empty: the daemon's own.
        name: the proxy that it holds; None: it is in flight.
        granted: the point in time at which it was granted.
        wall: the same in Unix time, in seconds.
        claim_by: the point in time at which the daemon takes it back unless it has claimed; None:
            it has claimed, or there is no limit.
        principals: the first 8 of its claim.
        reported: the point in time at which it last reported its tunnel alive; None: never, or
            not since the daemon started.
        rtt: smoothed round-trip time of its tunnel in seconds, or None.
        stale: whether it was silent for too long, and is about to be released.
        offered: whether it is offered to other agents.
    """

    __slots__ = ()
    lease: int
    session: int
    pid: int | None
    host: str = ""
    name: str | None
    granted: float
    wall: float
    claim_by: float | None
    principals: Sequence[str]
    reported: float | None
    rtt: float | None
    stale: bool = False
    offered: bool = False


class Pause(Result):
    """A pause after failed dials.

    Attributes:
        failures: how many in a row counted.
        until: the point in time at which it ends; after that one dial at a time tries, until one
            shows that dials succeed.
        reason: why the last of them failed.
        retry_after: seconds for which its other end asked not to dial, or None.
        session: number of the session that reported it.
        uid: its user id.
        pid: its process id.
        agent: what it calls itself, or its command.
        host: the host that it runs on, in a fleet; empty: the daemon's own.
    """

    __slots__ = ()
    failures: int
    until: float
    reason: str
    retry_after: float | None
    session: int
    uid: int
    pid: int
    agent: str
    host: str = ""


class SessionRow(Result, pause=Pause):
    """A session: one agent.

    Attributes:
        session: its number.
        uid: user id of its process.
        gid: group id of its process; None: it appeared while a snapshot was read.
        pid: process id, as the daemon sees it.
        host: the host that it runs on, in a fleet; empty: the daemon's own.
        visible: whether the daemon sees the process, and needs no heartbeats; None: as for `gid`.
        name: what the agent calls itself.
        version: version of its client.
        labels: further names and values of the agent.
        command: what the process ran when it opened the session; `""` when that is hidden.
        opened: the point in time at which it was opened.
        wall: the same in Unix time, in seconds.
        leases: how many leases it owns.
        inflight: how many of them are in flight.
        waiting: how many of its requests wait for a lease.
        requests: how many requests it sent since the daemon started.
        gossip: how many of them were gossip (`track_expected`).
        deadline: the point in time at which it ends unless a request arrives; None: it does not.
        pause: its own pause after failed dials, or None.
    """

    __slots__ = ()
    session: int
    uid: int
    gid: int | None
    pid: int
    host: str = ""
    visible: bool | None
    name: str
    version: str
    labels: Mapping[str, str]
    command: str
    opened: float
    wall: float
    leases: int
    inflight: int
    waiting: int
    requests: int
    gossip: int
    deadline: float | None
    pause: Pause | None


#: The class of the rows of each listing.
ROWS: Final[Mapping[str, type[Result]]] = {
    "proxies": ProxyRow,
    "leases": LeaseRow,
    "sessions": SessionRow,
}


class Snapshot(Result, proxies=ProxyRow, leases=LeaseRow, sessions=SessionRow):
    """All rows, as of one revision.

    Attributes:
        revision: the revision.
        proxies: sorted by name.
        leases: sorted by id.
        sessions: sorted by number.
    """

    __slots__ = ()
    revision: int
    proxies: Sequence[ProxyRow]
    leases: Sequence[LeaseRow]
    sessions: Sequence[SessionRow]


# -- status ---------------------------------------------------------------------------------


class Source(Result):
    """The session whose gossip said something.

    Attributes:
        session: its number.
        uid: its user id; None: the session ended too long ago.
        pid: its process id; None: likewise.
        agent: what it called itself, or its command.
        ended: whether it has ended.
        host: the host that it was on, in a fleet; empty: the daemon's own.
    """

    __slots__ = ()
    session: int
    uid: int | None
    pid: int | None
    agent: str
    ended: bool
    host: str = ""


class Group(Result, source=Source):
    """A group that has a tracked proxy.

    Attributes:
        group: its name.
        generation: its largest generation.
        tracked: how many of its proxies are tracked.
        desired: how many of them are desired.
        claimed: how many of the desired ones are claimed.
        source: who put a proxy into its largest generation last; None: unknown.
    """

    __slots__ = ()
    group: str
    generation: int
    tracked: int
    desired: int
    claimed: int
    source: Source | None


class GroupGap(Result):
    """A group of which a desired proxy was without a tunnel since the daemon started.

    Attributes:
        group: its name; None: all groups together that are not listed one by one.
        missing: how many of its desired proxies no lease holds now.
        missing_seconds: seconds for which they had none, each proxy counted.
    """

    __slots__ = ()
    group: str | None
    missing: int
    missing_seconds: float


class Reload(Result):
    """The result of a reload.

    Attributes:
        wall: when it was, in Unix time (seconds).
        changed: names of the settings that changed.
        refused: pairs of a setting's name and why it needs a restart.
        error: why nothing changed; None: it succeeded.
    """

    __slots__ = ()
    wall: float
    changed: Sequence[str]
    refused: Sequence[Sequence[str]]
    error: str | None


class UserUsage(Result):
    """How much a user uses of each quota.

    Attributes:
        uid: the user.
        host: the host of the user, in a fleet; empty: the daemon's own.
        exempt: whether no quota holds for it.
        sessions: open sessions.
        leases: leases that are held, and requests that wait for one.
        waiters: requests that wait for a lease.
        reply_bytes: bytes of remembered replies.
        subscriptions: subscriptions to events.
    """

    __slots__ = ()
    uid: int
    host: str = ""
    exempt: bool
    sessions: int
    leases: int
    waiters: int
    reply_bytes: int
    subscriptions: int


class Tunnels(Result):
    """What the leases say that have reported their tunnels alive.

    Attributes:
        reporting: how many there are.
        stale: how many of them were silent for too long, and are about to be released.
        reported: the point in time at which any of them reported last; None: not since the
            daemon started.
        rtt: their smoothed round-trip time in seconds, all reports taken together, or None.
    """

    __slots__ = ()
    reporting: int
    stale: int
    reported: float | None
    rtt: float | None


class Status(
    Result,
    reload=Reload,
    groups=Group,
    missing_by_group=GroupGap,
    users=UserUsage,
    pause=Pause,
    tunnels=Tunnels,
):
    """The daemon's counts.

    Attributes:
        revision: of the state that this describes.
        cluster: name of the cluster.
        server: version of the daemon's package.
        pid: process id of the daemon, as it sees itself.
        epoch: how often a daemon has started with this state.
        tracker_id: 16 hexadecimal digits, the same as long as the state is.
        uptime: seconds since it started.
        mode: `agent mesh` or `proxy peering`.
        connection_count: connections at most; 0 or less: one to every desired proxy.
        proxy_expiry: seconds after which a proxy expires whose gossip has no TTL.
        tracked: tracked proxies.
        desired: desired proxies.
        target: connections that should exist.
        claimed: claimed proxies, tracked or not.
        claimed_desired: desired proxies that are claimed.
        claimed_terminating: claimed proxies that are not desired because they are terminating.
        offered: claimed desired proxies whose leases are offered.
        missing_seconds: seconds for which wanted connections were missing since the daemon
            started, each one counted.
        full_at: when none was missing last, in seconds of CLOCK_BOOTTIME; None: never since then.
        inflight: leases in flight.
        waiting: requests that wait for a lease.
        sessions: sessions.
        last_lease: the lease id granted last; 0 before the first.
        requests: requests that this process of the daemon has handled.
        store: `ok`, `off` (the state is only in memory), or `failing`.
        store_problem: why it is failing, or None.
        store_bytes: size of the state file with its write-ahead log; None: no file.
        history: events that `log` can return.
        events: endpoint of the socket that publishes events; `""`: none.
        http: where the daemon serves metrics and the status page; `""`: nowhere.
        reloads: reloads since the daemon started.
        reload: the result of the last one, or None.
        group_count: groups that have a tracked proxy.
        groups: the first 100 of them by name.
        missing_by_group: the groups that missed something since the daemon started, at most 50 and
            one for all others; those that miss most now first, then by seconds.
        quotas: what each quota allows one user.
        user_count: users that have a session.
        users: the 10 users that are nearest to a quota, the nearest first.
        http_problem: why `http` cannot be served; None: it can be.
        pause: the pause of the host after failed dials, or None.
        paused_sessions: sessions that pause after failed dials of their own.
        tunnels: what leases have reported of their tunnels; None: none has.
        leader: the host that leads the fleet; empty: the daemon serves its own host alone.
    """

    __slots__ = ()
    revision: int
    cluster: str
    server: str
    pid: int
    epoch: int
    tracker_id: str
    uptime: float
    mode: str
    connection_count: int
    proxy_expiry: float
    tracked: int
    desired: int
    target: int
    claimed: int
    claimed_desired: int
    claimed_terminating: int = 0
    offered: int = 0
    missing_seconds: float = 0.0
    full_at: float | None = None
    inflight: int
    waiting: int
    sessions: int
    last_lease: int
    requests: int
    store: str
    store_problem: str | None
    store_bytes: int | None
    history: int
    events: str = ""
    http: str = ""
    reloads: int
    reload: Reload | None
    group_count: int
    groups: Sequence[Group]
    missing_by_group: Sequence[GroupGap] = ()
    quotas: Mapping[str, int]
    user_count: int
    users: Sequence[UserUsage] = ()
    http_problem: str | None
    pause: Pause | None
    paused_sessions: int = 0
    tunnels: Tunnels | None
    leader: str = ""


# -- explain --------------------------------------------------------------------------------


class RecentClaims(Result):
    """The last 256 claims that this process of the daemon handled.

    Attributes:
        claims: how many succeeded.
        duplicates: how many reached a proxy that another lease holds.
        since: the point in time of the first one, or None.
        met: the 5 most frequent proxies of the duplicates: pairs of a name and a number.
        expected: how many would have succeeded on average through a load balancer that reaches
            every known proxy equally often; None: the daemon does not know.
        expected_since_success: the same since the last one that succeeded.
    """

    __slots__ = ()
    claims: int
    duplicates: int
    since: float | None
    met: Sequence[Sequence[Any]]
    expected: float | None
    expected_since_success: float | None


class Outcomes(Result):
    """How the last dials ended, as far as this process of the daemon knows.

    Attributes:
        dials: how many, at most 40.
        ended: how many of them ended how: `claimed`, `held`, or why they failed.
    """

    __slots__ = ()
    dials: int
    ended: Mapping[str, int]


class Hint(Result):
    """What the last dials of the host, which all met held proxies, say of the load balancer.

    Attributes:
        balancer: `sticky` (the same few proxies were met again and again), or `even` (nearly all
            were met; those that are missing are away, or the balancer does not know them).
        in_a_row: how many dials they are.
        met: the proxies that the last 128 of them met, the most frequent first; 5 at most.
        met_count: how many different ones there are.
    """

    __slots__ = ()
    balancer: str
    in_a_row: int
    met: Sequence[str]
    met_count: int


class Explanation(Result, recent=RecentClaims, hint=Hint, pause=Pause, outcomes=Outcomes):
    """Why a lease would be granted or refused now.

    Attributes:
        revision: of the state that this describes.
        would_grant: whether `try_acquire` would grant a lease.
        reason: why: `bootstrap` or `need`; or why not: `satisfied`, `backoff`, `waiters`,
            `budget`, `store`.
        bootstrap: whether nothing is in flight, and nothing is claimed or nothing is tracked.
        need: whether `target` > `claimed_desired` - `offered` + `inflight`.
        connection_count: as in `Status`, and so are the next nine.
        tracked: tracked proxies.
        desired: desired proxies.
        target: connections that should exist.
        claimed: claimed proxies, tracked or not.
        claimed_desired: desired proxies that are claimed.
        claimed_terminating: claimed proxies that are not desired because they are terminating.
        offered: claimed desired proxies whose leases are offered.
        inflight: leases in flight.
        waiting: requests that wait for a lease.
        missing: names of desired proxies that no lease holds, at most 100.
        missing_count: how many there are.
        recent: how the last claims went.
        hint: what they say of the load balancer; None: nothing, or the daemon is too old.
        retry_after: seconds until the next dial may begin; None: neither a pause nor the dial
            budget refuses it.
        pause: the pause of the host after failed dials, or None.
        outcomes: how the last dials ended; None: no failed dial was reported.
    """

    __slots__ = ()
    revision: int
    would_grant: bool
    reason: str
    bootstrap: bool
    need: bool
    connection_count: int
    tracked: int
    desired: int
    target: int
    claimed: int
    claimed_desired: int
    claimed_terminating: int = 0
    offered: int = 0
    inflight: int
    waiting: int
    missing: Sequence[str]
    missing_count: int
    recent: RecentClaims
    hint: Hint | None
    retry_after: float | None
    pause: Pause | None
    outcomes: Outcomes | None


class Tombstone(Result):
    """What makes the daemon ignore old gossip about a forgotten proxy.

    Attributes:
        group: the group that it was in.
        generation: gossip of this generation or a smaller one is ignored.
        until: the point in time at which that ends.
    """

    __slots__ = ()
    group: str
    generation: int
    until: float


class ProxyTarget(Result):
    """Whether a dial is aimed at a proxy by its address, or why none is.

    Attributes:
        address: where it can be dialled itself.
        uid: the user whose gossip said so.
        host: the host of that user, in a fleet; empty: the daemon's own.
        state: `aimed`, `claimed`, `not_desired`, `off` (by the setting `targets`), `failed` (aims
            failed, and none follows until `until`), `paused` (other aims failed, and the next
            `untargeted` grants carry no target) or `ready`.
        lease: id of the lease in flight that is aimed at it, or None.
        failures: how many aims in a row failed.
        until: the point in time until which none follows for that, or None.
        untargeted: how many of the next grants carry no target.
    """

    __slots__ = ()
    address: str
    uid: int
    host: str = ""
    state: str
    lease: int | None
    failures: int
    until: float | None
    untargeted: int


class ProxyExplanation(
    Result,
    tombstone=Tombstone,
    proxy=ProxyRow,
    source=Source,
    group_source=Source,
    target=ProxyTarget,
):
    """All that is known of one proxy.

    Attributes:
        revision: of the state that this describes.
        name: the name that was asked for.
        meant: the name of the proxy that it means, or None.
        why: `claimed`, `missing`, `terminating`, `old_generation`, `forgotten` or `unknown`.
        claimed: whether a lease holds it.
        offered: whether that lease is offered.
        aliases: the other principals of its holder's claim.
        tombstone: what makes the daemon ignore old gossip about it, or None.
        proxy: its row.
        source: who mentioned it last; None: unknown.
        group_source: who put a proxy into the largest generation of its group last; None: unknown.
        only_source: whether nobody else has mentioned it since it is missing, although others have
            gossiped: it may be gone long since.
        target: whether a dial is aimed at it; None: its address is not known.
        reported: as in `LeaseRow` for the lease that holds it, and so are the next two.
        rtt: smoothed round-trip time of its tunnel in seconds, or None.
        stale: whether its lease was silent for too long, and is about to be released.
    """

    __slots__ = ()
    revision: int
    name: str
    meant: str | None
    why: str
    claimed: bool
    offered: bool = False
    aliases: Sequence[str]
    tombstone: Tombstone | None
    proxy: ProxyRow
    source: Source | None
    group_source: Source | None
    only_source: bool = False
    target: ProxyTarget | None
    reported: float | None
    rtt: float | None
    stale: bool = False


# -- fleet ----------------------------------------------------------------------------------


class FleetHost(Result):
    """A host of a fleet: its key is known, or it has sessions, or it was heard of.

    Attributes:
        host: its name.
        connected: whether the leader has heard of it within `host_ttl`.
        heard: seconds since it was heard of last; None: not since it was lost, or never.
        sessions: its sessions.
        admin: whether its admins are admins of the fleet.
        key: whether the leader has its public key; if not, nothing that it sends counts.
    """

    __slots__ = ()
    host: str
    connected: bool
    heard: float | None
    sessions: int
    admin: bool
    key: bool


class FleetCandidate(Result):
    """A candidate of a fleet that is there.

    Attributes:
        host: its host.
        leads: whether it leads; otherwise it stands by.
        version: of its trackd; empty: not known.
        format: of the state, that it reads and writes.
        since: Unix time since when it is there.
    """

    __slots__ = ()
    host: str
    leads: bool
    version: str
    format: int
    since: float


class EtcdMember(Result):
    """A member of etcd; what it did not say is None.

    Attributes:
        member: its address.
        answers: whether it does.
        version: of its program; empty when it does not answer.
        leads: whether it leads etcd.
        size: bytes of its database.
        in_use: bytes of these that are used.
        quota: bytes that its database may have.
    """

    __slots__ = ()
    member: str
    answers: bool
    version: str
    leads: bool
    size: int | None
    in_use: int | None
    quota: int | None


class EtcdAlarm(Result):
    """An alarm of etcd.

    Attributes:
        member: the address of the member that raised it, or its id.
        kind: `NOSPACE` or `CORRUPT`.
    """

    __slots__ = ()
    member: str
    kind: str


class EtcdHealth(Result, members=EtcdMember, alarms=EtcdAlarm):
    """How etcd is, as the leader has found it.

    Attributes:
        looked: seconds since the leader has looked.
        members: its members, as the leader's settings name them.
        alarms: its alarms.
        revisions: changes of etcd since its last compaction; None: not known.
        compacted: seconds since etcd was compacted, as far as this leader has seen: at most since
            it has looked first.
    """

    __slots__ = ()
    looked: float
    members: Sequence[EtcdMember]
    alarms: Sequence[EtcdAlarm]
    revisions: int | None
    compacted: float


class Fleet(Result, hosts=FleetHost, candidates=FleetCandidate, etcd=EtcdHealth):
    """Who leads a fleet, its hosts and candidates, and how etcd is.

    Attributes:
        revision: of the state that this describes.
        leader: the host that leads.
        term: the number of its term, larger than that of each before.
        uptime: seconds since it began to lead.
        failovers: how often a leader has taken the present state over.
        commits: transactions of this leader in etcd.
        commit_mean: seconds that one took, on average.
        commit_p50: seconds within which half of them were done, as far as a histogram tells.
        commit_p99: the same of 99 in 100.
        store_bytes: size of the state in etcd.
        hosts: the hosts, by name.
        candidates: the candidates that are there, by host.
        etcd: how etcd is; None: the leader has not looked yet.
    """

    __slots__ = ()
    revision: int
    leader: str
    term: int
    uptime: float
    failovers: int
    commits: int
    commit_mean: float
    commit_p50: float
    commit_p99: float
    store_bytes: int
    hosts: Sequence[FleetHost]
    candidates: Sequence[FleetCandidate] = ()
    etcd: EtcdHealth | None
