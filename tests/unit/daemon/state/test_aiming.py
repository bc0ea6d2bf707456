"""Rule 16 in the daemon: addresses and aims are stored, come back, and are given to the right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.writer import START, AgentOf, Clock, Desk, Host, assert_same_after_reload, open_session
from trackd.rules.targets import FIRST_HOLD, Aim
from trackd.rules.tracker import Tracker
from trackd.state import timers
from trackd.state.aiming import meet
from trackd.state.changes import Addressed, Aimed, TargetsTrusted, unpack
from trackd.storage.database import unseal
from trackd_client import Proxy

pytestmark = pytest.mark.rule(16)

Row = list[Any]


def row(name: str, address: object = None, *, generation: int = 1, ttl: float | None = None) -> Row:
    """Return a row of gossip; without an address it has four elements."""
    four: Row = [name, "", generation, ttl]
    return four if address is None else [*four, {"address": address}]


class World:
    """A daemon with its clock, and an agent of an admin, which outlives it."""

    def __init__(self, directory: Path, host: Host, **settings: Any) -> None:
        self.clock = Clock()
        self._directory, self._settings = directory, {"admin_users": (1000,), **settings}
        self.desk = Desk(directory, self.clock, **self._settings)
        self.host = host
        self.agent = open_session(self.desk, host, 1)

    def other(self, uid: int) -> AgentOf:
        agent = AgentOf(50 + uid, self.host.start(150 + uid), uid)
        agent.ask(self.desk, "open")
        return agent

    def say(self, *rows: Row) -> dict[str, Any]:
        reply = self.ask("track_expected", proxies=list(rows))
        assert "error" not in reply
        return reply

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        reply = self.agent.ask(self.desk, op, **fields)
        assert_same_after_reload(self.desk.state, self.desk.reloaded())
        return reply

    def acquire(self) -> tuple[int, str | None]:
        """Return a lease, and the name of its target."""
        reply = self.ask("try_acquire")
        assert reply["lease"] is not None
        return reply["lease"], reply.get("target", {}).get("name")

    def fail(self, failed: str = "refused") -> str | None:
        lease, name = self.acquire()
        self.ask("release", lease=lease, failed=failed)
        return name

    def at(self, seconds: float) -> None:
        """Sweep so many seconds after the beginning."""
        self.clock.now = START + seconds
        self.desk.sweep()

    def restart(self) -> None:
        """Kill the daemon, and start another one on its state."""
        self.desk.kill()
        self.desk = Desk(self._directory, self.clock, **self._settings)

    def explain(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("explain", name=name)["target"]
        return found

    def events(self, kind: str) -> list[dict[str, Any]]:
        found = self.desk.state.history.after(0, 1000)
        return [dict(fields) for _, _, _, each, fields in found if each == kind]


@pytest.fixture
def world(tmp_path: Path, host: Host) -> Iterator[World]:
    world = World(tmp_path, host)
    yield world
    world.desk.kill()


def test_a_grant_carries_a_target_only_when_an_address_is_known(world: World) -> None:
    world.say(row("p1", "10.0.0.1:3024"), row("p2"))
    reply = world.ask("try_acquire")
    assert reply["target"] == {"name": "p1", "address": "10.0.0.1:3024"}
    assert "target" not in world.ask("try_acquire")


def test_a_waiter_is_granted_a_target_as_well(world: World) -> None:
    world.say(row("p1", "a:1"))
    lease = world.ask("adopt", principals=["p1"])["lease"]
    waiter = open_session(world.desk, world.host, 2)
    assert world.desk.ask(waiter.body("acquire"), waiter.peer, route=b"waiter") is None
    world.agent.ask(world.desk, "release", lease=lease)
    (sent,) = (sent for sent in world.desk.sent if sent.route == b"waiter")
    assert sent.body["target"] == {"name": "p1", "address": "a:1"}


def test_without_an_address_no_change_speaks_of_targets(world: World) -> None:
    world.say(row("p1"), row("p2", 7), row("p3", "a b"), [*row("p4"), {"more": 1}])
    lease, _ = world.acquire()
    world.ask("claim", lease=lease, principals=["p1"])
    world.ask("release", lease=lease)
    world.fail("other")
    world.at(400.0)
    store = world.desk.sqlite
    rows = store._db.execute("SELECT changes FROM journal").fetchall()
    made = [each for (row,) in rows for moment in unpack(unseal(row)) for each in moment.changes]
    assert made
    assert not [each for each in made if isinstance(each, Addressed | Aimed | TargetsTrusted)]


@pytest.mark.parametrize("address", [7, None, True, "a b", "-o", "é", "x" * 256, ["a"]])
def test_what_is_no_address_drops_the_key_and_not_the_row(world: World, address: object) -> None:
    world.say(row("p1", "a:1"))
    assert world.say([*row("p1"), {"address": address}])["changed"] == 0
    assert world.say([*row("p2"), {"address": address, "terminating": True}])["changed"] == 1
    tracker = world.desk.state.tracker
    assert {name: each.text for name, each in tracker.targets.by_name.items()} == {"p1": "a:1"}
    assert tracker.is_marked("p2")


def test_addresses_aims_and_holds_survive_restarts(world: World) -> None:
    world.say(*(row(f"p{i}", f"p{i}:1") for i in range(1, 6)))
    world.fail("rate")
    world.ask("resume")
    for _ in range(3):
        world.ask("release", lease=world.acquire()[0])
    world.clock.now = START + 10.0
    _, name = world.acquire()
    before = world.desk.state.tracker.targets
    world.restart()
    after = world.desk.state.tracker.targets
    assert name == "p2"
    assert after.by_name == before.by_name
    assert after.by_name["p1"].held == START + FIRST_HOLD
    assert after.aims == before.aims
    assert after.trust == before.trust
    assert world.explain("p2")["state"] == "aimed"


def test_an_aim_of_before_a_restart_is_judged_after_it(world: World) -> None:
    world.say(row("p1", "a:1"), row("p2", "b:1"))
    lease, name = world.acquire()
    world.restart()
    world.ask("claim", lease=lease, principals=["p2"])
    assert name == "p1"
    assert world.explain("p1")["failures"] == 1


def test_the_timer_is_set_for_the_end_of_a_hold_and_a_sweep_ends_it(world: World) -> None:
    world.say(row("p1", "a:1", ttl=500.0))
    world.fail()
    end = world.clock.now + FIRST_HOLD
    world.clock.now += 20.0
    world.desk.sweep()
    assert timers.next_timer(world.desk.actor._decide) == end
    world.at(end - START)
    assert world.explain("p1")["state"] == "failed"
    world.at(end - START + 0.001)
    assert world.explain("p1") | {"until": None} == world.explain("p1")
    assert world.explain("p1")["failures"] == 1


@pytest.mark.parametrize("how", ["refused", "timeout", "tls", "rate", "auth", "other", "held"])
def test_an_outcome_fails_the_aim(world: World, how: str) -> None:
    world.say(row("p1", "a:1"), row("p2"))
    assert world.fail(how) == "p1"
    assert world.explain("p1")["failures"] == 1


def test_held_says_nothing_when_the_target_itself_may_have_been_met(world: World) -> None:
    world.say(row("p1", "a:1"), row("p2"))
    lease, _ = world.acquire()
    world.ask("adopt", principals=["p1"])
    world.ask("release", lease=lease, failed="held")
    assert world.explain("p1")["failures"] == 0


def test_a_claim_timeout_fails_the_aim_even_if_nobody_reports_outcomes(
    tmp_path: Path, host: Host
) -> None:
    world = World(tmp_path, host, claim_timeout=10.0)
    world.say(row("p1", "a:1"))
    world.acquire()
    world.at(10.001)
    assert world.explain("p1")["failures"] == 1
    assert "pause" not in world.ask("status")
    world.desk.kill()


@pytest.mark.parametrize("how", ["release", "exit", "close", "cancel", "admin"])
def test_what_is_no_outcome_puts_the_name_back_in_front(world: World, how: str) -> None:
    world.say(row("p1", "a:1"))
    world.clock.now += 1.0
    world.say(row("p2", "b:1"))
    agent = open_session(world.desk, world.host, 2)
    body = agent.body("try_acquire")
    reply = world.desk.ask(body, agent.peer)
    assert reply is not None
    lease = reply["lease"]
    match how:
        case "release":
            agent.ask(world.desk, "release", lease=lease)
        case "exit":
            assert agent.process is not None
            world.desk.exited(agent.process)
        case "close":
            agent.ask(world.desk, "close")
        case "cancel":
            agent.ask(world.desk, "cancel", target=body["seq"])
        case "admin":
            world.ask("force_release", lease=lease)
    assert reply["target"]["name"] == "p1"
    assert world.acquire()[1] == "p1"
    assert world.explain("p1")["failures"] == 0


@pytest.mark.parametrize("failed", ["refused", "timeout", "tls"])
def test_a_dial_that_fails_at_an_address_pauses_nobody(world: World, failed: str) -> None:
    world.say(row("p1", "a:1"), row("p2", "b:1"))
    assert world.fail(failed) == "p1"
    assert world.events("dial_failed")
    assert "pause" not in world.ask("status")
    assert world.fail(failed) is None
    assert world.ask("status")["pause"]["reason"] == failed, "that dial met the balancer"


@pytest.mark.parametrize("failed", ["rate", "auth"])
def test_other_reasons_pause_as_ever(world: World, failed: str) -> None:
    world.say(row("p1", "a:1"), row("p2", "b:1"))
    assert world.fail(failed) == "p1"
    assert world.events("dials_paused")


def test_only_the_user_who_said_an_address_is_given_it(world: World) -> None:
    world.say(row("p1", "a:1"), row("p2"))
    other = world.other(7)
    other.ask(world.desk, "track_expected", proxies=[row("p2", "b:1"), row("p1", "a:1")])
    assert other.ask(world.desk, "try_acquire")["target"]["name"] == "p2"
    assert world.acquire()[1] == "p1"


@pytest.mark.parametrize(("sharing", "name"), [("off", None), ("any", "p1")])
def test_the_setting_says_whose_addresses_are_given(
    tmp_path: Path, host: Host, sharing: str, name: str | None
) -> None:
    world = World(tmp_path, host, targets=sharing)
    world.agent.ask(world.desk, "track_expected", proxies=[row("p1", "a:1")])
    reply = world.other(7).ask(world.desk, "try_acquire")
    assert reply.get("target", {}).get("name") == name
    state = world.agent.ask(world.desk, "explain", name="p1")["target"]["state"]
    assert state == ("aimed" if name else "off")
    world.desk.kill()


def test_repeated_gossip_emits_nothing_and_changes_no_address(world: World) -> None:
    message = [row("p1", "a:1", ttl=30.0), row("p2", ttl=30.0)]
    world.say(*message)
    for _ in range(3):
        world.clock.now += 20.0
        revision = world.desk.state.revision
        assert world.desk.state.tracker.unknown(message) == ([], [])
        world.say(*message)
        assert world.desk.state.revision == revision
    assert world.events("proxy_addressed") == [{"name": "p1", "address": "a:1", "session": 1}]


def test_each_other_address_is_an_event(world: World) -> None:
    world.say(row("p1", "a:1"))
    world.say(row("p1", "b:1"))
    world.say(row("p1", ""))
    world.say(row("p1", "c:1"))
    world.say(row("p1", generation=2))
    world.say(row("p1", "d:1", generation=3))
    world.fail()
    said = [fields["address"] for fields in world.events("proxy_addressed")]
    assert said == ["a:1", "b:1", None, "c:1", None, "d:1"]


def test_what_is_not_tracked_any_more_has_no_address(world: World) -> None:
    world.say(row("p1", "a:1", ttl=10.0), row("p2", "b:1"), row("p3", "c:1"))
    world.ask("forget", name="p2")
    world.say(row("p2", "b:1"))
    world.at(10.5)
    assert set(world.desk.state.tracker.targets.by_name) == {"p3"}
    world.ask("forget", group="")
    assert not world.desk.state.tracker.targets.by_name
    assert_same_after_reload(world.desk.state, world.desk.reloaded())


def test_explain_says_whether_a_dial_is_aimed_at_a_proxy_and_why_not(world: World) -> None:
    world.say(row("p0"), row("old", "a:1", generation=0), row("p1", "a:1"), row("p2", "b:1"))
    world.clock.now += 1.0
    world.say(row("p3", "c:1"))
    world.ask("adopt", principals=["p2"])
    assert world.fail() == "p1"
    assert "target" not in world.ask("explain", name="p0")
    states = {name: world.explain(name)["state"] for name in ("old", "p1", "p2", "p3")}
    assert states == {"old": "not_desired", "p1": "failed", "p2": "claimed", "p3": "paused"}
    for _ in range(3):
        lease, _ = world.acquire()
        world.ask("release", lease=lease)
    assert world.explain("p3")["state"] == "ready"
    lease, _ = world.acquire()
    assert world.explain("p3") == {
        "address": "c:1",
        "uid": 1000,
        "state": "aimed",
        "lease": lease,
        "failures": 0,
        "until": None,
        "untargeted": 0,
    }
    assert world.ask("explain", name="p3")["proxy"]["address"] == "c:1"


def test_a_claim_that_is_sent_again_does_not_fail_twice(world: World) -> None:
    world.say(row("p1", "a:1"), row("p2"))
    world.ask("adopt", principals=["p2"])
    lease, _ = world.acquire()
    body = world.agent.body("claim", lease=lease, principals=["p2"])
    for _ in range(2):
        reply = world.desk.ask(body, world.agent.peer)
        assert reply is not None
        assert reply["reason"] == "held"
        world.restart()
    assert world.explain("p1")["failures"] == 1


def test_a_dial_that_reaches_its_target_restores_trust_and_one_that_meets_it_held_has_no_aim() -> (
    None
):
    """The changes by themselves."""
    tracker = Tracker("example.com", clock=lambda: 0.0)
    tracker.track_expected([Proxy("p1", address="p1:1"), Proxy("p2")])
    lease = tracker.grant()
    assert list(meet(tracker, lease, "p1", 5.0)) == [], "it is not aimed"
    tracker.aim(lease, Aim("p1", "p1:1"))
    reached = TargetsTrusted(*tracker.targets.trust.succeeded())
    assert list(meet(tracker, lease, "p1", 5.0)) == [reached]
    tracker.targets.trust = tracker.targets.trust.succeeded()
    assert list(meet(tracker, lease, "p1", 5.0)) == []
    tracker.hold(tracker.grant(), "p1")
    assert list(meet(tracker, lease, "p1", 5.0)) == [Aimed(lease, None, None)]
    tracker.hold(tracker.grant(), "p2")
    kinds = [type(change) for change in meet(tracker, lease, "p2", 5.0)]
    assert kinds == [Addressed, TargetsTrusted, Aimed], "its aim has failed"
