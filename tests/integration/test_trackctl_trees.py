"""No process of a run outlives it: `trackctl hold` and `trackctl keep` end whole trees."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from helpers.support import PATIENCE, wait_until
from helpers.trackctl import PLAIN, TRACKCTL, Script, Terminal, start_trackctl
from trackd_client import Proxy, Tracker
from trackd_client.testing import Daemon

#: Ignores SIGTERM and writes its pid. A `sleep` that was ended is started again.
STUBBORN = """trap '' TERM; echo $$ >>PIDS; while :; do sleep 0.1; done"""
STUBBORN_CHILD = f"""sh -c "{STUBBORN.replace("$$", "$BOTH")}" """.replace("$BOTH", "\\$\\$")
#: Shells that start processes as tunnels do.
TREES = {
    "the command itself": STUBBORN,
    "a grandchild": f"{STUBBORN_CHILD} & wait",
    "what the command left": f"{STUBBORN_CHILD} & sleep 0.3",
    "a double fork": f"(setsid {STUBBORN_CHILD} </dev/null >/dev/null 2>&1 &); sleep 60",
}

#: Six processes; every second run has one that ignores SIGTERM. They claim `p<lease>`.
SIX = """
sleep 1000 &
setsid sleep 1000 &
(setsid sh -c 'sleep 1000; sleep 1000' </dev/null >/dev/null 2>&1 &)
[ $((TRACKD_LEASE % 2)) = 0 ] && trap '' TERM
sleep 1000 &
echo "p$TRACKD_LEASE" >&3
wait
"""


@pytest.fixture(params=["hold", "keep"])
def command(request: pytest.FixtureRequest) -> list[str]:
    """What runs a script: `hold`, or `keep` with one run at a time."""
    return [request.param, *(["--max", "1"] if request.param == "keep" else [])]


def start_tree(
    daemon: Daemon, make: Script, tree: str, pids: Path, command: list[str]
) -> subprocess.Popen[str]:
    """Start a tree of processes, and wait until its stubborn one runs; later runs only sleep."""
    body = f"[ -e {pids} ] && exec sleep 60\n"
    body += f"echo p1 >&3; read -r answer <&4; echo $$ >{pids.with_name('ends')}\n"
    body += TREES[tree].replace("PIDS", str(pids))
    holding = start_trackctl(
        "--endpoint", daemon.endpoint, *command, make(body), stdout=subprocess.DEVNULL
    )
    wait_until(lambda: pids.exists() and pids.read_text().split())
    return holding


def end(holding: subprocess.Popen[str]) -> str:
    """Wait for the end of `hold`, or end `keep`; return what it said."""
    if holding.poll() is None and "keep" in list(map(str, holding.args)):  # type: ignore[arg-type]
        holding.send_signal(signal.SIGTERM)
    return holding.communicate(timeout=PATIENCE)[1]


def children_of(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in children.split()]


def session_of(process: subprocess.Popen[str]) -> int:
    """Return the pid of the process that has the session."""
    (session,) = children_of(process.pid)
    return session


def has_ended(pid: int) -> bool:
    """Return whether all descriptors of a child are closed: it is a zombie."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def alive(pids: Path) -> list[str]:
    return [pid for pid in pids.read_text().split() if Path(f"/proc/{pid}/cmdline").exists()]


@pytest.mark.parametrize("tree", TREES)
def test_the_lease_stays_until_every_process_of_the_command_is_gone(
    trackd_daemon: Daemon, script: Script, tmp_path: Path, tree: str, command: list[str]
) -> None:
    pids = tmp_path / "pids"
    holding = start_tree(trackd_daemon, script, tree, pids, [*command, "--grace", "3600"])
    with Tracker(trackd_daemon.endpoint) as tracker:
        holding.send_signal(signal.SIGTERM)
        (spawner,) = children_of(session_of(holding))
        (supervisor,) = children_of(spawner)
        ends = pids.with_name("ends")
        if tree != "the command itself":
            wait_until(ends.exists)
            wait_until(lambda: not alive(ends))
        assert children_of(supervisor)
        assert alive(pids)
        assert tracker.is_claimed("p1")
        for pid in alive(pids):
            os.kill(int(pid), signal.SIGKILL)
        holding.communicate(timeout=PATIENCE)
        assert not tracker.is_claimed("p1")


