"""What operators ask: the log of events, explanations, and wrong fields."""

from __future__ import annotations

import os
from typing import Any

import pytest

from helpers.admin import NOBODY, ROWS, World, claimed
from trackd.state.history import CHUNK


def test_each_change_is_an_event_with_the_next_revision(world: World) -> None:
    world.agent.ask(world.desk, "track_expected", proxies=ROWS)
    lease = claimed(world, "p1.example.com", "p1")
    world.agent.ask(world.desk, "track_expected", proxies=[["p1", "g", 6, None]])
    world.agent.ask(world.desk, "release", lease=lease)
    adopted = world.agent.ask(world.desk, "adopt", principals=["q1"])["lease"]
    world.agent.ask(world.desk, "set_connection_count", count=3)
    world.clock.now += 100
    world.desk.sweep()  # p2 has expired, and this comes too late to judge the silent sessions
    world.clock.now += 31
    world.desk.sweep()
    told = world.read("log")
    assert [event[0] for event in told["events"]] == list(range(1, told["revision"] + 1))
    assert [event[3:] for event in told["events"] if event[3] != "daemon_started"] == [
        ["session_opened", {**about(1, os.geteuid()), "name": f"agent {os.geteuid()}"}],
        ["session_opened", {**about(2, NOBODY), "name": f"agent {NOBODY}"}],
        ["proxy_tracked", {"name": "p1", "group": "", "generation": 1, "session": 2}],
        ["proxy_tracked", {"name": "p2", "group": "", "generation": 1, "session": 2}],
        ["proxy_tracked", {"name": "q1", "group": "g", "generation": 7, "session": 2}],
        ["lease_granted", {"lease": lease, "session": 2, "reason": "bootstrap"}],
        ["proxy_claimed", {"name": "p1", "lease": lease, "session": 2}],
        [
            "proxy_changed",
            {"name": "p1", "group": "g", "generation": 6}
            | {"old_group": "", "old_generation": 1, "session": 2},
        ],
        ["lease_released", {"lease": lease, "session": 2, "name": "p1", "cause": "asked"}],
        ["lease_granted", {"lease": adopted, "session": 2, "reason": "adopt"}],
        ["proxy_claimed", {"name": "q1", "lease": adopted, "session": 2}],
        ["connection_count", {"count": 3, "before": 0}],
        ["proxy_expired", {"name": "p2", "group": "", "generation": 1}],
        [
            "session_ended",
            {"session": 1, "reason": "no_heartbeat", "name": f"agent {os.geteuid()}", "pid": 0},
        ],
        [
            "lease_released",
            {"lease": adopted, "session": 2, "name": "q1", "cause": "no_heartbeat"},
        ],
        [
            "session_ended",
            {"session": 2, "reason": "no_heartbeat", "name": f"agent {NOBODY}", "pid": 0},
        ],
    ]


def about(session: int, uid: int) -> dict[str, Any]:
    return {"session": session, "uid": uid, "pid": 0, "command": ""}


def test_the_log_outlives_the_daemon_and_tells_of_its_starts(world: World) -> None:
    before = world.read("log")["events"]
    world.restart()
    world.restart()
    after = world.read("log")["events"]
    assert after[: len(before)] == before
    assert [event[3] for event in after[len(before) :]] == ["daemon_started"] * 2
    assert [event[4]["epoch"] for event in after if event[3] == "daemon_started"] == [1, 2, 3]


def test_the_log_keeps_the_last_events_and_says_from_where_on(world: World) -> None:
    world.restart(history=2 * CHUNK)
    for number in range(5 * CHUNK):
        world.agent.ask(world.desk, "track_expected", proxies=[["p1", "", number + 1, None]])
    told = world.read("log")
    assert told["oldest"] == told["events"][0][0]
    assert 2 * CHUNK <= len(told["events"]) <= 3 * CHUNK
    assert told["events"][-1][0] == told["newest"] == told["revision"]
    world.restart()
    again = world.read("log")
    assert again["events"][0][0] >= told["oldest"]
    assert len(again["events"]) >= 2 * CHUNK


