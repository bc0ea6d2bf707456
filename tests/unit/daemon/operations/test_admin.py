"""What admins do: it needs the role, is done once, and is logged."""

from __future__ import annotations

import os
from typing import Any

import pytest

from helpers.admin import NOBODY, ROWS, World, claimed
from helpers.writer import AgentOf
from trackd.state.sources import MOST_SOURCES

# -- what admins do ------------------------------------------------------------------------

ACTS = [
    ("force_release", {"lease": 1}),
    ("end_session", {"session": 1}),
    ("forget", {"name": "p1"}),
    ("resume", {}),
    ("reload", {}),
]


@pytest.mark.parametrize(("op", "fields"), ACTS, ids=[op for op, _ in ACTS])
def test_who_is_no_admin_may_not(world: World, op: str, fields: dict[str, Any]) -> None:
    world.agent.ask(world.desk, "track_expected", proxies=ROWS)
    claimed(world, "p1")
    before = world.read("ping")["revision"]
    reply = world.agent.ask(world.desk, op, **fields)
    assert (reply["error"], reply["revision"]) == ("permission_denied", before)


def test_a_lease_is_taken_back_once_and_its_holder_told(world: World) -> None:
    world.agent.ask(world.desk, "track_expected", proxies=ROWS)
    lease = claimed(world, "p1")
    watch = world.agent.body("watch_session")
    assert world.desk.ask(watch, world.agent.peer) is None
    world.desk.send(world.admin.body("force_release", lease=lease), world.admin.peer)
    replies = {sent.body["seq"]: sent.body for sent in world.desk.end_batch()}
    assert replies[watch["seq"]]["notices"] == [{"notice": "lease_revoked", "lease": lease}]
    again = world.admin.ask(world.desk, "force_release", lease=lease)
    assert (again["released"], again["session"], again["name"]) == (False, None, None)
    assert world.kinds()[-1] == "lease_released"
    assert world.read("log")["events"][-1][4]["by_uid"] == os.geteuid()
    assert world.agent.ask(world.desk, "release", lease=lease)["released"] is False
    assert world.read("status")["claimed"] == 0


def test_whoever_waits_gets_what_an_admin_takes_back(world: World) -> None:
    world.agent.ask(world.desk, "track_expected", proxies=[["p1", "", 1, None]])
    lease = claimed(world, "p1")
    parked = world.agent.body("acquire")
    assert world.desk.ask(parked, world.agent.peer) is None
    world.desk.send(world.admin.body("force_release", lease=lease), world.admin.peer)
    granted = [sent.body for sent in world.desk.end_batch() if sent.body["seq"] == parked["seq"]]
    assert granted[0]["lease"] == lease + 1


def test_a_session_is_ended_with_all_that_it_holds(world: World) -> None:
    world.agent.ask(world.desk, "track_expected", proxies=ROWS)
    lease = claimed(world, "p1")
    reply = world.admin.ask(world.desk, "end_session", session=2)
    assert (reply["ended"], reply["freed"]) == (True, [lease])
    refused = world.agent.ask(world.desk, "try_acquire")
    assert (refused["error"], refused["reason"]) == ("session_ended", "admin")
    assert world.admin.ask(world.desk, "end_session", session=2)["ended"] is False


def test_old_gossip_does_not_bring_a_forgotten_proxy_back_within_its_ttl(world: World) -> None:
    world.agent.ask(world.desk, "track_expected", proxies=ROWS)
    until = world.admin.ask(world.desk, "forget", name="p2")["until"]
    assert until == world.clock.now + 20  # its own TTL

    def tells(generation: int, group: str = "") -> bool:
        world.agent.ask(
            world.desk,
            "track_expected",
            proxies=[["p2", group, generation, 20.0], ["p1", *ROWS[0][1:]]],
        )
        return any(row["name"] == "p2" for row in world.rows("proxies"))

    assert not tells(1)
    assert not tells(0)
    world.restart()
    assert not tells(1)
    world.clock.now = until
    assert not tells(1)
    world.clock.now += 0.001
    assert tells(1)
    world.admin.ask(world.desk, "forget", name="p2")
    assert tells(2), "a newer generation is news"
    world.admin.ask(world.desk, "forget", name="p2")
    assert tells(1, "g"), "and so is another group"


def test_a_forgotten_proxy_stays_claimed_and_counts_no_more(world: World) -> None:
    world.agent.ask(world.desk, "track_expected", proxies=ROWS)
    claimed(world, "p1")
    reply = world.admin.ask(world.desk, "forget", name="p1")
    assert (reply["forgotten"], reply["claimed"]) == (True, True)
    status = world.read("status")
    assert (status["tracked"], status["desired"], status["claimed_desired"]) == (2, 2, 0)
    assert world.agent.ask(world.desk, "is_claimed", principals=["p1"])["claimed"]
    again = world.admin.ask(world.desk, "forget", name="p1")
    assert (again["forgotten"], again["claimed"], again["until"]) == (False, True, None)


