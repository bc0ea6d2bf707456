"""Inputs that are almost right: what the corpus holds, changed by chance."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any, Final

import msgpack

from helpers import protocol_document

_CORPUS: Final = Path(__file__).with_name("corpus")

#: Values at the edges of what a reader may expect.
EDGES: Final[list[Any]] = [
    None, True, False, 0, 1, -1, 2**31, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), 0.0, -0.5, 1e308,
    float("nan"), float("inf"), "", "p1", "p\0", "\u2028", "x" * 300, "-p", b"", b"x" * 16, b"\xff",
    [], {}, [[]], [None], ["p1"] * 70, [["p1", "g", 1, None]], {"a": 1}, {"": {}}, {"trackd": 1},
]  # fmt: skip


def requests() -> list[tuple[bytes, Any]]:
    """Return the requests of docs/protocol-examples.json: their bytes, and what these mean."""
    return [(m.frame, m.value) for m in protocol_document.messages() if m.sender == "client"]


def replies() -> list[tuple[bytes, Any]]:
    """Return the replies, notices and event messages of docs/protocol-examples.json."""
    return [(m.frame, m.value) for m in protocol_document.messages() if m.sender == "daemon"]


def gossip() -> list[Any]:
    """Return payloads of gossip."""
    found: list[Any] = json.loads((_CORPUS / "gossip.json").read_text(encoding="utf-8"))
    return found


def change(chance: Random, value: Any) -> Any:
    """Return a value of which one part was left out, doubled, added or replaced."""
    if isinstance(value, dict) and value and chance.random() < 0.95:
        key = chance.choice(list(value))
        match chance.randrange(6):
            case 0:
                return {name: part for name, part in value.items() if name != key}
            case 1:
                return value | {strange_key(chance): strange(chance)}
            case 2:
                return value | {key: strange(chance)}
            case _:
                return value | {key: change(chance, value[key])}
    if isinstance(value, (list, tuple)) and value and chance.random() < 0.95:
        i, parts = chance.randrange(len(value)), list(value)
        match chance.randrange(6):
            case 0:
                del parts[i]
            case 1:
                parts.insert(i, parts[i])
            case 2:
                parts.insert(i, strange(chance))
            case _:
                parts[i] = change(chance, parts[i])
        return parts
    return strange(chance)


def strange(chance: Random) -> Any:
    """Return a value that nobody expects here, at times a deep or a large one."""
    match chance.randrange(12):
        case 0:
            return chance.randint(-(2**63), 2**64 - 1)
        case 1:
            return chance.randbytes(chance.randrange(40))
        case 2:
            return {strange_key(chance): strange(chance)}
        case 3:
            return [strange(chance) for _ in range(chance.randrange(4))]
        case _:
            return chance.choice(EDGES)


def strange_key(chance: Random) -> str:
    """Return a name that is perhaps not the name of a field."""
    return chance.choice(["op", "seq", "token", "done", "deadline", "name", "other", "", "x" * 80])


def damage(chance: Random, frame: bytes) -> bytes:
    """Return bytes of which some were flipped, cut off, cut out, doubled or added."""
    i, j = sorted(chance.randrange(len(frame) + 1) for _ in range(2))
    match chance.randrange(6):
        case 0:
            return frame[:i]
        case 1:
            return frame[:i] + frame[j:]
        case 2:
            return frame[:j] + frame[i:]
        case 3:
            return frame[:i] + chance.randbytes(chance.randrange(1, 9)) + frame[i:]
        case _:
            changed = bytearray(frame)
            for _ in range(min(len(frame), chance.choice((1, 1, 3, 30)))):
                changed[chance.randrange(len(frame))] ^= 1 << chance.randrange(8)
            return bytes(changed)


def pack(value: Any) -> bytes:
    """Return the bytes of a value, whatever is in it."""
    packed: bytes = msgpack.packb(value, default=str, unicode_errors="surrogatepass")
    return packed


def to_json(value: Any) -> bytes:
    """Return a value as JSON, whatever is in it."""
    return json.dumps(value, default=str).encode()
