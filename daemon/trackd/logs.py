"""How the daemon logs: one event is one line, for people and for the journal.

An event is a constant phrase and fields that say what it is about::

    log.info("session opened", extra=fields(session=3, pid=12))

    2025-11-23T12:01:00.123+0100 info session opened session=3 pid=12     on a terminal or a pipe
    <6>session opened session=3 pid=12                                     into the journal

No value breaks a line or reaches a terminal as a control character. Nothing is formatted for a
level that is off. It writes to standard error alone: no files, no rotation.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import TYPE_CHECKING, Final, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping

#: What a level is to syslog, and thus to journald (man 3 sd-daemon).
_PRIORITIES: Final = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
)
_DEBUG_PRIORITY: Final = 7


def fields(**values: object) -> dict[str, object]:
    """Return `extra=` for a logger's method: what the event is about, in the order given."""
    return {"fields": values}


def setup(
    level: str, stream: TextIO | None = None, environ: Mapping[str, str] = os.environ
) -> None:
    """Log from now on at `level` and above; call again to change the level.

    Other packages' loggers are heard from warnings up.

    Args:
        level: debug, info, warning or error.
        stream: where to; None: standard error.
        environ: the process's environment, where systemd says what standard error is.
    """
    out = sys.stderr if stream is None else stream
    handler = logging.StreamHandler(out)
    handler.setFormatter(JournalFormatter() if is_journal(out, environ) else LineFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("trackd").setLevel(level.upper())


def is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Tell whether `stream` goes to journald: $JOURNAL_STREAM holds its device and inode."""
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
    """A priority that journald takes off, event, fields: the journal knows the time itself."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        priority = next((p for level, p in _PRIORITIES if record.levelno >= level), _DEBUG_PRIORITY)
        return f"<{priority}>{_event(record)}"


def _event(record: logging.LogRecord) -> str:
    values: dict[str, object] = dict(getattr(record, "fields", {}))
    if not record.name.startswith("trackd"):
        values["logger"] = record.name
    if record.exc_info:
        values["exception"] = logging.Formatter().formatException(record.exc_info)
    pairs = (f" {key}={_quote(value)}" for key, value in values.items())
    return _printable(record.getMessage()) + "".join(pairs)


def _quote(value: object) -> str:
    """Return a value as one word, in quotes where a reader could not tell its end otherwise."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    text = str(value)
    if text and text.isprintable() and not set(text) & set(' "=\\'):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{_printable(escaped)}"'


def _printable(text: str) -> str:
    """Escape what would break the line or be obeyed by a terminal."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
