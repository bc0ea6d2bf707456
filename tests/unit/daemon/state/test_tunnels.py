"""Rule 18: which leases are stale, over the real writer, its store and its timer."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.writer import (
    AgentOf,
    Clock,
    Desk,
    Faults,
    Host,
    assert_same_after_reload,
    open_session,
)
from trackd.actors import writer as writer_module
from trackd.actors.messages import Reload, ReloadOutcome
from trackd.rules.liveness import Life
from trackd.state import timers
from trackd.storage.database import Connect, connect
from trackd_client.errors import Code

pytestmark = pytest.mark.rule(18)

TIMEOUT = 40.0
GRACE = 10.0
ROWS = [[f"p{i}", "", 1, None] for i in range(6)]
#: Just after a moment: ends are strict.
AFTER = 1e-6


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    with host.seen():
        yield host


class World:
    """A daemon with a store, and agents A and B."""

    def __init__(
        self, directory: Path, clock: Clock, host: Host, connect: Connect = connect, **settings: Any
    ) -> None:
        self.directory, self.clock, self.connect = directory, clock, connect
        self.settings = {"admin_users": (1000,), "tunnel_timeout": TIMEOUT, **settings}
        self.begin()
        self.a, self.b = open_session(self.desk, host, 1), open_session(self.desk, host, 2)
        self.b.numbers = itertools.count(1000)  # so that a number says whose it is
        self.a.ask(self.desk, "track_expected", proxies=[[*row[:3], 80_000] for row in ROWS])

    def begin(self) -> None:
        self.desk = Desk(self.directory, self.clock, self.connect, **self.settings)

    def restart(self) -> None:
        self.desk.kill()
        self.begin()

    def check(self) -> None:
        assert_same_after_reload(self.desk.state, self.desk.reloaded())

    def claim(self, agent: AgentOf, name: str) -> int:
        body = agent.body("adopt", principals=[name])
        reply = self.desk.ask(body | {"done": [1, body["seq"] - 1]}, agent.peer)
        assert reply is not None
        lease: int = reply["lease"]
        return lease

    def report(self, agent: AgentOf, *leases: int, rtt: float | None = None) -> list[int]:
        reply = agent.ask(self.desk, "report", reports=[[lease, rtt] for lease in leases])
        gone: list[int] = reply["gone"]
        return gone

    def sweep_after(self, seconds: float) -> None:
        self.clock.now += seconds
        self.desk.sweep()
        self.check()

    def timer(self) -> float:
        due = timers.next_timer(self.desk.actor._decide)
        assert due is not None
        return due

    def rows(self) -> dict[int, dict[str, Any]]:
        reply = self.a.ask(self.desk, "snapshot", of="leases")
        return {row["lease"]: row for row in reply["rows"]}

    def notices(self, agent: AgentOf) -> list[dict[str, Any]]:
        watch = agent.body("watch_session")
        self.desk.send(watch, agent.peer)
        (reply,) = [each.body for each in self.desk.end_batch() if each.body["seq"] == watch["seq"]]
        notices: list[dict[str, Any]] = reply["notices"]
        return notices

    def kinds(self) -> list[str]:
        return [event[3] for event in self.a.ask(self.desk, "log")["events"]]


@pytest.fixture
def world(tmp_path: Path, clock: Clock, host: Host) -> Iterator[World]:
    world = World(tmp_path, clock, host)
    yield world
    world.desk.kill()


def stale(lease: int) -> dict[str, Any]:
    return {"notice": "lease_revoked", "lease": lease, "cause": "stale"}


def test_a_lease_that_falls_silent_is_notified_and_released_after_the_grace(world: World) -> None:
    one, two = world.claim(world.a, "p1"), world.claim(world.a, "p2")
    assert world.report(world.a, one, two, rtt=0.25) == []
    assert world.timer() <= world.clock.now + TIMEOUT
    world.sweep_after(TIMEOUT - 1)
    world.report(world.a, two)
    world.sweep_after(1.0)
    assert "stale" not in world.rows()[one], "at exactly its end it is not stale yet"
    assert world.timer() <= world.clock.now + 1
    world.sweep_after(AFTER)
    assert (world.rows()[one]["stale"], "stale" in world.rows()[two]) == (True, False)
    status = world.a.ask(world.desk, "status")
    assert (status["tunnels"]["reporting"], status["tunnels"]["stale"]) == (2, 1)
    world.report(world.a, two)
    world.sweep_after(GRACE)
    assert one in world.rows(), "the grace is not over at its end"
    world.sweep_after(AFTER)
    assert (list(world.rows()), world.kinds()[-2:]) == ([two], ["lease_stale", "lease_released"])
    *_, released = world.a.ask(world.desk, "log")["events"]
    assert (released[4]["cause"], released[4]["name"]) == ("stale", "p1")
    assert world.notices(world.a) == [stale(one)]
    metrics = world.desk.actor._runtime.metrics
    assert (metrics.stale, metrics.releases["stale"]) == (1, 1)


def test_who_waits_gets_the_place_of_a_stale_lease_only_after_the_grace(world: World) -> None:
    for i in range(6):
        lease = world.claim(world.a, f"p{i}")
    world.report(world.a, lease)
    waits = world.b.body("acquire")
    assert world.desk.ask(waits, world.b.peer) is None
    world.sweep_after(TIMEOUT + AFTER)
    adopt = world.b.ask(world.desk, "adopt", principals=["p5"])
    assert adopt["lease"] is None, "the old tunnel may still be open"
    world.clock.now += GRACE + AFTER
    (reply,) = [sent.body for sent in world.desk.sweep() if sent.body["seq"] == waits["seq"]]
    assert reply["lease"] > lease


def test_a_lease_that_never_reports_is_not_judged(world: World) -> None:
    lease = world.claim(world.a, "p1")
    world.sweep_after(100 * TIMEOUT)
    assert list(world.rows()) == [lease]
    assert not {"reported", "rtt", "stale"} & set(world.rows()[lease])
    assert "tunnels" not in world.a.ask(world.desk, "status")


def test_a_report_is_stored_once_and_never_remembered(world: World) -> None:
    one, two = world.claim(world.a, "p1"), world.claim(world.a, "p2")
    world.report(world.a, one)
    stored = world.desk.sqlite
    before, revision = stored._db.total_changes, world.desk.state.revision
    for _ in range(20):
        world.report(world.a, one, rtt=0.5)
    assert (stored._db.total_changes, world.desk.state.revision) == (before, revision)
    session = world.desk.state.sessions.by_token[world.a.token]
    assert not any(b"gone" in reply.frame for reply in session.replies.values())
    world.report(world.a, one, two)
    assert stored._db.total_changes > before, "the first report of the other one is"
    world.check()


def test_the_reply_lists_the_leases_that_are_gone_or_stale_or_of_others(world: World) -> None:
    one, two = world.claim(world.a, "p1"), world.claim(world.a, "p2")
    other, gone = world.claim(world.b, "p3"), world.claim(world.a, "p4")
    world.a.ask(world.desk, "release", lease=gone)
    assert world.report(world.a, one, other, gone, 77, two) == [other, gone, 77]
    assert not world.desk.state.lives.by_lease.keys() & {other, gone}
    world.sweep_after(TIMEOUT + AFTER)
    assert world.report(world.a, one, two) == [one, two], "nothing undoes the notice"
    world.sweep_after(GRACE + AFTER)
    assert list(world.rows()) == [other]


@pytest.mark.parametrize(
    "reports",
    [
        None,
        {},
        [7],
        [[]],
        [[1]],
        [[1, 0.5, 0]],
        [["1", 0.5]],
        [[True, 0.5]],
        [[0, 0.5]],
        [[2**64, 0.5]],
        [[1, "0.5"]],
        [[1, True]],
        [[1, float("nan")]],
        [[1, float("inf")]],
        [[1, -0.001]],
        [[1, 60.001]],
        [[1, 10**400]],
    ],
)
def test_garbage_is_refused_and_counts_for_no_lease(world: World, reports: Any) -> None:
    lease = world.claim(world.a, "p1")
    assert lease == 1
    reply = world.a.ask(world.desk, "report", reports=reports)
    assert reply["error"] == Code.INVALID_ARGUMENT
    good = [*reports, [1, None]] if isinstance(reports, list) else reports
    assert world.a.ask(world.desk, "report", reports=good)["error"] == Code.INVALID_ARGUMENT
    assert not world.desk.state.lives.by_lease


def test_a_late_report_proves_nothing_and_is_dropped(world: World) -> None:
    lease = world.claim(world.a, "p1")
    world.report(world.a, lease)
    world.clock.now += TIMEOUT - 1
    old = world.a.body("report", reports=[[lease, None]], deadline=world.clock.now - 0.5)
    assert world.desk.ask(old, world.a.peer) is None
    world.sweep_after(1 + AFTER)
    assert world.rows()[lease]["stale"]


def test_a_killed_daemon_knows_who_reports_and_who_is_stale(world: World) -> None:
    one, two = world.claim(world.a, "p1"), world.claim(world.a, "p2")
    world.report(world.a, one, two, rtt=0.5)
    world.clock.now += 30
    world.report(world.a, two)
    world.sweep_after(TIMEOUT - 30 + AFTER)
    assert world.rows()[one]["stale"]
    world.clock.now += GRACE - 1
    world.restart()
    world.check()
    rows = world.rows()
    assert (rows[one]["stale"], "stale" in rows[two]) == (True, False)
    assert (rows[two]["reported"], rows[two]["rtt"]) == (None, None), "reports are not stored"
    world.sweep_after(GRACE)
    assert one in world.rows(), "it has the whole grace again: nobody could fetch the notice"
    assert world.report(world.a, one) == [one]
    world.sweep_after(AFTER)
    assert list(world.rows()) == [two]
    world.sweep_after(TIMEOUT - GRACE - AFTER)
    assert "stale" not in world.rows()[two], "and the other one its whole time"
    world.sweep_after(2 * AFTER)
    assert world.rows()[two]["stale"]
    assert world.notices(world.a) == [stale(one), stale(two)], "the notice has survived"


def test_a_suspend_gives_each_its_whole_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = world.claim(world.a, "p1")
    world.report(world.a, lease)
    world.sweep_after(1)
    monkeypatch.setattr(writer_module, "suspended_seconds", lambda: 1e9)
    world.sweep_after(TIMEOUT)
    assert "stale" not in world.rows()[lease]
    world.sweep_after(TIMEOUT)
    assert "stale" not in world.rows()[lease]
    world.sweep_after(AFTER)
    assert world.rows()[lease]["stale"]


def test_after_a_store_that_failed_each_has_its_whole_time(
    tmp_path: Path, clock: Clock, host: Host
) -> None:
    faults = Faults()
    world = World(tmp_path, clock, host, faults)
    one, two = world.claim(world.a, "p1"), world.claim(world.a, "p2")
    world.report(world.a, one)
    faults.writes = True
    assert world.a.ask(world.desk, "try_acquire")["error"] == Code.UNAVAILABLE
    assert world.report(world.a, two, 77) == [77], "the first report cannot be stored"
    assert list(world.desk.state.lives.by_lease) == [one]
    world.clock.now += 10 * TIMEOUT
    world.desk.sweep()
    faults.writes = False
    world.clock.now += 1
    world.desk.sweep()
    began = clock.now
    assert world.report(world.a, two) == []
    world.sweep_after(TIMEOUT)
    assert not any("stale" in row for row in world.rows().values())
    world.sweep_after(began + TIMEOUT + AFTER - clock.now)
    assert all(row["stale"] for row in world.rows().values())
    world.desk.kill()


def test_the_setting_is_live(world: World) -> None:
    lease = world.claim(world.a, "p1")
    world.report(world.a, lease)

    def configure(timeout: float) -> None:
        actor = world.desk.actor
        config = dataclasses.replace(actor._config, tunnel_timeout=timeout)
        actor.on_receive(Reload(config, actor._roles, ReloadOutcome()))
        world.desk.end_batch()

    configure(0.0)
    world.sweep_after(100 * TIMEOUT)
    assert "stale" not in world.rows()[lease]
    configure(8.0)
    world.sweep_after(8.0)
    assert "stale" not in world.rows()[lease]
    world.sweep_after(AFTER)
    assert world.rows()[lease]["stale"]
    configure(0.0)
    world.sweep_after(5 + AFTER)
    assert not world.rows(), "its holder was notified, and may have closed the tunnel"


def test_people_see_the_last_report_and_the_smoothed_time(world: World) -> None:
    lease = world.claim(world.a, "p1")
    start = world.clock.now
    world.report(world.a, lease, rtt=0.4)
    world.clock.now += 2
    world.report(world.a, lease, rtt=1.2)
    row = world.rows()[lease]
    assert (row["reported"], row["rtt"]) == (start + 2, pytest.approx(0.5))
    explained = world.a.ask(world.desk, "explain", name="p1")
    assert (explained["reported"], explained["rtt"]) == (row["reported"], row["rtt"])
    assert world.a.ask(world.desk, "status")["tunnels"] == {
        "reporting": 1,
        "stale": 0,
        "reported": start + 2,
        "rtt": pytest.approx(0.5),
    }


def test_a_session_that_ends_takes_its_stale_leases_along(world: World) -> None:
    lease = world.claim(world.a, "p1")
    world.report(world.a, lease)
    world.sweep_after(TIMEOUT + AFTER)
    world.a.ask(world.desk, "close")
    world.check()
    assert not world.desk.state.lives.by_lease
    world.clock.now += GRACE + 1
    world.desk.sweep()
    assert world.desk.state.lives.stale == 0


def test_ten_thousand_leases_report_and_fall_silent(
    tmp_path: Path, clock: Clock, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, clock, host, quota_leases=10_000)
    leases = [world.claim(world.a, f"q{i}") for i in range(10_000)]
    assert world.report(world.a, *leases, rtt=0.01) == []
    store, lives = world.desk.sqlite, world.desk.state.lives
    looked: list[Life] = []

    def deadline_of(life: Life) -> float | None:
        looked.append(life)
        return life.deadline

    monkeypatch.setattr(lives._deadlines, "_deadline_of", deadline_of)
    before = store._db.total_changes
    for _ in range(5):
        clock.now += 7
        assert world.report(world.a, *leases, rtt=0.01) == []
        world.desk.sweep()
        looked.clear()
        world.desk.sweep()
        assert len(looked) <= 10, "what was put off is corrected once, and nothing walks"
    assert store._db.total_changes - before < 100, "reports are not stored"
    clock.now += TIMEOUT + AFTER
    world.desk.sweep()
    assert lives.stale == 10_000
    clock.now += GRACE + AFTER
    world.desk.sweep()
    assert not world.desk.state.leases
    world.check()
    world.desk.kill()
