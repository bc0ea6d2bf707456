"""The daemon as a process: how it starts, who may not start, how it stops, how it dies."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import zmq

from helpers.support import (
    PATIENCE,
    RawPeer,
    pack,
    paused,
    python_of,
    run_script,
    seconds_to_stop,
    socket_path,
    wait_until,
)
from trackd_client import DaemonAbsent, NoAnswer, Proxy, Refused, Tracker
from trackd_client.errors import DaemonFailed
from trackd_client.testing import Daemon, MakeDaemon

NOBODY = 65534
LINE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d{4} (debug|info|warning|error|critical) \S.*"
)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short-named directory that every user may enter."""
    with tempfile.TemporaryDirectory(prefix="trackd-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextlib.contextmanager
def running(*command: str, log: IO[bytes], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command until the block ends, and end it then if it still runs."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", **options
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `trackd` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "trackd", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env={name: v for name, v in os.environ.items() if not name.startswith("TRACKD_")},
    )


def left_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def answers(endpoint: str) -> bool:
    try:
        with Tracker(endpoint, timeout=5.0) as tracker:
            tracker.ping()
    except (DaemonAbsent, NoAnswer):
        return False
    return True


# -- starting -------------------------------------------------------------------------


def test_any_user_can_run_it_with_a_cluster_name_alone(directory: Path) -> None:
    executable, options = python_of(NOBODY)
    os.chown(directory, NOBODY, NOBODY)
    options["env"] |= {"XDG_RUNTIME_DIR": str(directory)}
    place = directory / "trackd" / "default"
    with (
        (directory / "log").open("wb") as log,
        running(
            executable, "-m", "trackd", "run", "--cluster-name=example.com", log=log, **options
        ) as process,
    ):
        wait_until(lambda: answers(f"{place}/trackd.sock"))
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        assert stat.S_IMODE((place / "trackd.sock").stat().st_mode) == 0o600
        client = "from trackd_client import Tracker; print(Tracker().status()['pid'])"
        done = subprocess.run(
            [executable, "-c", client], capture_output=True, check=False, cwd="/", **options
        )
        assert done.stdout.decode().strip() == str(process.pid), done
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    assert left_in(place) == {"trackd.db"}


def test_a_user_without_a_place_is_told_to_name_one(directory: Path) -> None:
    executable, options = python_of(NOBODY)
    done = subprocess.run(
        [executable, "-m", "trackd", "run", "--cluster-name=example.com"],
        capture_output=True,
        check=False,
        cwd="/",
        **options,
    )
    assert done.returncode == 5
    assert b"XDG_RUNTIME_DIR" in done.stderr
    assert b"--endpoint" in done.stderr


def test_a_directory_that_one_may_not_write_to_is_a_clear_error(directory: Path) -> None:
    executable, options = python_of(NOBODY)
    done = subprocess.run(
        [executable, "-m", "trackd", "run", "--cluster-name=c", f"--endpoint={directory}/t.sock"],
        capture_output=True,
        check=False,
        cwd="/",
        **options,
    )
    assert done.returncode == 5
    assert str(directory).encode() in done.stderr
    assert b"permission denied" in done.stderr
    assert done.stderr.count(b"\n") == 1
    assert left_in(directory) == set()


def test_the_socket_has_the_mode_that_was_asked_for(make_trackd_daemon: MakeDaemon) -> None:
    for daemon, mode in (
        (make_trackd_daemon(), 0o600),
        (make_trackd_daemon(socket_mode="0660"), 0o660),
    ):
        assert stat.S_IMODE(socket_path(daemon).stat().st_mode) == mode


def test_a_second_daemon_on_an_endpoint_says_who_holds_it(trackd_daemon: Daemon) -> None:
    done = run(
        "run", "--cluster-name=other", "--state-dir=", f"--endpoint={trackd_daemon.endpoint}"
    )
    assert done.returncode == 4
    assert f"pid {trackd_daemon.pid}" in done.stderr
    assert "'example.com'" in done.stderr
    assert done.stderr.count("\n") == 1
    assert answers(trackd_daemon.endpoint)


def test_a_second_daemon_on_a_state_directory_says_who_holds_it(trackd_daemon: Daemon) -> None:
    done = run(
        "run",
        "--cluster-name=example.com",
        f"--endpoint={trackd_daemon.directory}/other.sock",
        f"--state-dir={trackd_daemon.directory}",
    )
    assert done.returncode == 4
    assert f"pid {trackd_daemon.pid}" in done.stderr
    assert "state directory" in done.stderr
    assert answers(trackd_daemon.endpoint)
    assert "other.sock" not in left_in(trackd_daemon.directory)


def test_of_many_that_start_at_once_one_serves(directory: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "trackd",
        "run",
        "--cluster-name=c",
        f"--endpoint={directory}/s",
    ]
    with contextlib.ExitStack() as stack, (directory / "log").open("wb") as log:
        processes = [stack.enter_context(running(*command, log=log)) for _ in range(4)]
        wait_until(lambda: sum(process.poll() == 4 for process in processes) == 3)
        wait_until(lambda: answers(f"{directory}/s"))
        (winner,) = [process for process in processes if process.poll() is None]
        with Tracker(f"{directory}/s") as tracker:
            assert tracker.status()["pid"] == winner.pid


def test_a_socket_left_by_a_killed_daemon_is_taken_over(trackd_daemon: Daemon) -> None:
    trackd_daemon.kill()
    assert socket_path(trackd_daemon).is_socket()
    trackd_daemon.start()
    assert trackd_daemon.stop() == 0
    assert "trackd.sock" not in left_in(trackd_daemon.directory)


def test_a_socket_that_some_other_program_listens_on_is_left_alone(directory: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(f"{directory}/s")
        other.listen()
        done = run("run", "--cluster-name=c", f"--endpoint={directory}/s")
        assert (done.returncode, "in use" in done.stderr) == (4, True), done
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(f"{directory}/s")


def test_what_is_no_socket_is_refused_and_untouched(directory: Path) -> None:
    (directory / "file").write_text("precious")
    (directory / "dir").mkdir()
    (directory / "link").symlink_to("file")
    os.mkfifo(directory / "fifo")
    for name in ("file", "dir", "link", "fifo"):
        done = run("run", "--cluster-name=c", f"--endpoint={directory}/{name}")
        assert (done.returncode, "not a socket" in done.stderr) == (5, True), done
    assert (directory / "file").read_text() == "precious"
    assert left_in(directory) == {"file", "dir", "link", "fifo"}


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (("--endpoint=ipc:///" + "x" * 107,), 5, "108 bytes, a unix socket takes at most 107"),
        (("--endpoint=tcp://127.0.0.1:1",), 5, "ipc:///PATH"),
        (("--endpoint=/nowhere/at/all/s",), 5, "/nowhere/at/all does not exist; create it"),
        (("--endpoint=/dev/null/s",), 5, "not a directory"),
        (("--proxy-expiry=soon",), 2, "--proxy-expiry: 'soon' is not a number of seconds"),
        (("--no-such-flag",), 2, "no such flag"),
    ],
)
def test_what_cannot_be_served_is_one_clear_line(
    flags: tuple[str, ...], code: int, says: str
) -> None:
    done = run("run", "--cluster-name=c", *flags)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr
    assert done.stderr.startswith("trackd: error: ")
    assert done.stderr.count("\n") == 1


