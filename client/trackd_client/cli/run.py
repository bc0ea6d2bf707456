"""One run of a command with one lease, as `trackctl hold` and `trackctl keep` have it.

The command claims with a line on a descriptor, or by `trackctl claim` and a socket. The lease is
released only when no process of the command is left: `process_tree` sees to that.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import click

from trackd_client import AsyncLease, AsyncTracker, DialFailed
from trackd_client.cli.claim_socket import LONGEST_LINE, ClaimServer
from trackd_client.cli.exit_codes import CANNOT_RUN, NOT_FOUND
from trackd_client.cli.front import continue_in_child
from trackd_client.cli.process_tree import Spawner, Tree
from trackd_client.cli.quick_claim import VARIABLE
from trackd_client.cli.text import escape
from trackd_client.core.arguments import check_outcome
from trackd_client.errors import TrackdError
from trackd_client.proxy import Target

F = TypeVar("F", bound=Callable[..., Any])
_Stack = ExitStack | AsyncExitStack

#: Characters of what operators see; the daemon takes 255 bytes.
_LONGEST_NAME: Final = 60
_PASSED_ON: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
#: Bytes of one line of gossip; a longer one is skipped.
_LONGEST_GOSSIP: Final = 16 * 1024 * 1024
#: What is said when a run has no exit code.
SPAWNER_KILLED: Final = "the process that starts the commands was killed"
#: Seconds for what the command printed last, when it has ended.
_LAST_WORDS: Final = 1.0
#: The exit codes that say it: those of timeout(1) and of sysexits.h.
_REASON_OF_CODE: Final = {69: "refused", 75: "rate", 76: "tls", 77: "auth", 124: "timeout"}


class Terms(NamedTuple):
    """What holds for every run of a command.

    Attributes:
        fd: the number under which it writes claims.
        reply_fd: the number under which it reads the replies.
        ends: whether it is ended when another lease holds its proxy.
        directory: where the sockets for claims are; None: there are none.
        say: prints a sentence on standard error.
    """

    fd: int
    reply_fd: int
    ends: bool
    directory: Path | None
    say: Callable[[str], None]


def run_options(command: F) -> F:
    """Add the options that `hold` and `keep` share."""
    for option in reversed(
        (
            click.option(
                "--name", help="What operators see as the agent's name; else the command's."
            ),
            click.option(
                "--fd",
                type=click.IntRange(3, 1000),
                default=3,
                show_default=True,
                help="For claims.",
            ),
            click.option(
                "--reply-fd",
                type=click.IntRange(3, 1000),
                default=4,
                show_default=True,
                help="For answers.",
            ),
            click.option(
                "--on-duplicate",
                type=click.Choice(["end", "tell"]),
                default="end",
                show_default=True,
                help="What to do when another lease holds the proxy:"
                " end the command, or only answer it.",
            ),
            click.option(
                "--grace",
                type=click.FloatRange(min=0),
                default=10.0,
                show_default=True,
                metavar="SECONDS",
                help="From SIGTERM to SIGKILL, when the command has to end.",
            ),
        )
    ):
        command = option(command)
    return command


def identify(program: str, name: str | None) -> dict[str, Any]:
    """Return what operators see of a command: its name. Its arguments may be secret."""
    program = os.path.basename(program)  # noqa: PTH119 - a word
    return {
        "name": escape(name or program)[:_LONGEST_NAME],
        "labels": {"command": escape(program)[:_LONGEST_NAME]},
    }


def check_command(name: str, say: Callable[[str], None]) -> None:
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


def list_caught() -> list[signal.Signals]:
    """Return the signals that are passed on; what nohup or a shell has ignored stays so."""
    return [number for number in _PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN]


def start_spawner(
    argv: Sequence[str], grace: float, say: Callable[[str], None]
) -> tuple[Spawner, int]:
    """Go on in a child of this process, and start the process that starts the command.

    Args:
        argv: the command and its arguments.
        grace: seconds from SIGTERM to SIGKILL.
        say: prints a sentence on standard error.

    Returns:
        It, and a descriptor that is readable when this process has ended.
    """
    front = continue_in_child(list_caught())
    spawner = Spawner(argv, grace, say)
    signal.signal(signal.SIGQUIT, signal.SIG_IGN)  # of a terminal: the process above ends by it
    return spawner, front


def stop_catching(
    loop: asyncio.AbstractEventLoop, caught: Sequence[signal.Signals], front: int
) -> None:
    """Let signals and the end of the process above no longer do anything: the end is near."""
    signal.pthread_sigmask(signal.SIG_BLOCK, caught)
    for number in caught:
        loop.remove_signal_handler(number)
    loop.remove_reader(front)


def is_by_terminal() -> bool:
    """Return whether a Ctrl-C comes from the terminal, which sends it to the command as well."""
    return os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp()


class Run:
    """One run of a command. Everything happens in one event loop.

    Attributes:
        code: the exit code of the command; None before its end, and when the spawner was killed.
        held: the name of the proxy that its last claim found held by another lease, or None.
    """

    def __init__(
        self,
        lease: AsyncLease,
        tracker: AsyncTracker,
        spawner: Spawner,
        terms: Terms,
        *,
        take_line: Callable[[bytes], Awaitable[None]] | None = None,
        is_adopted: bool = False,
    ) -> None:
        """Take what is needed; `serve` runs the command.

        Args:
            lease: in flight.
            tracker: the one that granted it.
            spawner: starts the command.
            terms: those of every run.
            take_line: called with each line that the command prints; it has no input then.
                Without it, the command has the standard input and output of this process.
            is_adopted: whether a lost lease that has claimed is no reason to end the command: the
                pool adopts its tunnel, or sets `should_close`.
        """
        self.code: int | None = None
        self.held: str | None = None
        self._lease = lease
        lease.follows = True
        self._tracker = tracker
        self._spawner = spawner
        self._terms = terms
        self._take_line = take_line
        self._is_adopted = is_adopted
        self._failed: DialFailed | None = None  # as the command has said it
        self._is_stopped = False
        self._is_orphan = False
        self._tree: Tree | None = None
        self._replies = -1
        self._lines = asyncio.Queue[bytes]()
        self._rest = b""
        self._claiming = asyncio.Lock()
        self._noted = lease.on_claim
        lease.on_claim = self._note

    @property
    def failure(self) -> DialFailed | None:
        """How its dial failed; None when it met a held proxy, too, or was ended from here."""
        has_claimed = self._lease.claimed_name is not None
        if not has_claimed and self.held is not None:
            return None
        if self._failed is not None or self._is_stopped:
            return self._failed
        reason = _REASON_OF_CODE.get(self.code or 0, None if has_claimed else "other")
        return None if reason is None else DialFailed(reason)

    async def serve(self) -> None:
        """Run the command until no process of it is left.

        Raises:
            OSError: no descriptor is left for it.
        """
        async with AsyncExitStack() as ours:
            socket = None
            if self._terms.directory is not None:
                socket = self._terms.directory / str(self._lease.id)
                try:
                    await ours.enter_async_context(ClaimServer(socket, self._claim))
                except OSError as error:  # somebody has removed the directory
                    self._terms.say(f"trackctl claim cannot be used: {error}")
                    socket = None
            try:
                tree, claims, output = self._start(ours, socket)
            except ConnectionError:  # the spawner was killed before, not after
                return
            tasks = [
                asyncio.create_task(each)
                for each in (
                    self._claim_lines(),
                    self._end_when_lost(),
                    self._end_when_advised(),
                )
            ]
            printing = asyncio.create_task(self._take_output(output))
            try:
                await self._supervise(tree, claims, tasks)
            finally:
                await asyncio.wait([printing], timeout=_LAST_WORDS)
                printing.cancel()
                await asyncio.wait([printing])

    def end(self, *, is_orphan: bool = False) -> None:
        """End the command and all that it started: SIGTERM, and SIGKILL after the grace.

        Args:
            is_orphan: whether `hold` or `keep` was killed, so that the grace is short.
        """
        self._is_stopped = True
        self._is_orphan = self._is_orphan or is_orphan
        if self._tree is not None:
            self._tree.end(is_soon=self._is_orphan)

    def send(self, number: int) -> None:
        """Send the command a signal."""
        if self._tree is not None:
            self._tree.send(number)

    def _start(self, ours: AsyncExitStack, socket: Path | None) -> tuple[Tree, int, int | None]:
        """Start the command, and return its tree and where its claims and its output are read."""
        terms = self._terms
        with ExitStack() as theirs:
            claims, claims_end = _open_pipe(ours, theirs)
            replies_end, self._replies = _open_pipe(theirs, ours)
            ends = {claims_end: terms.fd, replies_end: terms.reply_fd}
            output = None
            if self._take_line is not None:
                output, output_end = _open_pipe(ours, theirs)
                nothing = os.open(os.devnull, os.O_RDONLY)
                theirs.callback(os.close, nothing)
                ends |= {nothing: 0, output_end: 1}
            for end in (claims, self._replies):
                os.set_blocking(end, False)
            environ = make_environ(
                str(self._lease.id), self._tracker.endpoint, terms, socket, self._lease.target
            )
            self._tree = self._spawner.start(environ, ends)
            ours.callback(self._tree.close)
        return self._tree, claims, output

    async def _supervise(self, tree: Tree, claims: int, tasks: list[asyncio.Task[None]]) -> None:
        """Wait until no process of the command is left."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(tree.ended, call_once(loop, tree.ended, ended.set))
        loop.add_reader(claims, self._read, loop, claims)
        if self._is_stopped:
            self.end()
        try:
            await ended.wait()
        finally:
            loop.remove_reader(claims)
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            tree.end()
            await ended.wait()  # the lease is released after this, and not before
            self.code = tree.wait()
            for result in results:
                if isinstance(result, Exception):
                    raise result

    async def _take_output(self, output: int | None) -> None:
        """Take the lines that the command prints."""
        if output is None or self._take_line is None:
            return
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=_LONGEST_GOSSIP)
        file = os.fdopen(os.dup(output), "rb", buffering=0)
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), file
        )
        try:
            while True:
                try:
                    line = await reader.readline()
                except ValueError:
                    self._terms.say(f"more than {_LONGEST_GOSSIP} bytes of one line are skipped")
                    continue
                if not line:
                    return
                await self._take_line(line)
        finally:
            transport.close()

    def _read(self, loop: asyncio.AbstractEventLoop, claims: int) -> None:
        """Take what the command has written to the descriptor for claims."""
        with suppress(BlockingIOError):
            chunk = os.read(claims, LONGEST_LINE)
            if not chunk:
                loop.remove_reader(claims)
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            for line in lines:
                self._lines.put_nowait(line)
            if len(self._rest) > LONGEST_LINE:
                self._rest = b""
                self._answer("refused the line is too long")

    async def _claim_lines(self) -> None:
        while True:
            words = (await self._lines.get()).decode(errors="replace").split()
            self._answer(await self._claim(words))

    async def _claim(self, words: list[str]) -> str:
        """Do what one line asks for, and return the line that says the result."""
        if words and words[0].startswith("failed="):
            return self._take_failure(words)
        async with self._claiming:
            reply = await self._claim_proxy(words)
        if reply.startswith("held ") and self._terms.ends and (tree := self._tree) is not None:
            tree.end()
        return escape(reply)  # one line, always

    def _take_failure(self, words: list[str]) -> str:
        """Note why the dial failed, and return the line that says whether it was understood."""
        said = dict(word.partition("=")[::2] for word in words)
        try:
            failed, seconds = said.pop("failed"), said.pop("retry_after", None)
            retry_after = None if seconds is None else float(seconds)
            check_outcome(failed, retry_after)
            failure = DialFailed(failed, retry_after)
        except ValueError as error:
            return f"refused {error}"
        if said:
            return "refused a line is failed=REASON, and perhaps retry_after=SECONDS"
        self._failed = failure
        return "noted"

    async def _claim_proxy(self, principals: list[str]) -> str:
        lease = self._lease
        name = lease.claimed_name
        if name is not None:
            cluster = self._tracker._conversation.served  # noqa: SLF001 - which principals may end with
            known = {part for p in principals for part in (p, p.removesuffix(f".{cluster}"))}
            if name in known or set(principals) <= set(lease.presented):  # gossip may rename it
                return f"claimed {name}"
            return f"refused this lease has claimed {name}"
        self._set_held(None)
        refused = "refused the line names no proxy, or the lease is gone"
        if not principals or lease.released:
            return refused
        try:
            if await lease.claim(*principals):
                if lease.terminating:  # a tunnel to it is no use
                    if self._terms.ends:
                        self._end_because(f"{lease.claimed_name} is terminating")
                    return f"refused {lease.claimed_name} is terminating"
                return f"claimed {lease.claimed_name}"
        except TrackdError as error:
            return f"refused {error}"
        return refused if self.held is None else f"held {self.held}"

    def _note(self, claimed: bool, name: str | None) -> None:
        if not claimed:
            self._set_held(name)
        if self._noted is not None:
            self._noted(claimed, name)

    def _set_held(self, name: str | None) -> None:
        self.held = name

    async def _end_when_lost(self) -> None:
        await self._lease.lost.wait()
        if self._lease.claimed_name is None or not self._is_adopted:
            self._end_because(f"lease {self._lease.id} is lost")

    async def _end_when_advised(self) -> None:
        await self._lease.should_close.wait()
        self._end_because("the daemon advises to close this tunnel")

    def _end_because(self, why: str) -> None:
        if not self._is_stopped:
            self._terms.say(f"{why}; ending the command")
        self.end()

    def _answer(self, line: str) -> None:
        with suppress(BrokenPipeError, BlockingIOError):  # it does not read the answers
            os.write(self._replies, f"{line}\n".encode())


def make_environ(
    lease: str, endpoint: str, terms: Terms, socket: Path | None, target: Target | None = None
) -> dict[str, str]:
    """Return the variables that a command finds; those of a target are empty without one."""
    environ = {
        "TRACKD_TARGET": "" if target is None else target.name,
        "TRACKD_TARGET_ADDRESS": "" if target is None else target.address,
        "TRACKD_LEASE": lease,
        "TRACKD_ENDPOINT": endpoint,
        "TRACKD_CLAIM_FD": str(terms.fd),
        "TRACKD_REPLY_FD": str(terms.reply_fd),
    }
    return environ if socket is None else environ | {VARIABLE: str(socket)}


def _open_pipe(reads: _Stack, writes: _Stack) -> tuple[int, int]:
    """Return the ends of a pipe for reading and for writing, which these stacks close."""
    reading, writing = os.pipe()
    reads.callback(os.close, reading)
    writes.callback(os.close, writing)
    return reading, writing


def call_once(
    loop: asyncio.AbstractEventLoop, fd: int, act: Callable[[], None]
) -> Callable[[], None]:
    """Return a callback that acts once: at its end a pipe stays readable."""

    def called() -> None:
        loop.remove_reader(fd)
        act()

    return called
