"""Rule 13 and its waiting, against a list: who is granted which lease, when, over any faults.

The model keeps a list of those that wait, with tag and deadline, and the leases with their ages. It
says before each look at the daemon which requests are answered now, and how.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from helpers.desk_machine import DeskMachine, Key, picks, run_machine
from helpers.writer import AgentOf

PROXIES = 3
CLAIM_TIMEOUT = 20.0


@dataclass
class Waits:
    """One that waits."""

    agent: AgentOf
    seq: int
    tag: int
    deadline: float


@dataclass
class Held:
    """A lease in flight."""

    agent: AgentOf
    seq: int
    since: float


class Waiting(DeskMachine):
    SETTINGS = {"claim_timeout": CLAIM_TIMEOUT, "max_ttl": 1e7}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.agents: list[AgentOf] = []
        self.waiting: list[Waits] = []  # in the order of their arrival
        self.served = 0  # the largest tag that was served
        self.leases: dict[int, Held] = {}
        self.last_lease = 0
        self.target = PROXIES
        self.outcomes: dict[Key, int | None] = {}  # of acquires: a lease, or None for refused
        self.connected: set[Key] = set()  # acquires that the present daemon has received
        self.due: dict[Key, int | None] = {}  # what has been decided since the last look

    @initialize()
    def begin(self) -> None:
        for number in range(3):
            self.join(number)
        rows = [[f"p{number}", "", 1, 1e6] for number in range(PROXIES)]
        assert self.ask(self.agents[0], "track_expected", proxies=rows) is not None

    def join(self, number: int) -> None:
        agent = self.agent(pid=100 + number)
        self.agents[number:] = [agent, *self.agents[number + 1 :]]
        reply = self.ask(agent, "open")
        assert reply is not None
        assert "error" not in reply

    # -- the model ------------------------------------------------------------------------------

    def grant(self, agent: AgentOf, seq: int) -> int:
        self.last_lease += 1
        self.leases[self.last_lease] = Held(agent, seq, self.clock.now)
        return self.last_lease

    def serve(self) -> None:
        """Grant what there is to whoever has the lowest tag, of equal tags the first to come."""
        while self.waiting and len(self.leases) < self.target:
            first = min(self.waiting, key=lambda each: each.tag)
            self.waiting.remove(first)
            self.served = max(self.served, first.tag)
            self.decide((first.agent.token, first.seq), self.grant(first.agent, first.seq))

    def decide(self, key: Key, outcome: int | None) -> None:
        self.outcomes[key] = outcome
        if key in self.connected:
            self.due[key] = outcome

    def sweep(self) -> None:
        now = self.clock.now
        for each in sorted(self.waiting, key=lambda each: each.deadline):
            if each.deadline <= now:
                self.waiting.remove(each)
                self.decide((each.agent.token, each.seq), None)
        self.leases = {k: v for k, v in self.leases.items() if v.since + CLAIM_TIMEOUT >= now}
        self.serve()

    def look(self) -> None:
        """Check that exactly those were answered that the model says, and as it says."""
        acquires = {
            key: sent.body["lease"] if "lease" in sent.body else sent.body["error"]
            for key, sent in self.arrived.items()
            if self.sent[key]["op"] == "acquire"
        }
        assert acquires == self.due
        self.due = {}

    # -- what happens -----------------------------------------------------------------------------

    @rule(pick=picks, patience=st.sampled_from((0.0, 7.0, 33.0, 1e6)))
    def acquire(self, pick: int, patience: float) -> None:
        agent = self.agents[pick % 3]
        deadline, seq = self.clock.now + patience, next(agent.numbers)
        key = agent.token, seq
        self.connected.add(key)
        if not self.waiting and len(self.leases) < self.target:
            self.decide(key, self.grant(agent, seq))
        else:
            own = [each.tag for each in self.waiting if each.agent is agent]
            tag = 1 + (own[-1] if own else self.served)
            self.waiting.append(Waits(agent, seq, tag, deadline))
        self.ask(agent, "acquire", seq=seq, deadline=deadline)
        self.look()

    @rule(pick=picks)
    def try_acquire(self, pick: int) -> None:
        agent = self.agents[pick % 3]
        reply = self.ask(agent, "try_acquire")
        assert reply is not None
        is_free = not self.waiting and len(self.leases) < self.target
        assert reply["lease"] == (self.grant(agent, reply["seq"]) if is_free else None)

    @precondition(lambda self: self.leases)
    @rule(pick=picks)
    def release(self, pick: int) -> None:
        lease = sorted(self.leases)[pick % len(self.leases)]
        agent = self.leases.pop(lease).agent
        self.serve()
        reply = self.ask(agent, "release", lease=lease)
        assert reply is not None
        assert reply["released"]
        self.look()

    @precondition(lambda self: self.waiting)
    @rule(pick=picks, how=st.sampled_from(("cancel", "done")))
    def give_up(self, pick: int, how: str) -> None:
        each = self.waiting.pop(pick % len(self.waiting))
        self.connected.discard((each.agent.token, each.seq))
        self.outcomes.pop((each.agent.token, each.seq), None)
        if how == "cancel":
            reply = self.ask(each.agent, "cancel", target=each.seq)
            assert reply is not None
            assert reply["cancelled"]
        else:
            self.ask(each.agent, "heartbeat", done=[each.seq, each.seq])
        self.look()
        self.ask_again(each.agent, each.seq)  # it never runs again
        self.look()

    @precondition(lambda self: self.leases)
    @rule(pick=picks)
    def cancel_too_late(self, pick: int) -> None:
        """Cancel a request that has been granted a lease: that is taken back."""
        lease = sorted(self.leases)[pick % len(self.leases)]
        held = self.leases.pop(lease)
        self.outcomes.pop((held.agent.token, held.seq), None)
        self.serve()
        reply = self.ask(held.agent, "cancel", target=held.seq)
        assert reply is not None
        assert reply["cancelled"]
        self.look()

    @rule(pick=picks)
    def retransmit(self, pick: int) -> None:
        """Send an acquire again: one that waits goes on, one that was answered is so again."""
        alive = {agent.token: agent for agent in self.agents}
        known = [key for key in self.outcomes if key[0] in alive]
        known += [(each.agent.token, each.seq) for each in self.waiting]
        if known:
            key = sorted(known)[pick % len(known)]
            self.connected.add(key)
            if key in self.outcomes:
                self.due[key] = self.outcomes[key]
            self.ask_again(alive[key[0]], key[1])
            self.look()

    @rule(pick=picks, how=st.sampled_from(("exit", "close")))
    def leave(self, pick: int, how: str) -> None:
        number = pick % 3
        agent = self.agents[number]
        self.waiting = [each for each in self.waiting if each.agent is not agent]
        self.leases = {k: v for k, v in self.leases.items() if v.agent is not agent}
        self.serve()
        if how == "exit":
            self.exits(agent)
        else:
            self.ask(agent, "close")
        self.arrived = {key: sent for key, sent in self.arrived.items() if key[0] != agent.token}
        self.look()
        self.join(number)

    @rule(count=st.integers(1, PROXIES + 1))
    def set_count(self, count: int) -> None:
        self.target = min(count, PROXIES)
        self.serve()
        self.ask(self.agents[0], "set_connection_count", count=count)
        self.look()

    @rule(seconds=st.sampled_from((0.5, 3.0, 19.0, 40.0)))
    def time_passes(self, seconds: float) -> None:
        end = self.clock.now + seconds
        while self.wake(end):
            self.sweep()
            self.look()
        self.clock.now = end
        overdue = [each for each in self.waiting if each.deadline < end - 0.01]
        assert not overdue, "the daemon did not wake for them"
        assert all(each.since + CLAIM_TIMEOUT > end - 0.01 for each in self.leases.values())

    @rule()
    def daemon_sweeps(self) -> None:
        """It may look at any time, and does where nothing is announced so early."""
        self.collect(self.desk.sweep())
        self.sweep()
        self.look()

    @rule()
    def daemon_is_killed(self) -> None:
        self.connected = set()
        refused = [key for key, outcome in self.outcomes.items() if outcome is None]
        for key in refused:  # kept in memory only: such a call would run again
            del self.outcomes[key]
        for held in self.leases.values():
            held.since = self.clock.now
        self.sweep()
        self.kill()
        self.look()

    @invariant()
    def nobody_waits_beside_a_free_lease(self) -> None:
        assert not self.waiting or len(self.leases) >= self.target

    @invariant()
    def the_daemon_counts_the_same(self) -> None:
        if self.agents:
            reply = self.desk.ask({"op": "status", "seq": 0}, self.agents[0].peer)
            assert reply is not None
            assert reply["waiting"] == len(self.waiting)
            assert reply["inflight"] == len(self.leases)


@pytest.mark.rule(13)
def test_whoever_waits_is_served_as_a_list_says() -> None:
    run_machine(Waiting, examples=30, steps=40)


@pytest.mark.slow
@pytest.mark.rule(13)
def test_whoever_waits_for_longer_is_served_as_a_list_says() -> None:
    run_machine(Waiting, examples=100, steps=50)
