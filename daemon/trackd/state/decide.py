"""Decides who gets, claims, keeps and loses leases, and which sessions there are.

`Decisions` reads the state, and makes each change through `do`, which applies it at once and adds
it to the batch; nothing else edits the durable state. What it does not decide itself is decided,
by means of it, in `gossip`, `forgetting`, `exactly_once` and `timers`; what the rules say of a
single matter is in `marking`, `aiming`, `pauses`, `tunnels` and `advice`. Requests that were parked
and are answered by what was decided are left in `finished` and `noticed`, for those who know the
wire. No I/O; only the actor's thread runs it.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from trackd.config.settings import Config
from trackd.rules.flips import Flips
from trackd.rules.luck import Hint, Luck
from trackd.sessions.identity import Peer, Process
from trackd.sessions.sessions import ParkedWatch, Session, Waiter
from trackd.state import aiming, changes, marking
from trackd.state.advice import Advice
from trackd.state.apply import apply
from trackd.state.changes import By, Change, Keys, Moment
from trackd.state.counters import Metrics
from trackd.state.lone import LoneMentions
from trackd.state.pauses import Pauses
from trackd.state.sources import source_of
from trackd.state.state import State
from trackd.state.tunnels import Tunnels
from trackd_client import __version__

#: Notices kept for a session that does not fetch them.
MOST_NOTICES: Final = 1024
#: Principals kept of a claim, and claims kept for `explain`.
MOST_ALIASES: Final = 8
RECENT_CLAIMS: Final = 256
#: Held proxies that a session has asked for, until the dial ends for that.
MOST_LOOKED: Final = 8
#: Expired proxies of one change.
_MOST_EXPIRED: Final = 1000


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
    chance: float


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
        ahead: how many events the state has that no commit will store: those of a start that could
            not be stored. It is made once more when changes can be stored again.
        began: when this daemon began.
        made: how many changes were made so far.
        finished: parked acquires to answer.
        noticed: sessions whose parked `watch_session` is to be answered; for one that has ended,
            with the reason.
        left: token, number and connection of the acquires that stopped to wait in this batch.
        unstored: sessions whose client is done with more than is stored, where a restart must not
            forget that.
        recent: how the last claims went.
        luck: the dials in a row that met held proxies.
        flips: which marks flipped a moment ago, and what gossip says of them meanwhile.
        lone: which missing proxies only one session mentions.
        swept: when `timers.sweep` ran last.
        metrics: what is counted.
        touch: called with keys of the checkpoint before what they stand for is edited.
        pauses: what is decided by rule 17.
        tunnels: what is decided by rule 18.
    """

    def __init__(
        self,
        state: State,
        config: Config,
        metrics: Metrics,
        touch: Callable[[Keys], None],
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Begin to decide.

        Args:
            state: what to read and to change.
            config: the settings.
            metrics: what is counted.
            touch: called with keys of the checkpoint before what they stand for is edited.
            wall: returns Unix time.
        """
        self.state = state
        self.config = config
        self.now = 0.0
        self.batch: list[Moment] = []
        self.ahead = 0
        self.began = 0.0
        self.made = 0
        self.finished: list[Finished] = []
        self.noticed: dict[Session, str | None] = {}
        self.left: list[tuple[bytes, int, bytes]] = []
        self.unstored: dict[Session, None] = {}
        self.recent: deque[RecentClaim] = deque(maxlen=RECENT_CLAIMS)
        self.luck = Luck()
        self.flips = Flips()
        self.lone = LoneMentions()
        self.advice = Advice(state.tracker, state.leases, state.lives, config.disconnect_threshold)
        self.metrics = metrics
        self.touch = touch
        self._wall = wall
        self._moment: list[Change] | None = None
        self.swept = 0.0
        self._marks = state.tracker.marks
        self._targets = state.tracker.targets
        self.pauses = Pauses(state, self.do)
        self.tunnels = Tunnels(state, self.do, self.notify, self.free)
        state.lives.timeout = config.tunnel_timeout
        state.tracker.proxy_expiry = config.proxy_expiry
        state.tracker.share_targets(config.targets)

    def begin(self, now: float) -> None:
        """Begin to handle a message, at a moment."""
        self.now = now
        self._moment = None

    def do(self, change: Change) -> None:
        """Make a change: apply it, and add it to the batch."""
        self.touch(change.edits())
        if self._moment is None:
            self._moment = []
            self.batch.append(Moment(self.now, self._wall(), self._moment))
        moment = self.batch[-1]
        apply(self.state, change, moment.at, moment.wall)
        self._moment.append(change)
        self.made += 1

    def do_all(self, made: Iterable[Change]) -> None:
        """Make changes, one after the other."""
        for change in made:
            self.do(change)

    @property
    def revision(self) -> int:
        """The revision for replies: of the last event that is stored, or will be with this batch.

        Whoever follows events waits for those that replies speak of.
        """
        return self.state.revision - self.ahead

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
        start, boot = (None, "") if process is None else (process.start, process.boot)
        number = self.state.sessions.last_id + 1
        uid, gid, pid, host = peer
        who = token, number, uid, gid, pid, start
        self.do(changes.SessionOpened(*who, name, version, labels, command, host, boot))
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
            self.finish(waiter, ended=reason)
        freed = sorted(session.leases)
        for lease in freed:
            self.free(session, lease, reason, by)
        if session.backoff is not None:
            self.pauses.end_own(session, "session_ended")
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
                session.peer.host,
                "" if session.process is None else session.process.boot,
            )
        )
        if session.live.gossip or session.opened < self.began:  # it may have before the start
            dropped = self.state.sources.too_many()
            uid, pid, agent, host = source_of(session)
            self.do(changes.SourceRemembered(session.id, uid, pid, agent, dropped, host))
        if session.live.watch is not None:
            self.noticed[session] = reason
        self.drop_long_ended()  # here too: without anything tracked nothing is ever swept
        return freed

    def note_sign_of_life(self, session: Session) -> None:
        """Move the heartbeat deadline of a session; without effect where its process is watched."""
        if session.process is None:
            self.state.sessions.expect_heartbeat(session, self.now + self.config.heartbeat_ttl)

    # -- leases -----------------------------------------------------------------------

    def try_acquire(self, session: Session) -> int | None:
        """Grant a lease now, or refuse it while others wait."""
        if self.state.queue:
            self.serve_waiters()
            if self.has_turn:
                return None
        return self._try_grant(session)

    @property
    def has_turn(self) -> bool:
        """Whether somebody waits whose session does not pause by itself."""
        queue = self.state.queue
        return bool(queue) and (not queue.aside or queue.first() is not None)

    def refusal(self, session: Session | None = None) -> str:
        """Return why no lease is granted now: `backoff`, `waiters`, `budget` or `satisfied`.

        Args:
            session: whose own pause counts too; None: that of the host only.
        """
        if self._backoff_wait(session) is not None:
            return "backoff"
        if self.has_turn:
            return "waiters"
        return "satisfied" if self.budget_wait() is None else "budget"

    def retry_after(self, session: Session | None = None) -> float | None:
        """Return the seconds after which a pause or the dial budget allows one more, or None."""
        wait = self.budget_wait()
        if wait is not None:
            wait += len(self.state.queue) / self.state.budget.rate
        pause = self._backoff_wait(session)
        return wait if pause is None else max(pause, wait or 0.0)

    def _backoff_wait(self, session: Session | None) -> float | None:
        """Return the seconds for which a pause refuses what rule 6 would grant, or None."""
        if self.state.backoff.pause is None and (session is None or session.backoff is None):
            return None
        until = self.pauses.held_until(session, self.now)
        wanted = self.state.tracker.bootstrap or self.state.tracker.need
        return None if until is None or not wanted else until - self.now

    def claim_by(self, lease: int) -> float | None:
        """Return when a lease in flight is taken back, or None for never."""
        timeout = self.config.claim_timeout
        return self.state.leases[lease].timed_from + timeout if timeout > 0 else None

    def park(self, session: Session, seq: int, deadline: float | None, route: bytes) -> None:
        """Put an acquire at the end of the queue."""
        queue = self.state.queue
        tag = queue.next_tag(session)
        self.do(changes.Parked(session.token, seq, queue.last_order + 1, deadline, tag))
        session.put_route(seq, route)

    def serve_waiters(self) -> None:
        """Grant leases to waiters, in their turn by rule 13, for as long as the rules allow."""
        while (waiter := self.state.queue.first()) is not None:
            lease = self._try_grant(waiter.session)
            if lease is not None:
                self.finish(waiter, lease)
            elif waiter.session.backoff is None or not self.pauses.set_aside(
                waiter.session, self.now
            ):
                return

    def claim(
        self, session: Session, lease: int, principals: list[str], *, follow: bool = False
    ) -> tuple[str | None, str | None]:
        """Claim by rule 8.

        Args:
            session: who claims.
            lease: for which lease.
            principals: what the proxy presents.
            follow: whether the lease follows gossip to another of them (rule 7).

        Returns:
            The name that the principals mean, and why it cannot be claimed, or None when it is.
        """
        tracker = self.state.tracker
        name = tracker.resolve_to_follow(principals) if follow else tracker.resolve(principals)
        if lease not in session.leases:
            return name, "lease_gone"
        if tracker.lease_name(lease) is not None:
            return name, "has_claimed"
        if name is None:
            return None, "no_name"
        chance = self._chance_of_missing()
        aimed = lease in self._targets.aims
        if aimed:
            reached = self._targets.aims[lease].name == name
            self.metrics.aims["reached" if reached else "missed"] += 1
            self.do_all(aiming.meet(tracker, lease, name, self.now))
        if not tracker.is_available(name):
            self._note_duplicate(name, chance)
            session.live.looked = tuple(each for each in session.live.looked if each != name)
            if not aimed:
                self.luck.met(name, chance, self.now)
            if self.state.backoff.pause is not None or session.backoff is not None:
                self.pauses.end_by(session, "held")
            return name, "held"
        self._claim(session, lease, name, principals, chance, follow=follow)
        if not aimed:
            self.luck.claimed()
        if self.state.backoff.pause is not None or session.backoff is not None:
            self.pauses.claimed(session, lease)
        return name, None

    def look(self, session: Session, principals: list[str]) -> tuple[str | None, bool]:
        """Return the name that principals mean, and whether a claim of it would fail (rule 10).

        A dial may end for that reason, without a claim; its release says so.
        """
        tracker, live = self.state.tracker, session.live
        name = tracker.resolve(principals)
        if name is None or tracker.is_available(name):
            return name, False
        live.looked = (*live.looked[1 - MOST_LOOKED :], name)
        return name, True

    def hint(self) -> Hint | None:
        """Return what the last dials of the host say of the load balancer, or None."""
        return self.luck.hint(self._known, self.now)

    def release(self, session: Session, lease: int) -> bool:
        """Release a lease; return whether this session owned it."""
        if lease not in session.leases:
            return False
        self.free(session, lease, "asked")
        return True

    def retire(self, session: Session, lease: int) -> bool | None:
        """Mark the proxy that a lease holds as terminating, by rule 15.

        Returns:
            Whether this session owns the lease; None: it has claimed nothing.
        """
        if lease not in session.leases:
            return False
        name = self.state.tracker.lease_name(lease)
        if name is None:
            return None
        self.mark(marking.retire(self.state.tracker, name, session.id))
        return True

    def offer(self, session: Session, lease: int) -> bool | None:
        """Offer the proxy that a lease holds, by rule 20; the session offers no other lease.

        Returns:
            Whether this session owns the lease; None: it has claimed nothing.
        """
        if lease not in session.leases:
            return False
        name = self.state.tracker.lease_name(lease)
        if name is None:
            return None
        if session.offered is None:
            self.do(changes.Offered(lease, session.id, name))
            if self._targets.by_name:
                self.do_all(aiming.release(self.state.tracker, name, self.now))
        return True

    def end_offers(self) -> None:
        """Release the offered leases that are not needed any more, and notify their sessions."""
        for lease in self.state.tracker.replaced:
            name = self.state.tracker.lease_name(lease)
            self._hand_over(lease)
            self._follow_to(name)

    def report(self, session: Session, lease: int, reason: str, retry_after: float | None) -> None:
        """Take in how the dial of a lease ended; without effect when the session has it no more."""
        if lease not in session.leases:
            return
        self.pauses.report(session, lease, reason, retry_after, self.now)
        live = session.live
        if reason == "held" and live.looked:  # without a claim, which has counted already
            met, *looked = live.looked
            live.looked = tuple(looked)
            if lease not in self._targets.aims:
                self.luck.met(met, self._chance_of_missing(), self.now)
        if lease in self._targets.aims:
            free = self.state.tracker.is_available(self._targets.aims[lease].name)
            if reason != "held" or free:  # otherwise it may have met its own target
                self.metrics.aims["missed"] += 1
                self.do_all(aiming.fail(self.state.tracker, lease, self.now))

    def force_release(self, lease: int, by: Peer) -> tuple[Session, str | None] | None:
        """Take a lease back from its owner, and notify that session.

        Returns:
            The owner and the name that the lease held; None when there is no such lease.
        """
        held = self.state.leases.get(lease)
        if held is None:
            return None
        name = self.state.tracker.lease_name(lease)
        self.free(held.session, lease, "admin", by)
        self.notify(held.session, {"notice": "lease_revoked", "lease": lease})
        return held.session, name

    def adopt(
        self, session: Session, principals: list[str], *, follow: bool = False
    ) -> tuple[int | None, str | None]:
        """Take up an open tunnel by rule 14; return the lease, or None, and the name meant."""
        tracker = self.state.tracker
        name = tracker.resolve_to_follow(principals) if follow else tracker.resolve(principals)
        if name is None:
            return None, None
        if not tracker.is_available(name):
            self._note_duplicate(name, 0.0)
            return None, name
        lease = self._grant(session, "adopt")
        self._claim(session, lease, name, principals, 0.0, follow=follow)
        return lease, name

    def follow(self, names: Iterable[str]) -> None:
        """Let leases take these names, which have just become tracked or free (rule 7)."""
        for name in names:
            for lease in self.state.aliases.leases_of(name):
                self._rename(lease, name)

    def follow_from(self, names: Iterable[str]) -> None:
        """Let the leases that hold these names, which are tracked no more, take others (rule 7)."""
        tracker, known = self.state.tracker, self.state.aliases.by_lease
        for name in names if known else ():
            lease = tracker.holder(name)
            if lease is not None:
                for alias in known.get(lease, ()):
                    if tracker.is_tracked(alias):
                        self._rename(lease, alias)

    def _rename(self, lease: int, name: str) -> None:
        """Let a lease take the tracked name that gossip has for its proxy, unless it has one.

        When another lease holds that, there are two tunnels to the proxy: advise this one to close.
        """
        tracker, before = self.state.tracker, self.state.tracker.lease_name(lease)
        if before is None or before == name or tracker.is_tracked(before):
            return
        session = self.state.leases[lease].session
        if not tracker.is_available(name):
            self.advise(session, {"notice": "should_close", "lease": lease})
            return
        offered = tracker.holder(name)
        if offered is not None:
            self._hand_over(offered)
        marks = self._marks
        if marks.get(before).retired is not None or marks.get(name).retired is not None:
            moved = {before: marks.get(before)._replace(retired=None)}
            moved[name] = marks.get(name)._replace(retired=marks.get(before).retired)
            self.mark(marking.mark(tracker, moved, session.id))
        if self._targets.by_name:
            self.do_all(aiming.claim(tracker, name))
        self.do(changes.Renamed(lease, session.id, name, before))
        self.lone.end(name)
        self.notify(session, {"notice": "renamed", "lease": lease, "name": name})

    # -- settings and starts ---------------------------------------------------------

    def set_count(self, count: int) -> None:
        """Set the connection count. It survives restarts until the configured count changes."""
        before = self.state.tracker.connection_count
        if count != before:
            self.do(changes.CountSet(count, before))
            self.topology_changed()

    def reconfigure(self, config: Config) -> None:
        """Take over a configuration that differs only in live settings."""
        before, self.config = self.config, config
        self.state.tracker.proxy_expiry = config.proxy_expiry
        self.state.tracker.share_targets(config.targets)
        if config.connection_count != before.connection_count:
            self.set_count(config.connection_count)
            self.do(changes.Configured(config.connection_count))
        self.advice.threshold = config.disconnect_threshold
        if config.tunnel_timeout != before.tunnel_timeout:
            self.state.lives.set_timeout(config.tunnel_timeout, self.now)
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

    def topology_changed(self) -> None:
        """Restart the wait after which connections are advised to close."""
        self.advice.changed(self.now)

    def purge(self) -> None:
        """Drop the proxies that have expired."""
        tracker = self.state.tracker
        expiry = tracker.next_expiry
        if expiry is not None and expiry < self.now:
            while names := tracker.mentions.due(self.now, _MOST_EXPIRED):
                rows = [(name, *tracker.place(name)) for name in names]
                self.mark(marking.unmark(tracker, names))
                self.do_all(aiming.forget(tracker, names))
                self.do(changes.Expired(rows, tracker.mentions.left_by(names)))
                self.follow_from(names)
            self.topology_changed()
        if self._marks.ends and (ended := self._marks.due(self.now)):
            self.mark(marking.mark(tracker, ended, None))
        if self.flips.waiting:
            words = self.flips.take_due(self.now)
            for change in marking.mark_late(tracker, words, self.now):
                self.mark(change)
        if self._targets.ends:
            self.do_all(aiming.end_holds(tracker, self.now))

    def mark(self, change: changes.Marked | None) -> None:
        """Make a change of marks, or none."""
        if change is not None:
            self.do(change)
            if change.flipped:
                self.flips.note([name for name, _ in change.flipped], self.now)
                self.topology_changed()

    def budget_wait(self) -> float | None:
        """Return the seconds until the next token when only the budget refuses; otherwise None."""
        tracker, budget = self.state.tracker, self.state.budget
        if not budget.limited or not (tracker.bootstrap or tracker.need):
            return None
        return budget.wait(self.now) or None

    def _try_grant(self, session: Session) -> int | None:
        self.purge()
        tracker, budget = self.state.tracker, self.state.budget
        bootstrap = tracker.bootstrap
        if not bootstrap and not tracker.need:
            return None
        pauses = self.state.backoff.pause is not None or session.backoff is not None
        if pauses and self.pauses.held_until(session, self.now) is not None:
            return None
        if budget.limited:
            if budget.wait(self.now):
                return None
            self.do(changes.DialSpent(budget.tokens(self.now) - 1.0, self.now))
        lease = self._grant(session, "bootstrap" if bootstrap else "need")
        if self._targets.by_name:
            self.do_all(aiming.grant(tracker, lease, session.peer.user))
        if pauses:
            self.pauses.granted(session, lease, self.now)
        return lease

    def _grant(self, session: Session, reason: str) -> int:
        lease = self.state.tracker.last_lease + 1
        self.do(changes.Granted(lease, session.token, session.id, reason))
        return lease

    @property
    def _known(self) -> int:
        """How many proxies a load balancer may send to: those that are tracked or claimed."""
        tracker = self.state.tracker
        return tracker.tracked_count + tracker.claimed_count - tracker.claimed_desired_count

    def _chance_of_missing(self) -> float:
        """Return the share of the known proxies that are desired, and missing or offered.

        A claimed proxy that is not desired may be tracked as well; then it counts twice, and the
        share is a little too small. So nothing is suspected for that.
        """
        tracker, known = self.state.tracker, self._known
        missing = tracker.desired_count - tracker.claimed_desired_count
        return (missing + tracker.offered_desired_count) / known if known else 0.0

    def _claim(
        self,
        session: Session,
        lease: int,
        name: str,
        principals: list[str],
        chance: float,
        *,
        follow: bool,
    ) -> None:
        offered = self.state.tracker.holder(name)
        if offered is not None:
            self._hand_over(offered)
        if self._marks.by_name:
            self.mark(marking.end_hold(self.state.tracker, name, session.id))
        if self._targets.by_name:
            self.do_all(aiming.claim(self.state.tracker, name))
        kept = tuple(principals if follow else principals[:MOST_ALIASES])
        self.do(changes.Claimed(lease, session.id, name, kept, follow))
        self.lone.end(name)
        self.recent.append(RecentClaim(self.now, name, False, chance))
        self.advice.changed(self.now)

    def _note_duplicate(self, name: str, chance: float) -> None:
        """Count a dial that reached a proxy which another lease holds."""
        self.metrics.duplicates += 1
        self.recent.append(RecentClaim(self.now, name, True, chance))

    def free(self, session: Session, lease: int, cause: str, by: Peer | None = None) -> None:
        """Take a lease back from a session, for a cause, and do what its end brings."""
        name = self.state.tracker.lease_name(lease)
        self.do(changes.Released(lease, session.id, name, cause, peer_of(by)))
        if name is not None:
            self.advice.changed(self.now)
            self.lone.begin(name, self.now)
        if self._marks.by_name and name is not None:
            self.mark(marking.begin_hold(self.state.tracker, name, self.now, session.id))
        if self._targets.by_name and name is not None:
            self.do_all(aiming.release(self.state.tracker, name, self.now))
        if self.state.backoff.pause is not None or session.backoff is not None:
            self.pauses.released(session, lease)
        if cause != "handed_over":  # then the one that takes over has the name
            self._follow_to(name)

    def _follow_to(self, name: str | None) -> None:
        """Let a lease take a name that is free now, where gossip has it."""
        if self.state.aliases.by_lease and name is not None and self.state.tracker.is_tracked(name):
            self.follow([name])

    def _hand_over(self, lease: int) -> None:
        """Release an offered lease, and notify its session: its tunnel has been replaced."""
        session = self.state.leases[lease].session
        self.free(session, lease, "handed_over")
        notice = {"notice": "lease_revoked", "lease": lease, "cause": "handed_over"}
        self.notify(session, notice)

    def drop_long_ended(self) -> None:
        """Forget the sessions that ended some minutes ago."""
        if gone := self.state.sessions.long_ended(self.now):
            self.do(changes.EndedDropped(gone))

    def finish(self, waiter: Waiter, lease: int | None = None, *, ended: str | None = None) -> None:
        """End a wait: with a lease, because its deadline has passed, or with its session."""
        route = self.unpark(waiter, served=lease is not None)
        self.finished.append(Finished(waiter.session, waiter.seq, route, lease, ended))

    def unpark(self, waiter: Waiter, *, served: bool = False) -> bytes | None:
        """Take a waiter out of the queue; return its connection, or None when it has none."""
        session, seq = waiter.session, waiter.seq
        route = session.take_route(seq)
        if route is not None:
            self.left.append((session.token, seq, route))
        self.do(changes.Unparked(session.token, seq, served))
        return route


def peer_of(peer: Peer | None) -> By:
    """Return an administrator as changes have it."""
    if peer is None:
        return None
    who = peer.uid, peer.pid
    return (*who, peer.host) if peer.host else who
