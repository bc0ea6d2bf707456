"""Opening a file that is the daemon's own, where others may have prepared the place.

Who can write to a directory can put a symbolic link, a hard link, a FIFO or a file of their own
at a path that a daemon of root will open. Nothing here follows or uses one of these.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
from pathlib import Path


def open_own_file(path: Path, flags: int = 0) -> int:
    """Open or create a file that only the daemon's user can read, and return its descriptor.

    Args:
        path: the file.
        flags: more flags for `os.open`.

    Raises:
        OSError: it cannot be opened, or is not the daemon's own; its text says what to do.
    """
    # O_NONBLOCK: a FIFO in its place must not hang us.
    flags |= os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    check_own_path(path)  # before the kernel refuses it with less to say
    descriptor = os.open(path, flags, 0o600)
    try:
        _check(os.fstat(descriptor), path)
        if stat.S_IMODE(os.fstat(descriptor).st_mode) & 0o077:
            os.fchmod(descriptor, 0o600)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_own_path(path: Path) -> None:
    """Check that what is at a path, if anything, can be the daemon's own file.

    Raises:
        OSError: it cannot be, or cannot be looked at.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    _check(found, path)


def check_own_descriptor(descriptor: int, path: Path) -> None:
    """Check that an open file can be the daemon's own.

    Raises:
        OSError: it cannot be.
    """
    _check(os.fstat(descriptor), path)


def find_directory_problem(directory: Path) -> str | None:
    """Return why the daemon cannot trust a directory with its state, or None.

    Raises:
        OSError: it cannot be looked at.
    """
    link, found = directory.lstat(), directory.stat()
    for each in (link, found):
        if each.st_uid not in {0, os.geteuid()}:
            return f"belongs to {name_user(each.st_uid)}, who could replace the files in it"
    if found.st_mode & stat.S_IWOTH:
        return "can be written to by every user"
    if found.st_mode & stat.S_IWGRP:
        return f"can be written to by the group {found.st_gid}"
    return None


def name_user(uid: int) -> str:
    """Return how people call a user."""
    try:
        return f"the user {pwd.getpwuid(uid).pw_name!r}"
    except KeyError:
        return f"the uid {uid}"


def _check(found: os.stat_result, path: Path) -> None:
    problem = ""
    if stat.S_ISLNK(found.st_mode):
        problem = "is a symbolic link, and trackd follows none here"
    elif not stat.S_ISREG(found.st_mode):
        problem = "is not a regular file"
    elif found.st_uid != os.geteuid():
        problem = f"belongs to {name_user(found.st_uid)}"
    elif found.st_nlink > 1:
        problem = f"has {found.st_nlink} names (hard links)"
    if problem:
        raise OSError(errno.EPERM, f"{path} {problem}; move it away, or choose another place")
