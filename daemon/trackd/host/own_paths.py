"""OwnPaths: every path that the daemon created, and whether its own file is still there.

A path says nothing about who owns what is at it: somebody may have removed the daemon's file, and
another daemon, or a person, may have put something else in its place. So the daemon notes device
and inode of each file that it creates. It looks at them about once a second (`trackd.guard`), and
before it removes anything. The daemon has each of these files open, so no other file can get the
same inode meanwhile.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import NamedTuple


class OwnPath(NamedTuple):
    """A file that the daemon created.

    Attributes:
        what: what it is, for the log: "socket", "lock", "state".
        device: where its inode is.
        inode: its number.
        mode: its type and permissions when it was noted.
        gid: its group then.
    """

    what: str
    device: int
    inode: int
    mode: int
    gid: int


class OwnPaths:
    """The paths of one daemon. Any thread may call any method."""

    def __init__(self) -> None:
        self._known: dict[Path, OwnPath] = {}

    def add(self, path: Path, what: str) -> None:
        """Note the file that is now at a path as the daemon's own.

        Raises:
            OSError: there is none.
        """
        found = path.lstat()
        self._known[path] = OwnPath(
            what, found.st_dev, found.st_ino, found.st_mode & 0o7777, found.st_gid
        )

    def get(self, path: Path) -> OwnPath | None:
        """Return what is known of the daemon's own file at a path."""
        return self._known.get(path)

    def discard(self, path: Path) -> None:
        """Forget a path: it may change from now on."""
        self._known.pop(path, None)

    def is_own(self, path: Path) -> bool:
        """Return whether the daemon's own file is at a path.

        Raises:
            OSError: that cannot be found out; for a path without a file it is False.
        """
        known = self._known.get(path)
        if known is None:
            return False
        try:
            found = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return (found.st_dev, found.st_ino) == (known.device, known.inode)

    def is_linked(self, path: Path) -> bool:
        """Return whether the daemon's own file at a path has a second name, a hard link.

        Raises:
            OSError: that cannot be found out.
        """
        return self.is_own(path) and path.lstat().st_nlink > 1

    def find_lost(self) -> dict[Path, str]:
        """Return the paths at which the daemon's own file no longer is, and what each was.

        A file with a second name is lost too, unless it is a socket: others could read what is
        written to it, and the next start would refuse it. A path that cannot be looked at is not
        lost.
        """
        lost = {}
        for path, known in list(self._known.items()):
            with contextlib.suppress(OSError):
                if not self.is_own(path) or (known.what != "socket" and self.is_linked(path)):
                    lost[path] = known.what
        return lost

    def remove(self, path: Path) -> None:
        """Remove the daemon's own file from a path, and forget the path.

        What else is there stays. A file that cannot be removed stays too.
        """
        with contextlib.suppress(OSError):
            if self.is_own(path):
                path.unlink()
        self.discard(path)
