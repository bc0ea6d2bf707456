"""The interface to systemd: the passed socket, readiness, reloads, the watchdog.

It uses environment variables and datagrams (man 3 sd_notify, sd_listen_fds, sd_watchdog_enabled),
and no compiled library. Without systemd everything here does nothing. `trackd.server` and
`trackd.overseer` decide what to report.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from trackd.config.exits import UnusableError, reason_of

#: The first descriptor that systemd passes.
_FIRST_FD: Final = 3


class Notifier:
    """Reports the state of the service to the service manager.

    Attributes:
        watchdog: seconds within which `alive` must be called again, or None without a watchdog.
        wanted: whether a service manager listens.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Read the address of the service manager.

        Args:
            environ: the process's environment.
        """
        self._address = environ.get("NOTIFY_SOCKET", "")
        self.wanted = bool(self._address)
        if self._address.startswith("@"):
            self._address = f"\0{self._address[1:]}"  # an abstract socket
        self.watchdog = _watchdog_seconds(environ) if self.wanted else None

    def ready(self) -> None:
        """Report that requests are answered, at the start or after a reload."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Report that a reload has begun; `ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Report that the daemon is stopping."""
        self._send("STOPPING=1\nSTATUS=stopping")

    def status(self, line: str) -> None:
        """Report one line of status, which `systemctl status` shows."""
        self._send(f"STATUS={line.replace(chr(10), ' ')}")

    def alive(self) -> None:
        """Report to the watchdog that the daemon is alive."""
        self._send("WATCHDOG=1")

    def _send(self, text: str) -> None:
        if not self.wanted:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
            try:
                out.connect(self._address)
                out.send(text.encode(errors="replace"))
            except OSError:
                # The service manager is gone. Its watchdog and timeouts decide what follows.
                return


def listening_socket(environ: Mapping[str, str], path: Path) -> int | None:
    """Return the descriptor of the listening socket that systemd passed, or None.

    Args:
        environ: the process's environment.
        path: the path that the socket must have.

    Raises:
        UnusableError: systemd passed something other than a listening socket at that path.
    """
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return None  # meant for another process, such as a parent shell
    count = environ.get("LISTEN_FDS", "")
    if count != "1":
        raise UnusableError(f"systemd passes {count or 'no'} sockets; the daemon serves one")
    try:
        passed = socket.socket(fileno=os.dup(_FIRST_FD))
    except OSError as error:
        raise UnusableError(
            f"systemd passes no socket as descriptor {_FIRST_FD}: {reason_of(error)}"
        ) from None
    with passed:
        os.set_inheritable(_FIRST_FD, False)
        unix = passed.family == socket.AF_UNIX and passed.type == socket.SOCK_STREAM
        if not unix or not passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise UnusableError("systemd passes something other than a listening unix socket")
        at = passed.getsockname()
    if not isinstance(at, str) or os.path.realpath(at) != os.path.realpath(path):
        raise UnusableError(
            f"systemd listens on {at!r}, but the endpoint is {str(path)!r}; give both the same"
        )
    os.set_blocking(_FIRST_FD, False)  # libzmq accepts until no connection is left
    return _FIRST_FD


def _watchdog_seconds(environ: Mapping[str, str]) -> float | None:
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if microseconds.isdigit() and int(microseconds) else None
