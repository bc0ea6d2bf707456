"""What the parts of the SQLite store share: transactions, and sealed values."""

from __future__ import annotations

import contextlib
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import msgpack

from trackd.storage.store import DamagedError

Connect = Callable[[str], sqlite3.Connection]

#: SQLite's result codes that are about the disk or permissions, not about the file's content.
OUTSIDE = frozenset(
    {
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOLFS,
        sqlite3.SQLITE_AUTH,
    }
)


def connect(path: str) -> sqlite3.Connection:
    """Open an SQLite file in autocommit mode; the store begins its transactions itself."""
    return sqlite3.connect(path, isolation_level=None, timeout=0.0)


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Commit what the block does, or nothing of it."""
    end_transaction(db)
    try:
        db.execute("BEGIN")
        yield
        db.execute("COMMIT")
    except BaseException:
        end_transaction(db)
        raise


def end_transaction(db: sqlite3.Connection) -> None:
    """Roll back what a failed step left open; else the next commit would be part of it."""
    if db.in_transaction:
        db.execute("ROLLBACK")


@contextlib.contextmanager
def reading(to_error: Callable[[sqlite3.Error], Exception]) -> Iterator[None]:
    """Raise the errors of the store for what goes wrong while the block reads.

    Args:
        to_error: returns the error to raise for one of SQLite.

    Raises:
        DamagedError: what was read makes no sense.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise to_error(error) from None
    except (ValueError, TypeError, AttributeError, msgpack.UnpackException) as error:
        raise DamagedError(f"unreadable: {error}") from None


def code_of(error: sqlite3.Error) -> int | None:
    """Return the primary result code of SQLite, or None when it gave none."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def pack(value: Any) -> bytes:
    """Return a value as bytes."""
    packed: bytes = msgpack.packb(value)
    return packed


def unpack(blob: bytes) -> Any:
    """Return the value in some bytes, with tuples for arrays."""
    return msgpack.unpackb(blob, strict_map_key=False, use_list=False)


def seal(packed: bytes, place: bytes = b"") -> bytes:
    """Return bytes with a checksum, since SQLite has none: a damaged value is never used.

    Args:
        packed: the bytes.
        place: where they are stored; the checksum is wrong at any other place.
    """
    return zlib.crc32(packed, zlib.crc32(place)).to_bytes(4, "big") + packed


def unseal(sealed: bytes, place: bytes = b"") -> bytes:
    """Return bytes that were sealed.

    Raises:
        ValueError: they are damaged, or were stored at another place.
    """
    packed = sealed[4:]
    if zlib.crc32(packed, zlib.crc32(place)).to_bytes(4, "big") != sealed[:4]:
        raise ValueError("a checksum is wrong")
    return packed
