"""The release before this one and this one take turns at one socket, while agents call.

The release before is the last commit with an earlier minor version of the protocol. A checkout
without that commit, such as a shallow clone, skips this; what earlier versions wrote and said is
recorded as well, and those tests run everywhere.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from helpers.support import PATIENCE, RawPeer, wait_until
from helpers.trackctl import PLAIN
from histories.agents import NAMES
from histories.checker import check
from histories.processes import TESTS, AgentProcess
from histories.recorder import read_events, read_history, record
from trackd_client import Proxy, Tracker
from trackd_client.testing import Daemon, MakeDaemon
from trackd_client.wire.protocol import MINOR

REPOSITORY = TESTS.parent
#: Where the minor version is.
PROTOCOL = "client/trackd_client/wire/protocol.py"

Start = Callable[[Daemon, bool], None]


def git(*args: str) -> bytes:
    return subprocess.run(
        ["git", "-C", REPOSITORY, *args], capture_output=True, check=True, timeout=PATIENCE
    ).stdout


@pytest.fixture(scope="module")
def release_before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source of the release before this one."""
    try:
        newer = git("log", f"-SMINOR: Final = {MINOR}", "--format=%H", "--", PROTOCOL).split()
        tree = git("archive", f"{newer[-1].decode()}^", "daemon", "client")
    except (OSError, IndexError, subprocess.CalledProcessError):
        pytest.skip("this checkout does not have the history of the protocol")
    directory = tmp_path_factory.mktemp("release")
    subprocess.run(["tar", "-x", "-C", directory], input=tree, check=True)
    assert f"MINOR: Final = {MINOR - 1}" in (directory / PROTOCOL).read_text()
    return directory


@pytest.fixture
def start(release_before: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Start a daemon as the release before, or as this one, as systemd would after a stop."""

    def start(daemon: Daemon, before: bool) -> None:
        source = f"{release_before}/daemon:{release_before}/client"
        with monkeypatch.context() as patch:
            patch.setenv("PYTHONPATH", source if before else "")
            daemon.start()
        with RawPeer(daemon.endpoint) as peer:
            minor = peer.request("hello", cluster="example.com")["minor"]
        assert minor == (MINOR - 1 if before else MINOR)

    return start


def wait_for_calls(directory: Path) -> None:
    """Wait until every recorded agent has made some more calls."""

    def sizes() -> dict[Path, int]:
        return {path: path.stat().st_size for path in directory.glob("*.jsonl")}

    before = sum(sizes().values())
    wait_until(lambda: sum(sizes().values()) > before + 50_000)


@pytest.mark.slow
def test_an_upgrade_under_load_loses_nothing_and_the_daemon_of_before_leaves_the_new_file_alone(
    make_trackd_daemon: MakeDaemon, start: Start, tmp_path: Path
) -> None:
    daemon = make_trackd_daemon(start=False, history=1_000_000)
    start(daemon, True)
    with ExitStack() as stack:
        processes = [
            AgentProcess(daemon.endpoint, tmp_path, kind, kind, count=3)
            for kind in ("sync", "asyncio")
        ]
        for process in processes:
            stack.callback(process.kill)
        wait_for_calls(tmp_path)
        assert daemon.stop() == 0
        start(daemon, False)
        wait_for_calls(tmp_path)
        assert daemon.stop() == 0
        with pytest.raises(RuntimeError, match="was written by a newer trackd"):
            start(daemon, True)
        daemon._process = None
        start(daemon, False)
        wait_for_calls(tmp_path)
        with Tracker(daemon.endpoint, timeout=PATIENCE) as tracker:
            record(tracker, tmp_path / "last.jsonl")
            tracker.snapshot()
            for process in processes:
                process.end()
            tracker.snapshot()
            events = read_events(tracker)
    history = read_history(tmp_path.glob("*.jsonl"))
    assert check(history, events) == []
    assert [event.kind for event in events].count("daemon_started") == 3
    lost = sum(call.reply is None for call in history)
    print(f"\n{len(history)} calls, {lost} of them without a reply; {len(events)} events")


@pytest.mark.slow
def test_a_rollback_under_load_begins_empty_and_tunnels_stay_open(
    make_trackd_daemon: MakeDaemon, start: Start, tmp_path: Path
) -> None:
    daemon = make_trackd_daemon(start=False)
    start(daemon, False)
    for name in ("calm", "state-lost"):
        (tmp_path / name).touch()
    with ExitStack() as stack:
        for kind in ("sync", "asyncio"):
            places = [daemon.endpoint, str(tmp_path)]
            command = [sys.executable, "-m", "storm.tunnels", *places, kind, kind]
            process = stack.enter_context(
                subprocess.Popen(
                    command, stdin=subprocess.PIPE, env={**PLAIN, "PYTHONPATH": str(TESTS)}
                )
            )
            stack.callback(process.kill)
        leases = wait_covered(daemon)
        assert daemon.stop() == 0
        (state,) = daemon.directory.glob("trackd.db")
        state.rename(state.with_name("trackd.db.newer"))
        start(daemon, True)
        assert wait_covered(daemon).keys() == leases.keys() == set(NAMES)
        wait_until(lambda: adopted(tmp_path) == set(NAMES))  # each agent writes it for itself


def adopted(directory: Path) -> set[str]:
    """Return the names of the tunnels that recorded agents have had adopted."""
    calls = read_history(directory.glob("*.jsonl"))
    return {call.reply["name"] for call in calls if call.op == "adopt" and call.reply}


def wait_covered(daemon: Daemon) -> dict[str, int]:
    """Wait until every proxy has a tunnel; return the leases by the names."""
    with Tracker(daemon.endpoint, timeout=PATIENCE) as tracker:
        tracker.track_expected(*(Proxy(name) for name in NAMES))
        wait_until(lambda: tracker.status().claimed_desired == len(NAMES))
        return {row["name"]: row["lease"] for row in tracker.rows("leases") if row["name"]}
