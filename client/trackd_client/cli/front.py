"""The process that a user or systemd starts: it waits for a child that has the session.

The daemon frees the leases of a process when that process ends. So the one that has the session is
not the one that is killed in the place of the command: it learns of that, ends what it runs, and
gives its leases back only then.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from typing import Final

from trackd_client.cli.exit_codes import BY_SIGNAL, CANNOT_RUN
from trackd_client.cli.supervisor import (
    LOOK,
    ORPHAN_GRACE,
    become_subreaper,
    kill_descendants,
)

#: `si_code` of what a terminal sends; it sends that to each process of the group.
_SI_KERNEL: Final = 128


def continue_in_child(passed_on: Iterable[signal.Signals]) -> int:
    """Go on in a child. This process passes signals on, waits, and ends with the child's code.

    Call this before any thread is started.

    Args:
        passed_on: the signals.

    Returns:
        A descriptor that is readable when this process has ended. Only the child returns.

    Raises:
        OSError: there is no room for another process.
    """
    waited = {*passed_on, signal.SIGCHLD}
    dead, alive = os.pipe()
    of_children = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would hide the code
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, waited)
    become_subreaper()  # what a killed child leaves comes to us
    child = os.fork()
    if child == 0:
        os.close(alive)
        signal.signal(signal.SIGCHLD, of_children)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return dead
    code = CANNOT_RUN
    try:
        code = _wait(child, waited)
    finally:
        os._exit(code)


def _wait(child: int, waited: Iterable[int]) -> int:
    """Wait until the child has ended, and return its exit code."""
    while True:
        received = signal.sigwaitinfo(waited)
        if received.si_signo == signal.SIGCHLD:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                break
        elif received.si_code != _SI_KERNEL:
            os.kill(child, received.si_signo)
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return code
    _end_rest()
    return BY_SIGNAL - code


def _end_rest() -> None:
    """Wait until nothing is left of what a killed child ran: its supervisors end that."""
    kill_at = time.monotonic() + ORPHAN_GRACE + 5 * LOOK
    while time.monotonic() < kill_at:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(LOOK)
        except ChildProcessError:
            return
    kill_descendants()
