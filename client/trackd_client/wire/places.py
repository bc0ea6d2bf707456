"""Where things are: the daemon's socket, and the directory of its state.

Client and daemon both ask this module, so that they cannot disagree. The client looks for
`trackd.sock` in the directory of its cluster, then in `/run/trackd/default`, then in
`$XDG_RUNTIME_DIR/trackd/default`; the daemon makes it in one of these.

It looks whether a socket exists and does nothing else: it never creates, opens or removes
anything, and imports nothing but the standard library.
"""

from __future__ import annotations

import os
import re
import stat
import string
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEME: Final = "ipc://"
SOCKET_NAME: Final = "trackd.sock"
#: The socket of events stands beside that of requests; its name has this at the end.
EVENTS_SUFFIX: Final = ".events"
#: Holds one directory for each cluster of the host, and `default`.
RUN: Final = Path("/run/trackd")
#: sun_path has 108 bytes, and the last is a NUL (man 7 unix).
MAX_PATH_BYTES: Final = 107
#: Bytes that the escaped name of a cluster may have below RUN: 83.
MAX_NAME_BYTES: Final = MAX_PATH_BYTES - len(f"{RUN}//{SOCKET_NAME}")

_PLAIN: Final = frozenset(string.ascii_letters + string.digits + ":_.")
_ESCAPED: Final = tuple(
    "-" if chr(byte) == "/" else chr(byte) if chr(byte) in _PLAIN else f"\\x{byte:02x}"
    for byte in range(256)
)
_ESCAPE: Final = re.compile(rb"\\x([0-9a-fA-F]{2})|(\\)")


class PlaceError(ValueError):
    """A socket or directory cannot be where it was said to be; the message says what to do."""


def escape(name: str) -> str:
    r"""Return `name` as systemd writes it in the instance part of a unit's name.

    "/" becomes "-"; every byte of UTF-8 other than ASCII letters, digits, ":", "_" and "."
    becomes a `\xXX` of lower-case hexadecimal digits, and so does a "." at the beginning
    (systemd.unit(5), "String escaping for inclusion in unit names"). What comes out is a plain
    file name: it is never "." or "..", and holds no "/".

    Raises:
        PlaceError: the name is not text, or holds a NUL, which no file name can.
    """
    try:
        raw = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise PlaceError(f"{name!r} is not text: it holds half of a surrogate pair") from None
    if b"\0" in raw:
        raise PlaceError(f"{name!r} holds a NUL byte, which a file name cannot")
    escaped = "".join(_ESCAPED[byte] for byte in raw)
    return f"\\x2e{escaped[1:]}" if escaped.startswith(".") else escaped


def unescape(name: str) -> str:
    r"""Return what `escape` was given.

    Raises:
        PlaceError: a backslash does not begin a `\xXX`, or one stands for a NUL.
    """

    def byte(match: re.Match[bytes]) -> bytes:
        if match[2] or match[1] == b"00":
            raise PlaceError(
                f"{name!r} is not what systemd-escape writes: "
                "a backslash begins an x and two hexadecimal digits, not 00"
            )
        return bytes.fromhex(match[1].decode())

    raw = name.encode("utf-8", "surrogateescape").replace(b"-", b"/")
    return _ESCAPE.sub(byte, raw).decode("utf-8", "surrogateescape")


def check_ipc_path(endpoint: str) -> Path:
    """Return the path of the socket that an `ipc://` endpoint or a bare path names.

    Raises:
        PlaceError: another transport, no path, an abstract socket, or a path that is too long.
    """
    path = endpoint.removeprefix(SCHEME)
    if path == endpoint and "://" in endpoint:
        raise PlaceError(
            f"{endpoint!r} is not an ipc endpoint: trackd serves a unix socket alone; "
            "write ipc:///PATH or the bare path"
        )
    if not path or path.endswith("/") or "\0" in path:
        raise PlaceError(f"{endpoint!r} does not name a socket; write ipc:///PATH or the bare path")
    if path.startswith("@"):
        raise PlaceError(
            f"{endpoint!r} is an abstract socket, which has no permissions: everybody on the host "
            "could open it; write ipc:///PATH"
        )
    if path == "*":
        raise PlaceError(f"{endpoint!r} lets chance choose the path; write ipc:///PATH")
    try:
        length = len(path.encode())
    except UnicodeEncodeError:
        raise PlaceError(f"{endpoint!r} is not UTF-8, as ZeroMQ wants its endpoints") from None
    if length > MAX_PATH_BYTES:
        raise PlaceError(
            f"{endpoint!r} is too long: the path has {length} bytes, a unix socket takes at most "
            f"{MAX_PATH_BYTES}; choose a shorter one"
        )
    return Path(path)


