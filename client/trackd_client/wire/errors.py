"""What is wrong with a message: a code and a sentence."""

from __future__ import annotations

from typing import Any


class ProtocolError(Exception):
    """A message, or a field of it, is not what the protocol says.

    Attributes:
        code: the error code for the reply.
        seq: the number of the request that it answers, or 0 when that could not be read.
        fields: more fields of the reply.
    """

    def __init__(self, code: str, message: str, seq: int = 0, **fields: Any) -> None:
        super().__init__(message)
        self.code = code
        self.seq = seq
        self.fields = fields
