"""What a host can do to agents and daemons: other users, namespaces, small disks, reused pids.

What needs root, or a kernel that allows it, skips the test elsewhere and says why.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from helpers.support import PATIENCE, wait_until
from trackd_client.testing import Daemon

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can do this to a host")

_AS_USER = """
import json, os, sys
sys.path.insert(0, {tests!r})
import zmq
from helpers.support import RawPeer, pack
from trackd_client import Proxy, Tracker, errors
endpoint, uid, gid, groups = json.loads(sys.argv[1])
os.setgroups(groups)
os.setgid(gid)
os.setuid(uid)
"""


def as_user(endpoint: str, code: str, uid: int, gid: int, groups: tuple[int, ...] = ()) -> Any:
    """Run Python code as another user, and return what it leaves in `result`.

    It finds `endpoint`, `RawPeer`, `Tracker`, `Proxy` and `errors`, all of them imported while
    it still was root, so that the user need not be able to read them.
    """
    script = (
        _AS_USER.format(tests=str(Path(__file__).parents[1])) + code + "\nprint(json.dumps(result))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps([endpoint, uid, gid, groups])],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@contextmanager
def running_as(endpoint: str, code: str, uid: int) -> Iterator[Any]:
    """Run code as another user until the block ends; yield the line of JSON that it prints.

    It finds the same as that of `as_user`, and waits at the end: `sys.stdin.read()`.
    """
    script = _AS_USER.format(tests=str(Path(__file__).parents[1])) + code
    process = subprocess.Popen(
        [sys.executable, "-c", script, json.dumps([endpoint, uid, uid, []])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, "it failed"
        yield json.loads(line)
    finally:
        process.communicate(timeout=PATIENCE)


def let_everybody_in(daemon: Daemon) -> None:
    """Let other users reach a daemon's socket; its mode is the daemon's own business."""
    daemon.directory.chmod(0o711)
    daemon.directory.parent.chmod(0o711)


@contextmanager
def started_by(wrapper: str, directory: Path) -> Iterator[None]:
    """Let daemons that are started within the block be started by a command.

    Args:
        wrapper: shell code that ends in running `"$@"`.
        directory: for the script.
    """
    script = directory / "start-daemon"
    script.write_text(f'#!/bin/sh\nset -e\nset -- {sys.executable} "$@"\n{wrapper}\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    with patch.object(sys, "executable", str(script)):
        yield


#: A daemon that cannot see the processes outside; it ends with the process that started it.
IN_A_PID_NAMESPACE = 'exec unshare --pid --fork --kill-child --mount-proc "$@"'


@contextmanager
def small_disk(directory: Path, size: str) -> Iterator[Path]:
    """Mount a file system of a few bytes on a directory for as long as the block runs."""
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(directory)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def fill(directory: Path) -> Path:
    """Leave no room on the disk of a directory; return the file that takes it all."""
    path = directory / "full"
    with path.open("wb", buffering=0) as file:
        for size in (65_536, 4096):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return path


def process_with_pid(pid: int) -> subprocess.Popen[bytes]:
    """Start a process that has a pid which is free; others may be faster, so it tries often."""
    last = Path("/proc/sys/kernel/ns_last_pid")
    started: list[subprocess.Popen[bytes]] = []

    def try_it() -> bool:
        last.write_text(str(pid - 1))
        process = subprocess.Popen(["sleep", "60"])
        if process.pid == pid:
            started.append(process)
            return True
        process.kill()
        process.wait()
        return False

    wait_until(try_it)
    return started[0]
