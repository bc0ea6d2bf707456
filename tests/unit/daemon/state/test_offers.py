"""Rule 20 in the daemon: offers are stored, end in a hand-over, and close the old tunnel."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from helpers.writer import AgentOf, Clock, Desk, Host, open_session
from trackd.state.changes import Offered, unpack
from trackd.storage.database import unseal
from trackd_client.errors import Code

pytestmark = pytest.mark.rule(20)

NAMES = ("p1", "p2", "p3")


class World:
    """A daemon with its clock, an agent that holds each of three proxies, and its successor."""

    def __init__(self, directory: Path, host: Host, **settings: Any) -> None:
        directory.mkdir(exist_ok=True)
        self.clock = Clock()
        self._directory, self._settings = directory, settings
        self.desk = Desk(directory, self.clock, admin_users=(1000,), **settings)
        self.old, self.new = (open_session(self.desk, host, number) for number in (1, 2))
        self.ask("track_expected", proxies=[[name, "", 1, None] for name in NAMES])
        self.lease_of = {name: self.ask("adopt", principals=[name])["lease"] for name in NAMES}

    def ask(self, op: str, by: AgentOf | None = None, **fields: Any) -> dict[str, Any]:
        return (by or self.old).ask(self.desk, op, **fields)

    def offer(self, name: str) -> int:
        lease: int = self.lease_of[name]
        assert self.ask("offer", lease=lease)["offered"] is True
        return lease

    def dial(self, name: str, op: str = "try_acquire") -> dict[str, Any]:
        """Let the successor dial, and return the reply to its claim."""
        lease = self.ask(op, self.new)["lease"]
        assert lease is not None
        return self.ask("claim", self.new, lease=lease, principals=[name])

    def notices(self, agent: AgentOf) -> list[dict[str, Any]]:
        """Return the notices that wait for an agent."""
        notices: list[dict[str, Any]] = agent.ask(self.desk, "watch_session")["notices"]
        return notices

    def restart(self) -> None:
        """Kill the daemon, and start another one on its state."""
        self.desk.kill()
        self.desk = Desk(self._directory, self.clock, admin_users=(1000,), **self._settings)

    def events(self, *kinds: str) -> list[tuple[str, Mapping[str, Any]]]:
        events = self.desk.state.history.after(0, 1000)
        return [(kind, fields) for _, _, _, kind, fields in events if kind in kinds]

    def missing_seconds(self) -> float:
        seconds: float = self.ask("status")["missing_seconds"]
        return seconds


@pytest.fixture
def world(tmp_path: Path, host: Host) -> World:
    return World(tmp_path, host)


@pytest.fixture(autouse=True)
def _end(world: World) -> Any:
    yield
    world.desk.kill()


def revoked(lease: int) -> dict[str, Any]:
    return {"notice": "lease_revoked", "lease": lease, "cause": "handed_over"}


def test_without_an_offer_no_change_and_no_row_speaks_of_one(world: World) -> None:
    world.ask("release", lease=world.lease_of["p1"])
    assert world.dial("p1")["claimed"] is True
    store = world.desk.sqlite
    rows = store._db.execute("SELECT changes FROM journal").fetchall()
    made = [each for (row,) in rows for moment in unpack(unseal(row)) for each in moment.changes]
    assert made
    assert not [each for each in made if isinstance(each, Offered)]
    status, explained = world.ask("status"), world.ask("explain")
    assert "offered" not in status
    assert "offered" not in explained
    assert not [row for row in world.ask("snapshot", of="leases")["rows"] if "offered" in row]


def test_a_claim_takes_over_and_the_old_session_is_notified(world: World) -> None:
    lease = world.offer("p1")
    assert world.ask("is_claimed", world.new, principals=["p1"])["claimed"] is False
    assert world.ask("is_claimed", principals=["p1"])["claimed"] is False, "of its own session too"
    reply = world.dial("p1")
    assert (reply["claimed"], reply["name"]) == (True, "p1")
    assert world.notices(world.old) == [revoked(lease)]
    assert world.ask("release", lease=lease)["released"] is False
    told = [(kind, fields["lease"]) for kind, fields in world.events("lease_released")]
    assert told == [("lease_released", lease)]
    last = world.events("lease_offered", "lease_released", "proxy_claimed")[-3:]
    assert [kind for kind, _ in last] == ["lease_offered", "lease_released", "proxy_claimed"]
    assert last[0][1] == {"lease": lease, "session": 1, "name": "p1"}
    assert last[1][1]["cause"] == "handed_over"


def test_no_second_is_below_the_target(world: World) -> None:
    world.clock.now += 1.0
    before = world.missing_seconds()
    for name in NAMES:
        world.offer(name)
        world.clock.now += 5.0
        assert world.dial(name)["claimed"] is True
        world.clock.now += 5.0
    assert world.missing_seconds() == before
    assert {held.session.id for held in world.desk.state.leases.values()} == {2}


def test_an_offer_serves_those_that_wait(world: World) -> None:
    body = world.new.body("acquire")
    assert world.desk.ask(body, world.new.peer, route=b"waiter") is None
    world.desk.sent.clear()
    world.offer("p1")
    assert [each.body["lease"] for each in world.desk.sent if each.route == b"waiter"] == [4]


def test_an_offer_survives_restarts_and_checkpoints(world: World) -> None:
    lease = world.offer("p1")
    world.restart()
    assert world.desk.state.tracker.is_offered(lease)
    world.restart()
    refused = world.ask("offer", lease=world.lease_of["p2"])
    assert refused["error"] == Code.LIMIT_EXCEEDED
    assert f"lease {lease} " in refused["message"]
    assert world.dial("p1")["claimed"] is True
    world.restart()
    assert world.notices(world.old) == [revoked(lease)], "it was not fetched before"
    world.offer("p2")


def test_a_copy_of_the_request_has_the_same_reply_and_a_second_one_changes_nothing(
    world: World,
) -> None:
    lease = world.lease_of["p1"]
    body = world.old.body("offer", lease=lease)
    first = world.desk.ask(body, world.old.peer)
    revision = world.desk.state.revision
    world.restart()
    assert world.desk.ask(body, world.old.peer) == first
    assert world.ask("offer", lease=lease)["offered"] is True
    assert world.desk.state.revision == revision + 1, "only the start of the daemon"


def test_only_ones_own_claimed_lease_can_be_offered(world: World) -> None:
    lease = world.lease_of["p1"]
    assert world.ask("offer", world.new, lease=lease)["error"] == Code.NOT_OWNER
    world.ask("release", lease=lease)
    dialling = world.ask("try_acquire")["lease"]
    refused = world.ask("offer", lease=dialling)
    assert refused["error"] == Code.INVALID_ARGUMENT
    assert "in flight" in refused["message"]
    world.offer("p2")
    assert world.ask("offer", lease=lease)["offered"] is False, "it is gone"


@pytest.mark.parametrize("how", ["release", "close", "exit", "force_release"])
def test_an_offer_ends_with_its_lease(world: World, how: str) -> None:
    lease = world.offer("p1")
    match how:
        case "exit":
            assert world.old.process is not None
            world.desk.exited(world.old.process)
        case "close":
            world.ask("close")
        case "force_release":
            world.ask("force_release", world.new, lease=lease)
        case _:
            world.ask("release", lease=lease)
    tracker = world.desk.state.tracker
    assert tracker.offered_desired_count == 0
    assert world.dial("p1")["claimed"] is True
    world.restart()
    assert world.desk.state.tracker.offered_desired_count == 0


def test_the_next_lease_of_the_session_can_be_offered_after_a_hand_over(world: World) -> None:
    world.offer("p1")
    world.dial("p1")
    world.offer("p2")
    assert world.ask("status")["offered"] == 1
    rows = {row["name"]: row for row in world.ask("snapshot", of="leases")["rows"]}
    assert [name for name, row in rows.items() if row.get("offered")] == ["p2"]
    assert world.ask("explain", name="p2")["offered"] is True
    assert "offered" not in world.ask("explain", name="p1")
    explained = world.ask("explain")
    assert (explained["need"], explained["offered"], explained["claimed_desired"]) == (True, 1, 3)


def test_a_replacement_at_another_proxy_closes_the_offered_tunnel(
    tmp_path: Path, host: Host
) -> None:
    world = World(tmp_path / "peering", host, connection_count=2)
    try:
        world.ask("release", lease=world.lease_of["p3"])
        lease = world.offer("p1")
        assert world.dial("p3")["claimed"] is True
        assert world.notices(world.old) == [revoked(lease)]
        assert set(world.desk.state.tracker.leases.values()) == {"p2", "p3"}
        assert world.missing_seconds() == 0.0
    finally:
        world.desk.kill()


def test_an_offered_tunnel_beyond_the_target_is_closed_at_once(world: World) -> None:
    lease = world.offer("p1")
    world.ask("set_connection_count", count=2)
    assert lease not in world.desk.state.leases
    assert world.notices(world.old) == [revoked(lease)]


def test_an_adoption_takes_over(world: World) -> None:
    lease = world.offer("p1")
    assert world.ask("adopt", world.new, principals=["p1.example.com"])["name"] == "p1"
    assert world.notices(world.old) == [revoked(lease)]


def test_a_session_may_replace_its_own_tunnel(world: World) -> None:
    lease = world.offer("p1")
    fresh = world.ask("try_acquire")["lease"]
    assert world.ask("claim", lease=fresh, principals=["p1"])["claimed"] is True
    assert world.notices(world.old) == [revoked(lease)]
    assert world.ask("claim", lease=fresh, principals=["p1"])["reason"] == "has_claimed"


def test_a_terminating_proxy_is_not_taken_over(world: World) -> None:
    world.offer("p1")
    lease = world.ask("try_acquire", world.new)["lease"]
    world.ask("release", lease=world.lease_of["p3"])  # or the two others would be enough
    world.ask("track_expected", proxies=[["p1", "", 1, None, {"terminating": True}]])
    assert world.ask("is_claimed", world.new, principals=["p1"])["claimed"] is True
    reply = world.ask("claim", world.new, lease=lease, principals=["p1"])
    assert (reply["claimed"], reply["reason"]) == (False, "held")


def test_no_connection_is_advised_to_close_while_a_replacement_is_missing(
    tmp_path: Path, host: Host
) -> None:
    world = World(tmp_path / "advice", host, disconnect_threshold=10.0)
    try:
        world.ask("adopt", principals=["p9"])
        advice = world.desk.actor._decide.advice
        assert advice.due() is not None, "nobody wants a connection to p9"
        world.offer("p1")
        assert advice.due() is None
        world.dial("p1")
        assert advice.due() is not None
    finally:
        world.desk.kill()


def test_a_dial_for_a_replacement_is_expected_to_succeed_as_often_as_for_a_missing_one(
    world: World,
) -> None:
    world.offer("p1")
    world.dial("p1")
    assert world.ask("explain")["recent"]["expected"] == pytest.approx(1 / 3)


def test_hand_overs_are_counted_by_cause(world: World) -> None:
    world.offer("p1")
    world.dial("p1")
    assert world.desk.actor._runtime.metrics.releases["handed_over"] == 1
