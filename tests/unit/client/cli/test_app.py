"""What the commands print with `--json` for given replies, byte for byte: scripts rely on it."""

from __future__ import annotations

import json
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
def replies(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """Let every tracker get the replies of the protocol document, at one moment.

    Returns:
        The listings among them, by their tables.
    """
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
    return pages


@pytest.mark.usefixtures("replies")
def test_json_is_printed_byte_for_byte_as_before() -> None:
    printed = ""
    for command in COMMANDS:
        arguments = ["--endpoint", "/nowhere/trackd.sock", *command.split(), "--json"]
        result = CliRunner().invoke(build(), arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        printed += f"$ trackctl {command} --json\n{result.stdout}"
    assert printed == EXPECTED.read_text(encoding="utf-8")


def printed_by(*arguments: str) -> str:
    result = CliRunner().invoke(
        build(), ["--endpoint", "/nowhere/trackd.sock", *arguments], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return result.stdout


def test_hosts_are_shown_where_there_are_some(replies: dict[str, dict[str, Any]]) -> None:
    assert "host" not in printed_by("sessions").splitlines()[0].split()
    (session,) = replies["sessions"]["rows"]
    local = {**session, "session": 99, "uid": 0}
    replies["sessions"]["rows"] = [{**session, "uid": 0, "host": "relay-7"}, local]
    head, there, here = printed_by("sessions").splitlines()
    assert head.split()[:4] == ["session", "pid", "host", "user"]
    assert there.split()[2:4] == ["relay-7", "0"], "a name of this host would mislead"
    assert here.split()[2:4] == ["-", "root"]
    rows = json.loads(printed_by("sessions", "--json"))["sessions"]
    assert [row.get("host") for row in rows] == ["relay-7", None]
    for table in ("leases", "proxies"):
        replies[table]["rows"] = [{**row, "host": "relay-7"} for row in replies[table]["rows"]]
        rows = json.loads(printed_by(table, "--json"))[table]
        assert {row["host"] for row in rows} == {"relay-7"}
