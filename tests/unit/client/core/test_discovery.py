"""Teleport's JSON gossip payload becomes proxies, or an error that says what is wrong where."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trackd_client import BadPayload, Proxy, TrackdError, parse_discovery
from trackd_client.core.arguments import proxy_rows
from trackd_client.core.discovery import messages, read_gossip
from trackd_client.wire.checks import MAX_UINT64
from trackd_client.wire.protocol import REQUEST, Limits, encode

#: As a proxy writes it, with a field that trackd does not use.
PAYLOAD = (
    b'{"proxies":[{"version":"v2","metadata":{"name":"p1"},"gid":"east","ggen":3,'
    b'"ttl":60000000000},{"version":"v2","metadata":{"name":"p2","labels":{"a":"b"}}}],'
    b'"sent":"2024-05-01T00:00:00Z"}'
)

NAMED_B = [{"metadata": {"name": "b"}}]

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


@pytest.mark.parametrize("payload", ['{"proxies":[]}', '{"proxies":null}'])
def test_a_payload_without_proxies_mentions_none(payload: str) -> None:
    assert parse_discovery(payload) == []


@pytest.mark.parametrize("field", ["gid", "ggen", "ttl"])
def test_a_field_that_is_null_counts_as_left_out(field: str) -> None:
    assert one(**{field: None}) == Proxy("p1")


def test_a_ttl_counts_nanoseconds() -> None:
    assert one(ttl=1).ttl == 1e-9
    assert one(ttl=1_500_000_000).ttl == 1.5
    assert one(ttl=2**63 - 1).ttl == pytest.approx(9_223_372_036.85)


@pytest.mark.rule(15)
@pytest.mark.parametrize(
    ("said", "proxy"),
    [
        (
            {"terminating": True, "address": "p1:443"},
            Proxy("p1", terminating=True, address="p1:443"),
        ),
        ({"terminating": False, "address": ""}, Proxy("p1", terminating=False, address="")),
        ({"terminating": True, "colour": "red"}, Proxy("p1", terminating=True)),
        ({"terminating": "yes", "address": "p1:443"}, Proxy("p1", address="p1:443")),
        ({"terminating": True, "address": "-p1"}, Proxy("p1", terminating=True)),
        ({}, Proxy("p1")),
        ("terminating", Proxy("p1")),
        (None, Proxy("p1")),
    ],
)
def test_the_object_of_trackd_in_an_entry_says_what_else_is_known_and_no_more(
    said: object, proxy: Proxy
) -> None:
    assert one(trackd=said) == proxy


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
        (None, "proxies[1]"),
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
def test_what_no_proxy_can_be_is_skipped_with_its_place_and_the_others_count(
    entry: object, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    payload = json.dumps({"proxies": [{"metadata": {"name": "a"}}, entry, *NAMED_B]})
    assert parse_discovery(payload) == [Proxy("a"), Proxy("b")]
    (line,) = caplog.messages
    assert line.startswith("gossip: 1 of its entries skipped")
    assert place in line


@pytest.mark.parametrize(
    ("name", "why"),
    [("x" * 256, "256 bytes"), ("\u00e9" * 128, "256 bytes"), ("a\nb", "a control character")],
)
def test_a_name_that_no_daemon_takes_is_skipped(
    name: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    payload = json.dumps({"proxies": [{"metadata": {"name": name}}, *NAMED_B]})
    assert parse_discovery(payload) == [Proxy("b")]
    assert why in caplog.text


def test_keys_are_taken_in_any_case_as_by_gos_decoder() -> None:
    payload = (
        '{"Proxies":[{"METADATA":{"Name":"p1"},"Gid":"east","gGen":3,"TTL":1000000000},'
        '{"metadata":{"name":"old","Name":"p2"},"gid":"g","GID":null}]}'
    )
    assert parse_discovery(payload) == [
        Proxy("p1", group="east", generation=3, ttl=1.0),
        Proxy("p2", group="g"),
    ]


@pytest.mark.parametrize(
    ("limits", "sizes"),
    [
        (Limits(), [10_000, 2_000]),
        (Limits(max_proxies=5_000), [5_000, 5_000, 2_000]),
    ],
)
def test_what_is_too_much_for_one_message_goes_into_several(
    limits: Limits, sizes: list[int]
) -> None:
    proxies = [Proxy(f"p{number}") for number in range(12_000)]
    parts, skipped = messages(read_gossip(proxies), limits)
    assert [len(part) for part in parts] == sizes
    assert [proxy for part in parts for proxy in part] == proxies
    assert not skipped


def test_a_message_of_long_names_fits_into_a_frame() -> None:
    limits = Limits()
    proxies = [
        Proxy(f"{number:05}".ljust(255, "x"), "g" * 255, MAX_UINT64, 1e300)
        for number in range(10_000)
    ]
    parts, skipped = messages(read_gossip(proxies), limits)
    assert sum(map(len, parts)) == 10_000
    assert not skipped
    done = [number for i in range(limits.max_outstanding) for number in (2**62 + i, 2**62 + i)]
    for part in parts:
        body = {"op": "track_expected", "proxies": proxy_rows(part), "done": done}
        assert len(encode(REQUEST, body)) + 500 < limits.max_frame


def test_gossip_of_nothing_is_one_message_of_nothing() -> None:
    assert messages(read_gossip([]), Limits()) == ([[]], [])


@pytest.mark.parametrize(
    "bad",
    [Proxy(""), Proxy("p", generation=-1), Proxy("p", ttl=math.nan), Proxy(7)],  # type: ignore[arg-type]
)
def test_a_proxy_that_the_daemon_would_refuse_is_skipped(bad: Proxy) -> None:
    parts, skipped = messages(read_gossip([Proxy("a"), bad, Proxy("b")]), Limits())
    assert parts == [[Proxy("a"), Proxy("b")]]
    assert len(skipped) == 1


@pytest.mark.parametrize("payload", ["", "no JSON", b"\xff\xfe\x00", "{", "[" * 100_000])
def test_what_is_not_json_is_refused(payload: bytes | str) -> None:
    with pytest.raises(BadPayload, match="not JSON"):
        parse_discovery(payload)


@pytest.mark.parametrize(
    "payload", ["[]", "7", '"proxies"', "null", "{}", '{"x":1}', '{"proxies":{}}']
)
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
