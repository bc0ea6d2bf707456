"""`trackctl keep`: as many runs of a command as tunnels are missing, in one session."""

from __future__ import annotations

import asyncio
import os
import select
import shlex
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import click

from trackd_client import AsyncAgentPool, AsyncLease, AsyncTracker, BadPayload
from trackd_client.cli import common
from trackd_client.cli.claim_socket import claim_directory, find_root
from trackd_client.cli.exit_codes import BY_SIGNAL, FAILED
from trackd_client.cli.process_tree import Spawner
from trackd_client.cli.run import (
    SPAWNER_KILLED,
    Run,
    Terms,
    call_once,
    check_command,
    identify,
    list_caught,
    make_environ,
    run_options,
    start_spawner,
    stop_catching,
)
from trackd_client.cli.text import escape
from trackd_client.policy import Change, PoolEvent

_EPILOG = """\b
Examples:
  trackctl keep -- ./tunnel.sh
  trackctl keep --max 3 --grace 2 -- ./tunnel.sh --verbose
  trackctl keep --dry-run -- ./tunnel.sh

While tunnels are missing, the command runs, once for each lease that the daemon
grants and several times at once. All runs belong to one session. Each has what a
command of trackctl hold has: its variables, its two descriptors for claims, and
trackctl claim. Its lease is released when no process of it is left.

It has no standard input. A line of its standard output that begins with "{" is
gossip, as trackctl gossip takes it; other lines are printed.

A run that ended without a claim, or soon after it, makes the next ones wait, up
to 15 s, longer each time. The command may say why its dial failed, with a line
"failed=REASON" or "failed=REASON retry_after=SECONDS" in the place of
principals, or with its exit code. The first four pause the dials of the host:

\b
  failed=refused  69    nobody listens
  failed=rate     75    it shall come later
  failed=tls      76    no common language
  failed=timeout  124   no answer in time
  failed=auth     77    not allowed
  failed=other    any other

What happened to each run is said on standard error. SIGTERM and SIGINT end all
runs and then keep. SIGHUP, SIGUSR1 and SIGUSR2 are passed on to every command.

\b
Exit codes:
  128+N  signal N ended it
  1    the daemon refused, or what starts the commands was killed
  2    wrong usage
  3    no daemon answers
  126  the command cannot be run
  127  there is no such command
"""
#: Seconds between two looks whether standard output can be written.
_PAUSE: Final = 0.05


@click.command(epilog=_EPILOG, context_settings={"allow_interspersed_args": False})
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND...")
@click.option(
    "--max",
    "most",
    type=click.IntRange(1),
    metavar="N",
    help="How many runs there are at once, at most; without it, as many as are wanted.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be run, and with which variables.")
@run_options
@click.pass_obj
def keep(
    options: common.Options,
    *,
    argv: tuple[str, ...],
    most: int | None,
    dry_run: bool,
    name: str | None,
    fd: int,
    reply_fd: int,
    on_duplicate: str,
    grace: float,
) -> None:
    """Run a command for each tunnel that is missing."""
    if fd == reply_fd:
        raise click.UsageError("--fd and --reply-fd must differ")
    check_command(argv[0], say)
    if dry_run:
        tracker = options.make_tracker(AsyncTracker, must_listen=False)
        terms = Terms(fd, reply_fd, on_duplicate == "end", find_root(), say)
        _print_plan(argv, most, tracker.endpoint, terms)
        return
    spawner, front = start_spawner(argv, grace, say)
    try:
        with common.report_errors(), claim_directory(say) as directory:
            tracker = options.make_tracker(AsyncTracker, **identify(argv[0], name))
            terms = Terms(fd, reply_fd, on_duplicate == "end", directory, say)
            code = asyncio.run(Keep(spawner, front, tracker, terms, most).run())
    finally:
        spawner.close()
    sys.exit(code)


def _print_plan(argv: tuple[str, ...], most: int | None, endpoint: str, terms: Terms) -> None:
    """Print what would be run."""
    many = "as many at once as tunnels are missing" if most is None else f"at most {most} at once"
    click.echo(f"# {many}; <lease> is the number of the run's lease")
    socket = Path(terms.directory or "", "trackctl-claims-<random>", "<lease>")
    for variable, value in make_environ("<lease>", endpoint, terms, socket).items():
        if value:  # without a target its variables are empty
            click.echo(f"{variable}={value}")
    click.echo(shlex.join(argv))


