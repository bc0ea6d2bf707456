"""`trackctl dump`: all that a colleague needs who cannot log in here, in one JSON file."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from trackd_client import Tracker, __version__
from trackd_client.cli import common
from trackd_client.cli.commands import doctor
from trackd_client.cli.exit_codes import NO_DAEMON
from trackd_client.cli.output import event_lines
from trackd_client.cli.output.render import format_size
from trackd_client.errors import TrackdError

_EPILOG = """\b
Examples:
  trackctl dump                      # trackd-CLUSTER-20261124-031200.json
  trackctl dump - | jq .status
  trackctl dump /tmp/before.json

Only its owner can read the file (mode 0600). No secret is in it: tokens of
sessions never leave the daemon, and a command is the name of its program
only. Names of proxies, agents and users are in it.

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
    cluster = re.sub(r"[^\w.-]", "_", str(document["status"].get("cluster", "unknown")))
    place = Path(file or f"trackd-{cluster}-{time.strftime('%Y%m%d-%H%M%S')}.json")
    try:
        write(place, text, replace=file is not None)
    except OSError as error:
        common.fail(f"cannot write {place}: {error.strerror}")
    click.echo(f"{place}: {format_size(len(text.encode()))}")
    if "error" in document["status"]:
        common.fail(document["status"]["error"], NO_DAEMON)


def gather(options: common.Options) -> dict[str, Any]:
    """Return the document; a part that cannot be read holds its reason."""
    document: dict[str, Any] = {
        "dump": 1,
        "wall": time.time(),
        "versions": {
            "trackctl": __version__,
            "python": sys.version,
            "system": platform.platform(),
        },
        "doctor": [finding._asdict() for finding in doctor.check_everything(options)],
    }
    try:
        with options.connect() as tracker:
            for name, ask in _PARTS.items():
                document[name] = without_arguments(_ask(ask, tracker))
    except TrackdError as error:
        for name in _PARTS:
            document[name] = {"error": str(error)}
    return document


def write(place: Path, text: str, *, replace: bool) -> None:
    """Write a file that only its owner may read, and never through a symbolic link.

    Args:
        place: where it is.
        text: what it holds.
        replace: whether a file that is there is replaced.

    Raises:
        OSError: it cannot be written, or is there and must not be replaced.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(place, flags | (0 if replace else os.O_EXCL), 0o600)
    with open(descriptor, "w", encoding="utf-8") as out:  # noqa: PTH123 - it is open already
        found = os.fstat(descriptor)
        # Its owner, or a reader by another name, would get what only we may read.
        if stat.S_ISREG(found.st_mode) and (found.st_uid != os.geteuid() or found.st_nlink > 1):
            raise PermissionError(errno.EPERM, "it is not yours alone; remove it first")
        os.fchmod(descriptor, 0o600)
        if stat.S_ISREG(found.st_mode):
            os.ftruncate(descriptor, 0)
        out.write(f"{text}\n")


def without_arguments(value: Any) -> Any:
    """Return a part of the document in which each command is the name of its program only.

    Daemons and agents of other versions may hold more of a command line, and that may be secret.
    """
    match value:
        case dict():
            return {
                name: each.partition(" ")[0]
                if name == "command" and isinstance(each, str)
                else without_arguments(each)
                for name, each in value.items()
            }
        case list() | tuple():
            return [without_arguments(each) for each in value]
        case _:
            return value


def _ask(ask: Callable[[Tracker], Any], tracker: Tracker) -> Any:
    try:
        return ask(tracker)
    except TrackdError as error:
        return {"error": str(error)}


def _read_log(tracker: Tracker) -> dict[str, Any]:
    reply = tracker.log(older=True)
    return {**reply, "events": [event_lines.to_json(event) for event in reply["events"]]}


_PARTS: dict[str, Callable[[Tracker], Any]] = {
    "status": Tracker.status,
    "explain": Tracker.explain,
    "snapshot": Tracker.snapshot,
    "log": _read_log,
    "config": Tracker.config,
    "metrics": Tracker.metrics,
}
