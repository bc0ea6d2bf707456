"""A client that plays conversations: those of docs/protocol-examples.json, or recorded ones."""

from __future__ import annotations

from collections import defaultdict, deque
from types import TracebackType
from typing import Any, Self

import zmq

from helpers.protocol_document import Message, pack
from helpers.support import PATIENCE
from trackd_client.wire.clock import boottime
from trackd_client.wire.protocol import REPLY, REQUEST, VERSION, decode

#: The daemon's clock in the document.
CLOCK = 5000.25
#: Fields that tell of a moment, a place or a release, wherever they stand: compared by type.
MOMENTS = {
    *("claim_by", "clock", "expires", "full_at", "granted", "missing_seconds", "opened"),
    *("since", "until", "uptime", "wall"),
}
PLACES = {"boot_id", "by_pid", "by_uid", "command", "gid", "pid", "tracker_id", "uid"}
VARIES = (
    MOMENTS
    | PLACES
    | {"message", "requests", "reply_bytes", "retry_after", "server", "store_bytes"}
)


class Peer:
    """A client that sends what the document shows, and takes what comes."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._connected()
        self._replies: defaultdict[int, deque[bytes]] = defaultdict(deque)
        self._parked: dict[int, bytes] = {}

    def reconnect(self) -> None:
        """Go on over a new connection."""
        self._socket.close()
        self._socket = self._connected()

    def send_parked_again(self) -> None:
        """Send again what waits, as a client does after a handshake."""
        for frame in self._parked.values():
            self._socket.send(frame)

    def send(self, message: Message) -> None:
        """Send a request, with as much time as its deadline leaves it in the document."""
        version, kind, body = message.value
        frame = message.frame
        if "deadline" in body:
            deadline = boottime() + body["deadline"] - CLOCK
            frame = pack([version, kind, {**body, "deadline": deadline}])
        self._socket.send(frame)
        if body["op"] in {"acquire", "watch_session"}:
            self._parked[body["seq"]] = frame
        self._parked.pop(body.get("target"), None)

    def reply(self, seq: int) -> bytes:
        """Return the next reply with a number, whatever others come before it."""
        while not self._replies[seq]:
            assert self._socket.poll(int(PATIENCE * 1000)), f"no reply with the number {seq}"
            frame = self._socket.recv()
            self._replies[body_of(frame)["seq"]].append(frame)
        self._parked.pop(seq, None)
        return self._replies[seq].popleft()

    def nothing_is_left(self) -> bool:
        """Tell whether every reply that came was asked for."""
        self._socket.send(pack([VERSION, REQUEST, {"op": "ping", "seq": 1_000_001}]))
        self.reply(1_000_001)  # whatever was sent before it is here now
        return not any(self._replies.values())

    def _connected(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        socket.linger = 0
        socket.connect(self._endpoint)
        return socket

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.close()
        self._context.term()


def body_of(frame: bytes) -> dict[str, Any]:
    decoded = decode(frame)
    assert decoded is not None
    assert decoded[0] == REPLY
    return decoded[1]
