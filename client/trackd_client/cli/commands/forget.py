"""`trackctl forget`: has the daemon track a proxy no more, whatever old gossip says."""

from __future__ import annotations

import click

from trackd_client.cli import common, completions
from trackd_client.cli.output import listing
from trackd_client.cli.output.render import duration, shown

_EPILOG = """\b
Examples:
  trackctl proxies --missing       # which one is not there any more?
  trackctl forget proxy-7

Until its TTL is over, gossip of the same group with the same or a smaller
generation does not bring it back; a newer generation does. A tunnel to it
stays as it is. It is for admins; the daemon logs who did it.

\b
JSON: {"forgotten", "claimed": a lease still holds it, "until": moment of the
daemon's clock up to which old gossip is not believed, or null}
"""


@click.command(epilog=_EPILOG)
@click.argument("proxy", shell_complete=completions.proxies)
@common.json_option("Print what was forgotten, as JSON.")
@click.pass_obj
def forget(options: common.Options, *, proxy: str, as_json: bool) -> None:
    """Forget a proxy that is gone, whatever gossip says."""
    with common.ended(), options.tracker() as tracker:
        told = tracker.forget(proxy)
        left = listing.left(tracker, told["until"])
    if as_json:
        common.print_json(told)
    if not told["forgotten"]:
        common.fail(f"{shown(proxy)} is not tracked")
    if not as_json:
        until = "" if left is None else f"; old gossip of it is not believed for {duration(left)}"
        still = "; a lease holds it still" if told["claimed"] else ""
        click.echo(f"{shown(proxy)} forgotten{until}{still}")
