"""`trackctl status`: the counts of everything, and what they mean in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import click

from trackd_client.cli import common
from trackd_client.cli.exit_codes import FAILED
from trackd_client.cli.output.event_lines import name_host
from trackd_client.cli.output.listing import seconds_until
from trackd_client.cli.output.render import (
    Cell,
    Column,
    Page,
    format_count,
    format_duration,
    format_names,
    format_rtt,
    format_size,
    format_time,
    format_value,
    note_rest,
)
from trackd_client.cli.output.verdict import (
    describe_coverage,
    describe_pause,
    is_covered,
    judge,
    seconds_since_dial,
)
from trackd_client.cli.text import escape
from trackd_client.results import Group, Status, Tunnels, UserUsage

_EPILOG = """\b
Examples:
  trackctl status
  trackctl --cluster example.com status --json | jq .claimed
  trackctl status --check || mail -s "tunnels are missing" admin

\b
Exit codes with --check:
  0  every wanted tunnel is there
  1  tunnels are missing, or changes cannot be stored; also when no proxy
     is known, unless --allow-none is given
  2  wrong usage
  3  no daemon answers

\b
JSON: the fields of the operation status in docs/protocol.md, and
"verdict", the sentence that people get.
"""
_COLUMNS = (
    Column("group", shrinks=True),
    *(Column(name, right=True) for name in ("generation", "tracked", "desired", "claimed")),
    Column("missing for", right=True),
)
#: Returns how many seconds it is to a moment of the daemon's clock; None for no moment.
Until = Callable[[float | None], float | None]
#: A user is near to a quota who uses this share of it.
_NEAR = 0.8


@click.command(epilog=_EPILOG)
@click.option("--check", is_flag=True, help="Exit with 1 unless every wanted tunnel is there.")
@click.option("--allow-none", is_flag=True, help="With --check: also when no tunnel is wanted.")
@common.json_option("Print JSON.")
@click.pass_obj
def status(options: common.Options, *, check: bool, allow_none: bool, as_json: bool) -> None:
    """Show how things stand, in counts and in words."""
    with common.report_errors(), options.connect() as tracker:
        reply = tracker.status()
        ago = None if is_covered(reply) else seconds_since_dial(tracker, reply.revision)
    if as_json:
        common.print_json({**reply, "verdict": judge(reply, ago).text})
    elif check:
        click.echo(judge(reply, ago).text)
    else:
        show(reply, ago, Page(), partial(seconds_until, tracker))
    if check and not is_covered(reply, allow_none=allow_none):
        raise SystemExit(FAILED)


def show(reply: Status, since_dial: float | None, page: Page, until: Until) -> None:
    """Print a status for people.

    Args:
        reply: of the daemon.
        since_dial: as `seconds_since_dial` returns it.
        page: where to print.
        until: returns how many seconds it is to a moment.
    """
    sentence = judge(reply, since_dial)
    cluster = page.paint(escape(reply.cluster), "bold")
    page.line(f"{cluster}  {page.paint(sentence.text, sentence.style)}")
    page.pairs(list_counts(reply, until))
    if reply.groups:
        page.table(_COLUMNS, list_groups(reply))
        note_rest(len(reply.groups), reply.group_count, page)


def list_counts(reply: Status, until: Until) -> Iterator[tuple[str, str]]:
    """Return the lines of the table: name and value."""
    count = reply.connection_count
    limit = "" if count <= 0 else f", at most {format_count(count, 'connection')}"
    terminating = reply.claimed_terminating
    going = f", {terminating} terminating" if terminating else ""
    offered = f" ({reply.offered} offered)" if reply.offered else ""
    claimed = f"{reply.claimed_desired} desired{offered}{going}; target {reply.target}"
    daemon = f"{escape(reply.server)}, pid {reply.pid}, up {format_duration(reply.uptime)}"
    yield "mode", escape(reply.mode) + limit
    older = reply.tracked - reply.desired
    rest = f", {older} of older generations or terminating" if older else ""
    yield "proxies", f"{reply.tracked} tracked, {reply.desired} desired{rest}"
    yield "claimed", f"{reply.claimed}, of which {claimed}"
    if coverage := describe_coverage(reply, until(reply.full_at)):
        yield "coverage", coverage
    if reply.tunnels is not None:
        yield "tunnels", describe_tunnels(reply.tunnels, until(reply.tunnels.reported))
    yield "in flight", str(reply.inflight)
    yield "waiting", str(reply.waiting)
    if reply.pause is not None:
        yield "pause", describe_pause(reply.pause, until(reply.pause.until))
    verb = "pauses" if reply.paused_sessions == 1 else "pause"
    paused = f", {reply.paused_sessions} of them {verb}" if reply.paused_sessions else ""
    yield "sessions", f"{reply.sessions}{paused}"
    for user in reply.users:
        if near := list_near_quotas(user, reply.quotas):
            yield "quotas", f"user {user.uid}{name_host(user.host)} uses {', '.join(near)}"
    if reply.leader:
        yield "fleet", f"led by {escape(reply.leader)}; trackctl fleet shows more"
    yield "store", describe_store(reply)
    if reply.http:
        problem = reply.http_problem
        yield "http", escape(f"not served: {problem}" if problem else reply.http)
    if (last := reply.reload) is not None:
        yield "reloaded", describe_reload(last)
    yield "daemon", f"{daemon}, epoch {reply.epoch}, revision {reply.revision}"


def list_groups(reply: Status) -> list[list[str | Cell]]:
    """Return the rows of the groups, those that miss most now first.

    The last row has the seconds of all groups together that are not counted one by one.
    """
    seconds = {gap.group: gap.missing_seconds for gap in reply.missing_by_group}
    others = seconds.pop(None, None)
    unknown = "-" if others is not None or "missing_by_group" not in reply else format_duration(0)
    rows: list[list[str | Cell]] = [
        [
            format_value(group.group),
            *(str(group[name]) for name in ("generation", "tracked", "desired")),
            Cell(str(group.claimed), _choose_style(group)),
            format_duration(seconds[group.group]) if group.group in seconds else unknown,
        ]
        for group in sorted(reply.groups, key=lambda group: group.claimed - group.desired)
    ]
    if others is not None:
        rows.append([Cell("all others", "dim"), *[""] * 4, format_duration(others)])
    return rows


def describe_tunnels(tunnels: Tunnels, reported: float | None) -> str:
    """Return in words what leases have reported of their tunnels.

    Args:
        tunnels: of the daemon's reply.
        reported: seconds until the last report, so 0 or less; None: there was none yet.
    """
    verb = "reports" if tunnels.reporting == 1 else "report"
    words = [f"{tunnels.reporting} {verb} signs of life"]
    if reported is not None:
        words.append(f"the last one {format_duration(max(0.0, -reported))} ago")
    if tunnels.rtt is not None:
        words.append(f"round trip {format_rtt(tunnels.rtt)}")
    if tunnels.stale:
        words.append(f"{tunnels.stale} stale")
    return ", ".join(words)


def list_near_quotas(user: UserUsage, allowed: Mapping[str, int]) -> list[str]:
    """Return in words how much a user uses of the quotas that it is near to."""
    if user.exempt:
        return []
    return [
        f"{user[name]} of {most} {name.replace('_', ' ')}"
        for name, most in allowed.items()
        if user[name] >= _NEAR * most
    ]


def describe_store(reply: Status) -> str:
    """Return in words how the store is."""
    words = [escape(reply.store_problem or reply.store)]
    if (stored := reply.store_bytes) is not None:
        words.append(format_size(stored))
    if (kept := reply.get("history")) is not None:
        words.append(f"{format_count(kept, 'event')} kept")
    return ", ".join(words)


def describe_reload(last: dict[str, Any]) -> str:
    """Return in words the result of the last reload."""
    words = [format_time(last["wall"])]
    if last["error"] is not None:
        words.append(f"refused, nothing changed: {escape(last['error'])}")
    else:
        words.append(
            f"changed {format_names(last['changed'])}" if last["changed"] else "nothing changed"
        )
        if last["refused"]:
            words.append(f"needs a restart: {format_names([name for name, _ in last['refused']])}")
    return "; ".join(words)


def _choose_style(group: Group) -> str:
    if group.claimed >= group.desired:
        return "green"
    return "yellow" if group.claimed else "red"
