"""What every operation is given beside its call, and what several of them do with it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable

from trackd.config.settings import Config
from trackd.host.logs import fields as about
from trackd.host.roles import Roles
from trackd.operations.call import Call
from trackd.operations.runtime import Runtime
from trackd.state.state import State

log = logging.getLogger("trackd.operators")


@dataclasses.dataclass(frozen=True, slots=True)
class Context:
    """What the daemon is at the moment.

    Attributes:
        state: all that it knows.
        config: its settings.
        roles: who is an admin.
        runtime: what it knows of its own process.
        now: returns seconds of CLOCK_BOOTTIME.
    """

    state: State
    config: Config
    roles: Roles
    runtime: Runtime
    now: Callable[[], float]


def log_act(context: Context, call: Call, operation: str, **values: object) -> None:
    """Log and count what an administrator did."""
    assert call.peer is not None
    context.runtime.metrics.admin_acts[operation] += 1
    who = {"operation": operation, "uid": call.peer.uid, "pid": call.peer.pid}
    log.info("admin act", extra=about(**who, **values))


def log_refused_act(call: Call, operation: str) -> None:
    """Log that a peer without the role admin asked for an act of one."""
    assert call.peer is not None
    who = {"operation": operation, "uid": call.peer.uid, "pid": call.peer.pid}
    log.warning("admin act refused", extra=about(**who))


def store_word(context: Context) -> str:
    """Return how the store fares: `ok`, `failing`, or `off` without a state directory."""
    if context.runtime.store_problem is not None:
        return "failing"
    return "ok" if context.config.state_dir else "off"
