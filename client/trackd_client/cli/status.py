"""`trackctl status`: the counts of everything, and what they mean in words."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console
from rich.table import Table

from trackd_client.cli import command

_EPILOG = """\b
Examples:
  trackctl status
  trackctl --cluster example.com status --json | jq .claimed
"""


@click.command(epilog=_EPILOG)
@click.option("--json", "as_json", is_flag=True, help="Print JSON (docs/protocol.md, status).")
@click.pass_obj
def status(options: command.Options, *, as_json: bool) -> None:
    """Show how many proxies are wanted, claimed and being dialled."""
    with command.ended(), options.tracker() as tracker:
        told = tracker.status()
    if as_json:
        command.print_json(told)
    else:
        show(told, Console(highlight=False))


def show(told: dict[str, Any], console: Console) -> None:
    """Print a status for people."""
    console.print(f"[bold]{told['cluster']}[/]  {verdict(told)}")
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column()
    for name, value in rows(told):
        table.add_row(name, value)
    console.print(table)
    if told["groups"]:
        groups = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for column in ("group", "generation", "tracked", "desired", "claimed"):
            groups.add_column(column, justify="left" if column == "group" else "right")
        for group in told["groups"]:
            groups.add_row(
                group["group"] or '""',
                *(str(group[name]) for name in ("generation", "tracked", "desired", "claimed")),
            )
        console.print(groups)


def rows(told: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of the table: name and value."""
    count = told["connection_count"]
    limit = "" if count <= 0 else f", at most {count} connections"
    claimed = f"{told['claimed_desired']} desired; target {told['target']}"
    daemon = f"{told['server']}, pid {told['pid']}, up {duration(told['uptime'])}"
    return [
        ("mode", told["mode"] + limit),
        ("proxies", f"{told['tracked']} tracked, {told['desired']} desired"),
        ("claimed", f"{told['claimed']}, of which {claimed}"),
        ("in flight", str(told["inflight"])),
        ("waiting", str(told["waiting"])),
        ("sessions", str(told["sessions"])),
        ("store", told["store_problem"] or told["store"]),
        ("daemon", f"{daemon}, epoch {told['epoch']}, revision {told['revision']}"),
    ]


def verdict(told: dict[str, Any]) -> str:
    """Return in words how things stand."""
    missing = told["target"] - told["claimed_desired"]
    if told["store"] == "failing":
        return "[red]changes cannot be stored[/]: agents are refused until they can"
    if not told["tracked"]:
        return "[yellow]no proxy is known[/]: the first dial brings gossip"
    if missing <= 0:
        return "[green]every wanted proxy is claimed[/]"
    if told["inflight"]:
        return f"[yellow]{missing} wanted, {told['inflight']} being dialled[/]"
    return f"[yellow]{missing} wanted, and nobody dials[/]"


def duration(seconds: float) -> str:
    """Return a duration as people say it: 59s, 3m 20s, 5h 2m, 3d 4h."""
    whole = int(seconds)
    for size, unit, small_size, small in (
        (86_400, "d", 3600, "h"),
        (3600, "h", 60, "m"),
        (60, "m", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size}{unit} {whole % size // small_size}{small}"
    return f"{whole}s"