def test_older_events_are_kept_without_lost_dials_also_over_restarts(world: World) -> None:
    world.restart(history=2 * CHUNK)
    world.agent.ask(world.desk, "track_expected", proxies=ROWS)
    lease = claimed(world, "p1")
    for _ in range(3 * CHUNK):
        lost = world.agent.ask(world.desk, "try_acquire")["lease"]
        world.agent.ask(world.desk, "release", lease=lost)
    plain = world.read("log")
    assert {event[3] for event in plain["events"]} == {"lease_granted", "lease_released"}
    older = world.read("log", older=True)
    claims = [event for event in older["events"] if event[3] == "proxy_claimed"]
    assert [event[4]["lease"] for event in claims] == [lease]
    assert claims[0][0] < older["oldest"] == plain["oldest"]
    assert older["events"][-len(plain["events"]) :] == plain["events"]
    world.restart()
    again = world.read("log", older=True)
    assert again["events"][: len(older["events"])] == older["events"]
    world.restart(history_age=0.0)
    assert world.read("log", older=True)["events"] == world.read("log")["events"]
    for wrong in (0, 1, "yes"):
        assert world.read("log", older=wrong)["error"] == "invalid_argument"


def test_a_setting_turns_the_log_off_and_the_revision_goes_on(world: World) -> None:
    world.restart(history=0)
    revision = world.read("log")["revision"]
    world.agent.ask(world.desk, "track_expected", proxies=ROWS)
    told = world.read("log")
    assert (told["events"], told["oldest"], told["history"]) == ([], None, 0)
    assert told["newest"] == revision + len(ROWS)
    world.restart(history=10)
    assert world.kinds()[-1] == "daemon_started"


def test_a_long_log_is_read_in_parts(world: World) -> None:
    world.agent.ask(
        world.desk, "track_expected", proxies=[[f"p{n}", "", 1, None] for n in range(2500)]
    )
    seen: list[int] = []
    while events := world.read("log", after=seen[-1] if seen else 0)["events"]:
        assert len(events) <= 1000
        seen += [event[0] for event in events]
    assert seen == list(range(1, world.read("ping")["revision"] + 1))


@pytest.mark.parametrize(
    ("op", "fields"),
    [
        ("log", {"after": -1}),
        ("log", {"limit": 0}),
        ("log", {"after": 1.5}),
        ("metrics", {"names": "all"}),
        ("config", {"names": {"a": 1}}),
        ("explain", {"name": ""}),
        ("explain", {"name": 7}),
    ],
)
def test_wrong_fields_are_refused(world: World, op: str, fields: dict[str, Any]) -> None:
    assert world.read(op, **fields)["error"] == "invalid_argument"


def test_each_way_in_which_a_name_can_stand_is_told_apart(world: World) -> None:
    world.agent.ask(world.desk, "track_expected", proxies=[*ROWS, ["p0", "g", 3, None]])
    claimed(world, "p1.example.com", "p1", "10.0.0.1")
    world.admin.ask(world.desk, "forget", name="p2")
    why = {name: world.read("explain", name=name) for name in ("p1", "p0", "q1", "p2", "x")}
    assert {name: told["why"] for name, told in why.items()} == {
        "p1": "claimed",
        "p0": "old_generation",
        "q1": "missing",
        "p2": "forgotten",
        "x": "unknown",
    }
    assert why["p1"]["aliases"] == ["p1.example.com", "10.0.0.1"]
    assert why["p2"]["tombstone"]["generation"] == 1
    told = world.read("explain", name="p1.example.com")
    assert (told["meant"], told["name"], told["claimed"]) == ("p1", "p1.example.com", True)
    assert told["proxy"]["name"] == "p1"


def test_claims_that_met_a_held_proxy_are_told_by_its_name(world: World) -> None:
    world.agent.ask(world.desk, "track_expected", proxies=ROWS)
    claimed(world, "p1")
    lease = world.agent.ask(world.desk, "try_acquire")["lease"]
    for _ in range(3):
        world.agent.ask(world.desk, "claim", lease=lease, principals=["p1"])
    world.agent.ask(world.desk, "adopt", principals=["p1.example.com"])
    recent = world.read("explain")["recent"]
    assert (recent["claims"], recent["duplicates"], recent["met"]) == (1, 4, [["p1", 4]])
    assert recent["since"] == world.clock.now


