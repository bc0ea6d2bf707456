"""`trackd demo` as a person runs it: what it tells, what it catches, and that nothing stays."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import pty
import random
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trackd import demo
from trackd.demo import scenes, stage
from trackd.demo.network import Network

TRACKD = [sys.executable, "-m", "trackd"]
SMALL = ["demo", "--agents", "3", "--proxies", "3", "--seed", "1"]
PATIENCE = 60.0  # seconds for anything that must happen


def wait_until(is_true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not is_true():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.01)


def stat_fields(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the name: state, parent, …; None when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


class Process:
    """A process as /proc shows it, safe against reused ids."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._started = (stat_fields(pid) or [""] * 20)[19]

    @property
    def runs(self) -> bool:
        fields = stat_fields(self.pid)
        return fields is not None and fields[19] == self._started and fields[0] != "Z"


def children_of(pid: int) -> list[Process]:
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [Process(one) for one in pids if (fields := stat_fields(one)) and int(fields[1]) == pid]


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the demo puts its temporary directory; its path is short, for there will be a socket.

    What is left in it at the end is a failure of the test.
    """
    with tempfile.TemporaryDirectory(prefix="demo-test-") as directory:
        monkeypatch.setenv("TMPDIR", directory)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(directory)
        left = list(Path(directory).rglob("*"))
    assert left == []


@pytest.fixture
def watched() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Demos that the test started; whatever is left of them is ended."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def read_until(process: subprocess.Popen[bytes], words: str) -> str:
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line.decode()
        if words in seen:
            return seen
    raise AssertionError(f"{words!r} never came in:\n{seen}")


@pytest.mark.slow
def test_a_small_demo_passes_and_leaves_nothing(scratch: Path) -> None:
    ran = subprocess.run(
        [*TRACKD, *SMALL, "--plain"],
        capture_output=True,
        text=True,
        timeout=10 * PATIENCE,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for number, scene in enumerate(scenes.SCENES, 1):
        assert f"scene {number} of {len(scenes.SCENES)}: {scene.title}" in ran.stdout
        assert re.search(rf"(?m)^{number} {scene.title} +\d+\.\d\d s +\d+ +\d+$", ran.stdout)
    assert "invariant (no proxy ever had two tunnels): kept" in ran.stdout
    assert "FAILED" not in ran.stdout
    assert ran.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("scene 1", signal.SIGINT),
        ("agents start", signal.SIGINT),
        ("old proxies end", signal.SIGINT),
        ("old tunnels are still there", signal.SIGTERM),
        ("agents start", signal.SIGHUP),
    ],
)
def test_a_signal_at_any_moment_stops_everything_and_leaves_nothing(
    moment: str,
    number: signal.Signals,
    scratch: Path,
    watched: list[subprocess.Popen[bytes]],
) -> None:
    process = subprocess.Popen(
        [*TRACKD, *SMALL, "--plain"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    watched.append(process)
    read_until(process, moment)
    family = children_of(process.pid)
    process.send_signal(number)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number
    assert f"stopped by {number.name}" in said.decode()
    assert "Traceback" not in said.decode()
    assert [one.pid for one in family if one.runs] == []


@pytest.mark.slow
def test_children_do_not_outlive_a_demo_that_is_killed(
    scratch: Path, watched: list[subprocess.Popen[bytes]]
) -> None:
    process = subprocess.Popen(
        [*TRACKD, *SMALL, "--plain"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    watched.append(process)
    read_until(process, "scene 2")
    family = children_of(process.pid)
    assert len(family) == 4, "a daemon and three agents"
    process.kill()
    process.wait()
    try:
        wait_until(lambda: not any(one.runs for one in family), "no child is left")
    finally:
        for one in family:
            if one.runs:
                os.kill(one.pid, signal.SIGKILL)
        for path in scratch.iterdir():  # which nobody was left to clear away
            shutil.rmtree(path)


@pytest.mark.slow
def test_the_demo_survives_a_reader_that_leaves(
    scratch: Path, watched: list[subprocess.Popen[bytes]]
) -> None:
    process = subprocess.Popen(
        [*TRACKD, *SMALL, "--plain"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    watched.append(process)
    read_until(process, "agents start")
    family = children_of(process.pid)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr as errors:
        said = errors.read()
    assert process.wait(PATIENCE) == 1
    assert said == b""
    assert [one.pid for one in family if one.runs] == []


@pytest.mark.slow
def test_ctrl_c_at_a_terminal_ends_the_live_display_and_everything_else(
    scratch: Path, watched: list[subprocess.Popen[bytes]]
) -> None:
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    before = termios.tcgetattr(terminal)
    process = subprocess.Popen(
        # The shell's part: a session of its own with this terminal.
        [sys.executable, "-c", CONTROLLING.format(command=[*TRACKD, *SMALL])],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        env=os.environ | {"TERM": "xterm-256color"},
    )
    watched.append(process)
    seen = b""

    def is_seen(words: bytes) -> bool:
        nonlocal seen
        while select.select([master], [], [], 0)[0]:
            seen += os.read(master, 65536)
        return words in seen

    wait_until(lambda: is_seen(b"agents start"), "the agents start")
    family = children_of(process.pid)
    assert family != []
    os.write(master, b"\x03")
    wait_until(lambda: is_seen(b"stopped by SIGINT") and process.poll() is not None, "it ends")
    after = termios.tcgetattr(terminal)
    os.close(terminal)
    os.close(master)
    assert process.returncode == 130
    assert b"\x1b[?1049h" in seen, "the live display has a screen of its own"
    assert seen.rindex(b"\x1b[?1049l") < seen.rindex(b"stopped by SIGINT")
    assert after == before
    assert [one.pid for one in family if one.runs] == []


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--plain"]])
def test_a_terminal_that_is_closed_ends_the_demo_without_a_word(
    flags: list[str], scratch: Path, watched: list[subprocess.Popen[bytes]]
) -> None:
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", CONTROLLING.format(command=[*TRACKD, *SMALL, *flags])],
        stdin=terminal,
        stdout=terminal,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=os.environ | {"TERM": "xterm-256color"},
    )
    watched.append(process)
    os.close(terminal)
    seen = b""
    while b"agents start" not in seen:
        seen += os.read(master, 65536)
    family = children_of(process.pid)
    assert family != []
    os.close(master)
    _, complaint = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert complaint == b""
    assert [one.pid for one in family if one.runs] == []


CONTROLLING = """
import fcntl, os, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
command = {command}
os.execv(command[0], command)
"""

ROGUE = """
import os, socket, sys, time
host, port = sys.argv[sys.argv.index("--balancer") + 1].split(":")
kept = []
while True:
    kept.append(socket.create_connection((host, int(port))))
    kept[-1].sendall(b"dial rogue-1\\nkeep\\n")
    time.sleep(0.05)
