"""Processes that die, fork, become others or only look dead: the kernel tells, nobody guesses."""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Self

import pykka
import pytest

from helpers.agents import Agent
from helpers.support import PATIENCE, RawPeer, descriptors, open_files, paused, wait_until
from trackd.actors import watcher as watcher_module
from trackd.actors.messages import Ping, ProcessExited, UnwatchProcess, WatchProcess
from trackd.actors.watcher import PidfdInbox, ProcessWatcher
from trackd.host.processes import start_time
from trackd.sessions.identity import Process
from trackd_client import Proxy, Tracker
from trackd_client.testing import Daemon

# -- the watcher alone ------------------------------------------------------------------


class Listener(pykka.ThreadingActor):
    """Stands where the tracker stands, and keeps what it is told."""

    def __init__(self, heard: SimpleQueue[Process]) -> None:
        super().__init__()
        self._heard = heard

    def on_receive(self, message: Any) -> None:
        assert isinstance(message, ProcessExited)
        self._heard.put(message.process)


class Watching:
    """A running watcher, and what it tells.

    Attributes:
        heard: the processes of which it told that they exited.
        watcher: the actor.
    """

    def __init__(self) -> None:
        self.heard: SimpleQueue[Process] = SimpleQueue()
        self.listener = Listener.start(self.heard)
        self.watcher = ProcessWatcher.start(lambda *_: None, self.listener)

    def watch(self, process: Process) -> None:
        self.watcher.tell(WatchProcess(process))
        self.watcher.ask(Ping(), timeout=PATIENCE)

    def unwatch(self, process: Process) -> None:
        self.watcher.tell(UnwatchProcess(process))
        self.watcher.ask(Ping(), timeout=PATIENCE)

    def exited(self) -> Process:
        return self.heard.get(timeout=PATIENCE)

    @property
    def quiet(self) -> bool:
        self.watcher.ask(Ping(), timeout=PATIENCE)
        return self.heard.empty()


@pytest.fixture
def watching() -> Iterator[Watching]:
    watching = Watching()
    yield watching
    watching.watcher.stop(timeout=PATIENCE)
    watching.listener.stop(timeout=PATIENCE)
    os.close(watching.watcher.actor_inbox._wake)  # type: ignore[attr-defined] # kept for late messages


@contextmanager
def sleeper() -> Iterator[tuple[subprocess.Popen[bytes], Process]]:
    """Run a process that does nothing."""
    with subprocess.Popen(["sleep", "60"]) as popen:
        start = start_time(popen.pid)
        assert start is not None
        try:
            yield popen, Process(popen.pid, start)
        finally:
            popen.kill()


def test_an_exit_is_told_once_even_before_anybody_reaps_the_process(watching: Watching) -> None:
    with sleeper() as (popen, process):
        watching.watch(process)
        watching.watch(process)
        popen.kill()
        assert watching.exited() == process
        assert popen.returncode is None  # a zombie still
        assert watching.quiet


def test_a_process_that_has_exited_is_told_at_once(watching: Watching) -> None:
    with sleeper() as (popen, process):
        popen.kill()
        popen.wait()
        watching.watch(process)
        assert watching.exited() == process


def test_a_zombie_is_told_at_once(watching: Watching) -> None:
    with sleeper() as (popen, process):
        popen.kill()
        wait_until(lambda: start_time(popen.pid) is None)
        assert popen.returncode is None
        watching.watch(process)
        assert watching.exited() == process


def test_a_pid_that_belongs_to_another_process_by_now_is_told_at_once(watching: Watching) -> None:
    with sleeper() as (_, process):
        former = Process(process.pid, process.start - 1)
        watching.watch(former)
        assert watching.exited() == former
        watching.watch(process)
        assert watching.quiet, "the present one lives"


def test_the_former_and_the_present_owner_of_a_pid_are_not_mistaken(watching: Watching) -> None:
    with sleeper() as (popen, process):
        watching.watch(process)
        watching.watch(Process(process.pid, process.start + 1))
        assert watching.exited() == Process(process.pid, process.start + 1)
        popen.kill()
        assert watching.exited() == process


