"""Runs a command under a supervisor, which ends only when every process of the command has.

    hold ── supervisor ── command ── its children, wherever they fork to

The supervisor is forked before anything else is started, so the command finds its descriptors
under the numbers that it asked for. It is the subreaper of what the command starts: a process that
double-forks or begins a session of its own stays its descendant. It ends the tree when the caller
asks, when the command itself has ended, and when the caller has died: the control pipe says so.
No event loop and no threads; only `os`, so that the fork is safe.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

from trackd_client.cli.exit_codes import BY_SIGNAL, CANNOT_RUN, NOT_FOUND

#: Seconds from SIGTERM to SIGKILL when the caller has died: its lease is free already.
ORPHAN_GRACE: Final = 1.0
#: Seconds between two looks at processes that are being ended.
_LOOK: Final = 0.1
#: The byte that asks for the end of the tree; other bytes are signals for the command.
_END: Final = 255
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
#: Signals that the supervisor takes from nobody: a terminal sends them to the command as well.
_IGNORED: Final = (
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
)
#: What the supervisor or Python changed, and the command gets back as it was.
_RESTORED: Final = (*_IGNORED, signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ)


class Supervised:
    """A command that waits for its lease, and the supervisor above it."""

    def __init__(
        self, argv: Sequence[str], fd: int, reply_fd: int, grace: float, say: Callable[[str], None]
    ) -> None:
        """Fork the supervisor; the command starts with `begin`.

        Args:
            argv: the command and its arguments.
            fd: the number under which it writes claims.
            reply_fd: the number under which it reads the replies.
            grace: seconds from SIGTERM to SIGKILL.
            say: prints a sentence on standard error.
        """
        self.claims, claims = os.pipe()
        replies, self.replies = os.pipe()
        orders, self._orders = os.pipe()
        os.set_blocking(self.claims, False)
        os.set_blocking(self.replies, False)
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # what a killed supervisor leaves comes to us
        self._pid = os.fork()
        if self._pid == 0:
            try:
                for end in (self.claims, self.replies, self._orders):
                    os.close(end)
                _Supervisor(argv, orders, {claims: fd, replies: reply_fd}, grace, say).run()
            finally:
                os._exit(CANNOT_RUN)
        for end in (claims, replies, orders):
            os.close(end)
        self.pidfd = os.pidfd_open(self._pid)
        self._code: int | None = None

    def begin(self, lease: int, endpoint: str) -> None:
        """Start the command, with what it finds in its environment."""
        self._order(f"{lease} {endpoint}\n".encode())

    def send(self, number: int) -> None:
        """Send the command a signal."""
        self._order(bytes([number]))

    def end(self) -> None:
        """End the whole tree: SIGTERM, and SIGKILL after the grace."""
        self._order(bytes([_END]))

    def wait(self) -> int:
        """Wait until no process of the command is left, and return its exit code.

        128+N when signal N ended it.
        """
        if self._code is None:
            code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
            if code < 0:  # the supervisor was killed: its tree is ours now
                _kill_descendants()
            self._code = code if code >= 0 else BY_SIGNAL - code
        return self._code

    def close(self) -> None:
        """Have the supervisor end what runs, and wait for that."""
        os.close(self._orders)
        self.wait()
        for end in (self.claims, self.replies, self.pidfd):
            os.close(end)

    def _order(self, order: bytes) -> None:
        with suppress(BrokenPipeError):  # it has ended
            os.write(self._orders, order)


class _Supervisor:
    """The process between the caller and the command. Never returns to the caller's code."""

    def __init__(
        self,
        argv: Sequence[str],
        orders: int,
        ends: Mapping[int, int],
        grace: float,
        say: Callable[[str], None],
    ) -> None:
        self._argv = argv
        self._orders = orders
        self._ends = ends
        self._grace = grace
        self._say = say
        self._command = 0  # its pid, once it runs
        self._code: int | None = None
        self._kill_at: float | None = None  # set when the tree is being ended
        self._asked: set[tuple[int, int]] = set()  # pids and starts: they got SIGTERM

    def run(self) -> NoReturn:
        """Wait for the lease, run the command, and end when none of its processes is left."""
        ignored = [each for each in _RESTORED if signal.getsignal(each) is signal.SIG_IGN]
        inherited = [each for each in ignored if each not in {signal.SIGPIPE, signal.SIGXFSZ}]
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        wake, woken = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(woken, False)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self._begin_end(self._grace))
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        first = self._read_first_order()
        if not first:
            os._exit(0 if self._kill_at is None else BY_SIGNAL + signal.SIGTERM)
        self._start(first, inherited)
        self._supervise(wake)
        os._exit(self._code if self._code is not None else CANNOT_RUN)

    def _read_first_order(self) -> str:
        """Return the line with the lease, or nothing when there will be none."""
        line = b""
        while not line.endswith(b"\n"):
            byte = os.read(self._orders, 1)
            if not byte or self._kill_at is not None or byte[0] == _END:
                return ""
            line += byte
        return line.decode().rstrip("\n")

    def _start(self, first: str, inherited: Sequence[int]) -> None:
        supervisor = os.getpid()
        self._command = os.fork()
        if self._command == 0:
            try:
                _become(self._argv, first, self._ends, supervisor, inherited)
            except OSError as error:
                os._exit(self._explain(error))
            finally:
                os._exit(CANNOT_RUN)
        for end in self._ends:
            os.close(end)

    def _explain(self, error: OSError) -> int:
        """Say why the command does not run, and return the exit code for that."""
        if not isinstance(error, FileNotFoundError):
            self._say(f"cannot run {self._argv[0]}: {error.strerror}")
            return CANNOT_RUN
        if shutil.which(self._argv[0], mode=os.F_OK) is None:
            self._say(f"there is no command {self._argv[0]!r} any longer")
            return NOT_FOUND
        self._say(f"cannot run {self._argv[0]}: its interpreter does not exist")
        return CANNOT_RUN

    def _supervise(self, wake: int) -> None:
        poll = select.poll()
        poll.register(self._orders, select.POLLIN)
        poll.register(wake, select.POLLIN)
        while self._reap():
            if self._code is not None:
                self._begin_end(self._grace)  # the command has ended; what it left follows
            if self._kill_at is not None:
                self._press()
            for fd, _ in poll.poll(None if self._kill_at is None else _LOOK * 1000):
                if fd == wake:
                    with suppress(BlockingIOError):
                        os.read(wake, 4096)
                elif not self._obey(os.read(self._orders, 4096)):
                    poll.unregister(self._orders)

    def _obey(self, orders: bytes) -> bool:
        """Do what the caller asks; return whether it lives."""
        for order in orders:
            if order == _END:
                self._begin_end(self._grace)
            elif self._code is None:  # the command is not reaped, so its pid is its own
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(self._command, order)
        if not orders:
            self._begin_end(min(self._grace, ORPHAN_GRACE))
        return bool(orders)

    def _begin_end(self, grace: float) -> None:
        """Send SIGTERM to the tree, once, and note when SIGKILL follows."""
        moment = time.monotonic() + grace
        if self._kill_at is None:
            self._kill_at = moment
            self._ask(_find_descendants(os.getpid()))
        self._kill_at = min(self._kill_at, moment)

    def _press(self) -> None:
        """Go on ending the tree: SIGKILL when it is time, SIGTERM to what was just orphaned.

        A process forked just when SIGTERM was sent did not get it. Its parent ends, and it becomes
        a child of ours. What a handler of SIGTERM starts keeps its parent, and is left alone.
        """
        assert self._kill_at is not None
        found = _find_descendants(os.getpid())
        if time.monotonic() >= self._kill_at:
            _signal(found, signal.SIGKILL)
        else:
            me = os.getpid()
            orphans = {pid: stat for pid, stat in found.items() if stat[0] == me}
            self._ask({p: stat for p, stat in orphans.items() if (p, stat[1]) not in self._asked})

    def _ask(self, processes: dict[int, tuple[int, int]]) -> None:
        """Send processes SIGTERM, and SIGCONT, for a stopped one takes SIGTERM only then."""
        self._asked |= {(pid, started) for pid, (_, started) in processes.items()}
        _signal(processes, signal.SIGTERM)
        _signal(processes, signal.SIGCONT)

    def _reap(self) -> bool:
        """Take the exit codes of children that have ended; return whether any child is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._command:
                code = os.waitstatus_to_exitcode(status)
                self._code = code if code >= 0 else BY_SIGNAL - code


def _become(
    argv: Sequence[str],
    first: str,
    ends: Mapping[int, int],
    supervisor: int,
    inherited: Sequence[int],
) -> NoReturn:
    """Become the command.

    Args:
        argv: the command.
        first: the number of its lease, and the endpoint.
        ends: descriptors, and the numbers that the command finds them under.
        supervisor: the parent; with its death the kernel ends the command.
        inherited: signals that were ignored before, and stay so.

    Raises:
        OSError: it cannot be run.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != supervisor:
        os._exit(CANNOT_RUN)
    signal.set_wakeup_fd(-1)
    for number in _RESTORED:
        signal.signal(number, signal.SIG_IGN if number in inherited else signal.SIG_DFL)
    lease, _, endpoint = first.partition(" ")
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
    os.execvpe(argv[0], list(argv), environ)  # noqa: S606 - what the user asked to run


