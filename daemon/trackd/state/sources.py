"""Who said what: the sessions that gossip came from, also after their end. Pure.

Each tracked proxy has the number of the session that mentioned it last. A session that has ended is
remembered here, so that an operator can still tell which process and user it was. The memory is
bounded: the oldest of those that ended is forgotten first.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice
from typing import Any, Final, NamedTuple

from trackd.sessions.sessions import Session, Sessions

#: Ended sessions that are remembered because they gossiped.
MOST_SOURCES: Final = 1000


class Source(NamedTuple):
    """The process that a session belonged to.

    Attributes:
        uid: its user.
        pid: its process id.
        agent: what it called itself, or its command.
        host: the host that it was on; "" for the daemon's own.
    """

    uid: int
    pid: int
    agent: str
    host: str = ""


class Sources:
    """The sessions that gossiped and have ended, by number; the one that ended first is first."""

    def __init__(self) -> None:
        self._ended: OrderedDict[int, Source] = OrderedDict()

    def add(self, number: int, source: Source) -> None:
        """Remember a session that has ended."""
        self._ended[number] = source

    def drop(self, number: int) -> None:
        """Forget a session; KeyError when it is not remembered."""
        del self._ended[number]

    def too_many(self) -> list[int]:
        """Return those that ended first and must be forgotten to make room for another one."""
        return list(islice(self._ended, max(0, len(self._ended) + 1 - MOST_SOURCES)))

    def get(self, number: int) -> Source | None:
        """Return a session that has ended, or None when it is not remembered."""
        return self._ended.get(number)

    def describe(self, number: int | None, sessions: Sessions) -> dict[str, Any] | None:
        """Return who a session is or was, as the wire has it; None for no session."""
        if number is None:
            return None
        living = sessions.by_id.get(number)
        source = self.get(number) if living is None else source_of(living)
        fields = {
            "session": number,
            "uid": None if source is None else source.uid,
            "pid": None if source is None else source.pid,
            "agent": "" if source is None else source.agent,
            "ended": living is None,
        }
        if source is not None and source.host:
            fields["host"] = source.host
        return fields


def source_of(session: Session) -> Source:
    """Return the process of a session."""
    peer = session.peer
    return Source(peer.uid, peer.pid, session.name or session.command, peer.host)
