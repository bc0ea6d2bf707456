"""The reserve: room on the disk that the store gives up to itself when the disk is full.

A checkpoint needs room before it gives some back. So a full disk could never heal by itself.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from trackd.host.own_files import open_own_file

FILE_NAME = "trackd.reserve"
#: Bytes that are kept, as long as the disk has several times that.
RESERVE_BYTES: Final = 8 * 1024 * 1024
_TIMES: Final = 4


class Reserve:
    """The open file. A store without it works, but for a full disk."""

    def __init__(self, path: Path) -> None:
        """Open or create the file, which holds no room yet.

        Raises:
            OSError: it can be neither opened nor created.
        """
        self._path = path
        self._descriptor = open_own_file(path)
        self._kept = False

    def keep(self) -> None:
        """Keep room, unless it is kept already or the disk has too little."""
        if self._kept:
            return
        with contextlib.suppress(OSError):
            disk = os.fstatvfs(self._descriptor)
            if disk.f_bavail * disk.f_frsize < _TIMES * RESERVE_BYTES:
                return
            os.posix_fallocate(self._descriptor, 0, RESERVE_BYTES)
            self._kept = True

    def give_up(self) -> bool:
        """Give the room up, and return whether any was kept."""
        kept, self._kept = self._kept, False
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
        return kept

    def close(self) -> None:
        """Close and remove the file."""
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(self._descriptor), self._path.lstat()):
                self._path.unlink()
        os.close(self._descriptor)
