"""Decides how long replies are kept, so that a request that is sent again runs only once. No I/O.

A session numbers its requests, and says with each which numbers it is done with: their replies have
arrived, or it has given them up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from trackd.sessions.sessions import Session
from trackd.state import changes
from trackd.state.decide import Decisions
from trackd_client.wire.done import Done

#: Replies that a session is done with, and that are kept until its next change.
_MOST_COVERED: Final = 16


def remember(
    decide: Decisions, session: Session, seq: int, frame: bytes, *, stored: bool, lease: int | None
) -> None:
    """Keep the reply of a request until its session is done with it.

    Args:
        decide: reads the state, and makes the change.
        session: whose.
        seq: the number of the request.
        frame: the reply.
        stored: whether a restart must bring it back: the request has changed something.
        lease: the lease that it grants, or None.
    """
    if stored:
        live = session.live
        done = live.done.ranges
        covered = session.take_covered()
        decide.do(changes.Replied(session.token, seq, frame, lease, done, covered))
        if seq in live.done:  # a request that gave up itself
            session.cover([seq])
    else:
        session.keep_refusal(seq, frame)


def acknowledge(decide: Decisions, session: Session, ranges: list[int]) -> None:
    """Take in the numbers that a session is done with; the acquires among them are given up.

    A number that would run again after a restart must outlive this process at once: one that was
    refused, or that has never come. The others wait for the session's next change.

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
        unstored = not _forget(session, range(last + 1, ranges[1] + 1))
    else:
        before = Done(known)
        if not live.done.update(ranges, decide.config.max_done_ranges):
            return
        every = {*session.replies, *live.repeatable, *live.refusals}
        fresh = [seq for seq in every if seq in live.done and seq not in before]
        unstored = live.done.size() - before.size() > len(fresh)
        unstored = not _forget(session, fresh) or unstored
    if live.watch is not None and live.watch.seq in live.done:
        live.watch = None
    given_up = [seq for seq in session.parked if seq in live.done] if session.parked else ()
    for seq in given_up:
        decide.unpark(session.parked[seq])
    if given_up or len(live.covered) > _MOST_COVERED:
        drop_covered(decide, session)
    elif unstored:
        decide.unstored[session] = None


def give_up(decide: Decisions, session: Session, seq: int) -> bool:
    """Cancel an earlier request: free what it was granted, and let it never run again."""
    live = session.live
    if seq in live.done:
        return False
    live.done.update([seq, seq], decide.config.max_done_ranges)
    waiter = session.parked.get(seq)
    reply = session.replies.get(seq)
    if waiter is not None:
        decide.unpark(waiter)
    if reply is not None and reply.lease in session.leases:
        decide.free(session, reply.lease, "given_up")
    if reply is not None:
        session.cover([seq])
    session.drop_refusal(seq)
    session.drop_repeatable(seq)
    drop_covered(decide, session)
    return True


def _forget(session: Session, fresh: Sequence[int]) -> bool:
    """Forget refusals and reads that are done, and note which kept replies are.

    Returns:
        Whether none of the numbers would run again after a restart: each was a read, or its
        reply is stored.
    """
    harmless = True
    repeatable = session.live.repeatable
    covered = []
    for seq in fresh:
        if seq in repeatable:
            session.drop_repeatable(seq)
        elif seq in session.replies:
            covered.append(seq)
        else:
            session.drop_refusal(seq)
            harmless = False
    session.cover(covered)
    return harmless


def drop_covered(decide: Decisions, session: Session) -> None:
    """Store what a session is done with, and drop the kept replies to it."""
    done = session.live.done.ranges
    decide.do(changes.Acknowledged(session.token, done, session.take_covered()))
