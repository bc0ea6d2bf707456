"""The listings of a snapshot: rows, pages, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.admin import ROWS, World, claimed


def test_a_proxy_s_row_tells_all_that_is_known_of_it(world: World) -> None:
    world.agent.ask(world.desk, "track_expected", proxies=[*ROWS, ["p0", "g", 3, None]])
    lease = claimed(world, "p1.example.com", "p1")
    rows = {row["name"]: row for row in world.rows("proxies")}
    assert rows["p1"] == {
        "name": "p1",
        "tracked": True,
        "group": "",
        "generation": 1,
        "expires": world.clock.now + 180,
        "desired": True,
        "largest": 1,
        "lease": lease,
        "session": 2,
        "pid": 0,
        "mentioned_by": 2,
    }
    assert (rows["p0"]["desired"], rows["p0"]["largest"], rows["p0"]["lease"]) == (False, 7, None)


def test_a_claim_on_a_proxy_that_is_not_tracked_has_a_row_too(world: World) -> None:
    lease = claimed(world, "elsewhere")
    (row,) = world.rows("proxies")
    assert (row["name"], row["tracked"], row["lease"], row["group"], row["expires"]) == (
        "elsewhere",
        False,
        lease,
        None,
        None,
    )


def test_leases_and_sessions_tell_whose_they_are(world: World) -> None:
    world.agent.ask(world.desk, "track_expected", proxies=ROWS)
    lease = claimed(world, "p1.example.com", "p1")
    flying = world.agent.ask(world.desk, "try_acquire")["lease"]
    told = {row["lease"]: row for row in world.rows("leases")}
    assert (told[lease]["name"], told[lease]["principals"]) == ("p1", ["p1.example.com", "p1"])
    assert (told[flying]["name"], told[flying]["principals"]) == (None, [])
    sessions = {row["session"]: row for row in world.rows("sessions")}
    assert (sessions[2]["leases"], sessions[2]["inflight"], sessions[2]["gossip"]) == (2, 1, 1)
    assert (sessions[1]["leases"], sessions[1]["inflight"], sessions[1]["gossip"]) == (0, 0, 0)
    assert sessions[2]["visible"] is False
    world.restart()
    assert {row["lease"]: row for row in world.rows("leases")} == told


def test_a_listing_that_the_daemon_has_forgotten_is_refused(world: World) -> None:
    world.agent.ask(world.desk, "track_expected", proxies=ROWS)
    cursor = world.read("snapshot", of="proxies", limit=1)["cursor"]
    world.restart()
    assert world.read("snapshot", of="proxies", cursor=cursor)["error"] == "invalid_argument"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"of": "everything"},
        {"of": ["proxies"]},
        {"of": "proxies", "limit": 0},
        {"of": "proxies", "limit": 1001},
        {"of": "proxies", "cursor": [1]},
        {"of": "proxies", "cursor": ["a", 1]},
        {"of": "proxies", "cursor": [1, -1]},
        {"of": "proxies", "cursor": 3},
    ],
)
def test_a_wrong_snapshot_request_is_refused(world: World, fields: dict[str, Any]) -> None:
    assert world.read("snapshot", **fields)["error"] == "invalid_argument"


def test_a_listing_of_several_pages_begins_with_what_is_missing(world: World) -> None:
    names = [f"p{number:04d}" for number in range(1001)]
    world.agent.ask(world.desk, "track_expected", proxies=[[name, "g", 1, None] for name in names])
    world.agent.ask(world.desk, "track_expected", proxies=[["old", "g", 0, None]])
    for name in names[:-2]:
        assert world.agent.ask(world.desk, "adopt", principals=[name])["lease"]
    first = world.agent.ask(world.desk, "snapshot", of="proxies", limit=3)
    assert [row["name"] for row in first["rows"]] == [*names[-2:], names[0]]
    assert first["total"] == 1002
    listed, cursor = first["rows"], first["cursor"]
    while cursor is not None:
        page = world.agent.ask(world.desk, "snapshot", of="proxies", cursor=cursor)
        listed, cursor = [*listed, *page["rows"]], page["cursor"]
    assert sorted(row["name"] for row in listed) == sorted([*names, "old"]), "each once"
