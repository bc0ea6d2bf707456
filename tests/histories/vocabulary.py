"""What a history is made of: the calls that agents made. Events are those of the client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an agent, whether or not it had a reply.

    Attributes:
        session: number of its session; 0: it needs none, or none was open yet.
        seq: number of the request in the session.
        op: the operation, as in docs/protocol.md.
        start: seconds of CLOCK_MONOTONIC, before the request was sent.
        end: likewise, after the reply had arrived; infinite: none did.
        fields: of the request.
        reply: the fields of the reply, `revision` among them; None: the call may have happened.
    """

    session: int
    seq: int
    op: str
    start: float
    end: float = inf
    fields: Mapping[str, Any] = field(default_factory=dict)
    reply: Mapping[str, Any] | None = None

    @property
    def revision(self) -> int:
        """The revision of the reply, which there must be."""
        assert self.reply is not None
        return int(self.reply["revision"])

    def __str__(self) -> str:
        at = "" if self.reply is None else f" (reply at revision {self.revision})"
        return f"{self.op} {self.seq} of session {self.session}{at}"
