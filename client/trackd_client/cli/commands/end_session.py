"""`trackctl end-session`: ends an agent's session, which frees all of its leases."""

from __future__ import annotations

import click

from trackd_client.cli import common, completions
from trackd_client.cli.output.render import format_count, format_names

_EPILOG = """\b
Examples:
  trackctl sessions --sort inflight --reverse       # which one?
  trackctl end-session 3

The agent learns it with its next request, and opens a fresh session; its open
tunnels it may adopt. It is for admins; the daemon logs who did it.

\b
JSON: {"ended", "freed": [lease, ...]}
"""


@click.command("end-session", epilog=_EPILOG)
@click.argument("session", type=click.IntRange(min=1), shell_complete=completions.sessions)
@common.json_option("Print what became free, as JSON.")
@click.pass_obj
def end_session(options: common.Options, *, session: int, as_json: bool) -> None:
    """End a session and release all of its leases."""
    with common.report_errors(), options.connect() as tracker:
        reply = tracker.end_session(session)
    if as_json:
        common.print_json(reply)
    if not reply["ended"]:
        common.fail(f"there is no session {session}")
    if not as_json:
        freed = reply["freed"]
        which = f": {format_names(freed)}" if freed else ""
        click.echo(f"session {session} ended; {format_count(len(freed), 'lease')} released{which}")
