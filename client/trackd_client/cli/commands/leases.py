"""`trackctl leases`: each lease, who holds it, since when, and what it claimed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import click

from trackd_client import Tracker
from trackd_client.cli import common
from trackd_client.cli.output import listing
from trackd_client.cli.output.render import (
    Cell,
    Column,
    format_duration,
    format_names,
    format_remaining,
    format_rtt,
    format_value,
)
from trackd_client.core.mirror import Row
from trackd_client.results import LeaseRow

_EPILOG = """\b
Examples:
  trackctl leases
  trackctl leases --in-flight --sort age --reverse    # who dials for how long
  trackctl leases --session 3
  trackctl leases 'proxy-*' --json | jq '.leases[].principals'

\b
JSON: {"total", "leases": [{"lease", "state": "claimed", "offered" (and
claimed until it is replaced) or "in_flight", "name", "session", "pid",
"command", "agent", "age", "wall", "claim_within", "principals",
"reported_ago", "rtt", "stale"}]}, in a fleet "host"
"""
_COLUMNS = (
    Column("lease", right=True),
    Column("state"),
    Column("proxy", shrinks=True),
    Column("session", right=True),
    Column("pid", right=True),
    Column("command", shrinks=True),
    Column("age", right=True),
    Column("claim within", right=True, spare=2),
    Column("principals", shrinks=True, spare=1),
)
#: Shown when a lease has reported its tunnel alive.
_TUNNEL_COLUMNS = (Column("last report", right=True), Column("rtt", right=True))
_STATES = {
    "claimed": Cell("claimed", "green"),
    "offered": Cell("offered", "cyan"),
    "in_flight": Cell("in flight", "yellow"),
}
_SORTS = {"proxy": "name"}


@click.command(epilog=_EPILOG)
@click.argument("patterns", nargs=-1, metavar="[PATTERN]...")
@click.option("--in-flight", is_flag=True, help="Only those that have not claimed.")
@click.option("--claimed", is_flag=True, help="Only those that have claimed.")
@click.option("--session", type=int, help="Only those of this session.")
@click.option("--pid", type=int, help="Only those of this process.")
@listing.options("lease", "state", "proxy", "session", "pid", "command", "age")
@click.pass_obj
def leases(
    options: common.Options,
    /,
    *,
    patterns: tuple[str, ...],
    in_flight: bool,
    claimed: bool,
    sort: str,
    reverse: bool,
    limit: int | None,
    as_json: bool,
    **equal: Any,
) -> None:
    """Show leases: who holds them, since when, for what.

    PATTERN is a proxy's name or principal, or one with * and ? in it.
    """
    with common.report_errors(), options.connect() as tracker:
        sessions = {row.session: row for row in tracker.rows("sessions")}
        everything = [_make_row(row, sessions, tracker) for row in tracker.rows("leases")]
    found = [
        row
        for row in everything
        if listing.matches(patterns, row["name"], *row["principals"])
        and not (in_flight and row["name"] is not None)
        and not (claimed and row["name"] is None)
        and all(value is None or row[field] == value for field, value in equal.items())
    ]
    found = listing.sort_rows(found, _SORTS.get(sort, sort), "lease", reverse=reverse)
    if as_json:
        common.print_json(listing.make_document("leases", found, limit))
    else:
        reports = any(row["reported_ago"] is not None for row in found)
        columns = (*_COLUMNS, *_TUNNEL_COLUMNS) if reports else _COLUMNS
        of = ("leases", len(everything))
        listing.show(columns, found, partial(make_cells, reports=reports), limit=limit, of=of)


def _make_row(row: LeaseRow, sessions: Mapping[int, Row], tracker: Tracker) -> Row:
    holding, agent = listing.find_holder(sessions, row.session)
    return {
        "lease": row.lease,
        "state": "in_flight" if row.name is None else "offered" if row.offered else "claimed",
        "name": row.name,
        "session": row.session,
        "pid": row.pid,
        "command": holding,
        "agent": agent,
        "age": listing.seconds_since(tracker, row.granted),
        "wall": row.wall,
        "claim_within": listing.seconds_until(tracker, row.claim_by),
        "principals": row.principals,
        "reported_ago": listing.seconds_since(tracker, row.reported),
        "rtt": row.rtt,
        "stale": row.stale,
        **({"host": row.host} if row.host else {}),
    }


def make_cells(row: Row, *, reports: bool = False) -> list[str | Cell]:
    """Return the cells of a row for people.

    Args:
        row: the row.
        reports: whether what leases have reported is shown.
    """
    within, ago, rtt = row["claim_within"], row["reported_ago"], row["rtt"]
    told = (
        "-" if ago is None else f"{format_duration(ago)} ago",
        "-" if rtt is None else format_rtt(rtt),
    )
    return [
        str(row["lease"]),
        _describe_state(row),
        format_value(row["name"]),
        format_value(row["session"]),
        format_value(row["pid"]),
        format_value(row["command"] or None),
        "-" if row["age"] is None else format_duration(row["age"]),
        "-" if within is None else format_remaining(within),
        format_names(row["principals"]) or "-",
        *(told if reports else ()),
    ]


def _describe_state(row: Row) -> Cell:
    return Cell("stale", "red") if row["stale"] else _STATES[row["state"]]
