"""The mark: the number of the newest journal row, and notes, in a file of its own beside the store.

SQLite believes a WAL up to the first frame that is not valid, and a missing WAL is an empty one.
So a WAL that was damaged, cut or removed would take acknowledged changes back silently. The
mark is written after each commit and before its replies; a store that is behind its mark has lost
something. Like the store it must outlive the process, not the boot.

After the number come *notes*: which requests a session is done with. An agent that asks for a lease
in vain, over and over, changes nothing but that; a note costs a tenth of a commit.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

from trackd.host.own_files import open_own_file

FILE_NAME = "trackd.mark"
_ROW = struct.Struct(">Q")
_SUM = struct.Struct(">I")
#: A note: the token, how many numbers follow, and the numbers. Its place is within one page, so
#: that no kill leaves half of one.
_NOTE = struct.Struct(">16s13Q")
_MOST_NUMBERS = 12
_PLACE = 128


class Mark:
    """The open file. It can only detect less when it cannot be written, so that is no error.

    Attributes:
        notes: the ranges of the requests that sessions are done with, by token.
    """

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
        self.notes: dict[bytes, list[int]] = {}
        self._places: dict[bytes, int] = {}
        self._free: list[int] = []
        self._end = 1  # the place after the last one
        with contextlib.suppress(OSError):
            self._read_notes()

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

    def note(self, token: bytes, ranges: Sequence[int]) -> bool:
        """Note which requests a session is done with; return whether that is written.

        Args:
            token: of the session.
            ranges: the numbers, as in `Done`.
        """
        count = len(ranges)
        if count > _MOST_NUMBERS:
            return False
        place = self._places.get(token)
        if place is None:
            place = self._free.pop() if self._free else self._end
        data = _NOTE.pack(token, count, *ranges, *(0,) * (_MOST_NUMBERS - count))
        data += _SUM.pack(zlib.crc32(data, self._seed))
        try:
            if os.pwrite(self._descriptor, data, place * _PLACE) < len(data):
                return False
        except OSError:
            return False
        self._end = max(self._end, place + 1)
        self._places[token] = place
        self.notes[token] = list(ranges)
        return True

    def forget(self, token: bytes) -> None:
        """Give the place of a note to another session: this one has ended."""
        if self.notes.pop(token, None) is not None:
            self._free.append(self._places.pop(token))

    def _read_notes(self) -> None:
        size = os.fstat(self._descriptor).st_size
        data = os.pread(self._descriptor, size, 0)
        self._end = max(1, -(-len(data) // _PLACE))
        for place in range(1, self._end):
            note = data[place * _PLACE :][: _NOTE.size + _SUM.size]
            token, ranges = self._unpack(note)
            if ranges and token not in self.notes:
                self.notes[token], self._places[token] = ranges, place
            else:
                self._free.append(place)

    def _unpack(self, data: bytes) -> tuple[bytes, list[int]]:
        if len(data) < _NOTE.size + _SUM.size:
            return b"", []
        (found,) = _SUM.unpack_from(data, _NOTE.size)
        if found != zlib.crc32(data[: _NOTE.size], self._seed):
            return b"", []
        token, count, *numbers = _NOTE.unpack_from(data)
        return token, numbers[:count]

    def close(self, *, remove: bool) -> None:
        """Close the file.

        Args:
            remove: whether to remove it, since the store has no WAL left to lose; it stays while
                there are notes.
        """
        if remove and not self.notes:
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(self._descriptor), self._path.lstat()):
                    self._path.unlink()
        os.close(self._descriptor)
