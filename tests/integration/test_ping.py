"""`trackd ping`, for probes of containers; and the daemon as the first process of one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.support import needed, paused, socket_path, unmeasured, wait_until
from trackd_client import Tracker
from trackd_client.testing import Daemon

PING = [sys.executable, "-m", "trackd", "ping"]


def ping(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith("TRACKD_")}
    return subprocess.run(
        [*PING, *args],
        capture_output=True,
        text=True,
        check=False,
        env=kept | environ,
        timeout=60,
    )


def test_a_daemon_that_answers_is_exit_code_0(trackd_daemon: Daemon) -> None:
    path = str(socket_path(trackd_daemon))
    for done in (
        ping("--endpoint", path, "--timeout", "30"),
        ping(f"--endpoint={trackd_daemon.endpoint}", "--timeout=30"),
        ping("--timeout=30", TRACKD_ENDPOINT=trackd_daemon.endpoint),
    ):
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@unmeasured
def test_it_imports_nothing_heavy(trackd_daemon: Daemon) -> None:
    code = (
        "import sys; from trackd.__main__ import main; code = main();"
        "print(code, {'zmq', 'pykka', 'sqlite3', 'msgpack', 'argparse'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, "ping", "--timeout=30", "--endpoint"]
    ran = subprocess.run(
        [*command, trackd_daemon.endpoint], capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout == "0 set()\n"


def test_no_daemon_or_one_that_hangs_is_exit_code_3(trackd_daemon: Daemon, tmp_path: Path) -> None:
    nowhere = ping("--endpoint", str(tmp_path / "none"))
    assert nowhere.returncode == 3
    assert nowhere.stderr == (
        f"trackd: error: no trackd daemon answers at {tmp_path}/none: No such file or directory\n"
    )
    with paused(trackd_daemon.pid):
        hanging = ping("--endpoint", trackd_daemon.endpoint, "--timeout", "0.5")
    assert hanging.returncode == 3
    assert "timed out" in hanging.stderr


@pytest.mark.parametrize(
    "args",
    [
        ["what"],
        ["--timeout", "nan"],
        ["--timeout", "0"],
        ["--endpoint"],
        ["--endpoint", "tcp://127.0.0.1:1"],
        ["--endpoint=@abstract"],
        ["--endpoint", f"/{'x' * 200}"],
    ],
)
def test_wrong_usage_is_exit_code_2(args: list[str]) -> None:
    done = ping(*args)
    assert done.returncode == 2
    assert done.stderr.startswith("trackd: error: ")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a pid namespace")
def test_as_the_first_process_of_a_container_it_reaps_orphans_and_ends_at_sigterm(
    tmp_path: Path,
) -> None:
    """It is process 1 of a pid namespace; this test looks at it from outside."""
    endpoint = f"ipc://{tmp_path}/trackd.sock"
    command = [sys.executable, "-m", "trackd", "run", "--cluster-name=x", "--endpoint", endpoint]
    outer = subprocess.Popen(
        [needed("unshare", "util-linux"), "--pid", "--fork", "--kill-child", *command],
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: ping("--endpoint", endpoint, "--timeout", "30").returncode == 0)
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
        (first,) = map(int, children.read_text().split())
        assert "NSpid:" in Path(f"/proc/{first}/status").read_text()
        orphan = tmp_path / "orphan"
        subprocess.run(
            [
                "nsenter",
                f"--target={first}",
                "--pid",
                "sh",
                "-c",
                f"(exec sleep 0) & echo >{orphan}",
            ],
            check=True,
        )
        adopted = Path(f"/proc/{first}/task/{first}/children")
        wait_until(lambda: adopted.read_text().split() == [])
        with Tracker(endpoint) as tracker:
            # This process is not in the namespace of the daemon, which so cannot see it.
            assert tracker.try_acquire() is not None
        os.kill(first, signal.SIGTERM)
        assert outer.wait(60) == 0
    finally:
        outer.kill()
        outer.wait()
