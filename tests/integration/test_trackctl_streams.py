"""Standard input, output and error that are closed or full: a sentence and a code, no traceback."""

from __future__ import annotations

import shlex
import subprocess

import pytest

from helpers.trackctl import PLAIN, TRACKCTL
from trackd_client.testing import Daemon


def shell(command: str, daemon: Daemon) -> subprocess.CompletedProcess[str]:
    """Run a command in bash, in which `trackctl` asks a daemon."""
    script = f'trackctl() {{ {shlex.join(TRACKCTL)} "$@"; }}\n{command}'
    return subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=PLAIN | {"TRACKD_ENDPOINT": daemon.endpoint},
    )


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("trackctl status >&-", 1, "trackctl: cannot read or write: Bad file descriptor\n"),
        ("trackctl status >/dev/full", 1, "trackctl: cannot read or write: No space left on"),
        ("trackctl proxies --json >/dev/full", 1, "cannot read or write: No space left"),
        ("trackctl watch >/dev/full", 1, "cannot read or write: No space left"),
        ("trackctl metrics >&-", 1, "cannot read or write: Bad file descriptor"),
        ("trackctl dump - >/dev/full", 1, "cannot read or write: No space left"),
        ("trackctl doctor >/dev/full", 1, "cannot read or write: No space left"),
        ("trackctl --help >/dev/full", 1, "cannot read or write: No space left"),
        ("trackctl completion bash >&-", 1, "cannot read or write: Bad file descriptor"),
        ("trackctl gossip <&-", 1, "cannot read or write: Bad file descriptor"),
        ("trackctl gossip --follow <&-", 1, "cannot read or write: Bad file descriptor"),
        ("trackctl hold -- false >&- <&-", 1, ""),
        ("trackctl hold -- no-such-command 2>&-", 127, ""),
        ("trackctl end-session 99 2>&-", 1, ""),
        ("trackctl end-session 99 2>/dev/full", 1, ""),
        ("trackctl no-such-command 2>/dev/full", 2, ""),
        ("trackctl status >&- 2>&- <&-", 1, ""),
    ],
)
def test_what_cannot_be_read_or_written_is_a_sentence_or_a_code(
    trackd_daemon: Daemon, command: str, code: int, words: str
) -> None:
    ran = shell(command, trackd_daemon)
    assert ran.returncode == code, ran.stderr
    assert words in ran.stderr
    assert len(ran.stderr.splitlines()) == (1 if words else 0), ran.stderr


def test_nothing_that_is_printed_reaches_a_socket(trackd_daemon: Daemon) -> None:
    # A closed descriptor would be taken by a connection, which would get the remarks.
    ran = shell("trackctl proxies 2>&-; trackctl status 2>&- | head -1", trackd_daemon)
    assert ran.stdout.startswith("example.com"), ran.stdout
    assert ran.stderr == ""


def test_a_reader_that_goes_ends_the_writer_quietly(trackd_daemon: Daemon) -> None:
    ran = shell("trackctl metrics | head -1; echo ${PIPESTATUS[0]}", trackd_daemon)
    assert ran.stderr == ""
    assert "Traceback" not in ran.stdout
