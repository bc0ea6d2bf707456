"""Sessions: which clients the daemon has, which leases they own, which requests they made.

Pure: no I/O, no clock of its own, no threads. A session is known by the token that its
client drew; people know it by its number. What a session remembers of its requests makes
each of them happen once, however often it is sent.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, NamedTuple, cast

from trackd.rules.backoff import Backoff
from trackd.rules.deadlines import Deadlines
from trackd.rules.user import User
from trackd.sessions.identity import Peer, Process
from trackd.sessions.use import Use
from trackd_client.wire.done import Done

#: How long, in seconds, and how many ended tokens are remembered.
ENDED_SECONDS = 600.0
ENDED_TOKENS = 10_000
#: Expired leases that a session remembers, so that a late claim differs from a wrong one.
EXPIRED_LEASES = 1024

#: What most sessions have of what comes and goes. It cannot be edited: whoever adds the first thing
#: puts a container of its own in the place, and whoever takes the last one puts this back.
_NONE: Final = cast("dict[int, Any]", MappingProxyType({}))
_NO_NUMBERS: Final = cast("set[int]", frozenset())

#: Notices that a restart may forget: the daemon gives such advice again.
UNSTORED_NOTICES: Final = frozenset({"should_close"})

#: Why a session ends: the code that the wire, logs and metrics use, and what it means.
REASONS = {
    "closed": "its client closed it",
    "process_exited": "its process exited",
    "no_heartbeat": "no heartbeat came in time",
    "admin": "an administrator ended it",
    "host_lost": "its host was lost",
}


def sentence_of(reason: str) -> str:
    """Return a sentence for people that says why a session has ended."""
    return f"the session has ended: {REASONS.get(reason, reason)}"


class KeptReply(NamedTuple):
    """The reply that a request got, and the lease that it granted, or None."""

    frame: bytes
    lease: int | None


@dataclass(slots=True, eq=False)
class Waiter:
    """A parked `acquire`.

    Attributes:
        session: the session that waits.
        seq: the number of the request.
        order: the number of its arrival.
        tag: its turn by rule 13, lower first.
        deadline: when it stops waiting, or None for never.
    """

    session: Session
    seq: int
    order: int
    tag: int
    deadline: float | None


class ParkedWatch(NamedTuple):
    """A parked `watch_session`: the number of the request, and the connection to answer."""

    seq: int
    route: bytes


@dataclass(slots=True)
class Live:
    """What a restart forgets of a session, since its client brings it again or nobody needs it.

    Attributes:
        requests: made since this daemon started.
        gossip: how many of those were gossip.
        deadline: when it ends unless a heartbeat comes, or None.
        overdue: whether its deadline has passed once without a look at what waits in the socket.
        done: numbers of requests whose replies the client has, or has given up; it runs ahead of
            the session's, which the next change of the session brings up.
        covered: numbers of kept replies among those, until that change.
        refusals: the replies that changed nothing, by the number of their request.
        repeatable: numbers of answered requests that may run again without harm, as reads may.
        routes: the connections of parked acquires whose clients have asked this daemon.
        watch: its parked `watch_session`, or None.
        advice: notices that the daemon gives again by itself.
        looked: the last held proxies that it asked for, in case a dial ends for that reason.
    """

    requests: int = 0
    gossip: int = 0
    deadline: float | None = None
    overdue: bool = False
    done: Done = field(default_factory=Done)
    covered: Sequence[int] = ()
    refusals: dict[int, bytes] = field(default_factory=lambda: _NONE)
    repeatable: set[int] = _NO_NUMBERS
    routes: dict[int, bytes] = field(default_factory=lambda: _NONE)
    watch: ParkedWatch | None = None
    advice: Sequence[dict[str, Any]] = ()
    looked: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class Session:
    """What the daemon keeps for one client, over restarts. There may be very many.

    Attributes:
        id: its number, for people.
        token: 16 bytes, the secret of its client; never logged.
        peer: who opened it.
        process: that process; None when the daemon cannot see it, and heartbeats keep the session.
        name: what the client calls itself.
        version: of the client library.
        labels: the client's own, for operators.
        opened: seconds of CLOCK_BOOTTIME.
        wall: the same moment in Unix time.
        command: what its process ran at that moment, for people; "" when that is hidden.
        leases: ids of the leases that it owns.
        expired: leases that were taken back from it because they never claimed.
        done: numbers of requests that it is done with, as far as that is stored.
        replies: the replies to its other requests that changed something, by number.
        parked: its acquires that wait, by number.
        notices: what the next `watch_session` will be answered with.
        backoff: its own pause after failed dials, or None.
        offered: which of its leases it offers to others (rule 20), or None.
        ended: whether it has ended.
        live: what a restart forgets.
        use: what all sessions of its user use; of its own until it is added to `Sessions`.
    """

    id: int
    token: bytes
    peer: Peer
    process: Process | None
    name: str
    version: str
    labels: dict[str, str]
    opened: float
    wall: float
    command: str = ""
    leases: set[int] = field(default_factory=set)
    expired: frozenset[int] = frozenset()
    done: Done = field(default_factory=Done)
    replies: dict[int, KeptReply] = field(default_factory=dict)
    parked: dict[int, Waiter] = field(default_factory=lambda: _NONE)
    notices: Sequence[dict[str, Any]] = ()
    backoff: Backoff | None = None
    offered: int | None = None
    ended: bool = False
    live: Live = field(default_factory=Live)
    use: Use = field(default_factory=Use)

    def keep_reply(self, seq: int, reply: KeptReply) -> None:
        """Keep the reply to a request that changed something."""
        self.replies[seq] = reply
        self.use.count_reply(reply.frame)

    def drop_reply(self, seq: int) -> None:
        """Drop a kept reply; KeyError when there is none."""
        self.use.drop_reply(self.replies.pop(seq).frame)

    def keep_refusal(self, seq: int, frame: bytes) -> None:
        """Keep the reply to a request that changed nothing."""
        live = self.live
        if not live.refusals:
            live.refusals = {}
        live.refusals[seq] = frame
        self.use.count_reply(frame)

    def drop_refusal(self, seq: int) -> None:
        """Drop such a reply, if there is one."""
        live = self.live
        if seq in live.refusals:
            self.use.drop_reply(live.refusals.pop(seq))
            live.refusals = live.refusals or _NONE

    def note_repeatable(self, seq: int, most: int) -> None:
        """Note that a request may run again without harm, unless `most` such are noted."""
        live = self.live
        if not live.repeatable:
            live.repeatable = {seq}
        elif len(live.repeatable) < most:
            live.repeatable.add(seq)

    def drop_repeatable(self, seq: int) -> None:
        """Forget such a request, which may be unknown."""
        live = self.live
        if seq in live.repeatable:
            live.repeatable.remove(seq)
            live.repeatable = live.repeatable or _NO_NUMBERS

    def park(self, waiter: Waiter) -> None:
        """Add an acquire that waits."""
        if not self.parked:
            self.parked = {}
        self.parked[waiter.seq] = waiter

    def unpark(self, seq: int) -> Waiter:
        """Take out an acquire that waits no longer; KeyError when there is none."""
        waiter = self.parked.pop(seq) if self.parked else self.parked[seq]
        self.parked = self.parked or _NONE
        return waiter

    def put_route(self, seq: int, route: bytes) -> None:
        """Note the connection of a parked acquire."""
        live = self.live
        if not live.routes:
            live.routes = {}
        live.routes[seq] = route

    def take_route(self, seq: int) -> bytes | None:
        """Forget the connection of a parked acquire, and return it, or None."""
        live = self.live
        if seq not in live.routes:
            return None
        route = live.routes.pop(seq)
        live.routes = live.routes or _NONE
        return route

    def unanswered(self) -> int:
        """Return how many requests wait, or have a reply that the session is not done with."""
        live = self.live
        return len(self.replies) - len(live.covered) + len(live.refusals) + len(self.parked)

    def cover(self, seqs: Sequence[int]) -> None:
        """Note kept replies that the session is done with, until they are dropped."""
        if not seqs:
            return
        if not self.live.covered:
            self.use.covering[self] = None
            if self.use.total is not None:
                self.use.total.covering[self] = None
        self.live.covered = [*self.live.covered, *seqs]

    def take_covered(self) -> Sequence[int]:
        """Return the numbers of kept replies that the session is done with, for a change."""
        covered, self.live.covered = self.live.covered, ()
        if covered:
            self.use.covering.pop(self, None)
            if self.use.total is not None:
                self.use.total.covering.pop(self, None)
        return covered


@dataclass(slots=True, eq=False)
class Lease:
    """A lease that a session owns. The tracker knows whether it has claimed.

    Attributes:
        session: its owner.
        granted: seconds of CLOCK_BOOTTIME.
        wall: the same moment in Unix time.
        principals: the first few of the names that its claim presented.
        timed_from: when `claim_timeout` began to run: at the grant, or later when the daemon
            could not serve claims meanwhile; a restart forgets it.
        overdue: whether that has passed once without a look at what waits in the socket.
    """

    session: Session
    granted: float
    wall: float
    principals: Sequence[str]
    timed_from: float
    overdue: bool = False


class Ended(NamedTuple):
    """What is remembered of a session that has ended."""

    reason: str
    at: float
    uid: int
    host: str = ""

    @property
    def user(self) -> User:
        """The user whose session it was."""
        return self.host, self.uid


class Sessions:
    """All sessions, and the tokens of those that have ended recently.

    Attributes:
        by_token: the sessions.
        ended: how those that have ended recently ended, by token.
        last_id: the highest number of a session so far.
        by_id: the sessions by their numbers.
        users: what each user uses who has a session.
        total: what all of them use together; only its bytes of replies are counted.
    """

    def __init__(self) -> None:
        self.by_token: dict[bytes, Session] = {}
        self.ended: OrderedDict[bytes, Ended] = OrderedDict()
        self.last_id = 0
        self.by_id: dict[int, Session] = {}
        self.users: dict[User, Use] = {}
        self.total = Use()
        self._by_process: dict[Process, set[Session]] = {}
        self._heartbeats = Deadlines[Session](_deadline_of)

    def __len__(self) -> int:
        return len(self.by_token)

    def __iter__(self) -> Iterator[Session]:
        return iter(self.by_token.values())

    def use_of(self, user: User) -> Use:
        """Return what a user uses; nothing for one without a session."""
        return self.users.get(user) or Use(user, self.total)

    def add(self, session: Session) -> None:
        """Add a session that has no replies yet."""
        self.by_token[session.token] = session
        self.by_id[session.id] = session
        use = session.use = self.users.setdefault(session.peer.user, self.use_of(session.peer.user))
        use.sessions += 1
        self.last_id = max(self.last_id, session.id)
        if session.process is not None:
            known = self._by_process.setdefault(session.process, set())
            other = next(iter(known), session)  # of many sessions, both are kept once
            session.process = other.process
            session.peer = other.peer if other.peer == session.peer else session.peer
            known.add(session)

    def remove(self, session: Session, reason: str, now: float) -> None:
        """Remove a session and remember its end."""
        session.ended = True
        del self.by_token[session.token]
        del self.by_id[session.id]
        use = session.use
        use.sessions -= 1
        session.take_covered()
        for seq in list(session.replies):
            session.drop_reply(seq)
        for seq in list(session.live.refusals):
            session.drop_refusal(seq)
        if not use.sessions:
            del self.users[use.user]
        self.ended[session.token] = Ended(reason, now, session.peer.uid, session.peer.host)
        if session.process is not None:
            known = self._by_process[session.process]
            known.discard(session)
            if not known:
                del self._by_process[session.process]

    def expect_heartbeat(self, session: Session, deadline: float) -> None:
        """End a session at its deadline unless a heartbeat comes before."""
        is_new = session.live.deadline is None
        session.live.deadline, session.live.overdue = deadline, False
        if is_new:
            self._heartbeats.add(deadline, session.id, session)

    def long_ended(self, now: float) -> list[bytes]:
        """Return the tokens of the ended sessions that are too old or too many, oldest first."""
        too_many = len(self.ended) - ENDED_TOKENS
        gone = []
        for i, (token, ended) in enumerate(self.ended.items()):
            if i >= too_many and ended.at + ENDED_SECONDS >= now:
                break
            gone.append(token)
        return gone

    def of_process(self, process: Process) -> list[Session]:
        """Return the sessions that a process opened, oldest first."""
        return sorted(self._by_process.get(process, ()), key=lambda session: session.id)

    def processes(self) -> list[Process]:
        """Return every process that has a session."""
        return list(self._by_process)

    def has_process(self, process: Process) -> bool:
        """Return whether a process has a session."""
        return process in self._by_process

    def silent(self, now: float) -> list[Session]:
        """Return the sessions whose heartbeats have stopped for too long, oldest first."""
        return self._heartbeats.past(now)

    def next_heartbeat(self) -> float | None:
        """Return when the first session falls silent, or None."""
        return self._heartbeats.next()


def _deadline_of(session: Session) -> float | None:
    return None if session.ended else session.live.deadline
