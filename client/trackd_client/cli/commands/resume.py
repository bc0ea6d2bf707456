"""`trackctl resume`: ends the pauses after failed dials."""

from __future__ import annotations

import click

from trackd_client.cli import common
from trackd_client.cli.output.render import format_count

_EPILOG = """\b
Examples:
  trackctl explain                 # do dials pause, and why?
  trackctl resume

It ends the pause of the host, and those of sessions, and lets dials begin at
once. When the next one fails, they pause again. It is for admins; the daemon
logs who did it.

\b
JSON: {"resumed": how many pauses there were}
"""


@click.command(epilog=_EPILOG)
@common.json_option("Print how many there were, as JSON.")
@click.pass_obj
def resume(options: common.Options, *, as_json: bool) -> None:
    """End the pauses after failed dials."""
    with common.report_errors(), options.connect() as tracker:
        reply = tracker.resume()
    if as_json:
        common.print_json(reply)
    else:
        click.echo(f"{format_count(reply['resumed'], 'pause')} ended")
