"""`trackctl watch`: what happens, as it happens, and never a silent gap."""

from __future__ import annotations

import json
import sys
from contextlib import suppress

import click

from trackd_client.cli import common
from trackd_client.cli.output import event_lines
from trackd_client.cli.output.event_lines import STYLES, People
from trackd_client.cli.output.render import Page
from trackd_client.core.event import GAP, SNAPSHOT

_EPILOG = """\b
Examples:
  trackctl watch
  trackctl watch --kind proxy_claimed --kind lease_released
  trackctl watch --json --no-snapshot | jq -c '[.revision, .kind, .fields]'

It goes on across restarts of the daemon. What was lost on the way is fetched
from the daemon's history; what the history does not have is shown as a gap, and a
new snapshot follows. Ctrl-C ends it.

\b
JSON: one object a line: {"revision", "time", "wall", "kind", "fields"}; the
kinds and their fields are in docs/protocol.md. "snapshot" comes first and
after each "gap"; its fields are revision, proxies, leases and sessions.
"""


@click.command(epilog=_EPILOG)
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice([kind for kind in STYLES if kind not in {SNAPSHOT, GAP}]),
    metavar="KIND",
    help="Only events of this kind; may be given again. Gaps are always shown.",
)
@click.option("--no-snapshot", is_flag=True, help="Do not print snapshots.")
@common.json_option("Print JSON lines.")
@click.pass_obj
def watch(
    options: common.Options, *, kinds: tuple[str, ...], no_snapshot: bool, as_json: bool
) -> None:
    """Print every change as it happens, one a line."""
    page, people = Page(), People()
    always = {GAP} if no_snapshot else {GAP, SNAPSHOT}
    with common.report_errors(), suppress(KeyboardInterrupt), options.connect() as tracker:
        for event in tracker.events():
            people.note(event)
            if event.kind not in always and (
                event.kind == SNAPSHOT or (kinds and event.kind not in kinds)
            ):
                continue
            if as_json:
                page.line(json.dumps(event_lines.to_json(event), default=bytes.hex))
            else:
                page.line(event_lines.format_line(event, people, page))
            sys.stdout.flush()
