"""`trackctl claim`: claims the proxy that a dial reached, for a helper of a run."""

from __future__ import annotations

import click

from trackd_client.cli import common, quick_claim
from trackd_client.cli.quick_claim import VARIABLE

_EPILOG = f"""\b
Examples:
  trackctl claim p1.example.com p1
  trackctl claim "$@" && echo "$known_hosts_line"

It works in a command that trackctl hold or trackctl keep runs, and in whatever
that starts: ssh, for example, closes the descriptors that hold gives, and runs a
KnownHostsCommand. It finds the owner of the lease with ${VARIABLE}.

The names are the principals of the proxy that was reached. A second claim of
the same proxy succeeds as well: ssh asks for the address and for the name.

\b
Exit codes, with nothing on standard output:
  0  only this lease holds the proxy
  1  another lease holds it, or there is no claim for another reason
  2  wrong usage
  3  nobody answers: this is no run of hold or keep, or it has ended
"""


@click.command(epilog=_EPILOG)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.pass_obj
def claim(options: common.Options, *, names: tuple[str, ...]) -> None:
    """Claim the proxy that was reached, under hold or keep."""
    if not all(map(quick_claim.is_name, names)):
        raise click.UsageError("a name is empty or has a blank in it")
    code, problem = quick_claim.claim(names, options.timeout)
    if problem:
        common.fail(problem, code)
