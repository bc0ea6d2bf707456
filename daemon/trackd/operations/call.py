"""A request of a peer, with the handle for its reply."""

from __future__ import annotations

from typing import Any, NamedTuple

from pykka._types import OptExcInfo

from trackd.operations.repeats import Heard
from trackd.sessions.identity import Peer, Process
from trackd_client.wire.errors import ProtocolError


class Attested(NamedTuple):
    """What another host says of a process of its own, which cannot be looked up here.

    Attributes:
        process: the process; None when that host cannot see it, and it must send heartbeats.
        command: what it runs, for people; "" when that is hidden.
    """

    process: Process | None
    command: str


#: Nothing is known of a process.
UNATTESTED = Attested(None, "")


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
        admin: whether the peer may do what an admin may; None: the roles of this host say so.
        unlisted: whether it is an admin of its host, but no admin of the fleet for that.
        attested: what its host says of a peer of another host.
        heard: the rows of gossip in it; None also where there are few.
    """

    __slots__ = ("_outbox", "admin", "attested", "body", "deadline", "heard", "op", "peer",
                 "problem", "route", "seq", "unlisted")  # fmt: skip

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
        self.admin: bool | None = None
        self.unlisted = False
        self.attested = UNATTESTED
        self.heard: Heard | None = None

    def set(self, frame: bytes | None) -> None:
        """Queue the reply; None leaves the peer without one. Runs in the actor's thread."""
        if frame is not None:
            self._outbox.append((self.route, frame))

    def set_exception(self, exc_info: OptExcInfo | None = None) -> None:
        """Do nothing: at teardown a peer gets no reply, and sends again to the next daemon."""
