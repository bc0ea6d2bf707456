"""`trackctl keep`: as many runs of a script as tunnels are missing; and `trackctl claim`."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from helpers.balancer import Proxies
from helpers.support import PATIENCE, wait_until
from helpers.trackctl import PLAIN, TRACKCTL, Script, start_trackctl, trackctl
from trackd_client import Lease, Proxy, Tracker
from trackd_client.testing import Daemon

CLAIM = f"{shlex.join(TRACKCTL)} claim"
#: Dials, claims and serves; what the proxy says is its output. In bash, for its /dev/tcp.
TUNNEL = """exec bash -c '
    exec 5<>/dev/tcp/{host}/{port} || exit 69
    echo $$ >>{pids}
    read -r line <&5
    names=${{line#*[}}; names=${{names%]*}}
    echo "${{names//[\\",]/}}" >&3
    read -r outcome name <&4
    [ "$outcome" = claimed ] || exit 1
    echo "serving $name"
    echo keep >&5
    exec cat <&5'
"""


@pytest.fixture
def proxies() -> Iterator[Proxies]:
    with Proxies("p1", "p2", "p3") as running:
        yield running
    assert not running.twice, "a proxy has one tunnel"


@contextmanager
def keeping(
    daemon: Daemon, *arguments: str, runtime: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Run `keep`, and end it at the end if it still runs."""
    process = start_trackctl(
        *("--endpoint", daemon.endpoint, "keep", *arguments),
        env=PLAIN | ({} if runtime is None else {"XDG_RUNTIME_DIR": str(runtime)}),
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            end(process)


def end(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> tuple[str, str]:
    """Send `keep` a signal, and return what it printed and said since."""
    process.send_signal(number)
    return process.communicate(timeout=PATIENCE)


def tunnel(script: Script, proxies: Proxies, pids: Path) -> str:
    host, port = proxies.address.split(":")
    return script(TUNNEL.format(host=host, port=port, pids=pids))


def is_alive(pid: str) -> bool:
    return Path(f"/proc/{pid}/cmdline").exists()


def hold_lease(tracker: Tracker) -> Lease:
    lease = tracker.try_acquire()
    assert lease is not None
    return lease


def test_every_proxy_behind_a_balancer_gets_one_run_and_a_dead_one_is_replaced(
    trackd_daemon: Daemon, proxies: Proxies, script: Script, tmp_path: Path, tracker: Tracker
) -> None:
    pids = tmp_path / "pids"
    with keeping(trackd_daemon, tunnel(script, proxies, pids)) as process:
        wait_until(lambda: proxies.connected() == ["p1", "p2", "p3"])
        wait_until(lambda: tracker.status()["tracked"] == 3)  # gossip is what the commands print
        assert len({row["session"] for row in tracker.rows("leases")}) == 1
        proxies.drop("p2")
        wait_until(lambda: proxies.ended == ["p2"])
        wait_until(lambda: proxies.connected() == ["p1", "p2", "p3"])
        out, err = end(process)
    assert process.returncode == 128 + signal.SIGTERM
    wait_until(lambda: not proxies.connected())
    assert not [pid for pid in pids.read_text().split() if is_alive(pid)]
    wait_until(lambda: tracker.status()["sessions"] == 0)
    status = tracker.status()
    assert (status["claimed"], status["inflight"]) == (0, 0)
    assert sorted(out.splitlines()) == ["serving p1", "serving p2", "serving p2", "serving p3"]
    assert err.count(": claimed p2\n") == 2
    assert ": the tunnel to p2 ended after " in err


def test_there_are_never_more_runs_than_the_maximum(
    trackd_daemon: Daemon, proxies: Proxies, script: Script, tmp_path: Path, tracker: Tracker
) -> None:
    with keeping(trackd_daemon, "--max", "2", tunnel(script, proxies, tmp_path / "pids")):
        wait_until(lambda: len(proxies.connected()) == 2)
        wait_until(lambda: tracker.status()["tracked"] == 3)
        status = tracker.status()
        assert (status["claimed"], status["inflight"], status["waiting"]) == (2, 0, 0)
        before = proxies.connected()
        proxies.drop(before[0])
        wait_until(lambda: proxies.ended == [before[0]])
        wait_until(lambda: len(proxies.connected()) == 2)
        assert tracker.status()["waiting"] == 0


def test_tunnels_outlive_a_daemon_that_lost_its_sessions(
    trackd_daemon: Daemon, proxies: Proxies, script: Script, tmp_path: Path, tracker: Tracker
) -> None:
    pids = tmp_path / "pids"
    with keeping(trackd_daemon, tunnel(script, proxies, pids)):
        wait_until(lambda: proxies.connected() == ["p1", "p2", "p3"])
        (session,) = {row["session"] for row in tracker.rows("leases")}
        kept = pids.read_text().split()
        tracker.end_session(session)
        wait_until(lambda: tracker.status()["claimed"] == 3)
        assert proxies.connected() == ["p1", "p2", "p3"]
        wait_until(lambda: tracker.status()["waiting"] == 1)
        served = [pid for pid in kept if is_alive(pid)]
        assert len(served) == 3, "no tunnel was closed: they were adopted"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("waits", [True, False])
def test_a_signal_ends_all_runs_and_then_keep(
    trackd_daemon: Daemon, script: Script, tracker: Tracker, number: int, waits: bool
) -> None:
    tracker.track_expected(Proxy("p1"))
    if waits:
        assert hold_lease(tracker).claim("p1")
    command = script("echo p1 >&3; read -r answer <&4; echo ready; exec sleep 60")
    with keeping(trackd_daemon, command) as process:
        wait_until(lambda: tracker.status()["waiting"] == 1)
        if not waits:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        end(process, number)
    assert process.returncode == 128 + number
    wait_until(lambda: tracker.status()["sessions"] == 1)
    assert tracker.status()["claimed"] == (1 if waits else 0)


def test_other_signals_are_passed_on_to_every_run(
    trackd_daemon: Daemon, script: Script, tracker: Tracker
) -> None:
    tracker.track_expected(Proxy("p1"), Proxy("p2"))
    command = script("""
        trap 'echo got HUP' HUP
        echo p$TRACKD_LEASE >&3
        read -r answer <&4
        echo ready
        while :; do sleep 0.05; done""")
    with keeping(trackd_daemon, command) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
        process.send_signal(signal.SIGHUP)
        assert [process.stdout.readline() for _ in range(2)] == ["got HUP\n"] * 2


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("echo failed=timeout >&3; read -r reply <&4; echo $reply; exit 1", "timeout"),
        ("exit 77", "auth"),
        ("exit 69", "refused"),
        ("exit 0", "other"),
    ],
)
def test_a_run_that_fails_says_why_and_is_tried_again(
    trackd_daemon: Daemon, script: Script, body: str, reason: str
) -> None:
    with keeping(trackd_daemon, script(body)) as process:
        assert process.stderr is not None
        for _ in range(2):
            assert f": the dial failed ({reason}) after " in process.stderr.readline()
        out, _ = end(process)
    assert set(out.split()) <= {"noted"}


