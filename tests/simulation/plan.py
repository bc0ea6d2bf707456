"""What a simulation does, as a function of its seed: settings, agents, and faults by time."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any, Final

from simulation.disk import Fate

#: The kinds of faults, each with how often it comes in relation to the others.
KINDS: Final = {
    "kill": 4,  # between two steps of the daemon
    "statement": 6,  # some statement from now on fails, or is the last one
    "commit": 6,  # the next commit of events does
    "step": 4,  # the next step of a checkpoint does
    "flip": 3,  # the next end of a checkpoint does
    "kill before commit": 2,
    "kill before reply": 3,
    "full disk": 3,  # and an agent dies meanwhile
    "stall": 2,  # the daemon does not run for some seconds
    "bad wire": 4,  # messages are late, lost, doubled
    "agent dies": 5,
    "proxy stops": 3,
    "proxy retires": 3,  # it says so, and stops later
}
#: Seconds for which faults last at most, and between two of them on average.
LONGEST: Final = 20.0
EACH: Final = 2.5
#: Statements from now on among which a fault chooses.
_STATEMENTS: Final = 30


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Attributes:
        at: seconds from the begin of the simulation.
        kind: one of `KINDS`.
        size: from 0 to 1: how long it lasts, or how strong it is.
        number: which agent or proxy; which statement from now on; which reply.
        fate: of a statement.
    """

    at: float
    kind: str
    size: float
    number: int
    fate: Fate

    def __str__(self) -> str:
        return f"{self.at:.2f} s: {self.kind} {self.size:.2f} {self.number} {self.fate.name}"


@dataclass(frozen=True, slots=True)
class Plan:
    """A simulation.

    Attributes:
        seed: of all dice.
        seconds: of faults; then comes the quiet.
        faults: in the order of time.
        settings: of the daemon.
        proxies: how many there are.
        pools: agents with a pool, at every moment but for the time of a restart.
        callers: agents that call the client at random.
        batch: messages that a batch of the daemon takes at most.
        balancer: before the proxies.
        addresses: whether gossip says where each proxy is.
        is_drawn: whether `plan_of` gives the same plan for the seed.
    """

    seed: int
    seconds: float
    faults: tuple[Fault, ...]
    settings: dict[str, Any]
    proxies: int
    pools: int
    callers: int
    batch: int
    balancer: str
    addresses: bool
    is_drawn: bool = True

    def only(self, numbers: list[int]) -> Plan:
        """Return the plan with only some of the faults, by their places."""
        return replace(self, faults=tuple(self.faults[number] for number in numbers))


def plan_of(seed: int, seconds: float = 40.0) -> Plan:
    """Return the plan of a seed."""
    chance = random.Random(seed)
    settings: dict[str, Any] = {
        "claim_timeout": chance.choice((0.0, 3.0, 8.0)),
        "tunnel_timeout": chance.choice((0.0, 0.0, 10.0)),
        "dial_rate": chance.choice((0.0, 0.0, 2.0)),
        "dial_burst": 3,
        "heartbeat_ttl": 5.0,
        "max_outstanding": chance.choice((4, 8, 32)),
        "max_waiters": chance.choice((2, 8)),
        "quota_leases": chance.choice((6, 30)),
        "quota_waiters": chance.choice((3, 8)),
        "quota_reply_bytes": 65_536,
        "history": 100_000,
    }
    faults: list[Fault] = []
    at = chance.expovariate(1 / EACH)
    while at < seconds:
        kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
        number = chance.randrange(1, _STATEMENTS)
        faults.append(Fault(at, kind, chance.random(), number, chance.choice(list(Fate))))
        at += chance.expovariate(1 / EACH)
    return Plan(
        seed=seed,
        seconds=seconds,
        faults=tuple(faults),
        settings=settings,
        proxies=chance.randint(2, 5),
        pools=chance.randint(1, 3),
        callers=chance.randint(1, 3),
        batch=chance.choice((1, 1, 3, 20)),
        balancer=chance.choice(("random", "round-robin", "least-connections")),
        addresses=chance.random() < 0.3,
    )


def plan_of_statement(number: int, fate: Fate) -> Plan:
    """Return a short plan without any other fault than that of one statement."""
    plan = plan_of(1, seconds=12.0)
    fault = Fault(0.0, "statement", 0.0, number, fate)
    settings = plan.settings | {"claim_timeout": 3.0, "max_outstanding": 32, "max_waiters": 8}
    return replace(
        plan, faults=(fault,), settings=settings, pools=2, callers=1, proxies=2, is_drawn=False
    )
