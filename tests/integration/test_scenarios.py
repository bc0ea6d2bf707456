"""Whole stories, told to a real daemon by agents in processes of their own; and the traces."""

from __future__ import annotations

import contextlib
import json
import mmap
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.agents import Agent
from helpers.support import PATIENCE, wait_until
from trackd_client import Lease, Proxy, Tracker
from trackd_client.testing import Daemon

TRACES = sorted((Path(__file__).parent.parent / "traces").glob("*.jsonl"))

Enlist = Callable[[int], list[Agent]]


@pytest.fixture
def enlist(trackd_daemon: Daemon) -> Iterator[Enlist]:
    """Start so many agents."""
    with contextlib.ExitStack() as stack:
        yield lambda count: [
            stack.enter_context(Agent(trackd_daemon.endpoint)) for _ in range(count)
        ]


def counts(agent: Agent) -> tuple[int, int, int, int]:
    """Return how many proxies are tracked, desired and claimed, and the leases in flight."""
    status = agent.do("status")
    return status["tracked"], status["desired"], status["claimed"], status["inflight"]


def rows(names: list[str], group: str = "", generation: int = 0) -> list[list[Any]]:
    return [[name, group, generation] for name in names]


def connect(agent: Agent, name: str) -> int:
    """Have an agent acquire a lease and claim a proxy with it."""
    lease = agent.do("acquire")
    assert lease is not None
    assert agent.do("claim", lease, f"{name}.example.com", name) == name
    return int(lease)


# -- leases ---------------------------------------------------------------------------


def test_before_any_gossip_one_agent_at_a_time_may_dial(enlist: Enlist) -> None:
    first, second = enlist(2)
    lease = first.do("acquire")
    assert lease == 1
    assert second.do("acquire") is None
    assert first.do("acquire") is None
    first.do("release", lease)
    assert second.do("acquire") == 2
    assert first.do("acquire") is None


def test_an_unclaimed_lease_stands_for_a_connection_until_it_is_released(enlist: Enlist) -> None:
    first, second = enlist(2)
    first.do("track", rows(["p1", "p2"]))
    leases = [first.do("acquire"), second.do("acquire")]
    assert leases == [1, 2]
    assert counts(first) == (2, 2, 0, 2)
    assert (first.do("acquire"), second.do("acquire")) == (None, None)
    second.do("release", 2)
    assert first.do("acquire") == 3


def test_a_claimed_lease_stands_for_its_proxy_until_it_is_released(enlist: Enlist) -> None:
    first, second = enlist(2)
    first.do("track", rows(["p1", "p2"]))
    lease = connect(first, "p1")
    other = second.do("acquire")
    assert second.do("claim", other, "p1") is None, "another agent holds it"
    assert second.do("claim", other, "p2") == "p2"
    assert (first.do("acquire"), second.do("acquire")) == (None, None)
    first.do("release", lease)
    assert not second.do("is_claimed", "p1")
    assert connect(second, "p1") == 3


def test_of_two_agents_that_reach_one_proxy_exactly_one_claims_it(enlist: Enlist) -> None:
    agents = enlist(2)
    for number in range(30):
        name = f"p{number}"
        agents[0].do("track", [*rows([name], "g", number), *rows([f"spare{number}"], "g", number)])
        leases = [agent.do("acquire") for agent in agents]
        for agent, lease in zip(agents, leases, strict=True):
            agent.tell("claim", lease, name)
        assert sorted([agent.answer() for agent in agents], key=str) == [None, name]
        for agent, lease in zip(agents, leases, strict=True):
            agent.do("release", lease)


# -- names ----------------------------------------------------------------------------


def test_a_name_with_and_without_the_clusters_suffix_is_one_proxy(enlist: Enlist) -> None:
    first, second = enlist(2)
    first.do("track", rows(["p1", "p2"]))
    lease = first.do("acquire")
    assert first.do("claim", lease, "p1.example.com") == "p1"
    for principals in (["p1"], ["p1.example.com"], ["p1.example.com", "p9"], ["p9", "p1"]):
        assert second.do("is_claimed", *principals)
    for principals in (["p2"], ["p1.example.com.example.com"], ["p1.example.org"], ["p11"], []):
        assert not second.do("is_claimed", *principals)
    other = second.do("acquire")
    assert second.do("claim", other, "p1") is None
    assert second.do("claim", other, "p2.example.com") == "p2"


