"""The codec takes what the protocol says, and refuses all else with a code and a sentence."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, TypeVar

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trackd_client.errors import Code
from trackd_client.wire.checks import (
    MAX_UINT64,
)
from trackd_client.wire.errors import ProtocolError
from trackd_client.wire.protocol import (
    NOTICE,
    REPLY,
    REQUEST,
    VERSION,
    decode,
    decode_reply,
    encode,
    error_body,
)

T = TypeVar("T")
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), MAX_UINT64)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=8))
    | st.builds(msgpack.Timestamp, st.integers(0, 2**32), st.integers(0, 999_999_999))
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=4) | st.binary(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)
BODIES = st.dictionaries(st.text(max_size=8), VALUES, max_size=6)


def packed(value: object) -> bytes:
    frame: bytes = msgpack.packb(value)
    return frame


def refused(check: Callable[..., object], *args: Any, **limits: Any) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        check(*args, **limits)
    return caught.value


def outcome(read: Callable[[bytes], T], frame: bytes) -> T | ProtocolError:
    try:
        return read(frame)
    except ProtocolError as error:
        return error


# -- frames -------------------------------------------------------------------------------


@given(st.sampled_from([REQUEST, REPLY, NOTICE]), st.dictionaries(st.text(), st.integers(0, 9)))
def test_what_is_encoded_is_decoded_again(kind: int, body: dict[str, Any]) -> None:
    assert decode(encode(kind, body)) == (kind, body)


def test_a_message_is_an_array_of_version_kind_and_body_in_the_order_of_its_fields() -> None:
    assert encode(REQUEST, {"op": "ping", "seq": 1}) == bytes.fromhex("93 01 01 82") + (
        b"\xa2op\xa4ping" + b"\xa3seq\x01"
    )


@given(st.binary(max_size=64))
@example(b"")
@example(b"\xc1")
@example(b"\x91" * 5000)  # nested deeper than any reader goes
@example(b"\xdd\xff\xff\xff\xff")  # says that four billion elements follow
@example(b"\x93\x01\x01\x81\xa1\xff\x01")  # a key that is no UTF-8
@example(b"\x93\x01\x01\x81\x90\x01")  # a key that cannot be one
@example(b"\x93\x01\x01\x81\x01\x01")  # a number for a key
@example(b"\xd6\xff\x00\x00\x00\x00")  # a time
@example(b"\xc7\x0c\xff" + b"\xff" * 12)  # a time with too many nanoseconds
def test_random_bytes_are_refused_or_skipped_and_nothing_else(frame: bytes) -> None:
    _decode_never_surprises(frame)


@given(VALUES)
@example([])
@example([VERSION])
@example([VERSION, REQUEST])
@example([VERSION, REQUEST, None])
@example([True, REQUEST, {}])
@example([1.0, REQUEST, {}])
@example([VERSION, True, {}])
def test_random_values_are_refused_or_skipped_and_nothing_else(value: object) -> None:
    _decode_never_surprises(packed(value))


@given(BODIES, st.data())
def test_damaged_messages_are_refused_or_skipped_or_other_messages(
    body: dict[str, Any], data: st.DataObject
) -> None:
    frame = bytearray(packed([VERSION, REQUEST, body]))
    position = data.draw(st.integers(0, len(frame) - 1))
    frame[position] = data.draw(st.integers(0, 255))
    _decode_never_surprises(bytes(frame))
    _decode_never_surprises(bytes(frame[:position]))


def _decode_never_surprises(frame: bytes) -> None:
    decoded = outcome(decode, frame)
    if isinstance(decoded, ProtocolError):
        assert decoded.code in {Code.MALFORMED, Code.UNSUPPORTED_VERSION}
        assert 0 <= decoded.seq <= MAX_UINT64
    elif decoded is not None:
        kind, body = decoded
        assert kind in {REQUEST, REPLY, NOTICE}
        assert type(body) is dict
    reply = outcome(decode_reply, frame)
    assert reply is None or isinstance(reply, ProtocolError) or type(reply.seq) is int


@pytest.mark.parametrize("kind", [0, 4, 255, -1, "request", None, True, 1.0, [1]])
def test_a_kind_that_is_not_known_is_skipped_whatever_its_body_is(kind: object) -> None:
    assert decode(packed([VERSION, kind, 7])) is None
    assert decode(packed([VERSION, kind])) is None


def test_elements_beyond_the_third_and_unknown_fields_are_tolerated() -> None:
    frame = packed([VERSION, REQUEST, {"op": "ping", "mood": "good"}, "more", {}])
    assert decode(frame) == (REQUEST, {"op": "ping", "mood": "good"})


def test_the_last_of_two_equal_keys_counts() -> None:
    frame = (
        bytes([0x93, VERSION, REQUEST, 0x82]) + packed("seq") + b"\x01" + packed("seq") + b"\x02"
    )
    assert decode(frame) == (REQUEST, {"seq": 2})


@pytest.mark.parametrize(
    ("body", "seq"),
    [
        ({"seq": 7}, 7),
        ({"seq": MAX_UINT64}, MAX_UINT64),
        ({"seq": 0}, 0),
        ({"seq": -1}, 0),
        ({"seq": True}, 0),
        ({"seq": "7"}, 0),
        ({}, 0),
        (None, 0),
    ],
)
def test_another_version_is_refused_with_the_number_of_the_request_if_it_has_one(
    body: object, seq: int
) -> None:
    error = refused(decode, packed([VERSION + 1, REQUEST, body]))
    assert (error.code, error.seq) == (Code.UNSUPPORTED_VERSION, seq)
    assert f"{VERSION + 1}" in str(error)


def test_another_version_without_a_body_is_refused_too() -> None:
    error = refused(decode, packed([VERSION + 1, REQUEST]))
    assert (error.code, error.seq) == (Code.UNSUPPORTED_VERSION, 0)


@pytest.mark.parametrize(
    "value",
    [2**64, -(2**63) - 1, "\ud800", object(), {1, 2}],
    ids=["too large", "too small", "half a surrogate", "an object", "a set"],
)
def test_what_msgpack_cannot_carry_is_refused_before_it_is_sent(value: object) -> None:
    error = refused(encode, REQUEST, {"count": value})
    assert error.code == Code.INVALID_ARGUMENT
    assert "cannot be sent" in str(error)


# -- replies ------------------------------------------------------------------------------


def test_a_reply_tells_its_number_its_error_and_when_to_try_again() -> None:
    body = error_body(7, 3, Code.UNAVAILABLE, "not now") | {"retry_after": 1}
    reply = decode_reply(encode(REPLY, body))
    assert reply is not None
    assert (reply.seq, reply.error, reply.retry_after) == (7, "unavailable", 1.0)


def test_a_reply_without_error_or_retry_after_has_none() -> None:
    reply = decode_reply(encode(REPLY, {"seq": 1, "revision": 0}))
    assert reply is not None
    assert (reply.error, reply.retry_after) == (None, None)


@pytest.mark.parametrize("kind", [REQUEST, NOTICE, 9])
def test_what_is_no_reply_is_skipped_by_who_waits_for_one(kind: int) -> None:
    assert decode_reply(packed([VERSION, kind, {"seq": 1}])) is None


@pytest.mark.parametrize("seq", [None, "1", True, 1.0])
def test_a_reply_without_a_number_is_malformed(seq: object) -> None:
    assert refused(decode_reply, packed([VERSION, REPLY, {"seq": seq}])).code == Code.MALFORMED


# -- fields -------------------------------------------------------------------------------


def test_a_generation_of_64_bits_survives_the_wire() -> None:
    decoded = decode(encode(REQUEST, {"generation": MAX_UINT64}))
    assert decoded == (REQUEST, {"generation": MAX_UINT64})
    assert struct.pack(">Q", MAX_UINT64) in encode(REQUEST, {"generation": MAX_UINT64})
