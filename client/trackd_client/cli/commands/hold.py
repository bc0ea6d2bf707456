"""`trackctl hold`: for agents that are shell scripts; one lease for one run of a command.

The command is forked before anything else is started, and waits for the lease; so it gets its
descriptors under the numbers it wants, whatever this process has open, and the kernel ends it
when this process dies, for then the lease is free and the tunnel would be one too many.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NoReturn

import click

from trackd_client import AsyncLease, AsyncTracker
from trackd_client.cli import common
from trackd_client.cli.exit_codes import BY_SIGNAL, CANNOT_RUN, NOT_FOUND, TIMED_OUT
from trackd_client.cli.output.render import escape
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

The lease is released when the command ends. The command is sent SIGTERM when
another lease holds the proxy (unless --on-duplicate tell), when the lease is
lost, when the daemon advises to close the tunnel, and when hold itself is
killed. SIGTERM, SIGINT, SIGHUP, SIGUSR1 and SIGUSR2 are passed on to it; a
Ctrl-C at the terminal reaches it by itself.

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
_PR_SET_PDEATHSIG: Final = 1


@click.command(epilog=_EPILOG, context_settings={"allow_interspersed_args": False})
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND...")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="How long to wait for a lease; without it, for ever.",
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
) -> None:
    """Wait for a lease, and run a command with it."""
    if fd == reply_fd:
        raise click.UsageError("--fd and --reply-fd must differ")
    if shutil.which(argv[0]) is None:
        say(f"there is no command {argv[0]!r}")
        sys.exit(NOT_FOUND)
    child = Child(argv, fd, reply_fd)
    try:
        with common.report_errors():
            tracker = options.make_tracker(
                AsyncTracker,
                name=escape(name or os.path.basename(argv[0]))[:_LONGEST_NAME],  # noqa: PTH119 - a word
                labels={"command": escape(shlex.join(argv))[:_LONGEST_NAME]},
            )
            code = asyncio.run(Hold(child, tracker, ends=on_duplicate == "end").run(timeout))
    finally:
        child.close()
    sys.exit(code)


class Child:
    """A process that waits until it may become the command."""

    def __init__(self, argv: tuple[str, ...], fd: int, reply_fd: int) -> None:
        """Fork it.

        Args:
            argv: the command and its arguments.
            fd: the number under which it writes claims.
            reply_fd: the number under which it reads the answers.
        """
        self.claims, claims = os.pipe()
        replies, self.replies = os.pipe()
        begins, self._begin = os.pipe()
        os.set_blocking(self.claims, False)
        os.set_blocking(self.replies, False)
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._begin)
            _become(argv, parent, begins, {claims: fd, replies: reply_fd})
        for end in (claims, replies, begins):
            os.close(end)
        self.pidfd = os.pidfd_open(self.pid)
        self._code: int | None = None

    def begin(self, lease: int, endpoint: str) -> None:
        """Let it become the command."""
        with suppress(BrokenPipeError):  # it has been ended
            os.write(self._begin, f"{lease} {endpoint}".encode())
        os.close(self._begin)
        self._begin = -1

    def send(self, number: int) -> None:
        """Send it a signal, as long as it lives."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def wait(self) -> int:
        """Wait for its end and return its exit code, as a shell reports it."""
        if self._code is None:
            status = os.waitpid(self.pid, 0)[1]
            code = os.waitstatus_to_exitcode(status)
            self._code = code if code >= 0 else BY_SIGNAL - code
        return self._code

    def close(self) -> None:
        """End it if it has not become the command, and wait for its end."""
        if self._begin != -1:
            os.close(self._begin)
        self.wait()
        for end in (self.claims, self.replies, self.pidfd):
            os.close(end)


def _list_caught() -> list[signal.Signals]:
    """Return the signals that are passed on; what nohup or a shell has ignored stays so."""
    return [number for number in _PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN]


def _become(argv: tuple[str, ...], parent: int, begins: int, ends: dict[int, int]) -> NoReturn:
    """Wait for the word, and become the command. The child of the fork, which never returns.

    Args:
        argv: the command.
        parent: the process that holds the lease.
        begins: the word comes from here; its end without one means that there is no lease.
        ends: descriptors, and the numbers that the command is to find them under.
    """
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        # As they were before Python began.
        for number in (signal.SIGPIPE, signal.SIGXFSZ, *_list_caught()):
            signal.signal(number, signal.SIG_DFL)
        word = b""
        while chunk := os.read(begins, 4096):
            word += chunk
        if not word or os.getppid() != parent:
            os._exit(0)
        lease, _, endpoint = word.decode().partition(" ")
        above = max(ends.values()) + 1
        moved = {fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, above): to for end, to in ends.items()}
        for end, to in moved.items():
            os.dup2(end, to)
        claims, replies = ends.values()
        environ = {
            **os.environ,
            "TRACKD_LEASE": lease,
            "TRACKD_ENDPOINT": endpoint,
            "TRACKD_CLAIM_FD": str(claims),
            "TRACKD_REPLY_FD": str(replies),
        }
        os.execvpe(argv[0], argv, environ)  # noqa: S606 - what the user asked to run
    except OSError as error:
        say(f"cannot run {argv[0]}: {error.strerror}")
        os._exit(NOT_FOUND if isinstance(error, FileNotFoundError) else CANNOT_RUN)
    finally:
        os._exit(CANNOT_RUN)


class Hold:
    """One lease, and the command that uses it. Everything runs in one event loop."""

    def __init__(self, child: Child, tracker: AsyncTracker, *, ends: bool) -> None:
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
                loop.add_signal_handler(number, child.send, number)
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
            for end in await asyncio.gather(*watchers, return_exceptions=True):
                if isinstance(end, Exception):
                    child.send(signal.SIGTERM)
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
                self._child.send(signal.SIGTERM)

    async def _claim(self, lease: AsyncLease, principals: list[str]) -> str:
        """Claim a proxy, and return the line that says the result."""
        if lease.claimed_name is not None:
            return f"refused this lease has claimed {lease.claimed_name}"
        self._held.clear()
        try:
            if await lease.claim(*principals):
                return f"claimed {lease.claimed_name}"
        except TrackdError as error:
            return f"refused {error}"
        if self._held:
            return f"held {self._held[0]}"
        return "refused the line names no proxy, or the lease is gone"

    def _note(self, claimed: bool, name: str | None) -> None:
        if not claimed:
            self._held.append(name)

    async def _end_with(self, event: asyncio.Event, why: str) -> None:
        await event.wait()
        say(f"{why}; ending the command")
        self._child.send(signal.SIGTERM)

    def _answer(self, line: str) -> None:
        with suppress(BrokenPipeError, BlockingIOError):  # it does not read the answers
            os.write(self._child.replies, f"{line}\n".encode())


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
    click.echo(f"trackctl hold: {sentence}", err=True)
