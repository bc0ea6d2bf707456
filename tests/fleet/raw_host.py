"""A host whose relay says whatever a test wants, rightly or wrongly."""

from __future__ import annotations

import contextlib
import itertools
import time
from types import TracebackType
from typing import Any, Self

import msgpack
import zmq

from fleet.fleet import LONG, Fleet, Part
from helpers.support import pack, wait_until
from trackd.fleet.hop import (
    Answer,
    Asker,
    Exited,
    Here,
    Hop,
    Leads,
    Said,
    decode_answer,
    encode,
    encode_word,
)
from trackd.fleet.keys import KeyPair, read_public, read_secret

BOOT = "0" * 32


class RawHost:
    """A DEALER to one candidate, with the key of a host."""

    def __init__(
        self,
        fleet: Fleet,
        name: str,
        candidate: Part,
        own: KeyPair | None = None,
        *,
        receives: int = 0,
    ) -> None:
        """Connect.

        Args:
            fleet: of the candidate.
            name: of the host, whose key is used.
            candidate: whom it talks to.
            own: another key.
            receives: messages that it takes before it listens; 0: any number.
        """
        own = own or read_secret(fleet.keys / f"{name}.key")
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.sndhwm, self.socket.rcvhwm = 0, receives
        (server,) = read_public(fleet.leaders / f"{candidate.name}.pub")
        self.socket.curve_serverkey = server.encode()
        self.socket.curve_publickey = own.public.encode()
        self.socket.curve_secretkey = own.secret.encode()
        self.socket.connect(fleet.addresses[candidate.name])
        self.heard: list[Said] = []
        self._numbers = itertools.count(1)

    def say(self, *frames: bytes) -> None:
        """Send a message of these frames; without a connection it is dropped."""
        with contextlib.suppress(zmq.Again):
            self.socket.send_multipart(frames, zmq.DONTWAIT)

    def word(self, word: Here | Exited) -> None:
        """Send a word of a relay."""
        self.say(encode_word(word))

    def send(self, body: dict[str, Any], *, uid: int = 0, pid: int = 42, start: int = 7) -> int:
        """Send a request of an agent; return its number."""
        number = next(self._numbers)
        asker = Asker(uid, uid, pid, start, "raw", admin=True, remaining=None)
        self.say(encode(Hop(number, asker, pack(body))))
        return number

    def listen(self, seconds: float = 0.0) -> None:
        """Take in what the leader has said, for some time."""
        until = time.monotonic() + seconds
        while self.socket.poll(max(0, int(1000 * (until - time.monotonic())))):
            said = decode_answer(self.socket.recv())
            assert said is not None
            self.heard.append(said)

    def hears(self, kind: type) -> bool:
        """Return whether the leader has said something of a kind by now."""
        self.listen()
        return any(isinstance(each, kind) for each in self.heard)

    def agree(self) -> Self:
        """Say that the host is here until the leader has said who it is."""

        def look() -> bool:
            self.word(Here(BOOT, 0, events=True))
            self.listen(0.5)
            return self.hears(Leads)

        wait_until(look, LONG)
        return self

    def ask(self, body: dict[str, Any], **asker: int) -> dict[str, Any]:
        """Send a request of an agent, and return the body of the reply."""
        number = self.send(body, **asker)

        def find() -> list[Answer]:
            self.listen(0.05)
            return [e for e in self.heard if isinstance(e, Answer) and e.number == number]

        wait_until(find, LONG)
        _, _, reply = msgpack.unpackb(find()[0].frame)
        assert isinstance(reply, dict)
        return reply

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
