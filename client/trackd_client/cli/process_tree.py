"""Runs a command, as often as is wanted, so that no process of a run outlives it.

    hold or keep ── session ── spawner ─┬─ supervisor ── command ── its children, wherever
                                        └─ supervisor ── command     they fork to

The first process is the one of `front`; the second has the session with the daemon. The spawner is
forked before anything else is started: it has no threads and no descriptors of the daemon, so it
can fork for each run. A supervisor ends when every process of its command has. When one is killed,
the spawner ends what it left; when the spawner is killed, the caller does.
"""

from __future__ import annotations

import array
import json
import os
import select
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final, NoReturn

from trackd_client.cli.exit_codes import BY_SIGNAL, CANNOT_RUN
from trackd_client.cli.supervisor import (
    END,
    END_SOON,
    IGNORED,
    LOOK,
    Command,
    Supervisor,
    become_subreaper,
    kill_descendants,
    kill_strays,
    list_ignored,
    watch_children,
)

#: Bytes of a request to the spawner, and descriptors in it.
_LONGEST_REQUEST: Final = 64 * 1024
_MOST_ENDS: Final = 16


class Tree:
    """A run of the command: its process and all that these start."""

    def __init__(self, orders: int, ended: int) -> None:
        """Take the descriptors; `close` closes them.

        Args:
            orders: the pipe to the supervisor.
            ended: readable when no process is left.
        """
        self._orders = orders
        self.ended: Final = ended

    def send(self, number: int) -> None:
        """Send the command a signal."""
        self._order(number)

    def end(self, *, is_soon: bool = False) -> None:
        """End the whole tree: SIGTERM, and SIGKILL after the grace.

        Args:
            is_soon: whether the grace is that of an orphan, if that is shorter.
        """
        self._order(END_SOON if is_soon else END)

    def wait(self) -> int | None:
        """Wait until no process is left, and return the command's exit code.

        Returns:
            128+N when signal N ended it, or None when the spawner was killed.
        """
        code = os.read(self.ended, 1)
        if code:
            return code[0]
        kill_descendants()  # its trees are ours now
        return None

    def close(self) -> None:
        """Close the descriptors. The supervisor ends what still runs."""
        os.close(self._orders)
        os.close(self.ended)

    def _order(self, order: int) -> None:
        with suppress(BrokenPipeError):  # it has ended
            os.write(self._orders, bytes([order]))


class Spawner:
    """The process that starts the runs of a command."""

    def __init__(self, argv: Sequence[str], grace: float, say: Callable[[str], None]) -> None:
        """Fork it. Call this before any thread is started.

        Args:
            argv: the command and its arguments.
            grace: seconds from SIGTERM to SIGKILL.
            say: prints a sentence on standard error.
        """
        self._requests, requests = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        become_subreaper()  # what a killed spawner leaves comes to us
        self._pid = os.fork()
        if self._pid == 0:
            try:
                self._requests.close()
                _SpawnerProcess(Command(argv, grace, say, list_ignored()), requests).run()
            finally:
                os._exit(CANNOT_RUN)
        requests.close()

    def start(self, environ: Mapping[str, str], ends: Mapping[int, int]) -> Tree:
        """Start a run of the command.

        Args:
            environ: variables that it finds beside those of this process.
            ends: descriptors, and the numbers under which it finds them.

        Raises:
            ConnectionError: the spawner was killed.
            OSError: no descriptor is left.
        """
        orders, to_orders = os.pipe()
        try:
            ended, to_ended = os.pipe()
        except OSError:
            os.close(orders)
            os.close(to_orders)
            raise
        tree = Tree(to_orders, ended)
        request = json.dumps([dict(environ), list(ends.values())]).encode()
        try:
            socket.send_fds(self._requests, [request], [orders, to_ended, *ends])
        except OSError:
            tree.close()
            raise
        finally:
            os.close(orders)
            os.close(to_ended)
        return tree

    def close(self) -> None:
        """Wait until all runs have ended; the supervisors end those whose tree is closed."""
        self._requests.close()
        with suppress(ChildProcessError):  # killed, and reaped with its trees
            os.waitpid(self._pid, 0)


class _SpawnerProcess:
    """What the spawner does. Never returns to the caller's code."""

    def __init__(self, command: Command, requests: socket.socket) -> None:
        self._command = command
        self._requests = requests
        self._runs: dict[int, int] = {}  # supervisors, and the pipes for their exit codes
        self._killed: dict[int, int] = {}  # such pipes of killed supervisors, and the exit codes

    def run(self) -> NoReturn:
        """Start runs until the caller ends; end when all of them have ended."""
        for number in (*IGNORED, signal.SIGTERM):  # the end of the caller ends it
            signal.signal(number, signal.SIG_IGN)
        become_subreaper()
        wake = watch_children()
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        poll.register(self._requests, select.POLLIN)
        is_wanted = True
        while is_wanted or self._runs or self._killed:
            for fd, _ in poll.poll(LOOK * 1000 if self._killed else None):
                if fd == wake:
                    with suppress(BlockingIOError):
                        os.read(wake, 4096)
                elif not self._start():
                    poll.unregister(self._requests)
                    is_wanted = False
            self._reap()
        os._exit(0)

    def _start(self) -> bool:
        """Start a run; return whether the caller lives."""
        request, ancillary, _, _ = self._requests.recvmsg(
            _LONGEST_REQUEST,
            socket.CMSG_SPACE(_MOST_ENDS * array.array("i").itemsize),
            socket.MSG_CMSG_CLOEXEC,
        )
        if not request:
            return False
        received = array.array("i")
        for _, _, data in ancillary:
            received.frombytes(data)
        orders, ended, *ends = received
        environ, numbers = json.loads(request)
        try:
            pid = os.fork()
        except OSError as error:
            self._command.say(f"cannot run {self._command.argv[0]}: {error.strerror}")
            self._report(ended, CANNOT_RUN)
        else:
            if pid == 0:
                try:
                    self._requests.close()
                    for each in (*self._runs.values(), *self._killed, ended):
                        os.close(each)
                    Supervisor(
                        self._command, orders, environ, dict(zip(ends, numbers, strict=True))
                    ).run()
                finally:
                    os._exit(CANNOT_RUN)
            self._runs[pid] = ended
        for end in (orders, *ends):
            os.close(end)
        return True

    def _reap(self) -> None:
        """Take the exit codes of supervisors, and report those of which no process is left."""
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                ended = self._runs.pop(pid, None)
                if ended is None:
                    continue  # left by a killed supervisor
                code = os.waitstatus_to_exitcode(status)
                if code >= 0:
                    self._report(ended, code)
                else:
                    self._killed[ended] = BY_SIGNAL - code
        if self._killed and not kill_strays(self._runs):
            while self._killed:
                self._report(*self._killed.popitem())

    def _report(self, ended: int, code: int) -> None:
        """Return the exit code of a run to the caller."""
        with suppress(BrokenPipeError):  # it has ended
            os.write(ended, bytes([code]))
        os.close(ended)
