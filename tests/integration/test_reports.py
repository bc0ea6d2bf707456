"""Rule 18 over the wire: what dials report, and what becomes of tunnels that fall silent."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from helpers.agents import Agent
from helpers.both_clients import Maker
from helpers.support import PATIENCE, paused, wait_until
from helpers.trackctl import trackctl
from trackd_client import AgentPool, Proxy, Tracker
from trackd_client.core import pool_core
from trackd_client.core.conversation import Conversation
from trackd_client.errors import BadArgument
from trackd_client.results import LeaseRow
from trackd_client.testing import Daemon, MakeDaemon
from trackd_client.wire.protocol import decode

pytestmark = pytest.mark.rule(18)


@pytest.fixture
def operator(daemon: Daemon) -> Iterator[Tracker]:
    with Tracker(daemon.endpoint) as operator:
        operator.track_expected(Proxy("p0"), Proxy("p1"))
        yield operator


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The reports that were sent."""
    bodies = []
    request_of = Conversation.request

    def record(self: Conversation, *args: Any) -> Any:
        request = request_of(self, *args)
        decoded = decode(request.frame)
        assert decoded is not None
        if request.op == "report":
            bodies.append(decoded[1])
        return request

    monkeypatch.setattr(Conversation, "request", record)
    return bodies


def row_of(operator: Tracker, lease: Any) -> LeaseRow:
    (row,) = [row for row in operator.rows("leases") if row["lease"] == lease.id]
    return LeaseRow(row)


def claimed(tracker: Any, name: str) -> Any:
    lease = tracker.acquire(PATIENCE)
    assert lease.claim(name)
    return lease


def test_a_report_reaches_the_daemon(daemon: Daemon, maker: Maker, operator: Tracker) -> None:
    tracker = maker.tracker(daemon.endpoint)
    lease, silent = claimed(tracker, "p0"), claimed(tracker, "p1")
    assert lease.report(0.25) is True
    wait_until(lambda: row_of(operator, lease).reported is not None)
    assert row_of(operator, lease).rtt == 0.25
    assert "reported" not in row_of(operator, silent)
    assert lease.report() is True
    before = row_of(operator, lease).reported
    assert before is not None
    wait_until(lambda: (lease.report(), row_of(operator, lease).reported or 0)[1] > before)
    assert row_of(operator, lease).rtt == 0.25
    tunnels = operator.status().tunnels
    assert tunnels is not None
    assert (tunnels.reporting, tunnels.stale, tunnels.rtt) == (1, 0, 0.25)
    lease.release()
    assert lease.report() is False
    silent.release()


def test_many_reports_are_few_requests_and_none_is_sent_again(
    daemon: Daemon, maker: Maker, operator: Tracker, sent: list[dict[str, Any]]
) -> None:
    tracker = maker.tracker(daemon.endpoint)
    lease, other = claimed(tracker, "p0"), claimed(tracker, "p1")
    for _ in range(500):
        lease.report(0.5)
        other.report()
    wait_until(lambda: any(len(body["reports"]) == 2 for body in sent) or len(sent) >= 2)
    assert len(sent) <= 2 or sent[-1]["deadline"] - sent[0]["deadline"] >= len(sent) - 2
    wait_until(lambda: row_of(operator, other).reported is not None)
    seqs = [body["seq"] for body in sent]
    assert len(set(seqs)) == len(seqs)
    lease.release()
    other.release()


@pytest.mark.both_stores
def test_a_daemon_that_is_away_costs_the_dial_nothing_and_gets_no_report_twice(
    make_trackd_daemon: MakeDaemon, maker: Maker, sent: list[dict[str, Any]]
) -> None:
    daemon = make_trackd_daemon()
    tracker = maker.tracker(daemon.endpoint)
    with Tracker(daemon.endpoint) as operator:
        lease = claimed(tracker, "p0")
        assert lease.report(0.5)
        wait_until(lambda: sent != [])
        daemon.kill()
        wait_until(lambda: tracker.state != "connected")
        assert lease.report(0.125), "it waits for nothing"
        daemon.start()
        wait_until(lambda: tracker.state == "connected")
        assert lease.report(0.25)
        wait_until(lambda: sent[-1]["reports"] == [[lease.id, 0.25]])
        wait_until(lambda: row_of(operator, lease).rtt is not None)
        assert len({body["seq"] for body in sent}) == len(sent) <= 3
        lease.release()
    tracker.close()


