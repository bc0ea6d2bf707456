"""A daemon of root at places where others could write: refused, with what to do, and unchanged."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from helpers.support import PATIENCE
from trackd.config import exits

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")

NOBODY = 65534


@pytest.fixture
def directory() -> Iterator[Path]:
    # pytest's own directories have long names, and a socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="trackd-") as made:
        yield Path(made)


def run(directory: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run a daemon that ends by itself, with its state in `state`."""
    command = [sys.executable, "-m", "trackd", "run", "--cluster-name=example.com"]
    places = [f"--endpoint={directory}/trackd.sock", f"--state-dir={directory}/state", *flags]
    return subprocess.run(
        [*command, *places], capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def give_away(path: Path) -> None:
    os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


def refused(done: subprocess.CompletedProcess[str], *sentences: str) -> None:
    assert done.returncode == exits.UNUSABLE, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("trackd: error: ")
    for sentence in sentences:
        assert sentence in last
    assert "Traceback" not in done.stderr


def test_a_state_directory_of_somebody_else_is_refused(directory: Path) -> None:
    state = directory / "state"
    state.mkdir()
    state.chmod(0o777)
    give_away(state)
    target = directory / "target"
    target.write_text("precious")
    (state / "trackd.db").symlink_to(target)
    done = run(directory)
    refused(done, f"the state directory {state} belongs to the user 'nobody'", "--state-dir")
    assert target.read_text() == "precious"
    assert [path.name for path in state.iterdir()] == ["trackd.db"]


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770])
def test_a_state_directory_that_others_can_write_to_is_refused(directory: Path, mode: int) -> None:
    (directory / "state").mkdir()
    (directory / "state").chmod(mode)
    refused(run(directory), "can be written to by ", "give it to the daemon's user with mode 0700")
    assert list((directory / "state").iterdir()) == []


def test_state_beside_a_socket_that_everybody_may_replace_is_refused(directory: Path) -> None:
    directory.chmod(0o777)
    refused(run(directory, f"--state-dir={directory}"), "can be written to by every user")


def symbolic(path: Path, target: Path) -> None:
    path.symlink_to(target)


def hard(path: Path, target: Path) -> None:
    path.hardlink_to(target)


@pytest.mark.parametrize("make", [symbolic, hard])
@pytest.mark.parametrize(
    "name",
    [
        "state/trackd.db",
        "state/trackd.db-wal",
        "state/trackd.db-shm",
        "state/trackd.mark",
        "state/trackd.reserve",
        "state/trackd.lock",
        "trackd.sock.lock",
    ],
)
def test_a_link_that_waits_for_a_file_of_the_daemon_is_not_followed(
    directory: Path, name: str, make: Callable[[Path, Path], None]
) -> None:
    (directory / "state").mkdir(mode=0o700)
    target = directory / "target"
    target.write_text("precious")
    make(directory / name, target)
    kind = "is a symbolic link" if make is symbolic else "has 2 names (hard links)"
    refused(run(directory), f"{directory / name} {kind}", "move it away, or choose another place")
    assert target.read_text() == "precious"
    assert os.path.lexists(directory / name)


@pytest.mark.parametrize("name", ["trackd.sock.lock", "state/trackd.db"])
def test_a_file_of_somebody_else_is_not_used(directory: Path, name: str) -> None:
    (directory / "state").mkdir(mode=0o700)
    (directory / name).write_text("theirs")
    give_away(directory / name)
    refused(run(directory), f"{directory / name} belongs to the user 'nobody'")
    assert (directory / name).read_text() == "theirs"


def test_a_lock_of_http_that_is_a_link_is_not_followed(directory: Path) -> None:
    target = directory / "target"
    target.write_text("precious")
    (directory / "http.sock.lock").hardlink_to(target)
    command = [sys.executable, "-m", "trackd", "run", "--cluster-name=example.com"]
    places = [f"--endpoint={directory}/trackd.sock", f"--http=unix:{directory}/http.sock"]
    with subprocess.Popen([*command, *places], stderr=subprocess.PIPE, text=True) as daemon:
        try:
            assert daemon.stderr is not None
            line = next(line for line in daemon.stderr if "HTTP is not served" in line)
        finally:
            daemon.terminate()
            daemon.communicate(timeout=PATIENCE)
    assert "has 2 names (hard links)" in line
    assert target.read_text() == "precious"