@pytest.mark.parametrize("owner", ["hold", "keep"])
def test_the_daemon_learns_how_a_run_failed(
    trackd_daemon: Daemon, script: Script, tracker: Tracker, owner: str
) -> None:
    body = "echo failed=rate retry_after=45 >&3; read -r reply <&4; exit 1"
    process = start_trackctl("--endpoint", trackd_daemon.endpoint, owner, script(body))
    wait_until(lambda: tracker.status().pause is not None)
    pause = tracker.status().pause
    assert pause is not None
    assert (pause.reason, pause.retry_after, pause.failures) == ("rate", 45.0, 1)
    if owner == "keep":
        end(process)
    process.communicate(timeout=PATIENCE)


def test_a_reason_that_is_none_is_refused(trackd_daemon: Daemon, script: Script) -> None:
    body = "echo failed=bad luck >&3; read -r reply <&4; echo $reply; exit 1"
    with keeping(trackd_daemon, script(body)) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("refused failed must be one of refused, ")


def test_keep_says_what_it_would_run(trackd_daemon: Daemon, runtime: Path) -> None:
    ran = trackctl(
        *("--endpoint", trackd_daemon.endpoint, "keep", "--dry-run", "--max", "2"),
        *("--", "sh", "-c", "echo ran"),
        XDG_RUNTIME_DIR=str(runtime),
    )
    assert ran.stdout.splitlines() == [
        "# at most 2 at once; <lease> is the number of the run's lease",
        "TRACKD_LEASE=<lease>",
        f"TRACKD_ENDPOINT={trackd_daemon.endpoint}",
        "TRACKD_CLAIM_FD=3",
        "TRACKD_REPLY_FD=4",
        f"TRACKD_CLAIM_SOCKET={runtime}/trackctl-claims-<random>/<lease>",
        "sh -c 'echo ran'",
    ]
    assert (ran.returncode, ran.stderr) == (0, "")
    with Tracker(trackd_daemon.endpoint) as tracker:
        assert tracker.status()["last_lease"] == 0
    assert not list(runtime.iterdir())


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--", "no-such-command"], 127, "there is no command 'no-such-command'"),
        (["--dry-run", "--", "no-such-command"], 127, "there is no command 'no-such-command'"),
        (["--fd", "4", "--", "true"], 2, "--fd and --reply-fd must differ"),
        (["--max", "0", "--", "true"], 2, "--max"),
    ],
)
def test_wrong_usage_takes_no_lease(
    trackd_daemon: Daemon, tracker: Tracker, arguments: list[str], code: int, words: str
) -> None:
    ran = trackctl("--endpoint", trackd_daemon.endpoint, "keep", *arguments)
    assert ran.returncode == code
    assert words in ran.stderr
    assert tracker.status()["last_lease"] == 0


