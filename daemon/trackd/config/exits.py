"""The exit codes of `trackd` and `trackctl`, and the error that carries one to the command line.

`trackd --help` prints MEANINGS. Nothing here ends the process.
"""

from __future__ import annotations

from typing import Final

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
NO_DAEMON: Final = 3
HELD: Final = 4
UNUSABLE: Final = 5
DEPOSED: Final = 6
INTERRUPTED: Final = 130

MEANINGS: Final = {
    OK: "stopped as asked; or done",
    FAILED: "an internal failure: a part of the daemon died",
    USAGE: "wrong usage or configuration",
    NO_DAEMON: "no daemon answers (trackctl only)",
    HELD: "the endpoint or state directory is held by another daemon",
    UNUSABLE: "the endpoint or state directory cannot be used: not a socket, too long, forbidden",
    DEPOSED: "its term is over; start it again to stand by (trackd lead only)",
    INTERRUPTED: "interrupted before there was anything to stop",
}


class StartError(Exception):
    """The daemon cannot start; the message says why and what to do.

    Attributes:
        code: the exit code, one of this module's.
    """

    code = FAILED


def reason_of(error: OSError) -> str:
    """Return why the system refused something, as part of a sentence: "permission denied"."""
    return (error.strerror or str(error)).lower()


class LockHeldError(StartError):
    """Another daemon holds the endpoint or the state directory."""

    code = HELD


class UnusableError(StartError, ValueError):
    """The endpoint or the state directory cannot be used."""

    code = UNUSABLE
