"""`trackctl forget`: makes the daemon drop a proxy or a group, even if old gossip names it."""

from __future__ import annotations

import click

from trackd_client.cli import common, completions
from trackd_client.cli.output import listing
from trackd_client.cli.output.render import format_count, format_duration, format_value

_EPILOG = """\b
Examples:
  trackctl proxies --missing       # which one is gone?
  trackctl forget proxy-7
  trackctl forget --group east     # no proxy of it is left
  trackctl forget --group east --generation 18446744073709551615

Until its TTL is over, gossip of the same group with the same or a smaller
generation does not bring it back; a newer generation does. A tunnel to it
stays as it is. Of a group the longest TTL counts. With --generation only that
one is dropped, and gossip of every other one counts at once: for a generation
that nobody deployed. It is for admins; the daemon logs who did it.

\b
JSON: {"forgotten", "claimed": a lease still holds it, "until": moment of the
daemon's clock up to which old gossip is not believed, or null}; for a group
also "count": how many proxies
"""


@click.command(epilog=_EPILOG)
@click.argument("proxy", required=False, shell_complete=completions.proxies)
@click.option("--group", help="All proxies of this group; '' is a group as well.")
@click.option("--generation", type=int, help="With --group: only this generation.")
@common.json_option("Print what was forgotten, as JSON.")
@click.pass_obj
def forget(
    options: common.Options,
    *,
    proxy: str | None,
    group: str | None,
    generation: int | None,
    as_json: bool,
) -> None:
    """Forget a proxy or a group that is gone."""
    if (proxy is None) == (group is None):
        raise click.UsageError("give a PROXY, or --group GROUP")
    if generation is not None and group is None:
        raise click.UsageError("--generation needs --group")
    with common.report_errors(), options.connect() as tracker:
        reply = tracker.forget(proxy, group=group, generation=generation)
        left = listing.seconds_until(tracker, reply["until"])
    if as_json:
        common.print_json(reply)
    what = _describe(proxy, group, generation)
    if not reply["forgotten"]:
        common.fail(f"{what} is not tracked")
    if not as_json:
        until = (
            ""
            if left is None
            else f"; old gossip of it is not believed for {format_duration(left)}"
        )
        still = "; a lease still holds it" if reply["claimed"] else ""
        if group is not None:
            what = f"{format_count(reply['count'], 'proxy', 'proxies')} of {what}"
            still = "; leases still hold some" if reply["claimed"] else ""
        click.echo(f"{what} forgotten{until}{still}")


def _describe(proxy: str | None, group: str | None, generation: int | None) -> str:
    """Return in words what is to be forgotten."""
    if proxy is not None:
        return format_value(proxy)
    of = f"generation {generation} of " if generation is not None else ""
    return f"{of}group {format_value(group)}"
