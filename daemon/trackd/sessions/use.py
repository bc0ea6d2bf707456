"""What each user has at the daemon now: the numbers that quotas bound. Pure.

A user is a uid as the kernel of its host gives it. All sessions of a user share one `Use`. It
follows each change of them, so nothing walks sessions to find out, and it is never stored: a
restart counts again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from trackd.rules.user import User

#: Bytes that a remembered reply counts beside those of its frame: what keeping it takes.
REPLY_OVERHEAD: Final = 256


@dataclass(slots=True, eq=False)
class Use:
    """What the sessions of one user use, or those of all users.

    Attributes:
        user: whose; the uid is -1 for all, and for a session that is not open.
        total: the use of all users, which counts the same replies; None for that itself.
        sessions: how many are open.
        leases: how many they hold.
        waiters: how many of their requests wait for a lease.
        reply_bytes: bytes of the replies that are remembered for them, overhead included.
        covering: the sessions that are done with some of those; they can be dropped at any time.
    """

    user: User = ("", -1)
    total: Use | None = None
    sessions: int = 0
    leases: int = 0
    waiters: int = 0
    reply_bytes: int = 0
    covering: dict[Any, None] = field(default_factory=dict)

    def count_reply(self, frame: bytes) -> None:
        """Count a reply that is remembered from now on."""
        self.add_reply_bytes(len(frame) + REPLY_OVERHEAD)

    def drop_reply(self, frame: bytes) -> None:
        """Stop counting a reply."""
        self.add_reply_bytes(-len(frame) - REPLY_OVERHEAD)

    def add_reply_bytes(self, change: int) -> None:
        """Add bytes of replies; a negative number takes them away."""
        self.reply_bytes += change
        if self.total is not None:
            self.total.reply_bytes += change
