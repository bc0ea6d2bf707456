"""`trackctl hold`: for agents that are shell scripts; one lease for one run of a command."""

from __future__ import annotations

import asyncio
import signal
import sys
from functools import partial

import click

from trackd_client import AsyncLease, AsyncTracker
from trackd_client.cli import common
from trackd_client.cli.claim_socket import claim_directory
from trackd_client.cli.exit_codes import BY_SIGNAL, CANNOT_RUN, TIMED_OUT
from trackd_client.cli.process_tree import Spawner
from trackd_client.cli.run import (
    SPAWNER_KILLED,
    Run,
    Terms,
    call_once,
    check_command,
    identify,
    is_by_terminal,
    list_caught,
    run_options,
    start_spawner,
    stop_catching,
)
from trackd_client.cli.text import escape
from trackd_client.errors import AcquireTimeout

_EPILOG = """\b
Examples:
  trackctl hold -- ./agent.sh
  trackctl hold --timeout 30 --fd 7 --reply-fd 8 -- ./agent.sh --verbose
  while trackctl hold -- ./agent.sh; do :; done

\b
The command runs when a lease is granted, and finds in its environment
  TRACKD_LEASE      the number of the lease
  TRACKD_ENDPOINT   the daemon's socket, for trackctl itself
  TRACKD_CLAIM_FD   3, where it writes the principals of the proxy that it
                    reached, separated by blanks: one line is one claim
  TRACKD_REPLY_FD   4, where each line is answered with one line:
                    "claimed NAME": only this lease has the proxy;
                    "held NAME": another lease has it: hang up;
                    "refused WHY": there is no claim for another reason
                    A line "failed=REASON" says why the dial failed: see
                    trackctl keep --help
  TRACKD_TARGET     the missing proxy that the lease is for, or empty
  TRACKD_TARGET_ADDRESS  where it can be dialled, by gossip, or empty: dial
                    the load balancer. It is text of somebody else: quote it
  TRACKD_CLAIM_SOCKET  where trackctl claim asks, when the descriptors are
                    closed, as ssh does it

So an agent in bash is

\b
  exec 5< <(my-tunnel)           # dials; prints the principals, then serves
  read -r principals <&5
  echo "$principals" >&3
  read -r outcome name <&4
  [ "$outcome" = claimed ] || exit 1
  cat <&5                        # until the tunnel closes

The lease is released when the command and every process that it started have
ended. hold sends them all SIGTERM, and SIGKILL after --grace, when another
lease holds the proxy (unless --on-duplicate tell), when the lease is lost,
when the daemon advises to close the tunnel, when hold gets SIGTERM, and when
the command itself has ended and left others. When hold is killed, SIGKILL
follows within a second. SIGINT, SIGHUP, SIGUSR1 and SIGUSR2 are passed on to
the command; a Ctrl-C at the terminal reaches it directly.

\b
Exit codes:
  the command's; 128+N when signal N ended it
  1    the daemon refused
  2    wrong usage
  3    no daemon answers
  124  no lease within --timeout
  126  the command cannot be run
  127  there is no such command
"""


@click.command(epilog=_EPILOG, context_settings={"allow_interspersed_args": False})
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND...")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="How long to wait for a lease; without it, forever.",
)
@run_options
@click.pass_obj
def hold(
    options: common.Options,
    *,
    argv: tuple[str, ...],
    timeout: float | None,
    name: str | None,
    fd: int,
    reply_fd: int,
    on_duplicate: str,
    grace: float,
) -> None:
    """Wait for a lease, and run a command with it."""
    if fd == reply_fd:
        raise click.UsageError("--fd and --reply-fd must differ")
    check_command(argv[0], say)
    spawner, front = start_spawner(argv, grace, say)
    try:
        with common.report_errors(), claim_directory(say) as directory:
            tracker = options.make_tracker(AsyncTracker, **identify(argv[0], name))
            terms = Terms(fd, reply_fd, on_duplicate == "end", directory, say)
            code = asyncio.run(Hold(spawner, front, tracker, terms).run(timeout))
    finally:
        spawner.close()
    sys.exit(code)


class Hold:
    """One lease, and the command that uses it. Everything runs in one event loop."""

    def __init__(self, spawner: Spawner, front: int, tracker: AsyncTracker, terms: Terms) -> None:
        """Take what is needed; the tracker is not used yet."""
        self._spawner = spawner
        self._front = front
        self._tracker = tracker
        self._terms = terms

    async def run(self, timeout: float | None) -> int:  # noqa: ASYNC109 - of `acquire`
        """Wait for a lease, run the command, and return the exit code."""
        loop = asyncio.get_running_loop()
        acquiring = asyncio.create_task(self._acquire(timeout))
        stopped: list[int] = []

        def stop(number: int) -> None:
            stopped.append(number)
            acquiring.cancel()

        caught = list_caught()
        for number in caught:
            loop.add_signal_handler(number, stop, number)
        killed = partial(stop, signal.SIGKILL)
        loop.add_reader(self._front, call_once(loop, self._front, killed))
        try:
            async with self._tracker:
                try:
                    lease = await acquiring
                except AcquireTimeout as error:
                    say(str(error))
                    return TIMED_OUT
                except asyncio.CancelledError:
                    if not stopped:
                        raise
                    return BY_SIGNAL + stopped[0]
                if stopped:  # at the moment of the grant
                    return BY_SIGNAL + stopped[0]
                return await self._serve(lease, loop)
        finally:
            stop_catching(loop, caught, self._front)

    async def _acquire(self, timeout: float | None) -> AsyncLease:  # noqa: ASYNC109
        return await self._tracker.acquire(timeout)

    async def _serve(self, lease: AsyncLease, loop: asyncio.AbstractEventLoop) -> int:
        run = Run(lease, self._tracker, self._spawner, self._terms)
        killed = partial(run.end, is_orphan=True)
        loop.add_reader(self._front, call_once(loop, self._front, killed))
        for number in list_caught():
            if number == signal.SIGTERM:
                loop.add_signal_handler(number, run.end)
            elif number == signal.SIGINT and is_by_terminal():
                loop.add_signal_handler(number, lambda: None)
            else:
                loop.add_signal_handler(number, run.send, number)
        try:
            await run.serve()
        except OSError as error:  # no descriptor is left
            say(f"cannot run the command: {error.strerror}")
            return CANNOT_RUN
        if run.code is None:
            say(SPAWNER_KILLED)
            return BY_SIGNAL + signal.SIGKILL
        if run.failure is not None:
            await lease.release(failed=run.failure.failed, retry_after=run.failure.retry_after)
        return run.code


def say(sentence: str) -> None:
    """Say on standard error what happens to the command."""
    click.echo(f"trackctl hold: {escape(sentence)}", err=True)
