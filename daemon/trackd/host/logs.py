"""The log: one event is one line, for people and for the journal.

An event is a constant phrase with fields::

    log.info("session opened", extra=fields(session=3, pid=12))

    2025-11-23T12:01:00.123+0100 info session opened session=3 pid=12     on a terminal or a pipe
    MESSAGE=session opened session=3 pid=12                                in the journal, with
    PRIORITY=6, TRACKD_SESSION=3, TRACKD_PID=12                            a field for each value

No value breaks a line or reaches a terminal as a control character. A level that is off formats
nothing. The log goes to standard error, or to journald when standard error leads there. It has no
files, no rotation, and in the journal no times of its own. The journal's protocol is datagrams
of fields (https://systemd.io/JOURNAL_NATIVE_PROTOCOL/). A thread of its own writes the lines, so
that no caller waits for the reader (`trackd.host.log_queue`).
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import logging
import os
import re
import socket
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

from trackd.host.log_queue import DescriptorHandler, QueuedHandler

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The priority of a level in syslog and journald (man 3 sd-daemon).
_PRIORITIES: Final = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
)
_DEBUG_PRIORITY: Final = 7

#: The socket on which journald takes fields.
JOURNAL_SOCKET: Final = Path("/run/systemd/journal/socket")
#: Seconds that a line may wait for a journal that does not keep up; then it is dropped.
_JOURNAL_PATIENCE: Final = 1.0
#: The seals of a memory file for journald: it cannot be changed any longer.
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
_NO_FIELD: Final = re.compile(r"[^A-Z0-9_]")


def fields(**values: object) -> dict[str, object]:
    """Return the `extra=` of a log call: the fields of the event, in order."""
    return {"fields": values}


def setup(
    level: str,
    stream: TextIO | None = None,
    environ: Mapping[str, str] = os.environ,
    journal: Path = JOURNAL_SOCKET,
) -> None:
    """Set up the log at `level` and above; of other packages, warnings and above.

    Args:
        level: debug, info, warning or error.
        stream: where to; None: standard error.
        environ: the process's environment, where systemd says what standard error is.
        journal: journald's socket.
    """
    out = sys.stderr if stream is None else stream
    handler = _handler(out, environ, journal)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    set_level(level)


def _handler(out: TextIO | None, environ: Mapping[str, str], journal: Path) -> logging.Handler:
    if out is None:  # standard error was closed before the process began
        return logging.NullHandler()
    try:
        output: logging.Handler = DescriptorHandler(out.fileno())
    except (OSError, ValueError):  # text in memory, which never blocks
        output = logging.StreamHandler(out)
        output.setFormatter(LineFormatter())
        return output
    output.setFormatter(LineFormatter())
    if is_journal(out, environ):
        output.setFormatter(JournalFormatter())
        with contextlib.suppress(OSError):  # sandboxed away: lines reach the journal all the same
            output = JournalHandler(journal)
    return QueuedHandler(output)


def flush() -> None:
    """Wait until everything is written, for a bounded time. For those who end the process."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def count_dropped() -> int:
    """Return how many lines were dropped because standard error or the journal did not keep up."""
    return sum(
        handler.dropped
        for handler in logging.getLogger().handlers
        if isinstance(handler, QueuedHandler)
    )


def set_level(level: str) -> None:
    """Change the level of the log."""
    logging.getLogger("trackd").setLevel(level.upper())


def is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Return whether `stream` leads to journald: $JOURNAL_STREAM has its device and inode."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):  # closed, or not a file at all
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


class LineFormatter(logging.Formatter):
    """Time, level, event, fields: for people at a terminal, and for files."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        local = time.localtime(record.created)
        zone = time.strftime("%z", local)
        moment = f"{time.strftime('%Y-%m-%dT%H:%M:%S', local)}.{int(record.msecs):03}{zone}"
        return f"{moment} {record.levelname.lower()} {_event(record)}"


class JournalFormatter(logging.Formatter):
    """A priority that journald strips, event, fields; journald adds the time."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        return f"<{_priority(record)}>{_event(record)}"


