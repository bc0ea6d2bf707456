"""The process above a command: it ends only when every process of the command has ended.

It is the subreaper of what the command starts: a process that double-forks or begins a session of
its own stays its descendant. It ends the tree when it is asked to, when the command itself has
ended, and when who asked for it has died: the pipe of its orders says so. It is forked without
exec, so it uses neither an event loop nor threads, only `os`.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import shutil
import signal
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from trackd_client.cli.exit_codes import BY_SIGNAL, CANNOT_RUN, NOT_FOUND

#: Seconds from SIGTERM to SIGKILL, at most, when `hold` or `keep` was killed.
ORPHAN_GRACE: Final = 1.0
#: Seconds between two looks at processes that are being ended.
LOOK: Final = 0.1
#: The orders that ask for the end of the tree, with the grace and with that of an orphan; other
#: bytes are signals for the command.
END: Final = 255
END_SOON: Final = 254
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
#: Signals that the supervisor takes from nobody: a terminal sends them to the command as well.
IGNORED: Final = (
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
)
#: What the supervisor or Python changed, and the command gets back as it was.
_RESTORED: Final = (*IGNORED, signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ)


class Command(NamedTuple):
    """What is run, and how it is ended.

    Attributes:
        argv: the command and its arguments.
        grace: seconds from SIGTERM to SIGKILL.
        say: prints a sentence on standard error.
        ignored: signals that were ignored before, and stay so.
    """

    argv: Sequence[str]
    grace: float
    say: Callable[[str], None]
    ignored: Sequence[int] = ()


class Supervisor:
    """The process between the caller and the command. Never returns to the caller's code."""

    def __init__(
        self, command: Command, orders: int, environ: Mapping[str, str], ends: Mapping[int, int]
    ) -> None:
        """Take what the command needs.

        Args:
            command: what it runs.
            orders: the pipe from which it reads its orders.
            environ: variables that the command finds beside those of this process.
            ends: descriptors, and the numbers under which the command finds them.
        """
        self._argv, self._grace, self._say, self._ignored = command
        self._orders = orders
        self._environ = environ
        self._ends = ends
        self._command = 0  # its pid, once it runs
        self._code: int | None = None
        self._kill_at: float | None = None  # set when the tree is being ended
        self._asked: set[tuple[int, int]] = set()  # pids and starts: they got SIGTERM

    def run(self) -> NoReturn:
        """Run the command, and end when none of its processes is left."""
        wake = watch_children()
        signal.signal(signal.SIGTERM, lambda *_: self._begin_end(self._grace))
        become_subreaper()
        self._start()
        self._supervise(wake)
        os._exit(self._code if self._code is not None else CANNOT_RUN)

    def _start(self) -> None:
        supervisor = os.getpid()
        self._command = os.fork()
        if self._command == 0:
            try:
                self._become(supervisor)
            except OSError as error:
                os._exit(self._explain(error))
            finally:
                os._exit(CANNOT_RUN)
        for end in self._ends:
            os.close(end)

    def _become(self, supervisor: int) -> NoReturn:
        """Become the command.

        Args:
            supervisor: the parent; with its death the kernel ends the command.

        Raises:
            OSError: it cannot be run.
        """
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != supervisor:
            os._exit(CANNOT_RUN)
        signal.set_wakeup_fd(-1)
        for number in _RESTORED:
            signal.signal(number, signal.SIG_IGN if number in self._ignored else signal.SIG_DFL)
        above = max(self._ends.values(), default=2) + 1
        moved = {
            fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, above): to for end, to in self._ends.items()
        }
        for end, to in moved.items():
            os.dup2(end, to)
        os.execvpe(self._argv[0], list(self._argv), {**os.environ, **self._environ})  # noqa: S606 - what the user asked to run

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
            for fd, _ in poll.poll(None if self._kill_at is None else LOOK * 1000):
                if fd == wake:
                    with suppress(BlockingIOError):
                        os.read(wake, 4096)
                elif not self._obey(os.read(self._orders, 4096)):
                    poll.unregister(self._orders)

    def _obey(self, orders: bytes) -> bool:
        """Do what the caller asks; return whether it lives."""
        for order in orders:
            if order == END:
                self._begin_end(self._grace)
            elif order == END_SOON:
                self._begin_end(min(self._grace, ORPHAN_GRACE))
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


def list_ignored() -> list[int]:
    """Return the signals that are ignored now, except those that Python ignores by itself."""
    return [
        number
        for number in _RESTORED
        if number not in {signal.SIGPIPE, signal.SIGXFSZ}
        and signal.getsignal(number) is signal.SIG_IGN
    ]


def watch_children() -> int:
    """Return a descriptor that is readable after a child has ended or a signal was handled."""
    wake, woken = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return wake


def become_subreaper() -> None:
    """Become the parent of descendants whose parent ends."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def kill_descendants() -> None:
    """Kill all descendants of this process, and wait until none is left."""
    while kill_strays(()):
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(LOOK)


def kill_strays(spared: Collection[int]) -> bool:
    """Kill descendants of this process, except some and what is below them.

    Returns:
        Whether any was left.
    """
    found = _find_descendants(os.getpid(), spared)
    _signal(found, signal.SIGKILL)
    return bool(found)


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


def _find_descendants(ancestor: int, spared: Collection[int] = ()) -> dict[int, tuple[int, int]]:
    """Return the pids below a process, each with its parent and the time when it started.

    Args:
        ancestor: the process.
        spared: pids that are left out, with what is below them.
    """
    stats = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - only the names
        pid = int(name) if name.isdigit() else 0
        if pid and pid not in spared and (stat := _read_stat(pid)) is not None:
            stats[pid] = stat
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
