"""`trackctl metrics`: the metrics that Prometheus scrapes, without an HTTP listener."""

from __future__ import annotations

import click

from trackd_client.cli import common
from trackd_client.cli.output.render import Page
from trackd_client.cli.text import escape
from trackd_client.metrics import exposition

_EPILOG = """\b
Examples:
  trackctl metrics | grep refusals
  trackctl metrics > trackd.prom.new && mv trackd.prom.new trackd.prom

The text is Prometheus's exposition format. docs/monitoring.md has the names.

\b
JSON: {"families": [[name, kind, help, [label names], samples]]}, as the
operation metrics in docs/protocol.md
"""


@click.command(epilog=_EPILOG)
@common.json_option("Print the families as JSON.")
@click.pass_obj
def metrics(options: common.Options, *, as_json: bool) -> None:
    """Print the daemon's metrics as Prometheus reads them."""
    with common.report_errors(), options.connect() as tracker:
        reply = tracker.metrics()
    if as_json:
        common.print_json(reply)
    else:
        page = Page()
        for line in exposition(reply["families"]).splitlines():
            page.line(escape(line) if page.terminal else line)
