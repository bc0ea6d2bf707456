"""Closed, full and broken streams, and signals that mean nothing: nothing ends silently."""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.support import PATIENCE, serves, socket_path, wait_until
from trackd.config import exits
from trackd.signals import name_signal
from trackd_client import Tracker, metrics
from trackd_client.testing import Daemon, MakeDaemon

TRACKD = f"{shlex.quote(sys.executable)} -m trackd"
#: What a shell writes behind a command, for each of its streams.
INPUTS = {"open": "</dev/null", "closed": "<&-"}
OUTPUTS = {"open": ">out", "closed": ">&-", "full": ">/dev/full"}
ERRORS = {"open": "2>err", "closed": "2>&-", "full": "2>/dev/full"}


@contextlib.contextmanager
def shell(command: str, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command of a shell in a directory, and end it at the end of the block."""
    process = subprocess.Popen(["sh", "-c", f"exec {command}"], cwd=directory)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


# -- the daemon -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "third"), [*itertools.product(INPUTS, OUTPUTS, ERRORS)]
)
def test_the_daemon_serves_and_ends_whatever_its_streams_are(
    make_trackd_daemon: MakeDaemon, first: str, second: str, third: str
) -> None:
    daemon = make_trackd_daemon(start=False)
    streams = f"{INPUTS[first]} {OUTPUTS[second]} {ERRORS[third]}"
    command = f"{TRACKD} run {shlex.join(daemon._flags)} {streams}"
    with shell(command, daemon.directory) as process:
        wait_until(lambda: answers(daemon) or process.poll() is not None)
        open_files = Path(f"/proc/{process.pid}/fd")
        links = [str((open_files / str(number)).readlink()) for number in range(3)]
        for link in links:
            assert link.startswith("/dev/") or link.endswith(("/out", "/err")), links
        with Tracker(daemon.endpoint, timeout=PATIENCE) as tracker:
            if third == "open":
                assert not dropped_lines(tracker)
            else:  # a thread of its own writes them
                wait_until(lambda: dropped_lines(tracker))
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == exits.OK
    for name in ("out", "err"):
        file = daemon.directory / name
        assert not file.exists() or "Traceback" not in file.read_text()
    if third == "open":
        assert "serving" in (daemon.directory / "err").read_text()


def dropped_lines(tracker: Tracker) -> float:
    """Return how many log lines were lost, as the daemon counts them."""
    return metrics.total(tracker.metrics()["families"], "trackd_log_lines_dropped")


def answers(daemon: Daemon) -> bool:
    done = subprocess.run(
        [sys.executable, "-m", "trackd", "ping", "--endpoint", daemon.endpoint],
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode == 0


@pytest.mark.parametrize("third", ERRORS)
def test_a_start_that_fails_has_its_exit_code_whatever_its_streams_are(
    tmp_path: Path, third: str
) -> None:
    command = f"{TRACKD} run --cluster-name=c --endpoint=/nowhere/at/all/s {ERRORS[third]}"
    with shell(command, tmp_path) as process:
        assert process.wait(PATIENCE) == exits.UNUSABLE
    if third == "open":
        assert (tmp_path / "err").read_text().count("\n") == 1


# -- other commands ---------------------------------------------------------------------------


@pytest.mark.parametrize("second", ["closed", "full"])
@pytest.mark.parametrize(
    "command", ["--version", "--help", "run --help", "check-config file", "ping --help", "demo"]
)
def test_output_that_is_lost_is_a_sentence_and_a_code(
    tmp_path: Path, command: str, second: str
) -> None:
    (tmp_path / "file").write_text('cluster_name = "example.com"\n')
    plain = "--plain --agents 1 --proxies 1" if command == "demo" else ""
    with shell(f"{TRACKD} {command} {plain} {OUTPUTS[second]} 2>err", tmp_path) as process:
        assert process.wait(3 * PATIENCE) == exits.FAILED
    said = (tmp_path / "err").read_text()
    why = {"closed": "Bad file descriptor", "full": "No space left on device"}[second]
    assert said == f"trackd: error: cannot write: {why}\n"


@pytest.mark.parametrize("third", ["closed", "full"])
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("--no-such-flag", exits.USAGE),
        ("check-config nowhere", exits.USAGE),
        ("ping --timeout=never", exits.USAGE),
        ("ping --endpoint=/nowhere/s", exits.NO_DAEMON),
        ("--version", exits.OK),
    ],
)
def test_an_error_that_nobody_can_read_keeps_its_code(
    tmp_path: Path, command: str, code: int, third: str
) -> None:
    with shell(f"{TRACKD} {command} >out {ERRORS[third]}", tmp_path) as process:
        assert process.wait(PATIENCE) == code
    assert "Traceback" not in (tmp_path / "out").read_text()
    assert ("trackd " in (tmp_path / "out").read_text()) == (code == exits.OK)


def test_a_reader_that_has_left_is_not_an_error_to_report(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "trackd", "--help"],
        stdout=write,
        stderr=subprocess.PIPE,
        timeout=PATIENCE,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (exits.FAILED, b"")


# -- signals ----------------------------------------------------------------------------------

#: All that would end a process, but those that a process cannot survive or that stop the daemon.
MEANINGLESS = [
    *("USR1", "USR2", "ALRM", "VTALRM", "PROF", "IO", "XCPU", "PWR", "STKFLT"),
    *("RTMIN", "RTMAX"),
]


def test_signals_that_mean_nothing_are_logged_and_the_daemon_goes_on(
    trackd_daemon: Daemon,
) -> None:
    for name in MEANINGLESS:
        number = int(getattr(signal, f"SIG{name}"))
        os.kill(trackd_daemon.pid, number)
        said = f"signal ignored signal={name_signal(number)} pid={os.getpid()} uid={os.getuid()}"
        wait_until(lambda said=said: said in trackd_daemon.log.read_text())  # type: ignore[misc]
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD, signal.SIGWINCH, signal.SIGURG):
        os.kill(trackd_daemon.pid, number)
    assert serves(trackd_daemon)
    assert trackd_daemon.stop() == exits.OK


def test_sigquit_stops_it_in_order(trackd_daemon: Daemon) -> None:
    path = socket_path(trackd_daemon)
    assert trackd_daemon._end(signal.SIGQUIT) == exits.OK
    assert "stopping signal=SIGQUIT" in trackd_daemon.log.read_text()
    assert not path.exists()


@pytest.mark.parametrize("name", ["ABRT", "SEGV", "BUS", "FPE", "ILL", "SYS", "TRAP"])
def test_a_fault_leaves_a_line_that_says_where_each_thread_was(
    trackd_daemon: Daemon, name: str
) -> None:
    number = getattr(signal, f"SIG{name}")
    assert trackd_daemon._end(number) == -number
    assert "(most recent call first)" in trackd_daemon.log.read_text()


def test_each_signal_has_a_name() -> None:
    assert name_signal(signal.SIGTERM) == "SIGTERM"
    assert name_signal(int(signal.SIGRTMIN) + 2) == "SIGRTMIN+2"
