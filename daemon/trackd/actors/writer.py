"""TrackerActor: the only code that changes state. Everything that can is a message to it.

Requests of agents, `Sweep` from the ticker, `ProcessExited` from the watcher and what the
server asks come in one order through one inbox (`trackd.actors.mailbox`) and are handled in one
thread. A batch of messages is stored by one commit before anything that it did is visible.

Failures: when a commit fails, the batch never happened. The state is built again from what is
committed, and the requests of the batch are served from that: changes get `unavailable`, reads go
on. Then the store is probed every second until it works again. When the store belongs to another
process now, the actor ends at once and answers nothing. An unexpected exception discards the batch,
replies `internal`, and ends the actor and with it the process: half-changed memory is never used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
import os
import time
from collections.abc import Callable
from typing import Any

import pykka
import zmq

from trackd.actors.mailbox import MailboxFailed, RouterMailbox
from trackd.actors.messages import (
    Audience,
    Bind,
    Ping,
    ProcessExited,
    Publish,
    Recover,
    Reload,
    ReloadOutcome,
    RestoreFiles,
    Serve,
    Sweep,
    UnwatchProcess,
    WakeAt,
    WatchProcess,
)
from trackd.actors.supervised import OnEnd, SupervisedActor, refuse_message, send
from trackd.config.settings import Config
from trackd.host.logs import fields
from trackd.host.processes import start_time
from trackd.host.roles import Roles
from trackd.operations.call import Call
from trackd.operations.context import Context, host_fields
from trackd.operations.dispatch import COSTLY, Requests
from trackd.operations.replies import Replies
from trackd.operations.runtime import HttpState, Runtime
from trackd.sessions.identity import Process
from trackd.state import changes, exactly_once, history, timers
from trackd.state.changes import Moment
from trackd.state.coverage import GroupCount
from trackd.state.decide import Decisions
from trackd.state.events import pack_events
from trackd.state.restore import add_events, restore, row_of
from trackd.state.state import State
from trackd.state.timers import SWEEP_INTERVAL
from trackd.storage.store import DamagedError, DeposedError, OpenStore, Store, StoreError
from trackd_client.errors import Code
from trackd_client.wire.clock import boot_id, suspended_seconds
from trackd_client.wire.protocol import REPLY, encode, error_body

log = logging.getLogger("trackd.actor")

#: Seconds after which a sweep comes too late to judge agents by what has been read so far.
LATE_SECONDS = 0.01
#: Seconds between two steps of a checkpoint while nothing changes.
STEP_INTERVAL = 0.01
#: Seconds between two probes of a store that fails.
PROBE_SECONDS = 1.0
#: Seconds of each that checkpoint steps may take.
PROBE_STEPS_SECONDS = 0.05

#: The changes that begin and end sessions.
_OF_SESSIONS = (changes.SessionOpened, changes.SessionEnded)
#: What reading a state raises that is damaged, or makes no sense.
_UNREADABLE = (DamagedError, ValueError, TypeError, LookupError, AttributeError)


class TrackerActor(SupervisedActor):
    """The one writer; `open_store` is called in its thread.

    Attributes:
        events_first: whether events leave before the replies of their batch.
    """

    events_first = False

    def __init__(
        self,
        on_end: OnEnd,
        context: zmq.Context[zmq.Socket[bytes]],
        config: Config,
        clock: Callable[[], float],
        open_store: OpenStore,
        *,
        audience: Audience | None = None,
        ask_reload: Callable[[], None] | None = None,
        http: HttpState | None = None,
        mailbox: RouterMailbox | None = None,
    ) -> None:
        self._mailbox = mailbox or RouterMailbox(context, config.max_frame, COSTLY)
        self._mailbox.end_batch = self._end_batch
        super().__init__(on_end, self._mailbox)
        self._config = config
        self._roles = Roles(config.admin_users, config.admin_groups)
        for problem in self._roles.unknown:
            log.warning("an admin is unknown", extra=fields(reason=problem))
        self._clock = clock
        self._moment = clock()
        self._open_store = open_store
        self._store: Store | None = None
        self._runtime = Runtime(boot_id(), clock(), time.time())
        self._runtime.http = http or self._runtime.http
        self._runtime.ask_reload = ask_reload or self._runtime.ask_reload
        self._build(State(config.cluster_name))
        self._batch: list[Call] = []
        self._watched: set[Process] = set()
        self._ticker: pykka.ActorRef[Any] | None = None
        self._watcher: pykka.ActorRef[Any] | None = None
        self._publisher: pykka.ActorRef[Any] | None = None
        self._audience = audience or Audience()
        self._audience.subscribers.quota = config.quota_subscriptions
        self._runtime.subscribers = self._audience.subscribers
        self._crashes: list[
            float
        ] = []  # when the kernel reported the crashes whose leases are freed
        self._stored_count: int | None = None  # the connection count before this start
        self._published = 0  # the revision of the last event in the history
        self._announced: float | None = None  # when the ticker will wake us
        self._timer_due = True  # whether to look when that should be
        self._suspended = suspended_seconds()  # at the last sweep
        self._failed = False
        self._tracker_id = os.urandom(8).hex()
        self._epoch_stored = False

    @property
    def mailbox(self) -> RouterMailbox:
        """The inbox; the server closes it after the actor's thread has ended."""
        return self._mailbox

    def _build(self, state: State) -> None:
        """Begin to decide about a state, and to answer requests from it."""
        self._state = state
        self._runtime.gaps.begin_state()
        store = self._store
        touch = (lambda _keys: None) if store is None else store.touch
        self._decide = Decisions(state, self._config, self._runtime.metrics, touch)
        self._decide.begin(self._moment)
        self._decide.began = self._moment
        self._decide.advice.changed(self._moment)
        self._replies = Replies(self._decide, self._mailbox.send, self._config.max_outstanding)
        self._requests = Requests(self._context())

    def _context(self) -> Context:
        return Context(
            self._state,
            self._decide,
            self._replies,
            self._config,
            self._roles,
            self._runtime,
            self._clock,
        )

    def _empty_state(self) -> State:
        config = self._config
        return State(
            config.cluster_name,
            dial_rate=config.dial_rate,
            dial_burst=config.dial_burst,
            history=config.history,
            history_age=config.history_age,
        )

    # -- messages: all of this runs in the actor's thread -----------------------------

    def _handle_receive(self, message: Any) -> Any:
        """Pass requests on without pykka's checks for messages of its own."""
        return (
            self.on_receive(message) if type(message) is Call else super()._handle_receive(message)
        )

    def on_receive(self, message: Any) -> Any:
        """Handle one message; its reply leaves after its batch is stored."""
        if self._failed:
            return None
        self._moment = self._clock()
        self._decide.begin(self._moment)
        try:
            if isinstance(message, Call):
                return self._answer(message)
            if not isinstance(message, Recover | Serve):
                return self._handle(message)
        except DeposedError as error:
            self._leave(error)
            return None
        except Exception:  # noqa: BLE001 - the boundary: it is logged, and ends the process
            self._fail(message)
            return None
        return self._recover() if isinstance(message, Recover) else self._serve(message)

    def on_stop(self) -> None:
        """Commit the last batch and send its replies."""
        try:
            if not self._failed:
                self._end_batch()
            if self._store is not None:
                self._store.close()
        finally:
            super().on_stop()

    def _answer(self, call: Call) -> bytes | None:
        self._runtime.requests += 1
        self._batch.append(call)
        answer = self._requests.answer(call)
        self._serve_waiters()
        return answer

    def _handle(self, message: Any) -> None:
        if isinstance(message, MailboxFailed):
            raise message.error
        if isinstance(message, Sweep):
            self._sweep()
        elif isinstance(message, ProcessExited):
            if self._end_sessions(message.process):
                self._crashes.append(message.at)
        elif isinstance(message, Reload):
            self._reload(message)
        elif isinstance(message, ReloadOutcome):
            self._reloaded(message)
        elif isinstance(message, RestoreFiles):
            self._restore_files()
        elif isinstance(message, Bind):
            self._mailbox.bind(message.endpoint, message.descriptor)
        elif not isinstance(message, Ping):
            refuse_message(self, message)
        self._serve_waiters()

    def _sweep(self) -> None:
        late = 0.0 if self._announced is None else self._moment - self._announced
        suspended, before = suspended_seconds(), self._suspended
        late, self._suspended = max(late, suspended - before), suspended
        self._announced = None
        self._timer_due = True
        self._runtime.listings.drop_idle(self._moment)
        if self._runtime.store_problem is not None:
            self._probe()
        if self._runtime.store_problem is None:
            for session in timers.sweep(self._decide, late if late > LATE_SECONDS else 0.0):
                log.info("session ended", extra=fields(session=session.id, reason="no_heartbeat"))

    def _end_sessions(self, process: Process) -> int:
        """End the sessions of a process that has exited; while the store fails, later.

        Returns:
            The number of leases that were released.
        """
        total = 0
        if self._runtime.store_problem is not None:
            return total
        for session in self._state.sessions.of_process(process):
            freed = self._decide.end_session(session, "process_exited")
            log.info(
                "session ended",
                extra=fields(
                    session=session.id,
                    pid=process.pid,
                    **host_fields(process.host),
                    reason="process_exited",
                    freed=len(freed),
                ),
            )
            total += len(freed)
        return total

    def _reload(self, message: Reload) -> None:
        self._config, self._roles = message.config, message.roles
        self._mailbox.limit_frames(message.config.max_frame)
        self._audience.subscribers.quota = message.config.quota_subscriptions
        config = message.config
        edited = self._state.history.keep(config.history, config.history_age, self._moment)
        self._decide.touch([("history", chunk) for chunk in edited])
        self._decide.reconfigure(message.config)
        self._replies = Replies(self._decide, self._mailbox.send, message.config.max_outstanding)
        self._announced = None  # the next thing may be due earlier
        self._timer_due = True
        self._requests = Requests(self._context())
        self._reloaded(message.outcome)

    def _reloaded(self, outcome: ReloadOutcome) -> None:
        self._runtime.reloads += 1
        self._runtime.reload = {"wall": time.time(), **dataclasses.asdict(outcome)}

    def _restore_files(self) -> None:
        """Create the state files again; while that fails, changes fail as `unavailable`."""
        assert self._store is not None
        try:
            self._store.restore_files()
        except StoreError as error:
            if self._runtime.store_problem is None:
                self._runtime.store_problem = str(error)
                self._timer_due = True
                log.error("changes cannot be stored", extra=fields(reason=str(error)))  # noqa: TRY400 - the reason says it all
        else:
            log.warning("state files created again; nothing is lost")

    def _serve_waiters(self) -> None:
        """Grant what can be granted, and answer the parked requests that are ready."""
        stores = self._runtime.store_problem is None
        if stores and self._state.tracker.replaced:
            self._decide.end_offers()
        if stores and self._state.queue:
            self._decide.serve_waiters()
        if self._decide.finished or self._decide.noticed:
            self._replies.settle(stores=stores)

    def now(self) -> float:
        """Return the moment of the message that is handled: seconds of CLOCK_BOOTTIME."""
        return self._moment

    # -- batches ----------------------------------------------------------------------

    def _end_batch(self) -> None:
        """Commit the batch and send its replies; then do the work that can wait."""
        store = self._store
        if store is None or self._failed:
            return
        if self._decide.unstored:
            self._keep_done(store)
        changed = bool(self._decide.batch)
        try:
            stored = self._commit(store) if changed else None
            if stored is None:  # what was stored proves by itself that the store is ours
                store.check_owner()
        except DeposedError as error:
            self._leave(error)
            return
        if stored is not None and self.events_first:
            self._publish(store, stored)
        self._mailbox.flush()
        if changed:
            tracker = self._state.tracker
            self._runtime.coverage.note(tracker.target, tracker.missing_count, self._moment)
            missing = tracker.desired_count - tracker.claimed_desired_count
            groups = [GroupCount(*each) for each in tracker.take_changed_groups()]
            self._runtime.gaps.note(missing, groups, self._moment)
        if stored is not None:
            if not self.events_first:
                self._publish(store, stored)
            self._follow_sessions(store, stored)
        self._replies.batch_ended()
        if self._batch:
            self._count_requests()
        # Not after a batch that only read: the next request can be served first.
        due = changed or self._timer_due
        if due and store.has_work and self._runtime.store_problem is None:
            try:
                store.step()
            except StoreError as error:
                log.warning("checkpoint failed", extra=fields(reason=str(error)))
            except DeposedError as error:
                self._leave(error)
                return
        if changed or self._timer_due or self._runtime.listings.has_new:
            self._timer_due = self._runtime.listings.has_new = False
            self._set_timer()

    def _keep_done(self, store: Store) -> None:
        """Let what sessions are done with outlive this process, where no change has stored it."""
        decide = self._decide
        while decide.unstored:
            session, _ = decide.unstored.popitem()
            ranges = session.live.done.ranges
            if session.ended or session.done.ranges == ranges:
                continue
            if not store.note_done(session.token, ranges):
                exactly_once.drop_covered(decide, session)

    def _commit(self, store: Store) -> list[Moment] | None:
        """Commit the changes of the batch; return them, or None when that failed."""
        batch = self._decide.take()
        began = time.perf_counter()
        try:
            store.append(changes.pack(batch))
        except (StoreError, DamagedError) as error:
            self._lose_batch(error)
            return None
        self._runtime.metrics.commit_seconds.observe(time.perf_counter() - began)
        self._epoch_stored = True
        return batch

    def _publish(self, store: Store, batch: list[Moment]) -> None:
        """Count what was stored, and pass its events to the history and to the publisher."""
        self._runtime.metrics.take(batch)
        if self._crashes:
            now = self._clock()
            for crashed in self._crashes:
                self._runtime.metrics.crash_seconds.observe(now - crashed)
            self._crashes.clear()
        state = self._state
        packed = pack_events(batch, self._published + 1)
        self._runtime.metrics.events += len(packed)
        if not packed:
            return
        add_events(state, self._published + 1, packed, batch[-1].at, store.touch)
        self._published = state.revision
        self._send_events(state.revision, packed)

    def _publish_found(self, published: int) -> None:
        """Publish the events of a batch that is stored, although the store could not tell."""
        while events := self._state.history.after(published, history.CHUNK):
            published = events[-1][0]
            self._send_events(published, [history.pack(event) for event in events])

    def _send_events(self, revision: int, packed: list[bytes]) -> None:
        """Pass events to the publisher, while somebody listens.

        Args:
            revision: of the last one.
            packed: the events.
        """
        if self._audience.listening and self._publisher is not None:
            state = self._state
            send(self._publisher, Publish(state.epoch, state.tracker_id, revision, packed))

    def _follow_sessions(self, store: Store, batch: list[Moment]) -> None:
        """Watch the processes of sessions that were opened; forget those of sessions that ended."""
        for moment in batch:
            for change in moment.changes:
                if not isinstance(change, _OF_SESSIONS):
                    continue
                if isinstance(change, changes.SessionEnded):
                    store.forget_done(change.token)
                if (process := change.process) is not None:
                    self._watch(process)

    def _watch(self, process: Process) -> None:
        """Let the watcher watch a process of this host while it has sessions."""
        if self._watcher is None or process.host:
            return
        if self._state.sessions.has_process(process):
            if process not in self._watched:
                self._watched.add(process)
                send(self._watcher, WatchProcess(process))
        elif process in self._watched:
            self._watched.remove(process)
            send(self._watcher, UnwatchProcess(process))

    def _count_requests(self) -> None:
        """Count the requests of a batch, and the time from their receipt."""
        metrics = self._runtime.metrics
        metrics.batch_requests.observe(len(self._batch))
        seconds = time.perf_counter() - self._mailbox.batch_began
        counts: dict[str, int] = {}
        for call in self._batch:
            counts[call.op] = counts.get(call.op, 0) + 1
        for op, count in counts.items():
            metrics.requests(op, seconds, count)
        self._batch.clear()

    def _set_timer(self) -> None:
        """Ask the ticker for a sweep at the next moment that matters, unless it is set for that."""
        if self._ticker is None:
            return
        now = self._clock()
        due = self._next_due()
        if self._runtime.store_problem is not None:
            due = now + PROBE_SECONDS
        if (idle := self._runtime.listings.next_idle()) is not None:
            due = min(idle, due or math.inf)
        if self._mailbox.has_unsent:
            due = min(now + SWEEP_INTERVAL, due or math.inf)
        working = self._runtime.store_problem is None
        if working and self._store is not None and self._store.has_work:
            due = min(now + STEP_INTERVAL, due or math.inf)
        if due is not None and (self._announced is None or due < self._announced):
            self._announced = due
            send(self._ticker, WakeAt(due))

    def _lose_batch(self, error: StoreError | DamagedError) -> None:
        """Undo a batch that could not be stored, and serve its requests again without the store."""
        if isinstance(error, DamagedError):
            self._set_aside(str(error))
        log.error("changes cannot be stored", extra=fields(reason=str(error)))
        self._runtime.store_problem = str(error)
        self._crashes.clear()
        self._mailbox.discard()
        self._reload_state()
        if not self._epoch_stored:  # as it will be once the store works; `_probe` stores it
            self._decide.begin_epoch(self._tracker_id, self._stored_count)
            self._decide.ahead = self._state.revision - self._published
        for call in self._batch:
            call.set(self._requests.answer(call))
        self._decide.take()  # answering found nothing to change; see Requests

    def _reload_state(self) -> None:
        """Build the state from what is committed, and keep the connections of parked requests."""
        lost, replies = self._state, self._replies
        routes = {(token, seq): route for token, seq, route in self._decide.left}
        for session in lost.sessions:
            for seq, route in session.live.routes.items():
                routes[session.token, seq] = route
        watches = [*replies.watches, *(session.live.watch for session in lost.sessions)]
        published = self._published
        self._load()
        if self._state.tracker_id == lost.tracker_id:
            self._publish_found(published)
        # Notices of this batch are gone; their sessions ask again. The revision is the stored one.
        for watch in watches:
            if watch is not None:
                self._mailbox.send(watch.route, self._replies.frame(watch.seq, {"notices": []}))
        for waiter in self._state.queue:
            known = routes.get((waiter.session.token, waiter.seq))
            if known is not None:
                waiter.session.put_route(waiter.seq, known)

    def _probe(self) -> None:
        """Check whether the store works again; if so, do what was put off."""
        began = time.perf_counter()
        assert self._store is not None
        try:
            # Steps make room on a full disk. They write the state as it is in memory, so none is
            # taken before this start is stored.
            while (
                self._epoch_stored
                and self._store.has_work
                and time.perf_counter() < began + PROBE_STEPS_SECONDS
            ):
                self._store.step()
            self._store.append(
                changes.pack([Moment(self._moment, time.time(), [changes.Probed()])])
            )
            if not self._epoch_stored:
                self._reload_state()
        except StoreError:
            return
        log.warning("changes can be stored again")
        self._runtime.store_problem = None
        if not self._epoch_stored:
            self._decide.begin_epoch(self._tracker_id, self._stored_count)
        timers.restart_timers(self._decide)
        self._requests.take_unstored_done()
        self._end_gone_sessions()

    def _leave(self, error: DeposedError) -> None:
        """End the process without a reply: the next one that has the store answers."""
        log.critical(
            "the store has another owner; the daemon ends", extra=fields(reason=str(error))
        )
        self._failed = True
        self._mailbox.discard()
        self._batch.clear()
        with contextlib.suppress(pykka.ActorDeadError):  # it stops already
            self.stop()

    def _fail(self, message: Any) -> None:
        """End the process after an unexpected exception."""
        log.exception(  # noqa: LOG004 - called from the handler of that exception
            "unexpected failure; the daemon ends", extra=fields(message=type(message).__name__)
        )
        self._failed = True
        self._mailbox.discard()
        for call in self._batch:
            body = error_body(
                call.seq,
                self._decide.revision,
                Code.INTERNAL,
                "the daemon met an error of its own and restarts; its log tells more",
            )
            call.set(encode(REPLY, body))
        self._mailbox.flush()
        self.stop()

    def _next_due(self) -> float | None:
        """Return the next moment at which something is due, while the store works."""
        return timers.next_timer(self._decide)

    # -- start ------------------------------------------------------------------------

    def _recover(self) -> None:
        self._store = self._open_store()
        self._runtime.store_bytes = self._store.size
        self._load()
        if self._state.cluster not in ("", self._config.cluster_name):
            self._set_aside(f"it belongs to the cluster {self._state.cluster!r}")
            self._load()
        try:
            self._decide.begin_epoch(self._tracker_id, self._stored_count)
        except _UNREADABLE as error:
            self._set_aside(f"cannot be read: {error}")
            self._load()
            self._decide.begin_epoch(self._tracker_id, self._stored_count)
        self._end_batch()

    def _load(self) -> None:
        """Build the state from what is committed."""
        try:
            self._read()
        except _UNREADABLE as error:
            self._set_aside(f"cannot be read: {error}")
            self._read()

    def _read(self) -> None:
        store, state = self._store, self._empty_state()
        assert store is not None
        store.begin_reading()
        store.row_of = functools.partial(row_of, state)
        noted = store.noted_done()
        restore(state, store.rows, store.batches(), store.touch, noted)
        for token in noted.keys() - state.sessions.by_token.keys():
            store.forget_done(token)
        known = state.configured_count is not None
        self._stored_count = state.tracker.connection_count if known else None
        self._published = state.revision
        self._build(state)

    def _set_aside(self, why: str) -> None:
        """Begin a new, empty state with a tracker id of its own."""
        assert self._store is not None
        self._store.set_aside(why)
        self._tracker_id = os.urandom(8).hex()
        self._epoch_stored = False

    def _serve(self, message: Serve) -> None:
        self._ticker = message.ticker
        self._watcher = message.watcher
        self._publisher = message.publisher
        self._runtime.events = message.events
        self._end_gone_sessions()
        timers.restart_timers(self._decide)
        if self._runtime.store_problem is None:
            timers.sweep(self._decide)
        self._serve_waiters()
        self._end_batch()
        self._timer_due = True
        self._mailbox.bind(message.endpoint, message.descriptor)

    def _end_gone_sessions(self) -> None:
        """End the sessions of processes that exited while the daemon was down; watch the others.

        Those of other hosts are left alone: nothing here knows of them.
        """
        for process in self._state.sessions.processes():
            if process.host:
                continue
            gone = False
            with contextlib.suppress(OSError):  # cannot be found out: the watcher tries again
                gone = start_time(process.pid) != process.start
            if gone:
                self._end_sessions(process)
            else:
                self._watch(process)