class Keep:
    """The runs of a command, in one session. Everything happens in one event loop."""

    def __init__(
        self,
        spawner: Spawner,
        front: int,
        tracker: AsyncTracker,
        terms: Terms,
        most: int | None,
    ) -> None:
        """Take what is needed; `run` uses it."""
        self._spawner = spawner
        self._front = front
        self._tracker = tracker
        self._terms = terms
        self._most = most
        self._runs = set[Run]()
        self._code: int | None = None  # the exit code, once it is to end
        self._ending = asyncio.Event()

    async def run(self) -> int:
        """Keep the runs until a signal ends them, and return the exit code.

        Raises:
            TrackdError: the daemon is not the right one.
        """
        loop = asyncio.get_running_loop()
        caught = list_caught()
        for number in caught:
            if number in {signal.SIGTERM, signal.SIGINT}:
                loop.add_signal_handler(number, self._end, BY_SIGNAL + number)
            else:
                loop.add_signal_handler(number, self._send, number)
        loop.add_reader(self._front, call_once(loop, self._front, self._end_orphans))
        try:
            async with self._tracker:
                await self._tracker.ping()
                self._pool = AsyncAgentPool(
                    self._tracker,
                    self._dial,
                    max_tunnels=self._most,
                    on_event=self._note,
                    drain_timeout=None,  # --grace bounds it
                )
                async with self._pool:
                    await self._ending.wait()
        finally:
            stop_catching(loop, caught, self._front)
        assert self._code is not None
        return self._code

    def _end(self, code: int, *, is_orphan: bool = False) -> None:
        """End all runs, and then with this exit code; the first one counts."""
        if self._code is None:
            self._code = code
        for run in self._runs:
            run.end(is_orphan=is_orphan)
        self._ending.set()

    def _end_orphans(self) -> None:
        """End all runs: `keep` was killed."""
        self._end(BY_SIGNAL + signal.SIGKILL, is_orphan=True)

    def _send(self, number: int) -> None:
        for run in self._runs:
            run.send(number)

    async def _dial(self, lease: AsyncLease) -> None:
        """Run the command with a lease until no process of it is left."""
        if self._ending.is_set():
            return
        began = time.monotonic()
        run = Run(
            lease,
            self._tracker,
            self._spawner,
            self._terms,
            take_line=self._take_line,
            is_adopted=True,
        )
        self._runs.add(run)
        try:
            await run.serve()
        finally:
            self._runs.discard(run)
        if run.code is None:
            say(SPAWNER_KILLED)
            self._end(FAILED)
            return
        say(f"lease {lease.id}: {_describe(run, lease, time.monotonic() - began)}")
        if run.failure is not None:
            raise run.failure

    def _note(self, event: PoolEvent) -> None:
        if event.change == Change.CLAIMED:
            say(f"lease {event.lease}: claimed {event.name}")

    async def _take_line(self, line: bytes) -> None:
        """Feed a line that is gossip, and print any other."""
        if not line.startswith(b"{"):
            await _print(line)
            return
        try:
            await self._pool.feed(line)
        except BadPayload as error:
            say(f"a line of gossip is skipped: {error}")


def _describe(run: Run, lease: AsyncLease, seconds: float) -> str:
    """Return what happened to a run."""
    name = lease.claimed_name
    if name is None and run.held is not None:
        return f"another lease holds {run.held}"
    how = "ended" if run.failure is None else f"failed ({run.failure.failed})"
    what = "the dial" if name is None else f"the tunnel to {name}"
    return f"{what} {how} after {seconds:.1f} s with exit code {run.code}"


async def _print(line: bytes) -> None:
    """Print what a command has printed. A slow reader holds up only that command."""
    for begin in range(0, len(line), select.PIPE_BUF):
        while not select.select([], [1], [], 0)[1]:  # noqa: ASYNC110 - epoll refuses files
            await asyncio.sleep(_PAUSE)
        with suppress(OSError):  # nobody reads it
            os.write(1, line[begin : begin + select.PIPE_BUF])


def say(sentence: str) -> None:
    """Say on standard error what happens to the runs."""
    click.echo(f"trackctl keep: {escape(sentence)}", err=True)
