"""Sessions: which clients the daemon has, which leases they own, which requests they made.

Pure: no I/O, no clock of its own, no threads. A session is known by the token that its
client drew; people know it by its number. What a session remembers of its requests makes
each of them happen once, however often it is sent.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush, heapreplace
from typing import Any, Final, NamedTuple

from trackd.sessions.identity import Peer, Process
from trackd.sessions.use import Use
from trackd_client.wire.done import Done

#: How long, in seconds, and how many ended tokens are remembered.
ENDED_SECONDS = 600.0
ENDED_TOKENS = 10_000
#: Expired leases that a session remembers, so that a late claim differs from a wrong one.
EXPIRED_LEASES = 1024

#: Notices that a restart may forget: the daemon gives such advice again.
UNSTORED_NOTICES: Final = frozenset({"should_close"})

#: Why a session ends: the code that the wire, logs and metrics use, and what it means.
REASONS = {
    "closed": "its client closed it",
    "process_exited": "its process exited",
    "no_heartbeat": "no heartbeat came in time",
    "admin": "an administrator ended it",
}


def sentence_of(reason: str) -> str:
    """Return a sentence for people that says why a session has ended."""
    return f"the session has ended: {REASONS.get(reason, reason)}"


class Remembered(NamedTuple):
    """The reply that a request got.

    Attributes:
        frame: as it was sent.
        stored: whether the store holds it too: the reply of a mutation.
        lease: the lease that it granted, or None.
    """

    frame: bytes
    stored: bool
    lease: int | None


@dataclass(slots=True, eq=False)
class Waiter:
    """A parked `acquire`.

    Attributes:
        session: the session that waits.
        seq: the number of the request.
        order: the number of its arrival; kept across restarts.
        tag: its turn by rule 13, lower first; kept across restarts.
        deadline: when it stops waiting, or None for never.
        route: the connection to answer, or None until the client has sent it again.
    """

    session: Session
    seq: int
    order: int
    tag: int
    deadline: float | None
    route: bytes | None


class ParkedWatch(NamedTuple):
    """A parked `watch_session`: the number of the request, and the connection to answer."""

    seq: int
    route: bytes


class Acknowledged(NamedTuple):
    """What `done` of a request has changed.

    Attributes:
        given_up: numbers of parked requests that it covers, which the client has given up.
        unstored: whether it covers a number that would run again after a restart, unless the
            store takes it in: one that was refused, or that has never come.
    """

    given_up: list[int]
    unstored: bool


_NOTHING_ACKNOWLEDGED: Final = Acknowledged([], unstored=False)


@dataclass(slots=True, eq=False)
class Session:
    """What the daemon keeps for one client. There may be very many, so empty fields cost little.

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
        requests: made since this daemon started.
        gossip: how many of those were gossip.
        deadline: when it ends unless a heartbeat comes, or None.
        leases: ids of the leases that it owns.
        expired: leases that were taken back from it because they never claimed.
        done: numbers of requests whose replies the client has, or has given up.
        replies: the replies to its other requests, by number.
        repeatable: numbers of answered requests that may run again without harm, as reads may.
        parked: its acquires that wait, by number.
        watch: its parked `watch_session`, or None.
        notices: what the next `watch_session` will be answered with.
        overdue: whether its deadline has passed once without a look at what waits in the socket.
        ended: whether it has ended.
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
    requests: int = 0
    gossip: int = 0
    deadline: float | None = None
    leases: set[int] = field(default_factory=set)
    expired: frozenset[int] = frozenset()
    done: Done = field(default_factory=Done)
    replies: dict[int, Remembered] = field(default_factory=dict)
    repeatable: set[int] = field(default_factory=set)
    parked: dict[int, Waiter] = field(default_factory=dict)
    watch: ParkedWatch | None = None
    notices: Sequence[dict[str, Any]] = ()
    overdue: bool = False
    ended: bool = False
    use: Use = field(default_factory=Use)

    def remember(self, seq: int, reply: Remembered) -> None:
        """Keep the reply to a request until it is done."""
        self.replies[seq] = reply
        self.use.count_reply(reply.frame)

    def note_repeatable(self, seq: int, most: int) -> None:
        """Note that a request may run again without harm, unless `most` such are noted."""
        if len(self.repeatable) < most:
            self.repeatable.add(seq)

    def acknowledge(self, ranges: list[int], most: int | None = None) -> Acknowledged:
        """Take in `done` of a request; drop the replies that it covers.

        Args:
            ranges: as on the wire.
            most: ranges that may be remembered after that; None for any number.

        Raises:
            ProtocolError: `limit_exceeded`; then nothing has changed.
        """
        before, size = self.done.ranges, self.done.size()
        known = before[1] if len(before) == 2 and before[0] == 1 else 0
        if not self.done.update(ranges, most):
            return _NOTHING_ACKNOWLEDGED
        harmless = self._drop_covered(known) if self.replies or self.repeatable else 0
        if self.watch is not None and self.watch.seq in self.done:
            self.watch = None
        given_up = [seq for seq in self.parked if seq in self.done] if self.parked else []
        return Acknowledged(given_up, unstored=self.done.size() - size > harmless)

    def _drop_covered(self, known: int) -> int:
        """Drop what is kept of the requests that are done.

        Args:
            known: the requests from 1 to this number were done before.

        Returns:
            For how many of them a restart does no harm.
        """
        done, now = self.done, self.done.ranges
        kept = len(self.replies) + len(self.repeatable)
        covered: Iterable[int]
        if len(now) == 2 and now[0] == 1 and now[1] - known <= kept:  # nearly always
            covered = range(known + 1, now[1] + 1)
        else:
            covered = [seq for seq in (*self.replies, *self.repeatable) if seq in done]
        harmless = 0
        for seq in covered:
            reply = self.replies.pop(seq, None)
            if reply is not None:
                self.use.drop_reply(reply.frame)
                harmless += reply.stored
            elif seq in self.repeatable:
                self.repeatable.discard(seq)
                harmless += 1
        return harmless


