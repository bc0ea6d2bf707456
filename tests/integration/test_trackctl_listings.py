"""`trackctl proxies`, `leases` and `sessions`, against real daemons and real agents."""

from __future__ import annotations

import json
import os
import pwd
import re
from collections.abc import Iterator
from typing import Any

import pytest

from helpers.agents import Agent
from helpers.support import run_script, unmeasured, wait_until
from helpers.trackctl import TRACKCTL, Terminal, trackctl
from trackd_client import Proxy, Tracker
from trackd_client.testing import Daemon


def listed(daemon: Daemon, *arguments: str) -> dict[str, Any]:
    done = trackctl("--endpoint", daemon.endpoint, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert isinstance(told, dict)
    return told


def format_names(daemon: Daemon, *arguments: str) -> list[str]:
    return [row["name"] for row in listed(daemon, "proxies", *arguments)["proxies"]]


@pytest.fixture
def agent(trackd_daemon: Daemon) -> Iterator[Agent]:
    """An agent that holds p1 and old, and has a lease in flight."""
    with Agent(trackd_daemon.endpoint) as agent:
        rows = [[f"p{i}", "east" if i % 2 else "", 3] for i in (1, 2, 10)]
        agent.do("track", [*rows, ["old", "east", 2]])
        for name in ("p1", "old"):
            assert agent.do("claim", agent.do("acquire"), f"{name}.example.com", name) == name
        agent.do("acquire")
        yield agent


def test_proxies_tells_all_of_each_to_scripts(trackd_daemon: Daemon, agent: Agent) -> None:
    told = listed(trackd_daemon, "proxies")
    assert told["total"] == 4
    assert told["revision"] > 0
    rows = {row["name"]: row for row in told["proxies"]}
    assert list(rows) == ["old", "p1", "p2", "p10"]
    assert 0 < rows["p1"].pop("expires_in") <= 180
    assert "agents.py" in rows["p1"].pop("command")
    assert rows["p1"] == {
        "name": "p1",
        "group": "east",
        "generation": 3,
        "largest": 3,
        "tracked": True,
        "desired": True,
        "why": None,
        "lease": 1,
        "session": 1,
        "pid": agent.pid,
        "agent": f"agent {agent.pid}",
        "mentioned_by": 1,
        "mentioned_by_agent": f"agent {agent.pid}",
        "missing_seconds": None,
    }
    assert rows["p2"]["missing_seconds"] >= 0
    assert rows["old"]["missing_seconds"] is None, "nobody wants it"
    assert (rows["old"]["desired"], rows["old"]["why"]) == (False, "old_generation")
    assert (rows["p2"]["lease"], rows["p2"]["command"]) == (None, None)


def test_proxies_tells_people_the_same(trackd_daemon: Daemon, agent: Agent) -> None:
    told = trackctl("--endpoint", trackd_daemon.endpoint, "proxies")
    heading, old, p1, p2, p10 = told.stdout.splitlines()
    assert heading.split("  ")[0] == "name"
    assert re.search(r"mentioned by +missing for$", heading)
    assert "no, 3 is newer" in old
    assert p1.split()[:6] == ["p1", "east", "3", "yes", "1", "1"]
    assert re.search(rf"1 agent {agent.pid} +-$", p1)
    assert re.search(rf"1 agent {agent.pid} +(\d+m )?\d+s$", p2), "since gossip named it"
    assert p2.split()[:7] == ["p2", '""', "3", "yes", "-", "-", "-"]
    assert p10.startswith("p10")
    assert "\x1b" not in told.stdout, "colours belong on a terminal"


def missing_seconds(daemon: Daemon) -> dict[str, float | None]:
    rows = listed(daemon, "proxies")["proxies"]
    return {row["name"]: row["missing_seconds"] for row in rows}


def test_proxies_says_for_how_long_only_where_a_proxy_is_missing(
    trackd_daemon: Daemon, agent: Agent
) -> None:
    claimed = trackctl("--endpoint", trackd_daemon.endpoint, "proxies", "--claimed")
    assert claimed.stdout.splitlines()[0].endswith("mentioned by")
    before = missing_seconds(trackd_daemon)
    agent.do("release", 1)
    after = missing_seconds(trackd_daemon)
    assert (before["p1"], after["old"]) == (None, None)
    assert before["p2"] is not None
    assert after["p2"] is not None
    assert after["p1"] is not None
    assert 0 <= after["p1"] < after["p2"], "its tunnel has ended since then"
    assert before["p2"] < after["p2"]


def test_proxies_can_be_filtered(trackd_daemon: Daemon, agent: Agent) -> None:
    assert format_names(trackd_daemon, "--missing") == ["p2", "p10"]
    assert format_names(trackd_daemon, "--claimed") == ["old", "p1"]
    assert format_names(trackd_daemon, "--undesired") == ["old"]
    assert format_names(trackd_daemon, "--group", "") == ["p2", "p10"]
    assert format_names(trackd_daemon, "--group", "east", "--generation", "3") == ["p1"]
    assert format_names(trackd_daemon, "--session", "1", "--pid", str(agent.pid)) == ["old", "p1"]
    assert format_names(trackd_daemon, "p1*") == ["p1", "p10"]
    assert format_names(trackd_daemon, "p2", "old") == ["old", "p2"]
    none = trackctl("--endpoint", trackd_daemon.endpoint, "proxies", "nix*")
    assert (none.returncode, none.stdout) == (0, "")
    assert none.stderr == "no proxy matches (4 tracked)\n"


def test_proxies_can_be_sorted(trackd_daemon: Daemon, agent: Agent) -> None:
    assert format_names(trackd_daemon, "--reverse") == ["p10", "p2", "p1", "old"]
    assert format_names(trackd_daemon, "--sort", "lease") == ["p1", "old", "p2", "p10"]
    assert format_names(trackd_daemon, "--sort", "generation")[0] == "old"
    assert format_names(trackd_daemon, "--sort", "name", "--limit", "1") == ["old"]
    agent.do("track", [["soon", "", 3, 60.0]])
    assert format_names(trackd_daemon, "--sort", "expires")[0] == "soon"


def test_a_claimed_proxy_whose_gossip_has_expired_is_still_told(trackd_daemon: Daemon) -> None:
    with Tracker(trackd_daemon.endpoint) as tracker:
        assert tracker.adopt("gone") is not None
        (row,) = listed(trackd_daemon, "proxies")["proxies"]
    assert (row["name"], row["why"], row["expires_in"]) == ("gone", "not_tracked", None)
    assert row["lease"] == 1


def test_leases_tells_who_holds_what_and_since_when(trackd_daemon: Daemon, agent: Agent) -> None:
    told = listed(trackd_daemon, "leases")
    assert told["total"] == 3
    first, second, third = told["leases"]
    assert (first["lease"], first["state"], first["name"]) == (1, "claimed", "p1")
    assert (first["session"], first["pid"]) == (1, agent.pid)
    assert "p1.example.com" in first["principals"]
    assert second["name"] == "old"
    assert (third["state"], third["name"]) == ("in_flight", None)
    assert 0 < third["claim_within"] <= 30
    assert 0 <= first["age"] < 60
    flying = trackctl("--endpoint", trackd_daemon.endpoint, "leases", "--in-flight").stdout
    assert flying.splitlines()[1].split()[:4] == ["3", "in", "flight", "-"]
    assert len(flying.splitlines()) == 2
    found = listed(trackd_daemon, "leases", "*.example.com", "--sort", "proxy")["leases"]
    assert [row["name"] for row in found] == ["old", "p1"]


def test_sessions_tells_what_each_agent_holds_and_does(trackd_daemon: Daemon, agent: Agent) -> None:
    with Tracker(trackd_daemon.endpoint, name="other", labels={"zone": "a"}) as tracker:
        tracker.is_claimed("p1")
        rows = listed(trackd_daemon, "sessions")["sessions"]
        holding = listed(trackd_daemon, "sessions", "--holding")["sessions"]
        busiest = listed(trackd_daemon, "sessions", "--sort", "leases", "--reverse", "--limit", "1")
        other = trackctl("--endpoint", trackd_daemon.endpoint, "sessions", "othe?").stdout
        nobody = listed(trackd_daemon, "sessions", "--user", "65534")
    assert [row["session"] for row in rows] == [1, 2]
    mine = rows[0]
    user = pwd.getpwuid(os.getuid()).pw_name
    assert (mine["pid"], mine["uid"], mine["user"]) == (agent.pid, os.getuid(), user)
    assert (mine["leases"], mine["inflight"], mine["waiting"], mine["gossip"]) == (3, 1, 0, 1)
    assert (mine["visible"], mine["heartbeat_within"]) == (True, None)
    assert rows[1]["labels"] == {"zone": "a"}
    assert [row["session"] for row in holding] == [1]
    assert busiest["sessions"] == [busiest["sessions"][0]]
    assert busiest["sessions"][0]["session"] == 1
    assert len(other.splitlines()) == 2
    assert nobody == {"total": 0, "sessions": []}


def test_thousands_of_rows_flood_no_terminal_and_fill_a_pipe(trackd_daemon: Daemon) -> None:
    with Tracker(trackd_daemon.endpoint) as tracker:
        tracker.track_expected(*(Proxy(f"p{i}") for i in range(3000)))
    piped = trackctl("--endpoint", trackd_daemon.endpoint, "proxies")
    assert len(piped.stdout.splitlines()) == 3001
    assert piped.stderr == ""
    assert listed(trackd_daemon, "proxies")["total"] == 3000
    few = trackctl("--endpoint", trackd_daemon.endpoint, "proxies", "--limit", "2")
    assert len(few.stdout.splitlines()) == 3
    assert few.stderr == "2998 more of 3000; --limit 0 shows all, filters show fewer\n"
    command = [*TRACKCTL, "--endpoint", trackd_daemon.endpoint, "proxies"]
    with Terminal(*command, height=70) as terminal:
        screen = terminal.shows("2950 more of 3000")
    lines = screen.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("name "))
    assert [line.split()[0] for line in lines[begin + 1 : begin + 51]] == [
        f"p{number}" for number in range(50)
    ], "each row has a line of its own"
    assert lines[begin + 51].startswith("not shown, the terminal is too narrow: ")


