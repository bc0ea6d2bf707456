"""`trackctl release`: takes a lease from whoever holds it."""

from __future__ import annotations

import click

from trackd_client.cli import common, completions
from trackd_client.cli.output.render import shown

_EPILOG = """\b
Examples:
  trackctl leases --in-flight       # which one?
  trackctl release 7 --force

The agent is told that the lease is lost, and hangs up; others may dial. It is
for admins; the daemon logs who did it.

\b
JSON: {"released", "name": proxy that is free now or null, "session": of the
holder or null}
"""


@click.command(epilog=_EPILOG)
@click.argument("lease", type=click.IntRange(min=1), shell_complete=completions.leases)
@click.option("--force", is_flag=True, help="Yes, take it from its agent.")
@common.json_option("Print what was released, as JSON.")
@click.pass_obj
def release(options: common.Options, *, lease: int, force: bool, as_json: bool) -> None:
    """Take a lease from the agent that holds it."""
    if not force:
        raise click.UsageError(
            f"lease {lease} is in the hands of an agent, which will close its tunnel;"
            " with --force it is taken all the same"
        )
    with common.ended(), options.tracker() as tracker:
        told = tracker.force_release(lease)
    if as_json:
        common.print_json(told)
    if not told["released"]:
        common.fail(f"nobody holds lease {lease}")
    if not as_json:
        free = "" if told["name"] is None else f"; {shown(told['name'])} is free"
        click.echo(f"lease {lease} taken from session {told['session']}{free}")
