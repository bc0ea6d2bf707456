"""Who is at the other end: what the kernel says is read, and nothing else is believed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.support import wait_until
from trackd.actors.watcher import PidfdInbox
from trackd.host import processes
from trackd.host.processes import PeerCache, command_of, has_exited, parse_address, start_time
from trackd.sessions.identity import Peer, Process

# -- Peer-Address ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "peer"),
    [
        ("localhost:1000:100:42", Peer(1000, 100, 42)),
        ("localhost:0:0:0", Peer(0, 0, 0)),
        (":1:2:3", Peer(1, 2, 3)),
        ("a:b:c:1:2:3", Peer(1, 2, 3)),
        ("host with spaces:1:2:3", Peer(1, 2, 3)),
        ("9:9:9:1:2:3", Peer(1, 2, 3)),
        ("[::1]:1:2:3", Peer(1, 2, 3)),
        ("höst:1:2:3", Peer(1, 2, 3)),
        ("h:4294967294:4294967294:4194304", Peer(4294967294, 4294967294, 4194304)),
    ],
)
def test_the_last_three_parts_are_read_whatever_the_host_is_called(
    address: str, peer: Peer
) -> None:
    assert parse_address(address) == peer
    assert PeerCache()[address] == peer


@pytest.mark.parametrize(
    "address",
    [
        "",
        "localhost",
        "1:2:3",
        "localhost:1:2",
        "localhost:1:2:",
        "localhost::2:3",
        "localhost:1:2:3:",
        "localhost:1:2:x",
        "localhost:-1:2:3",
        "localhost:+1:2:3",
        "localhost: 1:2:3",
        "localhost:1:2:3 ",
        "localhost:1.0:2:3",
        "localhost:0x1:2:3",
        "localhost:1_0:2:3",
        "localhost:²:2:3",
        "localhost:٣:2:3",
        "127.0.0.1",
        "10.0.0.1:4242",
    ],
)
def test_an_address_that_does_not_end_in_three_numbers_names_nobody(address: str) -> None:
    assert parse_address(address) is None
    assert PeerCache()[address] is None


def test_the_cache_never_mistakes_one_address_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_CACHE_SIZE", 3)
    cache = PeerCache()
    for _ in range(2):
        for number in range(10):
            assert cache[f"host:{number}:2:3"] == Peer(number, 2, 3)
            assert len(cache) <= 3


# -- processes ---------------------------------------------------------------------------


def test_the_start_time_of_a_process_stays_and_tells_it_from_others() -> None:
    mine = start_time(os.getpid())
    assert mine is not None
    assert mine == start_time(os.getpid())
    with subprocess.Popen(["sleep", "60"]) as other:
        theirs = start_time(other.pid)
        assert theirs is not None
        assert theirs > mine
        other.kill()
    assert start_time(other.pid) is None


def test_a_zombie_has_exited() -> None:
    pid = os.posix_spawn("/bin/true", ["true"], {})
    try:
        wait_until(lambda: b") Z" in Path(f"/proc/{pid}/stat").read_bytes())
        assert start_time(pid) is None
    finally:
        os.waitpid(pid, 0)


def test_a_process_has_exited_for_certain_once_it_is_a_zombie_and_when_it_is_gone() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        assert not has_exited(process.pid)
        process.kill()
        wait_until(lambda: has_exited(process.pid))
        assert process.returncode is None
    assert has_exited(process.pid)


@pytest.mark.parametrize("name", ["a) Z 0 0", ")))) ", "x y\n", "((", "é) R 1"])
def test_a_command_of_any_name_hides_nothing(tmp_path: Path, name: str) -> None:
    program = tmp_path / name
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "60"]) as process:
        wait_until(lambda: command_of(process.pid) not in ("python", "python3"))
        found = start_time(process.pid)
        process.kill()
    assert found is not None
    now = time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK")
    assert now - 20 * os.sysconf("SC_CLK_TCK") < found <= now


#: Ends its main thread and lives on in another one, as programs in C and Go may.
MAIN_THREAD_EXITS = """
import ctypes, sys, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
print("ready", flush=True)
ctypes.CDLL(None).syscall(60 if sys.maxsize > 2**32 else 1, 0)
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the number of exit is that of x86-64")
def test_a_process_whose_main_thread_has_exited_still_lives() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", MAIN_THREAD_EXITS], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        stat = Path(f"/proc/{process.pid}/stat")
        wait_until(lambda: b") Z" in stat.read_bytes())
        found = start_time(process.pid)
        assert process.poll() is None
        process.kill()
    assert found is not None


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["python3", "agent.py", "--password", "s3cret"], "python3 agent.py"),
        (["/usr/bin/python3", "-u", "/opt/a/agent.py", "s3cret"], "python3 -u /opt/a/agent.py"),
        (["python3", "-m", "agent", "s3cret"], "python3 -m agent"),
        (["bash", "-c", "PASSWORD=s3cret agent"], "bash"),
        (["sh", "-ec", "s3cret"], "sh"),
        (["perl", "-e", "s3cret"], "perl"),
        (["python3", "-c", "s3cret"], "python3"),
        (["python3", "-W", "s3cret", "agent.py"], "python3"),
        (["bash", "TOKEN=s3cret"], "bash"),
        (["python3", "s3cret phrase"], "python3"),
        (["env", "TOKEN=s3cret", "agent"], "env"),
        (["agent", "s3cret"], "agent"),
        (["curl", "https://me:s3cret@example.com"], "curl"),
        (["mysql", "-ps3cret"], "mysql"),
    ],
)
def test_a_command_shows_its_script_and_none_of_its_arguments(
    monkeypatch: pytest.MonkeyPatch, words: list[str], shown: str
) -> None:
    line = "\0".join(words).encode() + b"\0"
    monkeypatch.setattr(Path, "read_bytes", lambda _path: line)
    assert command_of(1) == shown


@pytest.mark.parametrize("name", ["agent --password=s3cret", "TOKEN=s3cret", "a/b s3cret", "a\ts"])
def test_a_process_that_has_a_sentence_for_a_name_is_shown_as_the_file_that_it_runs(
    tmp_path: Path, name: str
) -> None:
    program = tmp_path / "my agent"
    program.symlink_to("/bin/sleep")
    for file, shown in (("/bin/sleep", "sleep"), (program, "my agent")):
        with subprocess.Popen([name, "60"], executable=file) as process:
            wait_until(lambda shown=shown: command_of(process.pid) == shown)  # type: ignore[misc]
            process.kill()


def test_where_pidfds_are_refused_a_process_that_is_gone_is_noticed_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        monkeypatch.setattr(os, "pidfd_open", refuse_pidfd)
        assert not has_exited(process.pid)
        process.kill()
    assert has_exited(process.pid)


def test_where_pidfds_are_refused_the_watcher_looks_at_the_start_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "pidfd_open", refuse_pidfd)
    inbox = PidfdInbox()
    with subprocess.Popen(["sleep", "60"]) as process:
        start = start_time(process.pid)
        assert start is not None
        with pytest.raises(PermissionError):
            inbox.watch(Process(process.pid, start))  # alive: tried again later
        process.kill()
    assert not inbox.watch(Process(process.pid, start))
    inbox.close()


def refuse_pidfd(pid: int) -> int:
    raise PermissionError(errno.EPERM, "Operation not permitted")
