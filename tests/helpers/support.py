"""What several test modules need: a raw peer, a raw socket, a look at another process.

Nothing here checks anything; that is the tests' business.
"""

from __future__ import annotations

import functools
import itertools
import os
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgpack
import pytest
import zmq

from trackd_client import Tracker
from trackd_client.testing import Daemon
from trackd_client.wire.protocol import REPLY, REQUEST, VERSION

#: Seconds that anything may take before a test gives up on it.
PATIENCE = 60.0
#: Seconds after which a raw peer sends again what was not answered.
RESEND_SECONDS = 10.0

#: Marks tests that would see what coverage does in a process that it measures.
unmeasured = pytest.mark.skipif("COVERAGE_RUN" in os.environ, reason="coverage would be seen")


def wait_until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Return when the condition is true; fail when it does not become true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def needed(program: str, package: str) -> str:
    """Return a program of the system, or skip the test; in CI, which installs it, fail."""
    found = shutil.which(program)
    if found is None:
        reason = f"there is no {program} (Debian's package {package})"
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must run this: {reason}")
        pytest.skip(reason)
    return found


def rss(pid: int) -> int:
    """Return the resident memory of a process in bytes."""
    return _status_field(pid, "VmRSS") * 1024


def peak_rss(pid: int) -> int:
    """Return the most resident memory that a process has had, in bytes."""
    return _status_field(pid, "VmHWM") * 1024


def reset_peak_rss(pid: int) -> None:
    """Let `peak_rss` begin again at the present value."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def descriptors(pid: int) -> int:
    """Return how many descriptors a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def open_files() -> set[tuple[str, str]]:
    """Return number and target of each descriptor that this process has open.

    What is in it now and was not before has been opened since. A bare count shows less: what an
    earlier test left to a thread of libzmq or to the collector may be closed at any time.
    """
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.add((entry.name, str(entry.readlink())))
    return found


def _status_field(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise AssertionError(f"process {pid} has ended")


def processor_seconds(pid: int) -> float:
    """Return the processor time that a process has used."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    fields = stat[stat.rfind(")") + 2 :].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def socket_path(daemon: Daemon) -> Path:
    """Return the path of a daemon's socket."""
    return Path(daemon.endpoint.removeprefix("ipc://"))


@contextmanager
def paused(pid: int) -> Iterator[None]:
    """Stop a process with SIGSTOP for as long as the block runs."""
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(
            lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        )
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def seconds_to_stop(daemon: Daemon, number: int = signal.SIGTERM) -> float:
    """Stop a daemon by a signal, and return how long that took."""
    begun = time.monotonic()
    assert daemon._end(number) == 0
    return time.monotonic() - begun


def serves(daemon: Daemon) -> bool:
    """Tell whether a good request is answered, and by the process that was started."""
    with Tracker(daemon.endpoint, timeout=PATIENCE) as tracker:
        return bool(tracker.status()["pid"] == daemon.pid)


def complaints(stderr: str) -> str:
    """Return what a program in development mode complained of, on its standard error.

    "Executing <Task ...> took 0.102 seconds" is not of it: asyncio says that on a busy machine.
    """
    lines = stderr.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("Executing <"))


def run_script(
    code: str, *args: str, user: int | None = None, timeout: float = PATIENCE
) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, as another user if need be, and return its end."""
    executable, options = (sys.executable, {}) if user is None else python_of(user)
    return subprocess.run(
        [executable, "-c", code, *args],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd="/",
        **options,
    )


@functools.cache
def _interpreter_of(user: int) -> tuple[str, str] | None:
    """Return an interpreter that a user may run, and its PYTHONPATH; that of root may be hidden."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    for executable in (sys.executable, "/usr/bin/python3"):
        with suppress(OSError):
            done = subprocess.run(
                [executable, "-c", "import trackd, trackd_client, zmq, msgpack, pykka"],
                user=user,
                group=user,
                extra_groups=[],
                env={"PYTHONPATH": path},
                cwd="/",
                capture_output=True,
                check=False,
            )
            if done.returncode == 0:
                return executable, path
    return None