def test_nothing_is_told_of_a_process_that_is_watched_no_more(watching: Watching) -> None:
    with sleeper() as (popen, process), sleeper() as (other, last):
        watching.watch(process)
        watching.watch(last)
        watching.unwatch(process)
        popen.kill()
        popen.wait()
        other.kill()
        assert watching.exited() == last
        assert watching.quiet


def test_watching_leaves_no_descriptor_behind(watching: Watching) -> None:
    before = open_files()
    for _ in range(20):
        with sleeper() as (popen, process):
            watching.watch(process)
            watching.watch(Process(process.pid, 1))
            assert watching.exited() == Process(process.pid, 1)
            popen.kill()
            assert watching.exited() == process
    assert watching.quiet
    assert open_files() <= before


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """Let this process open so many files more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open("/dev/null", os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("room", [0, 1], ids=["for no pidfd", "for a pidfd but no look at /proc"])
def test_without_descriptors_nobody_is_taken_for_dead_and_everybody_is_watched_later(
    watching: Watching,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    room: int,
) -> None:
    monkeypatch.setattr(watcher_module, "RETRY_SECONDS", 0.05)
    with sleeper() as (popen, process), sleeper() as (other, second):
        watching.watch(second)
        with descriptors_left(room):
            watching.watch(process)
            inbox = watching.watcher.actor_inbox
            assert isinstance(inbox, PidfdInbox)
            assert watching.quiet
            other.kill()
            assert watching.exited() == second, "those that are watched still are"
        wait_until(lambda: process in inbox._pidfd_of)
        popen.kill()
        assert watching.exited() == process
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1


# -- agents --------------------------------------------------------------------------------


class Script:
    """A Python program that says when it is ready and what about, and then goes on."""

    def __init__(self, code: str, *args: str) -> None:
        setup = "import ctypes, json, os, sys, threading, time\nfrom trackd_client import Tracker\n"
        setup += "ctypes.CDLL(None).prctl(1, 9)\n"  # PR_SET_PDEATHSIG: it ends with the test
        say = "def say(*what):\n    os.write(1, (json.dumps(what) + chr(10)).encode())\n"
        self.popen = subprocess.Popen(
            [sys.executable, "-c", setup + say + code, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    @property
    def pid(self) -> int:
        return self.popen.pid

    def hear(self) -> Any:
        """Wait for what it says next."""
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        assert line, "it died"
        return json.loads(line)

    def kill(self) -> None:
        self.popen.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self.popen:
            self.popen.kill()


@pytest.fixture
def observer(trackd_daemon: Daemon) -> Iterator[Tracker]:
    with Tracker(trackd_daemon.endpoint) as tracker:
        yield tracker


def test_a_crash_frees_the_proxies_and_serves_whoever_waits(
    trackd_daemon: Daemon, observer: Tracker
) -> None:
    observer.track_expected(Proxy("p1"), Proxy("p2"))
    took = []
    for _ in range(5):
        agent = Agent(trackd_daemon.endpoint)
        claimed, in_flight = agent.do("acquire"), agent.do("acquire")
        agent.do("claim", claimed, "p1")
        with Agent(trackd_daemon.endpoint) as waiting:
            waiting.tell("wait", PATIENCE)
            wait_until(lambda: observer.status()["waiting"] == 1)
            killed = time.monotonic()
            os.kill(agent.pid, signal.SIGKILL)
            assert waiting.answer() == in_flight + 1
            took.append(time.monotonic() - killed)
            assert not observer.is_claimed("p1")
            assert observer.status()["inflight"] == 1
            agent.kill()
    print(f"from the kill to the next grant: {sorted(round(t * 1e3, 1) for t in took)} ms")


FORKS = """
tracker = Tracker(sys.argv[1])
tracker.adopt("p1")
child = os.fork()
if child == 0:
    say(os.getpid(), os.getppid())
    time.sleep(60)
    os._exit(0)
