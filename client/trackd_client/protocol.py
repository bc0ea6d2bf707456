"""The wire, version 1: kinds, fields, limits and the codec. The daemon imports it from here.

A message is one msgpack frame, an array ``[version, kind, body]`` whose body is a map.
docs/protocol.md is normative; this module is how both sides read and write it. It knows
the shape that all messages share. What the fields of one operation may hold is the
daemon's business (`trackd.operations.dispatch`). It never does I/O.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgpack

from trackd_client.errors import Code

VERSION: Final = 1
#: Counts additions within version 1; told by `hello`.
MINOR: Final = 0

REQUEST: Final = 1
REPLY: Final = 2
NOTICE: Final = 3

TOKEN_BYTES: Final = 16
MAX_LABELS: Final = 16
MAX_LABEL_BYTES: Final = 255
MAX_UINT64: Final = 2**64 - 1
#: How far above `max_frame` a frame may be and still be answered rather than cut off.
FRAME_SLACK: Final = 64 * 1024

#: Operations that need no session.
SESSIONLESS: Final = frozenset(
    {"hello", "ping", "status", "explain", "snapshot", "log", "metrics", "config"}
)

WireEvent = tuple[int, float, float, str, Mapping[str, Any]]
"""A change: revision, CLOCK_BOOTTIME of the daemon, Unix time, kind, fields. Sent as an array."""

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


class ProtocolError(Exception):
    """A message, or a field of it, is not what the protocol says.

    Attributes:
        code: the error code for the reply.
        seq: the number of the request that it answers, or 0 when that could not be read.
        fields: more fields of the reply.
    """

    def __init__(self, code: str, message: str, seq: int = 0, **fields: Any) -> None:
        super().__init__(message)
        self.code = code
        self.seq = seq
        self.fields = fields


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
        epoch: as `hello` tells it.
        tracker_id: likewise.
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
    seq = body.get("seq") if type(body) is dict else None
    return seq if type(seq) is int and 0 < seq <= MAX_UINT64 else 0


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


def check_name(value: object, field: str, limit: int) -> str:
    """Return `value` when it is a name: 1 to `limit` bytes of UTF-8 without control characters.

    Raises:
        ProtocolError: `invalid_argument` or `limit_exceeded`, and it names the field.
    """
    text = check_text(value, field, limit)
    if not text:
        raise ProtocolError(Code.INVALID_ARGUMENT, f"{field} is empty")
    return text


def check_text(value: object, field: str, limit: int) -> str:
    """Return `value` when it is text of at most `limit` bytes without control characters.

    Raises:
        ProtocolError: `invalid_argument` or `limit_exceeded`, and it names the field.
    """
    if type(value) is not str:
        raise ProtocolError(Code.INVALID_ARGUMENT, f"{field} must be text")
    # Printable covers nearly all names in one C call; what it refuses is looked at closely.
    if not value.isprintable() and any(is_control(character) for character in value):
        raise ProtocolError(Code.INVALID_ARGUMENT, f"{field} holds a control character")
    if len(value) * 4 > limit and (size := len(value.encode())) > limit:
        raise ProtocolError(Code.LIMIT_EXCEEDED, f"{field} has {size} bytes; {limit} are allowed")
    return value


def is_control(character: str) -> bool:
    """Tell whether a character is a control character (C0, DEL or C1) or half of a surrogate."""
    point = ord(character)
    return point < 32 or 127 <= point < 160 or 0xD800 <= point < 0xE000


def check_seconds(value: object, field: str) -> float:
    """Return `value` as float seconds when it is a finite number.

    Raises:
        ProtocolError: `invalid_argument` that names the field.
    """
    if type(value) is float:
        if math.isfinite(value):
            return value
    elif type(value) is int:
        return float(value)
    raise ProtocolError(Code.INVALID_ARGUMENT, f"{field} must be a finite number of seconds")


def check_count(value: object, field: str, *, least: int = 0, most: int = MAX_UINT64) -> int:
    """Return `value` when it is an integer from `least` to `most`.

    Raises:
        ProtocolError: `invalid_argument` that names the field.
    """
    if type(value) is not int or not least <= value <= most:
        raise ProtocolError(
            Code.INVALID_ARGUMENT, f"{field} must be an integer from {least} to {most}"
        )
    return value


class Done:
    """A set of request numbers, kept as ranges: the numbers that are done with.

    On the wire it is a flat array ``[first, last, first, last, …]``, ascending, with a gap
    between one range and the next. It is short: one range that starts at 1, and another for
    each request that waits.
    """

    __slots__ = ("ranges",)

    def __init__(self, ranges: Iterable[int] = ()) -> None:
        self.ranges: list[int] = list(ranges)

    def __contains__(self, seq: int) -> bool:
        ranges = self.ranges
        i = bisect_left(ranges, seq)
        return i % 2 == 1 or (i < len(ranges) and ranges[i] == seq)

    def update(self, more: list[int], most: int | None = None) -> bool:
        """Add ranges; tell whether that changed anything.

        Args:
            more: ranges, as on the wire.
            most: ranges that the set may hold after that; None for any number.

        Raises:
            ProtocolError: `limit_exceeded`; then nothing has changed.
        """
        ranges = self.ranges
        if ranges == more:
            return False
        if more and more[:-1] == ranges[:-1]:  # nearly always: the last range has grown
            if more[-1] < ranges[-1]:
                return False
            ranges[-1] = more[-1]
            return True
        pairs = sorted(
            (both[i], both[i + 1]) for both in (ranges, more) for i in range(0, len(both), 2)
        )
        merged: list[int] = []
        for first, last in pairs:
            if merged and first <= merged[-1] + 1:
                merged[-1] = max(merged[-1], last)
            else:
                merged += (first, last)
        if most is not None and len(merged) > 2 * most:
            raise ProtocolError(
                Code.LIMIT_EXCEEDED, f"done would leave gaps between more than {most} ranges"
            )
        changed = merged != ranges
        self.ranges = merged
        return changed


def check_done(value: object, most: int) -> list[int]:
    """Return `value` when it is a flat array of at most `most` ascending ranges.

    Raises:
        ProtocolError: `invalid_argument`, or `limit_exceeded` for too many ranges.
    """
    if type(value) is list and len(value) == 2:  # nearly always
        first, last = value
        if type(first) is type(last) is int and 1 <= first <= last <= MAX_UINT64:
            return value
    if type(value) is not list or len(value) % 2:
        raise ProtocolError(Code.INVALID_ARGUMENT, "done must be an array of pairs, laid flat")
    if len(value) > 2 * most:
        raise ProtocolError(Code.LIMIT_EXCEEDED, f"done holds more than {most} ranges")
    previous = 0
    for i, number in enumerate(value):
        if type(number) is not int or number > MAX_UINT64 or number < previous + (i % 2 == 0):
            raise ProtocolError(
                Code.INVALID_ARGUMENT, "done must hold ascending ranges of request numbers from 1"
            )
        previous = number
    return value
