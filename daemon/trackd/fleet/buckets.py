"""Buckets: what a checkpoint of a fleet will hold, while the state goes on. Pure.

A checkpoint is the state as it was when it began, in buckets that are packed one after the other.
Whoever edits something calls `touch` before: when its bucket is not packed yet, its value is kept
aside for that.
"""

from __future__ import annotations

from collections.abc import Iterable

from trackd.fleet.rows import BUCKETS, bucket_of, pack, pack_bucket
from trackd.storage.store import Key, RowOf


class Buckets:
    """The keys of all things, by bucket, and the buckets of the checkpoint under way."""

    def __init__(self, row_of: RowOf) -> None:
        """Know no key, and begin no checkpoint.

        Args:
            row_of: returns the present value of a key, or None when the thing is gone.
        """
        self._row_of = row_of
        self._number: dict[Key, int] = {}
        self._keys: list[set[Key]] = [set() for _ in range(BUCKETS)]
        self._todo: set[int] = set()
        self._aside: dict[Key, bytes | None] = {}

    def add(self, key: Key) -> int:
        """Know a key, and return its bucket."""
        number = self._number.get(key)
        if number is None:
            number = self._number[key] = bucket_of(key)
            self._keys[number].add(key)
        return number

    def touch(self, keys: Iterable[Key]) -> None:
        """Note that the things of these keys are about to be edited, or created."""
        for key in keys:
            if self.add(key) in self._todo and key not in self._aside:
                self._aside[key] = self._packed(key)

    def begin(self) -> None:
        """Begin a checkpoint of the present state."""
        self._todo = {number for number, keys in enumerate(self._keys) if keys}
        self._aside.clear()

    @property
    def is_packed(self) -> bool:
        """Whether all buckets of the checkpoint are packed."""
        return not self._todo

    def pack_next(self) -> tuple[int, list[bytes]]:
        """Pack one of the buckets that are not packed yet; return its number and its parts."""
        number = self._todo.pop()
        rows = []
        for key in list(self._keys[number]):
            value = self._aside.pop(key) if key in self._aside else self._packed(key)
            if value is not None:
                rows.append((key, value))
            if self._row_of(key) is None:
                self._keys[number].remove(key)
                del self._number[key]
        return number, pack_bucket(rows)

    def _packed(self, key: Key) -> bytes | None:
        value = self._row_of(key)
        return None if value is None else pack(value)
