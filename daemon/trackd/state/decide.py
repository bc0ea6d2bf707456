"""Decides which changes a request, or the time gone by, makes.

`Decisions` reads the state, and makes each change through `do`, which applies it at once and adds
it to the batch; nothing here edits the durable state in another way. Requests that were parked and
are answered by what was decided are left in `finished` and `noticed`, for those who know the wire.
No I/O; only the actor's thread runs it.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from trackd.config.settings import Config
from trackd.rules.tombstones import Tombstone
from trackd.rules.tracker import GossipRow, last_rows, runs
from trackd.sessions.identity import Peer, Process
from trackd.sessions.sessions import ParkedWatch, Session, Waiter
from trackd.state import changes
from trackd.state.advice import Advice
from trackd.state.apply import apply
from trackd.state.changes import By, Change, Key, Moment
from trackd.state.counters import Metrics
from trackd.state.sources import source_of
from trackd.state.state import State
from trackd_client import __version__
from trackd_client.wire.done import Done

#: Seconds between two sweeps while no request waits for a lease.
SWEEP_INTERVAL: Final = 1.0
#: Least seconds that an overdue session gets when a sweep comes too late.
_LEAST_MORE_SECONDS: Final = 1.0
#: Notices kept for a session that does not fetch them.
MOST_NOTICES: Final = 1024
#: Principals kept of a claim, and claims kept for `explain`.
MOST_ALIASES: Final = 8
RECENT_CLAIMS: Final = 256
#: Expired proxies of one change.
_MOST_EXPIRED: Final = 1000
#: Replies that a session is done with, and that are kept until its next change.
_MOST_COVERED: Final = 16


class RecentClaim(NamedTuple):
    """How a claim went.

    Attributes:
        time: when.
        name: the name that was meant.
        held: whether another lease held it.
        chance: the share of the known proxies that were missing then: the probability that a dial
            through a fair load balancer reaches one; 0 for an adoption, which is no dial.
    """

    time: float
    name: str
    held: bool
    chance: float = 0.0


class Finished(NamedTuple):
    """A parked acquire that waits no longer, without its client having given it up.

    Attributes:
        session: whose.
        seq: the number of the request.
        route: the connection to answer, or None when the client has not sent it to this daemon.
        lease: the lease that was granted, or None.
        ended: why its session has ended, or None.
    """

    session: Session
    seq: int
    route: bytes | None
    lease: int | None
    ended: str | None = None


class Decisions:
    """The decisions of one daemon about one state.

    Attributes:
        now: the moment of the message that is handled: seconds of CLOCK_BOOTTIME. It stands still
            meanwhile, or a proxy might expire within one grant, after the purge.
        batch: the changes since the last commit.
        began: when this daemon began.
        made: how many changes were made so far.
        finished: parked acquires to answer.
        noticed: sessions whose parked `watch_session` is to be answered; for one that has ended,
            with the reason.
        left: token, number and connection of the acquires that stopped to wait in this batch.
        recent: how the last claims went.
        touch: called with a key of the checkpoint before what it stands for is edited.
    """

    def __init__(
        self,
        state: State,
        config: Config,
        metrics: Metrics,
        touch: Callable[[Key], None],
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Begin to decide.

        Args:
            state: what to read and to change.
            config: the settings.
            metrics: what is counted.
            touch: called with a key of the checkpoint before what it stands for is edited.
            wall: returns Unix time.
        """
        self.state = state
        self.config = config
        self.now = 0.0
        self.batch: list[Moment] = []
        self.began = 0.0
        self.made = 0
        self.finished: list[Finished] = []
        self.noticed: dict[Session, str | None] = {}
        self.left: list[tuple[bytes, int, bytes]] = []
        self.recent: deque[RecentClaim] = deque(maxlen=RECENT_CLAIMS)
        self.advice = Advice(state.tracker, state.leases, config.disconnect_threshold)
        self._metrics = metrics
        self.touch = touch
        self._wall = wall
        self._moment: list[Change] | None = None
        self._swept = 0.0
        state.tracker.proxy_expiry = config.proxy_expiry

    def begin(self, now: float) -> None:
        """Begin to handle a message, at a moment."""
        self.now = now
        self._moment = None

    def do(self, change: Change) -> None:
        """Make a change: apply it, and add it to the batch."""
        for key in change.edits():
            self.touch(key)
        if self._moment is None:
            self._moment = []
            self.batch.append(Moment(self.now, self._wall(), self._moment))
        moment = self.batch[-1]
        apply(self.state, change, moment.at, moment.wall)
        self._moment.append(change)
        self.made += 1

    def take(self) -> list[Moment]:
        """Return the changes of the batch, and begin a new one."""
        batch, self.batch, self._moment = self.batch, [], None
        return batch

    # -- sessions ---------------------------------------------------------------------

    def open_session(
        self,
        token: bytes,
        peer: Peer,
        process: Process | None,
        name: str,
        version: str,
        labels: dict[str, str],
        command: str,
    ) -> Session:
        """Begin a session; the token must be new."""
        start = None if process is None else process.start
        number = self.state.sessions.last_id + 1
        self.do(changes.SessionOpened(token, number, *peer, start, name, version, labels, command))
        session = self.state.sessions.by_token[token]
        self.note_sign_of_life(session)
        return session

    def end_session(self, session: Session, reason: str, by: Peer | None = None) -> list[int]:
        """End a session and release its leases, in one batch; return their ids.

        Args:
            session: which.
            reason: one of `trackd.sessions.sessions.REASONS`.
            by: the administrator who asked for it, or None.
        """
        for waiter in list(session.parked.values()):
            self._finish(waiter, ended=reason)
        freed = sorted(session.leases)
        for lease in freed:
            self._free(session, lease, reason, by)
        self.do(
            changes.SessionEnded(
                session.token,
                session.id,
                reason,
                session.name,
                session.peer.pid,
                None if session.process is None else session.process.start,
                session.peer.uid,
                list(session.replies),
                peer_of(by),
            )
        )
        if session.live.gossip or session.opened < self.began:  # it may have before the start
            dropped = self.state.sources.too_many()
            self.do(changes.SourceRemembered(session.id, *source_of(session), dropped))
        if session.live.watch is not None:
            self.noticed[session] = reason
        self._drop_long_ended()  # here too: without anything tracked nothing is ever swept
        return freed

    def note_sign_of_life(self, session: Session) -> None:
        """Move the heartbeat deadline of a session; without effect where its process is watched."""
        if session.process is None:
            self.state.sessions.expect_heartbeat(session, self.now + self.config.heartbeat_ttl)

    def remember(
        self, session: Session, seq: int, frame: bytes, *, stored: bool, lease: int | None
    ) -> None:
        """Keep the reply of a request until its session is done with it.

        Args:
            session: whose.
            seq: the number of the request.
            frame: the reply.
            stored: whether a restart must bring it back: the request has changed something.
            lease: the lease that it grants, or None.
        """
        if stored:
            done = list(session.live.done.ranges)
            covered = session.covered()
            self.do(changes.Replied(session.token, seq, frame, lease, done, covered))
        else:
            session.keep_refusal(seq, frame)

    def acknowledge(self, session: Session, ranges: list[int]) -> None:
        """Take in the numbers that a session is done with; the acquires among them are given up.

        A number that would run again after a restart is stored at once: one that was refused, or
        that has never come. The others wait for the session's next change.

        Raises:
            ProtocolError: `limit_exceeded`; then nothing has changed.
        """
        live = session.live
        known = live.done.ranges
        if ranges == known:
            return
        last = known[1] if known else 0
        kept = len(session.replies) + len(live.repeatable)
        if (  # nearly always: one range from 1 has grown by a few numbers
            len(ranges) == 2
            and ranges[0] == 1
            and last < ranges[1] <= last + kept + 1
            and (not known or (len(known) == 2 and known[0] == 1))
        ):
            live.done.ranges = ranges
            unstored = not self._forget(session, range(last + 1, ranges[1] + 1))
        else:
            before = Done(known)
            if not live.done.update(ranges, self.config.max_done_ranges):
                return
            every = {*session.replies, *live.repeatable, *live.refusals}
            fresh = [seq for seq in every if seq in live.done and seq not in before]
            unstored = live.done.size() - before.size() > len(fresh)
            unstored = not self._forget(session, fresh) or unstored
        if live.watch is not None and live.watch.seq in live.done:
            live.watch = None
        for seq in [seq for seq in session.parked if seq in live.done] if session.parked else ():
            self._unpark(session.parked[seq])
        covered = session.covered()
        if unstored or len(covered) > _MOST_COVERED:
            self._store_done(session, covered)

    def _forget(self, session: Session, fresh: Sequence[int]) -> bool:
        """Forget refusals and reads that are done.

        Returns:
            Whether none of the numbers would run again after a restart: each was a read, or its
            reply is stored.
        """
        harmless = True
        repeatable = session.live.repeatable
        for seq in fresh:
            if seq in repeatable:
                repeatable.remove(seq)
            elif seq not in session.replies:
                session.drop_refusal(seq)
                harmless = False
        return harmless

    def _store_done(self, session: Session, covered: list[int]) -> None:
        self.do(changes.Acknowledged(session.token, list(session.live.done.ranges), covered))

    # -- gossip -----------------------------------------------------------------------

    def mention(self, session: Session, rows: Sequence[GossipRow]) -> None:
        """Take in gossip that only moves expiries: `Tracker.unknown` has found nothing in it."""
        self._count_gossip(session, rows)
        self._mention(session, rows)

    def track(self, session: Session, rows: Sequence[GossipRow]) -> int:
        """Take in checked gossip; return how many proxies changed."""
        self._count_gossip(session, rows)
        tracker, tombstones = self.state.tracker, self.state.tombstones
        if tombstones:
            rows = [row for row in rows if not tombstones.keeps_away(row, self.now)]
        rows = last_rows(rows)
        changed = tracker.changed_by(rows)
        if not changed:
            if rows:
                self._mention(session, rows)
            return 0
        for i, before in changed:
            self._metrics.lowered_generations += (
                before is not None and before.group == rows[i][1] and rows[i][2] < before.generation
            )
        mentions = tracker.mentions
        self.do(
            changes.Tracked(
                mentions.last + 1,
                session.id,
                tracker.proxy_expiry,
                rows,
                [i if before is None else (i, *before) for i, before in changed],
                mentions.left_by([row[0] for row in rows]),
            )
        )
        self.topology_changed()
        return len(changed)

    def forget(self, name: str, by: Peer) -> Tombstone | None:
        """Drop a proxy, and keep old gossip from bringing it back until its TTL has passed.

        Returns:
            Its tombstone; None when it is not tracked.
        """
        tracker, tombstones = self.state.tracker, self.state.tombstones
        if tracker.get(name) is None:
            return None
        mention = tracker.mentions.of(name)
        place = tracker.place(name)
        until = self.now + mention.ttl
        dropped = tombstones.too_many(name)
        self.do(changes.Forgotten(name, *place, until, [mention.number], dropped, peer_of(by)))
        self.topology_changed()
        return tombstones.get(name)

    def set_count(self, count: int) -> None:
        """Set the connection count. It survives restarts until the configured count changes."""
        before = self.state.tracker.connection_count
        if count != before:
            self.do(changes.CountSet(count, before))
            self.topology_changed()

    # -- leases -----------------------------------------------------------------------

    def try_acquire(self, session: Session) -> int | None:
        """Grant a lease now, or refuse it while others wait."""
        if self.state.queue:
            self.serve_waiters()
        return None if self.state.queue else self._try_grant(session)

    def refusal(self) -> str:
        """Return why no lease is granted now: `waiters`, `budget` or `satisfied`."""
        if self.state.queue:
            return "waiters"
        return "satisfied" if self._budget_wait() is None else "budget"

    def retry_after(self) -> float | None:
        """Return the seconds after which the dial budget has a token for one more, or None."""
        wait = self._budget_wait()
        return None if wait is None else wait + len(self.state.queue) / self.state.budget.rate

    def claim_by(self, lease: int) -> float | None:
        """Return when a lease in flight is taken back, or None for never."""
        timeout = self.config.claim_timeout
        return self.state.leases[lease].timed_from + timeout if timeout > 0 else None

    def park(self, session: Session, seq: int, deadline: float | None, route: bytes) -> None:
        """Put an acquire at the end of the queue."""
        queue = self.state.queue
        tag = queue.next_tag(session)
        self.do(changes.Parked(session.token, seq, queue.last_order + 1, deadline, tag))
        session.live.routes[seq] = route

    def serve_waiters(self) -> None:
        """Grant leases to waiters, in their turn by rule 13, for as long as the rules allow."""
        while (waiter := self.state.queue.first()) is not None:
            lease = self._try_grant(waiter.session)
            if lease is None:
                return
            self._finish(waiter, lease)

    def claim(
        self, session: Session, lease: int, principals: list[str]
    ) -> tuple[str | None, str | None]:
        """Claim by rule 8.

        Returns:
            The name that the principals mean, and why it cannot be claimed, or None when it is.
        """
        tracker = self.state.tracker
        name = tracker.resolve(principals)
        if lease not in session.leases:
            return name, "lease_gone"
        if tracker.lease_name(lease) is not None:
            return name, "has_claimed"
        if name is None:
            return None, "no_name"
        chance = self._chance_of_missing()
        if tracker.holder(name) is not None:
            self._note_duplicate(name, chance)
            return name, "held"
        self._claim(session, lease, name, principals, chance)
        return name, None

    def release(self, session: Session, lease: int) -> bool:
        """Release a lease; return whether this session owned it."""
        if lease not in session.leases:
            return False
        self._free(session, lease, "asked")
        return True

    def force_release(self, lease: int, by: Peer) -> tuple[Session, str | None] | None:
        """Take a lease back from its owner, and notify that session.

        Returns:
            The owner and the name that the lease held; None when there is no such lease.
        """
        held = self.state.leases.get(lease)
        if held is None:
            return None
        name = self.state.tracker.lease_name(lease)
        self._free(held.session, lease, "admin", by)
        self.notify(held.session, {"notice": "lease_revoked", "lease": lease})
        return held.session, name

    def adopt(self, session: Session, principals: list[str]) -> tuple[int | None, str | None]:
        """Take up an open tunnel by rule 14; return the lease, or None, and the name meant."""
        tracker = self.state.tracker
        name = tracker.resolve(principals)
        if name is None:
            return None, None
        if tracker.holder(name) is not None:
            self._note_duplicate(name)
            return None, name
        lease = self._grant(session, "adopt")
        self._claim(session, lease, name, principals)
        return lease, name

    def give_up(self, session: Session, seq: int) -> bool:
        """Cancel an earlier request: free what it was granted, and let it never run again."""
        live = session.live
        if seq in live.done:
            return False
        live.done.update([seq, seq], self.config.max_done_ranges)
        waiter = session.parked.get(seq)
        reply = session.replies.get(seq)
        if waiter is not None:
            self._unpark(waiter)
        if reply is not None and reply.lease in session.leases:
            self._free(session, reply.lease, "given_up")
        session.drop_refusal(seq)
        live.repeatable.discard(seq)
        self._store_done(session, session.covered())
        return True

    # -- time -------------------------------------------------------------------------

    def sweep(self, late: float = 0.0) -> list[Session]:
        """Do everything that is due by now; return the silent sessions, which were ended.

        Args:
            late: seconds by which this sweep comes too late, because the daemon or the host did
                not run. Heartbeats and claims of that time may still lie in the socket, so
                what seems overdue gets more time, once: a lease all of `claim_timeout`, a
                session as long as was lost, at least a second, at most its time to live.
        """
        now, state = self.now, self.state
        self._swept = now
        self._purge()
        for waiter in state.queue.late(now):
            self._finish(waiter)
        silent = state.sessions.silent(now)
        if late > 0:
            more = min(max(late, _LEAST_MORE_SECONDS), self.config.heartbeat_ttl)
            for session in silent:
                if not session.live.overdue:
                    session.live.overdue, session.live.deadline = True, now + more
            silent = state.sessions.silent(now)
        for session in silent:
            self.end_session(session, "no_heartbeat")
        if self.config.claim_timeout > 0:
            self._expire_leases(now - self.config.claim_timeout, late=late > 0)
        self._drop_long_ended()
        past, past_groups = state.tombstones.past(now), state.tombstones.past_groups(now)
        if past or past_groups:
            self.do(changes.TombstonesDropped(past, past_groups))
        surplus = self.advice.choose(now)
        if surplus is not None:
            notice = {"notice": "should_close", "lease": surplus}
            self.advise(state.leases[surplus].session, notice)
        return silent

    def restart_timers(self) -> None:
        """Give each silent session and each lease in flight its whole time again.

        For when the daemon begins to serve, or can store changes again: what agents sent before
        was not read or not served.
        """
        for session in self.state.sessions:
            self.note_sign_of_life(session)
        for lease in self.state.in_flight:
            self.state.leases[lease].timed_from = self.now

    def next_timer(self) -> float | None:
        """Return when the next sweep will have something to do, or None."""
        queue, state = self.state.queue, self.state
        expiry = state.tracker.next_expiry
        if expiry is not None and not queue:
            expiry = max(expiry, self._swept + SWEEP_INTERVAL)
        times = [
            expiry,
            queue.next_deadline(),
            state.sessions.next_heartbeat(),
            self.advice.due(),
        ]
        if queue and (wait := self._budget_wait()) is not None:
            times.append(self.now + wait)
        if self.config.claim_timeout > 0 and state.in_flight:
            oldest = state.leases[next(iter(state.in_flight))].timed_from
            times.append(oldest + self.config.claim_timeout)
        return min((moment for moment in times if moment is not None), default=None)

    def reconfigure(self, config: Config) -> None:
        """Take over a configuration that differs only in live settings."""
        before, self.config = self.config, config
        self.state.tracker.proxy_expiry = config.proxy_expiry
        if config.connection_count != before.connection_count:
            self.set_count(config.connection_count)
            self.do(changes.Configured(config.connection_count))
        if (config.dial_rate, config.dial_burst) != (before.dial_rate, before.dial_burst):
            self.state.budget.change(config.dial_rate, config.dial_burst, self.now)
            self.do(changes.DialSpent(*self.state.budget.level()))

    def begin_epoch(self, tracker_id: str, before: int | None) -> None:
        """Count a start of the daemon.

        Args:
            tracker_id: the id of the state when it is an empty one.
            before: the connection count that was stored; None in an empty state.
        """
        state, configured = self.state, self.config.connection_count
        count = configured if state.configured_count != configured or before is None else before
        self.do(
            changes.EpochBegan(
                state.epoch + 1,
                state.tracker_id or tracker_id,
                self.config.cluster_name,
                count,
                configured,
                before,
                __version__,
                os.getpid(),
            )
        )

    # -- notices ----------------------------------------------------------------------

    def watch(self, session: Session, watch: ParkedWatch) -> ParkedWatch | None:
        """Park a `watch_session`; return the earlier one that it replaces, or None."""
        earlier, session.live.watch = session.live.watch, watch
        if session.notices or session.live.advice:
            self.noticed[session] = None
        return None if earlier is None or earlier.seq == watch.seq else earlier

    def notify(self, session: Session, notice: dict[str, Any]) -> None:
        """Notify a session: at once when it has a parked watch, otherwise when it parks one."""
        if len(session.notices) < MOST_NOTICES:
            self.do(changes.Notified(session.token, notice))
        if session.live.watch is not None:
            self.noticed[session] = None

    def advise(self, session: Session, notice: dict[str, Any]) -> None:
        """Notify a session of something that a restart may forget, since it comes again."""
        if len(session.live.advice) < MOST_NOTICES:
            session.live.advice = [*session.live.advice, notice]
        if session.live.watch is not None:
            self.noticed[session] = None

    def fetch(self, session: Session) -> list[dict[str, Any]]:
        """Return the notices of a session, which are sent to it now."""
        notices = [*session.notices, *session.live.advice]
        session.live.advice = ()
        if session.notices:
            self.do(changes.Fetched(session.token))
        return notices

    # -- inside -----------------------------------------------------------------------

    def _count_gossip(self, session: Session, rows: Sequence[GossipRow]) -> None:
        session.live.gossip += 1
        self._metrics.gossip_messages += 1
        self._metrics.gossip_proxies += len(rows)

    def _mention(self, session: Session, rows: Sequence[GossipRow]) -> None:
        tracker = self.state.tracker
        mentions = tracker.mentions
        numbers: list[int] = []  # to renew, in one change: there may be as many TTLs as proxies
        ttls: list[float] = []
        for ttl, names in runs(rows):
            used = tracker.ttl_used(ttl)
            renewed = mentions.renewable(names)
            if renewed is not None:
                numbers.append(renewed.number)
                ttls.append(used)
                continue
            self._renew(session, numbers, ttls)
            numbers, ttls = [], []
            number, leaves = mentions.last + 1, mentions.left_by(names)
            self.do(changes.Mentioned(number, session.id, used, names, leaves))
        self._renew(session, numbers, ttls)

    def _renew(self, session: Session, numbers: list[int], ttls: list[float]) -> None:
        if len(numbers) == 1:
            self.do(changes.Renewed(numbers[0], session.id, ttls[0]))
        elif numbers:
            self.do(changes.RenewedEach(numbers, session.id, ttls))

    def topology_changed(self) -> None:
        """Restart the wait after which connections are advised to close."""
        self.advice.changed(self.now)

    def _purge(self) -> None:
        """Drop the proxies that have expired."""
        tracker = self.state.tracker
        expiry = tracker.next_expiry
        if expiry is None or expiry >= self.now:
            return
        while names := tracker.mentions.due(self.now, _MOST_EXPIRED):
            rows = [(name, *tracker.place(name)) for name in names]
            self.do(changes.Expired(rows, tracker.mentions.left_by(names)))
        self.topology_changed()

    def _budget_wait(self) -> float | None:
        """Return the seconds until the next token when only the budget refuses; otherwise None."""
        tracker, budget = self.state.tracker, self.state.budget
        if not budget.limited or not (tracker.bootstrap or tracker.need):
            return None
        return budget.wait(self.now) or None

    def _try_grant(self, session: Session) -> int | None:
        self._purge()
        tracker, budget = self.state.tracker, self.state.budget
        bootstrap = tracker.bootstrap
        if not bootstrap and not tracker.need:
            return None
        if budget.limited:
            if budget.wait(self.now):
                return None
            self.do(changes.DialSpent(budget.tokens(self.now) - 1.0, self.now))
        return self._grant(session, "bootstrap" if bootstrap else "need")

    def _grant(self, session: Session, reason: str) -> int:
        lease = self.state.tracker.last_lease + 1
        self.do(changes.Granted(lease, session.token, session.id, reason))
        return lease

    def _chance_of_missing(self) -> float:
        """Return the share of the known proxies that are desired and missing.

        A claimed proxy that is not desired may be tracked as well; then it counts twice, and the
        share is a little too small. So nothing is suspected for that.
        """
        tracker = self.state.tracker
        known = tracker.tracked_count + tracker.claimed_count - tracker.claimed_desired_count
        missing = tracker.desired_count - tracker.claimed_desired_count
        return missing / known if known else 0.0

    def _claim(
        self, session: Session, lease: int, name: str, principals: list[str], chance: float = 0.0
    ) -> None:
        self.do(changes.Claimed(lease, session.id, name, principals[:MOST_ALIASES]))
        self.recent.append(RecentClaim(self.now, name, False, chance))

    def _note_duplicate(self, name: str, chance: float = 0.0) -> None:
        """Count a dial that reached a proxy which another lease holds."""
        self._metrics.duplicates += 1
        self.recent.append(RecentClaim(self.now, name, True, chance))

    def _free(self, session: Session, lease: int, cause: str, by: Peer | None = None) -> None:
        name = self.state.tracker.lease_name(lease)
        self.do(changes.Released(lease, session.id, name, cause, peer_of(by)))

    def _drop_long_ended(self) -> None:
        if gone := self.state.sessions.long_ended(self.now):
            self.do(changes.EndedDropped(gone))

    def _finish(
        self, waiter: Waiter, lease: int | None = None, *, ended: str | None = None
    ) -> None:
        """End a wait: with a lease, because its deadline has passed, or with its session."""
        route = self._unpark(waiter, served=lease is not None)
        self.finished.append(Finished(waiter.session, waiter.seq, route, lease, ended))

    def _unpark(self, waiter: Waiter, *, served: bool = False) -> bytes | None:
        """Take a waiter out of the queue; return its connection, or None when it has none."""
        session, seq = waiter.session, waiter.seq
        route = session.live.routes.pop(seq, None)
        if route is not None:
            self.left.append((session.token, seq, route))
        self.do(changes.Unparked(session.token, seq, served))
        return route

    def _expire_leases(self, before: float, *, late: bool) -> None:
        state = self.state
        while state.in_flight:
            lease = next(iter(state.in_flight))
            held = state.leases[lease]
            if held.timed_from >= before:
                return
            if late and not held.overdue:  # its claim may lie in the socket
                held.overdue, held.timed_from = True, self.now
                state.in_flight.move_to_end(lease)
                continue
            session = held.session
            self.do(changes.ClaimTimedOut(session.token, lease))
            self._free(session, lease, "claim_timeout")
            self.notify(session, {"notice": "lease_expired", "lease": lease})


def peer_of(peer: Peer | None) -> By:
    """Return an administrator as changes have it."""
    return None if peer is None else (peer.uid, peer.pid)
