"""docs/containers.md: what the daemon sees of agents in other pid namespaces."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers.support import PATIENCE, needed, wait_until
from trackd_client import TrackdError, Tracker
from trackd_client.testing import Daemon, MakeDaemon

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a pid namespace")

PAGE = (Path(__file__).parents[2] / "docs" / "containers.md").read_text(encoding="utf-8")
CONTAINER = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]

#: Claims a proxy, prints its session as the daemon sees it, and is killed when its input ends.
AGENT = """
import json, os, signal, sys
from trackd_client import Tracker
with Tracker(sys.argv[1], name="agent", timeout=60) as tracker:
    tracker.adopt("proxy")
    (session,) = [row for row in tracker.rows("sessions") if row["name"] == "agent"]
    print(json.dumps([session["visible"], session["deadline"] is not None]), flush=True)
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@contextmanager
def daemon_in(where: str, daemon: Daemon) -> Iterator[int]:
    """Run a daemon on the host or in a container, and yield its pid on the host."""
    command = [sys.executable, "-m", "trackd", "run", *daemon._flags]
    with daemon.log.open("ab") as log:
        outer = subprocess.Popen([*(CONTAINER if where != "host" else ()), *command], stderr=log)
    try:
        wait_until(lambda: answers(daemon))
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
        yield outer.pid if where == "host" else int(children[0])
    finally:
        outer.kill()
        outer.wait()


def answers(daemon: Daemon) -> bool:
    try:
        with Tracker(daemon.endpoint, timeout=5.0) as tracker:
            tracker.ping()
    except TrackdError:
        return False
    return True


def command_in(where: str, daemon_pid: int) -> list[str]:
    """Return what runs an agent there."""
    beside = ["nsenter", f"--target={daemon_pid}", "--pid", "--mount", "--"]
    return {
        "on the host": [],
        "beside the daemon": beside,
        "in a container": CONTAINER,
        "in a container below the daemon": [*beside, *CONTAINER],
    }[where]


@pytest.mark.parametrize(
    ("daemon_place", "agent_place", "visible"),
    [
        ("host", "on the host", True),
        ("host", "in a container", True),
        ("container", "beside the daemon", True),
        ("container", "in a container below the daemon", True),
        ("container", "in a container", False),
        ("container", "on the host", False),
    ],
)
def test_what_the_daemon_sees_of_an_agent_is_as_the_page_says(
    make_trackd_daemon: MakeDaemon, daemon_place: str, agent_place: str, visible: bool
) -> None:
    needed("unshare", "util-linux")
    # Where the kernel reports the end, silence would have to last an hour.
    daemon = make_trackd_daemon(start=False, heartbeat_ttl=3600 if visible else 4)
    with daemon_in(daemon_place, daemon) as pid, Tracker(daemon.endpoint) as tracker:
        command = [*command_in(agent_place, pid), sys.executable, "-c", AGENT, daemon.endpoint]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as agent:
            assert agent.stdout is not None
            assert json.loads(agent.stdout.readline()) == [visible, not visible]
            assert tracker.status()["claimed"] == 1
            agent.communicate(timeout=PATIENCE)
        wait_until(lambda: tracker.status()["claimed"] == 0)


def test_the_table_of_the_page_has_these_cases() -> None:
    rows = re.findall(r"^\| (on the host|in a container) \| (.*?) \| (.*?) \|$", PAGE, re.MULTILINE)
    assert [(daemon, "not visible" not in result) for daemon, _, result in rows] == [
        ("on the host", True),
        ("in a container", True),
        ("in a container", False),
    ]