def test_people_see_the_last_report(daemon: Daemon, operator: Tracker) -> None:
    with Tracker(daemon.endpoint) as tracker:
        lease, silent = claimed(tracker, "p0"), claimed(tracker, "p1")
        listed = trackctl("--endpoint", daemon.endpoint, "leases").stdout
        assert "last report" not in listed, "nobody reports"
        assert lease.report(0.25)
        wait_until(lambda: row_of(operator, lease).rtt is not None)
        listed = trackctl("--endpoint", daemon.endpoint, "leases").stdout
        assert re.search(r"last report +rtt\n", listed.lower())
        assert re.search(rf"(?m)^ *{lease.id} .* ago +250 ms$", listed)
        assert re.search(rf"(?m)^ *{silent.id} .* - +-$", listed)
        (row,) = json.loads(
            trackctl("--endpoint", daemon.endpoint, "leases", "p0", "--json").stdout
        )["leases"]
        assert (row["rtt"], row["stale"]) == (0.25, False)
        assert row["reported_ago"] >= 0
        explained = trackctl("--endpoint", daemon.endpoint, "explain", "p0").stdout
        assert re.search(r"last report +.* ago, round trip 250 ms\n", explained)
        status = trackctl("--endpoint", daemon.endpoint, "status").stdout
        assert re.search(r"tunnels +1 reports signs of life, the last one .* ago", status)


@pytest.mark.parametrize("rtt", ["1", True, -0.001, 60.1, float("nan"), float("inf"), [0.5]])
def test_what_is_no_round_trip_time_is_refused(
    daemon: Daemon, maker: Maker, operator: Tracker, rtt: Any
) -> None:
    lease = claimed(maker.tracker(daemon.endpoint), "p0")
    with pytest.raises(BadArgument, match="rtt"):
        lease.report(rtt)
    assert "reported" not in row_of(operator, lease)
    lease.release()


def test_an_older_daemon_is_sent_no_report(
    daemon: Daemon,
    maker: Maker,
    operator: Tracker,
    sent: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Conversation, "take_features", lambda *_: None)
    lease = claimed(maker.tracker(daemon.endpoint), "p0")
    assert lease.report() is False
    lease.release()
    assert (sent, operator.status().tunnels) == ([], None)


def test_a_lease_that_is_gone_at_the_daemon_is_lost_and_its_tunnel_closes(
    daemon: Daemon, maker: Maker, operator: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = maker.tracker(daemon.endpoint)
    lease = claimed(tracker, "p0")
    # A notice that is lost: the reply to a report says the same.
    core = tracker if isinstance(tracker, Tracker) else tracker._target
    monkeypatch.setattr(core, "_notice", lambda _session, _notice: None)
    operator.force_release(lease.id)
    assert not lease.lost.is_set()
    lease.report()
    assert lease.should_close.wait(PATIENCE)
    assert (lease.lost.is_set(), lease.revoked, lease.report()) == (True, True, False)


def test_a_pool_asks_for_each_tunnel_and_reports_nothing_by_itself(
    daemon: Daemon, maker: Maker, operator: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_core, "ALIVE_SECONDS", 0.05)
    asked: dict[str, int] = {}
    says: dict[str, Any] = {"p0": 0.25, "p1": None}
    names = iter(["p0", "p1"])

    def dial(lease: Any) -> None:
        lease.claim(next(names))
        lease.should_close.wait(PATIENCE)

    def alive(lease: Any) -> Any:
        name = lease.claimed_name
        asked[name] = asked.get(name, 0) + 1
        if isinstance(says[name], Exception):
            raise says[name]
        return says[name]

    tracker = maker.tracker(daemon.endpoint)
    with maker.pool(tracker, dial, alive=alive, max_concurrent_dials=1):
        wait_until(lambda: set(asked) == {"p0", "p1"})

        def shown(name: str) -> LeaseRow:
            (row,) = [row for row in operator.rows("leases") if row["name"] == name]
            return LeaseRow(row)

        wait_until(lambda: shown("p0").rtt == 0.25)
        for nothing in (False, ValueError("no answer"), "soon", None):
            says["p1"] = nothing
            asked["p1"] = 0
            wait_until(lambda: asked["p1"] > 1)
        assert "reported" not in shown("p1")
        says["p1"] = True
        wait_until(lambda: shown("p1").reported is not None)
        assert shown("p1").rtt is None
    threads = {thread.name for thread in threading.enumerate()}
    wait_until(lambda: not any("trackd-alive" in name for name in threads) or _gone())
    tracker.close()


def _gone() -> bool:
    return not any("trackd-alive" in thread.name for thread in threading.enumerate())


def test_an_alive_that_is_async_needs_asyncio(daemon: Daemon) -> None:
    async def alive(_lease: Any) -> bool:
        return True

    with (
        Tracker(daemon.endpoint) as tracker,
        pytest.raises(BadArgument, match="alive is async"),
    ):
        AgentPool(tracker, print, alive=alive)
    with (
        Tracker(daemon.endpoint) as tracker,
        pytest.raises(BadArgument, match="alive must be a function"),
    ):
        AgentPool(tracker, print, alive=7)  # type: ignore[arg-type]


def test_the_report_of_a_dial_is_that_of_the_lease_by_which_its_tunnel_was_adopted(
    daemon: Daemon, maker: Maker, operator: Tracker
) -> None:
    leases: dict[str, Any] = {}
    names = iter(["p0", "p1"])

    def dial(lease: Any) -> None:
        name = next(names)
        assert lease.claim(name)
        leases[name] = lease
        lease.should_close.wait(PATIENCE)

    tracker = maker.tracker(daemon.endpoint)
    with maker.pool(tracker, dial, max_concurrent_dials=1):
        wait_until(lambda: len(leases) == 2)
        session = row_of(operator, leases["p0"]).session
        operator.end_session(session)
        wait_until(leases["p0"].lost.is_set)

        def adopted() -> LeaseRow | None:
            rows = [row for row in operator.rows("leases") if row["name"] == "p0"]
            return LeaseRow(rows[0]) if rows else None

        wait_until(lambda: adopted() is not None)
        wait_until(lambda: leases["p0"].report(0.5))
        wait_until(lambda: (row := adopted()) is not None and row.rtt == 0.5)
    tracker.close()


# -- real processes ---------------------------------------------------------------------------


@contextlib.contextmanager
def agents(endpoint: str, count: int) -> Iterator[list[Agent]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Agent(endpoint)) for _ in range(count)]


