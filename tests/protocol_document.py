"""docs/protocol.md as tests read it: its tables, and its messages in bytes and in readable form.

Run as a script, it writes the bytes of every message anew from the readable form beside them.
A message in the document is a fenced block of JSON, whose info string names it, followed by a
block of hexadecimal digits. Bytes stand in JSON as ``{"hex": "00ff"}``.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgpack

PATH: Final = Path(__file__).parent.parent / "docs" / "protocol.md"

_MESSAGE: Final = re.compile(
    r"^```json (?P<name>[^\n]+)\n(?P<json>.*?)^```\n\n```hex\n(?P<hex>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_HEADING: Final = re.compile(r"^(#{2,3}) (.+)$", re.MULTILINE)
_BYTES_A_LINE: Final = 24


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the document.

    Attributes:
        section: the heading under which it stands.
        name: what the document calls it.
        value: the readable form, with bytes where it says so.
        frame: the bytes.
    """

    section: str
    name: str
    value: list[Any]
    frame: bytes

    @property
    def kind(self) -> int:
        """Its kind: 1 for a request, 2 for a reply."""
        kind: int = self.value[1]
        return kind

    @property
    def body(self) -> dict[str, Any]:
        """Its fields."""
        body: dict[str, Any] = self.value[2]
        return body


def sections() -> dict[str, str]:
    """Return the text under each heading of the second and third level, without deeper ones."""
    text = PATH.read_text(encoding="utf-8")
    headings = list(_HEADING.finditer(text))
    ends = [heading.start() for heading in headings[1:]] + [len(text)]
    return {
        heading[2].strip("`"): text[heading.end() : end]
        for heading, end in zip(headings, ends, strict=True)
    }


def table(section: str) -> list[list[str]]:
    """Return the cells of the first table under a heading, row by row, without its head."""
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in re.split(r"\n(?!\|)", sections()[section].partition("\n|")[2])[0].splitlines()
    ]
    assert rows, f"there is no table under {section!r}"
    return rows[2:]


def messages() -> list[Message]:
    """Return every message, in the order in which they stand."""
    found = [
        Message(section, match["name"], _value(match), bytes.fromhex(match["hex"]))
        for section, text in sections().items()
        for match in _MESSAGE.finditer(text)
    ]
    assert found, "the document holds no messages"
    return found


def pack(value: object) -> bytes:
    """Return the bytes of a message."""
    frame: bytes = msgpack.packb(value)
    return frame


def _value(match: re.Match[str]) -> list[Any]:
    value = json.loads(match["json"], object_hook=_bytes)
    assert isinstance(value, list)
    return value


def _bytes(fields: dict[str, Any]) -> Any:
    return bytes.fromhex(fields["hex"]) if list(fields) == ["hex"] else fields


def _rewritten(match: re.Match[str]) -> str:
    frame = pack(_value(match))
    lines = [
        frame[i : i + _BYTES_A_LINE].hex(" ") + "\n" for i in range(0, len(frame), _BYTES_A_LINE)
    ]
    start, end = match.start("hex") - match.start(), match.end("hex") - match.start()
    return match[0][:start] + "".join(lines) + match[0][end:]


if __name__ == "__main__":
    PATH.write_text(_MESSAGE.sub(_rewritten, PATH.read_text(encoding="utf-8")), encoding="utf-8")
