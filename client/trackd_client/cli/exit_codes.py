"""The exit codes of `trackctl`, as its help lists them."""

from __future__ import annotations

from typing import Final

#: The daemon refused, or what was named does not exist.
FAILED: Final = 1
#: Wrong usage.
USAGE: Final = 2
#: No daemon answers.
NO_DAEMON: Final = 3

# Those of `hold` and `keep`, beside the exit code of the command.
#: No lease within --timeout.
TIMED_OUT: Final = 124
#: The command cannot be run.
CANNOT_RUN: Final = 126
#: There is no such command.
NOT_FOUND: Final = 127
#: Added to the number of the signal that ended a command, as shells do.
BY_SIGNAL: Final = 128