def test_a_terminal_gets_colours_unless_the_user_wants_none(
    trackd_daemon: Daemon, agent: Agent
) -> None:
    command = [*TRACKCTL, "--endpoint", trackd_daemon.endpoint, "proxies"]
    with Terminal(*command) as terminal:
        terminal.shows("p10")
        assert "\x1b[32mp1" in terminal.screen(colours=True)
    with Terminal(*command, NO_COLOR="1") as terminal:
        terminal.shows("p10")
        drawn = terminal.screen(colours=True).partition("name  ")[2]
        assert "\x1b[" not in drawn


#: Turns the direction of writing, ends a line, cannot be seen; and means something to a shell.
EVIL = "\u202ex\u2028\u200b\U000e0041;$(id)`id`<b>\"'"


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        *(["status"], ["proxies"], ["leases"], ["sessions"], ["log"], ["explain"], ["doctor"]),
        *(["explain", f"p{EVIL}"], ["explain", f"none{EVIL}"], ["forget", f"none{EVIL}"]),
        *(["proxies", f"none{EVIL}"], ["proxies", "--group", f"none{EVIL}"], ["dump", "-"]),
        *(["proxies", "--json"], ["leases", "--json"], ["sessions", "--json"], ["log", "--json"]),
        *(["explain", f"p{EVIL}", "--json"], ["metrics", "--json"], ["status", "--json"]),
        ["hold", "--name", f"h{EVIL}", "--", "true"],
    ],
)
def test_no_terminal_obeys_what_an_agent_calls_things(
    trackd_daemon: Daemon, arguments: list[str]
) -> None:
    with Tracker(trackd_daemon.endpoint, name=EVIL, labels={EVIL: EVIL}) as tracker:
        tracker.track_expected(
            Proxy(f"p{EVIL}", f"g{EVIL}", 2), Proxy(f"q{EVIL}", f"g{EVIL}", 1), Proxy(f"r{EVIL}")
        )
        assert tracker.adopt(f"p{EVIL}")
        assert tracker.adopt(f"p{EVIL}") is None
        told = trackctl("--endpoint", trackd_daemon.endpoint, *arguments)
    for text in (told.stdout, told.stderr):
        assert text.replace("\n", "").isprintable()
    if arguments == ["proxies"]:
        assert len(told.stdout.splitlines()) == 4, "a line each"
        assert told.stdout.count(f"p{EVIL.encode('unicode_escape').decode()}") == 1


