"""Makes standard input, output and error safe to use when they are closed, full or cannot write.

A descriptor that is closed would be taken by the next socket, which then gets what is printed. So
it is occupied at once, by something that fails in the same way as a closed one.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import Final

from trackd_client.cli.exit_codes import FAILED

_INPUT: Final = 0
_OUTPUT: Final = 1
_ERROR: Final = 2


def guard() -> None:
    """Occupy closed descriptors, and let text that a locale cannot write come out escaped."""
    if _occupy(_INPUT, os.O_WRONLY):  # reading from it fails, as from a closed one
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(_INPUT, closefd=False)))
    if _occupy(_OUTPUT, os.O_RDONLY):
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(_OUTPUT, "w", closefd=False)))
    _occupy(_ERROR, os.O_RDONLY)
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(_Remarks(_ERROR, "w", closefd=False)), line_buffering=True
    )
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names may hold what a locale cannot write
            stream.reconfigure(errors="backslashreplace")


def run(command: Callable[[], None]) -> None:
    """Run a command, and end with a sentence when its output cannot be written."""
    try:
        command()
    except OSError as error:
        if error.filename is not None:  # not about a stream
            raise
        sys.stderr.write(f"trackctl: cannot read or write: {error.strerror}\n")
        _discard_output()
        sys.exit(FAILED)


class _Remarks(io.FileIO):
    """Standard error: what cannot be written there is lost, and the exit code stands."""

    def write(self, data: bytes, /) -> int:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError:
            return len(data)


def _occupy(descriptor: int, flags: int) -> bool:
    """Open the null device in the place of a closed descriptor; return whether it was closed."""
    try:
        os.fstat(descriptor)
    except OSError:
        null = os.open(os.devnull, flags)
        if null != descriptor:
            os.dup2(null, descriptor)
            os.close(null)
        os.set_inheritable(descriptor, True)
        return True
    return False


def _discard_output() -> None:
    """Let Python's last flush of standard output succeed; it would complain again."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, _OUTPUT)
    os.close(null)