@pytest.mark.parametrize("tree", TREES)
def test_what_ignores_sigterm_is_killed_after_the_grace(
    trackd_daemon: Daemon, script: Script, tmp_path: Path, tree: str, command: list[str]
) -> None:
    pids = tmp_path / "pids"
    holding = start_tree(trackd_daemon, script, tree, pids, [*command, "--grace", "0.2"])
    with Tracker(trackd_daemon.endpoint) as tracker:
        for row in tracker.rows("leases"):  # none when the command and its grace are over already
            tracker.force_release(row["lease"])
        wait_until(lambda: not alive(pids))
    end(holding)


@pytest.mark.parametrize("tree", TREES)
def test_nothing_of_the_command_outlives_its_owner(
    trackd_daemon: Daemon, script: Script, tmp_path: Path, tree: str, command: list[str]
) -> None:
    pids = tmp_path / "pids"
    holding = start_tree(trackd_daemon, script, tree, pids, [*command, "--grace", "3600"])
    holding.kill()
    holding.communicate(timeout=PATIENCE)
    wait_until(lambda: not alive(pids))


def list_run(lease: int, endpoint: str) -> list[int]:
    """Return the pids of the run of a lease: its variables are theirs."""
    marks = {f"TRACKD_LEASE={lease}".encode(), f"TRACKD_ENDPOINT={endpoint}".encode()}
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if marks <= set(place.joinpath("environ").read_bytes().split(b"\0")):
                found.append(int(place.name))
    return found


