"""Text of peers, made safe for a terminal."""

from __future__ import annotations

import unicodedata
from typing import Final

_HARMFUL: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def escape(value: object) -> str:
    r"""Return what a peer called something as text that a terminal takes for nothing else.

    Control characters, among them those that move the cursor or colour what follows, and those
    that turn the direction of writing, are written as `\x1b` or `\u202e`.
    """
    text = str(value)
    if text.isprintable():  # nearly always
        return text
    return "".join(
        c if unicodedata.category(c) not in _HARMFUL else c.encode("unicode_escape").decode()
        for c in text
    )