def test_without_a_cluster_name_nothing_starts() -> None:
    done = run("run")
    assert done.returncode == 2
    assert "--cluster-name" in done.stderr


def test_another_clusters_state_is_moved_aside(make_trackd_daemon: MakeDaemon) -> None:
    old = make_trackd_daemon("old.example")
    with Tracker(old.endpoint) as tracker:
        tracker.track_expected(Proxy("p"))
    assert old.stop() == 0
    new = make_trackd_daemon("new.example", start=False, state_dir=old.directory)
    new.start()
    with Tracker(new.endpoint, cluster="new.example") as tracker:
        assert tracker.status()["tracked"] == 0
    assert any("damaged" in name for name in left_in(old.directory))


# -- stopping -------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_within_two_seconds_under_load(
    trackd_daemon: Daemon, make_trackd_daemon: MakeDaemon, number: signal.Signals
) -> None:
    idle = seconds_to_stop(make_trackd_daemon(), number)
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(RawPeer(trackd_daemon.endpoint)).open() for _ in range(16)]
        with paused(trackd_daemon.pid):  # or a quick one would be done with most of it
            for peer in peers:  # far more than it can serve in that time, changes among them
                for i in range(2_000):
                    peer.send(pack(peer.body("set_connection_count", count=i)))
                    peer.send(pack(peer.body("is_claimed", principals=["p"])))
        for peer in peers:
            assert peer.receive() is not None
        # The second bound is for machines on which an idle daemon takes long, too.
        assert seconds_to_stop(trackd_daemon, number) < max(2.0, 4 * idle)
        served = 0
        for peer in peers:
            while peer.receive(0) is not None:
                served += 1
        assert served < 16 * 4_000 - 16, "it stopped because it was told to"
    # The mark stays where it has notes of what a session is done with.
    assert left_in(trackd_daemon.directory) - {"trackd.mark"} == {"log", "trackd.db"}


