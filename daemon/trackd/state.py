"""Everything that the daemon knows, and each way in which it changes.

`State` joins the pure rules (`trackd.tracker`) with who owns what (`trackd.sessions`) and
who waits (`trackd.waiting`). Each change leaves a record for the store (`trackd.image` says
what the records mean). It runs in the actor's thread alone, and does no I/O: the clock, the
reply channel and the watch over processes are given to it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Protocol

from trackd.budget import Budget
from trackd.config import Config
from trackd.image import Image, LeaseRow, SessionRow
from trackd.peers import Peer
from trackd.sessions import (
    EXPIRED_LEASES,
    Ended,
    Process,
    Remembered,
    Session,
    Sessions,
    Waiter,
    Watch,
    sentence_of,
)
from trackd.store import Key, Record
from trackd.tracker import Row, Tracker
from trackd.waiting import Queue
from trackd_client.errors import Code
from trackd_client.protocol import REPLY, Done, encode

#: Seconds between two sweeps while nobody waits for what they might free.
SWEEP_INTERVAL = 1.0
#: Notices kept for a session that does not ask for them.
MOST_NOTICES = 1024


class Surroundings(Protocol):
    """What the state needs of the actor that holds it."""

    def now(self) -> float:
        """Return seconds of CLOCK_BOOTTIME."""

    def wall(self) -> float:
        """Return Unix time, for people."""

    def deliver(self, route: bytes, frame: bytes) -> None:
        """Answer a request that was parked."""

    def watch(self, process: Process) -> None:
        """Ask to be told when a process exits."""

    def unwatch(self, process: Process) -> None:
        """No longer ask for that."""


@dataclass(slots=True, eq=False)
class Lease:
    """A lease that somebody holds. Whether it has claimed, the tracker knows.

    Attributes:
        session: its owner.
        granted: seconds of CLOCK_BOOTTIME.
        wall: the same moment in Unix time.
    """

    session: Session
    granted: float
    wall: float


class State:
    """The daemon's whole state."""

    def __init__(self, config: Config, surroundings: Surroundings) -> None:
        self.config = config
        self.tracker = Tracker(config.cluster_name, config.proxy_expiry, surroundings.now)
        self.tracker.set_connection_count(config.connection_count)
        self.sessions = Sessions()
        self.queue = Queue()
        self.leases: dict[int, Lease] = {}
        self.revision = 0
        self.epoch = 0
        self.tracker_id = ""
        self.cluster = ""  # whose state it is, as the store says
        self.records: list[Record] = []
        self.touched: list[Key] = []
        self.budget = Budget(config.dial_rate, config.dial_burst)
        self.left: list[Waiter] = []  # the queue, in this batch
        self.watches_answered: list[Watch] = []  # in this batch
        self._around = surroundings
        self._in_flight: OrderedDict[int, None] = OrderedDict()
        self._swept = 0.0
        self._stored_revision = 0
        self._advised: int | None = None  # the lease that was last told to close
        self._advise_at = 0.0

    # -- sessions ---------------------------------------------------------------------

    def open_session(
        self,
        token: bytes,
        peer: Peer,
        process: Process | None,
        name: str,
        version: str,
        labels: dict[str, str],
    ) -> Session:
        """Begin a session; the token must be new."""
        session = Session(
            id=self.sessions.last_id + 1,
            token=token,
            peer=peer,
            process=process,
            name=name,
            version=version,
            labels=labels,
            opened=self._around.now(),
            wall=self._around.wall(),
        )
        self.heard_of(session)
        if self.sessions.add(session) and process is not None:
            self._around.watch(process)
        self._record(["open", token, _session_row(session).values()], ("session", token))
        self._record(["meta", "last_session", session.id], ("meta", "last_session"))
        self._changed()
        return session

    def end_session(self, session: Session, reason: str) -> list[int]:
        """End a session and release its leases, in one mutation; return their ids."""
        self._changed()
        over = {
            "error": Code.SESSION_ENDED,
            "message": sentence_of(reason),
            "reason": reason,
        }
        for waiter in list(session.parked.values()):
            self._leave(waiter)
            if waiter.route is not None:
                body = {"seq": waiter.seq, "revision": self.revision, **over}
                self._around.deliver(waiter.route, encode(REPLY, body))
        self._answer_watch(session, over)
        freed = sorted(session.leases)
        for lease in freed:
            self._free(session, lease)
        now = self._around.now()
        if self.sessions.remove(session, reason, now) and session.process is not None:
            self._around.unwatch(session.process)
        key: Key = ("session", session.token)
        self._record(["end", session.token, reason, now, session.peer.uid], key)
        self.touched.append(("ended", session.token))
        self._forget_ended(now)  # here too: without anything tracked nothing is ever swept
        return freed

    def heard_of(self, session: Session) -> None:
        """Note a sign of life, where that is what keeps a session."""
        if session.process is None:
            session.deadline = self._around.now() + self.config.heartbeat_ttl

    def remember(
        self, session: Session, seq: int, frame: bytes, *, stored: bool, lease: int | None
    ) -> None:
        """Keep the reply of a request until its session is done with it."""
        session.replies[seq] = Remembered(frame, stored, lease)
        if stored:
            self._record(
                ["reply", session.token, seq, frame, lease, list(session.done.ranges)],
                ("session", session.token),
            )

    def acknowledge(self, session: Session, ranges: list[int]) -> None:
        """Take in the numbers that a session is done with, given-up acquires included."""
        given_up = session.acknowledge(ranges, self.config.max_done_ranges)
        for seq in given_up:
            self._unpark(session.parked[seq])
        if given_up:
            done = list(session.done.ranges)
            self._record(["done", session.token, done], ("session", session.token))

    # -- the rules --------------------------------------------------------------------

    def track(self, rows: list[Row]) -> list[str]:
        """Take in gossip, whose fields the caller has checked; return the names that changed."""
        changed = self.tracker.track_rows(rows)
        if rows:
            self.records.append(["gossip", self._around.now(), self.tracker.proxy_expiry, rows])
            self.touched.extend([("proxy", row[0]) for row in rows])
        if changed:
            self._topology_changed()
        return changed

    def set_count(self, count: int) -> None:
        """Set the connection count; it holds over restarts until the configured one changes."""
        if count != self.tracker.connection_count:
            self.tracker.set_connection_count(count)
            self._record(["meta", "connection_count", count], ("meta", "connection_count"))
            self._topology_changed()

    def try_acquire(self, session: Session) -> int | None:
        """Grant a lease now, or refuse; nobody jumps the queue."""
        self.serve_waiters()
        if self.queue:
            return None
        lease = self._try_grant()
        if lease is not None:
            self._own(session, lease)
        return lease

    def retry_after(self) -> float | None:
        """Return the seconds after which the dial budget has a token for one more, or None."""
        wait = self._budget_wait()
        return None if wait is None else wait + len(self.queue) / self.budget.rate

    def grant_fields(self, lease: int | None) -> dict[str, Any]:
        """Return what a reply says of a grant, or of a refusal (None)."""
        if lease is None or self.config.claim_timeout <= 0:
            return {"lease": lease}
        claim_by = self.leases[lease].granted + self.config.claim_timeout
        return {"lease": lease, "claim_by": claim_by}

    def park(self, session: Session, seq: int, deadline: float | None, route: bytes) -> None:
        """Put an acquire at the end of the queue."""
        waiter = Waiter(session, seq, self.queue.last_order + 1, deadline, route)
        session.parked[seq] = waiter
        self.queue.add(waiter)
        self._record(
            ["wait", session.token, seq, waiter.order, deadline], ("session", session.token)
        )

    def serve_waiters(self) -> None:
        """Grant to the longest waiter for as long as the rules allow."""
        while (waiter := self.queue.first()) is not None:
            lease = self._try_grant()
            if lease is None:
                return
            self._own(waiter.session, lease)
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
        if tracker.claim(lease, principals) is None:
            return name, "held"
        self._in_flight.pop(lease, None)
        self._record(self._lease_record(lease), ("lease", lease))
        self._changed()
        return name, None

    def release(self, session: Session, lease: int) -> bool:
        """Release a lease of this session; tell whether it held anything."""
        if lease not in session.leases:
            return False
        self._free(session, lease)
        self._changed()
        return True

    def adopt(self, session: Session, principals: list[str]) -> tuple[int, str] | None:
        """Take up an open tunnel by rule 14; return lease and name, or None."""
        adopted = self.tracker.adopt(principals)
        if adopted is not None:
            self._own(session, adopted[0])
            self._in_flight.pop(adopted[0])
        return adopted

    def give_up(self, session: Session, seq: int) -> bool:
        """Take back whatever an earlier request was granted; it will never run again."""
        if seq in session.done:
            return False
        waiter = session.parked.get(seq)
        remembered = session.replies.get(seq)
        session.acknowledge([seq, seq], self.config.max_done_ranges)
        if waiter is not None:
            self._unpark(waiter)
        if remembered is not None and remembered.lease is not None:
            self.release(session, remembered.lease)
        self._record(["done", session.token, [seq, seq]], ("session", session.token))
        return True

    def sweep(self) -> list[Session]:
        """Do all that time brings about; return the sessions that fell silent and were ended."""
        now = self._around.now()
        self._swept = now
        self._purge()
        for waiter in self.queue.late(now):
            self._answer(waiter, None)
        silent = self.sessions.silent(now)
        for session in silent:
            self.end_session(session, "no_heartbeat")
        if self.config.claim_timeout > 0:
            self._expire_leases(now - self.config.claim_timeout)
        self._forget_ended(now)
        if self._surplus() and now >= self._advise_at:
            self._advise(now)
        return silent

    def next_timer(self) -> float | None:
        """Return when the next sweep has something to do, or None."""
        expiry = self.tracker.next_expiry
        if expiry is not None and not self.queue:
            expiry = max(expiry, self._swept + SWEEP_INTERVAL)
        times = [expiry, self.queue.next_deadline(), self.sessions.next_heartbeat()]
        if self.queue and (wait := self._budget_wait()) is not None:
            times.append(self._around.now() + wait)
        if self._surplus():
            times.append(self._advise_at)
        if self.config.claim_timeout > 0 and self._in_flight:
            oldest = self.leases[next(iter(self._in_flight))].granted
            times.append(oldest + self.config.claim_timeout)
        return min((time for time in times if time is not None), default=None)

    def reconfigure(self, config: Config) -> None:
        """Go on with a configuration that differs from the last in live settings alone."""
        before, self.config = self.config, config
        self.tracker.proxy_expiry = config.proxy_expiry
        if config.connection_count != before.connection_count:
            self.set_count(config.connection_count)
            configured = ("meta", "configured_count")
            self._record([*configured, config.connection_count], configured)
        if (config.dial_rate, config.dial_burst) != (before.dial_rate, before.dial_burst):
            self.budget.change(config.dial_rate, config.dial_burst, self._around.now())

    # -- notices ----------------------------------------------------------------------

    def watch(self, session: Session, watch: Watch) -> None:
        """Park a `watch_session`; one that was parked before is answered with nothing."""
        if session.watch is not None and session.watch.seq != watch.seq:
            self._answer_watch(session, {"notices": []})
        session.watch = watch
        if session.notices:
            self._tell(session)

    def notify(self, session: Session, notice: dict[str, Any]) -> None:
        """Tell a session something, now or when it next asks."""
        if len(session.notices) < MOST_NOTICES:
            session.notices.append(notice)
        if session.watch is not None:
            self._tell(session)

    def _tell(self, session: Session) -> None:
        notices, session.notices = session.notices, []
        self._answer_watch(session, {"notices": notices})

    def _answer_watch(self, session: Session, fields: dict[str, Any]) -> None:
        watch = session.watch
        if watch is None:
            return
        session.watch = None
        self.watches_answered.append(watch)
        frame = encode(REPLY, {"seq": watch.seq, "revision": self.revision, **fields})
        if len(session.replies) + len(session.parked) < self.config.max_outstanding:
            self.remember(session, watch.seq, frame, stored=False, lease=None)
        self._around.deliver(watch.route, frame)

    # -- the store --------------------------------------------------------------------

    def load(self, image: Image) -> None:
        """Take over what an earlier process left; all of its sessions are checked by the caller."""
        around = self._around
        meta = image.meta
        self.revision = self._stored_revision = meta.get("revision", 0)
        self.epoch = meta.get("epoch", 0)
        self.tracker_id = meta.get("tracker_id", "")
        self.cluster = meta.get("cluster", "")
        self.sessions.last_id = meta.get("last_session", 0)
        if "budget" in meta:
            self.budget.restore(*meta["budget"])
        self._advise_at = around.now() + self.config.disconnect_threshold
        count = self.config.connection_count
        if meta.get("configured_count") == count:
            count = meta.get("connection_count", count)
        self.tracker.restore(
            proxies=[(name, *row) for name, row in image.proxies.items()],
            leases={lease: row.name for lease, row in image.leases.items()},
            last_lease=meta.get("last_lease", 0),
            connection_count=count,
        )
        for token, ended in sorted(image.ended.items(), key=lambda item: item[1][1]):
            self.sessions.ended[token] = Ended(*ended)
        waiters: list[Waiter] = []
        for token, row in image.sessions.items():
            session = _session(token, row)
            self.heard_of(session)
            if self.sessions.add(session) and session.process is not None:
                around.watch(session.process)
            for seq, (order, deadline) in row.waits.items():
                waiter = Waiter(session, seq, order, deadline, None)
                session.parked[seq] = waiter
                waiters.append(waiter)
        for waiter in sorted(waiters, key=lambda waiter: waiter.order):
            self.queue.add(waiter)
        for lease, held in sorted(image.leases.items(), key=lambda item: item[1].granted):
            session = self.sessions.by_token[held.token]
            session.leases.add(lease)
            self.leases[lease] = Lease(session, held.granted, held.wall)
            if held.name is None:
                self._in_flight[lease] = None

    def begin_epoch(self, tracker_id: str) -> None:
        """Count a start; `tracker_id` names the state when it is new."""
        self.epoch += 1
        self.tracker_id = self.tracker_id or tracker_id
        self.cluster = self.config.cluster_name

    def record_epoch(self) -> None:
        """Have the store take in what `begin_epoch` and the configuration say."""
        for name in ("epoch", "tracker_id", "cluster", "connection_count", "configured_count"):
            key: Key = ("meta", name)
            self._record(["meta", name, self.value_of(key)], key)

    def mark(self) -> None:
        """Have this batch store something, though nothing changed."""
        self.records.append(["meta", "probed", self._around.wall()])

    def take_records(self) -> tuple[list[Record], list[Key]]:
        """Return what the batch has changed, for the store, and begin a new batch."""
        if self.revision != self._stored_revision:
            self._record(["meta", "revision", self.revision], ("meta", "revision"))
            self._stored_revision = self.revision
        records, touched = self.records, self.touched
        self.records, self.touched = [], []
        return records, touched

    def batch_ended(self) -> None:
        """Forget who was answered in the batch: it is stored, and their answers are sent."""
        self.left.clear()
        self.watches_answered.clear()

    def value_of(self, key: Key) -> Any:
        """Return what the checkpoint holds of a thing, or None when it is no more."""
        kind, name = key
        match kind:
            case "session":
                session = self.sessions.by_token.get(name)
                return None if session is None else _session_row(session).values()
            case "lease":
                lease = self.leases.get(name)
                return None if lease is None else self._lease_row(name, lease).values()
            case "proxy":
                proxy = self.tracker.get(name)
                return None if proxy is None else [proxy.group, proxy.generation, proxy.expiry]
            case "ended":
                ended = self.sessions.ended.get(name)
                return None if ended is None else list(ended)
            case "meta":
                return {
                    "revision": self.revision,
                    "epoch": self.epoch,
                    "tracker_id": self.tracker_id,
                    "cluster": self.cluster,
                    "last_lease": self.tracker.last_lease,
                    "last_session": self.sessions.last_id,
                    "connection_count": self.tracker.connection_count,
                    "configured_count": self.config.connection_count,
                    "budget": list(self.budget.level()),
                }.get(name)
            case _:
                return None

    # -- inside -----------------------------------------------------------------------

    def _record(self, record: Record, key: Key) -> None:
        self.records.append(record)
        self.touched.append(key)

    def _changed(self) -> None:
        self.revision += 1

    def _topology_changed(self) -> None:
        self._changed()
        self._advise_at = self._around.now() + self.config.disconnect_threshold

    def _try_grant(self) -> int | None:
        self._purge()  # the one that opens try_acquire, made where what it changed is known
        if self._budget_wait() is not None:
            return None
        lease = self.tracker.try_acquire()
        if lease is not None and self.budget.limited:
            self.budget.take(self._around.now())
            self._record(["meta", "budget", self.budget.level()], ("meta", "budget"))
        return lease

    def _purge(self) -> None:
        """Drop the proxies that have expired, from the checkpoint too."""
        expired = self.tracker.sweep()
        if expired:
            self.touched.extend([("proxy", name) for name in expired])
            self._topology_changed()

    def _budget_wait(self) -> float | None:
        """Return the seconds until the next token, when nothing but that refuses; else None."""
        if not self.budget.limited or not (self.tracker.bootstrap or self.tracker.need):
            return None
        return self.budget.wait(self._around.now()) or None

    def _own(self, session: Session, lease: int) -> None:
        session.leases.add(lease)
        self.leases[lease] = Lease(session, self._around.now(), self._around.wall())
        self._in_flight[lease] = None
        self._record(self._lease_record(lease), ("lease", lease))
        self.touched.append(("meta", "last_lease"))
        self._changed()

    def _free(self, session: Session, lease: int) -> None:
        self.tracker.release(lease)
        self._in_flight.pop(lease, None)
        session.leases.discard(lease)
        del self.leases[lease]
        self._record(["free", lease], ("lease", lease))

    def _forget_ended(self, now: float) -> None:
        """Drop what is remembered of sessions that ended long ago, or of too many."""
        self.touched.extend([("ended", token) for token in self.sessions.forget_ended(now)])

    def _lease_row(self, lease: int, held: Lease) -> LeaseRow:
        return LeaseRow(held.session.token, self.tracker.lease_name(lease), held.granted, held.wall)

    def _lease_record(self, lease: int) -> Record:
        return ["lease", lease, self._lease_row(lease, self.leases[lease]).values()]

    def _answer(self, waiter: Waiter, lease: int | None) -> None:
        """Answer a parked acquire: with a lease, or with None because its time is up."""
        session, seq = waiter.session, waiter.seq
        self._leave(waiter)
        if lease is None:
            self._record(["unwait", session.token, seq], ("session", session.token))
        fields = {"seq": seq, "revision": self.revision, **self.grant_fields(lease)}
        frame = encode(REPLY, fields)
        self.remember(session, seq, frame, stored=True, lease=lease)
        if waiter.route is not None:
            self._around.deliver(waiter.route, frame)

    def _leave(self, waiter: Waiter) -> None:
        self.queue.remove(waiter)
        del waiter.session.parked[waiter.seq]
        self.left.append(waiter)

    def _unpark(self, waiter: Waiter) -> None:
        self._leave(waiter)
        token = waiter.session.token
        self._record(["unwait", token, waiter.seq], ("session", token))

    def _expire_leases(self, before: float) -> None:
        while self._in_flight:
            lease = next(iter(self._in_flight))
            held = self.leases[lease]
            if held.granted >= before:
                return
            session = held.session
            if len(session.expired) >= EXPIRED_LEASES:
                session.expired.remove(min(session.expired))
            session.expired.add(lease)
            self._record(["expire", session.token, lease], ("session", session.token))
            self._free(session, lease)
            self._changed()
            self.notify(session, {"notice": "lease_expired", "lease": lease})

    def _surplus(self) -> bool:
        """Tell whether a connection beyond the target is to be advised to close."""
        tracker = self.tracker
        return (
            self.config.disconnect_threshold > 0
            and tracker.tracked_count > 0
            and tracker.claimed_count > tracker.target
            and tracker.claimed_desired_count >= tracker.target
            and (self._advised is None or self._advised not in self.leases)
        )

    def _advise(self, now: float) -> None:
        """Advise one connection to close: one that is not desired, or one of too many that are."""
        tracker = self.tracker
        chosen: int | None = None
        for lease, name in tracker.leases.items():
            if name is None or self.leases[lease].session.watch is None:
                continue
            if not tracker.is_desired(name):
                chosen = lease
                break
            if chosen is None and tracker.claimed_desired_count > tracker.target:
                chosen = lease
        if chosen is None:
            self._advise_at = now + SWEEP_INTERVAL
            return
        self._advised = chosen
        self.notify(self.leases[chosen].session, {"notice": "should_close", "lease": chosen})