def test_keep_ends_with_3_when_there_is_no_daemon(trackd_daemon: Daemon) -> None:
    trackd_daemon.stop()
    ran = trackctl("--endpoint", trackd_daemon.endpoint, "keep", "true")
    assert (ran.returncode, ran.stdout) == (3, "")
    assert "no trackd daemon" in ran.stderr


def test_gossip_that_cannot_be_read_is_skipped(
    trackd_daemon: Daemon, script: Script, tracker: Tracker
) -> None:
    body = """echo '{"no JSON'; echo '{"proxies": [{"metadata": {"name": "p7"}}]}'; exec sleep 60"""
    with keeping(trackd_daemon, script(body)) as process:
        assert process.stderr is not None
        assert "a line of gossip is skipped: " in process.stderr.readline()
        wait_until(lambda: tracker.status()["tracked"] == 1)


#: Claims as a helper of ssh does, which has closed the descriptors from 3 up.
CLAIMS = f"""exec 3>&- 4<&-
for names in "127.0.0.1 p1" "p1.example.com p1" p2; do
  said=$({CLAIM} $names)
  echo "$? $said"
done"""


@pytest.mark.parametrize("owner", ["hold", "keep"])
def test_a_helper_claims_and_may_claim_the_same_proxy_twice(
    trackd_daemon: Daemon, script: Script, tracker: Tracker, owner: str
) -> None:
    tracker.track_expected(Proxy("p1"))  # one wanted tunnel, so that `keep` has one run
    process = start_trackctl(
        *("--endpoint", trackd_daemon.endpoint, owner, script(f"{CLAIMS}\nexec sleep 60"))
    )
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(3)] == ["0 \n", "0 \n", "1 \n"]
    assert tracker.is_claimed("p1")
    assert not tracker.is_claimed("p2")
    _, err = end(process)
    assert "trackctl: refused this lease has claimed p1\n" in err
    assert not tracker.is_claimed("p1")


@pytest.mark.parametrize("owner", ["hold", "keep"])
def test_a_claim_of_a_held_proxy_fails_and_prints_nothing(
    trackd_daemon: Daemon, script: Script, tracker: Tracker, owner: str
) -> None:
    tracker.track_expected(Proxy("p1"), Proxy("p2"))
    assert hold_lease(tracker).claim("p1")
    body = f'said=$({CLAIM} p1); echo "$? $said"; exec sleep 60'
    arguments = (owner, "--on-duplicate", "tell", script(body))
    process = start_trackctl("--endpoint", trackd_daemon.endpoint, *arguments)
    assert process.stdout is not None
    assert process.stdout.readline() == "1 \n"
    assert "another lease holds p1" in end(process)[1]


