"""What `trackctl doctor --dial` finds on the way to the proxies: name, TCP, TLS, who answers.

It dials one after the other, and nothing is claimed: a proxy sees a connection that closes again.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import socket
import ssl
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from statistics import median
from typing import Any, Final, NamedTuple

import click

from trackd_client.cli.host_checks import NOTE, OK, PROBLEM, Finding
from trackd_client.cli.output.render import format_count
from trackd_client.cli.text import escape

#: Seconds that one dial may take, and for which a server that talks first is waited for.
_DIAL_SECONDS: Final = 5.0
_GREETING_SECONDS: Final = 1.0
#: Dials in a row that fail before the others are left out.
_MOST_FAILURES: Final = 3
#: Bytes of a greeting that are looked at, and characters of it and of a fingerprint that are shown.
_GREETING_BYTES: Final = 1024
_SHOWN: Final = 40
_FINGERPRINT: Final = 16
#: Different answers that are listed.
_MOST_LISTED: Final = 8
#: Dials from which it is worth saying that they all reached one of several proxies.
_MANY: Final = 8


class Address(NamedTuple):
    """Where to dial."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class AddressType(click.ParamType[Address]):
    """`HOST:PORT`, or `[HOST]:PORT` for IPv6."""

    name = "address"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Address:
        """Return the parts of the text, once they are checked."""
        host, colon, port = str(value).rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            self.fail(f"{value!r}: write an IPv6 address as [HOST]:PORT", param, ctx)
        if not colon or not host:
            self.fail(f"{value!r} is not HOST:PORT", param, ctx)
        if not (port.isascii() and port.isdecimal() and len(port) < 6 and 0 < int(port) < 65536):
            self.fail(f"{value!r}: a port is a number from 1 to 65535", param, ctx)
        return Address(host, int(port))


class _Answer(NamedTuple):
    """What one dial met.

    Attributes:
        protocol: `tls`, `ssh`, `greeting` or `silence`.
        who: what tells the proxy apart from others, or None when nothing does.
        seconds: how long the TCP connection took; None: ssh-keyscan made it.
    """

    protocol: str
    who: str | None
    seconds: float | None


def check_dial(address: Address, dials: int, tracked: int | None) -> Iterator[Finding]:
    """Dial some times, and yield what was found.

    Args:
        address: of the load balancer, or of one proxy.
        dials: how many.
        tracked: how many proxies the daemon knows, or None.
    """
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        said = f"{escape(address.host)} does not resolve: {error}"
        yield Finding("dial name", PROBLEM, said, "correct the name, or ask who runs the DNS")
        return
    addresses = sorted({str(each[4][0]) for each in found})
    yield Finding("dial name", OK, f"{escape(address.host)} is {', '.join(addresses)}")
    answers, errors = _dial_often(address, dials)
    yield _describe_connections(answers, errors)
    if answers:
        yield _describe_protocol(answers)
        yield _describe_proxies(answers, tracked)


def _dial_often(address: Address, dials: int) -> tuple[list[_Answer], list[OSError]]:
    """Dial; return what answered, and why dials failed."""
    answers, errors = list[_Answer](), list[OSError]()
    while len(answers) + len(errors) < dials:
        try:
            answers.append(_dial(address, answers[0].protocol if answers else None))
        except OSError as error:
            errors.append(error)
            if not answers and len(errors) == _MOST_FAILURES:
                break
    return answers, errors


def _dial(address: Address, protocol: str | None) -> _Answer:
    """Connect once, and find out who answers.

    Args:
        address: where.
        protocol: what an earlier dial has met, or None for the first one, which must find out.

    Raises:
        OSError: there was no connection.
    """
    if protocol == "ssh" and shutil.which("ssh-keyscan") is not None:
        return _Answer("ssh", _scan_host_key(address), None)
    began = time.monotonic()
    with socket.create_connection(address, _DIAL_SECONDS) as connection:
        seconds = time.monotonic() - began
        greeting = b"" if protocol in {"tls", "silence"} else _read_greeting(connection)
        if greeting.startswith(b"SSH-"):
            return _Answer("ssh", _scan_host_key(address), seconds)
        if greeting:
            return _Answer("greeting", _shorten(greeting), seconds)
        if protocol not in {None, "tls"}:
            return _Answer("silence", None, seconds)
        try:
            return _Answer("tls", _read_certificate(connection, address.host), seconds)
        except (OSError, ValueError):  # it speaks something else, or wants a certificate of ours
            return _Answer(protocol or "silence", None, seconds)


