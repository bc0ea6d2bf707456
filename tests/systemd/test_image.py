"""The Containerfile: its steps in a root file system of its own, and the pod of docs/containers.md.

No builder of images is needed. Debian's Python stands for the base image, and nothing is fetched.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers.support import wait_until
from systemd.machine import PATIENCE, REPOSITORY, copy_of_root

pytestmark = [pytest.mark.slow, pytest.mark.timeout(480)]

PAGE = (REPOSITORY / "docs/containers.md").read_text(encoding="utf-8")
#: Where the Python of the base image is.
PYTHON = "/opt/python"
ENVIRON = ["env", "-i", f"PATH={PYTHON}/bin:/usr/bin:/bin", "LANG=C.UTF-8"]
#: Runs its arguments in a root file system, as process 1 of a container.
INSIDE = """
set -e
root=$1; shift
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
while [ "$1" != -- ]; do mkdir -p "$root$2"; mount --bind "$1" "$root$2"; shift 2; done
shift
exec chroot "$root" "$@"
"""
CONTAINER = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", INSIDE, "sh"]
#: An agent that claims a proxy and is killed when its input ends.
AGENT = """
import os, signal, sys
from trackd_client import Tracker
with Tracker(name="agent", timeout=60) as tracker:
    tracker.adopt("proxy")
    print(tracker.status()["claimed"], flush=True)
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def steps() -> list[tuple[str, str]]:
    """Return the instructions of the Containerfile."""
    lines = (REPOSITORY / "Containerfile").read_text(encoding="utf-8").splitlines()
    split = [line.partition(" ") for line in lines if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in split]


@pytest.fixture(scope="module")
def image(can_boot: None) -> Iterator[Path]:
    """The root file system of the image."""
    with copy_of_root() as root:
        run(root, "python3", "-m", "venv", PYTHON)
        for word, rest in steps():
            if word == "COPY":
                copy(root, rest.split())
            elif word == "RUN":
                run(root, "sh", "-ec", rest)
            else:
                assert word in {"FROM", "ENTRYPOINT", "CMD"}
        yield root


def run(root: Path, *command: str) -> None:
    ran = subprocess.run(
        [*CONTAINER, root, "--", *ENVIRON, *command],
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def copy(root: Path, words: list[str]) -> None:
    *sources, target = words
    place = root / target.lstrip("/")
    for name in sources:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, place)


@contextmanager
def pod(image: Path, directory: Path, *args: str) -> Iterator[int]:
    """Run the daemon with volumes that everybody can write to; yield its pid on the host."""
    volumes = []
    for name, mounted in (("trackd", "/run/trackd"), ("state", "/state")):
        volume = directory / name
        volume.mkdir(exist_ok=True)
        os.chown(volume, 0, 2000)  # fsGroup
        volume.chmod(0o2777)
        volumes += [str(volume), mounted]
    entry = json.loads(dict(steps())["ENTRYPOINT"])
    become = ["setpriv", "--reuid=1001", "--regid=1001", "--groups=2000", "--"]
    environ = [*ENVIRON, "TRACKD_ENDPOINT=ipc:///run/trackd/trackd.sock"]
    outer = subprocess.Popen(
        [*CONTAINER, str(image), *volumes, "--", *environ, *become, *entry, *args]
    )
    try:
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
        wait_until(children.read_text)
        first = int(children.read_text())
        wait_until(lambda: beside(first, "trackd", "ping", "--timeout=5").returncode == 0)
        yield first
        os.kill(first, signal.SIGTERM)
        assert outer.wait(PATIENCE) == 0
    finally:
        outer.kill()
        outer.wait()


def entering(first: int, user: int, *command: str) -> list[str]:
    """Return what runs a command in another container of the pod, which shares its processes."""
    enter = ["nsenter", f"--target={first}", "--mount", "--pid", "--root", "--wd=/", "--"]
    become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--groups=2000", "--"]
    environ = [*ENVIRON, "TRACKD_ENDPOINT=ipc:///run/trackd/trackd.sock"]
    return [*enter, *environ, *become, *command]


def beside(first: int, *command: str, user: int = 1001) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        entering(first, user, *command),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_the_image_runs_as_the_pod_of_the_page_says(image: Path) -> None:
    (given,) = re.findall(r"^      args: \[(.*)\]$", PAGE, re.MULTILINE)
    args = [word.strip() for word in given.split(",")]
    assert not (image / "src").exists(), "the source is no part of the image"
    with tempfile.TemporaryDirectory(prefix="trackd-") as directory:
        with pod(image, Path(directory), *args) as first:
            assert "trackd" in Path(f"/proc/{first}/cmdline").read_text()
            for probe in re.findall(r"command: \[(trackd, ping.*?)\]", PAGE):
                done = beside(first, *(word.strip() for word in probe.split(",")))
                assert (done.returncode, done.stderr) == (0, "")
            command = entering(first, 1002, f"{PYTHON}/bin/python", "-c", AGENT)
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as agent:
                assert agent.stdout is not None
                assert agent.stdout.readline() == b"1\n"
                told = beside(first, "trackctl", "sessions", "--json")
                (session,) = [
                    row for row in json.loads(told.stdout)["sessions"] if row["name"] == "agent"
                ]
                assert (session["uid"], session["visible"]) == (1002, True)
                stranger = beside(first, "trackctl", "end-session", "1", user=1002)
                assert stranger.returncode == 1, "it is no admin"
                assert claimed(first) == 1
                agent.communicate(timeout=PATIENCE)
            wait_until(lambda: claimed(first) == 0)
            assert beside(first, "sh", "-c", "(exec sleep 0) &").returncode == 0
            wait_until(lambda: not Path(f"/proc/{first}/task/{first}/children").read_text())
        state = Path(directory) / "state" / "trackd"
        assert state.stat().st_mode & 0o777 == 0o700
        assert [path.name for path in state.iterdir()] == ["trackd.db"]


def claimed(first: int) -> int:
    done = beside(first, "trackctl", "status", "--json")
    assert done.returncode == 0, shlex.join(done.args) + done.stderr
    found: int = json.loads(done.stdout)["claimed"]
    return found


def test_without_arguments_the_image_says_what_is_missing(image: Path) -> None:
    entry, command = (json.loads(dict(steps())[word]) for word in ("ENTRYPOINT", "CMD"))
    ran = subprocess.run(
        [*CONTAINER, str(image), "--", *ENVIRON, *entry, *command],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ran.returncode == 2
    assert "--cluster-name" in ran.stderr
