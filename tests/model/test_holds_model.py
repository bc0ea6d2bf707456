"""Retired proxies and their holds (rule 15) against a dictionary of ends, in the whole daemon.

`test_tracker_model` compares all of the rule in the pure rules. Here are what only the daemon has:
sessions that end, restarts, and the sweeps in which a hold ends.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from helpers.desk_machine import DeskMachine, picks, run_machine
from helpers.writer import AgentOf

HOLD = 5.0
NAMES = ("p1", "p2", "p3")


class Holds(DeskMachine):
    SETTINGS = {"max_ttl": 1e7}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.agents: list[AgentOf] = []
        self.held: dict[int, tuple[AgentOf, str]] = {}
        self.retired: set[int] = set()
        self.ends: dict[str, float] = {}  # of names whose retired lease was released

    @initialize()
    def begin(self) -> None:
        for number in range(2):
            self.join(number)
        rows = [[name, "", 1, 1e6] for name in NAMES]
        assert self.ask(self.agents[0], "track_expected", proxies=rows) is not None

    def join(self, number: int) -> None:
        agent = self.agent(pid=100 + number)
        self.agents[number:] = [agent, *self.agents[number + 1 :]]
        assert self.ask(agent, "open") is not None

    def answer(self, agent: AgentOf, op: str, **fields: Any) -> dict[str, Any]:
        reply = self.ask(agent, op, **fields)
        assert reply is not None
        assert "error" not in reply, reply
        return reply

    # -- the model --------------------------------------------------------------------------------

    def let_go(self, lease: int) -> None:
        _, name = self.held.pop(lease)
        if lease in self.retired:
            self.ends[name] = self.clock.now + HOLD

    def sweep(self) -> None:
        self.ends = {name: end for name, end in self.ends.items() if end >= self.clock.now}

    # -- what happens -----------------------------------------------------------------------------

    @rule(pick=picks, name=st.sampled_from(NAMES))
    def adopt(self, pick: int, name: str) -> None:
        agent = self.agents[pick % 2]
        is_free = name not in {held for _, held in self.held.values()}
        reply = self.answer(agent, "adopt", principals=[name])
        assert (reply["lease"] is not None) == is_free
        assert not reply.get("terminating"), "it has come back"
        if is_free:
            self.held[reply["lease"]] = agent, name
            self.ends.pop(name, None)

    @precondition(lambda self: self.held)
    @rule(pick=picks)
    def retire(self, pick: int) -> None:
        """Retire one; a second time changes nothing."""
        lease = sorted(self.held)[pick % len(self.held)]
        assert self.answer(self.held[lease][0], "retire", lease=lease)["retired"]
        self.retired.add(lease)

    @precondition(lambda self: self.held)
    @rule(pick=picks)
    def release(self, pick: int) -> None:
        lease = sorted(self.held)[pick % len(self.held)]
        agent = self.held[lease][0]
        self.let_go(lease)
        assert self.answer(agent, "release", lease=lease)["released"]

    @rule(pick=picks, how=st.sampled_from(("exit", "close")))
    def leave(self, pick: int, how: str) -> None:
        number = pick % 2
        agent = self.agents[number]
        for lease in [lease for lease, (owner, _) in self.held.items() if owner is agent]:
            self.let_go(lease)
        if how == "exit":
            self.exits(agent)
        else:
            self.answer(agent, "close")
        self.join(number)

    @rule(seconds=st.sampled_from((0.5, 2.0, 4.5, 7.0)))
    def time_passes(self, seconds: float) -> None:
        """Let time pass; without somebody that waits, a hold ends at most a second late."""
        end = self.clock.now + seconds
        while self.wake(end):
            self.sweep()
        self.clock.now = end
        assert all(each > end - 1.01 for each in self.ends.values()), "it should have ended"

    @rule(pick=picks)
    def acquire(self, pick: int) -> None:
        """Ask for a lease, which ends what is due; give it back."""
        self.sweep()
        agent = self.agents[pick % 2]
        lease = self.answer(agent, "try_acquire")["lease"]
        if lease is not None:
            assert self.answer(agent, "release", lease=lease)["released"]

    @rule()
    def daemon_is_killed(self) -> None:
        self.kill()
        self.sweep()

    @invariant()
    def those_are_marked_that_are_retired_or_on_hold(self) -> None:
        retired = {name for lease, (_, name) in self.held.items() if lease in self.retired}
        tracker = self.desk.state.tracker
        assert {name for name in NAMES if tracker.is_marked(name)} == retired | self.ends.keys()


@pytest.mark.rule(15)
def test_a_retired_proxy_is_marked_for_as_long_as_a_dictionary_says() -> None:
    run_machine(Holds, examples=30, steps=40)


@pytest.mark.slow
@pytest.mark.rule(15)
def test_a_retired_proxy_is_marked_for_longer_as_a_dictionary_says() -> None:
    run_machine(Holds, examples=100, steps=50)