def test_a_tombstone_is_gone_once_its_time_is_over(world: World) -> None:
    world.agent.ask(world.desk, "track_expected", proxies=ROWS)
    world.admin.ask(world.desk, "forget", name="p2")
    world.clock.now += 21
    world.desk.sweep()
    assert world.read("explain", name="p2")["why"] == "unknown"
    assert world.read("explain", name="p2")["tombstone"] is None


def test_an_act_is_done_once_however_often_it_is_sent(world: World) -> None:
    world.agent.ask(world.desk, "track_expected", proxies=ROWS)
    body = world.admin.body("forget", name="p2")
    first = world.desk.ask(body, world.admin.peer)
    world.agent.ask(world.desk, "track_expected", proxies=[["p2", "", 2, None]])
    assert world.desk.ask(body, world.admin.peer) == first
    world.restart()
    assert world.desk.ask(body, world.admin.peer) == first
    assert any(row["name"] == "p2" for row in world.rows("proxies"))


def test_admins_acts_are_logged_with_who_they_are(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "trackd")
    world.agent.ask(world.desk, "track_expected", proxies=ROWS)
    lease = claimed(world, "p1")
    world.admin.ask(world.desk, "forget", name="p2")
    world.admin.ask(world.desk, "force_release", lease=lease)
    world.admin.ask(world.desk, "end_session", session=2)
    world.admin.ask(world.desk, "reload")
    world.admin.ask(world.desk, "set_connection_count", count=9)
    acts = [vars(record)["fields"] for record in caplog.records if record.message == "admin act"]
    assert [act["operation"] for act in acts] == [
        "forget",
        "force_release",
        "end_session",
        "reload",
        "set_connection_count",
    ]
    assert {(act["uid"], act["pid"]) for act in acts} == {(os.geteuid(), 0)}


def test_an_agent_that_sets_the_count_does_no_admin_act(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "trackd")
    world.agent.ask(world.desk, "set_connection_count", count=9)
    assert world.read("status")["connection_count"] == 9
    assert [record.message for record in caplog.records if "admin" in record.message] == []


@pytest.mark.parametrize(("op", "fields"), ACTS, ids=[op for op, _ in ACTS])
def test_an_act_that_is_refused_is_logged_with_who_asked(
    world: World, caplog: pytest.LogCaptureFixture, op: str, fields: dict[str, Any]
) -> None:
    world.agent.ask(world.desk, op, **fields)
    (refused,) = [each for each in caplog.records if each.message == "admin act refused"]
    assert vars(refused)["fields"] == {"operation": op, "uid": world.agent.peer.uid, "pid": 0}


# -- groups, and who said what -----------------------------------------------------------------

LARGEST = 2**64 - 1
BY = {"by_uid": os.geteuid(), "by_pid": 0}


def test_a_generation_that_nobody_deployed_is_forgotten_and_the_real_one_counts_at_once(
    world: World,
) -> None:
    real = [["p1", "east", 7, None], ["p2", "east", 7, None]]
    world.agent.ask(world.desk, "track_expected", proxies=real)
    world.agent.ask(world.desk, "track_expected", proxies=[["p1", "east", LARGEST, 86_400.0]])
    assert world.read("status")["desired"] == 1
    reply = world.admin.ask(world.desk, "forget", group="east", generation=LARGEST)
    assert reply["until"] == world.clock.now + 86_400
    assert (reply["forgotten"], reply["claimed"], reply["count"]) == (True, False, 1)
    world.agent.ask(world.desk, "track_expected", proxies=[["p1", "east", LARGEST, 86_400.0]])
    assert [row["name"] for row in world.rows("proxies")] == ["p2"]
    world.agent.ask(world.desk, "track_expected", proxies=real)
    assert world.read("status")["desired"] == 2
    assert world.counted("trackd_admin_acts")["forget"] == 1


