"""`trackctl gossip`: feeds what a proxy said of the others, for agents that are scripts."""

from __future__ import annotations

from typing import IO

import click

from trackd_client import Proxy, Tracker, parse_discovery
from trackd_client.cli import common
from trackd_client.cli.output.render import format_count

_EPILOG = """\b
Examples:
  trackctl gossip discovery.json
  my-tunnel --print-discovery | trackctl gossip --follow
  echo '{"proxies": [{"metadata": {"name": "p1"}}]}' | trackctl gossip

FILE holds one JSON object as a proxy sends it down its tunnel: {"proxies":
[{"metadata": {"name": NAME}, "gid": GROUP, "ggen": GENERATION, "ttl":
NANOSECONDS}]}. The newest message wins; absence from one removes nothing.

\b
JSON: {"proxies": number fed}; with --follow, one such object for each line.
"""
#: Proxies in one message, far below every limit; the daemon takes each proxy for itself.
_AT_ONCE = 1000


@click.command(epilog=_EPILOG)
@click.argument("file", type=click.File("rb"), default="-", metavar="[FILE]")
@click.option("--follow", is_flag=True, help="Each line is a message, fed when it comes.")
@common.json_option("Print how many proxies were fed, as JSON.")
@click.pass_obj
def gossip(options: common.Options, *, file: IO[bytes], follow: bool, as_json: bool) -> None:
    """Feed Teleport's JSON gossip from FILE or stdin."""
    with common.report_errors(), options.connect() as tracker:
        for message in file if follow else [file.read()]:
            if follow and not message.strip():
                continue
            fed = feed(tracker, parse_discovery(message))
            if as_json:
                click.echo(f'{{"proxies": {fed}}}')
            else:
                click.echo(f"{format_count(fed, 'proxy', 'proxies')} fed")


def feed(tracker: Tracker, proxies: list[Proxy]) -> int:
    """Tell the daemon of proxies, and return how many they were."""
    for begin in range(0, len(proxies), _AT_ONCE):
        tracker.track_expected(*proxies[begin : begin + _AT_ONCE])
    return len(proxies)