def python_of(user: int) -> tuple[str, dict[str, Any]]:
    """Return an interpreter and the arguments of `Popen` for another user, or skip the test."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    found = _interpreter_of(user)
    if found is None:
        pytest.skip(f"there is no Python with these packages that the user {user} may run")
    executable, path = found
    identity = {"user": user, "group": user, "extra_groups": []}
    return executable, {**identity, "env": {"PYTHONPATH": path}}


class RawPeer:
    """A peer that says whatever it is told, rightly or wrongly; with a session when it opens one.

    Attributes:
        socket: the ZeroMQ socket.
        token: what it calls its session.
    """

    def __init__(
        self, endpoint: str, *, kind: int = zmq.DEALER, identity: bytes | None = None
    ) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(kind)
        self.socket.linger = 0
        self.socket.sndhwm = self.socket.rcvhwm = 0
        if identity is not None:
            self.socket.setsockopt(zmq.IDENTITY, identity)
        self.socket.connect(endpoint)
        self.token = secrets.token_bytes(16)
        self._numbers = itertools.count(1)

    def send(self, *frames: bytes) -> None:
        """Send one message of these frames."""
        self.socket.send_multipart(frames)

    def receive(self, seconds: float = PATIENCE) -> dict[str, Any] | None:
        """Return the body of the next reply, or None when there is none in time."""
        if not self.socket.poll(int(seconds * 1000)):
            return None
        version, kind, body = msgpack.unpackb(self.socket.recv())
        assert (version, kind) == (VERSION, REPLY)
        assert isinstance(body, dict)
        return body

    def ask(self, body: Mapping[str, Any], seconds: float = PATIENCE) -> dict[str, Any]:
        """Send the body of a request, and return the reply with its number.

        A request is lost with a connection that ends at that moment. So it is sent again, as
        docs/protocol.md says.
        """
        deadline = time.monotonic() + seconds
        while (now := time.monotonic()) < deadline:
            self.send(pack(body))
            again = min(now + RESEND_SECONDS, deadline)
            while (reply := self.receive(max(0.0, again - time.monotonic()))) is not None:
                if reply["seq"] == body.get("seq"):
                    return reply
        raise AssertionError(f"no answer to {body!r:.200}")

    def body(self, op: str, **fields: Any) -> dict[str, Any]:
        """Return a right request of this session: next number, all before it done."""
        seq = next(self._numbers)
        done = [1, seq - 1] if seq > 1 else []
        return {"op": op, "seq": seq, "token": self.token, "done": done, **fields}

    def request(self, op: str, **fields: Any) -> dict[str, Any]:
        """Make a right request, and return what it is answered."""
        return self.ask(self.body(op, **fields))

    def open(self) -> Self:
        """Open the session."""
        reply = self.request("open", name="raw")
        assert "error" not in reply, reply
        return self

    def close(self) -> None:
        """Close the socket; the session lives on until the process ends."""
        self.socket.close()
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def pack(body: object, *, version: object = VERSION, kind: object = REQUEST) -> bytes:
    """Return the frame of a message, right or wrong."""
    frame: bytes = msgpack.packb([version, kind, body])
    return frame


#: How a ZMTP 3.0 peer without security begins.
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31)


def ready(**properties: bytes) -> bytes:
    """Return the command that ends a ZMTP handshake; an underscore in a name is a hyphen."""
    body = b"\x05READY"
    for name, value in properties.items():
        key = name.replace("_", "-").encode()
        body += bytes([len(key)]) + key + struct.pack(">I", len(value)) + value
    return bytes([4, len(body)]) + body


def zmtp_frame(payload: bytes, *, more: bool = False) -> bytes:
    """Return one frame of a message as ZMTP writes it."""
    if len(payload) < 256:
        return bytes([1 if more else 0, len(payload)]) + payload
    return bytes([3 if more else 2]) + struct.pack(">Q", len(payload)) + payload


def plain_socket(path: Path) -> socket.socket:
    """Return a connected unix socket that speaks no protocol at all."""
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connected.settimeout(PATIENCE)
    try:
        connected.connect(str(path))
    except OSError:
        connected.close()
        raise
    return connected


def zmtp_socket(path: Path, **properties: bytes) -> socket.socket:
    """Return a connected unix socket that has shaken hands, with the properties given.

    What follows the handshake must wait for the other side's READY: libzmq takes it for a part
    of the handshake otherwise, and hangs up.
    """
    connected = plain_socket(path)
    connected.sendall(GREETING + ready(**{"Socket_Type": b"DEALER", **properties}))
    received = b""
    while len(received) < 66 or len(received) < 66 + received[65]:
        chunk = connected.recv(4096)
        assert chunk, "the other side hung up"
        received += chunk
    return connected
