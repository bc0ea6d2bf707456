"""Who may talk to the leader: the hosts whose public keys are in a directory.

ZeroMQ asks a handler on `inproc://zeromq.zap.01` about each CURVE handshake (ZAP, RFC 27). Without
one it would let in everybody who knows the key of the server. So `secure` makes a ROUTER let in
nobody then, and `Authentication` is the handler: a thread, which admits known keys.

A handshake happens once, and connections live long. So the owner of the ROUTER asks `host_of` about
each frame. It is one look into a dictionary, by the key that the connection has proved.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self

import zmq
from zmq.utils import z85

from trackd.fleet.keys import PUBLIC_SUFFIX, KeyFileError, KeyPair, check_name, read_public
from trackd.host.own_files import find_directory_problem
from trackd_client.core.limited_log import LimitedLog

log = logging.getLogger("trackd.fleet")

_ENDPOINT: Final = "inproc://zeromq.zap.01"
_VERSION: Final = b"1.0"
_DOMAIN: Final = b"trackd"
#: Frames of a request about CURVE: after the routing id and an empty one, version, request id,
#: domain, address, identity, mechanism and public key.
_FRAMES: Final = 9
_KEY_BYTES: Final = 32
#: Seconds for which the thread waits after an error.
_PAUSE: Final = 1.0


class HostKeys:
    """Which public key is which host. Any thread may call any method.

    A host has one key or two. A key that stands for two hosts stands for none.

    Attributes:
        problems: what was wrong at the last reading, a sentence each; what it names is left out.
    """

    def __init__(self, directory: Path) -> None:
        """Read the public keys.

        Args:
            directory: has a file `HOST.pub` for each host; other files in it mean nothing.

        Raises:
            KeyFileError: the directory cannot be read, or others could write to it.
        """
        self.problems: tuple[str, ...] = ()
        self._directory = directory
        self._hosts: MappingProxyType[str, str] = MappingProxyType({})
        self.reload()

    def reload(self) -> None:
        """Read the public keys again. What is not there any more is worth nothing from now on.

        Raises:
            KeyFileError: the directory cannot be read, or others could write to it. Nothing has
                changed then.
        """
        try:
            problem = find_directory_problem(self._directory)
            names = sorted(
                entry.name
                for entry in self._directory.iterdir()
                if entry.suffix == PUBLIC_SUFFIX and not entry.name.startswith(".")
            )
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise KeyFileError(f"cannot read the keys in {self._directory}: {reason}") from error
        if problem:
            raise KeyFileError(f"the directory of keys {self._directory} {problem}")
        hosts: dict[str, str] = {}
        problems: list[str] = []
        doubtful: set[str] = set()
        for name in names:
            try:
                host = check_name(name.removesuffix(PUBLIC_SUFFIX))
                keys = read_public(self._directory / name)
            except KeyFileError as error:
                problems.append(str(error))
                continue
            for key in keys:
                other = hosts.setdefault(key, host)
                if other != host:
                    doubtful.add(key)
                    problems.append(f"{other} and {host} have the same key, so it is worth nothing")
        for key in doubtful:
            del hosts[key]
        self._hosts, self.problems = MappingProxyType(hosts), tuple(problems)

    def host_of(self, key: str) -> str | None:
        """Return the host whose public key it is now, or None."""
        return self._hosts.get(key)

    @property
    def hosts(self) -> frozenset[str]:
        """The hosts that have a key."""
        return frozenset(self._hosts.values())


def secure(router: zmq.Socket[Any], keys: KeyPair) -> None:
    """Let a ROUTER speak CURVE alone, and let in nobody whom the handler does not admit.

    Call it before the socket is bound.

    Args:
        router: the socket.
        keys: of this candidate.
    """
    router.curve_secretkey = keys.secret.encode()
    router.curve_publickey = keys.public.encode()
    router.curve_server = True
    # Without these two, libzmq lets everybody in while there is no handler.
    router.zap_domain = _DOMAIN
    router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


def host_of(frame: zmq.Frame, hosts: HostKeys) -> str | None:
    """Return the host that a frame has come from; None: it may not talk to us (any more).

    Args:
        frame: received by a ROUTER that `secure` has been called with.
        hosts: who may talk to us.
    """
    try:
        key = frame.get("User-Id")
    except zmq.ZMQError:  # it has come by inproc
        return None
    return hosts.host_of(key) if type(key) is str else None


class Authentication:
    """The thread that admits the hosts whose keys are known.

    An error in it is logged, and the thread goes on after a pause. While it has ended, nobody is
    let in.

    Attributes:
        refused: handshakes that were refused.
    """

    def __init__(self, context: zmq.Context[Any], hosts: HostKeys) -> None:
        """Begin to answer.

        Args:
            context: of the ROUTER; it can have one handler.
            hosts: who may talk to us.

        Raises:
            zmq.ZMQError: the context has a handler already.
        """
        self.refused = 0
        self._hosts = hosts
        self._limited = LimitedLog(log)
        self._socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        self._socket.linger = 0
        try:
            self._socket.bind(_ENDPOINT)
        except zmq.ZMQError:
            self._socket.close()
            raise
        self._stop = threading.Event()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="trackd-keys", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread. Connections that are there stay."""
        if not self._stop.is_set():
            self._stop.set()
            os.eventfd_write(self._wake, 1)
            self._thread.join()
            os.close(self._wake)

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        while not self._stop.is_set():
            try:
                poller.poll()
                while not self._stop.is_set():
                    self._answer(self._socket.recv_multipart(zmq.DONTWAIT))
            except zmq.Again:
                continue
            except zmq.ContextTerminated:
                break
            except Exception as error:  # noqa: BLE001 - without this thread nobody gets in
                self._limited.warning("failed", "cannot answer who may connect", error=error)
                self._stop.wait(_PAUSE)
        with contextlib.suppress(zmq.ZMQError):
            self._socket.unbind(_ENDPOINT)  # closing leaves it in use for a while
        self._socket.close()

    def _answer(self, frames: list[bytes]) -> None:
        """Admit whom a request is about, or refuse."""
        if len(frames) < _FRAMES - 1:
            return  # not libzmq's: there is nobody to answer
        routing_id, empty, version, request, domain, address, _, mechanism = frames[: _FRAMES - 1]
        key, proved = "", frames[_FRAMES - 1 :]
        is_ours = (version, domain, mechanism) == (_VERSION, _DOMAIN, b"CURVE")
        if is_ours and [len(each) for each in proved] == [_KEY_BYTES]:
            key = z85.encode(proved[0]).decode("ascii")
        if host := self._hosts.host_of(key):
            log.debug("%s has connected from %s", host, address.decode("ascii", "replace"))
            answer = (b"200", b"OK", key.encode())
        else:
            self.refused += 1
            self._limited.warning(
                "refused",
                "refused a connection from %s: no host has its key %s",
                address.decode("ascii", "replace"),
                key,
            )
            answer = (b"400", b"no host has this key", b"")
        self._socket.send_multipart([routing_id, empty, _VERSION, request, *answer, b""])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