time.sleep(60)
"""


def test_a_child_that_inherits_a_client_does_not_keep_its_session_alive(
    trackd_daemon: Daemon, observer: Tracker
) -> None:
    with Script(FORKS, trackd_daemon.endpoint) as script:
        child, parent = script.hear()
        try:
            assert observer.is_claimed("p1")
            os.kill(parent, signal.SIGKILL)
            wait_until(lambda: not observer.is_claimed("p1"))
            assert start_time(child) is not None, "with the socket of its parent still open"
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_child_that_inherits_a_client_does_not_end_its_session_either(
    trackd_daemon: Daemon, observer: Tracker
) -> None:
    with Script(FORKS, trackd_daemon.endpoint) as script:
        child, parent = script.hear()
        os.kill(child, signal.SIGKILL)
        wait_until(lambda: start_time(child) is None)
        with Agent(trackd_daemon.endpoint) as later:  # whose end comes after the child's
            later.do("adopt", "p2")
            later.kill()
        wait_until(lambda: not observer.is_claimed("p2"))
        assert observer.is_claimed("p1")
        os.kill(parent, signal.SIGKILL)
        wait_until(lambda: not observer.is_claimed("p1"))


BECOMES_ANOTHER_PROGRAM = """
tracker = Tracker(sys.argv[1])
tracker.adopt("p1")
say(os.getpid())
os.execvp("sleep", ["sleep", "60"])
"""


def test_a_process_that_becomes_another_program_is_still_the_same_process(
    trackd_daemon: Daemon, observer: Tracker
) -> None:
    with Script(BECOMES_ANOTHER_PROGRAM, trackd_daemon.endpoint) as script:
        (pid,) = script.hear()
        wait_until(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")
        trackd_daemon.restart()
        assert observer.is_claimed("p1")
        script.kill()
        wait_until(lambda: not observer.is_claimed("p1"))


OPENED_BY_A_THREAD = """
trackers = []
def work():
    trackers.append(Tracker(sys.argv[1]))
    trackers[0].adopt("p1")
thread = threading.Thread(target=work)
thread.start()
thread.join()
say(trackers[0].is_claimed("p1"))
time.sleep(60)
"""


def test_the_end_of_the_thread_that_opened_a_session_is_not_its_end(
    trackd_daemon: Daemon, observer: Tracker
) -> None:
    with Script(OPENED_BY_A_THREAD, trackd_daemon.endpoint) as script:
        assert script.hear() == [True]
        trackd_daemon.restart()
        assert observer.is_claimed("p1")
        script.kill()
        wait_until(lambda: not observer.is_claimed("p1"))


MAIN_THREAD_EXITS = """
tracker = Tracker(sys.argv[1])
tracker.adopt("p1")
threading.Thread(target=time.sleep, args=(60,)).start()
say(os.getpid())
ctypes.CDLL(None).syscall(60, 0)
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the number of exit is that of x86-64")
def test_the_end_of_the_main_thread_is_not_the_end_of_the_process(
    trackd_daemon: Daemon, observer: Tracker
) -> None:
    with Script(MAIN_THREAD_EXITS, trackd_daemon.endpoint) as script:
        (pid,) = script.hear()
        wait_until(lambda: b") Z" in Path(f"/proc/{pid}/stat").read_bytes())
        assert observer.is_claimed("p1")
        trackd_daemon.restart()
        assert observer.is_claimed("p1")
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not observer.is_claimed("p1"))


NEVER_REAPS = """
child = os.fork()
if child == 0:
    try:
        tracker = Tracker(sys.argv[1])
        tracker.adopt("p1")
        say(os.getpid())
        time.sleep(60)
    finally:
        os._exit(1)
time.sleep(60)
"""


@pytest.mark.parametrize("restart", [False, True], ids=["at work", "over a restart"])
def test_an_agent_that_nobody_reaps_is_dead_all_the_same(
    trackd_daemon: Daemon, observer: Tracker, *, restart: bool
) -> None:
    with Script(NEVER_REAPS, trackd_daemon.endpoint) as script:
        (child,) = script.hear()
        assert observer.is_claimed("p1")
        if restart:
            trackd_daemon.kill()
        os.kill(child, signal.SIGKILL)
        wait_until(lambda: b") Z" in Path(f"/proc/{child}/stat").read_bytes())
        if restart:
            trackd_daemon.start()
            assert not observer.is_claimed("p1")
        wait_until(lambda: not observer.is_claimed("p1"))
        assert b") Z" in Path(f"/proc/{child}/stat").read_bytes()


