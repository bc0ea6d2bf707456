"""`trackd ping`: does the daemon answer? For probes that run every few seconds.

One request over a plain socket, with nothing imported but what Python has loaded anyway: a probe
of a container must not cost what the daemon saves. It speaks as much of ZMTP 3 as one `ping` of
docs/protocol.md needs. It never opens a session, and changes nothing.
"""

import os
import socket
import sys
import time

_USAGE = """\
usage: trackd ping [--endpoint ENDPOINT] [--timeout SECONDS]

Exits with 0 when the daemon answers a request, and with 3 when it does not within the time [1].
The endpoint is that of $TRACKD_ENDPOINT, or where clients look. With one of both it takes
milliseconds.

examples:
  trackd ping --endpoint /run/trackd/example.com/trackd.sock
  TRACKD_ENDPOINT=ipc:///run/trackd/trackd.sock trackd ping --timeout 5
"""
_OK = 0
_USAGE_ERROR = 2
_NO_DAEMON = 3

#: Signature, version 3.0, the mechanism NULL, not as a server.
_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_READY = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
#: [1, 1, {"op": "ping", "seq": 1}]
_REQUEST = b"\x93\x01\x01\x82\xa2op\xa4ping\xa3seq\x01"
#: What every reply begins with: [1, 2, ...
_REPLY = b"\x93\x01\x02"
_COMMAND = 4
_LONG = 2


class _Silent(Exception):
    """No daemon answers; the text says why."""


def main(argv: list[str]) -> int:
    """Run `trackd ping` with its arguments, and return the exit code."""
    options = {"--endpoint": "", "--timeout": "1"}
    words = [part for word in argv for part in (word.split("=", 1) if word[:2] == "--" else [word])]
    if {"-h", "--help"} & set(words):
        sys.stdout.write(_USAGE)
        return _OK
    while words:
        name = words.pop(0)
        if name not in options or not words:
            return _fail(f"unexpected argument: {name} (see trackd ping --help)", _USAGE_ERROR)
        options[name] = words.pop(0)
    try:
        seconds = float(options["--timeout"])
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        return _fail("--timeout must be a finite number greater than 0", _USAGE_ERROR)
    endpoint = options["--endpoint"] or os.environ.get("TRACKD_ENDPOINT", "") or _default()
    path = endpoint.removeprefix("ipc://")
    try:
        _ping(path, time.monotonic() + seconds)
    except (OSError, ValueError, _Silent) as error:
        if why := _problem(endpoint):
            return _fail(why, _USAGE_ERROR)
        why = getattr(error, "strerror", None) or str(error) or "no answer in time"
        return _fail(f"no trackd daemon answers at {path}: {why}", _NO_DAEMON)
    return _OK


def _default() -> str:
    """Return the endpoint where clients look; this imports more."""
    from trackd_client.wire.places import client_endpoint

    return client_endpoint()


def _problem(endpoint: str) -> str:
    """Return why an endpoint cannot be one, or ""; this imports more."""
    from trackd_client.wire.places import PlaceError, check_ipc_path

    try:
        check_ipc_path(endpoint)
    except PlaceError as error:
        return str(error)
    return ""


def _fail(sentence: str, code: int) -> int:
    sys.stderr.write(f"trackd: error: {sentence}\n")
    return code


def _ping(path: str, deadline: float) -> None:
    """Send one request, and return when its reply is there.

    Args:
        path: of the socket.
        deadline: of the monotonic clock.

    Raises:
        OSError: the socket cannot be reached, or the time is over.
        _Silent: the other side closed the connection, or refused the request.
    """
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(max(0.001, deadline - time.monotonic()))
        peer.connect(path)
        peer.sendall(_GREETING + bytes((_COMMAND, len(_READY))) + _READY)
        _read(peer, len(_GREETING), deadline)
        asked = False
        while True:
            flags = _read(peer, 1, deadline)[0]
            size = int.from_bytes(_read(peer, 8 if flags & _LONG else 1, deadline), "big")
            frame = _read(peer, size, deadline)
            if flags & _COMMAND:
                if not asked:  # READY has come: libzmq takes what comes sooner for the handshake
                    peer.sendall(bytes((0, len(_REQUEST))) + _REQUEST)
                asked = True
                continue
            if not frame.startswith(_REPLY) or b"\xa5error" in frame:
                raise _Silent("it does not answer as a trackd daemon does")
            return


def _read(peer: socket.socket, size: int, deadline: float) -> bytes:
    """Return exactly so many bytes."""
    data = b""
    while len(data) < size:
        peer.settimeout(max(0.001, deadline - time.monotonic()))
        part = peer.recv(size - len(data))
        if not part:
            raise _Silent("it closed the connection")
        data += part
    return data
