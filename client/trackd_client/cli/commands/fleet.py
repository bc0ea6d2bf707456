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
from trackd_client.results import EtcdHealth, EtcdMember, Fleet, FleetCandidate, FleetHost

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
"key"}], "candidates": [{"host", "leads", "version", "format", "since": Unix
time}], "etcd": null or {"looked": seconds ago, "members": [{"member",
"answers", "version", "leads", "size", "in_use", "quota": bytes or null}],
"alarms": [{"member", "kind"}], "revisions": since the last compaction or
null, "compacted": seconds ago}}; hosts: {"hosts"}; yield: {"yielded",
"leader", "term"}; drop: {"known", "sessions", "freed": how many leases}
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
    if found.candidates:
        yield "candidates", ", ".join(describe_candidate(row) for row in found.candidates)
    if found.etcd is not None:
        yield "etcd", describe_etcd(found.etcd)
        if found.etcd.alarms:
            yield "alarms", describe_alarms(found.etcd)


def describe_candidate(row: FleetCandidate) -> str:
    """Return a candidate in some words for people."""
    version = f" ({escape(row.version)})" if row.version else ""
    return f"{escape(row.host)}{version} {'leads' if row.leads else 'stands by'}"


def describe_etcd(etcd: EtcdHealth) -> str:
    """Return how etcd is in a line for people, but for its alarms."""
    answers = [row for row in etcd.members if row.answers]
    versions = format_names(sorted({row.version for row in answers}))
    parts = [f"{versions}, {len(answers)} of {len(etcd.members)} members answer"]
    if (full := fullest(etcd)) is not None:
        parts.append(f"{format_size(full.size or 0)} of {format_size(full.quota or 0)}")
    elif sizes := [row.size for row in answers if row.size is not None]:
        parts.append(format_size(max(sizes)))
    if etcd.revisions is not None:
        parts.append(f"{etcd.revisions} changes since its compaction")
    return ", ".join(parts)


def describe_alarms(etcd: EtcdHealth) -> str:
    """Return the alarms of etcd in a line for people."""
    return format_names([f"{each.kind} at {each.member}" for each in etcd.alarms])


def fullest(etcd: EtcdHealth) -> EtcdMember | None:
    """Return the member of etcd that is nearest to its quota; None: no quota is known."""
    known = [row for row in etcd.members if row.size is not None and row.quota]
    return max(known, key=lambda row: (row.size or 0) / (row.quota or 1), default=None)


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