@pytest.mark.parametrize(("killed", "rounds"), [("at once", 4), ("while a signal ends them", 1)])
def test_a_lease_is_free_only_after_its_tree_when_the_owner_is_killed(
    trackd_daemon: Daemon, script: Script, command: list[str], killed: str, rounds: int
) -> None:
    """Each round kills the owners of eight runs: half of these have what ignores SIGTERM."""
    body = script(SIX)
    runs = 8
    owners = 1 if "keep" in command else runs
    most = ["keep", "--max", f"{runs}"] if "keep" in command else command
    with Tracker(trackd_daemon.endpoint) as tracker:
        tracker.track_expected(*[Proxy(f"p{number}") for number in range(1, 200)])
        for _ in range(rounds):
            holdings = [
                start_trackctl(
                    *("--endpoint", trackd_daemon.endpoint, *most, "--grace", "0.3", body),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
                for _ in range(owners)
            ]
            wait_until(lambda: tracker.status()["claimed"] == runs)
            leases = [row["lease"] for row in tracker.rows("leases")]
            trees: dict[int, list[int]] = {}

            def are_complete(leases: list[int], trees: dict[int, list[int]]) -> bool:
                trees |= {lease: list_run(lease, trackd_daemon.endpoint) for lease in leases}
                return all(len(tree) == 6 for tree in trees.values())

            wait_until(partial(are_complete, leases, trees))
            for each in holdings:
                if killed != "at once":
                    each.send_signal(signal.SIGTERM)
                each.kill()
            deadline = time.monotonic() + PATIENCE
            while trees:
                for lease, tree in list(trees.items()):
                    if not tracker.is_claimed(f"p{lease}"):
                        assert not [pid for pid in tree if Path(f"/proc/{pid}").exists()]
                        del trees[lease]
                assert time.monotonic() < deadline
            for each in holdings:
                assert each.wait(PATIENCE) == -signal.SIGKILL
            wait_until(lambda: tracker.status()["sessions"] == 1)


def test_nothing_is_left_when_the_process_with_the_session_is_killed(
    trackd_daemon: Daemon, script: Script, tmp_path: Path, command: list[str]
) -> None:
    pids = tmp_path / "pids"
    holding = start_tree(trackd_daemon, script, "a double fork", pids, [*command, "--grace", "9"])
    with Tracker(trackd_daemon.endpoint) as tracker:
        (session,) = {row["pid"] for row in tracker.rows("leases")}
        assert session == session_of(holding)
        os.kill(session, signal.SIGKILL)
        holding.communicate(timeout=PATIENCE)
        assert holding.returncode == 128 + signal.SIGKILL
        assert not alive(pids)
        wait_until(lambda: not tracker.is_claimed("p1"))


def test_a_signal_to_the_process_with_the_session_counts_too(
    trackd_daemon: Daemon, script: Script, tmp_path: Path, command: list[str]
) -> None:
    pids = tmp_path / "pids"
    holding = start_tree(trackd_daemon, script, "a double fork", pids, [*command, "--grace", "0.1"])
    os.kill(session_of(holding), signal.SIGTERM)
    holding.communicate(timeout=PATIENCE)
    assert holding.returncode == 128 + signal.SIGTERM
    assert not alive(pids)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_ends_with_the_same_code(
    trackd_daemon: Daemon, script: Script, command: list[str], number: int
) -> None:
    with Tracker(trackd_daemon.endpoint) as tracker:
        tracker.track_expected(Proxy("p1"))
        lease = tracker.try_acquire()
        assert lease is not None
        assert lease.claim("p1")
        for _ in range(5):
            waiting = start_trackctl(
                *("--endpoint", trackd_daemon.endpoint, *command, script("echo ran")),
                start_new_session=True,
            )
            wait_until(lambda: tracker.status()["waiting"] == 1)
            os.killpg(waiting.pid, number)
            assert waiting.communicate(timeout=PATIENCE) == ("", "")
            assert waiting.returncode == 128 + number
            wait_until(lambda: tracker.status()["sessions"] == 1)


def test_a_shell_can_stop_a_run_and_go_on_with_it(trackd_daemon: Daemon, script: Script) -> None:
    body = script("echo p1 >&3; read -r answer <&4; echo $answer; read -r line; echo got $line")
    arguments = ["--endpoint", trackd_daemon.endpoint, "hold", body]
    with Terminal(*TRACKCTL, *arguments, width=200) as terminal:
        terminal.shows("claimed p1")
        terminal.press("C-z")
        terminal.shows("Stopped")
        terminal.enter("fg")
        terminal.enter("a line")
        terminal.shows("got a line")
        terminal.ends()
        terminal.enter("echo code $?")
        terminal.shows("code 0")


def test_a_quit_at_a_terminal_frees_the_lease_after_the_tree(
    trackd_daemon: Daemon, script: Script, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    body = script(f"trap '' QUIT TERM; echo $$ >{pids}; echo p1 >&3; read -r answer <&4; sleep 60")
    arguments = ["--endpoint", trackd_daemon.endpoint, "hold", body]
    with Terminal(*TRACKCTL, *arguments) as terminal, Tracker(trackd_daemon.endpoint) as tracker:
        wait_until(lambda: tracker.is_claimed("p1"))
        terminal.press("C-\\")
        wait_until(lambda: not tracker.is_claimed("p1"))
        assert not alive(pids)
        terminal.ends()


@pytest.mark.parametrize("killed", ["spawner", "supervisor"])
def test_nothing_of_the_command_outlives_what_started_it(
    trackd_daemon: Daemon, script: Script, tmp_path: Path, killed: str, command: list[str]
) -> None:
    pids = tmp_path / "pids"
    holding = start_tree(trackd_daemon, script, "a double fork", pids, command)
    (spawner,) = children_of(session_of(holding))
    (supervisor,) = children_of(spawner)
    os.kill({"spawner": spawner, "supervisor": supervisor}[killed], signal.SIGKILL)
    wait_until(lambda: not alive(pids))
    if "hold" in command:
        holding.communicate(timeout=PATIENCE)
        assert holding.returncode == 128 + signal.SIGKILL
    elif killed == "spawner":
        assert "the process that starts the commands was killed" in holding.communicate()[1]
        assert holding.returncode == 1
    else:
        with Tracker(trackd_daemon.endpoint) as tracker:
            wait_until(lambda: not tracker.is_claimed("p1"))
        assert f"exit code {128 + signal.SIGKILL}" in end(holding)
        assert holding.returncode == 128 + signal.SIGTERM, "one run's supervisor is not all"


@pytest.mark.parametrize("killed", ["before", "meanwhile"])
def test_without_what_starts_commands_none_is_run(
    trackd_daemon: Daemon, script: Script, killed: str, command: list[str]
) -> None:
    with Tracker(trackd_daemon.endpoint) as tracker:
        tracker.track_expected(Proxy("p1"))
        lease = tracker.try_acquire()
        assert lease is not None
        assert lease.claim("p1")
        waiting = start_trackctl("--endpoint", trackd_daemon.endpoint, *command, script("echo ran"))
        wait_until(lambda: tracker.status()["waiting"] == 1)
        (spawner,) = children_of(session_of(waiting))
        if killed == "before":
            os.kill(spawner, signal.SIGKILL)
            wait_until(lambda: has_ended(spawner))
            lease.release()
        else:
            os.kill(spawner, signal.SIGSTOP)
            lease.release()
            wait_until(lambda: tracker.status()["waiting"] == 0)
            os.kill(spawner, signal.SIGKILL)
        out, err = waiting.communicate(timeout=PATIENCE)
    name = "hold" if "hold" in command else "keep"
    assert (out, err) == ("", f"trackctl {name}: the process that starts the commands was killed\n")
    assert waiting.returncode == (128 + signal.SIGKILL if name == "hold" else 1)


def test_a_killed_spawner_starts_no_more_also_when_it_has_not_read_a_request() -> None:
    program = """
import os, signal
from trackd_client.cli.process_tree import Spawner

spawner = Spawner(["true"], 1.0, print)
pid = spawner._pid
os.kill(pid, signal.SIGSTOP)
tree = spawner.start({}, {})
os.kill(pid, signal.SIGKILL)
os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
print(tree.wait())
for _ in range(2):  # the first is told that a request was not read
    try:
        spawner.start({}, {})
    except ConnectionError:
        print("none")
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, timeout=PATIENCE
    )
    assert (ran.stdout, ran.stderr) == (b"None\nnone\nnone\n", b"")


def test_a_run_goes_on_without_a_socket_for_claims(
    trackd_daemon: Daemon, script: Script, runtime: Path, command: list[str]
) -> None:
    body = 'echo "socket=$TRACKD_CLAIM_SOCKET"; echo p1 >&3; read -r answer <&4; exec sleep 60'
    with Tracker(trackd_daemon.endpoint) as tracker:
        tracker.track_expected(Proxy("p1"))
        lease = tracker.try_acquire()
        assert lease is not None
        assert lease.claim("p1"), "so that it lasts"
        waiting = start_trackctl(
            *("--endpoint", trackd_daemon.endpoint, *command, script(body)),
            env=PLAIN | {"XDG_RUNTIME_DIR": str(runtime)},
        )
        wait_until(lambda: tracker.status()["waiting"] == 1)
        (directory,) = runtime.glob("trackctl-claims-*")
        directory.rmdir()
        lease.release()
        wait_until(lambda: tracker.is_claimed("p1"))
        waiting.send_signal(signal.SIGTERM)
        out, err = waiting.communicate(timeout=PATIENCE)
    assert out == "socket=\n"
    assert "trackctl claim cannot be used: " in err
