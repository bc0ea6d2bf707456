"""Processes as the kernel knows them, and the one at the other end of a connection.

libzmq gives every frame that came over ipc a `Peer-Address` property which ends in
`uid:gid:pid`, read from SO_PEERCRED when the connection was made. (The peer chooses `User-Id`
beside it, so that is never used.)
"""

from __future__ import annotations

import errno
import os
import re
import select
from collections.abc import Sequence
from pathlib import Path

from trackd.sessions.identity import Peer

#: How many words and characters of a command line are shown.
_COMMAND_WORDS = 3
_COMMAND_CHARACTERS = 80
#: Programs whose first words name a script, and not a secret.
_INTERPRETER = re.compile(
    r"(?:python|pypy|perl|ruby|node|php|lua|(?:ba|da|z|k|a)?sh)[\d.]*", re.ASCII
)
#: Options of interpreters that are followed by no code: not `-c`, `-e`, `-E`, `-p` or `-r`.
_PLAIN_OPTION = re.compile(r"-[ABIOSXdimqsuvwx]", re.ASCII)
#: A script's path or a module's name.
_SCRIPT = re.compile(r"[\w./+][\w./+-]*")
#: Addresses that are remembered; there is one for each process that connected.
_CACHE_SIZE = 4096
#: How `pidfd_open` fails where a seccomp filter or an old kernel refuses it for good.
_PIDFD_REFUSED = frozenset({errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EINVAL})


class PeerCache(dict[str, Peer | None]):
    """The peers by their `Peer-Address`; None for one that does not end in `uid:gid:pid`."""

    def __missing__(self, address: str) -> Peer | None:
        """Parse an address that is not remembered yet, and remember it."""
        if len(self) >= _CACHE_SIZE:
            self.clear()
        peer = self[address] = parse_address(address)
        return peer


def parse_address(address: str) -> Peer | None:
    """Return the peer at the end of a `Peer-Address`, or None when there is none."""
    parts = address.rsplit(":", 3)
    if len(parts) != 4 or not all(part.isascii() and part.isdigit() for part in parts[1:]):
        return None
    uid, gid, pid = map(int, parts[1:])
    return Peer(uid, gid, pid)


def start_time(pid: int) -> int | None:
    """Return the start of a process in clock ticks since boot, or None.

    Pids are reused; a pid with its start names one process forever. None means that the process
    is gone, is a zombie, or that /proc hides it.

    Raises:
        OSError: /proc cannot be read now, for example without free descriptors.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    # The command, in parentheses, may hold anything; the fields after the last one are numbers.
    fields = stat[stat.rfind(b")") + 2 :].split()
    if len(fields) < 20:
        return None
    # A main thread that has ended looks like a zombie while other threads of its process live.
    if fields[0] in (b"Z", b"X") and int(fields[17]) < 2:
        return None
    return int(fields[19])


def has_exited(pid: int) -> bool:
    """Return whether a process is certainly gone, also where /proc hides it.

    Raises:
        OSError: the kernel cannot be asked now, for example without free descriptors.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    except OSError as error:
        if error.errno not in _PIDFD_REFUSED:
            raise
        return not _exists(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)  # readable once it has exited, reaped or not
        return bool(poll.poll(0))
    finally:
        os.close(pidfd)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def command_of(pid: int) -> str:
    """Return the command of a process for people to read, or "" when it is hidden.

    It is the program, and for an interpreter the script or module that it runs
    (`python3 agent.py`, `python3 -m agent`). Nothing else of the arguments is shown, since they
    may be secrets: no code behind `-c`, no assignment, no word of another program. A process may
    have made a whole sentence of its name; then the name of the file that it runs is shown.
    """
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
        program, *words = raw.rstrip(b"\0").decode(errors="replace").split("\0")
        if "=" in program or len(program.split()) > 1:
            program = Path(f"/proc/{pid}/comm").read_text(errors="replace").rstrip("\n")
    except OSError:
        return ""
    shown = [os.path.basename(program)]  # noqa: PTH119 - a word, not a path that is used
    if _INTERPRETER.fullmatch(shown[0]):
        shown += _script_words(words)
    text = " ".join(shown)[:_COMMAND_CHARACTERS]
    return "".join(char if char.isprintable() else "?" for char in text)


def _script_words(words: Sequence[str]) -> list[str]:
    """Return the leading words of an interpreter's arguments that name its script."""
    shown: list[str] = []
    for word in words[:_COMMAND_WORDS]:
        if _PLAIN_OPTION.fullmatch(word):
            shown.append(word)
        else:
            if _SCRIPT.fullmatch(word):
                shown.append(word)
            break
    return shown
