"""`trackctl forget`: makes the daemon drop a proxy, even if old gossip names it."""

from __future__ import annotations

import click

from trackd_client.cli import common, completions
from trackd_client.cli.output import listing
from trackd_client.cli.output.render import format_duration, format_value

_EPILOG = """\b
Examples:
  trackctl proxies --missing       # which one is gone?
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
    with common.report_errors(), options.connect() as tracker:
        reply = tracker.forget(proxy)
        left = listing.seconds_until(tracker, reply["until"])
    if as_json:
        common.print_json(reply)
    if not reply["forgotten"]:
        common.fail(f"{format_value(proxy)} is not tracked")
    if not as_json:
        until = (
            ""
            if left is None
            else f"; old gossip of it is not believed for {format_duration(left)}"
        )
        still = "; a lease still holds it" if reply["claimed"] else ""
        click.echo(f"{format_value(proxy)} forgotten{until}{still}")
