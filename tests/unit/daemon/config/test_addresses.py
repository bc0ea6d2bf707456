"""Where HTTP may be served, and which Host headers name this host."""

from __future__ import annotations

from pathlib import Path

import pytest

from trackd.config.addresses import Address, AddressError, is_local, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9440", Address(("127.0.0.1",), 9440)),
        ("127.3.4.5:1", Address(("127.3.4.5",), 1)),
        ("[::1]:65535", Address(("::1",), 65535)),
        ("localhost:9440", Address(("127.0.0.1", "::1"), 9440)),
        ("unix:/run/x/http.sock", Address(path=Path("/run/x/http.sock"))),
    ],
)
def test_loopback_and_unix_sockets_are_taken(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("0.0.0.0:9440", "is not on loopback"),
        ("[::]:9440", "is not on loopback"),
        ("10.0.0.1:9440", "is not on loopback"),
        ("example.com:9440", "is not on loopback"),
        ("localhost.example.com:9440", "is not on loopback"),
        (":9440", "is not on loopback"),
        ("::1:9440", "is not HOST:PORT"),
        ("[127.0.0.1]:9440", "is not on loopback"),
        ("9440", "is not HOST:PORT"),
        ("127.0.0.1", "is not HOST:PORT"),
        ("127.0.0.1:", "is not HOST:PORT"),
        ("127.0.0.1:http", "is not HOST:PORT"),
        ("127.0.0.1:0", "has no port"),
        ("127.0.0.1:65536", "has no port"),
        ("127.0.0.1:9440\n", "is not HOST:PORT"),
        ("http://127.0.0.1:9440", "is neither an address nor unix:/PATH"),
        ("/run/http.sock", "is neither an address nor unix:/PATH"),
        ("unix:", "is not an absolute path"),
        ("unix:http.sock", "is not an absolute path"),
        ("unix:@abstract", "is not an absolute path"),
        ("unix:/run/", "cannot be served"),
        ("unix:/" + "x" * 107, "too long"),
    ],
)
def test_everything_else_is_refused_with_what_would_be_right(text: str, sentence: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_address(text)
    assert sentence in str(caught.value)
    assert "write " in str(caught.value) or "choose " in str(caught.value)


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:9440", "LOCALHOST", "127.0.0.1", "127.0.0.1:80", "[::1]", "[::1]:1"],
)
def test_names_of_this_host_are_local(host: str) -> None:
    assert is_local(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        ":80",
        "evil.example",
        "evil.example:9440",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "localhost@evil.example",
        "localhost:9440:evil.example",
        "0.0.0.0",
        "::1",
        "2130706433",
        "0x7f.1",
        "127.1",
        "[::ffff:10.0.0.1]",
        "localhost\n",
        "[::1",
    ],
)
def test_all_others_are_not(host: str) -> None:
    assert not is_local(host)
