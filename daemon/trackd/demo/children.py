"""Child processes that cannot outlive the demo, not even when the demo is killed with SIGKILL.

Each is started through this module's own command line, which asks the kernel to kill it when its
parent ends and then becomes the real command: the wish survives exec, and a daemon that knows
nothing of demos needs no change. Children get a process group of their own, so that a Ctrl-C at
the terminal reaches only the demo, which then stops them in order.
"""

import ctypes
import os
import signal
import subprocess
import sys
from asyncio import sleep
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
POLL = 0.01  # seconds between two looks at a process that should end


class Child:
    """One process that the demo started.

    Must be started from the main thread: the kernel takes the end of the thread that forked for
    the end of the parent.
    """

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name = name
        self._log = log
        launcher = [sys.executable, "-m", "trackd.demo.children", str(os.getpid())]
        with log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - only our own commands
                [*launcher, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,
            )

    @property
    def pid(self) -> int:
        """Its process id, the same before and after it became the real command."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative when a signal ended it."""
        return self._process.poll()

    def kill(self) -> None:
        """Sends SIGKILL and waits for the end."""
        self._process.kill()
        self._process.wait()

    def ask_to_stop(self) -> None:
        """Sends SIGTERM."""
        self._process.send_signal(signal.SIGTERM)

    async def stopped(self, grace: float) -> int:
        """Waits for its end, and kills it when that takes more than `grace` seconds.

        Returns:
            Its exit code.
        """
        patience_ends = monotonic() + grace
        while (code := self.exit_code) is None:
            if monotonic() > patience_ends:
                self.kill()
            await sleep(POLL)
        return code

    def last_words(self, lines: int = 5) -> str:
        """The end of what it wrote."""
        said = self._log.read_text(errors="replace").splitlines()[-lines:]
        return "\n".join(f"  {self.name}: {line}" for line in said)


def main() -> None:
    """`python -m trackd.demo.children PARENT COMMAND…`: ties itself to PARENT, becomes COMMAND."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == parent:  # else it ended before we could tie ourselves to it
        os.execv(command[0], command)  # noqa: S606 - that is the purpose


if __name__ == "__main__":
    main()
