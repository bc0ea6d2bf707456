"""What systemd and the daemon tell each other: the socket, readiness, reloads, signs of life.

Plain environment variables and datagrams (man 3 sd_notify, sd_listen_fds, sd_watchdog_enabled),
so that nothing has to be compiled. Without systemd each of them says nothing and does nothing.
This module never decides anything: `trackd.server` does.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from trackd.config.exits import UnusableError

#: The first descriptor that systemd passes.
_FIRST_FD: Final = 3


class Notifier:
    """Tells the service manager how the service is.

    Attributes:
        watchdog: seconds within which each sign of life must follow the last, or None.
        wanted: whether anybody listens.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Read who listens.

        Args:
            environ: the process's environment.
        """
        self._address = environ.get("NOTIFY_SOCKET", "")
        self.wanted = bool(self._address)
        if self._address.startswith("@"):
            self._address = f"\0{self._address[1:]}"  # an abstract socket
        self.watchdog = _watchdog_seconds(environ) if self.wanted else None

    def ready(self) -> None:
        """Requests are answered, or are again after a reload."""
        self._tell("READY=1")

    def reloading(self) -> None:
        """A reload has begun; `ready` ends it."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The end has begun."""
        self._tell("STOPPING=1\nSTATUS=stopping")

    def status(self, line: str) -> None:
        """Say in one line how things are, for `systemctl status`."""
        self._tell(f"STATUS={line.replace(chr(10), ' ')}")

    def alive(self) -> None:
        """Give a sign of life to the watchdog."""
        self._tell("WATCHDOG=1")

    def _tell(self, text: str) -> None:
        if not self.wanted:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
            try:
                out.connect(self._address)
                out.send(text.encode(errors="replace"))
            except OSError:
                # Whoever listened is gone. Its watchdog and its timeouts decide what follows.
                return


def listening_socket(environ: Mapping[str, str], path: Path) -> int | None:
    """Return the descriptor of the socket that systemd listens on for us, or None.

    Args:
        environ: the process's environment.
        path: where the socket must be.

    Raises:
        UnusableError: what was passed is not a listening socket at that path.
    """
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return None  # not meant for us: inherited from a shell, say
    count = environ.get("LISTEN_FDS", "")
    if count != "1":
        raise UnusableError(f"systemd passes {count or 'no'} sockets; the daemon serves one")
    with socket.socket(fileno=os.dup(_FIRST_FD)) as passed:
        os.set_inheritable(_FIRST_FD, False)
        unix = passed.family == socket.AF_UNIX and passed.type == socket.SOCK_STREAM
        if not unix or not passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise UnusableError("systemd passes something else than a listening unix socket")
        at = passed.getsockname()
    if not isinstance(at, str) or os.path.realpath(at) != os.path.realpath(path):
        raise UnusableError(
            f"systemd listens on {at!r}, but the endpoint is {str(path)!r}; give both the same"
        )
    os.set_blocking(_FIRST_FD, False)  # libzmq accepts until nobody is left
    return _FIRST_FD


def _watchdog_seconds(environ: Mapping[str, str]) -> float | None:
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if microseconds.isdigit() and int(microseconds) else None
