"""Gossip that repeats an earlier message byte for byte: what was seen in that one still holds.

Agents repeat what they have heard. To unpack the rows and to look at each of them is nearly all
that a message costs. So the last messages that said nothing new are kept, with their rows as they
were received. Where these bytes come again, in whatever request, their rows are the same. What was
seen in them still holds as long as nothing has changed that it depends on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from secrets import token_bytes
from typing import Any, Final

import msgpack

from trackd.rules.gossip import Run
from trackd.rules.mentions import GossipRow
from trackd_client.wire.errors import ProtocolError
from trackd_client.wire.protocol import decode

#: Bytes of a message up to which looking for it costs as much as reading it.
SMALL: Final = 1024
#: Messages that are remembered.
MOST: Final = 1024
#: Bytes that those may take that are kept, about.
MOST_BYTES: Final = 16 * 1024 * 1024
#: Bytes that a row takes beside those that were received: objects of Python.
_ROW_BYTES: Final = 300
#: Bytes by which a message is found: those that its rows begin with.
_KEY_BYTES: Final = 256
#: How the field begins that has the rows.
_FIELD: Final = msgpack.packb("proxies")


@dataclass(slots=True)
class Seen:
    """What was seen in gossip that only repeats what is tracked.

    Attributes:
        edition: of the tracker, when it was looked at; while that is the same, all of this holds.
        max_ttl: likewise.
        rows: the message, with no TTL above that.
        runs: the same rows without their places.
        longer: the rows with a TTL above it, as they were received.
        said: the names of which it says whether they are terminating; None: nobody has asked.
    """

    edition: object
    max_ttl: float
    rows: Sequence[GossipRow]
    runs: Sequence[Run]
    longer: Sequence[GossipRow]
    said: Mapping[str, bool] | None = None


class Heard:
    """The rows of one message of gossip.

    Attributes:
        rows: as they were received; nobody edits them.
        packed: their bytes; empty unless they are kept.
        seen: what was seen in them last; None before that.
    """

    __slots__ = ("_at", "_message", "_repeats", "packed", "rows", "seen")

    def __init__(self, repeats: Repeats, message: bytes, at: int, rows: list[Any]) -> None:
        self._repeats = repeats
        self._message = message
        self._at = at  # where the rows begin there, as it seems
        self.rows = rows
        self.packed = b""
        self.seen: Seen | None = None

    @property
    def size(self) -> int:
        """Bytes that it takes, about."""
        return len(self.packed) + _ROW_BYTES * len(self.rows)

    def keep(self, seen: Seen) -> None:
        """Keep these rows, and what was seen in them, for when they are heard again."""
        self.seen = seen
        if self._message:
            self.packed = self._repeats.find_packed(self._message, self._at)
            self._message = b""
            if self.packed:
                self._repeats.add(self)


class Repeats:
    """The last messages of gossip. One is kept when it is heard for the second time."""

    def __init__(self) -> None:
        # By how their rows begin; the one that was heard last is last. None: it was heard once.
        self._known: dict[bytes, Heard | None] = {}
        self._room = MOST_BYTES
        # Stands for rows in a message; a value that no sender can know.
        self._word = token_bytes(16)
        self._stand_in: bytes = msgpack.packb(self._word)

    def decode(self, message: bytes) -> tuple[tuple[int, dict[str, Any]] | None, Heard | None]:
        """Return what `trackd_client.wire.protocol.decode` returns, and the rows of gossip in it.

        Raises:
            ProtocolError: as `decode` does.
        """
        at = message.find(_FIELD) + len(_FIELD)
        if at < len(_FIELD):
            return decode(message), None
        key = message[at : at + _KEY_BYTES]
        again = key in self._known
        heard = self._known.pop(key, None)
        self._known[key] = heard
        if heard is not None and message.startswith(heard.packed, at):
            decoded = self._decode_beside(message, at, at + len(heard.packed))
            if decoded is not None:
                decoded[1]["proxies"] = heard.rows
                return decoded, heard
        if len(self._known) > MOST:
            self._forget_first()
        decoded = decode(message)
        rows = None if decoded is None else decoded[1].get("proxies")
        if not again or type(rows) is not list:
            return decoded, None
        return decoded, Heard(self, message, at, rows)

    def find_packed(self, message: bytes, at: int) -> bytes:
        """Return the bytes of the rows in a message that was decoded; empty: they are elsewhere."""
        unpacker = msgpack.Unpacker(max_buffer_size=len(message))
        unpacker.feed(memoryview(message)[at:])
        try:
            unpacker.skip()
        except (ValueError, msgpack.UnpackException):
            return b""
        end = at + unpacker.tell()
        return message[at:end] if self._decode_beside(message, at, end) is not None else b""

    def add(self, heard: Heard) -> None:
        """Keep a message, in the place of one that begins as it does."""
        key = heard.packed[:_KEY_BYTES]
        self._forget(key)
        self._known[key] = heard
        self._room -= heard.size
        while self._room < 0:
            self._forget_first()

    def _forget_first(self) -> None:
        self._forget(next(iter(self._known)))

    def _forget(self, key: bytes) -> None:
        heard = self._known.pop(key, None)
        if heard is not None:
            self._room += heard.size

    def _decode_beside(
        self, message: bytes, begin: int, end: int
    ) -> tuple[int, dict[str, Any]] | None:
        """Return a message with something else in the place of its rows.

        Args:
            message: as it was received.
            begin: where the bytes of one value begin.
            end: where they end.

        Returns:
            None: that value is not the rows, or the message is malformed. Otherwise it is: the word
            in its place, which the sender does not know, was read as that value.
        """
        try:
            decoded = decode(message[:begin] + self._stand_in + message[end:])
        except ProtocolError:
            return None
        if decoded is None or decoded[1].get("proxies") != self._word:
            return None
        return decoded
