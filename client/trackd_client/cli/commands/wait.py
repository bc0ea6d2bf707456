"""`trackctl wait`: returns once the wanted tunnels are there, for scripts and probes."""

from __future__ import annotations

import dataclasses
import math
import sys
import time

import click

from trackd_client import Tracker
from trackd_client.cli import common
from trackd_client.cli.exit_codes import FAILED
from trackd_client.cli.output.render import format_duration
from trackd_client.cli.output.verdict import judge
from trackd_client.core.coverage import Wanted, count_missing, pauses
from trackd_client.errors import DaemonAbsent, NoAnswer
from trackd_client.results import Status

_EPILOG = """\b
Examples:
  trackctl wait --timeout 60
  trackctl wait --timeout 0 || echo "tunnels are missing"
  trackctl wait --at-least 2
  trackctl wait --missing-at-most 10%

It waits for a daemon that is not there yet, too. With --timeout 0 it looks once,
which suits probes.

\b
Exit codes:
  0  the tunnels are there
  1  they were not there in time
  2  wrong usage
  3  no daemon answered in time

\b
JSON: "covered", "missing", "target", "claimed_desired", "desired", "tracked",
and "waited" in seconds.
"""


class Missing(click.ParamType[str]):
    """A number of tunnels that may be missing, or a share of the wanted ones: `3` or `10%`."""

    name = "missing"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text, once it is checked."""
        digits = value.removesuffix("%")
        if not digits.isascii() or not digits.isdecimal():
            self.fail(f"{value!r} is neither a number nor a percentage", param, ctx)
        if value.endswith("%") and int(digits) > 100:
            self.fail(f"{value!r} is more than 100%", param, ctx)
        return value


@click.command(epilog=_EPILOG)
@click.option("--full", is_flag=True, help="Until no wanted tunnel is missing. The default.")
@click.option(
    "--at-least",
    type=click.IntRange(min=1),
    metavar="N",
    help="Until N desired proxies have a tunnel.",
)
@click.option(
    "--missing-at-most",
    type=Missing(),
    metavar="N|P%",
    help="Until at most N wanted tunnels are missing, or P percent of them.",
)
@click.option("--allow-none", is_flag=True, help="Return also when no tunnel is wanted.")
@click.option(
    "--timeout",
    "patience",
    type=click.FloatRange(min=0),
    default=math.inf,
    metavar="SECONDS",
    help="How long to wait; without it, for ever.",
)
@common.json_option("Print JSON.")
@click.pass_obj
def wait(
    options: common.Options,
    *,
    full: bool,
    at_least: int | None,
    missing_at_most: str | None,
    allow_none: bool,
    patience: float,
    as_json: bool,
) -> None:
    """Wait until the wanted tunnels are there."""
    if full + (at_least is not None) + (missing_at_most is not None) > 1:
        raise click.UsageError("--full, --at-least and --missing-at-most exclude one another")
    most = missing_at_most or "0"
    wanted = Wanted(at_least, most if most.endswith("%") else int(most), allow_none)
    began = time.monotonic()
    with common.report_errors():
        status = _watch(options, wanted, began, patience)
    covered = wanted.is_enough(status)
    if as_json:
        fields = {
            name: status[name] for name in ("target", "claimed_desired", "desired", "tracked")
        }
        waited = time.monotonic() - began
        common.print_json(
            {"covered": covered, "missing": count_missing(status), **fields, "waited": waited}
        )
    elif covered:
        click.echo(judge(status).text)
    else:
        common.fail(f"not in time: {judge(status).text}")
    if not covered:
        sys.exit(FAILED)


def _watch(options: common.Options, wanted: Wanted, began: float, patience: float) -> Status:
    """Look until there are enough tunnels or the time is up; return the last status.

    Raises:
        DaemonAbsent, NoAnswer: no daemon has answered in time.
    """
    if patience > 0:
        options = dataclasses.replace(options, timeout=min(options.timeout, patience))
    warned, looks = False, pauses(patience)
    with options.make_tracker(Tracker, must_listen=patience == 0, name="trackctl") as tracker:
        while True:
            left = began + patience - time.monotonic()
            try:
                status = tracker.status()
            except (DaemonAbsent, NoAnswer) as error:
                if left <= options.timeout:
                    raise
                if not warned:
                    common.warn(f"still waiting: {error}")
                warned = True
            else:
                if wanted.is_enough(status) or left <= 0:
                    _progress("")
                    return status
                waited = format_duration(time.monotonic() - began)
                _progress(f"{judge(status).text}; waiting for {waited}")
            time.sleep(next(looks, 0.0))


def _progress(text: str) -> None:
    """Show what is waited for, over the same line of a terminal; nowhere else."""
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{text}", nl=False, err=True)
