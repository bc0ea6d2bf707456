"""`trackctl doctor --dial`: what it finds on the way to real servers on this machine."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from helpers.support import needed
from helpers.trackctl import trackctl
from trackd_client import Proxy, Tracker
from trackd_client.testing import Daemon


@contextmanager
def balancer(serve: Callable[[socket.socket, int], object]) -> Iterator[str]:
    """Serve connections in turn; `serve` gets each one with its number. Yield the address."""

    def run() -> None:
        for number in itertools.count():
            try:
                connection = listener.accept()[0]
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                serve(connection, number)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def dialled(daemon: Daemon, *arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Return the exit code, and the findings about dials by their checks."""
    done = trackctl("--endpoint", daemon.endpoint, "doctor", "--json", *arguments)
    assert not done.stderr
    findings = {each["check"]: each for each in json.loads(done.stdout)["findings"]}
    assert "daemon" in findings, "the other checks are made, too"
    return done.returncode, {
        check.removeprefix("dial "): each
        for check, each in findings.items()
        if check.startswith("dial ")
    }


def test_proxies_that_speak_first_are_told_apart_by_what_they_say(trackd_daemon: Daemon) -> None:
    greetings = ("p1\n", '{"principals": ["p2\x1b[31m"]}\n', "p3" + "x" * 99)

    def greet(connection: socket.socket, number: int) -> None:
        connection.sendall(greetings[number % 3].encode())

    with balancer(greet) as address:
        code, found = dialled(trackd_daemon, "--dial", address, "--dials=7")
        people = trackctl("--endpoint", trackd_daemon.endpoint, "doctor", "--dial", address)
    assert code == 0
    assert {each["level"] for each in found.values()} == {"ok"}
    assert found["name"]["said"] == "127.0.0.1 is 127.0.0.1"
    assert found["tcp"]["said"].startswith("7 connections, each took ")
    assert "speak first" in found["tls"]["said"]
    said = found["proxies"]["said"]
    assert said.startswith("7 dials reached 3 different proxies: p1 (3), ")
    assert said.endswith("; the daemon knows 0")
    assert "20 dials reached 3 different proxies" in " ".join(people.stdout.split())
    assert "\x1b" not in people.stdout + said


def test_proxies_that_speak_tls_are_told_apart_by_their_certificates(
    trackd_daemon: Daemon, tmp_path: Path
) -> None:
    openssl = needed("openssl", "openssl")
    contexts = []
    for name in ("p1", "p2"):
        key, certificate = tmp_path / f"{name}.key", tmp_path / f"{name}.pem"
        command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
        command += ["-nodes", "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(certificate)]
        subprocess.run(command, check=True, capture_output=True)
        contexts.append(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        contexts[-1].load_cert_chain(certificate, key)

    def shake_hands(connection: socket.socket, number: int) -> None:
        with contexts[number % 2].wrap_socket(connection, server_side=True) as secured:
            secured.recv(1)

    with balancer(shake_hands) as address:
        code, found = dialled(trackd_daemon, "--dial", address, "--dials=5")
    assert code == 0
    assert "speak TLS" in found["tls"]["said"]
    assert found["proxies"]["said"].startswith("5 dials reached 2 different proxies: sha256:")


def test_a_balancer_that_always_picks_the_same_proxy_is_a_problem(trackd_daemon: Daemon) -> None:
    with (
        Tracker(trackd_daemon.endpoint) as agent,
        balancer(lambda connection, _: connection.sendall(b"p1\n")) as address,
    ):
        agent.track_expected(Proxy("p1"), Proxy("p2"))
        code, found = dialled(trackd_daemon, "--dial", address, "--dials=8")
        assert (code, found["proxies"]["level"]) == (1, "problem")
        assert found["proxies"]["said"] == "8 dials reached 1 proxy: p1 (8); the daemon knows 2"
        assert "sticky" in found["proxies"]["do"]
        assert dialled(trackd_daemon, "--dial", address, "--dials=7")[1]["proxies"]["do"] == ""


def test_a_server_that_says_nothing_we_know_is_a_note(trackd_daemon: Daemon) -> None:
    with balancer(lambda connection, _: connection.recv(1)) as address:
        _, found = dialled(trackd_daemon, "--dial", address, "--dials=2")
    assert found["tls"]["level"] == found["proxies"]["level"] == "note"
    assert found["proxies"]["said"] == "nothing tells apart whom 2 dials reached"
    assert found["tcp"]["level"] == "ok"


def test_a_balancer_that_is_not_there_is_a_problem_with_something_to_do(
    trackd_daemon: Daemon,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    code, found = dialled(trackd_daemon, "--dial", f"127.0.0.1:{port}")
    assert (code, found["tcp"]["level"]) == (1, "problem")
    assert found["tcp"]["said"] == "no connection; 3 failed: Connection refused"
    assert "nobody listens there" in found["tcp"]["do"]
    code, found = dialled(trackd_daemon, "--dial", "no..name:443")
    assert (code, list(found)) == (1, ["name"])
    assert "does not resolve" in found["name"]["said"]


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("balancer", "not HOST:PORT"),
        (":443", "not HOST:PORT"),
        ("balancer:", "a port is a number"),
        ("balancer:65536", "a port is a number"),
        ("::1:443", "[HOST]:PORT"),
    ],
)
def test_what_is_no_address_is_refused(address: str, said: str) -> None:
    done = trackctl("doctor", "--dial", address)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
