"""`trackctl fleet`: who leads the fleet, how its hosts are, and what admins do to it."""

from __future__ import annotations

from collections.abc import Iterator

import click

from trackd_client.cli import common, completions
from trackd_client.cli.output.render import (
    Cell,
    Column,
    Page,
    format_count,
    format_duration,
    format_names,
    format_rtt,
    format_size,
    format_value,
)
from trackd_client.cli.text import escape
from trackd_client.results import Fleet, FleetHost

_EPILOG = """\b
Examples:
  trackctl fleet                   # who leads, and which hosts are silent
  trackctl fleet hosts             # each host
  trackctl fleet yield             # before work on the host that leads
  trackctl fleet drop host-7       # it burns; do not wait for host_ttl
  trackctl fleet --json | jq -r '.hosts[] | select(.connected | not).host'

With yield the leader's process ends, and the next candidate leads; tunnels
stay, and calls of agents wait for a moment. With drop all sessions of the
host end, and its proxies are free; if it lives after all, its agents open new
ones. Both are for admins of the hosts that the leader's [fleet] admin_hosts
names, and are logged. While nobody leads, the command says since when, and
exits with 1.

\b
JSON: {"leader", "term", "uptime": seconds, "failovers", "commits",
"commit_mean", "commit_p50", "commit_p99": seconds, "store_bytes", "hosts":
[{"host", "connected", "heard": seconds ago or null, "sessions", "admin",
"key"}]}; hosts: {"hosts"}; yield: {"yielded", "leader", "term"}; drop:
{"known", "sessions", "freed": how many leases}
"""
_COLUMNS = (
    Column("host", shrinks=True),
    Column("state"),
    Column("heard", right=True),
    Column("sessions", right=True),
    Column("admins", spare=1),
    Column("key", spare=2),
)


@click.command(epilog=_EPILOG)
@click.argument("act", type=click.Choice(["hosts", "yield", "drop"]), required=False)
@click.argument("host", required=False, shell_complete=completions.hosts)
@common.json_option("Print JSON.")
@click.pass_obj
def fleet(options: common.Options, *, act: str | None, host: str | None, as_json: bool) -> None:
    """Show who leads a fleet of hosts, and its hosts."""
    if act == "drop" and host is None:
        raise click.UsageError("name the host: trackctl fleet drop HOST")
    if act != "drop" and host is not None:
        raise click.UsageError("only drop takes a HOST")
    if act == "drop":
        assert host is not None
        _drop(options, host, as_json=as_json)
    elif act == "yield":
        _yield(options, as_json=as_json)
    else:
        _show(options, only_hosts=act == "hosts", as_json=as_json)


def _show(options: common.Options, *, only_hosts: bool, as_json: bool) -> None:
    with common.report_errors(), options.connect() as tracker:
        found = tracker.fleet()
    if as_json:
        common.print_json({"hosts": found.hosts} if only_hosts else found)
        return
    page = Page()
    if only_hosts:
        page.table(_COLUMNS, [make_cells(row) for row in found.hosts])
        return
    page.line(f"{page.paint(escape(found.leader), 'bold')} leads, term {found.term}")
    page.pairs(list_facts(found))


def list_facts(found: Fleet) -> Iterator[tuple[str, str]]:
    """Return the lines about a fleet: name and value."""
    yield "for", format_duration(found.uptime)
    yield "failovers", str(found.failovers)
    mean, most = format_rtt(found.commit_mean), format_rtt(found.commit_p99)
    yield "commits", f"{found.commits}, {mean} on average, 99 % within {most}"
    yield "store", format_size(found.store_bytes)
    connected = [row for row in found.hosts if row.connected]
    yield "hosts", f"{len(connected)} of {len(found.hosts)} connected"
    if silent := [row.host for row in found.hosts if not row.connected]:
        yield "silent", format_names(silent)
    if keyless := [row.host for row in found.hosts if not row.key]:
        yield "without key", format_names(keyless)


def make_cells(row: FleetHost) -> list[str | Cell]:
    """Return the cells of a host for people."""
    return [
        format_value(row.host),
        Cell("connected", "green") if row.connected else Cell("silent", "red"),
        "-" if row.heard is None else f"{format_duration(row.heard)} ago",
        str(row.sessions),
        "yes" if row.admin else "no",
        "yes" if row.key else Cell("no", "red"),
    ]


def _drop(options: common.Options, host: str, *, as_json: bool) -> None:
    with common.report_errors(), options.connect() as tracker:
        reply = tracker.drop_host(host)
    if as_json:
        common.print_json(reply)
    if not reply["known"]:
        common.fail(f"the fleet has no host {host}; trackctl fleet hosts lists them")
    if not as_json:
        ended = format_count(reply["sessions"], "session")
        click.echo(
            f"{ended} of {escape(host)} ended; {format_count(reply['freed'], 'lease')} released"
        )


def _yield(options: common.Options, *, as_json: bool) -> None:
    with common.report_errors(), options.connect() as tracker:
        before = tracker.fleet()
        reply = tracker.yield_lead(before.term)
    if as_json:
        common.print_json(reply)
    elif reply["yielded"]:
        click.echo(f"{escape(before.leader)} leads no more; trackctl fleet shows who is next")
    else:
        click.echo(f"term {before.term} was over already; {escape(reply['leader'])} leads")
