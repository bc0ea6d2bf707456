"""Replies: their frames, and those of parked requests, which leave with a later batch.

A parked request is an `acquire` that waits for a lease or a `watch_session` that waits for notices.
`settle` answers those that a message has made ready; it is called before the batch is stored, since
what was granted must be stored together with its reply.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trackd.operations.operation import Fields
from trackd.sessions.sessions import ParkedWatch, Session, sentence_of
from trackd.state import exactly_once
from trackd.state.decide import Decisions, Finished
from trackd_client.errors import Code
from trackd_client.wire.protocol import REPLY, encode

#: Sends a reply over a connection, when the batch is stored.
SendReply = Callable[[bytes, bytes], None]


def grant_fields(decide: Decisions, lease: int | None) -> Fields:
    """Return the fields of a reply for a grant, or for a refusal (None)."""
    by = None if lease is None else decide.claim_by(lease)
    fields: Fields = {"lease": lease} if by is None else {"lease": lease, "claim_by": by}
    aims = decide.state.tracker.targets.aims
    if aims and lease in aims:
        fields["target"] = aims[lease]._asdict()
    return fields


class Replies:
    """Makes and sends the replies of one state.

    Attributes:
        watches: the watches that were answered in this batch.
    """

    def __init__(self, decide: Decisions, send: SendReply, most: int) -> None:
        """Begin without parked requests.

        Args:
            decide: what was decided, and is to be answered.
            send: sends a reply.
            most: requests of a session that wait, or whose replies are kept.
        """
        self.watches: list[ParkedWatch] = []
        self._decide = decide
        self._send = send
        self._most = most

    def frame(self, seq: int, fields: Fields) -> bytes:
        """Return the frame of a reply."""
        return encode(REPLY, {"seq": seq, "revision": self._decide.revision, **fields})

    def has_number(self, session: Session, *, spare: bool = False) -> bool:
        """Return whether a session may have another request that waits or whose reply is kept.

        Args:
            session: whose.
            spare: whether it gives up another: as many again are kept for these.
        """
        return session.unanswered() < (2 * self._most if spare else self._most)

    def watch(self, session: Session, watch: ParkedWatch) -> None:
        """Park a `watch_session`; an earlier one gets a reply without notices."""
        earlier = self._decide.watch(session, watch)
        if earlier is not None:
            self._answer_watch(session, earlier, {"notices": []}, stored=False)

    def settle(self, *, stores: bool) -> None:
        """Answer the parked requests that are ready.

        Args:
            stores: whether changes can be stored just now. Otherwise notices wait, since that
                they were sent must be stored.
        """
        decide = self._decide
        if decide.finished:
            finished, decide.finished = decide.finished, []
            for each in finished:
                self._answer_acquire(each)
        if decide.noticed and stores:
            noticed, decide.noticed = decide.noticed, {}
            for session, ended in noticed.items():
                watch, session.live.watch = session.live.watch, None
                if watch is None:
                    continue
                if ended is not None:
                    self._answer_watch(session, watch, _over(ended), stored=False)
                    continue
                stored = bool(session.notices)
                notices = decide.fetch(session)
                self._answer_watch(session, watch, {"notices": notices}, stored=stored)

    def batch_ended(self) -> None:
        """Forget what only a failed commit needs."""
        self._decide.left.clear()
        self.watches.clear()

    def _answer_acquire(self, each: Finished) -> None:
        session = each.session
        if each.ended is not None:
            frame = self.frame(each.seq, _over(each.ended))
        else:
            frame = self.frame(each.seq, grant_fields(self._decide, each.lease))
            if not session.ended:
                exactly_once.remember(
                    self._decide, session, each.seq, frame, stored=True, lease=each.lease
                )
        if each.route is not None:
            self._send(each.route, frame)

    def _answer_watch(
        self, session: Session, watch: ParkedWatch, fields: Fields, *, stored: bool
    ) -> None:
        self.watches.append(watch)
        frame = self.frame(watch.seq, fields)
        if not session.ended and self.has_number(session):
            exactly_once.remember(
                self._decide, session, watch.seq, frame, stored=stored, lease=None
            )
        self._send(watch.route, frame)


def _over(reason: str) -> dict[str, Any]:
    return {"error": Code.SESSION_ENDED, "message": sentence_of(reason), "reason": reason}
