"""`trackctl sessions`: the agents of this host, what they hold and what they do."""

from __future__ import annotations

import pwd
import time
from functools import partial
from typing import Any

import click

from trackd_client import Tracker
from trackd_client.cli import common
from trackd_client.cli.output import listing
from trackd_client.cli.output.flapping import STARTS, WINDOW, Flapping, find_flapping
from trackd_client.cli.output.render import (
    Cell,
    Column,
    Page,
    format_count,
    format_duration,
    format_remaining,
    format_value,
)
from trackd_client.cli.text import escape
from trackd_client.core.mirror import Row
from trackd_client.results import SessionRow

_EPILOG = """\b
Examples:
  trackctl sessions
  trackctl sessions --sort inflight --reverse   # who keeps leases in flight
  trackctl sessions --sort gossip --reverse     # who gossips most
  trackctl sessions --user tunnel-agent --json | jq '.sessions[].pid'
  trackctl sessions --flapping                  # who starts again and again

\b
JSON: {"total", "sessions": [{"session", "pid", "uid", "user", "gid",
"command", "name", "version", "labels", "leases", "inflight", "waiting",
"requests", "gossip", "age", "wall", "visible", "heartbeat_within",
"pause"}]}, in a fleet "host"; "visible": the daemon sees the process, and
needs no heartbeats;
"pause": its own pause after failed dials, {"failures", "seconds", "reason"},
or null. With --flapping: {"since", "flapping": [{"command", "name", "uid",
"user", "starts", "running", "last", "ended": {reason: how many}}]}; "since",
"last": Unix time.
"""
_COLUMNS = (
    Column("session", right=True),
    Column("pid", right=True),
    Column("user", shrinks=True),
    Column("command", shrinks=True, spare=2),
    Column("name", shrinks=True),
    *(Column(name, right=True) for name in ("leases", "in flight", "waiting")),
    Column("gossip", right=True),
    Column("requests", right=True, spare=3),
    Column("age", right=True, spare=1),
    Column("lives by", spare=4),
)
_PAUSES = Column("pauses after")
_HOST = Column("host", shrinks=True)
_FLAPPING = (
    Column("starts", right=True),
    Column("running", right=True),
    Column("user", shrinks=True),
    Column("command", shrinks=True),
    Column("name", shrinks=True),
    Column("last start", right=True),
    Column("ended"),
)


@click.command(epilog=_EPILOG)
@click.argument("patterns", nargs=-1, metavar="[PATTERN]...")
@click.option("--waiting", "waits", is_flag=True, help="Only those that wait for a lease.")
@click.option("--paused", is_flag=True, help="Only those that pause after failed dials.")
@click.option("--holding", is_flag=True, help="Only those that hold leases.")
@click.option("--user", help="Only those of this user: a name or a uid.")
@click.option("--pid", type=int, help="Only that of this process.")
@click.option(
    "--flapping",
    is_flag=True,
    help=f"Agents that started {STARTS} times in {WINDOW / 60:.0f} minutes, also ended ones.",
)
@listing.options(
    *("session", "pid", "user", "command", "name", "leases", "inflight", "waiting"),
    *("gossip", "requests", "age"),
)
@click.pass_obj
def sessions(
    options: common.Options,
    *,
    patterns: tuple[str, ...],
    waits: bool,
    paused: bool,
    holding: bool,
    user: str | None,
    pid: int | None,
    flapping: bool,
    sort: str,
    reverse: bool,
    limit: int | None,
    as_json: bool,
) -> None:
    """Show agents: what they hold and what they ask for.

    PATTERN is an agent's name or command, or one with * and ? in it.
    """
    if flapping:
        _show_flapping(options, patterns, user, as_json=as_json)
        return
    with common.report_errors(), options.connect() as tracker:
        everything = [_make_row(row, tracker) for row in tracker.rows("sessions")]
    found = [
        row
        for row in everything
        if listing.matches(patterns, row["name"], row["command"])
        and not (waits and not row["waiting"])
        and not (paused and row["pause"] is None)
        and not (holding and not row["leases"])
        and (user is None or user in {row["user"], str(row["uid"])})
        and (pid is None or row["pid"] == pid)
    ]
    found = listing.sort_rows(found, sort, "session", reverse=reverse)
    if as_json:
        common.print_json(listing.make_document("sessions", found, limit))
    else:
        columns = _COLUMNS
        if any(row["pause"] is not None for row in found):
            columns += (_PAUSES,)
        hosts = any("host" in row for row in found)
        if hosts:
            columns = (*columns[:2], _HOST, *columns[2:])
        of = ("sessions", len(everything))
        listing.show(columns, found, partial(make_cells, hosts=hosts), limit=limit, of=of)


