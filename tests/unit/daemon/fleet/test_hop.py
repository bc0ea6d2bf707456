"""The frame of a relay: what it carries comes out again, and nothing else gets in."""

from __future__ import annotations

import math
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trackd.fleet.hop import (
    MAX_COMMAND,
    Answer,
    Asker,
    Events,
    Exited,
    Heard,
    Here,
    Hop,
    HopError,
    Leads,
    Moved,
    Said,
    decode,
    decode_answer,
    encode,
    encode_answer,
    encode_word,
)
from trackd_client.wire.protocol import FRAME_SLACK

MAX_FRAME = 1024
YEAR = 366 * 86400.0
ASKER = Asker(1000, 100, 4242, 987654321, "python3 agent.py", admin=False, remaining=4.75)
HOP = Hop(7, ASKER, b"\x93\x01\x01\x80")

counts = st.integers(0, 2**32 - 2)
askers = st.builds(
    Asker,
    uid=counts,
    gid=counts,
    pid=st.integers(0, 2**31 - 1),
    start=st.none() | st.integers(0, 2**64 - 1),
    command=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=80),
    admin=st.booleans(),
    remaining=st.none() | st.floats(-YEAR, YEAR),
)
hops = st.builds(
    Hop, st.integers(1, 2**64 - 1), askers, st.binary(max_size=200) | st.just(bytes(MAX_FRAME))
)


def read(data: bytes, max_frame: int = MAX_FRAME) -> Hop:
    """Return the request in a frame."""
    found = decode(data, max_frame)
    assert isinstance(found, Hop)
    return found


def again(found: Hop | Here | Exited) -> bytes:
    """Return the frame of what was decoded."""
    return encode(found) if isinstance(found, Hop) else encode_word(found)


@given(hops)
def test_what_is_sent_comes_out_again(hop: Hop) -> None:
    assert decode(encode(hop), MAX_FRAME) == hop


def test_the_bytes_are_these() -> None:
    assert encode(HOP) == bytes.fromhex(
        "930797cd03e864cd1092ce3ade68b1b0707974686f6e33206167656e742e7079c2cb4013000000000000"
        "c40493010180"
    )


def test_the_largest_is_taken_and_no_larger() -> None:
    asker = ASKER._replace(command="\U0001f600" * MAX_COMMAND, start=2**64 - 1)
    most = MAX_FRAME + FRAME_SLACK
    hop = Hop(2**64 - 1, asker, bytes(most))
    assert decode(encode(hop), MAX_FRAME) == hop
    for frame in (bytes(most + 1), bytes(most + 5000)):
        with pytest.raises(HopError):
            decode(encode(hop._replace(frame=frame)), MAX_FRAME)


def test_a_relay_sends_nothing_that_the_leader_refuses() -> None:
    asker = ASKER._replace(command="a\n\x7f\x85" + "x" * 100, remaining=math.inf)
    taken = read(encode(HOP._replace(asker=asker))).asker
    assert taken.command == "a???" + "x" * (MAX_COMMAND - 4)
    assert taken.remaining == YEAR
    late = read(encode(HOP._replace(asker=ASKER._replace(remaining=-1e300))))
    assert late.asker.remaining == -YEAR


def test_what_a_newer_relay_appends_is_ignored() -> None:
    data = msgpack.packb([7, [*ASKER, "more"], HOP.frame, None, [1]])
    assert decode(data, MAX_FRAME) == HOP


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("uid", [-1, 2**32 - 1, 1.0, True, None, "0"]),
        ("gid", [-1, 2**32 - 1, 1.0, True, None, "0"]),
        ("pid", [-1, 2**31, 1.0, True, None, "0"]),
        ("start", [-1, 1.0, True, "0"]),
        ("command", [None, b"x", "x" * 81, "a\nb", "\x1b[0m", 7]),
        ("admin", [None, 0, 1, "true"]),
        ("remaining", [math.nan, math.inf, -math.inf, YEAR + 1, -YEAR - 1, True, "1", 2**63]),
    ],
)
def test_who_asks_is_checked(field: str, values: list[Any]) -> None:
    for value in values:
        asker = ASKER._replace(**{field: value})
        with pytest.raises(HopError, match=f"^{field} is not allowed"):
            decode(msgpack.packb([7, asker, HOP.frame]), MAX_FRAME)


@pytest.mark.parametrize(
    "message",
    [
        None,
        7,
        {},
        [],
        [7, list(ASKER)],
        [0, list(ASKER), b""],
        [-1, list(ASKER), b""],
        [True, list(ASKER), b""],
        [7.0, list(ASKER), b""],
        [7, list(ASKER)[:-1], b""],
        [7, {"uid": 0}, b""],
        [7, list(ASKER), "text"],
        [7, list(ASKER), None],
        [7, list(ASKER), b"", {"a": 1}],
        [7, list(ASKER), b"", msgpack.ExtType(1, b"x")],
        [7, list(ASKER), b"", *range(100)],
    ],
)
def test_the_shape_is_checked(message: Any) -> None:
    with pytest.raises(HopError):
        decode(msgpack.packb(message), MAX_FRAME)


