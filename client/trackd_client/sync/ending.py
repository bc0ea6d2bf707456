"""Ends sessions: sends `close` until the daemon replies, for a tracker or when it is gone."""

from __future__ import annotations

import _thread
import os
import time
import warnings
from collections.abc import Callable
from typing import Final

import zmq

from trackd_client.core.base_tracker import log
from trackd_client.core.conversation import (
    RESEND_SECONDS,
    Conversation,
    Request,
    Session,
    read_reply,
)
from trackd_client.core.place import Place
from trackd_client.errors import PASSING, TrackdError
from trackd_client.sync.connection import Connection, Connections, Happened
from trackd_client.wire.clock import boottime
from trackd_client.wire.places import check_ipc_path

#: Seconds that the thread of `end_later` tries over one connection.
_TRY_SECONDS: Final = 5.0
#: Seconds between two of its tries, at first and at most.
_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0


def end_session(
    conversation: Conversation, session: Session, connection: Connection, seconds: float
) -> bool:
    """End a session that is open or perhaps open, and return whether the daemon has replied.

    Args:
        conversation: of its tracker.
        session: what to end.
        connection: where to send it.
        seconds: how long to wait for the reply at most.

    Raises:
        TrackdError: what listens is no daemon, or the session cannot be open.
    """
    deadline = boottime() + seconds
    requests = conversation.ending(session)
    return all(_answered(conversation, request, connection, deadline) for request in requests)


def end_later(conversation: Conversation, session: Session, place: Place) -> None:
    """End a session in a thread of its own, as soon as there is a daemon.

    It may be called in finalizers, where threads of `threading` cannot be started: the finalizer
    may have interrupted code that holds the locks of that module.
    """
    try:
        _thread.start_new_thread(_end, (conversation, session, place))
    except RuntimeError as error:
        log.warning("a session remains open until this process ends: %s", error)


def close_dropped(conversation: Conversation, place: Place, close: Callable[[], object]) -> None:
    """Close what a tracker leaves that was garbage collected without `close`, of either client.

    Args:
        conversation: of the tracker.
        place: of its daemon.
        close: closes its sockets.
    """
    if conversation.inherited:
        return  # after a fork they belong to the parent
    session = conversation.close()
    close()
    if session is not None and session.perhaps_open:
        end_later(conversation, session, place)
    warnings.warn("a tracker was dropped without close()", ResourceWarning, stacklevel=2)


def _end(conversation: Conversation, session: Session, place: Place) -> None:
    pid, pause = os.getpid(), _PAUSE
    while os.getpid() == pid:
        try:
            if check_ipc_path(place.find()).is_socket() and _try(conversation, session, place):
                return
        except (TrackdError, zmq.ZMQError, OSError, MemoryError) as error:
            log.debug("a session cannot be ended yet: %s", error)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _try(conversation: Conversation, session: Session, place: Place) -> bool:
    """Try to end a session over a connection of its own, and return whether that is done."""
    connections = Connections(place)
    try:
        with connections.lend() as connection:
            return end_session(conversation, session, connection, _TRY_SECONDS)
    finally:
        connections.close()


def _answered(
    conversation: Conversation, request: Request, connection: Connection, deadline: float
) -> bool:
    """Send a request, and again when needed; return whether it was answered for good in time."""
    frame = connection.ask(request.frame) or b""
    resend = boottime() + RESEND_SECONDS
    while True:
        reply = read_reply(frame) if frame else None
        if reply is not None and reply.seq == request.seq and reply.error not in PASSING:
            conversation.settle(request)
            return True
        now = boottime()
        if now >= deadline:
            return False
        happened, frame = connection.wait(min(deadline, resend) - now)
        if happened is Happened.WOKEN:
            return False
        if happened is Happened.RECONNECTED or boottime() >= resend:
            connection.send(request.frame)
            resend = boottime() + RESEND_SECONDS