def test_a_terminal_shows_missing_proxies_first(trackd_daemon: Daemon) -> None:
    with Tracker(trackd_daemon.endpoint) as tracker:
        tracker.track_expected(Proxy("p1"), Proxy("p2"))
        lease = tracker.try_acquire()
        assert lease is not None
        assert lease.claim("p1")
        command = (*TRACKCTL, "--endpoint", trackd_daemon.endpoint, "proxies")
        with Terminal(*command, width=200) as terminal:
            screen = terminal.shows("\np1 ")
            assert screen.index("\np2 ") < screen.index("\np1 ")
        with Terminal(*command, "--sort", "name", width=200) as terminal:
            screen = terminal.shows("\np2 ")
            assert screen.index("\np1 ") < screen.index("\np2 ")


@unmeasured
def test_an_agent_that_starts_again_and_again_is_listed_as_flapping(trackd_daemon: Daemon) -> None:
    nobody = trackctl("--endpoint", trackd_daemon.endpoint, "sessions", "--flapping")
    assert "no agent has started 3 times in 10 minutes" in nobody.stdout + nobody.stderr
    code = f"""
from trackd_client import Tracker
Tracker({trackd_daemon.endpoint!r}, name="unlucky").try_acquire()
import os; os._exit(1)
"""
    for _ in range(3):
        run_script(code)
    with Tracker(trackd_daemon.endpoint) as operator:
        wait_until(lambda: operator.status().sessions == 0)
    told = listed(trackd_daemon, "sessions", "--flapping")
    (found,) = told["flapping"]
    assert (found["name"], found["starts"]) == ("unlucky", 3)
    assert listed(trackd_daemon, "sessions", "--flapping", "other*")["flapping"] == []
    people = trackctl("--endpoint", trackd_daemon.endpoint, "sessions", "--flapping").stdout
    assert re.search(r"^ +3 +0 .* unlucky .*3 process_exited$", people, re.MULTILINE)
