"""`trackctl claim` as ssh runs it: without what the other commands need."""

from __future__ import annotations

import subprocess
import sys

import pytest

from trackd_client.cli import quick_claim
from trackd_client.cli.exit_codes import NO_DAEMON

RUN = """
import sys
from trackd_client.cli import main
sys.argv = ["trackctl", "claim", "p1.example.com", "p1"]
try:
    main()
except SystemExit as end:
    code = end.code
assert not {"click", "rich"} & set(sys.modules), "they take most of the time"
sys.exit(code)
"""


def test_a_claim_needs_neither_click_nor_rich() -> None:
    environ = {"PATH": "/usr/bin:/bin"}
    result = subprocess.run(
        [sys.executable, "-c", RUN], env=environ, capture_output=True, text=True, check=False
    )
    assert result.returncode == NO_DAEMON, result.stderr
    assert result.stderr == (
        "trackctl: $TRACKD_CLAIM_SOCKET is not set: this is no run of hold or keep\n"
    )


@pytest.mark.parametrize("arguments", [[], ["--help"], ["p1", "--json"], [""], ["p 1"], ["p1\n"]])
def test_all_but_names_is_left_to_the_whole_command(arguments: list[str]) -> None:
    assert quick_claim.main(arguments) is None


def test_what_the_owner_says_cannot_reach_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(quick_claim.VARIABLE, "/nowhere")
    monkeypatch.setattr(quick_claim, "ask", lambda *_: "held p1\x1b[2J")
    assert quick_claim.main(["p1"]) == 1
    assert capsys.readouterr().err == "trackctl: another lease holds p1\\x1b[2J\n"
