"""The sockets by which `trackctl claim` speaks to `hold` and `keep`: one for each run.

Programs such as ssh close every descriptor from 3 up before they run a helper, so a helper finds
the owner of the lease by a path in its environment. The sockets lie in a directory that only this
user can open. Its owner locks it, so the next owner sees which directories a crash has left.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import socket
import struct
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self

#: Bytes of one line of principals.
LONGEST_LINE: Final = 64 * 1024
#: Seconds that a helper has for its line, and to read the reply.
_PATIENCE: Final = 10.0
#: Helpers of one run that are served at once; ssh starts one after the other.
_MOST_HELPERS: Final = 16
_PREFIX: Final = "trackctl-claims-"
#: Bytes of a socket's path, and those that a directory's name and a lease's number need.
_LONGEST_PATH: Final = 107
_ROOM: Final = 50


@contextmanager
def claim_directory(say: Callable[[str], None]) -> Iterator[Path | None]:
    """Make a directory for sockets, and remove it at the end.

    Without a place for it there is none, which a sentence says: a command can also claim with its
    descriptor.
    """
    try:
        path, lock = _make()
    except OSError as error:
        say(f"trackctl claim cannot be used: {error}")
        yield None
        return
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _make() -> tuple[Path, int]:
    """Make such a directory, and return it with the descriptor that locks it.

    Raises:
        OSError: no directory can be made.
    """
    root = find_root()
    _sweep(root)
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))  # with mode 0700
        lock = _lock(path)
        if lock is not None:
            return path, lock
        # Another process took it for one that a crash has left, and removes it.


def find_root() -> Path:
    """Return where such directories are made: where the user's sockets are, else files."""
    for each in (os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir()):
        fits = len(os.fsencode(each)) + _ROOM < _LONGEST_PATH
        if each.startswith("/") and fits and os.access(each, os.W_OK):
            return Path(each)
    return Path("/tmp")  # noqa: S108 - mkdtemp is safe there


def _sweep(root: Path) -> None:
    """Remove what crashed processes of this user have left."""
    for path in root.glob(f"{_PREFIX}*"):
        lock = _lock(path)
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


def _lock(path: Path) -> int | None:
    """Lock a directory of this user; None when another process has locked or removed it."""
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    with suppress(OSError):
        if os.fstat(lock).st_uid == os.getuid():
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), path.lstat()):
                return lock
    os.close(lock)
    return None


class ClaimServer:
    """The socket of one run. A helper sends a line of principals and reads one line of reply."""

    def __init__(self, path: Path, claim: Callable[[list[str]], Awaitable[str]]) -> None:
        """Say where it is; entering the `async with` block opens it.

        Args:
            path: does not exist yet.
            claim: claims a proxy for principals, and returns the reply.
        """
        self._path = path
        self._claim = claim
        self._helpers = set[asyncio.Task[None]]()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(
            self._serve, self._path, limit=LONGEST_LINE, backlog=_MOST_HELPERS
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self._path.unlink(missing_ok=True)
        for helper in self._helpers:
            helper.cancel()
        await asyncio.gather(*self._helpers, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._helpers.add(task)
        try:
            if len(self._helpers) <= _MOST_HELPERS and _uid_of(writer) == os.getuid():
                await self._reply(reader, writer)
        except (TimeoutError, ValueError, OSError):
            pass  # it hangs, sends no line, or has ended
        finally:
            self._helpers.discard(task)
            writer.transport.abort()

    async def _reply(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one helper.

        Raises:
            TimeoutError: it hangs.
            ValueError: its line is too long.
            OSError: it has ended.
        """
        async with asyncio.timeout(_PATIENCE):
            line = await reader.readline()
        if not line.endswith(b"\n"):
            return  # it ended in the middle of its line
        reply = await self._claim(line.decode(errors="replace").split())
        writer.write(f"{reply}\n".encode())
        writer.close()
        async with asyncio.timeout(_PATIENCE):
            await writer.wait_closed()  # all is written


def _uid_of(writer: asyncio.StreamWriter) -> int:
    """Return the user on the other side of a connection."""
    peer = writer.get_extra_info("socket")
    packed = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", packed)[1])
