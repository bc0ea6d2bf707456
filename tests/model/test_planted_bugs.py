"""The models of this folder find bugs that are planted in the daemon, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from helpers.desk_machine import DeskMachine
from model.test_holds_model import Holds
from model.test_quotas_model import Quotas
from model.test_sessions_model import Sessions
from model.test_waiting_model import Waiting
from simulation.bugs import BUGS
from trackd.operations import quotas
from trackd.sessions.sessions import Sessions as AllSessions
from trackd.sessions.use import Use
from trackd.state import marking, timers

#: Bugs of the list that the simulation must find, too, by the model that must find them.
LISTED: dict[type[DeskMachine], list[str]] = {
    Waiting: [
        "who came last is served first",
        "waiters are never served",
        "one lease too many is granted",
        "parked requests are not stored",
        "replies are not stored",
        "lease ids begin again after a crash",
        "a request that is sent again is done again",
        "a request that was given up is done when it comes late",
        "a cancel does not take the lease back",
        "a lease that never claims is kept",
        "a lease is taken back before its time",
        "a closed session keeps its leases",
    ],
    Sessions: [
        "the end of a process is not noticed",
        "silence never ends a session",
        "every session needs heartbeats",
        "a checkpoint skips a thing",
    ],
    Quotas: ["replies are not stored", "a closed session keeps its leases"],
    Holds: ["a restart skips the last batch", "the owner of a lease is not stored"],
}


def check_held_alone(context: Any, session: Any) -> None:
    """Count the leases of a user without the requests that wait."""
    use = session.use
    quotas._check(context, use.uid, "leases", use.leases, context.config.quota_leases)


#: Others, by the model that must find them.
OTHERS: dict[str, tuple[type[DeskMachine], Callable[[], Any]]] = {
    "requests that wait do not count as leases": (
        Quotas,
        lambda: patch.object(quotas, "check_lease", check_held_alone),
    ),
    "root has quotas": (Quotas, lambda: patch.object(quotas, "is_exempt", lambda _: False)),
    "replies that are done count for ever": (
        Quotas,
        lambda: patch.object(Use, "drop_reply", lambda *_: None),
    ),
    "a restart forgets who must send heartbeats": (
        Sessions,
        lambda: patch.object(timers, "restart_timers", lambda _: None),
    ),
    "ended sessions are never forgotten": (
        Sessions,
        lambda: patch.object(AllSessions, "long_ended", lambda *_: []),
    ),
    "a retired proxy stays marked for ever": (
        Holds,
        lambda: patch.object(marking, "begin_hold", lambda *_: None),
    ),
    "a claim does not end a hold": (
        Holds,
        lambda: patch.object(marking, "end_hold", lambda *_: None),
    ),
}

PLANTED = [
    *((bug, machine, BUGS[bug]) for machine, bugs in LISTED.items() for bug in bugs),
    *((bug, machine, plant) for bug, (machine, plant) in OTHERS.items()),
]


def assert_finds(machine: type[DeskMachine], plant: Callable[[], Any]) -> None:
    """Run a model while a bug is planted, and check that it finds it."""
    with plant(), pytest.raises(Exception):  # noqa: B017 - whatever it breaks
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=2000,  # found by a few hundred; which depends on constants in the code
                stateful_step_count=40,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.generate],
                report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck),
            ),
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("machine", "plant"),
    [(machine, plant) for _, machine, plant in PLANTED],
    ids=[f"{machine.__name__}: {bug}" for bug, machine, _ in PLANTED],
)
def test_a_model_finds_a_planted_bug(machine: type[DeskMachine], plant: Callable[[], Any]) -> None:
    assert_finds(machine, plant)
