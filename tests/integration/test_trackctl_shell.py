"""What `trackctl` gives to shells and manual readers: help, completion, the manual page."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from helpers.support import wait_until
from helpers.trackctl import PLAIN, trackctl
from trackd_client import Proxy, Tracker
from trackd_client.cli import app, man
from trackd_client.cli.common import SECTIONS
from trackd_client.testing import Daemon

COMMANDS = sorted(app.build().commands)


def test_every_command_stands_in_a_section_of_the_help() -> None:
    assert sorted(name for names in SECTIONS.values() for name in names) == COMMANDS
    told = trackctl("--help")
    assert told.returncode == 0
    for title, names in SECTIONS.items():
        assert f"{title}:" in told.stdout
        for name in names:
            assert f"\n  {name} " in told.stdout
    assert "..." not in told.stdout.partition("Examples")[0].partition("\n\n")[2], "cut"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_each_command_has_examples_that_it_understands(name: str) -> None:
    told = trackctl(name, "--help")
    assert told.returncode == 0
    assert "Examples:" in told.stdout
    assert max(map(len, told.stdout.splitlines())) <= 80, "a terminal would fold it"
    assert f"trackctl {name}" in told.stdout or f"trackctl --cluster example.com {name}" in (
        told.stdout
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_prints_json_takes_the_option_and_says_what_is_in_it(name: str) -> None:
    command = app.build().commands[name]
    has_option = any("--json" in option.opts for option in command.params)
    assert has_option == (name not in {"completion", "hold", "keep", "claim", "top", "dump"})
    if has_option:
        assert "JSON:" in (command.epilog or ""), "its fields are not documented"


def complete(*words: str) -> list[str]:
    """Have bash load the script and complete the last word."""
    script = trackctl("completion", "bash")
    assert script.returncode == 0, script.stderr
    call = f"""{script.stdout}
        COMP_WORDS=({shlex.join(("trackctl", *words))}); COMP_CWORD={len(words)}
        _trackctl_completion trackctl
        printf '%s\\n' "${{COMPREPLY[@]}}\""""
    done = subprocess.run(
        ["bash", "--norc", "-c", call],
        # The script runs whatever is called so; ours lies beside the interpreter.
        env=PLAIN | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completes_commands_and_options() -> None:
    assert complete("sta") == ["status"]
    assert "--reply-fd" in complete("hold", "--re")
    assert complete("completion", "f") == ["fish"]


def test_bash_completes_what_the_daemon_has(trackd_daemon: Daemon) -> None:
    endpoint = ("--endpoint", trackd_daemon.endpoint)
    with Tracker(trackd_daemon.endpoint) as tracker:
        tracker.track_expected(Proxy("p1"), Proxy("p2"), Proxy("q"))
        lease = tracker.try_acquire()
        assert lease is not None
        assert lease.claim("p1"), "so that it lasts"
        # A daemon that takes a second to answer offers nothing.
        wait_until(lambda: complete(*endpoint, "explain", "p") == ["p1", "p2"])
        wait_until(lambda: complete(*endpoint, "log", "--proxy", "q") == ["q"])
        wait_until(lambda: complete(*endpoint, "release", "") == ["1"])
        wait_until(lambda: complete(*endpoint, "end-session", "") == ["1"])
    trackd_daemon.stop()
    assert complete(*endpoint, "explain", "p") == []


def test_no_name_that_a_peer_chose_runs_or_expands_in_the_shell(
    trackd_daemon: Daemon, tmp_path: Path
) -> None:
    pwned = tmp_path / "pwned"
    evil = [
        f"p;touch${{IFS}}{pwned}",
        f"p$(touch {pwned})",
        f"p`touch {pwned}`",
        "p*",
        "p~",
        "p q",
        "p,q",
        "p{1,2}",
        "p'",
        'p"',
        "p\\",
        "p!!",
        "p#",
        "p>x",
        "p|x",
        "p&",
        "p=x",
    ]
    endpoint = ("--endpoint", trackd_daemon.endpoint)
    with Tracker(trackd_daemon.endpoint) as tracker:
        tracker.track_expected(
            *map(Proxy, [*evil, "p-1.example.com:3024", "pä_2", "--help", "=ls"])
        )
        good = ["p-1.example.com:3024", "pä_2"]
        wait_until(lambda: complete(*endpoint, "explain", "p") == good)
        wait_until(lambda: complete(*endpoint, "forget", "") == good)
    assert not pwned.exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script_that_it_can_read(shell: str) -> None:
    script = trackctl("completion", shell)
    assert script.returncode == 0
    assert "_TRACKCTL_COMPLETE" in script.stdout
    assert shell in script.stdout
    if shutil.which(shell) is not None:
        checked = subprocess.run([shell, "-n"], input=script.stdout, text=True, check=False)
        assert checked.returncode == 0


def test_the_manual_page_tells_every_command_and_option(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "trackd_client.cli.man", tmp_path], check=True)
    page = (tmp_path / "trackctl.1").read_text()
    for section in ("NAME", "SYNOPSIS", "OPTIONS", "COMMANDS", "NOTES"):
        assert f"\n.SH {section}\n" in page
    for name, command in app.build().commands.items():
        assert f"\\fBtrackctl {man.escape(name)}\\fR" in page
        for option in command.params:
            if isinstance(option, click.Option):
                assert man.escape(option.opts[0]) in page


def test_a_formatter_of_manual_pages_finds_nothing_to_complain_about(tmp_path: Path) -> None:
    if shutil.which("groff") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI has no groff")
        pytest.skip("there is no groff to format a manual page with")
    man.main(str(tmp_path))
    formatted = subprocess.run(
        ["groff", "-man", "-ww", "-Tutf8", "-P-cbou", tmp_path / "trackctl.1"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert formatted.stderr == ""
    assert "trackctl hold [OPTIONS] -- COMMAND..." in formatted.stdout
    assert "while trackctl hold -- ./agent.sh; do :; done" in formatted.stdout


def test_the_page_about_trackctl_names_every_command_and_every_field_of_its_json() -> None:
    page = (Path(__file__).parents[2] / "docs" / "trackctl.md").read_text()
    shown, _, rest = page.partition("## Exit codes")
    listed = re.findall(r"^\| `([a-z-]+)", shown, re.MULTILINE)
    assert sorted(set(listed)) == COMMANDS
    fields = rest.partition("## JSON")[2]
    for name in COMMANDS:
        told = (app.build().commands[name].epilog or "").partition("JSON:")[2]
        for field in re.findall(r'"([a-z_]+)"', told):
            assert f"`{field}`" in fields, f"{field} of {name}"
