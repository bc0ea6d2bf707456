"""Teleport's JSON gossip payload becomes proxies, or an error that says what is wrong where."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trackd_client import BadPayload, Proxy, TrackdError, parse_discovery
from trackd_client.wire.checks import MAX_UINT64

#: As a proxy writes it, with a field that trackd does not use.
PAYLOAD = (
    b'{"proxies":[{"version":"v2","metadata":{"name":"p1"},"gid":"east","ggen":3,'
    b'"ttl":60000000000},{"version":"v2","metadata":{"name":"p2","labels":{"a":"b"}}}],'
    b'"sent":"2024-05-01T00:00:00Z"}'
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["proxies", "metadata", "name", "gid", "ggen", "ttl"]), inner
        )
    ),
    max_leaves=10,
)


def one(**entry: Any) -> Proxy:
    entry = {"version": "v2", "metadata": {"name": "p1"}, **entry}
    (proxy,) = parse_discovery(json.dumps({"proxies": [entry]}))
    return proxy


def test_the_payload_of_a_proxy_becomes_proxies_in_its_order() -> None:
    assert parse_discovery(PAYLOAD) == [
        Proxy("p1", group="east", generation=3, ttl=60.0),
        Proxy("p2", group="", generation=0, ttl=None),
    ]


@pytest.mark.parametrize("payload", [PAYLOAD, bytearray(PAYLOAD), PAYLOAD.decode()])
def test_a_payload_may_be_bytes_or_text(payload: bytes | bytearray | str) -> None:
    assert [proxy.name for proxy in parse_discovery(payload)] == ["p1", "p2"]


@pytest.mark.parametrize("payload", ["{}", '{"proxies":[]}', '{"proxies":null}', '{"x":1}'])
def test_a_payload_without_proxies_mentions_none(payload: str) -> None:
    assert parse_discovery(payload) == []


@pytest.mark.parametrize("field", ["gid", "ggen", "ttl"])
def test_a_field_that_is_null_counts_as_left_out(field: str) -> None:
    assert one(**{field: None}) == Proxy("p1")


def test_a_ttl_counts_nanoseconds() -> None:
    assert one(ttl=1).ttl == 1e-9
    assert one(ttl=1_500_000_000).ttl == 1.5
    assert one(ttl=2**63 - 1).ttl == pytest.approx(9_223_372_036.85)


@pytest.mark.parametrize("ttl", [0, -1, -(2**63)])
def test_a_ttl_that_is_not_positive_leaves_the_default_to_the_daemon(ttl: int) -> None:
    assert one(ttl=ttl).ttl is None


@pytest.mark.parametrize("generation", [0, 1, 2**53 + 1, 2**63, MAX_UINT64])
def test_a_generation_keeps_all_of_its_64_bits(generation: int) -> None:
    assert one(ggen=generation).generation == generation


@pytest.mark.parametrize(
    ("entry", "place"),
    [
        ("p1", "proxies[1]"),
        ({}, "proxies[1].metadata.name"),
        ({"metadata": None}, "proxies[1].metadata.name"),
        ({"metadata": {"name": ""}}, "proxies[1].metadata.name"),
        ({"metadata": {"name": 7}}, "proxies[1].metadata.name"),
        ({"metadata": {"name": "p"}, "gid": 7}, "proxies[1].gid"),
        ({"metadata": {"name": "p"}, "ggen": -1}, "proxies[1].ggen"),
        ({"metadata": {"name": "p"}, "ggen": 2**64}, "proxies[1].ggen"),
        ({"metadata": {"name": "p"}, "ggen": 1.0}, "proxies[1].ggen"),
        ({"metadata": {"name": "p"}, "ggen": True}, "proxies[1].ggen"),
        ({"metadata": {"name": "p"}, "ggen": "1"}, "proxies[1].ggen"),
        ({"metadata": {"name": "p"}, "ttl": 2**63}, "proxies[1].ttl"),
        ({"metadata": {"name": "p"}, "ttl": "60s"}, "proxies[1].ttl"),
    ],
)
def test_what_no_proxy_can_be_is_refused_with_its_place(entry: object, place: str) -> None:
    payload = json.dumps({"proxies": [{"metadata": {"name": "good"}}, entry]})
    with pytest.raises(BadPayload) as caught:
        parse_discovery(payload)
    assert place in str(caught.value)


@pytest.mark.parametrize("payload", ["", "no JSON", b"\xff\xfe\x00", "{", "[" * 100_000])
def test_what_is_not_json_is_refused(payload: bytes | str) -> None:
    with pytest.raises(BadPayload, match="not JSON"):
        parse_discovery(payload)


@pytest.mark.parametrize("payload", ["[]", "7", '"proxies"', "null", '{"proxies":{}}'])
def test_json_of_another_shape_is_refused(payload: str) -> None:
    with pytest.raises(BadPayload, match='array "proxies"'):
        parse_discovery(payload)


def test_what_is_neither_bytes_nor_text_is_refused() -> None:
    with pytest.raises(BadPayload, match="bytes or text"):
        parse_discovery(7)  # type: ignore[arg-type] # on purpose


def test_a_bad_payload_is_an_error_of_ours_and_a_value_error() -> None:
    assert issubclass(BadPayload, TrackdError)
    assert issubclass(BadPayload, ValueError)


@given(JSON)
def test_any_json_gives_proxies_or_a_bad_payload_and_nothing_else(value: object) -> None:
    try:
        proxies = parse_discovery(json.dumps(value))
    except BadPayload:
        return
    assert all(proxy.name and 0 <= proxy.generation <= MAX_UINT64 for proxy in proxies)
    assert all(proxy.ttl is None or proxy.ttl > 0 for proxy in proxies)


@given(st.binary(max_size=64) | st.text(max_size=64))
def test_any_bytes_give_proxies_or_a_bad_payload_and_nothing_else(payload: bytes | str) -> None:
    try:
        proxies = parse_discovery(payload)
    except BadPayload:
        return
    assert proxies == []