def test_gossip_that_names_a_proxy_with_its_suffix_is_taken_at_its_word(enlist: Enlist) -> None:
    first, second = enlist(2)
    first.do("track", rows(["p1.example.com"]))
    lease = second.do("acquire")
    assert second.do("claim", lease, "p1.example.com", "p1") == "p1.example.com"
    assert first.do("is_claimed", "p1.example.com")
    assert not first.do("is_claimed", "p1")
    assert first.do("acquire") is None


# -- groups and generations -----------------------------------------------------------


def test_in_a_mesh_the_newest_generation_of_each_group_is_wanted(enlist: Enlist) -> None:
    first, second = enlist(2)
    first.do("track", [*rows(["a1", "a2"], "a", 1), *rows(["b1"], "b", 2**64 - 1)])
    assert counts(second) == (3, 3, 0, 0)
    held = [connect(first, "a1"), connect(second, "a2"), connect(first, "b1")]
    assert second.do("acquire") is None

    second.do("track", rows(["a3", "a4"], "a", 2))
    assert counts(first) == (5, 3, 3, 0)
    connect(second, "a3")
    connect(first, "a4")
    assert (first.do("acquire"), second.do("acquire")) == (None, None)
    assert counts(first) == (5, 3, 5, 0), "the old generation drains, nobody is thrown out"

    first.do("release", held[0])
    second.do("release", held[1])
    assert second.do("acquire") is None, "an old proxy is not wanted back"
    first.do("track", rows(["a3"], "a", 1))
    assert counts(first)[1] == 2, "the newest message wins, also when it lowers a generation"


def test_with_peering_no_more_than_the_count_is_wanted(enlist: Enlist) -> None:
    first, second = enlist(2)
    first.do("count", 2)
    first.do("track", [*rows(["a1", "a2", "a3"], "a", 1), *rows(["b1"], "b", 7)])
    connect(first, "a1")
    held = connect(second, "b1")
    assert (first.do("acquire"), second.do("acquire")) == (None, None)

    second.do("track", rows(["a4"], "a", 2))
    assert counts(first) == (5, 2, 2, 0)
    connect(first, "a4")
    assert second.do("acquire") is None, "a4 and b1 are two"
    second.do("release", held)
    connect(second, "b1")
    assert first.do("acquire") is None
    first.do("count", 0)
    assert second.do("acquire") is None, "a4 and b1 are all that is desired"
    second.do("track", rows(["a5"], "a", 2))
    connect(second, "a5")


@pytest.mark.parametrize("count", [0, 2])
def test_all_proxies_are_rotated_three_times(enlist: Enlist, count: int) -> None:
    agents = enlist(3)
    agents[0].do("count", count)
    wanted = count or 5
    held: list[tuple[Agent, int]] = []
    for generation in range(1, 4):
        names = [f"g{generation}-{i}" for i in range(5)]
        agents[generation % 3].do("track", rows(names, "main", generation))
        fresh = []
        for i in range(wanted):
            agent = agents[(generation + i) % 3]
            fresh.append((agent, connect(agent, names[i])))
        assert [agent.do("acquire") for agent in agents] == [None] * 3
        assert counts(agents[0])[1:3] == (5, wanted + len(held))
        for agent, lease in held:
            agent.do("release", lease)
        held = fresh
        assert counts(agents[0])[1:] == (5, wanted, 0)
    assert agents[0].do("status")["last_lease"] == 3 * wanted, "no lease was granted in vain"


# -- many at once ---------------------------------------------------------------------


def test_agents_that_dial_at_random_come_to_one_tunnel_for_each_proxy(enlist: Enlist) -> None:
    agents = enlist(4)
    names = [f"p{i}" for i in range(24)]
    agents[0].do("track", rows(names))
    for seed, agent in enumerate(agents):
        agent.tell("dial", seed, names)
    claimed = [agent.answer() for agent in agents]
    assert sorted(name for mine in claimed for name in mine) == sorted(names)
    wait_until(lambda: counts(agents[0])[3] == 0)
    assert [agent.do("acquire") for agent in agents] == [None] * 4
    print("tunnels of each agent:", [len(mine) for mine in claimed])


def test_what_a_killed_agent_held_is_free_for_the_others(enlist: Enlist) -> None:
    first, second = enlist(2)
    first.do("track", rows(["p1", "p2"]))
    connect(first, "p1")
    first.do("acquire")
    second.tell("wait", PATIENCE)
    wait_until(lambda: first.do("status")["waiting"] == 1)
    first.kill()
    lease = second.answer()
    assert second.do("claim", lease, "p1") == "p1"
    assert counts(second) == (2, 2, 1, 0)
    connect(second, "p2")