@dataclass(slots=True, eq=False)
class Lease:
    """A lease that a session owns. The tracker knows whether it has claimed.

    Attributes:
        session: its owner.
        granted: seconds of CLOCK_BOOTTIME.
        wall: the same moment in Unix time.
        principals: the first few of the names that its claim presented.
        timed_from: when `claim_timeout` began to run: at the grant, or later when the daemon
            could not serve claims meanwhile.
        overdue: whether that has passed once without a look at what waits in the socket.
    """

    session: Session
    granted: float
    wall: float
    principals: list[str]
    timed_from: float
    overdue: bool = False


class Ended(NamedTuple):
    """What is remembered of a session that has ended."""

    reason: str
    at: float
    uid: int


class Sessions:
    """All sessions, and the tokens of those that have ended recently.

    Attributes:
        by_token: the sessions.
        ended: how those that have ended recently ended, by token.
        last_id: the highest number of a session so far.
        by_id: the sessions by their numbers.
        users: what each user uses who has a session, by uid.
        total: what all of them use together; only its bytes of replies are counted.
    """

    def __init__(self) -> None:
        self.by_token: dict[bytes, Session] = {}
        self.ended: OrderedDict[bytes, Ended] = OrderedDict()
        self.last_id = 0
        self.by_id: dict[int, Session] = {}
        self.users: dict[int, Use] = {}
        self.total = Use()
        self._by_process: dict[Process, set[Session]] = {}
        # A heap of deadlines, each as it was at some time: deadlines only move into the future, and
        # an entry is corrected when it comes to the top. So no call walks all sessions.
        self._heartbeats: list[tuple[float, int, Session]] = []

    def __len__(self) -> int:
        return len(self.by_token)

    def __iter__(self) -> Iterator[Session]:
        return iter(self.by_token.values())

    def use_of(self, uid: int) -> Use:
        """Return what a user uses; nothing for one without a session."""
        return self.users.get(uid) or Use(uid, self.total)

    def add(self, session: Session) -> bool:
        """Add a session; return whether it is the first one of its process."""
        self.by_token[session.token] = session
        self.by_id[session.id] = session
        use = session.use = self.users.setdefault(session.peer.uid, self.use_of(session.peer.uid))
        use.sessions += 1
        for reply in session.replies.values():
            use.count_reply(reply.frame)
        self.last_id = max(self.last_id, session.id)
        if session.process is None:
            if session.deadline is not None:
                heappush(self._heartbeats, (session.deadline, session.id, session))
            return False
        known = self._by_process.setdefault(session.process, set())
        known.add(session)
        return len(known) == 1

    def remove(self, session: Session, reason: str, now: float) -> bool:
        """Remove a session and remember its end; return whether its process has no other one."""
        session.ended = True
        del self.by_token[session.token]
        del self.by_id[session.id]
        use = session.use
        use.sessions -= 1
        for reply in session.replies.values():
            use.drop_reply(reply.frame)
        if not use.sessions:
            del self.users[use.uid]
        self.ended[session.token] = Ended(reason, now, session.peer.uid)
        if session.process is None:
            return False
        known = self._by_process[session.process]
        known.discard(session)
        if not known:
            del self._by_process[session.process]
        return not known

    def forget_ended(self, now: float) -> list[bytes]:
        """Forget the ended sessions that are too old or too many; return their tokens."""
        gone = []
        while self.ended:
            token, ended = next(iter(self.ended.items()))
            if len(self.ended) <= ENDED_TOKENS and ended.at + ENDED_SECONDS >= now:
                break
            del self.ended[token]
            gone.append(token)
        return gone

    def of_process(self, process: Process) -> list[Session]:
        """Return the sessions that a process opened, oldest first."""
        return sorted(self._by_process.get(process, ()), key=lambda session: session.id)

    def processes(self) -> list[Process]:
        """Return every process that has a session."""
        return list(self._by_process)

    def silent(self, now: float) -> list[Session]:
        """Return the sessions whose heartbeats have stopped for too long, oldest first."""
        late = []
        while (first := self._first_heartbeat()) is not None and first[0] < now:
            late.append(heappop(self._heartbeats))
        for entry in late:
            heappush(self._heartbeats, entry)
        return sorted((session for _, _, session in late), key=lambda session: session.id)

    def next_heartbeat(self) -> float | None:
        """Return when the first session falls silent, or None."""
        first = self._first_heartbeat()
        return None if first is None else first[0]

    def _first_heartbeat(self) -> tuple[float, int, Session] | None:
        """Return the top of the heap, once it holds the present deadline of a living session."""
        heap = self._heartbeats
        while heap:
            deadline, number, session = heap[0]
            if session.ended or session.deadline is None:
                heappop(heap)
            elif session.deadline > deadline:
                heapreplace(heap, (session.deadline, number, session))
            else:
                return heap[0]
        return None
