"""Log lines that may come often: one of a kind in a while, with the number that was left out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from threading import RLock
from typing import Final

#: Seconds between two lines of one kind.
_PAUSE: Final = 30.0
#: Kinds that are remembered; beyond that, all begin again.
_MOST_KINDS: Final = 100


class LimitedLog:
    """Logs warnings, at most one of each kind in half a minute. Threads may share it."""

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with nothing logged.

        Args:
            log: where the lines go.
            clock: seconds, which never go back.
        """
        self._log = log
        self._clock = clock
        self.lock = RLock()  # a signal handler or a finalizer may log too
        self._kinds: dict[str, tuple[float, int]] = {}  # when it was logged, and how many were not

    def warning(
        self, kind: str, message: str, *args: object, error: BaseException | None = None
    ) -> None:
        """Log a warning, unless one of its kind was logged a moment ago.

        Args:
            kind: which warnings count as the same.
            message: of the line, for `args` to be put into.
            args: as for `logging`.
            error: the exception whose traceback follows the line, or None.
        """
        now = self._clock()
        with self.lock:
            logged, left_out = self._kinds.get(kind, (None, 0))
            if logged is not None and now < logged + _PAUSE:
                self._kinds[kind] = (logged, left_out + 1)
                return
            if len(self._kinds) >= _MOST_KINDS:
                self._kinds.clear()
            self._kinds[kind] = (now, 0)
        if left_out:
            message, args = message + " (and %d more like it)", (*args, left_out)
        self._log.warning(message, *args, exc_info=error)