"""


def test_agents_that_keep_tunnels_without_a_claim_are_found_out(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stage, "AGENT_COMMAND", [sys.executable, "-c", ROGUE])
    args = argparse.Namespace(agents=1, proxies=1, seed=1, plain=True)
    said, timeout = "", 1.5  # the scene always fails; it need only last until there are two tunnels
    while "BROKEN" not in said and timeout < PATIENCE:
        monkeypatch.setattr(scenes, "SCENE_TIMEOUT", timeout)
        assert demo.main(args) == 1
        said = capsys.readouterr().out
        timeout *= 4
    assert "BROKEN: east-1-01 has 2 tunnels: rogue-1, rogue-1" in said
    assert "(no proxy ever had two tunnels): broken" in said
    assert "FAILED: waited in vain until every agent has a session" in said
    assert "the daemon says: tracked 0, desired 0, claimed 0, in flight 0, sessions 0" in said


def test_an_agent_that_dies_is_reported_with_its_last_words(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dying = [sys.executable, "-c", "raise SystemExit('I cannot go on')"]
    monkeypatch.setattr(stage, "AGENT_COMMAND", dying)
    args = argparse.Namespace(agents=1, proxies=1, seed=1, plain=True)
    assert demo.main(args) == 1
    said = capsys.readouterr().out
    assert "agent-1 ended by itself with 1\n  agent-1: I cannot go on" in said


async def dialled(network: Network, agent: str) -> socket.socket:
    """A connection to a proxy, by hand."""
    host, port = network.address.split(":")
    connection = socket.create_connection((host, int(port)))
    connection.sendall(f"dial {agent}\n".encode())
    dials = network.ledger.dials[agent]
    await true_in_loop(lambda: network.ledger.dials[agent] > dials)
    return connection


async def true_in_loop(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not is_true():  # noqa: ASYNC110 - the network has no event for it
            await asyncio.sleep(0.01)


def test_two_connections_kept_at_one_proxy_break_the_invariant() -> None:
    async def scene() -> None:
        network = Network("example.com", random.Random(1))
        network.deploy("east", 1, 1)
        await network.open()
        with (
            await dialled(network, "agent-1") as first,
            await dialled(network, "agent-2") as second,
        ):
            first.sendall(b"keep\n")
            await true_in_loop(lambda: network.ledger.kept == 1)
            assert network.ledger.broken == []
            second.sendall(b"keep\n")
            await true_in_loop(lambda: network.ledger.kept == 2)
        await network.close()
        assert network.ledger.broken == ["east-1-01 has 2 tunnels: agent-1, agent-2"]

    asyncio.run(scene())


@pytest.mark.parametrize("reset", [False, True])
def test_a_tunnel_that_has_ended_unread_is_no_second_tunnel(*, reset: bool) -> None:
    async def scene() -> None:
        network = Network("example.com", random.Random(1))
        network.deploy("east", 1, 1)
        await network.open()
        first = await dialled(network, "agent-1")
        with await dialled(network, "agent-2") as second:
            first.sendall(b"keep\n")
            await true_in_loop(lambda: network.ledger.kept == 1)
            # The network's loop does not run in between, and will find both at once; sent in
            # this order so that it reads the successor first.
            second.sendall(b"keep\n")
            if reset:
                first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            first.close()
            await true_in_loop(lambda: network.ledger.holder("east-1-01") == "agent-2")
            assert network.ledger.broken == []
            assert network.ledger.kept == 1
        await network.close()

    asyncio.run(scene())


def test_agents_know_the_client_and_nothing_else_of_trackd() -> None:
    code = "import sys, trackd.demo.agent; print(*sorted(sys.modules))"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    loaded = ran.stdout.split()
    assert "trackd_client" in loaded
    ours = [name for name in loaded if name == "trackd" or name.startswith("trackd.")]
    assert ours == ["trackd", "trackd.demo", "trackd.demo.agent"]
    assert not {"pykka", "rich", "asyncio"} & set(loaded)


def test_help_tells_every_flag() -> None:
    ran = subprocess.run(
        [*TRACKD, "demo", "--help"], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    for flag in ("--agents", "--proxies", "--seed", "--plain"):
        assert flag in ran.stdout
