"""`trackctl status`: the counts of everything, and what they mean in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from trackd_client.cli import common
from trackd_client.cli.exit_codes import FAILED
from trackd_client.cli.output.render import (
    Cell,
    Column,
    Page,
    format_count,
    format_duration,
    format_names,
    format_size,
    format_time,
    format_value,
    note_rest,
)
from trackd_client.cli.output.verdict import is_covered, judge, seconds_since_dial
from trackd_client.cli.text import escape
from trackd_client.results import Group, Status, UserUsage

_EPILOG = """\b
Examples:
  trackctl status
  trackctl --cluster example.com status --json | jq .claimed
  trackctl status --check || mail -s "tunnels are missing" admin

\b
Exit codes with --check:
  0  every wanted tunnel is there
  1  tunnels are missing, no proxy is known, or changes cannot be stored
  2  wrong usage
  3  no daemon answers

\b
JSON: the fields of the operation status in docs/protocol.md, and
"verdict", the sentence that people get.
"""
_COLUMNS = (
    Column("group", shrinks=True),
    *(Column(name, right=True) for name in ("generation", "tracked", "desired", "claimed")),
)

#: A user is near to a quota who uses this share of it.
_NEAR = 0.8


@click.command(epilog=_EPILOG)
@click.option("--check", is_flag=True, help="Exit with 1 unless every wanted tunnel is there.")
@common.json_option("Print JSON.")
@click.pass_obj
def status(options: common.Options, *, check: bool, as_json: bool) -> None:
    """Show how things stand, in counts and in words."""
    with common.report_errors(), options.connect() as tracker:
        reply = tracker.status()
        ago = None if is_covered(reply) else seconds_since_dial(tracker, reply.revision)
    if as_json:
        common.print_json({**reply, "verdict": judge(reply, ago).text})
    elif check:
        click.echo(judge(reply, ago).text)
    else:
        show(reply, ago, Page())
    if check and not is_covered(reply):
        raise SystemExit(FAILED)


def show(reply: Status, since_dial: float | None, page: Page) -> None:
    """Print a status for people."""
    sentence = judge(reply, since_dial)
    cluster = page.paint(escape(reply.cluster), "bold")
    page.line(f"{cluster}  {page.paint(sentence.text, sentence.style)}")
    page.pairs(list_counts(reply))
    if reply.groups:
        page.table(
            _COLUMNS,
            [
                [
                    format_value(group.group),
                    *(str(group[name]) for name in ("generation", "tracked", "desired")),
                    Cell(str(group.claimed), _choose_style(group)),
                ]
                for group in reply.groups
            ],
        )
        note_rest(len(reply.groups), reply.group_count, page)


def list_counts(reply: Status) -> Iterator[tuple[str, str]]:
    """Return the lines of the table: name and value."""
    count = reply.connection_count
    limit = "" if count <= 0 else f", at most {format_count(count, 'connection')}"
    claimed = f"{reply.claimed_desired} desired; target {reply.target}"
    daemon = f"{escape(reply.server)}, pid {reply.pid}, up {format_duration(reply.uptime)}"
    yield "mode", escape(reply.mode) + limit
    older = reply.tracked - reply.desired
    rest = f", {older} of older generations" if older else ""
    yield "proxies", f"{reply.tracked} tracked, {reply.desired} desired{rest}"
    yield "claimed", f"{reply.claimed}, of which {claimed}"
    yield "in flight", str(reply.inflight)
    yield "waiting", str(reply.waiting)
    yield "sessions", str(reply.sessions)
    for user in reply.users:
        if near := list_near_quotas(user, reply.quotas):
            yield "quotas", f"user {user.uid} uses {', '.join(near)}"
    yield "store", describe_store(reply)
    if reply.http:
        problem = reply.http_problem
        yield "http", escape(f"not served: {problem}" if problem else reply.http)
    if (last := reply.reload) is not None:
        yield "reloaded", describe_reload(last)
    yield "daemon", f"{daemon}, epoch {reply.epoch}, revision {reply.revision}"


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