@pytest.mark.parametrize("owner", ["hold", "keep"])
def test_a_run_that_met_a_terminating_proxy_is_ended(
    trackd_daemon: Daemon, script: Script, tracker: Tracker, owner: str
) -> None:
    tracker.track_expected(Proxy("p1", terminating=True), Proxy("p2"))
    # The helper is ended as well; this one is not, so that it can say what it was answered.
    body = f"""trap 'exit 143' TERM
               (trap '' TERM; exec {CLAIM} p1)
               sleep 60 & wait"""
    process = start_trackctl("--endpoint", trackd_daemon.endpoint, owner, script(body))
    assert process.stderr is not None
    said = {process.stderr.readline().partition(": ")[2] for _ in range(2)}
    assert "refused p1 is terminating\n" in said
    assert said & {
        "p1 is terminating; ending the command\n",
        "the daemon advises to close this tunnel; ending the command\n",
    }
    if owner == "hold":
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 128 + signal.SIGTERM
    else:
        end(process)


def test_a_run_whose_helper_met_a_held_proxy_is_ended(
    trackd_daemon: Daemon, script: Script, tracker: Tracker
) -> None:
    tracker.track_expected(Proxy("p1"), Proxy("p2"))
    assert hold_lease(tracker).claim("p1")
    with keeping(trackd_daemon, script(f"{CLAIM} p1; exec sleep 60")) as process:
        assert process.stderr is not None
        said = [process.stderr.readline() for _ in range(2)]
    assert "trackctl keep: lease 2: another lease holds p1\n" in said


@pytest.mark.parametrize(
    ("environ", "arguments", "code", "words"),
    [
        ({}, ["p1"], 3, "this is no run of hold or keep"),
        ({"TRACKD_CLAIM_SOCKET": "/nowhere/7"}, ["p1"], 3, "does not answer"),
        ({"TRACKD_CLAIM_SOCKET": "/nowhere/7"}, ["p1 p2"], 2, "has a blank in it"),
        ({"TRACKD_CLAIM_SOCKET": "/nowhere/7"}, [], 2, "Missing argument"),
    ],
)
def test_a_claim_without_an_owner_fails(
    environ: dict[str, str], arguments: list[str], code: int, words: str
) -> None:
    ran = trackctl("claim", *arguments, **environ)
    assert (ran.returncode, ran.stdout) == (code, "")
    assert words in ran.stderr


def test_a_helper_that_hangs_or_sends_garbage_holds_up_nobody(
    trackd_daemon: Daemon, script: Script, runtime: Path, tracker: Tracker
) -> None:
    command = script(f"""
        echo "$TRACKD_CLAIM_SOCKET"
        until [ -e {runtime}/go ]; do sleep 0.05; done
        {CLAIM} p1 && echo claimed
        exec sleep 60""")
    with keeping(trackd_daemon, "--max", "1", command, runtime=runtime) as process:
        assert process.stdout is not None
        path = process.stdout.readline().rstrip("\n")
        assert Path(path).parent.stat().st_mode & 0o777 == 0o700
        helpers = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for helper in helpers:
            helper.settimeout(PATIENCE)
            helper.connect(path)
        with suppress(ConnectionError):  # in the midst of it, or with some of it unread
            helpers[1].sendall(b"\xff" * 200_000)
            assert helpers[1].recv(1) == b"", "it is hung up on"
        helpers[2].sendall(b" \x00\x1b[2J" * 50 + b"\n")
        assert helpers[2].recv(1000).startswith(b"refused ")
        (runtime / "go").touch()
        assert process.stdout.readline() == "claimed\n"
        for helper in helpers:
            helper.close()


def test_the_sockets_are_removed_also_those_that_a_crash_has_left(
    trackd_daemon: Daemon, script: Script, runtime: Path, tracker: Tracker
) -> None:
    command = script("echo ready; exec sleep 60")

    def directories() -> set[Path]:
        return set(runtime.glob("trackctl-claims-*"))

    with keeping(trackd_daemon, command, runtime=runtime) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "ready\n"
        (left,) = directories()
        (row,) = tracker.rows("sessions")
        os.kill(row["pid"], signal.SIGKILL)  # of two processes, the one that made it
        first.communicate(timeout=PATIENCE)
        assert directories() == {left}
        with keeping(trackd_daemon, command, runtime=runtime) as second:
            assert second.stdout is not None
            assert second.stdout.readline() == "ready\n"
            assert left not in directories()
            with keeping(trackd_daemon, command, runtime=runtime) as third:
                # It waits: there is one lease.
                wait_until(lambda: len(list(tracker.rows("sessions"))) == 2)
                assert len(directories()) == 2
                end(third)
            assert second.poll() is None
            assert len(directories()) == 1, "that of the one that runs stays"
    assert not directories()
