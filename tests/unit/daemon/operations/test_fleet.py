"""What a leader tells of its fleet, and what admins of the fleet do: decided by the real writer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from helpers.writer import AgentOf, Clock, Desk
from trackd.operations.runtime import FleetFacts
from trackd.sessions.identity import Peer

CANDIDATES: list[dict[str, Any]] = [
    {"host": "control-1", "leads": True},
    {"host": "control-2", "leads": False},
    {"host": "control-3", "leads": False},
]


def member(number: int, size: int | None, quota: int | None) -> dict[str, Any]:
    """Return the row of a member of etcd, which is silent without a size."""
    answers = size is not None
    version = "3.5.16" if answers else ""
    return {"member": f"10.0.0.{number}:2379", "answers": answers, "version": version,
            "size": size, "quota": quota}  # fmt: skip


@dataclass
class Leader:
    """A desk that leads a fleet of two hosts, and what it is asked to do beside the state."""

    desk: Desk
    forgotten: list[str] = field(default_factory=list)
    yielded: int = 0
    etcd: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        rows = [{"host": "host-1", "connected": True}, {"host": "host-2", "connected": False}]
        self.desk.lead(
            FleetFacts(
                "control-1",
                412,
                lambda: rows,
                self.forgotten.append,
                self._yield,
                lambda: CANDIDATES,
                lambda: self.etcd,
            )
        )

    def _yield(self) -> None:
        self.yielded += 1

    def ask(self, agent: AgentOf, op: str, *, admin: bool = False, **fields: Any) -> dict[str, Any]:
        """Ask for an agent, whose host says whether it is an admin."""
        reply = self.desk.ask(agent.body(op, **fields), agent.peer, admin=admin)
        assert reply is not None
        return reply

    def open(self, number: int, host: str) -> AgentOf:
        """Return an agent of a host, with a session."""
        agent = AgentOf(number)
        agent.peer = Peer(*agent.peer[:3], host)
        self.ask(agent, "open")
        return agent

    def kinds(self, agent: AgentOf) -> list[tuple[str, dict[str, Any]]]:
        """Return the kinds and fields of all events."""
        return [(each[3], each[4]) for each in self.ask(agent, "log")["events"]]


@pytest.fixture
def leader(clock: Clock) -> Iterator[Leader]:
    """A leader whose state is in memory."""
    desk = Desk(None, clock, heartbeat_ttl=3600.0)
    yield Leader(desk)
    desk.kill()


def test_who_leads_is_told_with_how_it_does(leader: Leader, clock: Clock) -> None:
    agent = leader.open(1, "host-1")
    clock.now += 60.0
    told = leader.ask(agent, "fleet")
    assert (told["leader"], told["term"], told["uptime"], told["failovers"]) == (
        "control-1",
        412,
        60.0,
        0,
    )
    assert told["commits"] >= 2
    assert 0 < told["commit_p50"] <= told["commit_p99"]
    assert [row["host"] for row in told["hosts"]] == ["host-1", "host-2"]
    assert (told["candidates"], told["etcd"]) == (CANDIDATES, None)
    assert leader.ask(agent, "status")["leader"] == "control-1"


def test_only_a_leader_has_the_metrics_of_a_fleet(leader: Leader) -> None:
    agent = leader.open(1, "host-1")

    def told() -> dict[str, Any]:
        families = leader.ask(agent, "metrics")["families"]
        return {name: samples for name, *_, samples in families if "fleet" in name}

    assert told() == {
        "trackd_fleet_leader": [[["control-1"], 1]],
        "trackd_fleet_term": [[[], 412]],
        "trackd_fleet_failovers": [[[], 0]],
        "trackd_fleet_hosts": [[["connected"], 1], [["silent"], 1]],
        "trackd_fleet_candidates": [[["leads"], 1], [["stands_by"], 2]],
        "trackd_fleet_etcd_members": [],
        "trackd_fleet_etcd_bytes": [],
        "trackd_fleet_etcd_quota_bytes": [],
        "trackd_fleet_etcd_alarms": [],
        "trackd_fleet_etcd_revisions": [],
    }
    leader.etcd = {
        "members": [member(1, 900, 1000), member(2, 700, 2000), member(3, None, None)],
        "alarms": [{"member": "10.0.0.1:2379", "kind": "NOSPACE"}],
        "revisions": 5,
    }
    health = {name: samples for name, samples in told().items() if "etcd" in name}
    assert health == {
        "trackd_fleet_etcd_members": [[["answers", "3.5.16"], 2], [["silent", ""], 1]],
        "trackd_fleet_etcd_bytes": [[[], 900]],
        "trackd_fleet_etcd_quota_bytes": [[[], 1000]],
        "trackd_fleet_etcd_alarms": [[["CORRUPT"], 0], [["NOSPACE"], 1]],
        "trackd_fleet_etcd_revisions": [[[], 5]],
    }
    leader.desk.actor._runtime.fleet = None
    assert told() == {}


def test_a_host_is_dropped_with_all_that_it_holds(leader: Leader) -> None:
    admin, lost = leader.open(1, "host-1"), leader.open(2, "host-2")
    leader.ask(lost, "track_expected", proxies=[["p1", "", 1, None]])
    lease = leader.ask(lost, "try_acquire")["lease"]
    assert leader.ask(lost, "claim", lease=lease, principals=["p1"])["claimed"]
    refused = leader.ask(lost, "drop_host", host="host-1")
    assert refused["error"] == "permission_denied"
    told = leader.ask(admin, "drop_host", admin=True, host="host-2")
    assert (told["known"], told["sessions"], told["freed"]) == (True, 1, 1)
    assert leader.forgotten == ["host-2"]
    (ended,) = [fields for kind, fields in leader.kinds(admin) if kind == "session_ended"]
    assert (ended["reason"], ended["host"], ended["by_host"]) == ("host_lost", "host-2", "host-1")
    assert leader.ask(lost, "heartbeat")["reason"] == "host_lost"
    samples = leader.ask(admin, "metrics", names=["trackd_tunnel_lifetime_seconds"])["families"]
    assert ["host_lost"] in [sample[0] for sample in samples[0][4]]
    assert leader.ask(admin, "try_acquire")["lease"] is not None


def test_an_admin_may_drop_the_host_that_it_is_on(leader: Leader) -> None:
    admin = leader.open(1, "host-1")
    told = leader.ask(admin, "drop_host", admin=True, host="host-1")
    assert (told["sessions"], told["freed"]) == (1, 0)
    assert leader.ask(admin, "heartbeat")["error"] == "session_ended"


def test_a_host_that_the_fleet_does_not_know_is_not_dropped(leader: Leader) -> None:
    admin = leader.open(1, "host-1")
    told = leader.ask(admin, "drop_host", admin=True, host="host-9")
    assert (told["known"], told["sessions"], told["freed"]) == (False, 0, 0)
    acts = leader.ask(admin, "metrics", names=["trackd_admin_acts"])["families"]
    assert acts[0][4] == []


def test_only_the_term_that_is_meant_is_yielded(leader: Leader) -> None:
    admin = leader.open(1, "host-1")
    late = leader.ask(admin, "yield_lead", admin=True, term=411)
    assert (late["yielded"], late["leader"], late["term"]) == (False, "control-1", 412)
    assert leader.ask(admin, "yield_lead", term=412)["error"] == "permission_denied"
    assert leader.yielded == 0
    assert leader.ask(admin, "yield_lead", admin=True, term=412)["yielded"]
    assert leader.yielded == 1
