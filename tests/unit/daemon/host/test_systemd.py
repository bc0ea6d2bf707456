"""What the daemon hears from systemd, and what it tells it."""

from __future__ import annotations

import logging
import os
import re
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trackd.config.exits import UnusableError
from trackd.host import logs
from trackd.host.systemd import Notifier, listening_socket


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """A socket to be notified on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(10)
        yield listener


@pytest.fixture
def notifier(manager: socket.socket) -> Notifier:
    return Notifier({"NOTIFY_SOCKET": manager.getsockname()})


def test_each_word_to_the_service_manager_is_a_datagram(
    notifier: Notifier, manager: socket.socket
) -> None:
    notifier.ready()
    assert manager.recv(1000) == b"READY=1"
    notifier.alive()
    assert manager.recv(1000) == b"WATCHDOG=1"
    notifier.stopping()
    assert manager.recv(1000) == b"STOPPING=1\nSTATUS=stopping"
    notifier.reloading()
    assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=\d+", manager.recv(1000))


def test_a_status_is_one_line(notifier: Notifier, manager: socket.socket) -> None:
    notifier.status("claimed 1\nREADY=1")
    assert manager.recv(1000) == b"STATUS=claimed 1 READY=1"


def test_an_abstract_socket_is_notified_too() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0trackd-test-{os.getpid()}")
        listener.settimeout(10)
        Notifier({"NOTIFY_SOCKET": f"@trackd-test-{os.getpid()}"}).ready()
        assert listener.recv(1000) == b"READY=1"


def test_nobody_is_told_anything_without_a_service_manager(
    notifier: Notifier, manager: socket.socket
) -> None:
    assert not Notifier({}).wanted
    Notifier({}).ready()
    manager.close()
    notifier.ready()  # nor is it an error that the manager has gone


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "2500000"}, 2.5),
        ({"WATCHDOG_USEC": "2500000", "WATCHDOG_PID": str(os.getpid())}, 2.5),
        ({"WATCHDOG_USEC": "2500000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_counts_for_this_process_alone(
    environ: dict[str, str], seconds: float | None
) -> None:
    assert Notifier({"NOTIFY_SOCKET": "@x", **environ}).watchdog == seconds


def passed(path: Path, code: str, kind: int = socket.SOCK_STREAM, *, listen: bool = True) -> str:
    """Run code in a process that gets a socket at `path` as systemd would pass it."""
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.bind(str(path))
        if listen:
            sock.listen()
        head = (
            f"import os, sys; os.dup2({sock.fileno()}, 3)\n"
            "from pathlib import Path; from trackd.host.systemd import listening_socket\n"
            "from trackd.config.exits import UnusableError\n"
            "environ = {'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '1'}\n"
        )
        return subprocess.run(
            [sys.executable, "-c", head + code],
            pass_fds=[sock.fileno()],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()


def test_the_socket_that_systemd_listens_on_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "s"
    code = (
        f"fd = listening_socket(environ, Path({str(path)!r}))\n"
        "print(fd, os.get_inheritable(fd), os.get_blocking(fd))"
    )
    assert passed(path, code) == "3 False False"


REFUSED = """
try: listening_socket(environ, Path({path!r}))
except UnusableError as error: print(error)
"""


def test_a_socket_elsewhere_or_one_that_does_not_listen_is_refused(tmp_path: Path) -> None:
    elsewhere = REFUSED.format(path="/elsewhere")
    assert "the endpoint is '/elsewhere'" in passed(tmp_path / "a", elsewhere)
    deaf = REFUSED.format(path=str(tmp_path / "b"))
    assert "something other than a listening" in passed(tmp_path / "b", deaf, listen=False)
    datagrams = REFUSED.format(path=str(tmp_path / "c"))
    assert "something other than" in passed(
        tmp_path / "c", datagrams, socket.SOCK_DGRAM, listen=False
    )


def test_a_descriptor_that_is_no_open_socket_is_refused(tmp_path: Path) -> None:
    closed = "os.close(3)\n" + REFUSED.format(path="/s")
    assert "no socket as descriptor 3: bad file descriptor" in passed(tmp_path / "a", closed)
    file = "os.dup2(os.open('/dev/null', os.O_RDONLY), 3)\n" + REFUSED.format(path="/s")
    assert "no socket as descriptor 3: " in passed(tmp_path / "b", file)


def test_sockets_that_are_meant_for_another_process_are_left_alone(tmp_path: Path) -> None:
    assert listening_socket({}, tmp_path / "s") is None
    assert listening_socket({"LISTEN_PID": "1", "LISTEN_FDS": "1"}, tmp_path / "s") is None


def test_more_than_one_socket_is_refused(tmp_path: Path) -> None:
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2"}
    with pytest.raises(UnusableError, match="passes 2 sockets"):
        listening_socket(environ, tmp_path / "s")


# --- the journal -------------------------------------------------------------------------------


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "journal"))
        listener.settimeout(10)
        yield listener


@pytest.fixture
def journal(journald: socket.socket) -> Iterator[logs.JournalHandler]:
    handler = logs.JournalHandler(Path(journald.getsockname()))
    yield handler
    handler.close()


def entry(values: dict[str, object], level: int = logging.INFO) -> logging.LogRecord:
    record = logging.LogRecord("trackd.x", level, "x.py", 7, "claimed", (), None)
    record.__dict__.update(logs.fields(**values))
    return record


def decoded(data: bytes) -> dict[str, str]:
    """Read the journal's native format, as journald does."""
    found = {}
    while data:
        name, rest = data.split(b"\n", 1)
        (length,) = struct.unpack("<Q", rest[:8])
        found[name.decode()] = rest[8 : 8 + length].decode()
        assert rest[8 + length : 9 + length] == b"\n"
        data = rest[9 + length :]
    return found


