"""`trackctl reload`: has the daemon read its configuration again, and tells what came of it."""

from __future__ import annotations

import time
from typing import Any

import click

from trackd_client import Tracker
from trackd_client.cli import common
from trackd_client.cli.output.render import Page, names, plain
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
@common.json_option("Print what came of it, as JSON.")
@click.pass_obj
def reload(options: common.Options, *, as_json: bool) -> None:
    """Have the daemon read its configuration again."""
    with common.ended(), options.tracker() as tracker:
        outcome = done(tracker, tracker.reload()["reloads"], options.timeout)
    if as_json:
        common.print_json(outcome)
    if outcome["error"] is not None:
        common.fail(f"nothing was changed: {plain(outcome['error'])}")
    if not as_json:
        show(outcome, Page())


def done(tracker: Tracker, number: int, seconds: float) -> dict[str, Any]:
    """Wait until a reload is done, and return what came of it.

    Raises:
        NoAnswer: it is not done in time.
    """
    deadline = time.monotonic() + seconds
    while True:
        told = tracker.status()
        if told["reloads"] >= number:
            outcome: dict[str, Any] = told["reload"]
            return outcome
        if time.monotonic() > deadline:
            raise NoAnswer(f"the reload was not done within {seconds:g} s; the log tells more")
        time.sleep(_LOOK_SECONDS)


def show(outcome: dict[str, Any], page: Page) -> None:
    """Print for people what came of a reload."""
    changed = outcome["changed"]
    page.line(f"changed: {names(changed, most=100)}" if changed else "nothing has changed")
    for name, why in outcome["refused"]:
        page.line(page.paint(f"not changed: {plain(name)}: {plain(why)}", "yellow"))
