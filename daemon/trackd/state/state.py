"""The daemon's state, and every change of it.

`State` joins the pure rules (`trackd.rules`) with sessions and waiters (`trackd.sessions`). It
records each change in `trackd.state.changes`, as an event and as a record for the store. Only the
actor's thread runs it, and it does no I/O: its `Effects` give it the clock, the reply channel and
the watch over processes.
"""

from __future__ import annotations

import os
import sys
from collections import OrderedDict, deque
from itertools import groupby
from typing import Any, Final, NamedTuple, Protocol

from trackd.config.settings import Config
from trackd.rules.budget import Budget
from trackd.rules.expiry import TTL_OF
from trackd.rules.tombstones import Tombstone, Tombstones
from trackd.rules.tracker import GossipRow, Place, Tracker
from trackd.sessions.identity import Peer, Process
from trackd.sessions.queue import Queue
from trackd.sessions.sessions import (
    EXPIRED_LEASES,
    UNSTORED_NOTICES,
    Lease,
    ParkedWatch,
    Remembered,
    Session,
    Sessions,
    Waiter,
    sentence_of,
)
from trackd.state.advice import Advice
from trackd.state.changes import Changes
from trackd.state.counters import Metrics
from trackd.state.sources import Sources, source_of
from trackd.storage.records import Key
from trackd.storage.rows import lease_row, session_row
from trackd_client import __version__
from trackd_client.errors import Code
from trackd_client.wire.protocol import REPLY, encode

_NO_LABELS: Final[dict[str, str]] = {}  # shared by all sessions without labels
#: Seconds between two sweeps while no request waits for a lease.
SWEEP_INTERVAL = 1.0
#: Least seconds that an overdue session gets when a sweep comes too late.
_LEAST_MORE_SECONDS: Final = 1.0
#: Notices kept for a session that does not fetch them.
MOST_NOTICES = 1024
#: Principals kept of a claim, and claims kept for `explain`.
MOST_ALIASES: Final = 8
RECENT_CLAIMS: Final = 256


class Effects(Protocol):
    """What the state needs from the actor that owns it: clocks, replies, watches."""

    def now(self) -> float:
        """Return seconds of CLOCK_BOOTTIME."""

    def wall(self) -> float:
        """Return Unix time, for people."""

    def deliver(self, route: bytes, frame: bytes) -> None:
        """Reply to a parked request."""

    def watch(self, process: Process) -> None:
        """Watch for the exit of a process."""

    def unwatch(self, process: Process) -> None:
        """Stop watching a process."""


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


