"""What `trackctl claim` does, without click: ssh runs it in the midst of each dial.

A helper of a run asks the owner of its lease, over the socket of `claim_socket`.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from typing import Final

from trackd_client.cli.exit_codes import FAILED, NO_DAEMON
from trackd_client.cli.text import escape

#: The variable in which a command and its helpers find the socket of their run.
VARIABLE: Final = "TRACKD_CLAIM_SOCKET"
#: Seconds that the owner has to answer, unless `--timeout` says something else.
TIMEOUT: Final = 5.0


def main(arguments: Sequence[str]) -> int | None:
    """Claim for arguments that are only names, and return the exit code; None: they are not."""
    if not arguments or any(each.startswith("-") or not is_name(each) for each in arguments):
        return None
    code, problem = claim(arguments, TIMEOUT)
    if problem:
        sys.stderr.write(f"trackctl: {escape(problem)}\n")
    return code


def is_name(word: str) -> bool:
    """Return whether a word can be a principal: it is not empty and has no blank in it."""
    return word.split() == [word]


def claim(principals: Sequence[str], timeout: float) -> tuple[int, str]:
    """Claim the proxy that a dial reached; return the exit code, and what is wrong or ""."""
    path = os.environ.get(VARIABLE)
    if not path:
        return NO_DAEMON, f"${VARIABLE} is not set: this is no run of hold or keep"
    try:
        reply = ask(path, principals, timeout)
    except OSError as error:
        return NO_DAEMON, f"the owner of this run does not answer: {error}"
    result, _, rest = reply.partition(" ")
    if result == "claimed":
        return 0, ""
    return FAILED, f"another lease holds {rest}" if result == "held" else reply


def ask(path: str, principals: Sequence[str], timeout: float) -> str:
    """Ask the owner of a run to claim a proxy, and return its reply.

    Raises:
        OSError: it does not answer.
    """
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(timeout)
        asking.connect(path)
        asking.sendall(f"{' '.join(principals)}\n".encode())
        reply = b""
        while chunk := asking.recv(4096):
            reply += chunk
    if not reply.endswith(b"\n"):
        raise ConnectionError("it hung up without a reply")
    return reply.decode(errors="replace").rstrip("\n")
