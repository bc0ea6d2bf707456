"""What the commands print with `--json` for given replies, byte for byte: scripts rely on it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from helpers.protocol_document import messages
from trackd_client import Tracker
from trackd_client.cli import common
from trackd_client.cli.app import build
from trackd_client.cli.output import listing

#: What each command prints: `$ trackctl ...` and its output, one after the other. The values are
#: those of docs/protocol-examples.json; when they change there, they change here.
EXPECTED = Path(__file__).with_name("json_output.txt")
COMMANDS = [
    "status",
    "explain",
    "explain p1.example.com",
    "proxies",
    "leases",
    "sessions",
    "log",
]
#: A user who has no name on any host.
NOBODY = 4_000_000_001


def reply(name: str) -> dict[str, Any]:
    """Return the fields of a reply that the protocol document shows."""
    (body,) = [m.body for m in messages() if m.name == name]
    return body


@pytest.fixture
def replies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every tracker get the replies of the protocol document, at one moment."""
    first, second = (reply(f"snapshot reply, the {each} page") for each in ("first", "second"))
    pages = {
        "proxies": {**first, "rows": first["rows"] + second["rows"], "cursor": None},
        "leases": reply("snapshot reply, of leases"),
        "sessions": reply("snapshot reply, of sessions"),
    }
    (session,) = pages["sessions"]["rows"]
    pages["sessions"]["rows"] = [{**session, "uid": NOBODY}]
    unknown = {"weather": {"sky": ["blue", None], "wind": 1.5}}  # of a newer daemon

    def request(_: Tracker, op: str, fields: Mapping[str, Any], **__: object) -> dict[str, Any]:
        match op:
            case "hello":
                return {**reply("hello reply"), "revision": 6, "events": ""}
            case "snapshot":
                return pages[fields["of"]]
            case "explain" if "name" in fields:
                return reply("explain reply, of a proxy")
            case "log":
                return reply("log reply")
            case _:
                return {**reply(f"{op} reply"), **unknown}

    monkeypatch.setattr(Tracker, "_request", request)
    monkeypatch.setattr(common, "diagnose", lambda _: None)
    monkeypatch.setattr(listing, "boottime", lambda: 5010.5)


@pytest.mark.usefixtures("replies")
def test_json_is_printed_byte_for_byte_as_before() -> None:
    printed = ""
    for command in COMMANDS:
        arguments = ["--endpoint", "/nowhere/trackd.sock", *command.split(), "--json"]
        result = CliRunner().invoke(build(), arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        printed += f"$ trackctl {command} --json\n{result.stdout}"
    assert printed == EXPECTED.read_text(encoding="utf-8")