MANY_AGENTS = """
os.setpgid(0, 0)
count = int(sys.argv[2])
for number in range(count):
    if os.fork() == 0:
        try:
            tracker = Tracker(sys.argv[1], timeout=30)
            lease = tracker.adopt(f"p{number}")
            say(number, lease is not None)
            time.sleep(60)
        finally:
            os._exit(1)  # whatever happened: never on to the next fork
time.sleep(60)
"""


def test_a_hundred_agents_that_die_at_once_are_all_gone_and_leave_no_descriptor(
    trackd_daemon: Daemon, observer: Tracker
) -> None:
    count = 100
    observer.is_claimed("p")
    before = descriptors(trackd_daemon.pid)
    with Script(MANY_AGENTS, trackd_daemon.endpoint, str(count)) as script:
        assert sorted(script.hear() for _ in range(count)) == [[n, True] for n in range(count)]
        status = observer.status()
        assert (status["sessions"], status["claimed"]) == (count + 1, count)
        killed = time.monotonic()
        os.killpg(script.pid, signal.SIGKILL)
        wait_until(lambda: observer.status()["sessions"] == 1)
        print(f"all of {count} gone after {(time.monotonic() - killed) * 1e3:.0f} ms")
        assert observer.status()["claimed"] == 0
        # The observer's background thread may have connected after the first look.
        wait_until(lambda: descriptors(trackd_daemon.pid) < before + count / 10)


def test_many_sessions_of_one_process_end_together(
    trackd_daemon: Daemon, observer: Tracker
) -> None:
    code = """
trackers = [Tracker(sys.argv[1]) for _ in range(20)]
say(*[tracker.adopt(f"p{n}").id for n, tracker in enumerate(trackers)])
time.sleep(60)
"""
    with Script(code, trackd_daemon.endpoint) as script:
        assert script.hear() == list(range(1, 21))
        assert observer.status()["sessions"] == 20  # the observer has opened none yet
        script.kill()
        wait_until(lambda: observer.status()["sessions"] == 0)
        assert observer.status()["claimed"] == 0


def test_a_session_that_was_closed_is_not_ended_again_by_its_process(
    trackd_daemon: Daemon, observer: Tracker
) -> None:
    with Agent(trackd_daemon.endpoint) as agent, RawPeer(trackd_daemon.endpoint) as peer:
        agent.do("adopt", "p1")
        peer.open()
        peer.request("close")
        peer.token = os.urandom(16)
        peer.open()  # of the same process, which is watched again
        peer.request("adopt", principals=["p2"])
        agent.kill()
        wait_until(lambda: not observer.is_claimed("p1"))
        assert observer.is_claimed("p2")


DIES_BEFORE_IT_IS_HEARD = """
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from helpers.support import GREETING, pack, plain_socket, ready, zmtp_frame
socket = plain_socket(Path(sys.argv[1].removeprefix("ipc://")))
socket.sendall(GREETING)
token = os.urandom(16)
bodies = [{"op": "open"}, {"op": "adopt", "principals": ["p1"]}, {"op": "try_acquire"}]
frames = [zmtp_frame(pack({**body, "seq": n, "token": token})) for n, body in enumerate(bodies, 1)]
say("connected")
sys.stdin.readline()
socket.sendall(ready(Socket_Type=b"DEALER", Identity=b"") + b"".join(frames))
say("sent")
time.sleep(60)
"""


@pytest.mark.parametrize("reaped", [False, True], ids=["a zombie", "reaped"])
def test_a_process_that_was_dead_before_its_requests_were_read_gets_nothing(
    trackd_daemon: Daemon, observer: Tracker, *, reaped: bool
) -> None:
    tests = str(Path(__file__).parent.parent)
    with Script(DIES_BEFORE_IT_IS_HEARD, trackd_daemon.endpoint, tests) as script:
        assert script.hear() == ["connected"]
        requests = observer.status()["requests"]
        with paused(trackd_daemon.pid):
            assert script.popen.stdin is not None
            script.popen.stdin.write(b"go on\n")
            script.popen.stdin.flush()
            assert script.hear() == ["sent"]
            script.kill()
            if reaped:
                script.popen.wait()
            else:
                wait_until(lambda: start_time(script.pid) is None)
        wait_until(lambda: observer.status()["requests"] >= requests + 4)
        status = observer.status()
        assert (status["sessions"], status["claimed"], status["inflight"]) == (0, 0, 0)