@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_an_error_or_a_hop(data: bytes) -> None:
    try:
        hop = decode(data, MAX_FRAME)
    except HopError:
        return
    assert decode(again(hop), MAX_FRAME) == hop


@given(hops, st.data())
def test_bytes_that_are_almost_right_are_an_error_or_a_hop(hop: Hop, data: st.DataObject) -> None:
    sent = bytearray(encode(hop._replace(frame=hop.frame[:20])))
    for _ in range(data.draw(st.integers(1, 3))):
        sent[data.draw(st.integers(0, len(sent) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(sent)))
    for each in (bytes(sent), bytes(sent[:cut]), bytes(sent) + bytes(sent[cut:])):
        try:
            found = decode(each, MAX_FRAME)
        except HopError:
            continue
        assert decode(again(found), MAX_FRAME) == found


def test_a_deep_or_wide_message_costs_nothing() -> None:
    for data in (
        b"\x91" * 60000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdd\x00\x00\xff\xff" + b"\x90" * 60000,
    ):
        with pytest.raises(HopError):
            decode(data, MAX_FRAME)


boots = st.text(max_size=64)
processes = st.lists(st.tuples(st.integers(0, 2**31 - 1), counts), max_size=32)
seconds = st.floats(allow_nan=False, allow_infinity=False)
heres = st.builds(Here, boots, counts, st.booleans(), seconds, st.booleans(), boots, counts)
words = heres | st.builds(Exited, processes)


@given(words)
def test_a_word_of_a_relay_comes_out_again(word: Here | Exited) -> None:
    assert decode(encode_word(word), MAX_FRAME) == word


@pytest.mark.parametrize(
    "message",
    [
        [0, "here", "boot"],
        [0, "here", 7, 1, True, 1.5, False],
        [0, "here", "boot", -1, True, 1.5, False],
        [0, "here", "boot", 1],
        [0, "here", "boot", 1, 1, 1.5, False],
        [0, "here", "boot", 1, True, "1.5", False],
        [0, "here", "boot", 1, True, math.nan, False],
        [0, "here", "boot", 1, True, 1.5, 0],
        [0, "here", "x" * 65, 1, True, 1.5, False],
        [0, "here", "boot", 1, True, 1.5, False, "ab", -1],
        [0, "here", "boot", 1, True, 1.5, False, "ab", 1.0],
        [0, "here", "boot", 1, True, 1.5, False, b"ab", 1],
        [0, "here", "boot", 1, True, 1.5, False, "x" * 65, 1],
        [0, "exited", [[1]]],
        [0, "exited", [[1, -1]]],
        [0, "exited", [[True, 1]]],
        [0, "exited", [7]],
        [0, "gone", []],
        [False, "here", "boot", 1, True, 1.5, False],
    ],
)
def test_other_words_are_refused(message: Any) -> None:
    with pytest.raises(HopError):
        decode(msgpack.packb(message), MAX_FRAME)


def test_the_words_of_older_and_newer_relays_are_read() -> None:
    oldest = msgpack.packb([0, "here", "boot", 7, True])
    assert decode(oldest, MAX_FRAME) == Here("boot", 7, events=True)
    older = msgpack.packb([0, "here", "boot", 7, True, 1.5, False])
    assert decode(older, MAX_FRAME) == Here("boot", 7, events=True, sent=1.5)
    newer = msgpack.packb([0, "here", "boot", 7, True, 1.5, False, "ab", 9, "more"])
    assert decode(newer, MAX_FRAME) == Here("boot", 7, True, 1.5, False, "ab", 9)


@pytest.mark.parametrize(
    "said",
    [
        Answer(3, 7, b"frame"),
        Leads(3, {"cluster": "example.com", "processes": [[1, 2]]}, 7.25),
        Heard(3, 12.5, 9, 7.25),
        Events(3, 1, "ab", 9, [b"event", b"another"]),
        Moved(3, ["p1", "p2"]),
    ],
)
def test_what_a_leader_says_comes_out_again(said: Said) -> None:
    data = encode_answer(said)
    assert decode_answer(data) == said
    assert decode_answer(msgpack.packb([*msgpack.unpackb(data), "more"])) == said


def test_what_an_older_leader_says_is_read() -> None:
    about = {"cluster": "example.com"}
    assert decode_answer(msgpack.packb([3, 0, "leads", about])) == Leads(3, about)
    assert decode_answer(msgpack.packb([3, 0, "heard", 12.5, 9])) == Heard(3, 12.5, 9)
    for wrong in ([3, 0, "leads", about, "now"], [3, 0, "heard", 12.5, 9, None]):
        assert decode_answer(msgpack.packb(wrong)) is None


def test_a_word_of_a_newer_leader_is_skipped() -> None:
    assert decode_answer(msgpack.packb([3, 0, "sings", 1])) is None
    for data in (b"", b"\xc1", msgpack.packb([3]), msgpack.packb([3, 7, "text"]), b"\x80"):
        with pytest.raises(HopError):
            decode_answer(data)