# -- the traces -----------------------------------------------------------------------

#: A daemon whose clock stands still until the test writes another time into a file. Its ticker
#: does nothing: no trace sweeps, and the counts of the traces show it. And it takes the empty
#: names of the traces, which the wire refuses otherwise.
VIRTUAL = """
import mmap, struct, sys
from pathlib import Path
import trackd.server
import trackd_client.wire.checks
from trackd.cli import main
from trackd.actors.ticker import ExpiryTicker
from trackd_client.wire.checks import check_text
with Path(sys.argv[1]).open("rb") as file:
    memory = mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ)
trackd.server.boottime = lambda: struct.unpack("=d", memory[:8])[0]
ExpiryTicker.on_receive = lambda actor, message: None
trackd_client.wire.checks.check_name = check_text
sys.exit(main(["run", *sys.argv[2:]]))
"""


class Replay:
    """A daemon with a virtual clock, and the two agents that play a trace to it in turn."""

    def __init__(self, directory: Path, cluster: str, expiry: float) -> None:
        (directory / "clock").write_bytes(struct.pack("=d", 1000.0))
        with (directory / "clock").open("r+b") as file:
            self._clock = mmap.mmap(file.fileno(), 8)
        endpoint = f"{directory}/trackd.sock"
        arguments = [f"--cluster-name={cluster}", f"--proxy-expiry={expiry}", "--state-dir="]
        self._log = (directory / "log").open("wb")
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                VIRTUAL,
                directory / "clock",
                *arguments,
                "--endpoint",
                endpoint,
            ],
            stderr=self._log,
        )
        wait_until((directory / "trackd.sock").is_socket)
        self._agents = [Tracker(endpoint, timeout=PATIENCE) for _ in range(2)]
        self._leases: dict[int, Lease] = {}

    def close(self) -> None:
        for agent in self._agents:
            agent.close()
        self._process.terminate()
        self._process.wait(PATIENCE)
        self._clock.close()
        self._log.close()

    def run(self, op: dict[str, Any]) -> dict[str, Any]:
        """Play one operation; return what the trace tells of it."""
        self._agents.reverse()
        answer = getattr(self, op.pop("op"))(**op)
        status = self._agents[0].status()
        return {
            **answer,
            "inflight": status["inflight"],
            "claimed_n": status["claimed"],
            "tracked_n": status["tracked"],
        }

    def advance(self, seconds: float) -> dict[str, Any]:
        (now,) = struct.unpack("=d", self._clock[:8])
        self._clock[:8] = struct.pack("=d", now + seconds)
        for agent in self._agents:  # deadlines are by a clock that has never jumped before
            agent._conversation.said_hello = False
        return {"ok": True}

    def track(self, proxies: list[dict[str, Any]]) -> dict[str, Any]:
        self._agents[0].track_expected(*(Proxy(**proxy) for proxy in proxies))
        return {"ok": True}

    def count(self, n: int) -> dict[str, Any]:
        self._agents[0].set_connection_count(n)
        return {"ok": True}

    def acquire(self) -> dict[str, Any]:
        lease = self._agents[0].try_acquire()
        if lease is None:
            return {"lease": None}
        self._leases[lease.id] = lease
        return {"lease": lease.id}

    def claim(self, lease: int, principals: list[str]) -> dict[str, Any]:
        claimed = self._leases[lease].claim(*principals)
        return {"claimed": claimed, "name": self._leases[lease].claimed_name or ""}

    def release(self, lease: int) -> dict[str, Any]:
        self._leases[lease].release()
        return {"ok": True}

    def is_released(self, lease: int) -> dict[str, Any]:
        return {"released": self._leases[lease].released}

    def is_claimed(self, principals: list[str]) -> dict[str, Any]:
        return {"claimed": self._agents[0].is_claimed(*principals)}


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_a_recorded_run_is_repeated_by_two_agents_over_the_wire(
    path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    steps = [json.loads(line) for line in path.read_text().splitlines()]
    new = steps[0]["op"]
    replay = Replay(tmp_path_factory.mktemp("t"), new["cluster"], new["expiry"])
    try:
        for number, step in enumerate(steps[1:], start=2):
            op, expect = step["op"], step["expect"]
            seen = replay.run(dict(op))
            assert {key: seen.get(key) for key in expect} == expect, f"line {number}: {op}"
    finally:
        replay.close()
    assert number == 400
