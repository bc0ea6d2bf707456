"""The mark: the number of the newest journal row, in a file of its own beside the store.

SQLite believes a WAL up to the first frame that is not valid, and a missing WAL is an empty one.
So a WAL that was damaged, cut or removed would take acknowledged changes back silently. The
mark is written after each commit and before its replies; a store that is behind its mark has lost
something. Like the store it must outlive the process, not the boot.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from pathlib import Path

from trackd.host.own_files import open_own_file

FILE_NAME = "trackd.mark"
_ROW = struct.Struct(">Q")
_SUM = struct.Struct(">I")


class Mark:
    """The open file. It can only detect less when it cannot be written, so that is no error."""

    def __init__(self, path: Path, boot_id: str) -> None:
        """Open or create the file.

        Args:
            path: the file.
            boot_id: of the running kernel; a mark of another boot says nothing.

        Raises:
            OSError: it can be neither opened nor created.
        """
        self._path = path
        self._seed = zlib.crc32(boot_id.encode())
        self._descriptor = open_own_file(path)

    def read(self) -> int:
        """Return the number of the newest row that was committed; 0 when that is not known."""
        try:
            data = os.pread(self._descriptor, _ROW.size + _SUM.size, 0)
            (row,), (found,) = _ROW.unpack_from(data), _SUM.unpack_from(data, _ROW.size)
        except (OSError, struct.error):
            return 0
        return int(row) if found == zlib.crc32(data[: _ROW.size], self._seed) else 0

    def write(self, row: int) -> None:
        """Keep the number of the newest row."""
        data = _ROW.pack(row)
        with contextlib.suppress(OSError):
            os.pwrite(self._descriptor, data + _SUM.pack(zlib.crc32(data, self._seed)), 0)

    def close(self, *, remove: bool) -> None:
        """Close the file.

        Args:
            remove: whether to remove it, since the store has no WAL left to lose.
        """
        if remove:
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(self._descriptor), self._path.lstat()):
                    self._path.unlink()
        os.close(self._descriptor)
