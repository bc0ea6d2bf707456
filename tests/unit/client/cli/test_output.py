"""What `trackctl` makes of what it is told: words, times, order. No daemon, no terminal."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

import pytest

from trackd_client.cli.commands import explain, status
from trackd_client.cli.commands.log import read_moment
from trackd_client.cli.commands.top import pressed
from trackd_client.cli.output import event_lines, listing
from trackd_client.cli.output.event_lines import People
from trackd_client.cli.output.render import (
    Cell,
    Column,
    _kept,
    duration,
    lines,
    names,
    natural,
    plain,
    plural,
    shown,
    size,
)
from trackd_client.cli.output.verdict import desired, verdict
from trackd_client.core.event import Event


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0s"), (59, "59s"), (200, "3m 20s"), (18_120, "5h 2m"), (273_600, "3d 4h")],
)
def test_a_duration_reads_as_people_say_it(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_numbers_and_lists_read_as_people_say_them() -> None:
    assert [plural(1, "lease"), plural(2, "proxy", "proxies")] == ["1 lease", "2 proxies"]
    assert [size(12), size(2_500), size(3_000_000)] == ["12 B", "2.5 kB", "3.0 MB"]
    assert names(["a", "b", "c"], total=7, most=2) == "a, b and 5 more"
    assert shown(None) == "-"
    assert shown("") == '""'


def test_no_terminal_obeys_what_a_peer_is_called() -> None:
    assert plain("\x1b[2Jp1\n\r\x9b31m") == "\\x1b[2Jp1\\n\\r\\x9b31m"
    assert plain("\u202egpj.exe") == "\\u202egpj.exe"
    assert plain("größe 日本") == "größe 日本"


def test_numbers_in_names_are_sorted_as_numbers() -> None:
    found = sorted(["p10", "p2", "10", "q", "p"], key=natural)
    assert found == ["10", "p", "p2", "p10", "q"]


def test_rows_without_a_value_come_last_and_those_alike_by_name() -> None:
    rows: list[dict[str, Any]] = [
        {"n": "b", "a": None},
        {"n": "z", "a": 3},
        {"n": "y", "a": 3},
        {"n": "x", "a": 1},
    ]
    ordered = listing.arranged(rows, "a", "n", reverse=True)
    assert [row["n"] for row in ordered] == ["y", "z", "x", "b"]


def table(most: int | None) -> list[str]:
    columns = [Column("name", shrinks=True), Column("number", right=True)]
    drawn = lines(columns, [["a-very-long-name-indeed", "1"], [Cell("日本", "red"), "22"]], most)
    return ["".join(cell.text for cell in line).rstrip() for line in drawn]


def test_a_table_is_whole_in_a_pipe_and_cut_on_a_terminal() -> None:
    assert table(None) == [
        "name                     number",
        "a-very-long-name-indeed       1",
        "日本                         22",
    ]
    assert table(20) == [
        "name          number",
        "a-very-long…       1",
        "日本              22",
    ]
    assert all(len(line) > 10 for line in table(10)), "a column keeps a width that can be read"


def test_a_narrow_terminal_does_without_what_is_least_wanted() -> None:
    columns = [Column("name"), Column("spare", spare=1), Column("sparest", spare=2)]
    rows = [["x" * 20, "y" * 10, "z" * 10]]
    assert [_kept(columns, rows, most) for most in (44, 43, 31, 5)] == [[0, 1, 2], [0, 1], [0], [0]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("03:12", "2026-11-24 03:12:00"),
        ("3:12", "2026-11-24 03:12:00"),
        ("03:12:07.5", "2026-11-24 03:12:07.5"),
        ("23:00", "2026-11-23 23:00:00"),
        ("2026-11-20 03:12", "2026-11-20 03:12:00"),
        ("2026-11-20T03:12:00", "2026-11-20 03:12:00"),
        ("90s", "2026-11-24 11:58:30"),
        ("10m ago", "2026-11-24 11:50:00"),
        ("2h", "2026-11-24 10:00:00"),
        ("1.5d", "2026-11-23 00:00:00"),
    ],
)
def test_a_moment_is_read_as_people_write_it(text: str, expected: str) -> None:
    now = datetime.fromisoformat("2026-11-24 12:00:00").timestamp()
    assert read_moment(text, now) == datetime.fromisoformat(expected).timestamp()
    assert read_moment(str(now), now) == now


@pytest.mark.parametrize("text", ["", "soon", "25:00", "3:99", "10x", "-5m", "2026-13-01"])
def test_what_is_no_moment_is_none(text: str) -> None:
    assert read_moment(text, time.time()) is None


CALM = {"store": "ok", "tracked": 1, "target": 1, "claimed_desired": 1, "inflight": 0}


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({}, "every wanted proxy is claimed"),
        ({"tracked": 0}, "no proxy is known"),
        ({"target": 3, "inflight": 2}, "2 wanted, 2 being dialled"),
        ({"target": 3}, "2 wanted, and nobody dials"),
        ({"store": "failing"}, "changes cannot be stored"),
    ],
)
def test_the_verdict_says_in_words_how_things_stand(told: dict[str, object], words: str) -> None:
    assert words in verdict(CALM | told).text


def test_the_status_says_what_came_of_the_last_reload() -> None:
    base = {"wall": 0.0, "changed": [], "refused": [], "error": None}
    assert "nothing changed" in status.reloaded(base)
    assert "changed proxy_expiry" in status.reloaded(base | {"changed": ["proxy_expiry"]})
    restart = status.reloaded(base | {"refused": [["endpoint", "it is bound"]]})
    assert "needs a restart: endpoint" in restart
    assert "refused, nothing changed: what" in status.reloaded(base | {"error": "what"})


FULL: dict[str, Any] = {
    "would_grant": False,
    "reason": "satisfied",
    "bootstrap": False,
    "need": False,
    "connection_count": 0,
    "tracked": 10,
    "desired": 10,
    "target": 10,
    "claimed": 10,
    "claimed_desired": 10,
    "inflight": 0,
    "waiting": 0,
    "missing": [],
    "missing_count": 0,
    "recent": {"claims": 10, "duplicates": 0, "since": 1.0, "met": []},
}
TWO_MISSING = FULL | {
    "claimed": 8,
    "claimed_desired": 8,
    "missing": ["p9", "p10"],
    "missing_count": 2,
}


def recent(duplicates: int, *met: list[Any]) -> dict[str, Any]:
    return {"recent": {"claims": 8, "duplicates": duplicates, "since": 1.0, "met": list(met)}}


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (FULL, ["No lease would be granted: every wanted tunnel is there."]),
        (FULL | {"reason": "bootstrap"}, ["would be granted: some agent has to dial first"]),
        (
            TWO_MISSING | {"reason": "need"},
            ["granted: a tunnel is missing", "Without a tunnel: p9, p10.", "No agent asks"],
        ),
        (
            TWO_MISSING | {"inflight": 2},
            ["for every missing tunnel an agent is dialling", "2 leases in flight may reach"],
        ),
        (TWO_MISSING | {"target": 8}, ["every wanted tunnel", "the connection count allows"]),
        (TWO_MISSING | {"reason": "waiters", "waiting": 3}, ["others wait"]),
        (TWO_MISSING | {"reason": "budget", "retry_after": 0.5}, ["dial_rate", "in 0.5 s"]),
        (TWO_MISSING | {"reason": "store"}, ["changes cannot be stored"]),
        (TWO_MISSING | {"reason": "of tomorrow"}, ["of tomorrow"]),
        (
            TWO_MISSING | recent(40, ["p1", 38], ["p2", 2]),
            ["40 met a proxy that was held: p1 (38), p2 (2)", "sends most dials to p1"],
        ),
        (TWO_MISSING | recent(40, ["p1", 6], ["p2", 5]), ["reach none that is missing"]),
    ],
)
def test_explain_says_what_is_decided_and_what_may_be_wrong(
    told: dict[str, Any], words: list[str]
) -> None:
    said = [sentence.text for sentence in explain.sentences(told)]
    for each in words:
        assert any(each in sentence for sentence in said), said


def test_explain_suspects_nobody_when_chance_explains_it() -> None:
    few = explain.sentences(TWO_MISSING | recent(8, ["p1", 2], ["p2", 2]))
    assert not any("balancer" in sentence.text for sentence in few)
    done = explain.sentences(FULL | recent(200, ["p1", 190]))
    assert not any("balancer" in sentence.text for sentence in done), "nothing is missing"


def test_a_proxy_that_is_not_desired_says_why() -> None:
    row = {"desired": False, "tracked": True, "largest": 2**64 - 1}
    assert desired(row) == f"no, {2**64 - 1} is newer"
    assert desired(row | {"tracked": False}) == "no, not tracked"
    assert desired(row | {"desired": True}) == "yes"


def event(kind: str, **fields: Any) -> Event:
    return Event(7, 1.0, 2.0, kind, fields)


PROXY = {"name": "p1", "group": "g", "generation": 3}


@pytest.mark.parametrize(
    ("happened", "words"),
    [
        (
            event("session_opened", session=3, uid=5, pid=9, name="", command="agent.py"),
            "session 3 opened by pid 9 agent.py, uid 5",
        ),
        (
            event("session_ended", session=3, reason="process_exited", name="a", pid=9),
            "session 3 of pid 9 a ended: its process exited",
        ),
        (
            event("lease_granted", lease=4, session=1, reason="need"),
            "lease 4 granted to session 1 (pid 8 known): a tunnel was missing",
        ),
        (
            event("lease_released", lease=4, session=1, name=None, cause="claim_timeout"),
            "lease 4 released, which had claimed nothing: it did not claim in time",
        ),
        (
            event(
                "lease_released", lease=4, session=1, name="p1", cause="admin", by_uid=0, by_pid=6
            ),
            "lease 4 released, which held p1: by an admin (uid 0, pid 6)",
        ),
        (
            event("proxy_claimed", name="p1", lease=4, session=2),
            "p1 claimed by lease 4 of session 2",
        ),
        (
            event("proxy_tracked", session=1, **PROXY),
            "p1 is there, generation 3 of group g, says session 1 (pid 8 known)",
        ),
        (
            event("proxy_changed", old_group="", old_generation=2, session=2, **PROXY),
            "p1: generation 2 became generation 3 of group g, says session 2",
        ),
        (event("proxy_expired", **PROXY), "p1 expired, generation 3 of group g: nobody mentioned"),
        (
            event("proxy_forgotten", by_uid=0, by_pid=6, **PROXY),
            "p1 forgotten, generation 3 of group g: by an admin (uid 0, pid 6)",
        ),
        (event("connection_count", count=3, before=0), "connection count set to 3, was 0"),
        (event("daemon_started", epoch=2, server="1", pid=5), "daemon 1 started, pid 5, epoch 2"),
        (event("gap", after=4, newest=9), "GAP: the events after 4 up to 9 are lost"),
        (event("gap", after=9, newest=2), "GAP: the daemon has lost its state"),
        (
            event("snapshot", revision=7, proxies=[1], leases=[], sessions=[]),
            "snapshot: 1 proxy, 0 leases, 0 sessions",
        ),
        (event("of_tomorrow", what="\x1b[2J"), "of_tomorrow what=\\x1b[2J"),
    ],
)
def test_every_event_is_a_sentence(happened: Event, words: str) -> None:
    people = People([{"session": 1, "pid": 8, "name": "known", "command": ""}])
    assert words in event_lines.sentence(happened, people)


def test_every_kind_of_event_has_a_sentence_and_a_colour() -> None:
    assert event_lines._SENTENCES.keys() == event_lines.STYLES.keys()


def test_keys_are_told_apart_however_they_come() -> None:
    assert pressed("q\x1b[A\x1b[5~\ts\x1b") == ["q", "up", "page up", "tab", "s", "escape"]
