"""`trackctl dump`: all that a colleague needs who cannot log in here, in one JSON file."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from trackd_client import Tracker, __version__
from trackd_client.cli import common
from trackd_client.cli.commands import doctor
from trackd_client.cli.output import event_lines
from trackd_client.cli.output.render import size
from trackd_client.errors import TrackdError

_EPILOG = """\b
Examples:
  trackctl dump                      # trackd-CLUSTER-20261124-031200.json
  trackctl dump - | jq .status
  trackctl dump /tmp/before.json

The file is for its owner alone (mode 0600). No secret is in it: tokens of
sessions never leave the daemon. Names of proxies, agents and users are.

\b
JSON: {"dump": 1, "wall", "versions", "doctor", "status", "explain",
"snapshot", "log", "config", "metrics"}; a part that could not be had is
{"error": why}.
"""


@click.command(epilog=_EPILOG)
@click.argument("file", required=False)
@click.pass_obj
def dump(options: common.Options, *, file: str | None) -> None:
    """Write everything that is known into one JSON FILE."""
    document = gather(options)
    text = json.dumps(document, indent=1, default=bytes.hex)
    if file == "-":
        click.echo(text)
        return
    cluster = str(document["status"].get("cluster", "unknown")).replace("/", "_")
    place = Path(file or f"trackd-{cluster}-{time.strftime('%Y%m%d-%H%M%S')}.json")
    try:
        write(place, text)
    except OSError as error:
        common.fail(f"cannot write {place}: {error.strerror}")
    click.echo(f"{place}: {size(len(text.encode()))}")
    if "error" in document["status"]:
        common.fail(document["status"]["error"], common.NO_DAEMON)


def gather(options: common.Options) -> dict[str, Any]:
    """Return the document; what is not to be had is left out with its reason."""
    document: dict[str, Any] = {
        "dump": 1,
        "wall": time.time(),
        "versions": {
            "trackctl": __version__,
            "python": sys.version,
            "system": platform.platform(),
        },
        "doctor": [finding._asdict() for finding in doctor.examine(options)],
    }
    try:
        with options.tracker() as tracker:
            for name, ask in _PARTS.items():
                document[name] = _part(ask, tracker)
    except TrackdError as error:
        for name in _PARTS:
            document[name] = {"error": str(error)}
    return document


def write(place: Path, text: str) -> None:
    """Write a file that only its owner may read; one that is there is replaced."""
    descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as out:  # noqa: PTH123 - it is open already
        os.fchmod(descriptor, 0o600)
        out.write(f"{text}\n")


def _part(ask: Callable[[Tracker], Any], tracker: Tracker) -> Any:
    try:
        return ask(tracker)
    except TrackdError as error:
        return {"error": str(error)}


def _log(tracker: Tracker) -> dict[str, Any]:
    told = tracker.log()
    return {**told, "events": [event_lines.as_json(event) for event in told["events"]]}


_PARTS: dict[str, Callable[[Tracker], Any]] = {
    "status": Tracker.status,
    "explain": Tracker.explain,
    "snapshot": Tracker.snapshot,
    "log": _log,
    "config": Tracker.config,
    "metrics": Tracker.metrics,
}