def _read_greeting(connection: socket.socket) -> bytes:
    """Return what a server says first, or nothing when it waits for the client."""
    connection.settimeout(_GREETING_SECONDS)
    try:
        return connection.recv(_GREETING_BYTES)
    except OSError:
        return b""
    finally:
        connection.settimeout(_DIAL_SECONDS)


def _read_certificate(connection: socket.socket, host: str) -> str:
    """Return the fingerprint of a server's certificate. Whoever signed it: proxies have CAs."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with context.wrap_socket(connection, server_hostname=host) as secured:
        certificate = secured.getpeercert(binary_form=True)
    return f"sha256:{hashlib.sha256(certificate or b'').hexdigest()[:_FINGERPRINT]}"


def _scan_host_key(address: Address) -> str | None:
    """Return the fingerprint of the host key that a dial of ssh-keyscan meets; None without it.

    Raises:
        OSError: it met none.
    """
    program = shutil.which("ssh-keyscan")
    if program is None:
        return None
    command = [program, "-T", f"{_DIAL_SECONDS:.0f}", "-t", "ed25519", "-p", str(address.port)]
    with contextlib.suppress(subprocess.TimeoutExpired):
        done = subprocess.run(  # noqa: S603 - a known program, and a name after --
            [*command, "--", address.host],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=2 * _DIAL_SECONDS,
        )
        keys = [line.split()[-1] for line in done.stdout.splitlines() if not line.startswith("#")]
        if keys:
            return f"sha256:{hashlib.sha256(keys[0].encode()).hexdigest()[:_FINGERPRINT]}"
    raise ConnectionError("ssh-keyscan met no host key")


def _shorten(greeting: bytes) -> str:
    line = greeting.decode("utf-8", "replace").splitlines()[0]
    return escape(line[:_SHOWN] + ("..." if len(line) > _SHOWN else ""))


# -- words ------------------------------------------------------------------------------------


def _describe_connections(answers: list[_Answer], errors: list[OSError]) -> Finding:
    failed = Counter(str(error.strerror or error) for error in errors)
    why = ", ".join(f"{number} failed: {reason}" for reason, number in failed.items())
    if not answers:
        return Finding("dial tcp", PROBLEM, f"no connection; {why}", _advise(errors[0]))
    took = median(each.seconds for each in answers if each.seconds is not None) * 1000
    said = f"{format_count(len(answers), 'connection')}, each took {took:.1f} ms"
    if errors:
        return Finding("dial tcp", PROBLEM, f"{said}; {why}", _advise(errors[0]))
    return Finding("dial tcp", OK, said)


def _advise(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "nobody listens there: is the balancer up, and is the port right?"
    if isinstance(error, TimeoutError):
        return "nobody answers: look for a firewall, and whether the balancer has a proxy left"
    return "look at the routes of this host, and at the balancer's log"


def _describe_protocol(answers: list[_Answer]) -> Finding:
    match answers[0].protocol:
        case "tls":
            return Finding("dial tls", OK, "the proxies speak TLS; certificates were not verified")
        case "ssh":
            return Finding("dial tls", OK, "no TLS: the proxies speak SSH")
        case "greeting":
            return Finding("dial tls", OK, "no TLS: the proxies speak first")
    return Finding(
        "dial tls",
        NOTE,
        "no TLS handshake: the proxies speak something else, or want a client's certificate",
    )


def _describe_proxies(answers: list[_Answer], tracked: int | None) -> Finding:
    """Say how many different proxies the dials have reached."""
    met = Counter(answer.who for answer in answers if answer.who is not None)
    dials = format_count(len(answers), "dial")
    if not met:
        return Finding("dial proxies", NOTE, f"nothing tells apart whom {dials} reached")
    listed = ", ".join(f"{who} ({number})" for who, number in met.most_common(_MOST_LISTED))
    more = f", and {len(met) - _MOST_LISTED} more" if len(met) > _MOST_LISTED else ""
    different = "1 proxy" if len(met) == 1 else f"{len(met)} different proxies"
    said = f"{dials} reached {different}: {listed}{more}"
    if tracked is not None:
        said += f"; the daemon knows {tracked}"
    if len(met) == 1 and len(answers) >= _MANY and (tracked or 0) > 1:
        return Finding(
            "dial proxies",
            PROBLEM,
            said,
            "make the balancer spread connections of one source: it is sticky, or one proxy is up",
        )
    return Finding("dial proxies", OK, said)
