"""A request of a peer, with the handle for its reply."""

from __future__ import annotations

from typing import Any

from pykka._types import OptExcInfo

from trackd.sessions.identity import Peer
from trackd_client.wire.errors import ProtocolError


class Call:
    """One request of a peer: the message, and pykka's reply handle for it.

    Attributes:
        route: the ROUTER's id of the connection; never logged.
        peer: who sent it, or None when the kernel did not say.
        seq: its number within the session, or 0 when that could not be read.
        body: the fields of the request as they were received; an operation gets its own decoded.
        op: its operation; "unknown" until it is known to exist.
        deadline: when it becomes stale, by the daemon's clock; None until that is known to matter.
        problem: what is wrong with the message itself, or None.
    """

    __slots__ = ("_outbox", "body", "deadline", "op", "peer", "problem", "route", "seq")

    def __init__(
        self,
        outbox: list[tuple[bytes, bytes]],
        route: bytes,
        peer: Peer | None,
        seq: int,
        body: dict[str, Any],
        problem: ProtocolError | None = None,
    ) -> None:
        self._outbox = outbox
        self.route = route
        self.peer = peer
        self.seq = seq
        self.body = body
        self.op = "unknown"
        self.deadline: float | None = None
        self.problem = problem

    def set(self, frame: bytes | None) -> None:
        """Queue the reply; None leaves the peer without one. Runs in the actor's thread."""
        if frame is not None:
            self._outbox.append((self.route, frame))

    def set_exception(self, exc_info: OptExcInfo | None = None) -> None:
        """Do nothing: at teardown a peer gets no reply, and sends again to the next daemon."""
