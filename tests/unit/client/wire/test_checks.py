"""Checks of fields: each takes what the protocol says, and refuses all else by its name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trackd_client.errors import Code
from trackd_client.wire.checks import (
    MAX_UINT64,
    check_count,
    check_done,
    check_name,
    check_seconds,
    check_text,
)
from trackd_client.wire.errors import ProtocolError

#: More ranges than any test has.
MOST = 1000


def refused(check: Callable[..., object], *args: Any, **limits: Any) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        check(*args, **limits)
    return caught.value


@pytest.mark.parametrize("name", ["p", "p1.example.com", "Ä" * 127, "a b", "名", "x" * 255])
def test_a_name_is_any_text_of_1_to_255_bytes(name: str) -> None:
    assert check_name(name, "name", 255) == name


@pytest.mark.parametrize(
    ("value", "code", "says"),
    [
        ("", Code.INVALID_ARGUMENT, "empty"),
        (None, Code.INVALID_ARGUMENT, "text"),
        (7, Code.INVALID_ARGUMENT, "text"),
        (b"p1", Code.INVALID_ARGUMENT, "text"),
        ("a\nb", Code.INVALID_ARGUMENT, "control"),
        ("\x00", Code.INVALID_ARGUMENT, "control"),
        ("\x7f", Code.INVALID_ARGUMENT, "control"),
        ("\x9f", Code.INVALID_ARGUMENT, "control"),
        ("\ud800", Code.INVALID_ARGUMENT, "control"),
        ("x" * 256, Code.LIMIT_EXCEEDED, "256 bytes"),
        ("Ä" * 128, Code.LIMIT_EXCEEDED, "256 bytes"),
    ],
)
def test_what_is_no_name_is_refused_with_its_field(value: object, code: str, says: str) -> None:
    error = refused(check_name, value, "a principal", 255)
    assert error.code == code
    assert "a principal" in str(error)
    assert says in str(error)


def test_text_may_be_empty_and_a_name_may_not() -> None:
    assert check_text("", "group", 255) == ""
    assert refused(check_name, "", "name", 255).code == Code.INVALID_ARGUMENT


@given(st.text(max_size=80), st.integers(1, 100))
def test_text_is_taken_exactly_when_it_is_short_enough_and_free_of_control_characters(
    value: str, limit: int
) -> None:
    controls = any(ord(c) < 32 or 127 <= ord(c) < 160 or "\ud800" <= c <= "\udfff" for c in value)
    if controls:
        assert refused(check_text, value, "text", limit).code == Code.INVALID_ARGUMENT
    elif len(value.encode()) > limit:
        assert refused(check_text, value, "text", limit).code == Code.LIMIT_EXCEEDED
    else:
        assert check_text(value, "text", limit) == value


def test_spaces_and_marks_that_do_not_print_are_no_control_characters() -> None:
    for value in ("\u00a0", "\u2028", "\u200f", "\ue000", "a b"):
        assert check_text(value, "text", 255) == value


@pytest.mark.parametrize(("value", "seconds"), [(0, 0.0), (1.5, 1.5), (-3, -3.0), (2**63, 2.0**63)])
def test_seconds_are_any_finite_number(value: float, seconds: float) -> None:
    checked = check_seconds(value, "ttl")
    assert (checked, type(checked)) == (seconds, float)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, None, "1", b"1", [1]])
def test_what_is_no_finite_number_of_seconds_is_refused(value: object) -> None:
    error = refused(check_seconds, value, "ttl")
    assert error.code == Code.INVALID_ARGUMENT
    assert "ttl" in str(error)


@pytest.mark.parametrize("value", [-1, MAX_UINT64 + 1, True, 1.0, "1", None])
def test_a_count_is_an_integer_within_its_bounds(value: object) -> None:
    assert check_count(0, "lease") == 0
    assert check_count(MAX_UINT64, "lease") == MAX_UINT64
    assert "lease" in str(refused(check_count, value, "lease"))


@given(st.lists(st.integers(-1, 12) | st.sampled_from([True, 1.0, "1", None, 2**64]), max_size=6))
@example([1, 1, 2, 2])
@example([0, 1])
@example([2, 1])
@example([1, 3, 3, 4])
def test_done_is_taken_exactly_when_its_ranges_ascend(value: list[Any]) -> None:
    right = (
        len(value) % 2 == 0
        and all(type(number) is int and 1 <= number <= MAX_UINT64 for number in value)
        and all(value[i] <= value[i + 1] for i in range(0, len(value), 2))
        and all(value[i - 1] < value[i] for i in range(2, len(value), 2))
    )
    if right:
        assert check_done(value, MOST) is value
    else:
        assert refused(check_done, value, MOST).code == Code.INVALID_ARGUMENT


@pytest.mark.parametrize("value", [None, {}, "1", 1, b"\x01\x02", [1]])
def test_done_that_is_no_array_of_pairs_is_refused(value: object) -> None:
    assert refused(check_done, value, MOST).code == Code.INVALID_ARGUMENT
