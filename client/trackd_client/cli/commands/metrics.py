"""`trackctl metrics`: the metrics that Prometheus scrapes, without an HTTP listener."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

import click

from trackd_client.cli import common
from trackd_client.cli.output.render import Page
from trackd_client.cli.text import escape
from trackd_client.metrics import exposition

_EPILOG = """\b
Examples:
  trackctl metrics | grep refusals
  trackctl metrics --output /var/lib/prometheus/node-exporter/trackd.prom

The text is Prometheus's exposition format. docs/monitoring.md has the names.
With --output the file is replaced at once, so no reader sees a part of it;
when no daemon answers, it stays as it was.

\b
JSON: {"families": [[name, kind, help, [label names], samples]]}, as the
operation metrics in docs/protocol.md
"""


@click.command(epilog=_EPILOG)
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write into FILE, for a textfile collector.",
)
@common.json_option("Print the families as JSON.")
@click.pass_obj
def metrics(options: common.Options, *, output: Path | None, as_json: bool) -> None:
    """Print the daemon's metrics as Prometheus reads them."""
    with common.report_errors(), options.connect() as tracker:
        reply = tracker.metrics()
    if output is not None and as_json:
        raise click.UsageError("--output writes the format of Prometheus; leave out --json")
    if as_json:
        common.print_json(reply)
    elif output is None:
        page = Page()
        # A group may be called like a line: only a line feed ends one in this format.
        for line in exposition(reply["families"]).removesuffix("\n").split("\n"):
            page.line(escape(line) if page.terminal else line)
    else:
        try:
            replace(output, exposition(reply["families"]))
        except OSError as error:
            common.fail(f"cannot write {output}: {error.strerror}")


def replace(file: Path, text: str) -> None:
    """Replace a file by one rename; everybody may read the new one.

    A symbolic link stays, and its target is replaced. A device or a pipe is written to.

    Raises:
        OSError: it cannot be written; the old one is unchanged.
    """
    file = Path(os.path.realpath(file))
    if file.exists() and not file.is_file():
        with file.open("w", encoding="utf-8") as there:
            there.write(text)
        return
    # The collector reads *.prom: the file has another ending until it is complete.
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", suffix=".new", dir=file.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as new:
            new.write(text)
            os.fchmod(new.fileno(), 0o644)
        Path(name).rename(file)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise
