"""`trackctl gossip`: feeds what a proxy said of the others, for agents that are scripts."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator
from typing import IO, Final

import click

from trackd_client import Proxy, Tracker, parse_discovery
from trackd_client.cli import common
from trackd_client.cli.exit_codes import FAILED, NO_DAEMON
from trackd_client.cli.output.render import format_count
from trackd_client.core.sockets import diagnose
from trackd_client.errors import (
    BadPayload,
    InvalidRequest,
    TrackdError,
    VersionMismatch,
    WrongCluster,
)
from trackd_client.wire.checks import is_address

_EPILOG = """\b
Examples:
  trackctl gossip discovery.json
  my-tunnel --print-discovery | trackctl gossip --follow
  echo '{"proxies": [{"metadata": {"name": "p1"}}]}' | trackctl gossip
  trackctl gossip --names p1 p2 --ttl 60
  trackctl gossip --names p1 --ttl 60 --terminating    # it is about to go
  trackctl gossip --names p1 --address 10.0.0.1:3024   # can be dialled

FILE holds one JSON object as a proxy sends it down its tunnel: {"proxies":
[{"metadata": {"name": NAME}, "gid": GROUP, "ggen": GENERATION, "ttl":
NANOSECONDS, "trackd": {"terminating": true, "address": ADDRESS}}]}. The newest
message wins; absence from one removes nothing.

With --names the arguments are the names of proxies. Say each again before its
TTL is over, or it is dropped.

With --follow a line that cannot be read is skipped, with a word on standard
error. While the daemon is away, what comes is kept, and fed when it is back.
At the end of the input that is tried for --timeout seconds more.

\b
JSON: {"proxies": number fed}; with --follow, one object for each feeding.
"""
#: Proxies in one message, far below every limit; the daemon takes each proxy for itself.
_AT_ONCE: Final = 1000
#: Seconds between two attempts to feed a daemon that is away.
_PAUSE: Final = 0.5
#: Bytes of a line of gossip; a longer one is skipped.
_LONGEST_LINE: Final = 16 * 1024 * 1024
#: No other attempt would end in another way.
_FINAL: Final = (VersionMismatch, WrongCluster)


@click.command(epilog=_EPILOG)
@click.argument("arguments", nargs=-1, metavar="[FILE | NAME...]")
@click.option("--follow", is_flag=True, help="Each line is a message, fed when it comes.")
@click.option("--names", is_flag=True, help="The arguments are names of proxies.")
@click.option("--group", metavar="GROUP", help="The group of these proxies.")
@click.option(
    "--generation",
    type=click.IntRange(0, 2**64 - 1),
    metavar="N",
    help="The generation of these proxies.",
)
@click.option(
    "--ttl",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="For how long they are tracked; without it, as the daemon is set.",
)
@click.option(
    "--terminating/--not-terminating",
    default=None,
    help="They are about to go, or not; without it, no word on that.",
)
@click.option("--address", metavar="ADDRESS", help="Where the one proxy can be dialled itself.")
@common.json_option("Print how many proxies were fed, as JSON.")
@click.pass_context
def gossip(
    context: click.Context,
    *,
    arguments: tuple[str, ...],
    follow: bool,
    names: bool,
    group: str | None,
    generation: int | None,
    ttl: float | None,
    terminating: bool | None,
    address: str | None,
    as_json: bool,
) -> None:
    """Feed gossip: Teleport's JSON, or names of proxies."""
    options: common.Options = context.obj
    if names:
        if follow or not arguments:
            raise click.UsageError("--names needs the names of proxies, and excludes --follow")
        if address is not None and len(arguments) > 1:
            raise click.UsageError("--address is that of one proxy: give one name")
        if address and not is_address(address):
            raise click.UsageError("--address must be printable ASCII without space or first -")
        with common.report_errors(), options.connect() as tracker:
            place = group or "", generation or 0
            proxies = [Proxy(name, *place, ttl, terminating, address) for name in arguments]
            print_fed(feed(tracker, proxies), as_json=as_json)
        return
    if (group, generation, ttl, terminating, address) != (None,) * 5:
        raise click.UsageError(
            "--group, --generation, --ttl, --terminating and --address are for --names"
        )
    if len(arguments) > 1:
        raise click.UsageError("more than one FILE; are these names of proxies? (--names)")
    file: IO[bytes] = click.File("rb").convert(arguments[0] if arguments else "-", None, context)
    with common.report_errors():
        if follow:
            with options.make_tracker(Tracker, must_listen=False, name="trackctl") as tracker:
                Follower(tracker, as_json=as_json).run(file.fileno())
            return
        with options.connect() as tracker:
            print_fed(feed(tracker, parse_discovery(file.read())), as_json=as_json)