def test_each_value_is_a_field_of_the_journal(
    journal: logs.JournalHandler, journald: socket.socket
) -> None:
    journal.emit(entry({"session": 3, "proxy": "a\nb", "claimed": True}, logging.WARNING))
    found = decoded(journald.recv(10_000))
    assert found["MESSAGE"] == 'claimed session=3 proxy="a\\nb" claimed=true'
    assert found["PRIORITY"] == "4"
    assert (found["TRACKD_SESSION"], found["TRACKD_PROXY"]) == ("3", "a\nb")
    assert (found["TRACKD_CLAIMED"], found["TRACKD_EVENT"]) == ("true", "claimed")
    assert (found["CODE_FILE"], found["CODE_LINE"]) == ("x.py", "7")
    assert found["SYSLOG_IDENTIFIER"] == "trackd"


def test_what_no_datagram_holds_comes_in_a_sealed_file(
    journal: logs.JournalHandler, journald: socket.socket
) -> None:
    journal.emit(entry({"value": "x" * 5_000_000}))
    data, descriptors, _, _ = socket.recv_fds(journald, 10, 1)
    assert data == b""
    with os.fdopen(descriptors[0], "rb") as file:
        file.seek(0)
        assert decoded(file.read())["TRACKD_VALUE"] == "x" * 5_000_000
        with pytest.raises(PermissionError):
            os.write(file.fileno(), b"x")


def test_a_journal_that_was_restarted_is_found_again(
    journal: logs.JournalHandler, journald: socket.socket
) -> None:
    path = journald.getsockname()
    journald.close()
    Path(path).unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as again:
        again.bind(path)
        journal.emit(entry({"session": 3}))
        assert select.select([again], [], [], 10)[0]


def test_a_journal_that_is_stuck_costs_lines_and_not_the_daemon(
    journal: logs.JournalHandler, journald: socket.socket
) -> None:
    for number in range(100_000):  # far more than the kernel queues; each may wait a second but
        journal.emit(entry({"number": number}))  # the first that did is the last that does
    last = -1
    while select.select([journald], [], [], 0)[0]:
        last = int(decoded(journald.recv(10_000))["TRACKD_NUMBER"])
    assert 0 <= last < 99_999
    journal.emit(entry({"number": -5}))
    assert decoded(journald.recv(10_000))["TRACKD_NUMBER"] == "-5"