def test_what_was_acknowledged_before_a_signal_is_there_after_it(trackd_daemon: Daemon) -> None:
    with RawPeer(trackd_daemon.endpoint) as peer:
        peer.open()
        for i in range(2_000):
            peer.send(pack(peer.body("adopt", principals=[f"p{i}"])))
        assert peer.receive() is not None
        assert trackd_daemon.stop() == 0
        acknowledged = 1
        while peer.receive(0.2) is not None:
            acknowledged += 1
        trackd_daemon.start()
        with Tracker(trackd_daemon.endpoint) as tracker:
            assert tracker.status()["claimed"] >= acknowledged


@pytest.mark.slow
def test_a_signal_at_any_moment_of_the_start_leaves_nothing(directory: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "trackd",
        "run",
        "--cluster-name=c",
        f"--endpoint={directory}/s",
    ]
    codes = []
    for delay in (0.05, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3):
        with (directory / "log").open("ab") as log, running(*command, log=log) as process:
            time.sleep(delay)
            process.send_signal(signal.SIGTERM)
            codes.append(process.wait(PATIENCE))
        assert left_in(directory) <= {"log", "s.state"}, delay
        assert left_in(directory / "s.state") <= {"trackd.db"} if codes[-1] == 0 else True
    assert set(codes) <= {0, -signal.SIGTERM}, codes


@pytest.mark.parametrize("_", range(8))
def test_signals_are_never_missed_and_a_second_one_changes_nothing(
    _: int, trackd_daemon: Daemon
) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ProcessLookupError):
            os.kill(trackd_daemon.pid, number)
    assert trackd_daemon.stop() == 0


# -- dying ----------------------------------------------------------------------------

#: Starts `trackd run` after a line that breaks something in it.
BROKEN = """
import sys
{breakage}
from trackd.cli import main
sys.exit(main(["run", "--cluster-name=example.com", *sys.argv[1:]]))
"""

#: Has a method fail once it was called so many times.
FAIL_AFTER = """
def fail_after(times, owner, name):
    right, calls = getattr(owner, name), []
    def method(*arguments):
        calls.append(arguments)
        if len(calls) > times:
            raise RuntimeError("broken\\nfor a test")
        return right(*arguments)
    setattr(owner, name, method)
"""

#: What breaks, and what the log says of it.
BREAKAGES = {
    "the ticker": (
        "from trackd.actors.ticker import ExpiryTicker; fail_after(2, ExpiryTicker, 'on_receive')",
        "actor=ExpiryTicker",
    ),
    "the watcher": (
        "from trackd.actors.watcher import ProcessWatcher; fail_after(0, ProcessWatcher, '_watch')",
        "actor=ProcessWatcher",
    ),
    "the publisher": (
        "from trackd.actors.publisher import EventPublisher; fail_after(0, EventPublisher, '_send')",  # noqa: E501
        "actor=EventPublisher",
    ),
    "the tracker": (
        "from trackd.state import timers; fail_after(1, timers, 'sweep')",
        "actor=TrackerActor",
    ),
    "the mailbox": (
        "from trackd.actors.mailbox import RouterMailbox; fail_after(9, RouterMailbox, '_begin_batch')",  # noqa: E501
        "actor=TrackerActor",
    ),
}