def _session_row(session: Session) -> SessionRow:
    process = session.process
    return SessionRow(
        id=session.id,
        uid=session.peer.uid,
        gid=session.peer.gid,
        pid=session.peer.pid,
        start=None if process is None else process.start,
        name=session.name,
        version=session.version,
        labels=session.labels,
        opened=session.opened,
        wall=session.wall,
        done=list(session.done.ranges),
        replies={
            seq: [reply.frame, reply.lease]
            for seq, reply in session.replies.items()
            if reply.stored
        },
        waits={seq: [waiter.order, waiter.deadline] for seq, waiter in session.parked.items()},
        expired=sorted(session.expired),
    )


def _session(token: bytes, row: SessionRow) -> Session:
    return Session(
        id=row.id,
        token=token,
        peer=Peer(row.uid, row.gid, row.pid),
        process=None if row.start is None else Process(row.pid, row.start),
        name=row.name,
        version=row.version,
        labels=row.labels,
        opened=row.opened,
        wall=row.wall,
        expired=set(sorted(row.expired)[-EXPIRED_LEASES:]),
        # Whether it was told before the restart is not known; twice does no harm.
        notices=[{"notice": "lease_expired", "lease": lease} for lease in row.expired],
        done=Done(row.done),
        replies={
            seq: Remembered(frame, True, lease) for seq, (frame, lease) in row.replies.items()
        },
    )
