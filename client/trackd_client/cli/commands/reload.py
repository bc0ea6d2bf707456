"""`trackctl reload`: makes the daemon read its configuration again, and prints the result."""

from __future__ import annotations

import time
from typing import Any

import click

from trackd_client import Tracker
from trackd_client.cli import common
from trackd_client.cli.output.render import Page, format_names
from trackd_client.cli.text import escape
from trackd_client.errors import NoAnswer

_EPILOG = """\b
Examples:
  trackd check-config /etc/trackd/trackd.toml && trackctl reload

It does what SIGHUP does. A setting that cannot change in the running daemon
keeps its value; a configuration with a mistake in it changes nothing, and the
exit code is 1. It is for admins; the daemon logs who did it.

\b
JSON: {"wall", "changed": [setting, ...], "refused": [[setting, why], ...],
"error": null or what is wrong}
"""
_LOOK_SECONDS = 0.05


@click.command(epilog=_EPILOG)
@common.json_option("Print the result as JSON.")
@click.pass_obj
def reload(options: common.Options, *, as_json: bool) -> None:
    """Make the daemon read its configuration again."""
    with common.report_errors(), options.connect() as tracker:
        outcome = wait_until_done(tracker, tracker.reload()["reloads"], options.timeout)
    if as_json:
        common.print_json(outcome)
    if outcome["error"] is not None:
        problem, *details = outcome["error"].split("\n")
        common.fail(f"nothing was changed: {problem}", details=details)
    if not as_json:
        show(outcome, Page())


def wait_until_done(tracker: Tracker, number: int, seconds: float) -> dict[str, Any]:
    """Wait until a reload is done, and return its result.

    Raises:
        NoAnswer: it is not done in time.
    """
    deadline = time.monotonic() + seconds
    while True:
        reply = tracker.status()
        if reply["reloads"] >= number:
            outcome: dict[str, Any] = reply["reload"]
            return outcome
        if time.monotonic() > deadline:
            raise NoAnswer(f"the reload was not done within {seconds:g} s; see its log")
        time.sleep(_LOOK_SECONDS)


def show(outcome: dict[str, Any], page: Page) -> None:
    """Print for people the result of a reload."""
    changed = outcome["changed"]
    page.line(f"changed: {format_names(changed, most=100)}" if changed else "nothing has changed")
    for name, why in outcome["refused"]:
        page.line(page.paint(f"not changed: {escape(name)}: {escape(why)}", "yellow"))
