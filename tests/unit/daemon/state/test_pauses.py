"""Rule 17: when dials pause and go on, over the real writer, its store and its timer.

The clock is virtual: the agents and the balancer of the simulations live on it, too.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from helpers.writer import AgentOf, Clock, Desk, Host, assert_same_after_reload, open_session
from trackd.operations import agents as agents_module
from trackd.rules.backoff import BASE, PROBE_SECONDS, PROVEN_SECONDS
from trackd.state import timers

pytestmark = pytest.mark.rule(17)

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

    def __init__(self, directory: Path, clock: Clock, host: Host, **settings: Any) -> None:
        self.directory, self.clock = directory, clock
        self.settings = {"admin_users": (1000,), **settings}
        self.begin()
        self.a, self.b = open_session(self.desk, host, 1), open_session(self.desk, host, 2)
        self.b.numbers = itertools.count(1000)  # so that a number says whose it is
        self.a.ask(self.desk, "track_expected", proxies=ROWS)

    def begin(self, jitter: float = 1.0) -> None:
        self.desk = Desk(self.directory, self.clock, **self.settings)
        self.desk.actor._decide.pauses._jitter = lambda: jitter

    def restart(self) -> None:
        self.desk.kill()
        self.begin()

    def check(self) -> None:
        assert_same_after_reload(self.desk.state, self.desk.reloaded())

    def acquire(self, agent: AgentOf) -> int:
        lease: int = agent.ask(self.desk, "try_acquire")["lease"]
        assert lease is not None
        return lease

    def is_refused(self, agent: AgentOf) -> bool:
        return agent.ask(self.desk, "try_acquire")["lease"] is None

    def fail(self, agent: AgentOf, lease: int, failed: str = "refused", **more: Any) -> None:
        assert agent.ask(self.desk, "release", lease=lease, failed=failed, **more)["released"]
        self.check()

    def claim(self, agent: AgentOf, lease: int, name: str) -> bool:
        claimed: bool = agent.ask(self.desk, "claim", lease=lease, principals=[name])["claimed"]
        return claimed

    def park(self, agent: AgentOf) -> int:
        body = agent.body("acquire")
        assert self.desk.ask(body, agent.peer) is None
        seq: int = body["seq"]
        return seq

    def sweep_at(self, moment: float) -> list[dict[str, Any]]:
        """Let the timer ring, and return the replies that leave."""
        self.clock.now = moment
        return [sent.body for sent in self.desk.sweep()]

    def timer(self) -> float:
        due = timers.next_timer(self.desk.actor._decide)
        assert due is not None
        return due

    def status(self) -> dict[str, Any]:
        return self.a.ask(self.desk, "status")

    def explain(self) -> dict[str, Any]:
        return self.a.ask(self.desk, "explain")

    def kinds(self) -> list[str]:
        return [event[3] for event in self.a.ask(self.desk, "log")["events"]]

    def paused(self) -> World:
        """Let a dial of A fail, and its pause of 0.5 s begin."""
        self.fail(self.a, self.acquire(self.a))
        return self


@pytest.fixture
def world(tmp_path: Path, clock: Clock, host: Host) -> Iterator[World]:
    world = World(tmp_path, clock, host)
    yield world
    world.desk.kill()


@pytest.mark.parametrize("failed", ["refused", "timeout", "tls", "rate"])
def test_a_failure_of_the_host_pauses_everybody_until_its_end(world: World, failed: str) -> None:
    start = world.clock.now
    world.fail(world.a, world.acquire(world.a), failed)
    for agent in (world.a, world.b):
        reply = agent.ask(world.desk, "try_acquire")
        assert (reply["lease"], reply["retry_after"]) == (None, BASE)
    assert world.desk.actor._runtime.metrics.refusals["backoff"] == 2
    world.clock.now = start + BASE
    assert world.is_refused(world.b)
    world.clock.now += AFTER
    assert not world.is_refused(world.b)
    assert world.kinds()[-4:] == ["dial_failed", "dials_paused", "lease_released", "lease_granted"]


@pytest.mark.parametrize("failed", ["auth", "other"])
def test_a_failure_of_an_agent_pauses_only_that_agent(world: World, failed: str) -> None:
    world.fail(world.a, world.acquire(world.a), failed)
    assert world.is_refused(world.a)
    assert not world.is_refused(world.b)
    status = world.status()
    assert status["paused_sessions"] == 1
    assert "pause" not in status
    rows = world.a.ask(world.desk, "snapshot", of="sessions")["rows"]
    assert [row.get("pause", {}).get("reason") for row in rows] == [failed, None]
    world.clock.now += BASE + AFTER
    assert not world.is_refused(world.a)


def test_while_nobody_reports_nothing_pauses_and_nothing_more_is_stored(world: World) -> None:
    for _ in range(20):
        lease = world.acquire(world.a)
        assert world.a.ask(world.desk, "release", lease=lease)["released"]
    assert set(world.kinds()) <= {
        "daemon_started",
        "session_opened",
        "proxy_tracked",
        "lease_granted",
        "lease_released",
    }
    assert not {"pause", "paused_sessions"} & set(world.status())
    assert not {"pause", "outcomes"} & set(world.explain())


def test_a_claim_timeout_is_a_failure_only_once_somebody_has_reported_one(
    tmp_path: Path, clock: Clock, host: Host
) -> None:
    world = World(tmp_path, clock, host, claim_timeout=10.0)
    world.acquire(world.b)
    clock.now += 10 + AFTER
    world.desk.sweep()
    assert not world.is_refused(world.a), "nobody reports outcomes on this host"
    world.a.ask(world.desk, "release", lease=2, failed="other")
    lease = world.acquire(world.b)
    clock.now += 10 + AFTER
    world.desk.sweep()
    assert (lease, world.status()["pause"]["reason"]) == (3, "timeout")
    assert world.desk.actor._runtime.metrics.dial_failures["timeout"] == 1
    assert world.is_refused(world.a)
    world.check()
    world.desk.kill()


@pytest.mark.parametrize("how", ["exit", "close", "cancel", "admin", "plain"])
def test_what_is_no_outcome_changes_nothing_but_makes_room_for_the_next_probe(
    world: World, host: Host, how: str
) -> None:
    world.paused()
    world.clock.now += BASE + AFTER
    body = world.b.body("try_acquire")
    reply = world.desk.ask(body, world.b.peer)
    assert reply is not None
    lease = reply["lease"]
    assert world.is_refused(world.a), "one probe at a time"
    match how:
        case "exit":
            assert world.b.process is not None
            world.desk.exited(world.b.process)
        case "close":
            world.b.ask(world.desk, "close")
        case "cancel":
            world.b.ask(world.desk, "cancel", target=body["seq"])
        case "admin":
            world.a.ask(world.desk, "force_release", lease=lease)
        case _:
            world.b.ask(world.desk, "release", lease=lease)
    assert world.status()["pause"]["failures"] == 1
    assert not world.is_refused(world.a)
    world.check()


def test_a_probe_without_an_outcome_makes_room_after_five_seconds(world: World) -> None:
    world.paused()
    world.clock.now += BASE + AFTER
    world.acquire(world.a)
    reply = world.b.ask(world.desk, "try_acquire")
    assert (reply["lease"], reply["retry_after"]) == (None, PROBE_SECONDS)
    world.clock.now += PROBE_SECONDS + AFTER
    assert not world.is_refused(world.b)


def test_a_burst_of_failures_is_one_failure(world: World) -> None:
    leases = [world.acquire(agent) for agent in (world.a, world.b, world.a, world.b)]
    for agent, lease in zip((world.a, world.b, world.a, world.b), leases, strict=True):
        world.fail(agent, lease)
    assert world.status()["pause"]["failures"] == 1
    world.clock.now += BASE + AFTER
    world.fail(world.b, world.acquire(world.b))
    pause = world.status()["pause"]
    assert (pause["failures"], pause["until"]) == (2, world.clock.now + 2 * BASE)
    assert (pause["session"], pause["pid"], pause["reason"]) == (2, 102, "refused")


def test_a_lease_that_is_released_twice_fails_once(world: World) -> None:
    lease = world.acquire(world.a)
    world.fail(world.a, lease)
    again = world.a.ask(world.desk, "release", lease=lease, failed="refused")
    assert again["released"] is False
    assert world.kinds().count("dial_failed") == 1


def test_the_other_end_may_ask_for_more_time_and_people_see_who_said_so(world: World) -> None:
    world.fail(world.a, world.acquire(world.a), "rate", retry_after=20)
    pause = world.status()["pause"]
    assert (pause["retry_after"], pause["until"]) == (20.0, world.clock.now + 20)
    assert world.explain()["pause"] == pause
    explained = world.explain()
    assert (explained["reason"], explained["retry_after"]) == ("backoff", 20.0)
    assert not explained["would_grant"]


@pytest.mark.parametrize("way", ["claim", "is_claimed"])
@pytest.mark.parametrize("failed", ["refused", "auth"])
def test_a_dial_that_meets_a_held_proxy_ends_the_pause(world: World, way: str, failed: str) -> None:
    assert world.claim(world.b, world.acquire(world.b), "p0")
    world.fail(world.a, world.acquire(world.a), failed)
    world.clock.now += BASE + AFTER
    lease = world.acquire(world.a)
    assert world.is_refused(world.a)
    if way == "claim":
        assert not world.claim(world.a, lease, "p0")
    else:
        world.fail(world.a, lease, "held")
    assert not {"pause", "paused_sessions"} & set(world.status())
    assert not world.is_refused(world.a)
    assert not world.is_refused(world.a)
    assert "dials_resumed" in world.kinds()
    world.check()


def test_a_claim_ends_the_pause_when_its_lease_is_ten_seconds_old(world: World) -> None:
    world.paused()
    world.clock.now += BASE + AFTER
    granted = world.clock.now
    assert world.claim(world.a, world.acquire(world.a), "p0")
    lease = world.acquire(world.b)
    assert world.is_refused(world.a), "the claim has made room for one probe only"
    assert world.timer() == granted + PROBE_SECONDS
    world.b.ask(world.desk, "release", lease=lease)
    assert world.timer() == granted + PROVEN_SECONDS
    world.sweep_at(granted + PROVEN_SECONDS)
    assert "pause" in world.status()
    world.sweep_at(granted + PROVEN_SECONDS + AFTER)
    assert "pause" not in world.status()
    world.check()


def test_a_claim_that_does_not_last_ends_no_pause(world: World) -> None:
    world.paused()
    world.clock.now += BASE + AFTER
    lease = world.acquire(world.a)
    assert world.claim(world.a, lease, "p0")
    world.clock.now += 1
    world.fail(world.a, lease, "tls")
    assert world.status()["pause"]["failures"] == 2
    world.sweep_at(world.clock.now + PROVEN_SECONDS + 1)
    assert world.status()["pause"]["failures"] == 2


def test_whoever_waits_is_served_when_the_pause_ends_one_probe_at_a_time(world: World) -> None:
    world.paused()
    first, second = world.park(world.a), world.park(world.b)
    end = world.clock.now + BASE
    assert world.timer() == end
    assert world.sweep_at(end) == []
    (served,) = world.sweep_at(end + AFTER)
    assert served["seq"] == first
    assert world.timer() == world.clock.now + PROBE_SECONDS
    world.desk.send(world.a.body("release", lease=served["lease"]), world.a.peer)
    replies = {sent.body["seq"]: sent.body for sent in world.desk.end_batch()}
    assert replies[second]["lease"] == served["lease"] + 1


def test_whoever_waits_behind_a_request_that_waits_for_a_probe_is_served_with_the_probe(
    world: World,
) -> None:
    world.a.ask(world.desk, "set_connection_count", count=1)
    world.acquire(world.b)
    adopted = world.a.ask(world.desk, "adopt", principals=["elsewhere"])["lease"]
    world.a.ask(world.desk, "release", lease=adopted, failed="auth")
    probe, others = world.park(world.a), [world.park(world.b)]
    waits = world.park(world.a)
    others.append(world.park(world.b))
    assert world.sweep_at(world.clock.now + BASE + AFTER) == [], "no lease is needed yet"
    world.desk.send(world.b.body("set_connection_count", count=5), world.b.peer)
    replies = [sent.body["seq"] for sent in world.desk.end_batch() if "lease" in sent.body]
    assert replies == [probe, *others], f"{waits} waits for the probe of its session"
    world.check()


@pytest.mark.parametrize("how", ["claim", "release"])
def test_the_next_request_of_a_session_that_pauses_is_served_when_its_probe_has_ended(
    world: World, how: str
) -> None:
    world.fail(world.a, world.acquire(world.a), "auth")
    first, second = world.park(world.a), world.park(world.a)
    (served,) = world.sweep_at(world.clock.now + BASE + AFTER)
    assert served["seq"] == first
    fields = {"principals": ["p0"]} if how == "claim" else {}
    body = world.a.body(how, lease=served["lease"], **fields)
    world.desk.send(body, world.a.peer)
    replies = {sent.body["seq"]: sent.body for sent in world.desk.end_batch()}
    assert replies.keys() == {body["seq"], second}
    assert replies[second]["lease"] == served["lease"] + 1
    world.check()


def test_a_session_that_pauses_holds_nobody_up_and_keeps_its_turn(world: World) -> None:
    world.a.ask(world.desk, "set_connection_count", count=1)
    lease = world.acquire(world.b)
    first, second = world.park(world.a), world.park(world.b)
    adopted = world.a.ask(world.desk, "adopt", principals=["elsewhere"])["lease"]
    world.a.ask(world.desk, "release", lease=adopted, failed="auth")
    world.desk.send(world.b.body("release", lease=lease), world.b.peer)
    replies = {sent.body["seq"]: sent.body for sent in world.desk.end_batch()}
    assert second in replies, "the first waiter pauses"
    assert first not in replies
    lease = replies[second]["lease"]
    third = world.park(world.b)
    assert world.timer() == world.clock.now + BASE
    assert world.sweep_at(world.clock.now + BASE + AFTER) == []
    world.desk.send(world.b.body("release", lease=lease), world.b.peer)
    replies = {sent.body["seq"]: sent.body for sent in world.desk.end_batch()}
    assert first in replies, "its pause is over, and it came before"
    assert third not in replies
    world.check()


@pytest.mark.parametrize("failed", ["refused", "auth"])
def test_a_restart_in_the_midst_of_a_pause_goes_on_with_it(world: World, failed: str) -> None:
    for _ in range(2):
        world.fail(world.a, world.acquire(world.a), failed)
        world.clock.now += BASE + AFTER
    waits = world.park(world.a)
    end = world.clock.now - BASE - AFTER + 2 * BASE
    world.restart()
    world.desk.send(world.a.body("heartbeat"), world.a.peer)
    world.desk.end_batch()
    assert world.timer() == end
    assert world.sweep_at(end) == []
    world.sweep_at(end + AFTER)
    kept = {seq: reply.lease for seq, reply in _replies(world, world.a).items()}
    assert kept[waits] == 3
    world.restart()  # in the midst of the probe
    assert world.is_refused(world.a)
    assert world.claim(world.a, 3, "p0")
    world.restart()
    world.sweep_at(end + PROVEN_SECONDS + 1)
    assert not {"pause", "paused_sessions"} & set(world.status())
    world.check()


@pytest.mark.parametrize("failed", ["refused", "auth"])
def test_after_a_restart_a_lease_from_before_the_pause_is_no_probe(
    world: World, failed: str
) -> None:
    lease = world.acquire(world.a)
    world.acquire(world.a)  # the last one before the pause, and still in flight
    world.fail(world.a, lease, failed)
    world.clock.now += BASE + AFTER
    world.restart()
    assert not world.is_refused(world.a)
    assert world.is_refused(world.a), "now there is one"


def _replies(world: World, agent: AgentOf) -> dict[int, Any]:
    return world.desk.state.sessions.by_token[agent.token].replies


def test_an_admin_ends_all_pauses(world: World) -> None:
    world.fail(world.a, world.acquire(world.a), "auth")
    world.fail(world.b, world.acquire(world.b), "timeout")
    waits = world.park(world.a)
    world.desk.send(world.b.body("resume"), world.b.peer)
    replies = [sent.body for sent in world.desk.end_batch()]
    assert [reply["resumed"] for reply in replies if "resumed" in reply] == [2]
    assert [reply["lease"] for reply in replies if reply["seq"] == waits and "lease" in reply] == [
        3
    ]
    assert world.b.ask(world.desk, "resume")["resumed"] == 0
    last = [
        event for event in world.a.ask(world.desk, "log")["events"] if event[3] == "dials_resumed"
    ]
    assert {event[4]["by_uid"] for event in last} == {1000}
    world.check()


def test_the_pause_of_a_session_ends_with_it(world: World) -> None:
    world.fail(world.a, world.acquire(world.a), "other")
    world.a.ask(world.desk, "close")
    assert "paused_sessions" not in world.b.ask(world.desk, "status")
    world.check()


def test_a_pause_refuses_only_what_rule_6_would_grant(world: World) -> None:
    for name in ("p0", "p1", "p2", "p3", "p4"):
        assert world.claim(world.b, world.acquire(world.b), name)
    lease = world.acquire(world.a)
    assert world.a.ask(world.desk, "adopt", principals=["p5"])["lease"] is not None
    world.fail(world.a, lease)
    assert world.explain()["reason"] == "satisfied"
    assert "retry_after" not in world.a.ask(world.desk, "try_acquire")


def test_explain_says_how_the_last_dials_ended(world: World) -> None:
    assert world.claim(world.b, world.acquire(world.b), "p0")
    world.clock.now += 1
    leases = [world.acquire(world.a) for _ in range(3)]
    assert not world.claim(world.a, leases[0], "p0")
    world.a.ask(world.desk, "release", lease=leases[0])
    for lease in leases[1:]:
        world.fail(world.a, lease, "timeout")
    assert world.explain()["outcomes"] == {
        "dials": 4,
        "ended": {"claimed": 1, "held": 1, "timeout": 2},
    }
    families = {each[0]: each for each in world.a.ask(world.desk, "metrics")["families"]}
    assert [["timeout"], 2] in families["trackd_dial_failures"][4]
    assert families["trackd_dial_pause_failures"][4] == [[[], 1]]
    assert families["trackd_dial_pause_seconds"][4] == [[[], BASE]]


def test_explain_says_how_the_last_forty_dials_ended_and_no_more_are_kept(world: World) -> None:
    for failed in ["timeout", *["refused"] * 40]:
        world.fail(world.a, world.acquire(world.a), failed)
        world.a.ask(world.desk, "resume")
    assert world.explain()["outcomes"] == {"dials": 40, "ended": {"refused": 40}}
    assert len(world.desk.actor._decide.pauses.failures) == 40


def test_a_daemon_says_that_it_takes_outcomes() -> None:
    assert "outcomes" in agents_module.FEATURES


# -- simulations -------------------------------------------------------------------------------

#: Seconds that a dial takes which succeeds.
DIAL = 0.05
#: Tunnels that the agents want, and agents.
TUNNELS, AGENTS = 6, 10


class Agent:
    """An agent of the simulation: like a pool, it has one request for a lease at a time.

    Attributes:
        bad: whether its key is bad.
        dials: when each of its dials began.
        tunnels: the leases of its tunnels.
    """

    def __init__(self, client: AgentOf, *, bad: bool = False) -> None:
        self.client = client
        self.bad = bad
        self.dials: list[float] = []
        self.tunnels: dict[int, str] = {}
        self.waits: int | None = None


class Simulation:
    """Agents, a balancer that may be away, and the daemon, on one clock."""

    def __init__(
        self, host: Host, seed: int, *, failure: str, fails_after: float, bad: int = 0
    ) -> None:
        self.random = random.Random(seed)
        self.clock = Clock()
        self.desk = Desk(None, self.clock, history=100_000)
        self.desk.actor._decide.pauses._jitter = self.random.random
        self.failure, self.fails_after = failure, fails_after
        self.away = False
        self.deal: list[str] = []  # the proxies that the balancer has yet to deal in this round
        self.agents = {
            client.token: Agent(client, bad=number < bad)
            for number in range(AGENTS)
            for client in [open_session(self.desk, host, number + 1)]
        }
        self.seen = len(self.desk.sent)
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.failed_at: float | None = None
        self.full_at: float | None = None
        any_agent = next(iter(self.agents.values()))
        any_agent.client.ask(self.desk, "track_expected", proxies=ROWS)
        for agent in self.agents.values():
            self.after(self.random.random() * 0.01, partial(self.acquire, agent))

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.clock.now + seconds, next(self.order), act))

    def send(self, agent: Agent, op: str, **fields: Any) -> int:
        body = agent.client.body(op, **fields)
        body["done"] = []
        self.desk.send(body, agent.client.peer, route=agent.client.token)
        self.desk.end_batch()
        seq: int = body["seq"]
        return seq

    def reply(self, seq: int) -> dict[str, Any]:
        return next(sent.body for sent in reversed(self.desk.sent) if sent.body["seq"] == seq)

    def acquire(self, agent: Agent) -> None:
        agent.waits = self.send(agent, "acquire")

    def take_grants(self) -> None:
        while self.seen < len(self.desk.sent):
            sent = self.desk.sent[self.seen]
            self.seen += 1
            agent = self.agents.get(sent.route)
            if agent is not None and sent.body["seq"] == agent.waits:
                self.dial(agent, sent.body["lease"])

    def dial(self, agent: Agent, lease: int) -> None:
        agent.dials.append(self.clock.now)
        agent.waits = None
        if self.away:
            self.after(self.fails_after, partial(self.fail, agent, lease, self.failure))
        elif agent.bad:
            self.after(DIAL, partial(self.fail, agent, lease, "auth"))
        else:
            self.after(DIAL, partial(self.reach, agent, lease))

    def fail(self, agent: Agent, lease: int, failed: str) -> None:
        if self.failed_at is None:
            self.failed_at = self.clock.now
        self.send(agent, "release", lease=lease, failed=failed)
        self.acquire(agent)

    def reach(self, agent: Agent, lease: int) -> None:
        if not self.deal:
            self.deal = [f"p{number}" for number in range(TUNNELS)]
            self.random.shuffle(self.deal)
        name = self.deal.pop()
        seq = self.send(agent, "claim", lease=lease, principals=[name])
        sent = [each.body for each in self.desk.sent if each.route == agent.client.token]
        if next(body["claimed"] for body in reversed(sent) if body["seq"] == seq):
            agent.tunnels[lease] = name
            if self.count_tunnels() == TUNNELS and self.full_at is None:
                self.full_at = self.clock.now
            self.acquire(agent)
        else:
            self.send(agent, "release", lease=lease)
            self.after(0.025, partial(self.acquire, agent))

    def count_tunnels(self) -> int:
        return sum(len(agent.tunnels) for agent in self.agents.values())

    def lose_tunnels(self) -> None:
        self.full_at = None
        for agent in self.agents.values():
            for lease in agent.tunnels:
                self.send(agent, "release", lease=lease)
            agent.tunnels.clear()

    def run(self, until: float) -> None:
        while True:
            self.take_grants()
            timer = timers.next_timer(self.desk.actor._decide)
            event = self.events[0][0] if self.events else until
            moment = min(event, until if timer is None else max(timer, self.clock.now) + AFTER)
            if moment >= until:
                break
            self.clock.now = moment
            if self.events and self.events[0][0] <= moment:
                heapq.heappop(self.events)[2]()
            else:
                self.desk.sweep()
        self.clock.now = until

    def dials_since(self, moment: float) -> int:
        return sum(began > moment for agent in self.agents.values() for began in agent.dials)


FAILURES = [("refused", 0.01), ("timeout", 3.0), ("timeout", 12.0)]


@pytest.mark.parametrize(("failure", "fails_after"), FAILURES)
@pytest.mark.parametrize("seed", range(5))
def test_a_balancer_that_is_away_sees_few_dials_and_is_full_soon_after_the_pause(
    host: Host, failure: str, fails_after: float, seed: int
) -> None:
    world = Simulation(host, seed, failure=failure, fails_after=fails_after)
    world.run(world.clock.now + 30)
    assert world.full_at is not None
    world.away = True
    world.lose_tunnels()
    gone = world.clock.now
    world.run(gone + 60)
    assert world.failed_at is not None
    assert 2 <= world.dials_since(world.failed_at) <= 12
    world.away = False
    pause = world.desk.state.backoff.pause
    assert pause is not None
    back = max(world.clock.now, pause.until)
    # A probe that began before may still hang; its place is free after some seconds.
    hangs = 0.0 if fails_after < 1 else PROBE_SECONDS + fails_after
    world.run(back + hangs + 40)
    assert world.full_at is not None
    if not hangs:
        assert world.full_at <= back + 2.0
    assert world.desk.state.backoff.pause is None
    world.desk.kill()


@pytest.mark.parametrize("seed", range(5))
def test_an_agent_with_a_bad_key_among_nine_good_ones_pauses_only_itself(
    host: Host, seed: int
) -> None:
    world = Simulation(host, seed, failure="refused", fails_after=0.01, bad=1)
    world.run(world.clock.now + 10)
    first = world.full_at
    assert first is not None
    bad, *good = world.agents.values()
    for _ in range(20):
        world.lose_tunnels()
        lost = world.clock.now
        world.run(lost + 3)
        assert world.full_at is not None
        assert world.full_at <= lost + 2.0
    pauses = [
        event for event in world.desk.state.history.after(0, 100_000) if event[3] == "dials_paused"
    ]
    assert world.desk.state.backoff.pause is None
    assert {event[4]["scope"] for event in pauses} == {"session"}
    assert len(pauses) == len(bad.dials) <= 12
    assert all(agent.dials for agent in good)
    world.desk.kill()