def test_a_group_that_is_gone_is_forgotten_over_a_restart_until_its_ttl_has_passed(
    world: World,
) -> None:
    gossip = [["a", "west", 1, 5.0], ["b", "west", 2, 20.0], ["c", "other", 1, 90.0]]
    world.agent.ask(world.desk, "track_expected", proxies=gossip)
    claimed(world, "b")
    reply = world.admin.ask(world.desk, "forget", group="west")
    assert (reply["until"], reply["count"], reply["claimed"]) == (world.clock.now + 20, 2, True)
    assert [event[3:] for event in world.read("log")["events"][-2:]] == [
        ["proxy_forgotten", {"name": name, "group": "west", "generation": number, **BY}]
        for name, number in (("a", 1), ("b", 2))
    ]
    world.restart()
    world.agent.ask(world.desk, "track_expected", proxies=gossip)
    tracked = [row["name"] for row in world.rows("proxies") if row["tracked"]]
    assert tracked == ["c"]
    world.agent.ask(world.desk, "track_expected", proxies=[["a", "west", 3, 5.0]])
    assert world.read("status")["tracked"] == 2, "a newer generation counts"
    world.clock.now += 21
    world.desk.sweep()
    world.agent.ask(world.desk, "track_expected", proxies=gossip)
    assert world.read("status")["tracked"] == 3
    assert len(world.desk.state.tombstones) == 0


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"group": "west", "name": "p1"}, "invalid_argument"),
        ({"group": 7}, "invalid_argument"),
        ({"group": "west", "generation": -1}, "invalid_argument"),
        ({"name": "p1", "generation": 1}, "invalid_argument"),
        ({}, "invalid_argument"),
    ],
)
def test_a_group_that_makes_no_sense_is_refused(
    world: World, fields: dict[str, Any], code: str
) -> None:
    assert world.admin.ask(world.desk, "forget", **fields)["error"] == code


def test_a_group_without_proxies_is_not_forgotten(world: World) -> None:
    world.agent.ask(world.desk, "track_expected", proxies=ROWS)
    for fields in (
        {"group": "west", "name": None, "generation": None},
        {"group": "g", "generation": 6},
    ):
        reply = world.admin.ask(world.desk, "forget", **fields)
        assert (reply["forgotten"], reply["until"], reply["count"]) == (False, None, 0)


def test_who_said_it_is_known_after_its_session_has_ended_and_after_a_restart(
    world: World,
) -> None:
    world.agent.ask(world.desk, "track_expected", proxies=[["p1", "east", LARGEST, 500.0]])
    world.admin.ask(world.desk, "track_expected", proxies=[["p2", "east", 7, 500.0]])
    said = {"session": 2, "uid": NOBODY, "pid": 0, "agent": f"agent {NOBODY}", "ended": False}

    def sources() -> list[dict[str, Any] | None]:
        explained = world.read("explain", name="p1")
        group = world.read("status")["groups"][0]["source"]
        return [explained["source"], explained["group_source"], group]

    assert sources() == [said] * 3
    world.agent.ask(world.desk, "close")
    assert sources() == [{**said, "ended": True}] * 3
    world.restart()
    assert sources() == [{**said, "ended": True}] * 3
    assert world.read("explain", name="p2")["source"]["session"] == 1
    assert world.read("explain", name="nobody")["source"] is None


def test_a_missing_proxy_that_only_one_session_mentions_is_explained_so(world: World) -> None:
    both, one = ["p1", "", 1, 20.0], ["p2", "", 1, 20.0]

    def gossip(*, until: float) -> None:
        while world.clock.now < until:
            world.admin.ask(world.desk, "track_expected", proxies=[both])
            world.agent.ask(world.desk, "track_expected", proxies=[both, one])
            world.clock.now += 5

    def said(name: str) -> Any:
        return world.read("explain", name=name).get("only_source")

    start = world.clock.now
    gossip(until=start + 15)
    assert (said("p1"), said("p2")) == (None, None), "the other one may mention it yet"
    gossip(until=start + 20)
    assert (said("p1"), said("p2")) == (None, True)
    for name in ("p1", "p2"):
        claimed(world, name)
        assert said(name) is None, "it is not missing"
    world.agent.ask(world.desk, "close")
    world.agent = AgentOf(3, None, uid=NOBODY)
    world.agent.ask(world.desk, "open")
    gossip(until=start + 40)
    assert (said("p1"), said("p2")) == (None, True), "it is missing again"
    world.admin.ask(world.desk, "track_expected", proxies=[both, one])
    assert said("p2") is None


def test_the_sessions_that_gossiped_are_remembered_up_to_a_number(world: World) -> None:
    for number in range(10, 10 + MOST_SOURCES + 3):
        agent = AgentOf(number, None, uid=NOBODY)
        agent.ask(world.desk, "open")
        agent.ask(world.desk, "track_expected", proxies=[[f"p{number}", "", 1, 500.0]])
        agent.ask(world.desk, "close")
    assert world.read("explain", name="p10")["source"]["uid"] is None
    assert world.read("explain", name="p13")["source"]["uid"] == NOBODY
    world.restart()
    assert world.read("explain", name="p12")["source"]["pid"] is None
    assert world.read("explain", name="p13")["source"]["pid"] == 0
