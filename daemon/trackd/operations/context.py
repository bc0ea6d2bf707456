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

    def state_fields(self) -> dict[str, Any]:
        """Return the fields of a reply that name the state that it describes."""
        return {"epoch": self.state.epoch, "tracker_id": self.state.tracker_id}


def log_act(context: Context, call: Call, operation: str, **values: object) -> None:
    """Log and count an act of an admin."""
    assert call.peer is not None
    context.runtime.metrics.admin_acts[operation] += 1
    who = {"operation": operation, "uid": call.peer.uid, "pid": call.peer.pid}
    log.info("admin act", extra=log_fields(**who, **values))


def log_refused_act(call: Call, operation: str) -> None:
    """Log an act that was refused because the peer is not an admin."""
    assert call.peer is not None
    who = {"operation": operation, "uid": call.peer.uid, "pid": call.peer.pid}
    log.warning("admin act refused", extra=log_fields(**who))


def store_word(context: Context) -> str:
    """Return the state of the store: `ok`, `failing`, or `off` without a state directory."""
    if context.runtime.store_problem is not None:
        return "failing"
    return "ok" if context.config.state_dir else "off"
