"""`trackctl proxies`: each proxy, whether it is wanted, who holds it, who speaks of it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import click

from trackd_client import Tracker
from trackd_client.cli import common, completions
from trackd_client.cli.output import listing
from trackd_client.cli.output.gaps import find_gaps
from trackd_client.cli.output.render import (
    Cell,
    Column,
    format_duration,
    format_remaining,
    format_value,
)
from trackd_client.cli.output.verdict import describe_desired
from trackd_client.core.mirror import Row
from trackd_client.results import ProxyRow, Snapshot

_EPILOG = """\b
Examples:
  trackctl proxies                        # every proxy
  trackctl proxies --missing              # wanted, and nobody has a tunnel
  trackctl proxies 'proxy-*' --group east --sort expires
  trackctl proxies --session 3 --json | jq -r '.proxies[].name'

\b
JSON: {"revision", "total", "proxies": [{"name", "group", "generation",
"largest", "tracked", "desired", "why", "lease", "session", "pid", "command",
"agent", "expires_in", "mentioned_by", "mentioned_by_agent",
"missing_seconds"}]}; "why" is null or, for those that are not desired,
"old_generation", "terminating" or "not_tracked". "missing_seconds": for how
long a desired proxy has had no tunnel; null for others, and where the events
that are kept do not say it. "address" is there when gossip says where to dial
the proxy.
"""
_COLUMNS = (
    Column("name", shrinks=True),
    Column("group", shrinks=True),
    Column("generation", right=True),
    Column("desired", shrinks=True),
    Column("lease", right=True),
    Column("session", right=True, spare=2),
    Column("pid", right=True),
    Column("command", shrinks=True, spare=3),
    Column("expires", right=True, spare=1),
    Column("mentioned by", shrinks=True),
)
_MISSING_FOR = Column("missing for", right=True)
_SORTS = {"mentioned": "mentioned_by", "expires": "expires_in"}


@click.command(epilog=_EPILOG)
@click.argument("patterns", nargs=-1, metavar="[PATTERN]...", shell_complete=completions.proxies)
@click.option("--missing", is_flag=True, help="Only those that are desired and not claimed.")
@click.option("--claimed", is_flag=True, help="Only those that are claimed.")
@click.option("--undesired", is_flag=True, help="Only those that are not desired.")
@click.option("--group", help="Only those of this group; '' is a group as well.")
@click.option("--generation", type=int, help="Only those of this generation.")
@click.option("--session", type=int, help="Only those that this session holds.")
@click.option("--pid", type=int, help="Only those that this process holds.")
@listing.options(
    *("name", "group", "generation", "desired", "lease", "session", "pid", "command"),
    *("expires", "mentioned"),
)
@click.pass_obj
def proxies(
    options: common.Options,
    /,
    *,
    patterns: tuple[str, ...],
    missing: bool,
    claimed: bool,
    undesired: bool,
    sort: str,
    reverse: bool,
    limit: int | None,
    as_json: bool,
    **equal: Any,
) -> None:
    """Show proxies: which are wanted, and who holds them.

    PATTERN is a name, or one with * and ? in it. A terminal shows the missing ones first, unless
    --sort says otherwise.
    """
    with common.report_errors(), options.connect() as tracker:
        reply = tracker.snapshot()
        gaps: Mapping[str, float] = {}
        if any(row.desired and row.lease is None for row in reply.proxies):
            gaps = find_gaps(tracker.log(older=True)["events"])
        everything = make_rows(reply, tracker, gaps)
    found = [
        row
        for row in everything
        if listing.matches(patterns, row["name"])
        and not (missing and (row["lease"] is not None or not row["desired"]))
        and not (claimed and row["lease"] is None)
        and not (undesired and row["desired"])
        and all(value is None or row[field] == value for field, value in equal.items())
    ]
    found = listing.sort_rows(found, _SORTS.get(sort, sort), "name", reverse=reverse)
    context = click.get_current_context()
    by_default = context.get_parameter_source("sort") is click.core.ParameterSource.DEFAULT
    if by_default and not as_json and sys.stdout.isatty():  # where rows may be left out
        found.sort(key=lambda row: not (row["desired"] and row["lease"] is None))
    if as_json:
        document = listing.make_document("proxies", found, limit, revision=reply.revision)
        common.print_json(document)
    else:
        columns: tuple[Column, ...] = _COLUMNS
        if any(row["desired"] and row["lease"] is None for row in found):
            columns += (_MISSING_FOR,)
        listing.show(columns, found, make_cells, limit=limit, of=("proxies", len(everything)))


def make_rows(reply: Snapshot, tracker: Tracker, gaps: Mapping[str, float]) -> list[Row]:
    """Return the rows of proxies of a snapshot, each with its holder's session.

    Args:
        reply: the snapshot.
        tracker: which returned it.
        gaps: since when proxies have had no tunnel, as `find_gaps` returns it.
    """
    sessions = {row.session: row for row in reply.sessions}
    return [_make_row(row, sessions, tracker, gaps) for row in reply.proxies]


def _make_row(
    row: ProxyRow, sessions: Mapping[int, Row], tracker: Tracker, gaps: Mapping[str, float]
) -> Row:
    holding, agent = listing.find_holder(sessions, row.session)
    speaking, speaker = listing.find_holder(sessions, row.mentioned_by)
    why = None if row.desired else "not_tracked"
    if why is not None and row.generation is not None and row.largest is not None:
        why = "old_generation" if row.generation < row.largest else "terminating"
    missing = row.desired and row.lease is None
    return {
        **{name: row[name] for name in ("name", "group", "generation", "largest")},
        **{name: row[name] for name in ("tracked", "desired")},
        "why": why,
        **{name: row[name] for name in ("lease", "session", "pid")},
        "command": holding,
        "agent": agent,
        "expires_in": listing.seconds_until(tracker, row.expires),
        "mentioned_by": row.mentioned_by,
        "mentioned_by_agent": speaker or speaking,
        "missing_seconds": listing.seconds_since(tracker, gaps.get(row.name)) if missing else None,
        **({"address": row.address} if row.address else {}),
        **({"host": row.host} if row.host else {}),
    }


def make_cells(row: Row) -> list[str | Cell]:
    """Return the cells of a row for people; the last one is for `_MISSING_FOR`."""
    expires, missing = row["expires_in"], row["missing_seconds"]
    return [
        Cell(
            format_value(row["name"]), "green" if row["lease"] is not None else _choose_style(row)
        ),
        format_value(row["group"]),
        format_value(row["generation"]),
        Cell(describe_desired(row), "" if row["desired"] else "dim"),
        format_value(row["lease"]),
        format_value(row["session"]),
        format_value(row["pid"]),
        format_value(row["command"] or None),
        "-" if expires is None else format_remaining(expires),
        describe_mention(row["mentioned_by"], row["mentioned_by_agent"]),
        "-" if missing is None else Cell(format_duration(missing), "yellow"),
    ]


def describe_mention(session: int | None, agent: str | None) -> str:
    """Return who mentioned a proxy last."""
    return "-" if session is None else f"{session} {format_value(agent or None)}"


def _choose_style(row: Row) -> str:
    return "yellow" if row["desired"] else "dim"
