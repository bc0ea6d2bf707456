"""What operators ask and admins do, without threads or sockets: the real actor and its store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.writer import AgentOf, Clock, Desk, Host
from trackd.state.counters import Histogram
from trackd.storage.history import CHUNK

ROWS = [["p1", "", 1, None], ["p2", "", 1, 20.0], ["q1", "g", 7, None]]
NOBODY = 65534


class World:
    """A daemon that can be restarted, an admin at it, and somebody who is none."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = Clock()
        self.settings: dict[str, Any] = {}
        self.desk = Desk(directory, self.clock)
        self.admin = AgentOf(1, None, uid=os.geteuid())
        self.agent = AgentOf(2, None, uid=NOBODY)
        for each in (self.admin, self.agent):
            each.ask(self.desk, "open", name=f"agent {each.peer.uid}")

    def restart(self, **settings: Any) -> None:
        self.settings.update(settings)
        self.desk.kill()
        self.desk = Desk(self.directory, self.clock, **self.settings)

    def read(self, op: str, **fields: Any) -> dict[str, Any]:
        reply = self.desk.ask({"op": op, "seq": 10**6, **fields}, self.agent.peer)
        assert reply is not None
        return reply

    def rows(self, of: str) -> list[dict[str, Any]]:
        page = self.read("snapshot", of=of)
        assert page["cursor"] is None
        rows: list[dict[str, Any]] = page["rows"]
        return rows

    def kinds(self, after: int = 0) -> list[str]:
        return [event[3] for event in self.read("log", after=after)["events"]]

    def counted(self, name: str) -> dict[str, float]:
        ((_, _, _, _, samples),) = self.read("metrics", names=[name])["families"]
        return {",".join(labels): value for labels, value in samples if value}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    with Host().seen():
        yield world
    world.desk.kill()


def claimed(world: World, *principals: str) -> int:
    lease: int = world.agent.ask(world.desk, "try_acquire")["lease"]
    reply = world.agent.ask(world.desk, "claim", lease=lease, principals=list(principals))
    assert reply["claimed"]
    return lease


# -- events --------------------------------------------------------------------------------


def test_each_change_is_an_event_with_the_next_revision(world: World) -> None:
    world.agent.ask(world.desk, "track_expected", proxies=ROWS)
    lease = claimed(world, "p1.example.com", "p1")
    world.agent.ask(world.desk, "track_expected", proxies=[["p1", "g", 6, None]])
    world.agent.ask(world.desk, "release", lease=lease)
    adopted = world.agent.ask(world.desk, "adopt", principals=["q1"])["lease"]
    world.agent.ask(world.desk, "set_connection_count", count=3)
    world.clock.now += 100
    world.desk.sweep()  # p2 has expired, and both sessions are silent
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


def test_a_setting_turns_the_log_off_and_the_revision_goes_on(world: World) -> None:
    world.restart(history=0)
    revision = world.read("log")["revision"]
    world.agent.ask(world.desk, "track_expected", proxies=ROWS)
    told = world.read("log")
    assert (told["events"], told["oldest"], told["history"]) == ([], None, 0)
    assert told["newest"] == revision + len(ROWS)
    world.restart(history=10)
    assert world.kinds() == ["daemon_started"]


def test_a_long_log_is_read_in_parts(world: World) -> None:
    world.agent.ask(
        world.desk, "track_expected", proxies=[[f"p{n}", "", 1, None] for n in range(2500)]
    )
    seen: list[int] = []
    while events := world.read("log", after=seen[-1] if seen else 0)["events"]:
        assert len(events) <= 1000
        seen += [event[0] for event in events]
    assert seen == list(range(1, world.read("ping")["revision"] + 1))


# -- listings and explanations ------------------------------------------------------------


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


# -- what is counted -----------------------------------------------------------------------


def test_the_counters_tell_what_was_granted_refused_claimed_and_released(world: World) -> None:
    world.agent.ask(world.desk, "track_expected", proxies=ROWS)
    world.agent.ask(world.desk, "track_expected", proxies=[["q1", "g", 6, None]])
    first = claimed(world, "p1")
    second = world.agent.ask(world.desk, "try_acquire")["lease"]
    world.agent.ask(world.desk, "claim", lease=second, principals=["p1"])
    world.agent.ask(world.desk, "set_connection_count", count=1)
    assert world.agent.ask(world.desk, "try_acquire")["lease"] is None
    world.agent.ask(world.desk, "release", lease=first)
    world.agent.ask(world.desk, "release", lease=first)
    world.agent.ask(world.desk, "close")
    assert world.counted("trackd_grants") == {"bootstrap": 1, "need": 1}
    assert world.counted("trackd_refusals") == {"satisfied": 1}
    assert world.counted("trackd_claims") == {"": 1}
    assert world.counted("trackd_duplicates") == {"": 1}
    assert world.counted("trackd_releases") == {"asked": 1, "closed": 1}
    assert world.counted("trackd_gossip_messages") == {"": 2}
    assert world.counted("trackd_gossip_proxies") == {"": 4}
    assert world.counted("trackd_gossip_lowered_generations") == {"": 1}
    assert world.counted("trackd_sessions_ended") == {"closed": 1}
    assert world.counted("trackd_tracked_proxies") == {"": 2, "g": 1}
    assert world.counted("trackd_sessions") == {"": 1}


def test_an_error_is_counted_by_its_code(world: World) -> None:
    world.read("snapshot", of="nothing")
    world.read("teleport")
    counted = world.counted("trackd_errors")
    assert (counted["invalid_argument"], counted["unknown_operation"]) == (1, 1)


def test_requests_are_timed_by_their_operation_and_unknown_ones_together(world: World) -> None:
    for op in ("ping", "ping", "teleport", "transmogrify"):
        world.read(op)
    ((_, kind, _, labels, samples),) = world.read("metrics", names=["trackd_request_seconds"])[
        "families"
    ]
    assert (kind, labels) == ("histogram", ["operation"])
    counts = {sample[0][0]: sample[1][-1] for sample in samples}
    assert counts["ping"] == ["+Inf", 2]
    assert counts["unknown"] == ["+Inf", 2]


def test_a_histogram_counts_a_value_at_its_bound_and_adds_up() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.observe(value)
    assert histogram.sample() == [[], [[1.0, 2], [2.0, 4], ["+Inf", 5]], 14.0]


# -- what admins do ------------------------------------------------------------------------

ACTS = [
    ("force_release", {"lease": 1}),
    ("end_session", {"session": 1}),
    ("forget", {"name": "p1"}),
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
