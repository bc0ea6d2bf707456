"""docs/protocol.md as tests read it, and the messages of docs/protocol-examples.json beside it.

Run as a script, it writes the bytes of every message in the JSON file from the value beside them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgpack

PATH: Final = Path(__file__).parents[2] / "docs" / "protocol.md"
EXAMPLES: Final = PATH.with_name("protocol-examples.json")

_SHOWN: Final = re.compile(
    r"^```json (?P<name>[^\n]+)\n(?P<json>.*?)^```$(\n\n```hex\n(?P<hex>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
_HEADING: Final = re.compile(r"^(#{2,4}) (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation.

    Attributes:
        section: the name of the conversation.
        name: the name of the message, unique in its conversation.
        sender: `client` or `daemon`.
        value: the readable form, with bytes where it says so.
        frame: the bytes.
    """

    section: str
    name: str
    sender: str
    value: list[Any]
    frame: bytes

    @property
    def kind(self) -> int:
        """Its kind: 1 for a request, 2 for a reply, 3 for a notice."""
        kind: int = self.value[1]
        return kind

    @property
    def body(self) -> dict[str, Any]:
        """Its fields."""
        body: dict[str, Any] = self.value[2]
        return body


def sections() -> dict[str, str]:
    """Return the text under each heading of the second to fourth level, without deeper ones."""
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


def conversations() -> list[dict[str, Any]]:
    """Return the conversations of the JSON file as they stand there."""
    found: list[dict[str, Any]] = json.loads(EXAMPLES.read_text(encoding="utf-8"))["conversations"]
    assert found, "the file holds no conversation"
    return found


def messages() -> list[Message]:
    """Return the messages of all conversations, in their order."""
    return [
        Message(
            conversation["name"],
            message["name"],
            message["from"],
            _with_bytes(message["value"]),
            bytes.fromhex(message["hex"]),
        )
        for conversation in conversations()
        for message in conversation["messages"]
    ]


def shown() -> list[tuple[str, Any, bytes | None]]:
    """Return the messages that the document itself shows: name, value, and the bytes if shown."""
    return [
        (
            match["name"],
            _with_bytes(json.loads(match["json"])),
            None if match["hex"] is None else bytes.fromhex(match["hex"]),
        )
        for match in _SHOWN.finditer(PATH.read_text(encoding="utf-8"))
    ]


def pack(value: object) -> bytes:
    """Return the bytes of a message."""
    frame: bytes = msgpack.packb(value)
    return frame


def _with_bytes(value: Any) -> Any:
    """Return a JSON value with bytes in the place of every `{"hex": "00ff"}`."""
    if isinstance(value, list):
        return [_with_bytes(each) for each in value]
    if isinstance(value, dict):
        if list(value) == ["hex"]:
            return bytes.fromhex(value["hex"])
        return {key: _with_bytes(each) for key, each in value.items()}
    return value


def layout(document: dict[str, Any]) -> str:
    """Return the text of the JSON file: each part of a message on a line of its own."""

    def lines(fields: dict[str, Any], indent: str) -> str:
        return ",\n".join(
            f"{indent}{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}"
            for key, value in fields.items()
        )

    talks = []
    for conversation in document["conversations"]:
        head = {key: value for key, value in conversation.items() if key != "messages"}
        said = (f"      {{\n{lines(m, '        ')}\n      }}" for m in conversation["messages"])
        talks.append(
            f'    {{\n{lines(head, "      ")},\n      "messages": [\n'
            + ",\n".join(said)
            + "\n      ]\n    }"
        )
    return (
        f'{{\n  "protocol": {document["protocol"]},\n  "conversations": [\n'
        + ",\n".join(talks)
        + "\n  ]\n}\n"
    )


def _rewrite() -> None:
    """Write the bytes of every message in the JSON file from its value."""
    document = json.loads(EXAMPLES.read_text(encoding="utf-8"))
    for conversation in document["conversations"]:
        for message in conversation["messages"]:
            message["hex"] = pack(_with_bytes(message["value"])).hex()
    EXAMPLES.write_text(layout(document), encoding="utf-8")


if __name__ == "__main__":
    _rewrite()
