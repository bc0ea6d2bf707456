"""The kinds of values that a setting may have, and the sentences for values that are wrong.

A kind takes a value from TOML, or the text of a flag or variable. It returns the value for `Config`
or raises a WrongValue, whose message continues after the value: "is not ...". Nothing here checks
whether a directory, a socket, a user or a group exists: that can change while a daemon is down.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trackd.config.addresses import AddressError, parse_address
from trackd_client.wire import places

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class WrongValue(ValueError):
    """A value is wrong for its setting; the message continues after the value."""


class WrongPlace(WrongValue):
    """An endpoint that no daemon can serve, on any host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of value: how it is read and checked.

    Attributes:
        metavar: the placeholder of the value in `--help`.
        parse: reads the text of a flag or variable; raises WrongValue.
        check: checks a value from TOML; raises WrongValue.
        takes_empty: whether an empty variable is a value; otherwise it counts as not set.
    """

    metavar: str
    parse: Callable[[str], object]
    check: Callable[[object], object]
    takes_empty: bool = False


def near(word: str, words: Iterable[str]) -> str | None:
    """Return the word of `words` that was probably meant, or None."""
    import difflib  # only mistakes need it

    return next(iter(difflib.get_close_matches(word, list(words), n=1, cutoff=0.7)), None)


def number(unit: str, low: float, high: float) -> Kind:
    """Return the kind of a finite number of `unit`."""
    wrong = f"is not a number of {unit} from {low:,.15g} to {high:,.15g}"

    def check(value: object) -> float:
        # In Python a bool is an int. NaN and integers beyond floats fail the comparison.
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise WrongValue(wrong)
        if not low <= value <= high:
            raise WrongValue(wrong)
        return float(value)

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise WrongValue(wrong) from None
        return check(value)

    return Kind(metavar="SECONDS" if unit == "seconds" else "NUMBER", parse=parse, check=check)


def whole(unit: str, low: int, high: int) -> Kind:
    """Return the kind of a whole number of `unit`."""
    wrong = f"is not a whole number of {unit} from {low:,} to {high:,}"

    def check(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise WrongValue(wrong)
        return value

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise WrongValue(wrong) from None
        return check(value)

    return Kind(metavar="BYTES" if unit == "bytes" else "NUMBER", parse=parse, check=check)


def choice(*choices: str) -> Kind:
    """Return the kind of one of a few words."""

    def parse(text: str) -> str:
        if text in choices:
            return text
        guess = near(text.lower(), choices)
        hint = f"; did you mean {guess}?" if guess else ""
        raise WrongValue(f"is not one of {', '.join(choices)}{hint}")

    return _text("|".join(choices), parse)


def accounts(word: str) -> Kind:
    """Return the kind of a list of users or groups, by name or number; commas in text.

    Args:
        word: "user" or "group".
    """
    wrong = f'is not a list of {word} names and numbers, such as ["NAME", 1000]'

    def one(value: object) -> str | int:
        if isinstance(value, str) and value.isascii() and value.isdigit():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32 - 1:
            return value
        if not isinstance(value, str) or not value or not value.isprintable():
            raise WrongValue(wrong)
        return value

    def check(value: object) -> tuple[str | int, ...]:
        if isinstance(value, list):
            return tuple(one(item) for item in value)
        raise WrongValue(wrong)

    def parse(text: str) -> tuple[str | int, ...]:
        return tuple(one(item.strip()) for item in text.split(",")) if text else ()

    return Kind(metavar=f"{word.upper()},...", parse=parse, check=check, takes_empty=True)


def words(metavar: str, pattern: str, wrong: str, *, most: int = 64) -> Kind:
    """Return the kind of a list of words of one form, all different; commas in text.

    Args:
        metavar: the placeholder of one of them.
        pattern: a regular expression for a whole one.
        wrong: what is said of another value: "is not a list of ...".
        most: how many there may be.
    """

    def check(value: object) -> tuple[str, ...]:
        if not isinstance(value, list) or len(value) > most:
            raise WrongValue(wrong)
        found = tuple(
            each for each in value if isinstance(each, str) and re.fullmatch(pattern, each)
        )
        if len(found) < len(value) or len(set(found)) < len(found):
            raise WrongValue(wrong)
        return found

    def parse(text: str) -> tuple[str, ...]:
        return check([item.strip() for item in text.split(",")] if text else [])

    return Kind(metavar=f"{metavar},...", parse=parse, check=check, takes_empty=True)


def word(metavar: str, pattern: str, wrong: str) -> Kind:
    """Return the kind of text of one form; empty for none; `wrong` is said of other text."""

    def parse(text: str) -> str:
        if text and not re.fullmatch(pattern, text):
            raise WrongValue(wrong)
        return text

    return _text(metavar, parse, takes_empty=True)


def cluster_name() -> Kind:
    """Return the kind of a cluster's name, as the wire allows it."""

    def parse(text: str) -> str:
        try:
            length = len(text.encode())
        except UnicodeEncodeError:
            raise WrongValue("is not UTF-8") from None
        if not 1 <= length <= 255 or any(unicodedata.category(char) == "Cc" for char in text):
            raise WrongValue("is not 1 to 255 bytes of UTF-8 without control characters")
        return text

    return _text("NAME", parse)


def endpoint() -> Kind:
    """Return the kind of an ipc endpoint or its bare path; the value begins with `ipc://`."""

    def parse(text: str) -> str:
        try:
            places.check_ipc_path(text)
        except places.PlaceError as error:
            raise WrongPlace(f"cannot be served: {error}") from None
        return places.SCHEME + text.removeprefix(places.SCHEME)

    return _text("ENDPOINT", parse)


def http_address() -> Kind:
    """Return the kind of an HTTP address: loopback or a unix socket; empty for none."""

    def parse(text: str) -> str:
        try:
            if text:
                parse_address(text)
        except AddressError as error:
            raise WrongValue(str(error)) from None
        return text

    return _text("ADDRESS", parse, takes_empty=True)


def directory() -> Kind:
    """Return the kind of a directory; empty for none."""
    return _path("DIR", "a directory")


def file() -> Kind:
    """Return the kind of a file; empty for none."""
    return _path("FILE", "a file")


def _path(metavar: str, what: str) -> Kind:
    def parse(text: str) -> str:
        if "\0" in text:
            raise WrongValue(f"is not {what}: it holds a NUL byte")
        return text

    return _text(metavar, parse, takes_empty=True)


def mode() -> Kind:
    """Return the kind of a file's permissions, in octal digits."""
    wrong = 'is not an octal mode from "0600" to "0777" that lets the owner read and write'

    def parse(text: str) -> int:
        try:
            value = int(text, 8)
        except ValueError:
            raise WrongValue(wrong) from None
        if not 0 <= value <= 0o777 or value & 0o600 != 0o600:
            raise WrongValue(wrong)
        return value

    return _text("MODE", parse)


def _text(metavar: str, parse: Callable[[str], object], *, takes_empty: bool = False) -> Kind:
    def check(value: object) -> object:
        if not isinstance(value, str):
            raise WrongValue('is not a string; write it in quotes, "..."')
        return parse(value)

    return Kind(metavar=metavar, parse=parse, check=check, takes_empty=takes_empty)
