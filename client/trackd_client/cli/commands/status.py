"""`trackctl status`: the counts of everything, and what they mean in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from trackd_client.cli import common
from trackd_client.cli.output.render import (
    Cell,
    Column,
    Page,
    duration,
    moment,
    more,
    names,
    plain,
    plural,
    shown,
    size,
)
from trackd_client.cli.output.verdict import verdict

_EPILOG = """\b
Examples:
  trackctl status
  trackctl --cluster example.com status --json | jq .claimed

\b
JSON: the fields of the operation status in docs/protocol.md, and
"verdict", the sentence that people get.
"""
_COLUMNS = (
    Column("group", shrinks=True),
    *(Column(name, right=True) for name in ("generation", "tracked", "desired", "claimed")),
)


@click.command(epilog=_EPILOG)
@common.json_option("Print JSON.")
@click.pass_obj
def status(options: common.Options, *, as_json: bool) -> None:
    """Show how things stand, in counts and in words."""
    with common.ended(), options.tracker() as tracker:
        told = tracker.status()
    if as_json:
        common.print_json({**told, "verdict": verdict(told).text})
    else:
        show(told, Page())


def show(told: dict[str, Any], page: Page) -> None:
    """Print a status for people."""
    sentence = verdict(told)
    cluster = page.paint(plain(told["cluster"]), "bold")
    page.line(f"{cluster}  {page.paint(sentence.text, sentence.style)}")
    page.facts(facts(told))
    if told["groups"]:
        page.table(
            _COLUMNS,
            [
                [
                    shown(group["group"]),
                    *(str(group[name]) for name in ("generation", "tracked", "desired")),
                    Cell(str(group["claimed"]), _fullness(group)),
                ]
                for group in told["groups"]
            ],
        )
        more(len(told["groups"]), told["group_count"], page)


def facts(told: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Return the lines of the table: name and value."""
    count = told["connection_count"]
    limit = "" if count <= 0 else f", at most {plural(count, 'connection')}"
    claimed = f"{told['claimed_desired']} desired; target {told['target']}"
    daemon = f"{told['server']}, pid {told['pid']}, up {duration(told['uptime'])}"
    yield "mode", told["mode"] + limit
    older = told["tracked"] - told["desired"]
    rest = f", {older} of older generations" if older else ""
    yield "proxies", f"{told['tracked']} tracked, {told['desired']} desired{rest}"
    yield "claimed", f"{told['claimed']}, of which {claimed}"
    yield "in flight", str(told["inflight"])
    yield "waiting", str(told["waiting"])
    yield "sessions", str(told["sessions"])
    yield "store", store(told)
    if told.get("http"):
        yield "http", plain(told["http"])
    if (last := told.get("reload")) is not None:
        yield "reloaded", reloaded(last)
    yield "daemon", f"{daemon}, epoch {told['epoch']}, revision {told['revision']}"


def store(told: dict[str, Any]) -> str:
    """Return in words how the store is."""
    words = [plain(told["store_problem"] or told["store"])]
    if (stored := told.get("store_bytes")) is not None:
        words.append(size(stored))
    if (kept := told.get("history")) is not None:
        words.append(f"{plural(kept, 'event')} kept")
    return ", ".join(words)


def reloaded(last: dict[str, Any]) -> str:
    """Return in words what came of the last reload."""
    words = [moment(last["wall"])]
    if last["error"] is not None:
        words.append(f"refused, nothing changed: {plain(last['error'])}")
    else:
        words.append(f"changed {names(last['changed'])}" if last["changed"] else "nothing changed")
        if last["refused"]:
            words.append(f"needs a restart: {names([name for name, _ in last['refused']])}")
    return "; ".join(words)


def _fullness(group: dict[str, Any]) -> str:
    if group["claimed"] >= group["desired"]:
        return "green"
    return "yellow" if group["claimed"] else "red"
