"""`trackctl release`: takes a lease from its agent."""

from __future__ import annotations

import click

from trackd_client.cli import common, completions
from trackd_client.cli.output.render import format_value

_EPILOG = """\b
Examples:
  trackctl leases --in-flight       # which one?
  trackctl release 7 --force

The agent gets a notice that the lease is lost, and hangs up; others may dial. It is
for admins; the daemon logs who did it.

\b
JSON: {"released", "name": proxy that is free now or null, "session": of the
holder or null}
"""


@click.command(epilog=_EPILOG)
@click.argument("lease", type=click.IntRange(min=1), shell_complete=completions.leases)
@click.option("--force", is_flag=True, help="Confirm: take it from its agent.")
@common.json_option("Print what was released, as JSON.")
@click.pass_obj
def release(options: common.Options, *, lease: int, force: bool, as_json: bool) -> None:
    """Take a lease from the agent that holds it."""
    if not force:
        raise click.UsageError(
            f"an agent holds lease {lease}, and closes its tunnel when it is taken;"
            " --force takes it"
        )
    with common.report_errors(), options.connect() as tracker:
        reply = tracker.force_release(lease)
    if as_json:
        common.print_json(reply)
    if not reply["released"]:
        common.fail(f"nobody holds lease {lease}")
    if not as_json:
        free = "" if reply["name"] is None else f"; {format_value(reply['name'])} is free"
        click.echo(f"lease {lease} taken from session {reply['session']}{free}")
