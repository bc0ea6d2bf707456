"""Checks of values that come over the wire."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeGuard

from trackd_client.errors import Code
from trackd_client.wire.errors import ProtocolError

MAX_UINT64: Final = 2**64 - 1
#: Characters of an address.
MAX_ADDRESS: Final = 255


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


def is_seconds(value: object) -> TypeGuard[float]:
    """Return whether `value` is a finite number of seconds: a float, or an int that is no bool."""
    if type(value) is float:
        return math.isfinite(value)
    try:
        return type(value) is int and math.isfinite(value)
    except OverflowError:  # an int that no float can hold
        return False


def check_seconds(value: object, field: str) -> float:
    """Return `value` as float seconds when it is a finite number.

    Raises:
        ProtocolError: `invalid_argument` that names the field.
    """
    if is_seconds(value):
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


def check_principals(value: Any, most: int, max_name: int) -> list[str]:
    """Return `value` when it is an array of at most `most` names.

    Raises:
        ProtocolError: `invalid_argument` or `limit_exceeded`.
    """
    if type(value) is not list:
        raise ProtocolError(Code.INVALID_ARGUMENT, "principals must be an array")
    if len(value) > most:
        raise ProtocolError(Code.LIMIT_EXCEEDED, f"{len(value)} principals; {most} are allowed")
    for principal in value:
        if not (  # the fast way for nearly all
            type(principal) is str
            and 0 < len(principal) <= max_name
            and principal.isascii()
            and principal.isprintable()
        ):
            check_name(principal, "a principal", max_name)
    return value


def check_row(value: Any, index: int, max_name: int) -> tuple[str, str, int, float | None]:
    """Return the name, group, generation and TTL of `value` when it is a row of gossip.

    Args:
        value: the row as it was received.
        index: its place in the message.
        max_name: bytes of its name, and of its group.

    Returns:
        The row; its TTL in seconds is None unless it is positive.

    Raises:
        ProtocolError: `invalid_argument` or `limit_exceeded`, and it names the place.
    """
    if type(value) is not list or len(value) < 4:
        raise ProtocolError(
            Code.INVALID_ARGUMENT,
            f"proxies[{index}] must be an array of name, group, generation and ttl",
        )
    name, group, generation, ttl = value[:4]
    try:
        check_name(name, "name", max_name)
        check_text(group, "group", max_name)
        if type(generation) is not int or not 0 <= generation <= MAX_UINT64:
            check_count(generation, "generation")
        if ttl is not None:
            ttl = check_seconds(ttl, "ttl")
    except ProtocolError as error:
        raise ProtocolError(error.code, f"proxies[{index}].{error}") from None
    return name, group, generation, ttl if ttl is not None and ttl > 0 else None


def more_of(row: Sequence[Any]) -> dict[str, Any]:
    """Return what a row of gossip says beside its four elements: the known keys of a fifth one.

    What is not known is not refused: a fifth element that is no map, other keys, and values of
    another type are left out.
    """
    more = row[4] if len(row) > 4 else None
    if type(more) is not dict:
        return {}
    return {key: more[key] for key, is_valid in _KEYS.items() if is_valid(more.get(key))}


def terminating_of(rows: Sequence[Sequence[Any]]) -> dict[str, bool]:
    """Return the names of which rows of gossip say whether they are terminating.

    Of each name the last row counts.
    """
    if max(map(len, rows), default=0) <= 4:
        return {}
    last = {row[0]: more_of(row).get("terminating") for row in rows}
    return {name: said for name, said in last.items() if said is not None}


def addresses_of(rows: Sequence[Sequence[Any]]) -> dict[str, str]:
    """Return the names of which rows of gossip say the address; "" withdraws it.

    Of each name the last row counts.
    """
    if max(map(len, rows), default=0) <= 4:
        return {}
    last = {row[0]: more_of(row).get("address") for row in rows}
    return {name: address for name, address in last.items() if address is not None}


def is_address(value: object) -> TypeGuard[str]:
    """Return whether `value` can be an address: printable ASCII without space.

    It does not begin with `-`, so that no program takes it for an option.
    """
    return (
        type(value) is str
        and 0 < len(value) <= MAX_ADDRESS
        and value.isascii()
        and value.isprintable()
        and " " not in value
        and value[0] != "-"
    )


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


#: The keys of a fifth element of a row of gossip, and which values they may have.
_KEYS: Final[dict[str, Callable[[object], bool]]] = {
    "terminating": lambda value: type(value) is bool,
    "address": lambda value: value == "" or is_address(value),
}