def _show_flapping(
    options: common.Options, patterns: tuple[str, ...], user: str | None, *, as_json: bool
) -> None:
    with common.report_errors(), options.connect() as tracker:
        events = tracker.log(older=True)["events"]
    now = time.time()
    found = [
        _make_flapping_row(each)
        for each in find_flapping(events, now - WINDOW)
        if listing.matches(patterns, each.name, each.command)
        and (user is None or user in {find_user_name(each.uid, each.host), str(each.uid)})
    ]
    if as_json:
        common.print_json({"since": now - WINDOW, "flapping": found})
    elif found:
        hosts = any("host" in row for row in found)
        columns = (*_FLAPPING[:2], _HOST, *_FLAPPING[2:]) if hosts else _FLAPPING
        Page().table(columns, [_make_flapping_cells(row, now, hosts=hosts) for row in found])
    else:
        Page().note(f"no agent has started {STARTS} times in {WINDOW / 60:.0f} minutes")


def _make_flapping_row(found: Flapping) -> Row:
    row = {**found._asdict(), "user": find_user_name(found.uid, found.host)}
    if not found.host:
        del row["host"]
    return row


def _make_flapping_cells(row: Row, now: float, *, hosts: bool) -> list[str | Cell]:
    return [
        str(row["starts"]),
        str(row["running"]),
        *([format_value(row.get("host"))] if hosts else ()),
        format_value(row["user"]),
        format_value(row["command"] or None),
        format_value(row["name"] or None),
        f"{format_duration(max(0.0, now - row['last']))} ago",
        ", ".join(f"{number} {escape(reason)}" for reason, number in row["ended"].items()),
    ]


def _make_row(row: SessionRow, tracker: Tracker) -> Row:
    age = listing.seconds_until(tracker, row.opened)
    shown: dict[str, Any] = {
        "session": row.session,
        "pid": row.pid,
        "uid": row.uid,
        "user": find_user_name(row.uid, row.host),
        **{name: row[name] for name in ("gid", "command", "name", "version", "labels")},
        **{name: row[name] for name in ("leases", "inflight", "waiting", "requests", "gossip")},
        "age": None if age is None else max(0.0, -age),
        "wall": row.wall,
        "visible": row.visible,
        "heartbeat_within": listing.seconds_until(tracker, row.deadline),
        "pause": None,
    }
    if row.host:
        shown["host"] = row.host
    if row.pause is not None:
        shown["pause"] = {
            "failures": row.pause.failures,
            "seconds": max(0.0, listing.seconds_until(tracker, row.pause.until) or 0.0),
            "reason": row.pause.reason,
        }
    return shown


def make_cells(row: Row, *, hosts: bool = False) -> list[str | Cell]:
    """Return the cells of a row for people; the last one is for `_PAUSES`.

    Args:
        row: what is shown.
        hosts: whether there is a column for the host.
    """
    within, pause = row["heartbeat_within"], row["pause"]
    return [
        str(row["session"]),
        format_value(row["pid"] or None),
        *([format_value(row.get("host"))] if hosts else ()),
        format_value(row["user"]),
        format_value(row["command"] or None),
        format_value(row["name"] or None),
        str(row["leases"]),
        Cell(str(row["inflight"]), "yellow" if row["inflight"] else ""),
        str(row["waiting"]),
        str(row["gossip"]),
        str(row["requests"]),
        "-" if row["age"] is None else format_duration(row["age"]),
        "process" if within is None else f"heartbeats, {format_remaining(within)}",
        "-" if pause is None else Cell(_describe_pause(pause), "yellow"),
    ]


def _describe_pause(pause: Row) -> str:
    return f"{format_count(pause['failures'], 'failed dial')}, {pause['reason']}"


def find_user_name(uid: int, host: str = "") -> str:
    """Return the name of a user, or the number of one that has none here, or is of another host."""
    if host:
        return str(uid)
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
