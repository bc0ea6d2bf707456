"""The command `trackctl`, its options, and how it ends. Each subcommand has a file of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import click

from trackd_client import Tracker, __version__
from trackd_client.cli import completions
from trackd_client.cli.exit_codes import FAILED, NO_DAEMON
from trackd_client.cli.text import escape
from trackd_client.core.sockets import absent_error, diagnose
from trackd_client.errors import DaemonAbsent, NoAnswer, PermissionRefused, TrackdError

if TYPE_CHECKING:
    from trackd_client import AsyncTracker

TrackerT = TypeVar("TrackerT", "Tracker", "AsyncTracker")
F = TypeVar("F", bound=Callable[..., Any])

#: The commands as `trackctl --help` lists them: by purpose.
SECTIONS: Final = {
    "See how things stand": (
        *("status", "proxies", "leases", "sessions", "explain", "top", "wait"),
        "fleet",
    ),
    "See what happens": ("watch", "log", "metrics"),
    "Agents that are scripts": ("hold", "keep", "claim", "gossip"),
    "For admins": ("release", "end-session", "forget", "set-connection-count", "resume", "reload"),
    "When something is wrong": ("doctor", "dump"),
    "For shells": ("completion",),
}

_EPILOG = """\b
Examples:
  trackctl status
  trackctl proxies --missing
  trackctl explain
  trackctl log --since 03:00 --until 03:30
  trackctl --cluster example.com sessions --json | jq '.sessions[].pid'

\b
The daemon is found as the client library finds it: --endpoint, else
$TRACKD_ENDPOINT, else trackd.sock in the directory of --cluster, else in
/run/trackd/default, else in $XDG_RUNTIME_DIR/trackd/default.

\b
Exit codes:
  0  done
  1  the daemon refused, or there was nothing to do it to
  2  wrong usage
  3  no daemon answers
  hold and keep have codes of their own: see trackctl hold --help

Colours appear on a terminal only, and not with NO_COLOR set. Each command's own
--help has examples; docs/trackctl.md has every field of --json.
"""


#: Characters of a command's summary; a test checks that none is longer.
_SUMMARY: Final = 54


@dataclass(frozen=True, slots=True)
class Options:
    """What all subcommands share."""

    endpoint: str | None
    cluster: str | None
    timeout: float
    as_json: bool

    def connect(self) -> Tracker:
        """Return a tracker for a daemon that is there.

        Raises:
            DaemonAbsent: no daemon listens; raised at once, without waiting for a restart.
        """
        return self.make_tracker(Tracker, name="trackctl")

    def make_tracker(
        self, kind: type[TrackerT], *, must_listen: bool = True, **more: Any
    ) -> TrackerT:
        """Return a tracker of a kind.

        Args:
            kind: its class.
            must_listen: whether it is an error that no daemon listens now.
            more: what only this kind is given.

        Raises:
            DaemonAbsent: no daemon listens; raised at once, without waiting for a restart.
        """
        try:
            tracker = kind(self.endpoint, cluster=self.cluster, timeout=self.timeout, **more)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        if must_listen and diagnose(tracker.endpoint) is not None:
            raise absent_error(tracker.endpoint)
        return tracker


class Commands(click.Group):
    """A group whose help lists its commands in sections."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections; what is in none of them comes last."""
        width = max(map(len, self.list_commands(ctx)))
        known = [name for names in SECTIONS.values() for name in names]
        rest = tuple(name for name in self.list_commands(ctx) if name not in known)
        for title, names in [*SECTIONS.items(), ("Others", rest)]:
            found = [(name, self.get_command(ctx, name)) for name in names]
            rows = [
                (name.ljust(width), each.get_short_help_str(limit=_SUMMARY))
                for name, each in found
                if each is not None
            ]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


@click.group(cls=Commands, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--endpoint", metavar="E", help="The daemon's socket: ipc:///PATH or a path.")
@click.option(
    "--cluster",
    metavar="NAME",
    shell_complete=completions.clusters,
    help="The cluster whose daemon to ask.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.001),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a daemon may take to answer.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; the same after the command.")
@click.version_option(__version__, prog_name="trackctl")
@click.pass_context
def trackctl(
    context: click.Context,
    *,
    endpoint: str | None,
    cluster: str | None,
    timeout: float,
    as_json: bool,
) -> None:
    """See what the trackd daemon of this host does, and give it orders."""
    context.obj = Options(endpoint, cluster, timeout, as_json)


def _or_before(context: click.Context, _option: click.Parameter, value: bool) -> bool:
    options = context.obj
    return value or (isinstance(options, Options) and options.as_json)


def json_option(what: str) -> Callable[[F], F]:
    """Add `--json` to a command, as its argument `as_json`; it counts before the command as well.

    Args:
        what: what is printed, for the help.
    """
    return click.option("--json", "as_json", is_flag=True, callback=_or_before, help=what)


@contextmanager
def report_errors() -> Iterator[None]:
    """Turn the client's errors into one line on standard error and an exit code."""
    try:
        yield
    except PermissionRefused as error:
        if "admin_hosts" in str(error):  # the user is an admin, but the host does not count
            fail(str(error))
        fail(
            f"{error} (admins are root, the daemon's own user, and whom its settings"
            " admin_users and admin_groups name)"
        )
    except TrackdError as error:
        fail(str(error), NO_DAEMON if isinstance(error, DaemonAbsent | NoAnswer) else FAILED)


def fail(sentence: str, code: int = FAILED, *, details: Iterable[str] = ()) -> NoReturn:
    """Say on standard error what is wrong, and end with an exit code.

    The texts may be a daemon's: control characters are escaped. Each detail is a line of its own.
    """
    click.echo("\n".join([f"trackctl: {escape(sentence)}", *map(escape, details)]), err=True)
    sys.exit(code)


def warn(sentence: str) -> None:
    """Print on standard error what is not right, and go on; control characters are escaped."""
    click.echo(f"trackctl: {escape(sentence)}", err=True)


def print_json(value: Any) -> None:
    """Print one JSON document for scripts; bytes as hexadecimal digits."""
    click.echo(json.dumps(value, indent=2, default=bytes.hex))