def client_endpoint(
    endpoint: str | None = None,
    cluster: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> str:
    """Return the endpoint that a client connects to, beginning with `ipc://`.

    The endpoint given; else `$TRACKD_ENDPOINT`; else the first `trackd.sock` that exists in
    `/run/trackd/CLUSTER` (when a cluster is given), `/run/trackd/default`,
    `$XDG_RUNTIME_DIR/trackd/default`. When none exists: where it would be, so that an error can
    name it, namely in the cluster's directory, or where a daemon of the same user would make it.

    Args:
        endpoint: `ipc://` and a path, or a bare path.
        cluster: the name of the cluster, not escaped.
        environ: the process's environment; an empty variable counts as not set.

    Raises:
        PlaceError: the endpoint, the variable or the cluster's name cannot be a place.
    """
    if endpoint is not None:
        return _given_endpoint(endpoint)
    if given := environ.get("TRACKD_ENDPOINT"):
        try:
            return _given_endpoint(given)
        except PlaceError as error:
            raise PlaceError(f"$TRACKD_ENDPOINT: {error}") from None
    if cluster == "":
        raise PlaceError("the cluster's name is empty; give None to look in the default places")
    system, own = RUN / "default", _user_directory(environ)
    # Root's daemon is the system's; everybody else has their own where they can have one.
    would_be = system if own is None or os.geteuid() == 0 else own
    directories = [system] if own is None else [system, own]
    if cluster is not None:
        would_be = RUN / escape(cluster)
        directories.insert(0, would_be)
    found = (directory for directory in directories if _is_socket(directory / SOCKET_NAME))
    return _endpoint_in(next(found, would_be))


def daemon_endpoint(environ: Mapping[str, str] = os.environ, uid: int | None = None) -> str:
    """Return the endpoint that a daemon serves when none is given.

    `trackd.sock` in `$RUNTIME_DIRECTORY` (set by systemd for a unit with RuntimeDirectory=; the
    first when there are several), in `/run/trackd/default` as root, in
    `$XDG_RUNTIME_DIR/trackd/default` otherwise.

    Args:
        environ: the process's environment.
        uid: the user that the daemon runs as; None: the effective uid of this process.

    Raises:
        PlaceError: there is no such place for this user, or its path is too long.
    """
    runtime = environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    if runtime:
        directory = Path(runtime)
    elif (os.geteuid() if uid is None else uid) == 0:
        directory = RUN / "default"
    elif own := _user_directory(environ):
        directory = own
    else:
        raise PlaceError(
            "no place for the socket: $XDG_RUNTIME_DIR is not set to an absolute path "
            "(a login session sets it); pass --endpoint ipc:///PATH"
        )
    return _endpoint_in(directory)


def daemon_state_dir(endpoint: str) -> Path:
    """Return the directory where a daemon on `endpoint` keeps its state when none is given.

    The socket's own directory when the socket has its usual name, which means that the directory
    is the daemon's; else `SOCKET.state` beside it, because two daemons may well be given
    `/tmp/a.sock` and `/tmp/b.sock`, and must not share their state.

    Raises:
        PlaceError: see `check_ipc_path`.
    """
    path = check_ipc_path(endpoint)
    return path.parent if path.name == SOCKET_NAME else path.with_name(f"{path.name}.state")


def _given_endpoint(endpoint: str) -> str:
    """Return an endpoint that a person wrote, who may have meant a cluster."""
    found = _as_endpoint(endpoint)
    if "/" not in endpoint and not endpoint.endswith(".sock") and not _is_socket(Path(endpoint)):
        raise PlaceError(
            f"{endpoint!r} is a bare name, and no socket here is called that: for a cluster pass "
            f"cluster={endpoint!r}, for a socket write a path with a slash"
        )
    return found


def _endpoint_in(directory: Path) -> str:
    """Return the endpoint of the socket in a directory, which may be that of a cluster."""
    name = os.fsencode(directory.name)
    if directory.parent == RUN and len(name) > MAX_NAME_BYTES:
        raise PlaceError(
            f"the name of the cluster is too long: as systemd escapes it, it has {len(name)} bytes,"
            f" and {MAX_NAME_BYTES} are allowed, because the path of a unix socket is limited;"
            " give the daemon and its clients an endpoint with a shorter path"
        )
    return _as_endpoint(str(directory / SOCKET_NAME))


def _as_endpoint(endpoint: str) -> str:
    check_ipc_path(endpoint)
    return SCHEME + endpoint.removeprefix(SCHEME)


def _user_directory(environ: Mapping[str, str]) -> Path | None:
    """Return the user's directory; a relative $XDG_RUNTIME_DIR is invalid and thus ignored."""
    base = Path(environ.get("XDG_RUNTIME_DIR", ""))
    return base / "trackd" / "default" if base.is_absolute() else None


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:  # absent, or in a directory that this user may not enter: no use either way
        return False
