"""Never two tunnels to one proxy, by whatever names it is claimed and mentioned (rule 7).

Each proxy presents several names, and gossip has one of them. All leases follow gossip. The model
knows which tunnels are open; the whole daemon knows only names.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from helpers.desk_machine import DeskMachine, picks, run_machine
from helpers.writer import CLUSTER, AgentOf

#: The name that gossip has, and what the proxy presents; all present the load balancer's name.
PROXIES = (
    ("uuid1", (f"host1.{CLUSTER}", f"uuid1.{CLUSTER}", "uuid1", "lb.example.org")),
    ("uuid2", (f"host2.{CLUSTER}", f"uuid2.{CLUSTER}", "lb.example.org")),
    ("uuid3", ("host3", "lb.example.org", "x", "y", "z", "t", "u", "v", "w", "uuid3")),
    ("host4", (f"host4.{CLUSTER}", f"uuid4.{CLUSTER}", "lb.example.org")),
)
NAMES = tuple(name for name, _ in PROXIES)
numbers = st.integers(0, len(PROXIES) - 1)


class Follow(DeskMachine):
    SETTINGS = {"admin_users": (4321,), "claim_timeout": 0}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.agents: list[AgentOf] = []
        self.tunnels: dict[int, tuple[AgentOf, int]] = {}  # by lease: who has it, to which proxy
        self.offered: set[int] = set()

    @initialize()
    def begin(self) -> None:
        for number in range(2):
            self.join(number)

    def join(self, number: int) -> None:
        agent = self.agent(pid=100 + number)
        self.agents[number:] = [agent, *self.agents[number + 1 :]]
        assert self.ask(agent, "open") is not None

    def answer(self, agent: AgentOf, op: str, **fields: Any) -> dict[str, Any]:
        reply = self.ask(agent, op, **fields)
        assert reply is not None
        assert "error" not in reply, reply
        self.end_offers()
        return reply

    def end_offers(self) -> None:
        """Close the tunnels that were replaced."""
        for lease in self.offered - self.desk.state.leases.keys():
            self.tunnels.pop(lease, None)
            self.offered.discard(lease)

    def holders(self, number: int) -> list[int]:
        return [lease for lease, (_, proxy) in self.tunnels.items() if proxy == number]

    # -- what happens -----------------------------------------------------------------------------

    @rule(pick=picks, which=st.sets(numbers, min_size=1), ttl=st.sampled_from((5.0, 60.0)))
    def gossip(self, pick: int, which: set[int], ttl: float) -> None:
        rows = [[NAMES[number], "", 1, ttl] for number in sorted(which)]
        self.answer(self.agents[pick % 2], "track_expected", proxies=rows)

    @rule(pick=picks, number=numbers, adopts=st.booleans())
    def connect(self, pick: int, number: int, adopts: bool) -> None:
        """Reach a proxy, and claim it; or adopt a tunnel, which somebody may have already."""
        agent = self.agents[pick % 2]
        presented = list(PROXIES[number][1])
        before = [lease for lease in self.holders(number) if lease not in self.offered]
        if adopts:
            lease = self.answer(agent, "adopt", principals=presented, follow=True)["lease"]
            claimed = lease is not None
        else:
            lease = self.answer(agent, "try_acquire")["lease"]
            if lease is None:
                return
            fields = {"lease": lease, "principals": presented, "follow": True}
            claimed = self.answer(agent, "claim", **fields)["claimed"]
            if not claimed:
                self.answer(agent, "release", lease=lease)
        before = [each for each in before if each in self.tunnels]
        assert claimed == (not before), "a proxy has two tunnels, or none and cannot be claimed"
        if claimed:
            self.tunnels[lease] = agent, number

    @precondition(lambda self: self.tunnels)
    @rule(pick=picks)
    def release(self, pick: int) -> None:
        lease = sorted(self.tunnels)[pick % len(self.tunnels)]
        agent, _ = self.tunnels.pop(lease)
        self.offered.discard(lease)
        assert self.answer(agent, "release", lease=lease)["released"]

    @precondition(lambda self: self.tunnels)
    @rule(pick=picks)
    def offer(self, pick: int) -> None:
        lease = sorted(self.tunnels)[pick % len(self.tunnels)]
        agent = self.tunnels[lease][0]
        if not any(self.tunnels[each][0] is agent for each in self.offered):
            self.offered.add(lease)
            self.answer(agent, "offer", lease=lease)

    @rule(name=st.sampled_from(NAMES))
    def forget(self, name: str) -> None:
        self.answer(self.agents[0], "forget", name=name)

    @rule(pick=picks)
    def leave(self, pick: int) -> None:
        number = pick % 2
        agent = self.agents[number]
        for lease in [lease for lease, (owner, _) in self.tunnels.items() if owner is agent]:
            del self.tunnels[lease]
            self.offered.discard(lease)
        self.exits(agent)
        self.end_offers()
        self.join(number)

    @rule(seconds=st.sampled_from((2.0, 6.0, 70.0)))
    def time_passes(self, seconds: float) -> None:
        end = self.clock.now + seconds
        while self.wake(end):
            self.end_offers()
        self.clock.now = end

    @rule()
    def daemon_is_killed(self) -> None:
        self.kill()

    # -- what is so -------------------------------------------------------------------------------

    @invariant()
    def a_tunnel_counts_as_that_of_its_proxy(self) -> None:
        """Whatever gossip knows, and whoever told it, has its lease by the name of gossip."""
        tracker = self.desk.state.tracker
        for number, (name, _) in enumerate(PROXIES):
            if tracker.is_tracked(name):
                held = tracker.holder(name)
                assert self.holders(number) == ([] if held is None else [held])
        open_to = {NAMES[number] for _, number in self.tunnels.values()}
        desired = {name for name in NAMES if tracker.is_desired(name)}
        assert tracker.claimed_desired_count == len(desired & open_to)
        assert {lease for lease in self.tunnels if tracker.is_offered(lease)} == self.offered

    @invariant()
    def all_leases_are_those_of_tunnels(self) -> None:
        assert self.desk.state.leases.keys() == self.tunnels.keys()
        assert self.desk.state.aliases.by_lease.keys() == self.tunnels.keys()


@pytest.mark.rule(7)
def test_no_proxy_has_two_tunnels_by_whatever_name_it_is_claimed() -> None:
    run_machine(Follow, examples=40, steps=40)


@pytest.mark.slow
@pytest.mark.rule(7)
def test_no_proxy_has_two_tunnels_by_whatever_name_it_is_claimed_for_longer() -> None:
    run_machine(Follow, examples=300, steps=60)