def held_by(operator: Tracker) -> dict[str, int]:
    """Return who holds which proxy; fail when one is held twice."""
    found: dict[str, int] = {}
    for row in operator.rows("leases"):
        if row["name"] is not None:
            assert row["name"] not in found
            found[row["name"]] = row["lease"]
    return found


def count_reporting(operator: Tracker) -> int:
    tunnels = operator.status().tunnels
    return 0 if tunnels is None else tunnels.reporting


def test_the_proxies_of_a_stopped_agent_are_taken_over_and_it_closes_when_it_wakes(
    make_trackd_daemon: MakeDaemon,
) -> None:
    daemon = make_trackd_daemon(tunnel_timeout=8)
    with Tracker(daemon.endpoint) as operator, agents(daemon.endpoint, 2) as (stopped, other):
        stopped.do("track", [["p0"], ["p1"]])
        old = [stopped.do("wait", PATIENCE), stopped.do("wait", PATIENCE)]
        for name, lease in zip(("p0", "p1"), old, strict=True):
            assert stopped.do("claim", lease, name) == name
            stopped.do("keep_alive", lease)
        wait_until(lambda: count_reporting(operator) == 2)
        with paused(stopped.pid):
            new = [other.do("wait", 4 * PATIENCE), other.do("wait", 4 * PATIENCE)]
            assert not set(new) & set(old)
            for name, lease in zip(("p0", "p1"), new, strict=True):
                assert other.do("claim", lease, name) == name
                other.do("keep_alive", lease)
            assert held_by(operator) == {"p0": new[0], "p1": new[1]}
        for lease in old:
            assert stopped.do("closes", lease) == [True, True]
        wait_until(lambda: count_reporting(operator) == 2)
        assert held_by(operator) == {"p0": new[0], "p1": new[1]}, "nothing is held twice"
        released = [
            event.fields for event in operator.log()["events"] if event.kind == "lease_released"
        ]
        assert [(each["lease"], each["cause"]) for each in released] == [
            (lease, "stale") for lease in old
        ]


@pytest.mark.both_stores
def test_a_daemon_that_is_killed_in_the_grace_releases_the_lease_after_another(
    make_trackd_daemon: MakeDaemon,
) -> None:
    daemon = make_trackd_daemon(tunnel_timeout=3)
    with Tracker(daemon.endpoint) as operator, agents(daemon.endpoint, 1) as (stopped,):
        stopped.do("track", [["p0", "", 0, 3600]])
        lease = stopped.do("wait", PATIENCE)
        assert stopped.do("claim", lease, "p0") == "p0"
        stopped.do("keep_alive", lease)
        wait_until(lambda: operator.status().tunnels is not None)
        with paused(stopped.pid):
            wait_until(lambda: operator.explain("p0").get("stale") or held_by(operator) == {})
            daemon.kill()
            daemon.start()
            wait_until(lambda: held_by(operator) == {})
        assert stopped.do("closes", lease) == [True, True], "the notice has survived"