@contextlib.contextmanager
def broken(daemon: Daemon, breakage: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a daemon in the place of another, with something in it broken."""
    code = BROKEN.format(breakage=FAIL_AFTER + breakage)
    endpoint = f"--endpoint={daemon.endpoint}"
    with (
        daemon.log.open("ab") as log,
        running(sys.executable, "-c", code, endpoint, log=log) as process,
    ):
        wait_until(lambda: answers(daemon.endpoint) or process.poll() is not None)
        yield process


@pytest.mark.parametrize(("breakage", "says"), BREAKAGES.values(), ids=BREAKAGES)
def test_the_end_of_any_actor_ends_the_process(
    make_trackd_daemon: MakeDaemon, breakage: str, says: str
) -> None:
    daemon = make_trackd_daemon(start=False)
    with broken(daemon, breakage) as process, zmq.Context() as context:
        with (
            context.socket(zmq.SUB) as subscriber,
            Tracker(daemon.endpoint, timeout=3.0) as tracker,
            contextlib.suppress(DaemonAbsent, TimeoutError, Refused),
        ):
            subscriber.subscribe(b"")
            subscriber.connect(f"{daemon.endpoint}.events")
            for i in range(20):
                tracker.track_expected(Proxy(f"p{i}", ttl=0.01))
        assert process.wait(PATIENCE) == 1
    log = daemon.log.read_text()
    assert "the daemon ends" in log
    assert says in log
    assert all(LINE.fullmatch(line) for line in log.splitlines()), log
    assert left_in(daemon.directory) == {"log", "trackd.db"}
    daemon.start()
    assert daemon.stop() == 0


SLOW_ENDS = """
import time
from trackd.actors.ticker import ExpiryTicker
from trackd.actors.watcher import ProcessWatcher
def ends_slowly(owner):
    right = owner.on_stop
    def on_stop(actor):
        right(actor)
        time.sleep(0.3)
    owner.on_stop = on_stop
ends_slowly(ExpiryTicker)
ends_slowly(ProcessWatcher)
"""


def test_what_comes_while_the_actors_stop_one_by_one_does_no_harm(
    make_trackd_daemon: MakeDaemon,
) -> None:
    daemon = make_trackd_daemon(start=False)
    with broken(daemon, SLOW_ENDS) as process, RawPeer(daemon.endpoint) as peer:
        process.send_signal(signal.SIGTERM)
        while process.poll() is None:  # each begins a watch, sets a timer, and ends the watch
            peer.token = os.urandom(16)
            peer.send(pack(peer.body("open")))
            peer.send(pack(peer.body("track_expected", proxies=[["p", "", 0, 0.001]])))
            peer.send(pack(peer.body("close")))
            reply = peer.receive(0.05)
            assert reply is None or "error" not in reply, reply
        assert process.wait(PATIENCE) == 0
    log = daemon.log.read_text()
    assert "stopping" in log
    assert "error" not in log
    assert "critical" not in log
    assert left_in(daemon.directory) == {"log", "trackd.db"}


POISON = """
from trackd.rules.tracker import Tracker
right = Tracker.set_connection_count
def wrong(tracker, count):
    right(tracker, count)
    if count == 13:
        raise RuntimeError("poisoned\\nrequest")
Tracker.set_connection_count = wrong
"""


def test_a_request_that_breaks_the_daemon_takes_its_batch_with_it_and_nothing_else(
    make_trackd_daemon: MakeDaemon,
) -> None:
    daemon = make_trackd_daemon(start=False)
    with broken(daemon, POISON) as process, RawPeer(daemon.endpoint) as peer:
        peer.open()
        assert peer.request("track_expected", proxies=[["kept", "", 0, None]])["changed"] == 1
        with paused(process.pid):
            batch = [
                peer.body("track_expected", proxies=[["lost", "", 0, None]]),
                peer.body("set_connection_count", count=13),
                peer.body("ping"),
            ]
            for body in batch:
                peer.send(pack(body))
        before, poisoned = peer.receive(), peer.receive()
        assert before is not None
        assert poisoned is not None
        assert poisoned["error"] == "internal"
        # What came just before may have been a batch of its own; then it was acknowledged.
        assert before.get("error") in (None, "internal")
        kept = {"kept"} if "error" in before else {"kept", "lost"}
        assert process.wait(PATIENCE) == 1
    log = daemon.log.read_text()
    assert all(LINE.fullmatch(line) for line in log.splitlines()), log
    assert "poisoned" in log
    daemon.start()
    with Tracker(daemon.endpoint) as tracker:
        status = tracker.status()
        assert set(tracker.explain()["missing"]) == kept
        assert (status["tracked"], status["connection_count"]) == (len(kept), 0)


def test_the_client_of_a_broken_daemon_is_told_that_it_failed(
    make_trackd_daemon: MakeDaemon,
) -> None:
    daemon = make_trackd_daemon(start=False)
    with (
        broken(daemon, POISON) as process,
        Tracker(daemon.endpoint) as tracker,
        pytest.raises(DaemonFailed, match="its log tells more"),
    ):
        tracker.set_connection_count(13)
    assert process.returncode is not None


@pytest.mark.slow
def test_a_daemon_that_hangs_while_it_stops_ends_all_the_same(
    make_trackd_daemon: MakeDaemon,
) -> None:
    daemon = make_trackd_daemon(start=False)
    hang = """
import time
from trackd.operations.dispatch import Requests
Requests._answer = lambda self, call: time.sleep(600)
"""
    code = BROKEN.format(breakage=hang)
    with (
        daemon.log.open("ab") as log,
        running(sys.executable, "-c", code, f"--endpoint={daemon.endpoint}", log=log) as process,
        RawPeer(daemon.endpoint) as peer,
    ):
        wait_until(socket_path(daemon).exists)
        peer.send(pack({"op": "ping", "seq": 1}))
        wait_until(lambda: "serving" in daemon.log.read_text())
        assert peer.receive(0.3) is None
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 1
        assert time.monotonic() - begun < PATIENCE / 2
    assert "does not stop" in daemon.log.read_text()
    daemon.start()  # what it left is taken over
    assert daemon.stop() == 0


# -- the log --------------------------------------------------------------------------


def test_every_event_is_one_line_of_the_log_and_none_goes_to_standard_output(
    make_trackd_daemon: MakeDaemon,
) -> None:
    daemon = make_trackd_daemon(log_level="debug")
    code = (
        "import sys; from trackd_client import Tracker; Tracker(sys.argv[1], name='a').acquire(0)"
    )
    assert run_script(code, daemon.endpoint).returncode == 0
    with Tracker(daemon.endpoint, timeout=PATIENCE) as tracker:
        wait_until(lambda: tracker.status()["sessions"] == 0)
    daemon.stop()
    lines = daemon.log.read_text().splitlines()
    assert all(LINE.fullmatch(line) for line in lines), lines
    assert any("serving" in line and f"endpoint={daemon.endpoint}" in line for line in lines)
    assert any("session ended" in line and "reason=process_exited" in line for line in lines)
    assert any("stopping" in line and "signal=SIGTERM" in line for line in lines)
    assert not any("error" in line for line in lines), "nothing that a person need act on"


# -- nothing is left ------------------------------------------------------------------

ENDS = {
    "fails": "assert False",
    "kills the daemon": "trackd_daemon.kill()",
    "is interrupted": "os.kill(os.getpid(), signal.SIGINT); time.sleep(5)",
    "holds leases": "Tracker(trackd_daemon.endpoint).adopt('p')",
}


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_an_agents_own_test_leaves_nothing_however_it_ends(directory: Path, end: str) -> None:
    """What `trackd_client.testing` promises: no process, no socket, no file."""
    (directory / "test_agent.py").write_text(
        "import os, signal, time\n"
        "from trackd_client import Tracker\n"
        "def test_agent(trackd_daemon, make_trackd_daemon):\n"
        "    make_trackd_daemon(start=False)\n"
        "    with Tracker(trackd_daemon.endpoint) as tracker:\n"
        "        tracker.acquire(0)\n"
        f"    {end}\n"
    )
    scratch = directory / "scratch"
    scratch.mkdir()
    plugins = ["-p", "trackd_client.testing", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, *plugins, "test_agent.py"],
        cwd=directory,
        env={**os.environ, "TMPDIR": str(scratch)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    codes = {ENDS["fails"]: 1, ENDS["is interrupted"]: 2}
    assert done.returncode == codes.get(end, 0), done.stdout
    assert left_in(scratch) == set()
    commands = [entry / "cmdline" for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    for command in commands:
        with contextlib.suppress(OSError):
            assert str(directory) not in command.read_text(errors="replace")
