"""`trackctl set-connection-count`: how many connections all agents of the host want together."""

from __future__ import annotations

import click

from trackd_client.cli import common

_EPILOG = """\b
Examples:
  trackctl set-connection-count 3   # at most three: proxy peering
  trackctl set-connection-count 0   # one to every desired proxy: agent mesh

It holds across restarts of the daemon, until the configured count changes. Who
may do it says the setting count_role: every client, by default.

\b
JSON: {"connection_count": COUNT}
"""


@click.command(
    "set-connection-count", epilog=_EPILOG, context_settings={"ignore_unknown_options": True}
)
@click.argument("count", type=int)
@common.json_option("Print the count, as JSON.")
@click.pass_obj
def set_connection_count(options: common.Options, *, count: int, as_json: bool) -> None:
    """Set how many connections are wanted; 0: to each."""
    with common.report_errors(), options.connect() as tracker:
        tracker.set_connection_count(count)
    if as_json:
        common.print_json({"connection_count": count})
    elif count > 0:
        click.echo(f"at most {count} connections: proxy peering")
    else:
        click.echo("a connection to every desired proxy: agent mesh")
