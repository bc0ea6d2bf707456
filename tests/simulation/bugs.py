"""Bugs to plant in the daemon, one at a time: the simulation must find each of them.

Each is a small patch with a sentence that says what the daemon does wrong. A bug that is not found
any more means that the simulation has gone blind to it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final
from unittest.mock import patch

from trackd.actors import writer
from trackd.actors.messages import Publish
from trackd.actors.writer import TrackerActor
from trackd.rules.registry import Registry
from trackd.rules.tracker import Tracker
from trackd.sessions.queue import Queue
from trackd.sessions.sessions import Session, Sessions
from trackd.state import apply, changes, exactly_once, restore, timers
from trackd.state.decide import Decisions
from trackd.storage.checkpoint import Checkpoint
from trackd.storage.sqlite import SQLiteStore
from trackd_client.wire.done import Done

Plant = Callable[[], Any]
BUGS: Final[dict[str, Plant]] = {}


def _bug(plant: Callable[[], Iterator[None]]) -> Callable[[], Iterator[None]]:
    """Register a bug under its name: that of the function, with blanks."""
    BUGS[plant.__name__.strip("_").replace("_", " ")] = contextmanager(plant)
    return plant


def _around(owner: Any, name: str, wrong: Callable[..., Any]) -> Any:
    """Return a patch that calls `wrong` with the right function first, then the arguments."""
    right = getattr(owner, name)

    @functools.wraps(right)
    def call(*args: Any, **named: Any) -> Any:
        return wrong(right, *args, **named)

    return patch.object(owner, name, call)


def _row_of(kind: str, wrong: Callable[[Any], Any]) -> Any:
    """Return a patch of what a checkpoint writes for the things of a kind."""

    def row_of(right: Any, state: Any, key: Any) -> Any:
        row = right(state, key)
        return wrong(row) if key[0] == kind and row is not None else row

    return _around(writer, "row_of", row_of)


def _apply(kind: Any, wrong: Callable[..., Any]) -> Any:
    """Return a patch of how a kind of change is applied."""
    right = apply._APPLY[kind]
    return patch.dict(apply._APPLY, {kind: functools.partial(wrong, right)})


# -- the store -----------------------------------------------------------------------------


@_bug
def _replies_leave_before_the_commit() -> Iterator[None]:
    def commit(right: Any, actor: Any, store: Any) -> Any:
        actor.mailbox.flush()
        return right(actor, store)

    with _around(TrackerActor, "_commit", commit):
        yield


@_bug
def _a_commit_that_failed_counts_as_done() -> Iterator[None]:
    def newest_row(_right: Any, store: Any) -> int:
        return int(store._checkpoint.last_row + 1)

    with _around(SQLiteStore, "_newest_row", newest_row):
        yield


@_bug
def _a_commit_that_may_have_happened_is_stored_once_more() -> Iterator[None]:
    def newest_row(right: Any, store: Any) -> Any:
        newest = right(store)
        if newest is not None and newest > store._checkpoint.last_row:
            store._checkpoint.note_row(newest, 0)
            return 0
        return newest

    def append(right: Any, store: Any, packed: bytes) -> None:
        before = store._checkpoint.last_row
        try:
            right(store, packed)
        except Exception:
            if store._checkpoint.last_row == before:
                raise
            right(store, packed)

    with _around(SQLiteStore, "_newest_row", newest_row), _around(SQLiteStore, "append", append):
        yield


@_bug
def _the_changes_of_a_failed_commit_stay_in_memory() -> Iterator[None]:
    with patch.object(TrackerActor, "_reload_state", lambda _self: None):
        yield


@_bug
def _a_restart_skips_the_last_batch() -> Iterator[None]:
    def batches(right: Any, store: Any) -> Iterator[bytes]:
        yield from list(right(store))[:-1]

    with _around(SQLiteStore, "batches", batches):
        yield


@_bug
def _a_checkpoint_skips_a_thing() -> Iterator[None]:
    def begin(right: Any, checkpoint: Any) -> None:
        right(checkpoint)
        if len(checkpoint._todo) > 1:
            checkpoint._todo.popitem()

    with _around(Checkpoint, "_begin", begin):
        yield


@_bug
def _a_checkpoint_writes_what_was_changed_meanwhile() -> Iterator[None]:
    def touch(_right: Any, checkpoint: Any, keys: Any) -> None:
        for key in keys:
            checkpoint._dirty.setdefault(key, False)

    with _around(Checkpoint, "touch", touch):
        yield


@_bug
def _a_checkpoint_is_valid_before_it_is_written() -> Iterator[None]:
    def begin(right: Any, checkpoint: Any) -> None:
        right(checkpoint)
        todo, checkpoint._todo = checkpoint._todo, {}
        checkpoint._finish()
        checkpoint._dirty.update(todo)

    with _around(Checkpoint, "_begin", begin):
        yield


@_bug
def _the_owner_of_a_lease_is_not_stored() -> Iterator[None]:
    first: list[bytes] = []

    def owner(row: Any) -> Any:
        first.append(row[0])
        return [first[0], *row[1:]]

    with _row_of("lease", owner):
        yield


@_bug
def _parked_requests_are_not_stored() -> Iterator[None]:
    with _row_of("session", lambda row: [*row[:12], [], *row[13:]]):
        yield


@_bug
def _a_restart_forgets_which_requests_are_done() -> Iterator[None]:
    with _row_of("session", lambda row: [*row[:11], [], *row[12:]]):
        yield


@_bug
def _replies_are_not_stored() -> Iterator[None]:
    with _row_of("reply", lambda _row: None):
        yield


@_bug
def _lease_ids_begin_again_after_a_crash() -> Iterator[None]:
    with _row_of("meta", lambda row: row | {"last_lease": 0}):
        yield


@_bug
def _expired_proxies_come_back_with_a_restart() -> Iterator[None]:
    def replay(right: Any, state: Any, batch: Any, touch: Any) -> None:
        with _apply(changes.Expired, lambda *_: None):
            right(state, batch, touch)

    with _around(restore, "_replay", replay):
        yield


# -- requests ------------------------------------------------------------------------------


@_bug
def _a_request_that_is_sent_again_is_done_again() -> Iterator[None]:
    with (
        patch.object(Session, "keep_reply", lambda *_: None),
        patch.object(Session, "drop_reply", lambda *_: None),
    ):
        yield


@_bug
def _a_request_that_was_given_up_is_done_when_it_comes_late() -> Iterator[None]:
    with patch.object(Done, "__contains__", lambda *_: False):
        yield


@_bug
def _a_cancel_does_not_take_the_lease_back() -> Iterator[None]:
    def give_up(right: Any, decide: Any, session: Any, seq: int) -> Any:
        with patch.object(decide, "free", lambda *_: None):
            return right(decide, session, seq)

    with _around(exactly_once, "give_up", give_up):
        yield


# -- leases and sessions -------------------------------------------------------------------


@_bug
def _two_leases_may_hold_one_proxy() -> Iterator[None]:
    with (
        patch.object(Tracker, "is_available", lambda *_: True),
        patch.object(Registry, "holder", lambda *_: None),
    ):
        yield


@_bug
def _a_release_does_not_free_the_name() -> Iterator[None]:
    def released(right: Any, state: Any, change: Any, *moment: float) -> None:
        right(state, change, *moment)
        if change.name is not None:
            state.tracker._holders[change.name] = change.lease

    with _apply(changes.Released, released):
        yield


@_bug
def _the_end_of_a_process_is_not_noticed() -> Iterator[None]:
    with patch.object(TrackerActor, "_end_sessions", lambda *_: 0):
        yield


@_bug
def _an_end_while_the_store_fails_is_forgotten() -> Iterator[None]:
    def probe(right: Any, actor: Any) -> None:
        with patch.object(actor, "_end_gone_sessions", lambda: None):
            right(actor)

    with _around(TrackerActor, "_probe", probe):
        yield


@_bug
def _a_closed_session_keeps_its_leases() -> Iterator[None]:
    def end_session(right: Any, decide: Any, session: Any, reason: str, *by: Any) -> Any:
        return right(decide, session, reason, *by) if reason != "closed" else []

    with _around(Decisions, "end_session", end_session):
        yield


@_bug
def _silence_never_ends_a_session() -> Iterator[None]:
    with patch.object(Sessions, "silent", lambda *_: []):
        yield


@_bug
def _every_session_needs_heartbeats() -> Iterator[None]:
    def note(_right: Any, decide: Any, session: Any) -> None:
        decide.state.sessions.expect_heartbeat(session, decide.now + decide.config.heartbeat_ttl)

    with _around(Decisions, "note_sign_of_life", note):
        yield


@_bug
def _a_lease_that_never_claims_is_kept() -> Iterator[None]:
    with patch.object(timers, "_expire_leases", lambda *_, **__: None):
        yield


@_bug
def _a_lease_is_taken_back_before_its_time() -> Iterator[None]:
    def expire(right: Any, decide: Any, before: float, *, late: bool) -> None:
        right(decide, before + 2.0, late=late)

    with _around(timers, "_expire_leases", expire):
        yield


# -- who gets a lease ----------------------------------------------------------------------


@_bug
def _who_came_last_is_served_first() -> Iterator[None]:
    def first(right: Any, queue: Any) -> Any:
        return list(queue)[-1] if right(queue) is not None else None

    with _around(Queue, "first", first):
        yield


@_bug
def _waiters_are_never_served() -> Iterator[None]:
    with patch.object(Decisions, "serve_waiters", lambda _self: None):
        yield


@_bug
def _one_lease_too_many_is_granted() -> Iterator[None]:
    need = Tracker.need

    def more(tracker: Any) -> bool:
        return bool(need.fget(tracker)) or tracker.inflight == 1  # type: ignore[attr-defined] # a property

    with patch.object(Tracker, "need", property(more)):
        yield


@_bug
def _the_dial_budget_is_full_after_each_start() -> Iterator[None]:
    def read(right: Any, actor: Any) -> None:
        right(actor)
        actor._state.budget.restore(10.0, actor.now())

    with _around(TrackerActor, "_read", read):
        yield


# -- events --------------------------------------------------------------------------------


@_bug
def _events_skip_a_revision() -> Iterator[None]:
    def publish_fewer(epoch: int, tracker_id: str, revision: int, events: Any) -> Any:
        fewer = [*events[:-2], events[-1]] if len(events) > 1 else events
        return Publish(epoch, tracker_id, revision, fewer)

    with patch.object(writer, "Publish", publish_fewer):
        yield


@_bug
def _a_release_is_no_event() -> Iterator[None]:
    def released(right: Any, state: Any, change: Any, *moment: float) -> None:
        right(state, change, *moment)
        state.revision -= change.name is not None

    with _apply(changes.Released, released):
        yield
