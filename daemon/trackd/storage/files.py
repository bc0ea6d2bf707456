"""StateFiles: the files of the store at their paths, and what others may have put there.

SQLite opens its files by their paths, believes what it finds, and never looks again. So this looks
before: nothing but the store's own files is opened, written or removed. What somebody else put at
one of the paths is moved aside.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from trackd.host.own_files import check_own_path, open_own_file
from trackd.host.own_paths import OwnPaths
from trackd.storage import mark, reserve

FILE_NAME = "trackd.db"
#: What follows that name in the names of the files that SQLite creates beside it.
_SUFFIXES = ("-wal", "-shm")


class StateFiles:
    """The paths of one store.

    Attributes:
        path: of the database.
        mark: of the mark.
        reserve: of the reserve.
    """

    def __init__(self, directory: Path, own: OwnPaths) -> None:
        """Only note the paths.

        Args:
            directory: the state directory.
            own: where to note the files.
        """
        self.path = directory / FILE_NAME
        self.mark = directory / mark.FILE_NAME
        self.reserve = directory / reserve.FILE_NAME
        self._own = own
        self._beside = [directory / f"{FILE_NAME}{suffix}" for suffix in _SUFFIXES]

    def create(self) -> None:
        """Create the file of the database unless it exists; check those that are there.

        It holds the tokens of sessions. SQLite gives its other files the same mode.

        Raises:
            OSError: it cannot be created or opened, or one of the files is somebody else's.
        """
        for path in (*self._beside, self.mark, self.reserve):
            check_own_path(path)
        os.close(open_own_file(self.path))

    def create_new(self) -> Path:
        """Create an empty file beside the database, and return its path.

        Raises:
            OSError: it cannot be created.
        """
        new = self.path.with_name(f"{FILE_NAME}.new-{time.time_ns()}")
        os.close(open_own_file(new, os.O_EXCL))
        self._own.add(new, "state")
        return new

    def remove_new(self, new: Path) -> None:
        """Remove a file that `create_new` created."""
        self._own.remove(new)

    def note(self) -> None:
        """Note the files that are at the paths now: they are the store's own."""
        for path in (self.path, *self._beside, self.mark, self.reserve):
            self._own.discard(path)
            with contextlib.suppress(FileNotFoundError):
                self._own.add(path, "state")

    def is_whole(self, path: Path) -> bool:
        """Return whether the store's own file is still at a path, and has no other name."""
        return self._own.is_own(path) and not self._own.is_linked(path)

    def put(self, new: Path) -> None:
        """Put a new database in the place of the present one.

        Files that are not the store's own are moved aside.

        Raises:
            OSError: that is not possible.
        """
        aside = self.name_aside()
        for path in (self.path, *self._beside, self.mark, self.reserve):
            if os.path.lexists(path) and not self._own.is_own(path):
                path.rename(aside.with_name(aside.name + path.name.removeprefix(FILE_NAME)))
        for path in (*self._beside, self.mark, self.reserve):
            if path in self._beside or not self.is_whole(path):
                self._own.remove(path)
        new.rename(self.path)
        self._own.discard(new)

    def move_aside(self, aside: Path) -> None:
        """Move the database and what SQLite keeps beside it aside.

        Raises:
            OSError: that is not possible.
        """
        for path in (self.path, *self._beside):
            self._own.discard(path)  # it is not lost
            if os.path.lexists(path):
                path.rename(aside.with_name(aside.name + path.name.removeprefix(FILE_NAME)))

    def name_aside(self) -> Path:
        """Return the path for a file that is moved aside."""
        return self.path.with_name(f"{FILE_NAME}.damaged-{time.time_ns()}")

    def size(self) -> int:
        """Return the bytes of the database and its WAL."""
        total = 0
        for path in (self.path, self._beside[0]):
            with contextlib.suppress(OSError):
                total += path.stat().st_size
        return total

    def has_wal(self) -> bool:
        """Return whether there is a WAL."""
        return self._beside[0].exists()

    def close(self) -> None:
        """Forget the files: SQLite removes some of them when it closes them."""
        for path in (self.path, *self._beside, self.mark, self.reserve):
            self._own.discard(path)