def test_the_claims_that_chance_would_bring_go_by_what_was_missing_at_each(world: World) -> None:
    rows = [[f"p{number}", "", 1, 60] for number in range(4)]
    world.agent.ask(world.desk, "track_expected", proxies=rows)
    claimed(world, "p0")  # of four, four were missing
    lease = world.agent.ask(world.desk, "try_acquire")["lease"]
    for _ in range(2):  # three of four
        world.agent.ask(world.desk, "claim", lease=lease, principals=["p0"])
    world.agent.ask(world.desk, "adopt", principals=["p0"])  # no dial
    recent = world.read("explain")["recent"]
    assert recent["expected"] == 1 + 2 * 0.75
    assert recent["expected_since_success"] == 2 * 0.75
    world.agent.ask(world.desk, "claim", lease=lease, principals=["p1"])
    recent = world.read("explain")["recent"]
    assert recent["expected"] == 1 + 3 * 0.75
    assert recent["expected_since_success"] == 0


def test_the_seconds_of_each_group_and_the_ends_of_aims_are_metrics(world: World) -> None:
    agent, desk, clock = world.agent, world.desk, world.clock
    agent.ask(desk, "track_expected", proxies=[["p1", "east", 1, 60, {"address": "p1:443"}]])
    agent.ask(desk, "track_expected", proxies=[["p2", "", 1, 60], ["p3", "", 1, 60]])
    clock.now += 2
    lease = agent.ask(desk, "try_acquire")["lease"]
    assert agent.ask(desk, "claim", lease=lease, principals=["p1"])["claimed"]
    clock.now += 3
    assert world.counted("trackd_group_missing_seconds") == {"east": 2, "": 10}
    assert world.read("status")["missing_by_group"] == [
        {"group": "", "missing": 2, "missing_seconds": 10},
        {"group": "east", "missing": 0, "missing_seconds": 2},
    ]
    assert world.counted("trackd_aims") == {"reached": 1}
    agent.ask(desk, "track_expected", proxies=[["p2", "", 1, 60, {"address": "p2:443"}]])
    for _ in range(2):
        lease = agent.ask(desk, "try_acquire")["lease"]
        agent.ask(desk, "release", lease=lease, failed="refused")
        clock.now += 1
    assert world.counted("trackd_aims") == {"reached": 1, "missed": 1}, "the next is not aimed"
    world.restart()
    clock.now += 1
    assert world.counted("trackd_group_missing_seconds") == {"": 2}


def meet(world: World, lease: int, name: str, times: int) -> dict[str, Any]:
    """Let a lease claim in vain so many times; return the last reply."""
    for _ in range(times):
        reply = world.agent.ask(world.desk, "claim", lease=lease, principals=[name])
        assert not reply["claimed"]
    return reply


def test_dials_that_meet_the_same_proxy_again_and_again_bring_a_hint_until_one_claims(
    world: World,
) -> None:
    rows = [[f"p{number}", "", 1, 60] for number in range(4)]
    world.agent.ask(world.desk, "track_expected", proxies=rows)
    claimed(world, "p0")
    lease = world.agent.ask(world.desk, "try_acquire")["lease"]
    assert "hint" not in meet(world, lease, "p0", 19)
    assert "hint" not in world.read("explain")
    assert meet(world, lease, "p0", 1)["hint"] == {"balancer": "sticky", "in_a_row": 20}
    asked = world.agent.ask(world.desk, "is_claimed", principals=["p0"])
    assert asked == {"seq": asked["seq"], "claimed": True, "name": "p0"} | {
        "hint": {"balancer": "sticky", "in_a_row": 20}
    } | {key: asked[key] for key in ("revision",) if key in asked}
    assert "hint" not in world.agent.ask(world.desk, "is_claimed", principals=["p1"])
    told = world.read("explain")["hint"]
    assert told == {"balancer": "sticky", "in_a_row": 20, "met": ["p0"], "met_count": 1}
    assert world.agent.ask(world.desk, "adopt", principals=["p0"])["lease"] is None
    assert world.read("explain")["hint"]["in_a_row"] == 20, "an adoption is no dial"
    world.agent.ask(world.desk, "adopt", principals=["p3"])
    assert world.read("explain")["hint"]["in_a_row"] == 20, "nor is one that succeeds"
    world.agent.ask(world.desk, "claim", lease=lease, principals=["p1"])
    assert "hint" not in world.read("explain")


