"""`trackctl hold`: for agents that are shell scripts; one lease for one run of a command.

The lease is released only when no process of the command is left: `process_tree` sees to that.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import click

from trackd_client import AsyncLease, AsyncTracker
from trackd_client.cli import common
from trackd_client.cli.exit_codes import BY_SIGNAL, CANNOT_RUN, NOT_FOUND, TIMED_OUT
from trackd_client.cli.process_tree import Supervised
from trackd_client.cli.text import escape
from trackd_client.errors import AcquireTimeout, TrackdError

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
the command itself has ended and left others. When hold is killed, they are
ended within a second. SIGINT, SIGHUP, SIGUSR1 and SIGUSR2 are passed on to
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
#: Characters of what operators see; the daemon takes 255 bytes.
_LONGEST_NAME: Final = 60
#: Bytes of one line of principals.
_LONGEST_LINE: Final = 64 * 1024
_PASSED_ON: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


@click.command(epilog=_EPILOG, context_settings={"allow_interspersed_args": False})
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND...")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="How long to wait for a lease; without it, forever.",
)
@click.option("--name", help="What operators see as the agent's name; else the command's.")
@click.option(
    "--fd", type=click.IntRange(3, 1000), default=3, show_default=True, help="For claims."
)
@click.option(
    "--reply-fd", type=click.IntRange(3, 1000), default=4, show_default=True, help="For answers."
)
@click.option(
    "--on-duplicate",
    type=click.Choice(["end", "tell"]),
    default="end",
    show_default=True,
    help="What to do when another lease holds the proxy: end the command, or only answer it.",
)
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="From SIGTERM to SIGKILL, when the command has to end.",
)
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
    _check_command(argv[0])
    program = os.path.basename(argv[0])  # noqa: PTH119 - a word
    child = Supervised(argv, fd, reply_fd, grace, say)
    try:
        with common.report_errors():
            tracker = options.make_tracker(
                AsyncTracker,
                name=escape(name or program)[:_LONGEST_NAME],
                labels={"command": escape(program)[:_LONGEST_NAME]},  # arguments may be secret
            )
            code = asyncio.run(Hold(child, tracker, ends=on_duplicate == "end").run(timeout))
    finally:
        child.close()
    sys.exit(code)


def _list_caught() -> list[signal.Signals]:
    """Return the signals that are passed on; what nohup or a shell has ignored stays so."""
    return [number for number in _PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN]


def _check_command(name: str) -> None:
    """End with the exit code of a shell when there is no such command or it cannot be run."""
    if shutil.which(name) is not None:
        return
    if os.path.isdir(name) and os.sep in name:  # noqa: PTH112 - as the shell looks it up
        say(f"cannot run {escape(name)}: it is a directory")
        sys.exit(CANNOT_RUN)
    if shutil.which(name, mode=os.F_OK) is not None:
        say(f"cannot run {escape(name)}: it is not executable")
        sys.exit(CANNOT_RUN)
    say(f"there is no command {escape(repr(name))}")
    sys.exit(NOT_FOUND)


class Hold:
    """One lease, and the command that uses it. Everything runs in one event loop."""

    def __init__(self, child: Supervised, tracker: AsyncTracker, *, ends: bool) -> None:
        """Take what is needed.

        Args:
            child: waits to become the command.
            tracker: not used yet.
            ends: whether the command is ended when another lease holds its proxy.
        """
        self._child = child
        self._tracker = tracker
        self._ends = ends
        self._held: list[str | None] = []  # proxies that the claim under way found held
        self._lines = asyncio.Queue[bytes]()
        self._rest = b""

    async def run(self, timeout: float | None) -> int:  # noqa: ASYNC109 - of `acquire`
        """Wait for a lease, run the command, and return the exit code."""
        loop = asyncio.get_running_loop()
        acquiring = asyncio.create_task(self._acquire(timeout))
        stopped: list[int] = []

        def stop(number: int) -> None:
            stopped.append(number)
            acquiring.cancel()

        caught = _list_caught()
        for number in caught:
            loop.add_signal_handler(number, stop, number)
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
                return await self._serve(lease, loop)
        finally:
            for number in caught:
                loop.remove_signal_handler(number)

    async def _acquire(self, timeout: float | None) -> AsyncLease:  # noqa: ASYNC109
        return await self._tracker.acquire(timeout)

    async def _serve(self, lease: AsyncLease, loop: asyncio.AbstractEventLoop) -> int:
        child = self._child
        # The terminal sends Ctrl-C to all of its foreground processes, the command among them.
        by_terminal = os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp()
        for number in _list_caught():
            if number == signal.SIGINT and by_terminal:
                loop.add_signal_handler(number, lambda: None)
            else:
                loop.add_signal_handler(number, self._pass_on, number)
        ended = asyncio.Event()
        loop.add_reader(child.pidfd, _call_once(loop, child.pidfd, ended.set))
        loop.add_reader(child.claims, self._read, loop)
        lease.on_claim = self._note
        watchers = [
            asyncio.create_task(self._claim_lines(lease)),
            asyncio.create_task(self._end_with(lease.lost, f"lease {lease.id} is lost")),
            asyncio.create_task(
                self._end_with(lease.should_close, "the daemon advises to close this tunnel")
            ),
        ]
        try:
            child.begin(lease.id, self._tracker.endpoint)
            await ended.wait()
        finally:
            loop.remove_reader(child.claims)
            for watcher in watchers:
                watcher.cancel()
            ends = await asyncio.gather(*watchers, return_exceptions=True)
            child.end()
            await ended.wait()  # the lease is released after this, and not before
            for end in ends:
                if isinstance(end, Exception):
                    raise end
        return child.wait()

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take what the command has written."""
        with suppress(BlockingIOError):
            chunk = os.read(self._child.claims, _LONGEST_LINE)
            if not chunk:
                loop.remove_reader(self._child.claims)
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            for line in lines:
                self._lines.put_nowait(line)
            if len(self._rest) > _LONGEST_LINE:
                self._rest = b""
                self._answer("refused the line is too long")

    async def _claim_lines(self, lease: AsyncLease) -> None:
        while True:
            principals = (await self._lines.get()).decode(errors="replace").split()
            answer = await self._claim(lease, principals)
            self._answer(answer)
            if answer.startswith("held ") and self._ends:
                self._child.end()

    async def _claim(self, lease: AsyncLease, principals: list[str]) -> str:
        """Claim a proxy, and return the line that says the result."""
        if lease.claimed_name is not None:
            return f"refused this lease has claimed {lease.claimed_name}"
        self._held.clear()
        refused = "refused the line names no proxy, or the lease is gone"
        if not principals or lease.released:
            return refused
        try:
            if await lease.claim(*principals):
                return f"claimed {lease.claimed_name}"
        except TrackdError as error:
            return f"refused {error}"
        if self._held:
            return f"held {self._held[0]}"
        return refused

    def _note(self, claimed: bool, name: str | None) -> None:
        if not claimed:
            self._held.append(name)

    def _pass_on(self, number: int) -> None:
        """Pass a signal on to the command; SIGTERM ends all of its processes."""
        if number == signal.SIGTERM:
            self._child.end()
        else:
            self._child.send(number)

    async def _end_with(self, event: asyncio.Event, why: str) -> None:
        await event.wait()
        say(f"{why}; ending the command")
        self._child.end()

    def _answer(self, line: str) -> None:
        with suppress(BrokenPipeError, BlockingIOError):  # it does not read the answers
            os.write(self._child.replies, f"{escape(line)}\n".encode())  # one line, always


def _call_once(
    loop: asyncio.AbstractEventLoop, fd: int, act: Callable[[], None]
) -> Callable[[], None]:
    """Return a callback that acts once: a pidfd stays readable."""

    def called() -> None:
        loop.remove_reader(fd)
        act()

    return called


def say(sentence: str) -> None:
    """Say on standard error what happens to the command."""
    click.echo(f"trackctl hold: {escape(sentence)}", err=True)
