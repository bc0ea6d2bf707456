"""The wire, version 1: kinds, fields, limits and the codec. The daemon imports it from here.

A message is one msgpack frame, an array ``[version, kind, body]`` whose body is a map.
docs/protocol.md is normative; this module is how both sides read and write it. It knows
the shape that all messages share. The fields of one operation are those of its class in
`trackd_client.wire.requests`. It never does I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgpack

from trackd_client.errors import Code
from trackd_client.wire.checks import MAX_UINT64
from trackd_client.wire.errors import ProtocolError

VERSION: Final = 1
#: Counts additions within version 1; `hello` has it.
MINOR: Final = 2

REQUEST: Final = 1
REPLY: Final = 2
NOTICE: Final = 3

TOKEN_BYTES: Final = 16
MAX_LABELS: Final = 16
MAX_LABEL_BYTES: Final = 255
#: How far above `max_frame` a frame may be and still be answered rather than cut off.
FRAME_SLACK: Final = 64 * 1024

#: Operations that need no session.
SESSIONLESS: Final = frozenset(
    {"hello", "ping", "status", "explain", "snapshot", "log", "metrics", "config", "fleet"}
)

WireEvent = tuple[int, float, float, str, Mapping[str, Any]]
"""A change: revision, CLOCK_BOOTTIME of the daemon, Unix time, kind, fields. Sent as an array."""

#: Up to here a float holds every integer exactly.
_EXACT: Final = 2.0**53
# What msgpack raises for bytes that are no message of ours. `unpackb` has no common base class.
_DECODE_ERRORS = (ValueError, TypeError, OverflowError, msgpack.UnpackException)


class Limits(NamedTuple):
    """What a daemon accepts. Told by `hello`, configurable in the daemon's `[limits]`.

    Attributes:
        max_frame: bytes of one message.
        max_proxies: proxies in one `track_expected`.
        max_principals: principals in one request.
        max_name: bytes of UTF-8 of one name.
        max_outstanding: requests of one session that wait, or whose replies are kept until
            they are done.
    """

    max_frame: int = 1024 * 1024
    max_proxies: int = 10_000
    max_principals: int = 64
    max_name: int = 255
    max_outstanding: int = 1024


class Reply(NamedTuple):
    """A decoded reply.

    Attributes:
        seq: the number of the request.
        body: all fields, the common ones included.
    """

    seq: int
    body: dict[str, Any]

    @property
    def error(self) -> str | None:
        """The error code, or None when the request succeeded."""
        code = self.body.get("error")
        return None if code is None else str(code)

    @property
    def retry_after(self) -> float | None:
        """Seconds after which another try makes sense, or None."""
        value = self.body.get("retry_after")
        return float(value) if isinstance(value, int | float) else None


def encode(kind: int, body: Mapping[str, Any]) -> bytes:
    """Return the frame of one message.

    Raises:
        ProtocolError: a value has no msgpack form (an integer beyond 64 bits, say).
    """
    try:
        frame: bytes = msgpack.packb((VERSION, kind, body))
    except (OverflowError, ValueError, TypeError) as error:
        raise ProtocolError(Code.INVALID_ARGUMENT, f"cannot be sent: {error}") from None
    return frame


def event_frame(epoch: int, tracker_id: str, revision: int, packed: Sequence[bytes]) -> bytes:
    """Return the frame of a notice that publishes events.

    Args:
        epoch: the epoch that `hello` returns.
        tracker_id: the tracker id that `hello` returns.
        revision: of the last event.
        packed: the events, each in msgpack already.
    """
    packer = msgpack.Packer(autoreset=False)
    packer.pack_array_header(3)
    packer.pack(VERSION)
    packer.pack(NOTICE)
    packer.pack_map_header(4)
    for field in ("epoch", epoch, "tracker_id", tracker_id, "revision", revision, "events"):
        packer.pack(field)
    packer.pack_array_header(len(packed))
    return b"".join((packer.bytes(), *packed))


def decode(frame: bytes) -> tuple[int, dict[str, Any]] | None:
    """Return kind and body of a frame, or None when its kind is not known and it is to be skipped.

    Elements beyond the third and unknown fields are tolerated. Where a map holds a key
    twice, the last one counts.

    Raises:
        ProtocolError: `malformed` or `unsupported_version`.
    """
    try:
        message = msgpack.unpackb(frame)
    except _DECODE_ERRORS as error:
        raise ProtocolError(Code.MALFORMED, f"not a msgpack message: {error}") from None
    if type(message) is list and len(message) == 3:  # nearly always
        version, kind, body = message
        if (
            type(version) is type(kind) is int
            and version == VERSION
            and REQUEST <= kind <= NOTICE
            and type(body) is dict
        ):
            return kind, body
    return _look_closely(message)


def _look_closely(message: Any) -> tuple[int, dict[str, Any]] | None:
    """Do what `decode` does, for a message that may be something else or newer."""
    if type(message) is not list or len(message) < 2:
        raise ProtocolError(Code.MALFORMED, "a message is an array of version, kind and body")
    version, kind = message[:2]
    if type(version) is not int:
        raise ProtocolError(Code.MALFORMED, "the protocol version is an integer")
    if version != VERSION:
        seq = peek_seq(message)
        raise ProtocolError(
            Code.UNSUPPORTED_VERSION,
            f"protocol version {version} is not spoken here; {VERSION} is",
            seq,
        )
    if kind not in (REQUEST, REPLY, NOTICE) or type(kind) is not int:
        return None
    if len(message) < 3 or type(message[2]) is not dict:
        raise ProtocolError(Code.MALFORMED, "the body of a message is a map")
    return kind, message[2]


def peek_seq(message: list[Any]) -> int:
    """Return the number of a request that cannot be served, as well as it can be read."""
    body = message[2] if len(message) > 2 else None
    return read_seq(body.get("seq")) if type(body) is dict else 0


def read_seq(value: object) -> int:
    """Return the number of a request, also when it was sent as a float; 0: it cannot be read."""
    if type(value) is float and value.is_integer() and value <= _EXACT:
        value = int(value)
    return value if type(value) is int and 0 < value <= MAX_UINT64 else 0


def decode_reply(frame: bytes) -> Reply | None:
    """Return the reply in a frame, or None for anything that is to be skipped.

    Raises:
        ProtocolError: the frame is not a message of this protocol.
    """
    decoded = decode(frame)
    if decoded is None or decoded[0] != REPLY:
        return None
    body = decoded[1]
    seq = body.get("seq")
    if type(seq) is not int:
        raise ProtocolError(Code.MALFORMED, "a reply carries the number of its request")
    return Reply(seq, body)


def error_body(seq: int, revision: int, code: str, message: str) -> dict[str, Any]:
    """Return the body of an error reply."""
    return {"seq": seq, "revision": revision, "error": code, "message": message}