def _kill_descendants() -> None:
    """Kill all descendants of this process, and wait until none is left."""
    while True:
        _signal(_find_descendants(os.getpid()), signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(_LOOK)


def _signal(processes: Mapping[int, tuple[int, int]], number: int) -> None:
    """Send a signal to processes, as `_find_descendants` returned them."""
    for pid, (_, started) in processes.items():
        with suppress(OSError):  # it has ended, or belongs to another user
            pidfd = os.pidfd_open(pid)
            try:
                now = _read_stat(pid)
                if now is not None and now[1] == started:  # not another one with this pid
                    signal.pidfd_send_signal(pidfd, number)
            finally:
                os.close(pidfd)


def _find_descendants(ancestor: int) -> dict[int, tuple[int, int]]:
    """Return the pids below a process, each with its parent and the time when it started."""
    stats = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - only the names
        if name.isdigit() and (stat := _read_stat(int(name))) is not None:
            stats[int(name)] = stat
    found: dict[int, tuple[int, int]] = {}
    parents = {ancestor}
    while parents:
        children = {pid for pid, (parent, _) in stats.items() if parent in parents} - found.keys()
        found |= {pid: stats[pid] for pid in children}
        parents = children
    return found


def _read_stat(pid: int) -> tuple[int, int] | None:
    """Return the parent of a process and the time when it started; None when it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = stat.rpartition(b")")[2].split()  # a name may hold blanks and brackets
    return int(fields[1]), int(fields[19])


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
