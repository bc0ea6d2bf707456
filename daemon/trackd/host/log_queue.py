"""A log that never holds up the code that logs: a bounded queue, and a thread that writes.

Standard error may be a pipe without a reader, a terminal that is stopped with Ctrl-S,
or a journal that does not keep up. A write to it then waits, maybe forever. Only the thread
waits; when the queue is full, lines are dropped and counted. A line that repeats the one before
it is counted too, and written once with the number of its repetitions.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import select
import signal
import threading
import time
from collections import deque
from typing import Any, Final

#: Lines that wait to be written.
MOST_LINES: Final = 1000
#: Seconds within which equal lines are one.
FOLD_SECONDS: Final = 1.0
#: Seconds that the end of the process waits for the last lines.
FLUSH_SECONDS: Final = 1.0


class DescriptorHandler(logging.Handler):
    """Writes lines to a descriptor, past the buffers and locks of Python's streams.

    A thread that waits in `sys.stderr.write` holds its lock, and without that lock the
    interpreter cannot end.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line.

        Raises:
            OSError: the descriptor is closed, full or broken.
        """
        data = memoryview(f"{self.format(record)}\n".encode(errors="backslashreplace"))
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # another program has set O_NONBLOCK
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll()


class QueuedHandler(logging.Handler):
    """Hands records to another handler in a thread of its own.

    Attributes:
        dropped: lines that were dropped because the queue was full, or standard error was closed,
            full or broken.
    """

    def __init__(self, output: logging.Handler, most: int = MOST_LINES) -> None:
        """Create the queue; the thread begins with the first line.

        Args:
            output: writes the lines, and may take as long as it likes.
            most: lines that may wait.
        """
        super().__init__()
        self.dropped = 0
        self._output = output
        self._most = most
        self._changed = threading.Condition()  # guards everything below
        self._lines: deque[logging.LogRecord] = deque()
        self._writing = False
        self._flushing = 0
        self._failing = False  # the last line could not be written
        self._reported = 0  # of those dropped
        self._last: logging.LogRecord | None = None
        self._repeated = 0
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record, or count it. Any thread; it never waits for the output."""
        line = copy.copy(record)
        if record.exc_info:
            line.exc_text = logging.Formatter().formatException(record.exc_info)
            line.exc_info = None
        line.msg, line.args = record.getMessage(), None
        with self._changed:
            last = self._last
            if last is not None and _key(line) == _key(last) and not self._is_fold_over():
                self._repeated += 1
            else:
                self._end_fold()
                self._last = line
                self._add(line)
            if self._thread is None:
                self._thread = self._start()
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until everything is written, for `FLUSH_SECONDS` at most."""
        with self._changed:
            self._flushing += 1
            self._changed.notify_all()
            self._changed.wait_for(self._is_idle, FLUSH_SECONDS)
            self._flushing -= 1

    def close(self) -> None:
        """Write what waits, as `flush` does."""
        self.flush()
        super().close()

    def _is_idle(self) -> bool:
        nothing = not self._lines and not self._writing and not self._repeated
        said = self._failing or self._reported == self.dropped
        return self._thread is None or (nothing and said)

    def _is_fold_over(self) -> bool:
        last = self._last
        return last is None or time.time() - last.created >= FOLD_SECONDS or self._flushing > 0

    def _end_fold(self) -> None:
        """Queue the last line once more, with the number of its repetitions."""
        last, self._last = self._last, None
        if last is not None and self._repeated:
            again = copy.copy(last)
            again.created, again.msecs = time.time(), 0.0
            again.__dict__["fields"] = {**_fields(last), "repeated": self._repeated}
            self._repeated = 0
            self._add(again)

    def _add(self, line: logging.LogRecord) -> None:
        if len(self._lines) < self._most:
            self._lines.append(line)
        else:
            self.dropped += 1

    def _start(self) -> threading.Thread:
        """Start the thread with every signal blocked: signals are for others."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            thread = threading.Thread(target=self._write_lines, name="log", daemon=True)
            thread.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return thread

    def _write_lines(self) -> None:
        while True:
            line = self._next_line()
            written = False
            with contextlib.suppress(Exception):  # a log that fails has nowhere to say so
                # Without the output's lock, which `logging.shutdown` would wait for.
                self._output.emit(line)
                written = True
            with self._changed:
                self._writing = False
                self._failing = not written
                if not written:
                    self.dropped += 1
                self._changed.notify_all()

    def _next_line(self) -> logging.LogRecord:
        """Wait for a line, and take it."""
        with self._changed:
            while True:
                if not self._lines and self._repeated and self._is_fold_over():
                    self._end_fold()
                if not self._lines and self._reported != self.dropped and not self._failing:
                    self._add(self._report_dropped())
                if self._lines:
                    self._writing = True
                    return self._lines.popleft()
                self._changed.wait(FOLD_SECONDS if self._repeated else None)

    def _report_dropped(self) -> logging.LogRecord:
        lines, self._reported = self.dropped - self._reported, self.dropped
        event = "log lines dropped: standard error did not take them"
        record = logging.LogRecord("trackd", logging.WARNING, __file__, 0, event, (), None)
        record.__dict__["fields"] = {"lines": lines}
        return record


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return dict(getattr(record, "fields", {}))


def _key(record: logging.LogRecord) -> tuple[object, ...]:
    """Return what makes two lines equal: everything but their time."""
    return record.name, record.levelno, record.msg, record.exc_text, _fields(record)