def feed(tracker: Tracker, proxies: list[Proxy]) -> int:
    """Send gossip about proxies to the daemon, and return how many they were."""
    for begin in range(0, len(proxies), _AT_ONCE):
        tracker.track_expected(*proxies[begin : begin + _AT_ONCE])
    return len(proxies)


def print_fed(count: int, *, as_json: bool) -> None:
    """Print how many proxies were fed."""
    if as_json:
        click.echo(f'{{"proxies": {count}}}')
    else:
        click.echo(f"{format_count(count, 'proxy', 'proxies')} fed")


class Follower:
    """Feeds gossip that comes line by line, over bad lines and over a daemon that is away."""

    def __init__(self, tracker: Tracker, *, as_json: bool) -> None:
        self._tracker = tracker
        self._as_json = as_json
        self._pending: dict[str, Proxy] = {}  # not fed yet: the newest word on each
        self._away = False
        self._lines = 0

    def run(self, descriptor: int) -> None:
        """Feed what comes from a descriptor until it ends.

        Raises:
            TrackdError: what is left could not be fed in time, or never can be.
        """
        if (why := diagnose(self._tracker.endpoint)) is not None:
            self._away = True
            common.warn(f"no daemon: {why}; gossip is kept until it can be fed")
        for lines in _read_lines(descriptor, lambda: _PAUSE if self._pending else None):
            for line in lines:
                self._take(line)
            self._feed()
        deadline = time.monotonic() + self._tracker.timeout
        while self._pending and time.monotonic() < deadline:
            time.sleep(_PAUSE)
            self._feed()
        if self._pending:
            count = format_count(len(self._pending), "proxy", "proxies")
            common.fail(f"{count} could not be fed", NO_DAEMON if self._away else FAILED)

    def _take(self, line: bytes) -> None:
        self._lines += 1
        if not line.strip():
            return
        try:
            proxies = parse_discovery(line)
        except BadPayload as error:
            common.warn(f"line {self._lines} is skipped: {error}")
            return
        self._pending |= {proxy.name: proxy for proxy in proxies}
        if not proxies:
            print_fed(0, as_json=self._as_json)

    def _feed(self) -> None:
        """Feed what is pending; keep it when the daemon is away."""
        if not self._pending:
            return
        if self._away and diagnose(self._tracker.endpoint) is not None:
            return
        proxies = list(self._pending.values())
        try:
            fed = self._feed_each(proxies)
        except _FINAL:
            raise
        except TrackdError as error:
            if not self._away:
                common.warn(f"{error}; gossip is kept until it can be fed")
            self._away = True
            return
        self._away = False
        self._pending.clear()
        print_fed(fed, as_json=self._as_json)

    def _feed_each(self, proxies: list[Proxy]) -> int:
        """Feed proxies, skip those that the daemon refuses, and return how many were fed."""
        try:
            return feed(self._tracker, proxies)
        except InvalidRequest as error:
            if len(proxies) == 1:
                common.warn(f"a proxy is skipped: {error}")
                return 0
        middle = len(proxies) // 2
        return self._feed_each(proxies[:middle]) + self._feed_each(proxies[middle:])


def _read_lines(descriptor: int, patience: Callable[[], float | None]) -> Iterator[list[bytes]]:
    """Return the lines of a descriptor as they come, until it ends.

    Args:
        descriptor: where they come from.
        patience: gives the seconds after which no lines are returned when none came; None: waits.
    """
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    rest = b""
    too_long = False
    while True:
        seconds = patience()
        if not poll.poll(None if seconds is None else seconds * 1000):
            yield []
            continue
        chunk = os.read(descriptor, 65_536)
        if not chunk:
            yield [] if too_long or not rest else [rest]
            return
        *lines, rest = (rest + chunk).split(b"\n")
        if lines and too_long:
            del lines[0]
            too_long = False
        if len(rest) > _LONGEST_LINE:
            if not too_long:
                common.warn(f"a line of more than {_LONGEST_LINE} bytes is skipped")
            rest, too_long = b"", True
        yield lines
