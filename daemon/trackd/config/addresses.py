"""The address of the HTTP listener: on loopback, or a unix socket with its own mode.

This module reads an address and reports what is wrong with it. It opens nothing.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Final, NamedTuple

from trackd_client.wire.places import PlaceError, check_ipc_path

UNIX: Final = "unix:"
EXAMPLES: Final = "127.0.0.1:9440, [::1]:9440, localhost:9440 or unix:/PATH"

_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.%]*\]|[^\[\]:/]*)(?::(\d{1,9}))?")


class AddressError(ValueError):
    """HTTP cannot be served at an address; the message continues after the address."""


class Address(NamedTuple):
    """An address of the HTTP listener.

    Attributes:
        hosts: loopback addresses; the first must exist on the host; empty for a unix socket.
        port: the TCP port.
        path: the path of the unix socket, or None.
    """

    hosts: tuple[str, ...] = ()
    port: int = 0
    path: Path | None = None


def parse_address(text: str) -> Address:
    """Read an address.

    Raises:
        AddressError: the text is not an address, or other hosts could reach it.
    """
    if text.startswith(UNIX):
        return Address(path=_path(text.removeprefix(UNIX)))
    if "/" in text:
        raise AddressError(f"is neither an address nor unix:/PATH; write {EXAMPLES}")
    found = _HOST.fullmatch(text)
    if found is None or found[2] is None:
        raise AddressError(f"is not HOST:PORT; write {EXAMPLES}")
    host, port = found[1], int(found[2])
    if not 1 <= port <= 65_535:
        raise AddressError(f"has no port from 1 to 65535; write {EXAMPLES}")
    if host == "localhost":
        return Address(("127.0.0.1", "::1"), port)
    if not is_loopback(host):
        raise AddressError(f"is not on loopback, and other hosts could read it; write {EXAMPLES}")
    return Address((host.strip("[]"),), port)


def is_loopback(host: str) -> bool:
    """Return whether a host of an address or a URL is a loopback address."""
    bracketed = host.startswith("[")
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return address.is_loopback and bracketed == (address.version == 6)


def is_local(host: str) -> bool:
    """Return whether a Host header, with a port or without, names this host only.

    A foreign name may resolve to loopback, and a foreign page would then read what is served
    here (DNS rebinding). Such a request has that name in Host.
    """
    found = _HOST.fullmatch(host)
    return found is not None and (found[1].lower() == "localhost" or is_loopback(found[1]))


def _path(path: str) -> Path:
    if not path.startswith("/"):
        raise AddressError("is not an absolute path after unix:; write unix:/PATH")
    try:
        return check_ipc_path(path)
    except PlaceError as error:
        raise AddressError(f"cannot be served: {error}") from None