def test_dials_that_meet_all_claimed_proxies_bring_another_hint(world: World) -> None:
    rows = [[f"p{number}", "", 1, 60] for number in range(4)]
    world.agent.ask(world.desk, "track_expected", proxies=rows)
    for number in range(3):
        claimed(world, f"p{number}")
    lease = world.agent.ask(world.desk, "try_acquire")["lease"]
    for number in range(30):
        reply = meet(world, lease, f"p{number % 3}", 1)
    assert reply["hint"] == {"balancer": "even", "in_a_row": 30}
    world.restart()
    assert "hint" not in world.read("explain"), "it is kept in memory only"


def test_a_dial_that_ends_because_is_claimed_said_so_counts_once(world: World) -> None:
    agent, desk = world.agent, world.desk
    rows = [[f"p{number}", "", 1, 60] for number in range(4)]
    agent.ask(desk, "track_expected", proxies=rows)
    claimed(world, "p0")
    for _ in range(25):  # somebody looks without a dial
        assert agent.ask(desk, "is_claimed", principals=["p0"])["claimed"]
    assert "hint" not in world.read("explain")
    for _ in range(20):
        lease = agent.ask(desk, "try_acquire")["lease"]
        assert agent.ask(desk, "is_claimed", principals=["p0"])["claimed"]
        agent.ask(desk, "release", lease=lease, failed="held")
    assert world.read("explain")["hint"]["in_a_row"] == 20
    lease = agent.ask(desk, "try_acquire")["lease"]
    assert agent.ask(desk, "is_claimed", principals=["p0"])["claimed"]
    meet(world, lease, "p0", 1)
    agent.ask(desk, "release", lease=lease, failed="held")
    assert world.read("explain")["hint"]["in_a_row"] == 21


def test_dials_at_the_address_of_a_proxy_say_nothing_of_the_balancer(world: World) -> None:
    rows = [[f"p{number}", "", 1, 60, {"address": f"p{number}:443"}] for number in range(4)]
    world.agent.ask(world.desk, "track_expected", proxies=rows)
    held = claimed(world, "p0")
    aimed = 0
    for _ in range(60):
        reply = world.agent.ask(world.desk, "try_acquire")
        aimed += "target" in reply
        meet(world, reply["lease"], "p0", 1)
        world.agent.ask(world.desk, "release", lease=reply["lease"])
    assert aimed > 0
    assert world.read("explain")["hint"]["in_a_row"] == 60 - aimed
    assert world.agent.ask(world.desk, "release", lease=held)["released"]


def test_the_status_says_for_how_long_connections_were_missing_and_when_none_was(
    world: World,
) -> None:
    agent, desk, clock = world.agent, world.desk, world.clock
    assert (world.read("status")["missing_seconds"], world.read("status")["full_at"]) == (0, None)
    agent.ask(desk, "track_expected", proxies=[["p1", "", 1, 1e3], ["p2", "", 1, 1e3]])
    clock.now += 2
    leases = [agent.ask(desk, "adopt", principals=[name])["lease"] for name in ("p1", "p2")]
    clock.now += 5
    full = world.read("status")
    assert (full["missing_seconds"], full["full_at"]) == (4, clock.now)
    agent.ask(desk, "release", lease=leases[0])
    began = clock.now
    clock.now += 3
    after = world.read("status")
    assert (after["missing_seconds"], after["full_at"]) == (7, began)
    families = {each[0]: each[4] for each in world.read("metrics")["families"]}
    assert families["trackd_missing_seconds"] == [[[], 7]]
    assert families["trackd_missing_connections"] == [[[], 1]]
    world.restart()
    again = world.read("status")
    assert (again["missing_seconds"], again["full_at"]) == (0, None), "they begin with the daemon"
    clock.now += 3
    assert world.read("status")["missing_seconds"] == 3