class JournalHandler(logging.Handler):
    """Sends each record to journald with its fields, which `journalctl -o json` shows.

    When the journal does not keep up, lines are lost and the daemon goes on: one line waits for at
    most a second, and later ones do not wait until one gets through.
    """

    def __init__(self, path: Path = JOURNAL_SOCKET) -> None:
        """Connect to journald.

        Args:
            path: journald's socket.

        Raises:
            OSError: no process listens there.
        """
        super().__init__()
        self._path = path
        self._socket = self._connect()

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record. Any thread may call it; the handler's lock is held."""
        try:
            data = journal_entry(record)
            try:
                self._send(data)
            except (ConnectionError, BrokenPipeError):  # journald has made a new socket
                self._socket.close()
                self._socket = self._connect()
                self._send(data)
        except TimeoutError:
            self._socket.settimeout(0.0)
        except BlockingIOError:
            return
        except Exception:  # noqa: BLE001 - as every handler does: logging never raises
            self.handleError(record)
        else:
            self._socket.settimeout(_JOURNAL_PATIENCE)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        super().close()

    def _connect(self) -> socket.socket:
        out = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            out.connect(str(self._path))
        except OSError:
            out.close()
            raise
        out.settimeout(_JOURNAL_PATIENCE)
        return out

    def _send(self, data: bytes) -> None:
        try:
            self._socket.send(data)
        except OSError as error:
            if error.errno not in {errno.EMSGSIZE, errno.ENOBUFS}:
                raise
            self._send_file(data)

    def _send_file(self, data: bytes) -> None:
        """Send data that is too large for a datagram, in a sealed memory file."""
        with os.fdopen(
            os.memfd_create("trackd-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "wb"
        ) as file:
            file.write(data)
            file.flush()
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
            rights = array.array("i", [file.fileno()])
            self._socket.sendmsg([], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])


def journal_entry(record: logging.LogRecord) -> bytes:
    """Return a record in the journal's native format.

    Each value is a field of its own, named `TRACKD_...`, beside the fields that journald defines.
    MESSAGE is the line that people read.
    """
    entry = {
        "MESSAGE": _event(record),
        "PRIORITY": _priority(record),
        "SYSLOG_IDENTIFIER": "trackd",
        "CODE_FILE": record.pathname,
        "CODE_LINE": record.lineno,
        "CODE_FUNC": record.funcName,
        "TRACKD_EVENT": record.getMessage(),
        "TRACKD_LOGGER": record.name,
    }
    for key, value in _values(record).items():
        entry[f"TRACKD_{_NO_FIELD.sub('_', key.upper())}"] = value
    return b"".join(_journal_field(key, value) for key, value in entry.items())


def _journal_field(key: str, value: object) -> bytes:
    """Return a field with its length, so that its value may hold line breaks."""
    data = _plain(value).encode(errors="backslashreplace")
    return b"%s\n%s%s\n" % (key.encode(), struct.pack("<Q", len(data)), data)


def _priority(record: logging.LogRecord) -> int:
    return next((p for level, p in _PRIORITIES if record.levelno >= level), _DEBUG_PRIORITY)


def _values(record: logging.LogRecord) -> dict[str, object]:
    """Return the record's fields, with a foreign logger's name and the exception."""
    values: dict[str, object] = dict(getattr(record, "fields", {}))
    if not record.name.startswith("trackd"):
        values["logger"] = record.name
    if record.exc_text:
        values["exception"] = record.exc_text
    elif record.exc_info:
        values["exception"] = logging.Formatter().formatException(record.exc_info)
    return values


def _event(record: logging.LogRecord) -> str:
    pairs = (f" {key}={_quote(value)}" for key, value in _values(record).items())
    return _printable(record.getMessage()) + "".join(pairs)


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _quote(value: object) -> str:
    """Return a value as one word, in quotes where its end would not be clear."""
    text = _plain(value)
    if text and text.isprintable() and not set(text) & set(' "=\\'):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{_printable(escaped)}"'


def _printable(text: str) -> str:
    """Escape characters that would break the line or control a terminal."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