class State:
    """Everything that the daemon knows, with one method for each way to change it."""

    def __init__(self, config: Config, effects: Effects, metrics: Metrics) -> None:
        self.config = config
        self.metrics = metrics
        self.tracker = Tracker(config.cluster_name, config.proxy_expiry, effects.now)
        self.tracker.set_connection_count(config.connection_count)
        self.sessions = Sessions()
        self.queue = Queue()
        self.leases: dict[int, Lease] = {}
        self.epoch = 0
        self.tracker_id = ""
        self.stored_count: int | None = None  # the connection count before this start
        self.cluster = ""  # the cluster whose state this is, as stored
        self.changes = Changes(config.history, config.history_age, effects.now, effects.wall)
        self.mentions: dict[str, int] = {}  # the session that mentioned a tracked proxy last
        self.tombstones = Tombstones()
        self.recent: deque[RecentClaim] = deque(maxlen=RECENT_CLAIMS)
        self.budget = Budget(config.dial_rate, config.dial_burst)
        self.left: list[Waiter] = []  # those who left the queue in this batch
        self.watches_answered: list[ParkedWatch] = []  # those that were answered in this batch
        self.effects = effects
        self.in_flight: OrderedDict[int, None] = OrderedDict()
        self.advice = Advice(self.tracker, self.leases, config.disconnect_threshold)
        self.sources = Sources()
        self.began = effects.now()
        self._swept = 0.0

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
        session = Session(
            id=self.sessions.last_id + 1,
            token=token,
            peer=peer,
            process=process,
            name=name,
            version=sys.intern(version),
            labels=labels or _NO_LABELS,
            opened=self.effects.now(),
            wall=self.effects.wall(),
            command=sys.intern(command),
        )
        self.note_sign_of_life(session)
        if self.sessions.add(session) and process is not None:
            self.effects.watch(process)
        self.changes.record(["open", token, session_row(session).values()], ("session", token))
        self.changes.record(["meta", "last_session", session.id], ("meta", "last_session"))
        self.changes.emit(
            "session_opened",
            session=session.id,
            uid=peer.uid,
            pid=peer.pid,
            name=name,
            command=command,
        )
        return session

    def end_session(self, session: Session, reason: str, by: Peer | None = None) -> list[int]:
        """End a session and release its leases, in one batch; return their ids.

        Args:
            session: which.
            reason: one of `trackd.sessions.sessions.REASONS`.
            by: the administrator who asked for it, or None.
        """
        waiters = list(session.parked.values())
        for waiter in waiters:
            self._leave(waiter)
        freed = sorted(session.leases)
        for lease in freed:
            self._free(session, lease, reason, by)
        now = self.effects.now()
        if self.sessions.remove(session, reason, now) and session.process is not None:
            self.effects.unwatch(session.process)
        key: Key = ("session", session.token)
        self.changes.record(["end", session.token, reason, now, session.peer.uid], key)
        self.changes.touched.append(("ended", session.token))
        if session.gossip or session.opened < self.began:  # it may have gossiped before the start
            self._remember_source(session)
        self.changes.emit(
            "session_ended",
            session=session.id,
            reason=reason,
            name=session.name,
            pid=session.peer.pid,
            **act_of(by),
        )
        over = {"error": Code.SESSION_ENDED, "message": sentence_of(reason), "reason": reason}
        for waiter in waiters:
            if waiter.route is not None:
                body = {"seq": waiter.seq, "revision": self.changes.revision, **over}
                self.effects.deliver(waiter.route, encode(REPLY, body))
        self._answer_watch(session, over)
        self._forget_ended(now)  # here too: without anything tracked nothing is ever swept
        return freed

    def note_sign_of_life(self, session: Session) -> None:
        """Move the heartbeat deadline of a session; without effect where its process is watched."""
        if session.process is None:
            session.deadline = self.effects.now() + self.config.heartbeat_ttl
            session.overdue = False

    def remember(
        self, session: Session, seq: int, frame: bytes, *, stored: bool, lease: int | None
    ) -> None:
        """Keep the reply of a request until its session is done with it."""
        session.remember(seq, Remembered(frame, stored, lease))
        if stored:
            self.changes.record(
                ["reply", session.token, seq, frame, lease, list(session.done.ranges)],
                ("session", session.token),
            )

    def acknowledge(self, session: Session, ranges: list[int]) -> None:
        """Take in the numbers that a session is done with; the acquires among them are given up.

        They are stored when one of them would run again after a restart otherwise.
        """
        acknowledged = session.acknowledge(ranges, self.config.max_done_ranges)
        for seq in acknowledged.given_up:
            self._unpark(session.parked[seq])
        if acknowledged.unstored:
            done = list(session.done.ranges)
            self.changes.record(["done", session.token, done], ("session", session.token))

    # -- the rules --------------------------------------------------------------------

    def mention(self, session: Session, rows: list[GossipRow]) -> None:
        """Take in gossip that only moves expiries: `Tracker.unknown` has found nothing in it."""
        self._count_gossip(session, rows)
        now, default_ttl, number = self.effects.now(), self.tracker.proxy_expiry, session.id
        mentions = self.mentions
        for ttl, run in groupby(rows, TTL_OF):
            names = [row[0] for row in run]
            self.tracker.mention_names(names, ttl)
            for name in names:
                mentions[name] = number
            self.changes.records.append(
                ["mention", now + (ttl or default_ttl), names, number, ttl or default_ttl]
            )
            self.changes.touched += [("proxy", name) for name in names]

    def track(self, session: Session, rows: list[GossipRow]) -> int:
        """Take in checked gossip; return how many proxies changed."""
        self._count_gossip(session, rows)
        if self.tombstones:
            now = self.effects.now()
            rows = [row for row in rows if not self.tombstones.keeps_away(row, now)]
        if not rows:
            return 0
        changed = self.tracker.track_rows(rows)
        names = [row[0] for row in rows]
        self.mentions.update(dict.fromkeys(names, session.id))
        self.changes.records.append(
            ["gossip", self.effects.now(), self.tracker.proxy_expiry, rows, session.id]
        )
        self.changes.touched.extend([("proxy", name) for name in names])
        if changed:
            self._emit_changed(session, changed)
            self.topology_changed()
        return len(changed)

    def forget(self, name: str, by: Peer) -> Tombstone | None:
        """Drop a proxy, and keep old gossip from bringing it back until its TTL has passed.

        Returns:
            Its tombstone; None when it is not tracked.
        """
        if self.tracker.get(name) is None:
            return None
        until = self.effects.now() + self.tracker.ttl_of(name)
        place = self.tracker.forget(name)
        assert place is not None
        del self.mentions[name]
        dropped = self.tombstones.add(name, place, until)
        self.changes.record(["forget", name, *place, until], ("forgotten", name))
        self.changes.touched.append(("proxy", name))
        self.changes.touched += [("forgotten", each) for each in dropped]
        self.changes.emit(
            "proxy_forgotten",
            name=name,
            group=place.group,
            generation=place.generation,
            **act_of(by),
        )
        self.topology_changed()
        return self.tombstones.get(name)

    def set_count(self, count: int) -> None:
        """Set the connection count. It survives restarts until the configured count changes."""
        before = self.tracker.connection_count
        if count != before:
            self.tracker.set_connection_count(count)
            self.changes.record(["meta", "connection_count", count], ("meta", "connection_count"))
            self.changes.emit("connection_count", count=count, before=before)
            self.topology_changed()

    def try_acquire(self, session: Session) -> int | None:
        """Grant a lease now, or refuse it while others wait."""
        if self.queue:
            self.serve_waiters()
        return None if self.queue else self._try_grant(session)

    def refusal(self) -> str:
        """Return why no lease is granted now: `waiters`, `budget` or `satisfied`."""
        if self.queue:
            return "waiters"
        return "satisfied" if self._budget_wait() is None else "budget"

    def retry_after(self) -> float | None:
        """Return the seconds after which the dial budget has a token for one more, or None."""
        wait = self._budget_wait()
        return None if wait is None else wait + len(self.queue) / self.budget.rate

    def grant_fields(self, lease: int | None) -> dict[str, Any]:
        """Return the fields of a reply for a grant, or for a refusal (None)."""
        if lease is None or self.config.claim_timeout <= 0:
            return {"lease": lease}
        claim_by = self.leases[lease].timed_from + self.config.claim_timeout
        return {"lease": lease, "claim_by": claim_by}

    def park(self, session: Session, seq: int, deadline: float | None, route: bytes) -> None:
        """Put an acquire at the end of the queue."""
        tag = self.queue.next_tag(session)
        waiter = Waiter(session, seq, self.queue.last_order + 1, tag, deadline, route)
        session.parked[seq] = waiter
        session.use.waiters += 1
        self.queue.add(waiter)
        self.changes.record(
            ["wait", session.token, seq, waiter.order, deadline, tag], ("session", session.token)
        )

    def serve_waiters(self) -> None:
        """Grant leases to waiters, in their turn by rule 13, for as long as the rules allow."""
        while (waiter := self.queue.first()) is not None:
            lease = self._try_grant(waiter.session)
            if lease is None:
                return
            self._answer(waiter, lease)

    def claim(
        self, session: Session, lease: int, principals: list[str]
    ) -> tuple[str | None, str | None]:
        """Claim by rule 8.

        Returns:
            The name that the principals mean, and why it cannot be claimed, or None when it is.
        """
        tracker = self.tracker
        name = tracker.resolve(principals)
        if lease not in session.leases:
            return name, "lease_gone"
        if tracker.lease_name(lease) is not None:
            return name, "has_claimed"
        if name is None:
            return None, "no_name"
        chance = self._chance_of_missing()
        if tracker.claim(lease, principals) is None:
            self._note_duplicate(name, chance)
            return name, "held"
        self._claimed(session, lease, name, principals, chance)
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
        held = self.leases.get(lease)
        if held is None:
            return None
        name = self.tracker.lease_name(lease)
        self._free(held.session, lease, "admin", by)
        self.notify(held.session, {"notice": "lease_revoked", "lease": lease})
        return held.session, name

    def adopt(self, session: Session, principals: list[str]) -> tuple[int | None, str | None]:
        """Take up an open tunnel by rule 14; return the lease, or None, and the name meant."""
        adopted = self.tracker.adopt(principals)
        if adopted is None:
            name = self.tracker.resolve(principals)
            if name is not None:
                self._note_duplicate(name)
            return None, name
        lease, name = adopted
        self._own(session, lease, "adopt")
        self._claimed(session, lease, name, principals)
        return adopted

    def give_up(self, session: Session, seq: int) -> bool:
        """Cancel an earlier request: free what it was granted, and let it never run again."""
        if seq in session.done:
            return False
        waiter = session.parked.get(seq)
        remembered = session.replies.get(seq)
        session.acknowledge([seq, seq], self.config.max_done_ranges)
        if waiter is not None:
            self._unpark(waiter)
        if remembered is not None and remembered.lease in session.leases:
            self._free(session, remembered.lease, "given_up")
        self.changes.record(["done", session.token, [seq, seq]], ("session", session.token))
        return True

    def sweep(self, late: float = 0.0) -> list[Session]:
        """Do everything that is due by now; return the silent sessions, which were ended.

        Args:
            late: seconds by which this sweep comes too late, because the daemon or the host did
                not run. Heartbeats and claims of that time may still lie in the socket, so
                what seems overdue gets more time, once: a lease all of `claim_timeout`, a
                session as long as was lost, at least a second, at most its time to live.
        """
        now = self.effects.now()
        self._swept = now
        self._purge()
        for waiter in self.queue.late(now):
            self._answer(waiter, None)
        silent = self.sessions.silent(now)
        if late > 0:
            more = min(max(late, _LEAST_MORE_SECONDS), self.config.heartbeat_ttl)
            for session in silent:
                if not session.overdue:
                    session.overdue, session.deadline = True, now + more
            silent = self.sessions.silent(now)
        for session in silent:
            self.end_session(session, "no_heartbeat")
        if self.config.claim_timeout > 0:
            self._expire_leases(now - self.config.claim_timeout, late=late > 0)
        self._forget_ended(now)
        self.changes.touched += [("forgotten", name) for name in self.tombstones.drop_old(now)]
        over = self.tombstones.drop_old_groups(now)
        self.changes.touched += [("forgotten_group", group) for group in over]
        surplus = self.advice.choose(now)
        if surplus is not None:
            notice = {"notice": "should_close", "lease": surplus}
            self.notify(self.leases[surplus].session, notice)
        return silent

    def restart_timers(self) -> None:
        """Give sessions that need heartbeats, and leases in flight, their whole time again.

        For when the daemon begins to serve, or can store changes again: what agents sent before
        was not read or not served.
        """
        now = self.effects.now()
        for session in self.sessions:
            self.note_sign_of_life(session)
        for lease in self.in_flight:
            self.leases[lease].timed_from = now

    def next_timer(self) -> float | None:
        """Return when the next sweep will have something to do, or None."""
        expiry = self.tracker.next_expiry
        if expiry is not None and not self.queue:
            expiry = max(expiry, self._swept + SWEEP_INTERVAL)
        queue, sessions = self.queue, self.sessions
        times = [expiry, queue.next_deadline(), sessions.next_heartbeat(), self.advice.due()]
        if self.queue and (wait := self._budget_wait()) is not None:
            times.append(self.effects.now() + wait)
        if self.config.claim_timeout > 0 and self.in_flight:
            oldest = self.leases[next(iter(self.in_flight))].timed_from
            times.append(oldest + self.config.claim_timeout)
        return min((time for time in times if time is not None), default=None)

    def reconfigure(self, config: Config) -> None:
        """Take over a configuration that differs only in live settings."""
        before, self.config = self.config, config
        self.tracker.proxy_expiry = config.proxy_expiry
        if config.connection_count != before.connection_count:
            self.set_count(config.connection_count)
            configured = ("meta", "configured_count")
            self.changes.record([*configured, config.connection_count], configured)
        if (config.dial_rate, config.dial_burst) != (before.dial_rate, before.dial_burst):
            self.budget.change(config.dial_rate, config.dial_burst, self.effects.now())
        changed = self.changes.history.keep(config.history, config.history_age, self.effects.now())
        self.changes.touched += [("history", chunk) for chunk in changed]

    # -- notices ----------------------------------------------------------------------

    def watch(self, session: Session, watch: ParkedWatch, *, stores: bool = True) -> None:
        """Park a `watch_session`; an earlier one of the session gets a reply without notices.

        Args:
            session: whose.
            watch: the request.
            stores: whether changes can be stored just now. Otherwise the notices wait for
                `send_notices`, since that they were sent must be stored.
        """
        if session.watch is not None and session.watch.seq != watch.seq:
            self._answer_watch(session, {"notices": []})
        session.watch = watch
        if session.notices and stores:
            self._send_notices(session)

    def send_notices(self) -> None:
        """Send what waited while nothing could be stored."""
        for session in self.sessions:
            if session.notices and session.watch is not None:
                self._send_notices(session)

    def notify(self, session: Session, notice: dict[str, Any]) -> None:
        """Notify a session: at once when it has a parked watch, otherwise when it parks one."""
        if len(session.notices) < MOST_NOTICES:
            session.notices = [*session.notices, notice]
            if notice["notice"] not in UNSTORED_NOTICES:
                key = ("session", session.token)
                self.changes.record(["notice", session.token, notice], key)
        if session.watch is not None:
            self._send_notices(session)

    def _send_notices(self, session: Session) -> None:
        notices, session.notices = session.notices, ()
        stored = any(each["notice"] not in UNSTORED_NOTICES for each in notices)
        if stored:
            self.changes.record(["fetched", session.token], ("session", session.token))
        self._answer_watch(session, {"notices": notices}, stored=stored)

    def _answer_watch(
        self, session: Session, fields: dict[str, Any], *, stored: bool = False
    ) -> None:
        """Reply to the parked watch, if there is one; a `stored` reply survives a restart."""
        watch = session.watch
        if watch is None:
            return
        session.watch = None
        self.watches_answered.append(watch)
        frame = encode(REPLY, {"seq": watch.seq, "revision": self.changes.revision, **fields})
        kept = len(session.replies) + len(session.parked)
        if kept < self.config.max_outstanding and not session.ended:
            self.remember(session, watch.seq, frame, stored=stored, lease=None)
        self.effects.deliver(watch.route, frame)

    # -- the store --------------------------------------------------------------------

    def begin_epoch(self, tracker_id: str) -> None:
        """Count a start of the daemon; an empty state takes `tracker_id` as its id."""
        self.epoch += 1
        self.tracker_id = self.tracker_id or tracker_id
        self.cluster = self.config.cluster_name

    def record_epoch(self) -> None:
        """Record the epoch, the identity of the state and the connection count; emit the start.

        A connection count that the configuration has changed is emitted too.
        """
        values = {
            "epoch": self.epoch,
            "tracker_id": self.tracker_id,
            "cluster": self.cluster,
            "connection_count": self.tracker.connection_count,
            "configured_count": self.config.connection_count,
        }
        for name, value in values.items():
            self.changes.record(["meta", name, value], ("meta", name))
        self.changes.emit("daemon_started", epoch=self.epoch, server=__version__, pid=os.getpid())
        before, count = self.stored_count, self.tracker.connection_count
        if before is not None and before != count:  # another one was configured
            self.changes.emit("connection_count", count=count, before=before)
        self.stored_count = None

    def batch_ended(self) -> None:
        """Drop what only a failed commit needs: the batch is stored, its replies are sent."""
        self.left.clear()
        self.watches_answered.clear()

    # -- inside -----------------------------------------------------------------------

    def _count_gossip(self, session: Session, rows: list[GossipRow]) -> None:
        session.gossip += 1
        self.metrics.gossip_messages += 1
        self.metrics.gossip_proxies += len(rows)

    def _emit_changed(self, session: Session, changed: dict[str, Place | None]) -> None:
        for name, before in changed.items():
            after = self.tracker.place(name)
            self.tracker.note_source(name, session.id)
            place = {"name": name, "group": after.group, "generation": after.generation}
            if before is None:
                self.changes.emit("proxy_tracked", **place, session=session.id)
            else:
                old = {"old_group": before.group, "old_generation": before.generation}
                self.metrics.lowered_generations += (
                    after.group == before.group and after.generation < before.generation
                )
                self.changes.emit("proxy_changed", **place, **old, session=session.id)

    def topology_changed(self) -> None:
        """Restart the wait after which connections are advised to close."""
        self.advice.changed(self.effects.now())

    def _try_grant(self, session: Session) -> int | None:
        self._purge()  # instead of the purge inside try_acquire, so that its changes are recorded
        tracker = self.tracker
        if not tracker.need and not tracker.bootstrap:
            return None
        if self._budget_wait() is not None:
            return None
        reason = "bootstrap" if tracker.bootstrap else "need"
        lease = tracker.try_acquire()
        if lease is None:
            return None
        if self.budget.limited:
            self.budget.take(self.effects.now())
            self.changes.record(["meta", "budget", self.budget.level()], ("meta", "budget"))
        self._own(session, lease, reason)
        return lease

    def _purge(self) -> None:
        """Drop the proxies that have expired."""
        expired = self.tracker.expire()
        if expired:
            self.changes.records.append(["drop", list(expired)])
            for name, place in expired.items():
                self.mentions.pop(name, None)
                self.changes.touched.append(("proxy", name))
                self.changes.emit(
                    "proxy_expired", name=name, group=place.group, generation=place.generation
                )
            self.topology_changed()

    def _budget_wait(self) -> float | None:
        """Return the seconds until the next token when only the budget refuses; otherwise None."""
        if not self.budget.limited or not (self.tracker.bootstrap or self.tracker.need):
            return None
        return self.budget.wait(self.effects.now()) or None

    def _own(self, session: Session, lease: int, reason: str) -> None:
        session.leases.add(lease)
        session.use.leases += 1
        held = self.leases[lease] = Lease(
            session, self.effects.now(), self.effects.wall(), [], self.effects.now()
        )
        self.in_flight[lease] = None
        self.changes.record(
            ["lease", lease, lease_row(self.tracker.lease_name(lease), held).values()],
            ("lease", lease),
        )
        self.changes.touched.append(("meta", "last_lease"))
        self.changes.emit("lease_granted", lease=lease, session=session.id, reason=reason)

    def _chance_of_missing(self) -> float:
        """Return the share of the known proxies that are desired and missing.

        A claimed proxy that is not desired may be tracked as well; then it counts twice, and the
        share is a little too small. So nothing is suspected for that.
        """
        tracker = self.tracker
        known = tracker.tracked_count + tracker.claimed_count - tracker.claimed_desired_count
        missing = tracker.desired_count - tracker.claimed_desired_count
        return missing / known if known else 0.0

    def _claimed(
        self, session: Session, lease: int, name: str, principals: list[str], chance: float = 0.0
    ) -> None:
        self.in_flight.pop(lease, None)
        held = self.leases[lease]
        held.principals = principals[:MOST_ALIASES]
        self.changes.record(
            ["lease", lease, lease_row(self.tracker.lease_name(lease), held).values()],
            ("lease", lease),
        )
        self.recent.append(RecentClaim(self.effects.now(), name, False, chance))
        self.changes.emit("proxy_claimed", name=name, lease=lease, session=session.id)

    def _note_duplicate(self, name: str, chance: float = 0.0) -> None:
        """Count a dial that reached a proxy which another lease holds."""
        self.metrics.duplicates += 1
        self.recent.append(RecentClaim(self.effects.now(), name, True, chance))

    def _free(self, session: Session, lease: int, cause: str, by: Peer | None = None) -> None:
        name = self.tracker.lease_name(lease)
        self.tracker.release(lease)
        self.in_flight.pop(lease, None)
        session.leases.discard(lease)
        session.use.leases -= 1
        del self.leases[lease]
        self.changes.record(["free", lease], ("lease", lease))
        fields = {"lease": lease, "session": session.id, "name": name, "cause": cause}
        self.changes.emit("lease_released", **fields, **act_of(by))

    def _remember_source(self, session: Session) -> None:
        """Remember who a session was whose gossip may still count."""
        source = source_of(session)
        dropped = self.sources.add(session.id, source)
        self.changes.record(["source", session.id, *source], ("source", session.id))
        self.changes.touched += [("source", number) for number in dropped]

    def _forget_ended(self, now: float) -> None:
        """Forget ended sessions that are too old or too many."""
        self.changes.touched.extend([("ended", token) for token in self.sessions.forget_ended(now)])

    def _answer(self, waiter: Waiter, lease: int | None) -> None:
        """Reply to a parked acquire: with a lease, or with None because its deadline has passed."""
        session, seq = waiter.session, waiter.seq
        self._leave(waiter)
        if lease is None:
            self.changes.record(["unwait", session.token, seq], ("session", session.token))
        else:
            self.queue.note_served(waiter)
            key = ("meta", "last_served")
            self.changes.record([*key, self.queue.last_served], key)
        fields = {"seq": seq, "revision": self.changes.revision, **self.grant_fields(lease)}
        frame = encode(REPLY, fields)
        self.remember(session, seq, frame, stored=True, lease=lease)
        if waiter.route is not None:
            self.effects.deliver(waiter.route, frame)

    def _leave(self, waiter: Waiter) -> None:
        self.queue.remove(waiter)
        del waiter.session.parked[waiter.seq]
        waiter.session.use.waiters -= 1
        self.left.append(waiter)

    def _unpark(self, waiter: Waiter) -> None:
        self._leave(waiter)
        token = waiter.session.token
        self.changes.record(["unwait", token, waiter.seq], ("session", token))

    def _expire_leases(self, before: float, *, late: bool) -> None:
        while self.in_flight:
            lease = next(iter(self.in_flight))
            held = self.leases[lease]
            if held.timed_from >= before:
                return
            if late and not held.overdue:  # its claim may lie in the socket
                held.overdue, held.timed_from = True, self.effects.now()
                self.in_flight.move_to_end(lease)
                continue
            session = held.session
            expired = session.expired
            if len(expired) >= EXPIRED_LEASES:
                expired -= {min(expired)}
            session.expired = expired | {lease}
            self.changes.record(["expire", session.token, lease], ("session", session.token))
            self._free(session, lease, "claim_timeout")
            self.notify(session, {"notice": "lease_expired", "lease": lease})


def act_of(by: Peer | None) -> dict[str, Any]:
    """Return the fields of an event that name the administrator, or none."""
    return {} if by is None else {"by_uid": by.uid, "by_pid": by.pid}
