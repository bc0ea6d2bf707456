"""The command `trackctl`, its options, and how it ends. Each subcommand has a file of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click

from trackd_client import Tracker, __version__
from trackd_client.connection import absent, diagnose
from trackd_client.errors import DaemonAbsent, NoAnswer, TrackdError

#: Exit codes, as `trackctl --help` tells them.
FAILED = 1
NO_DAEMON = 3

_EPILOG = """\b
The daemon is found as the client library finds it: --endpoint, else
$TRACKD_ENDPOINT, else trackd.sock in the directory of --cluster, else in
/run/trackd/default, else in $XDG_RUNTIME_DIR/trackd/default.

\b
Exit codes:
  0  done
  1  the daemon refused
  2  wrong usage
  3  no daemon answers
"""


@dataclass(frozen=True, slots=True)
class Options:
    """What all subcommands share."""

    endpoint: str | None
    cluster: str | None
    timeout: float

    def tracker(self) -> Tracker:
        """Return a tracker for a daemon that is there.

        Raises:
            DaemonAbsent: nobody listens; said at once, without waiting for a restart.
        """
        try:
            tracker = Tracker(
                self.endpoint, cluster=self.cluster, timeout=self.timeout, name="trackctl"
            )
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        if diagnose(tracker.endpoint) is not None:
            raise absent(tracker.endpoint)
        return tracker


@click.group(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--endpoint", metavar="E", help="The daemon's socket: ipc:///PATH or a path.")
@click.option("--cluster", metavar="NAME", help="The cluster whose daemon to ask.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.001),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a daemon may take to answer.",
)
@click.version_option(__version__, prog_name="trackctl")
@click.pass_context
def trackctl(
    context: click.Context, endpoint: str | None, cluster: str | None, timeout: float
) -> None:
    """See what the trackd daemon of this host does."""
    context.obj = Options(endpoint, cluster, timeout)


@contextmanager
def ended() -> Iterator[None]:
    """Turn the client's errors into one line on standard error and an exit code."""
    try:
        yield
    except TrackdError as error:
        click.echo(f"trackctl: {error}", err=True)
        sys.exit(NO_DAEMON if isinstance(error, DaemonAbsent | NoAnswer) else FAILED)


def print_json(value: Any) -> None:
    """Print one JSON document for scripts; bytes as hexadecimal digits."""
    click.echo(json.dumps(value, indent=2, default=bytes.hex))
