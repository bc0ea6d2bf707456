"""The simulated disk: SQLite on files in memory, where any statement may fail or be the last one.

A statement has one of five fates. `FAIL` raises before it is executed, `FAIL_LATE` after: then it
happened, although the daemon hears the contrary. `KILL` and `KILL_LATE` end the process of the
daemon at the same two moments; from then on nothing is executed.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto

from helpers.writer import Faults, sqlite_error

#: What a statement is about, by how it begins: the commit of a batch, the one that makes a
#: checkpoint valid, and the steps before and after that.
COMMIT = "INSERT INTO journal"
FLIP = "UPDATE head SET generation"
STEP = ("INSERT OR REPLACE INTO state", "DELETE FROM state", "DELETE FROM journal")


class Killed(BaseException):
    """The process of the daemon has just ended, in the middle of what it did."""


class Fate(Enum):
    """What becomes of a statement that does not simply succeed."""

    FAIL = auto()
    FAIL_LATE = auto()
    KILL = auto()
    KILL_LATE = auto()


class Disk(Faults):
    """The disk of a host, which outlives the processes of the daemon.

    Attributes:
        executed: how many statements there were.
        fates: what becomes of the statements with these numbers, counted from 1.
        next_fates: what becomes of the next statement that begins so.
        full: whether nothing can be written at present.
        gone: whether the process that used it has been killed.
        reached: how often each rare state was reached, by its name.
    """

    def __init__(self, reached: Counter[str]) -> None:
        super().__init__()
        self.executed = 0
        self.fates: dict[int, Fate] = {}
        self.next_fates: dict[str | tuple[str, ...], Fate] = {}
        self.full = False
        self.gone = False
        self.reached = reached

    def arm(self, after: int, fate: Fate) -> None:
        """Choose the fate of a statement: the next one is 1."""
        self.fates[self.executed + after] = fate

    def heal(self) -> None:
        """Let every statement succeed from now on."""
        self.fates.clear()
        self.next_fates.clear()
        self.full = False

    @contextmanager
    def around(self, sql: str) -> Iterator[None]:
        """Execute a statement as its fate wants it."""
        if self.gone:
            raise Killed
        self.executed += 1
        fate = self.fates.pop(self.executed, None)
        for beginning in [each for each in self.next_fates if sql.startswith(each)]:
            fate = self.next_fates.pop(beginning)
        error = sqlite_error(sqlite3.SQLITE_IOERR, "disk I/O error")
        if self.full and fate is None and sql.startswith((COMMIT, FLIP, *STEP)):
            fate, error = Fate.FAIL, self.error
        if fate is not None:
            self._note(sql, fate)
        if fate is Fate.FAIL:
            raise error
        if fate is Fate.KILL:
            self._kill()
        yield
        if fate is Fate.FAIL_LATE:
            raise error
        if fate is Fate.KILL_LATE:
            self._kill()

    def _kill(self) -> None:
        self.gone = True
        raise Killed

    def _note(self, sql: str, fate: Fate) -> None:
        killed = fate in {Fate.KILL, Fate.KILL_LATE}
        if sql.startswith(COMMIT):
            self.reached[
                {
                    Fate.FAIL: "failed commit that did not happen",
                    Fate.FAIL_LATE: "failed commit that happened",
                    Fate.KILL: "killed just before a commit",
                    Fate.KILL_LATE: "killed just after a commit",
                }[fate]
            ] += 1
        elif sql.startswith(FLIP):
            when = "after" if fate in {Fate.KILL_LATE, Fate.FAIL_LATE} else "before"
            what = "killed" if killed else "failed"
            self.reached[f"{what} just {when} the flip of a checkpoint"] += 1
        elif sql.startswith(STEP):
            self.reached[f"{'killed' if killed else 'failed'} within a checkpoint"] += 1
