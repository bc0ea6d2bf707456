"""Standard input, output and error of `trackd`, when they are closed, full or broken.

The next socket or file would take the number of a closed descriptor and get what is printed, so
each is occupied at once. This imports almost nothing, for `trackd ping`. (`trackctl` has its own,
`trackd_client.cli.streams`.)
"""

import errno
import io
import os
import sys
from collections.abc import Callable

_INPUT, _OUTPUT, _ERROR = 0, 1, 2
_FAILED = 1
#: Errors of a write to a reader that has gone or a terminal that was closed: nothing to report.
_GONE = {errno.EPIPE, errno.EIO}
_BROKEN = {*_GONE, errno.ENOSPC, errno.EBADF}


def guard() -> None:
    """Occupy closed descriptors, and let nothing that is written on standard error raise."""
    _occupy(_INPUT, os.O_RDONLY)
    # Writing fails as it would on the closed descriptor, so that it is noticed.
    if _occupy(_OUTPUT, os.O_RDONLY):
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(_OUTPUT, "w", closefd=False)))
    _occupy(_ERROR, os.O_RDONLY)
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(_Errors(_ERROR, "w", closefd=False)),
        errors="backslashreplace",
        line_buffering=True,
    )


def run(command: Callable[[], int]) -> int:
    """Run a command and return its exit code, or 1 with a sentence when its output is lost.

    Raises:
        SystemExit: as the command does.
    """
    try:
        try:
            return command()
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.filename is not None or error.errno not in _BROKEN:
            raise
        if error.errno not in _GONE:
            sys.stderr.write(f"trackd: error: cannot write: {error.strerror}\n")
        null = os.open(os.devnull, os.O_WRONLY)  # Python's last flush would complain again
        os.dup2(null, _OUTPUT)
        os.close(null)
        return _FAILED


class _Errors(io.FileIO):
    """Standard error: what cannot be written there is lost, and the exit code stands."""

    def write(self, data: bytes, /) -> int:  # type: ignore[override] # bytes are all that it gets
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
