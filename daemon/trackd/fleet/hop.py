"""A request of an agent on its way from the relay of its host to the leader. Pure.

The relay sends one frame: a msgpack array with the agent's own frame untouched,

    [number, [uid, gid, pid, start, command, admin, remaining], frame]

The number is the relay's own. The reply carries it, so that the relay knows whose it is. A newer
relay may append to both arrays; what follows is ignored.

Whatever these bytes say, they say it for one host: the leader knows from the key of the connection
which. It believes `admin` only of hosts that are listed for it.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgpack

from trackd_client.wire.checks import MAX_UINT64, is_control, is_seconds
from trackd_client.wire.protocol import FRAME_SLACK

#: Of a command line for people to read.
MAX_COMMAND: Final = 80
#: Uids and gids; the last number means none (chown(2)).
_MAX_ID: Final = 2**32 - 2
_MAX_PID: Final = 2**31 - 1
#: Seconds until a deadline, or since; a year is as good as any more.
_MAX_REMAINING: Final = 366 * 86400.0
#: Bytes beside the agent's frame: numbers, and a command of 4 bytes a character.
_MOST_BESIDE: Final = 4096
_MAX_ARRAY: Final = 64
# What msgpack raises for bytes that are none of its own. `unpackb` has no common base class.
_DECODE_ERRORS = (ValueError, TypeError, OverflowError, msgpack.UnpackException)


class HopError(ValueError):
    """A frame is not what a relay sends; the message says what is wrong."""


class Asker(NamedTuple):
    """The process that asks, as the kernel of its host knows it.

    Attributes:
        uid: its user there.
        gid: its group there.
        pid: its process id there; 0 when the relay cannot see it.
        start: its start in clock ticks since the boot of its host; None when it is not known.
        command: its command, for people to read; may be empty.
        admin: whether the relay counts it as an administrator of its host.
        remaining: seconds until the deadline of its request when the relay sent it, less than 0
            after it; None when there is none.
    """

    uid: int
    gid: int
    pid: int
    start: int | None
    command: str
    admin: bool
    remaining: float | None


class Hop(NamedTuple):
    """A request on its way.

    Attributes:
        number: the relay's, from 1; of one connection none is there twice.
        asker: who asks.
        frame: what the agent has sent.
    """

    number: int
    asker: Asker
    frame: bytes


def encode(hop: Hop) -> bytes:
    """Return the frame of a request for the leader.

    What is too long of the command is left out, and so is more than a year of what remains.
    """
    command = "".join("?" if is_control(each) else each for each in hop.asker.command)
    remaining = hop.asker.remaining
    if remaining is not None:
        remaining = min(max(remaining, -_MAX_REMAINING), _MAX_REMAINING)
    asker = hop.asker._replace(command=command[:MAX_COMMAND], remaining=remaining)
    packed: bytes = msgpack.packb((hop.number, asker, hop.frame))
    return packed


def decode(data: bytes, max_frame: int) -> Hop:
    """Return the request in a relay's frame.

    Args:
        data: the frame.
        max_frame: bytes of the largest message that is served. A larger one gets through by as much
            as it would on the agent's own host, so that it is answered.

    Raises:
        HopError: it is not what a relay sends.
    """
    most = max_frame + FRAME_SLACK
    if len(data) > most + _MOST_BESIDE:
        raise HopError(f"it has {len(data)} bytes")
    try:
        message = msgpack.unpackb(
            data,
            max_array_len=_MAX_ARRAY,
            max_map_len=0,
            max_ext_len=0,
            max_bin_len=most,
            max_str_len=_MOST_BESIDE,
        )
    except _DECODE_ERRORS as error:
        raise HopError(f"not a msgpack message: {error}") from None
    if type(message) is not list or len(message) < 3:
        raise HopError("it is no array of number, who asks and frame")
    number, asker, frame = message[:3]
    if not _is_count(number, 1, MAX_UINT64):
        raise HopError(f"its number has to be from 1 to {MAX_UINT64}")
    if type(frame) is not bytes:
        raise HopError("the agent's frame has to be bytes")
    return Hop(number, _decode_asker(asker), frame)


def _decode_asker(value: Any) -> Asker:
    if type(value) is not list or len(value) < len(Asker._fields):
        raise HopError(f"who asks has to be an array of {', '.join(Asker._fields)}")
    asker = Asker(*value[: len(Asker._fields)])
    valid = {
        "uid": _is_count(asker.uid, 0, _MAX_ID),
        "gid": _is_count(asker.gid, 0, _MAX_ID),
        "pid": _is_count(asker.pid, 0, _MAX_PID),
        "start": asker.start is None or _is_count(asker.start, 0, MAX_UINT64),
        "command": type(asker.command) is str
        and len(asker.command) <= MAX_COMMAND
        and not any(map(is_control, asker.command)),
        "admin": type(asker.admin) is bool,
        "remaining": asker.remaining is None
        or (is_seconds(asker.remaining) and abs(asker.remaining) <= _MAX_REMAINING),
    }
    for field, is_valid in valid.items():
        if not is_valid:
            raise HopError(f"{field} is not allowed: {value[Asker._fields.index(field)]!r:.100}")
    return asker


def _is_count(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most
