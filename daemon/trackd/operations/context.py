"""The context of an operation: state, settings, roles, clock; and logging of admin acts."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

from trackd.config.settings import Config
from trackd.host.logs import fields as log_fields
from trackd.host.roles import Roles
from trackd.operations.call import Call
from trackd.operations.replies import Replies
from trackd.operations.runtime import Runtime
from trackd.state.decide import Decisions
from trackd.state.state import State
from trackd_client.errors import Code
from trackd_client.wire.errors import ProtocolError

log = logging.getLogger("trackd.operators")


@dataclasses.dataclass(frozen=True, slots=True)
class Context:
    """The things that every operation may use.

    Attributes:
        state: the state, for reading.
        decide: makes changes of it.
        replies: makes the replies.
        config: the settings.
        roles: who is an admin.
        runtime: facts about this process.
        now: returns seconds of CLOCK_BOOTTIME.
    """

    state: State
    decide: Decisions
    replies: Replies
    config: Config
    roles: Roles
    runtime: Runtime
    now: Callable[[], float]

    def is_admin(self, call: Call) -> bool:
        """Return whether the peer of a call has the role admin."""
        if call.admin is not None:
            return call.admin
        return call.peer is not None and self.roles.is_admin(call.peer)

    def check_admin(self, call: Call, operation: str, sentence: str) -> None:
        """Check that the peer of a call has the role admin; log when it does not.

        Args:
            call: the request.
            operation: for the log.
            sentence: what it says when it is refused.

        Raises:
            ProtocolError: it does not. When the reason is the host, it is said.
        """
        if self.is_admin(call):
            return
        log.warning("admin act refused", extra=log_fields(operation=operation, **_who_asks(call)))
        if call.unlisted and call.peer is not None:
            sentence += (
                f"; admins of {call.peer.host} have it only if admin_hosts in the settings of the"
                " candidates names that host"
            )
        raise ProtocolError(Code.PERMISSION_DENIED, sentence)

    def state_fields(self) -> dict[str, Any]:
        """Return the fields of a reply that name the state that it describes."""
        return {"epoch": self.state.epoch, "tracker_id": self.state.tracker_id}


def log_act(context: Context, call: Call, operation: str, **values: object) -> None:
    """Log and count an act of an admin."""
    context.runtime.metrics.admin_acts[operation] += 1
    log.info("admin act", extra=log_fields(operation=operation, **_who_asks(call), **values))


def _who_asks(call: Call) -> dict[str, Any]:
    assert call.peer is not None
    return {"uid": call.peer.uid, "pid": call.peer.pid, **host_fields(call.peer.host)}


def host_fields(host: str) -> dict[str, Any]:
    """Return the field that names a host; none for the daemon's own."""
    return {"host": host} if host else {}


def store_word(context: Context) -> str:
    """Return the state of the store: `ok`, `failing`, or `off` without a state directory."""
    if context.runtime.store_problem is not None:
        return "failing"
    return "ok" if context.config.state_dir else "off"
