"""Decides what time changes: whose deadlines have passed, and when the next one comes. No I/O."""

from __future__ import annotations

from typing import Final

from trackd.sessions.sessions import Session
from trackd.state import aiming, changes
from trackd.state.decide import Decisions

#: Seconds between two sweeps while no request waits for a lease.
SWEEP_INTERVAL: Final = 1.0
#: Least seconds that an overdue session gets when a sweep comes too late.
_LEAST_MORE_SECONDS: Final = 1.0


def sweep(decide: Decisions, late: float = 0.0) -> list[Session]:
    """Do everything that is due by now; return the silent sessions, which were ended.

    Args:
        decide: reads the state, and makes the changes.
        late: seconds by which this sweep comes too late, because the daemon or the host did
            not run. Heartbeats and claims of that time may still lie in the socket, so
            what seems overdue gets more time, once: a lease all of `claim_timeout`, a
            session as long as was lost, at least a second, at most its time to live.
    """
    now, state = decide.now, decide.state
    decide.swept = now
    decide.purge()
    for waiter in state.queue.late(now):
        decide.finish(waiter)
    silent = state.sessions.silent(now)
    if late > 0:
        more = min(max(late, _LEAST_MORE_SECONDS), decide.config.heartbeat_ttl)
        for session in silent:
            if not session.live.overdue:
                session.live.overdue, session.live.deadline = True, now + more
        silent = state.sessions.silent(now)
    for session in silent:
        decide.end_session(session, "no_heartbeat")
    if decide.config.claim_timeout > 0:
        _expire_leases(decide, now - decide.config.claim_timeout, late=late > 0)
    if state.lives.by_lease:
        decide.tunnels.sweep(now, late)
    decide.drop_long_ended()
    decide.pauses.sweep(now)
    past, past_groups = state.tombstones.past(now), state.tombstones.past_groups(now)
    if past or past_groups:
        decide.do(changes.TombstonesDropped(past, past_groups))
    surplus = decide.advice.choose(now)
    if surplus is not None:
        notice = {"notice": "should_close", "lease": surplus}
        decide.advise(state.leases[surplus].session, notice)
    return silent


def restart_timers(decide: Decisions) -> None:
    """Give each silent session, each lease in flight and each one that reports its whole time.

    For when the daemon begins to serve, or can store changes again: what agents sent before
    was not read or not served.
    """
    for session in decide.state.sessions:
        decide.note_sign_of_life(session)
    for lease in decide.state.in_flight:
        decide.state.leases[lease].timed_from = decide.now
    decide.state.lives.restart(decide.now)


def next_timer(decide: Decisions) -> float | None:
    """Return when the next sweep will have something to do, or None."""
    queue, state = decide.state.queue, decide.state
    marks, flips, targets = state.tracker.marks, decide.flips, state.tracker.targets
    expiry = state.tracker.next_expiry
    if marks.ends or flips.waiting or targets.ends:
        expiry = _first([expiry, marks.next_end(), flips.next_due(), targets.next_end()])
    if expiry is not None and not queue:
        expiry = max(expiry, decide.swept + SWEEP_INTERVAL)
    times = [expiry, state.sessions.next_heartbeat(), decide.advice.due()]
    if queue:
        times.append(queue.next_deadline())
    if state.backoff.pause is not None or state.paused:
        times.append(decide.pauses.due(decide.now))
    if state.lives.by_lease:
        times.append(state.lives.next())
    if queue and (wait := decide.budget_wait()) is not None:
        times.append(decide.now + wait)
    if decide.config.claim_timeout > 0 and state.in_flight:
        oldest = state.leases[next(iter(state.in_flight))].timed_from
        times.append(oldest + decide.config.claim_timeout)
    return _first(times)


def _first(moments: list[float | None]) -> float | None:
    return min((moment for moment in moments if moment is not None), default=None)


def _expire_leases(decide: Decisions, before: float, *, late: bool) -> None:
    state = decide.state
    while state.in_flight:
        lease = next(iter(state.in_flight))
        held = state.leases[lease]
        if held.timed_from >= before:
            return
        if late and not held.overdue:  # its claim may lie in the socket
            held.overdue, held.timed_from = True, decide.now
            state.in_flight.move_to_end(lease)
            continue
        session = held.session
        decide.do(changes.ClaimTimedOut(session.token, lease))
        if state.reports_outcomes:
            decide.pauses.report(session, lease, "timeout", None, decide.now)
        if lease in state.tracker.targets.aims:
            decide.metrics.aims["missed"] += 1
            decide.do_all(aiming.fail(state.tracker, lease, decide.now))
        decide.free(session, lease, "claim_timeout")
        decide.notify(session, {"notice": "lease_expired", "lease": lease})
