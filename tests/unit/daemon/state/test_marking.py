"""Rule 15 in the daemon: marks are stored, come back, end in time, and each flip is an event."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.writer import START, AgentOf, Clock, Desk, Host, open_session
from trackd.rules.flips import Word
from trackd.rules.marks import RETIRE_HOLD, Mark
from trackd.rules.tracker import Tracker
from trackd.state import marking, timers
from trackd.state.changes import Marked, unpack
from trackd.storage.database import unseal
from trackd_client import Proxy
from trackd_client.errors import Code

pytestmark = pytest.mark.rule(15)

Row = list[Any]


def row(name: str, terminating: bool | None = None, ttl: float | None = None) -> Row:
    """Return a row of gossip; without a word on termination it has four elements."""
    four: Row = [name, "", 1, ttl]
    return four if terminating is None else [*four, {"terminating": terminating}]


class World:
    """A daemon with its clock, and an agent of an admin, which outlives it."""

    def __init__(self, directory: Path, host: Host, **settings: Any) -> None:
        self.clock = Clock()
        self._directory, self._settings = directory, settings
        self.desk = Desk(directory, self.clock, admin_users=(1000,), **settings)
        self.agent = open_session(self.desk, host, 1)
        self.say(row("p1"), row("p2"), row("p3"))

    def say(self, *rows: Row) -> dict[str, Any]:
        reply = self.ask("track_expected", proxies=list(rows))
        assert "error" not in reply
        return reply

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        return self.agent.ask(self.desk, op, **fields)

    def hold(self, name: str) -> int:
        lease: int = self.ask("adopt", principals=[name])["lease"]
        return lease

    def at(self, seconds: float) -> None:
        """Sweep so many seconds after the beginning."""
        self.clock.now = START + seconds
        self.desk.sweep()

    def restart(self) -> None:
        """Kill the daemon, and start another one on its state."""
        self.desk.kill()
        self.desk = Desk(self._directory, self.clock, admin_users=(1000,), **self._settings)

    def marked(self) -> set[str]:
        tracker = self.desk.state.tracker
        return {name for name in tracker.names() if tracker.is_marked(name)}

    def flips(self) -> list[tuple[str, bool, int | None]]:
        return [
            (fields["name"], fields["terminating"], fields["session"])
            for _, _, _, kind, fields in self.desk.state.history.after(0, 1000)
            if kind == "proxy_marked"
        ]


@pytest.fixture
def world(tmp_path: Path, host: Host) -> World:
    return World(tmp_path, host)


@pytest.fixture(autouse=True)
def _end(world: World) -> Any:
    yield
    world.desk.kill()


def test_without_a_mark_no_change_and_no_row_of_the_store_speaks_of_one(world: World) -> None:
    world.say(row("p1"), row("p2", ttl=5.0), row("p3", False), [*row("p2"), {"more": 1}])
    world.ask("release", lease=world.hold("p1"))
    world.at(10.0)
    store = world.desk.sqlite
    rows = store._db.execute("SELECT changes FROM journal").fetchall()
    made = [each for (row,) in rows for moment in unpack(unseal(row)) for each in moment.changes]
    assert made
    assert not [each for each in made if isinstance(each, Marked)]
    assert not world.desk.state.tracker.marks.by_name


def test_a_mark_by_gossip_survives_a_restart_and_ends_in_time(world: World) -> None:
    world.say(row("p1", True, 30.0))
    world.say(row("p1", ttl=500.0))
    world.restart()
    assert world.marked() == {"p1"}
    world.at(30.0)
    assert world.marked() == {"p1"}
    world.at(30.5)
    assert world.marked() == set()
    assert world.flips() == [("p1", True, 1), ("p1", False, None)]


def test_repeated_gossip_renews_a_mark_and_emits_nothing(world: World) -> None:
    message = [row("p1", True, 30.0), row("p2", ttl=30.0)]
    world.say(*message)
    for _ in range(3):
        world.clock.now += 20.0
        revision = world.desk.state.revision
        assert world.desk.state.tracker.unknown(message) == ([], [])
        world.say(*message)
        assert world.desk.state.revision == revision
    world.at(89.0)
    assert world.marked() == {"p1"}


def test_sources_that_contradict_each_other_flip_a_mark_once_a_second_at_most(
    world: World, host: Host
) -> None:
    other = open_session(world.desk, host, 2)
    for tenth in range(100):
        world.clock.now = START + tenth / 10
        said = bool(tenth % 2)
        other.ask(world.desk, "track_expected", proxies=[row("p1", said, 60.0), row("p2")])
        if tenth % 10 == 9:
            world.desk.sweep()
    flips = world.flips()
    assert 5 <= len(flips) <= 10, "of 99 in 10 s"
    assert [terminating for _, terminating, _ in flips] == [True, False] * (len(flips) // 2) + (
        [True] * (len(flips) % 2)
    )


def test_the_last_word_counts_when_the_second_is_over(world: World, host: Host) -> None:
    other = open_session(world.desk, host, 2)
    world.say(row("p1", True, 60.0))
    world.clock.now += 0.3
    other.ask(world.desk, "track_expected", proxies=[row("p1", False), row("p2")])
    assert world.marked() == {"p1"}
    assert timers.next_timer(world.desk.actor._decide) == START + 1.0
    world.at(1.0)
    assert world.marked() == set()
    assert world.flips() == [("p1", True, 1), ("p1", False, 2)]
    world.restart()
    assert world.marked() == set()


def test_a_word_that_waits_ends_with_the_place_of_its_proxy(world: World) -> None:
    world.say(row("p1", True, 60.0), row("p2", True, 60.0))
    world.say(row("p1", False), row("p2", False))
    world.ask("forget", name="p2")
    world.say(["p1", "", 2, None], row("p2", True))
    assert world.marked() == set()
    world.say(["p1", "", 2, None, {"terminating": True}])
    world.at(5.0)
    assert world.marked() == {"p1"}, "what was said of the place before does not count"


def test_the_timer_is_set_for_the_end_of_a_mark(world: World) -> None:
    world.say(row("p1", True, 30.0))
    world.say(row("p1", ttl=500.0))
    timer = timers.next_timer(world.desk.actor._decide)
    assert timer == START + 30.0


def test_the_end_of_a_mark_serves_those_that_wait(world: World, host: Host) -> None:
    for name in ("p1", "p2"):
        world.hold(name)
    world.say(row("p3", True, 30.0))
    world.say(row("p3", ttl=500.0))
    waiter = open_session(world.desk, host, 2)
    assert world.desk.ask(waiter.body("acquire"), waiter.peer, route=b"waiter") is None
    world.clock.now += 30.5
    sent = world.desk.sweep()
    assert [each.body["lease"] for each in sent if each.route == b"waiter"] == [3]


def test_a_retired_lease_marks_its_proxy_over_restarts_and_a_moment_beyond_its_release(
    world: World,
) -> None:
    lease = world.hold("p1")
    assert world.ask("retire", lease=lease)["retired"] is True
    world.say(row("p1", False, 500.0))
    world.at(100.0)
    world.restart()
    assert world.marked() == {"p1"}
    world.ask("release", lease=lease)
    world.restart()
    world.at(100.0 + RETIRE_HOLD)
    assert world.marked() == {"p1"}
    world.at(100.5 + RETIRE_HOLD)
    assert world.marked() == set()
    assert world.flips() == [("p1", True, 1), ("p1", False, None)]


def test_the_end_of_a_session_releases_its_retired_leases_with_their_holds(
    world: World, host: Host
) -> None:
    other = open_session(world.desk, host, 2)
    lease = other.ask(world.desk, "adopt", principals=["p1"])["lease"]
    other.ask(world.desk, "retire", lease=lease)
    other.ask(world.desk, "close")
    assert world.marked() == {"p1"}
    world.at(RETIRE_HOLD + 0.5)
    assert world.marked() == set()


def test_a_claim_of_the_name_ends_the_hold_and_its_reply_says_nothing(world: World) -> None:
    lease = world.hold("p1")
    world.ask("retire", lease=lease)
    world.ask("release", lease=lease)
    reply = world.ask("adopt", principals=["p1"])
    assert "terminating" not in reply
    assert world.marked() == set()


def test_the_reply_to_a_claim_says_that_the_proxy_is_terminating_unless_all_are(
    world: World,
) -> None:
    world.say(row("p1", True))
    lease = world.ask("try_acquire")["lease"]
    reply = world.ask("claim", lease=lease, principals=["p1"])
    assert reply["claimed"] is True
    assert reply["terminating"] is True
    world.say(row("p2", True), row("p3", True))
    assert "terminating" not in world.ask("adopt", principals=["p2"]), "its mark does not count"


def test_retiring_again_is_the_same_and_a_copy_of_the_request_has_the_same_reply(
    world: World,
) -> None:
    lease = world.hold("p1")
    body = world.agent.body("retire", lease=lease)
    first = world.desk.ask(body, world.agent.peer)
    revision = world.desk.state.revision
    world.restart()
    assert world.desk.ask(body, world.agent.peer) == first
    assert world.ask("retire", lease=lease)["retired"] is True
    assert world.desk.state.revision == revision + 1, "only the start of the daemon"


def test_only_ones_own_claimed_lease_can_be_retired(world: World, host: Host) -> None:
    other = open_session(world.desk, host, 2)
    lease = world.hold("p1")
    assert other.ask(world.desk, "retire", lease=lease)["error"] == Code.NOT_OWNER
    dialling = world.ask("try_acquire")["lease"]
    refused = world.ask("retire", lease=dialling)
    assert refused["error"] == Code.INVALID_ARGUMENT
    assert "in flight" in refused["message"]
    world.ask("release", lease=lease)
    assert world.ask("retire", lease=lease)["retired"] is False
    assert world.marked() == set()


def test_a_proxy_that_is_retired_before_gossip_names_it_is_marked_with_an_event(
    world: World,
) -> None:
    world.ask("retire", lease=world.hold("q1"))
    assert world.flips() == []
    world.say(row("q1"))
    assert world.flips() == [("q1", True, 1)]


@pytest.mark.parametrize("way", ["proxy", "group", "expiry"])
def test_a_proxy_that_is_dropped_takes_the_mark_of_gossip_with_it(world: World, way: str) -> None:
    world.say(row("p1", True, 3000.0), row("p2", ttl=3000.0), row("p3", ttl=3000.0))
    world.say(row("p1", ttl=60.0))
    if way == "proxy":
        world.ask("forget", name="p1")
    elif way == "group":
        world.ask("forget", group="")
    else:
        world.at(61.0)
    assert not world.desk.state.tracker.is_tracked("p1")
    world.restart()
    assert world.desk.state.tracker.marks.by_name == {}


def test_a_whole_group_is_forgotten_with_the_terminating_proxies_of_its_newest_generation(
    world: World,
) -> None:
    world.say(["p3", "", 2, None, {"terminating": True}])
    assert world.ask("forget", group="")["count"] == 3
    assert world.desk.state.tracker.tracked_count == 0


def test_gossip_that_a_tombstone_keeps_away_marks_nothing(world: World) -> None:
    world.ask("forget", name="p1")
    world.say(row("p1", True), row("p9"))
    assert world.desk.state.tracker.marks.by_name == {}


def test_a_row_of_four_beside_rows_of_five_is_taken_as_ever(world: World) -> None:
    world.say(row("p1", True))
    reply = world.say(row("p1", True), row("p2"), row("p4", False), row("p5"))
    assert reply["changed"] == 2
    assert world.marked() == {"p1"}


@pytest.mark.parametrize(
    "more",
    [None, 7, "terminating", [True], {}, {"terminating": None}, {"terminating": 1}, {"x": True}],
)
def test_what_is_not_known_of_a_fifth_element_is_left_out_and_the_row_counts(
    world: World, more: object
) -> None:
    world.say(row("p2", True))
    reply = world.say([*row("p9"), more], [*row("p2"), more])
    assert reply["changed"] == 1
    assert world.marked() == {"p2"}, "what is known stays"


def test_counts_rows_and_explanations_tell_of_terminating_proxies(world: World) -> None:
    world.hold("p1")
    assert "claimed_terminating" not in world.ask("status")
    rows = world.ask("snapshot", of="proxies")["rows"]
    assert not any("terminating" in each for each in rows)
    world.say(row("p1", True), row("p2", True))
    status = world.ask("status")
    counts = (status["desired"], status["claimed_desired"], status["claimed_terminating"])
    assert counts == (1, 0, 1)
    assert world.ask("explain")["claimed_terminating"] == 1
    rows = world.ask("snapshot", of="proxies")["rows"]
    assert {each["name"]: each["desired"] for each in rows if each.get("terminating")} == {
        "p1": False,
        "p2": False,
    }
    assert world.ask("explain", name="p2")["why"] == "terminating"


def test_a_tunnel_to_a_terminating_proxy_is_not_advised_to_close(
    tmp_path: Path, host: Host
) -> None:
    (tmp_path / "advice").mkdir()
    world = World(tmp_path / "advice", host, disconnect_threshold=2.0)
    leases = [world.hold(name) for name in ("p1", "p2")]
    watch = world.agent.body("watch_session")
    assert world.desk.ask(watch, world.agent.peer) is None
    world.ask("set_connection_count", count=1)
    world.say(row("p1", True, 500.0), row("p2", ttl=500.0), row("p3", ttl=500.0))
    world.at(10.0)
    assert world.desk.actor._decide.advice.due() is None, "none is in excess"
    world.say(row("p1", False))
    world.clock.now += 10.0
    world.desk.sweep()
    (notice,) = [sent.body for sent in world.desk.sent if "notices" in sent.body]
    assert notice["notices"][0]["lease"] in leases
    world.desk.kill()


def test_an_old_client_never_sees_what_it_does_not_know(world: World) -> None:
    """Rows of four, and replies as they were, as long as nobody says anything of termination."""
    lease = world.ask("try_acquire")["lease"]
    reply = world.ask("claim", lease=lease, principals=["p1"])
    assert reply.keys() == {"seq", "revision", "claimed", "name"}
    world.ask("release", lease=lease)
    adopted = world.ask("adopt", principals=["p1"])
    assert adopted.keys() == {"seq", "revision", "lease", "name"}
    agent: AgentOf = world.agent
    body = agent.body("snapshot", of="proxies")
    page = world.desk.ask(body, agent.peer)
    assert page is not None
    assert all("terminating" not in each for each in page["rows"])


def test_a_word_that_had_to_wait_counts_while_it_holds_and_its_proxy_is_tracked() -> None:
    tracker = Tracker("example.com", clock=lambda: 0.0)
    tracker.track_expected([Proxy("p1"), Proxy("p2"), Proxy("p3")])
    tracker.mark("p3", Mark(50.0, None))
    words = {
        "p1": Word(10.0, 10.0, 8),
        "p2": Word(10.0, 9.9, 7),
        "p3": Word(10.0, None, 7),
        "gone": Word(10.0, 20.0, 8),
    }
    assert marking.mark_late(tracker, words, 10.0) == [
        Marked(7, [("p3", None, None)], [("p3", False)]),
        Marked(8, [("p1", 10.0, None)], [("p1", True)]),
    ]
