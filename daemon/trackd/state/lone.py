"""Which missing proxies only one session mentions. In memory; no I/O.

Such a proxy is often one that is long gone, or never was: one agent has old or wrong gossip, and
all agents dial for it in vain. A proxy is looked at from when it appeared or its last claim ended;
after a restart of the daemon, from the next time on that this happens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from trackd.rules.mentions import Mentions

#: Missing proxies that are looked at. Each message of gossip looks at each of them.
MOST: Final = 256


@dataclass(slots=True)
class _Seen:
    """Who has mentioned a proxy since it is missing.

    Attributes:
        since: when that began, in seconds of CLOCK_BOOTTIME.
        by: the session that has; None: nobody has yet, or several have.
        several: whether more than one session has.
        passed_over: whether another session has gossiped without mentioning it.
    """

    since: float
    by: int | None = None
    several: bool = False
    passed_over: bool = False


class LoneMentions:
    """The missing proxies that are looked at, by name."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def begin(self, name: str, now: float) -> None:
        """Look at a proxy that is missing now, while there is room."""
        if len(self._seen) < MOST:
            self._seen[name] = _Seen(now)

    def end(self, name: str) -> None:
        """Look no longer at a proxy that is claimed."""
        self._seen.pop(name, None)

    def note(self, mentions: Mentions, by: int) -> None:
        """Take in that a session has gossiped.

        Args:
            mentions: of all proxies, with this message.
            by: the session.
        """
        gone = []
        find = mentions.get
        for name, seen in self._seen.items():
            mention = find(name)
            if mention is None:
                gone.append(name)
            elif mention.by != by:
                seen.passed_over = True
            elif seen.by is None:
                seen.by = by
            elif seen.by != by:
                seen.several = True
        for name in gone:
            del self._seen[name]

    def has(self, name: str, ttl: float, now: float) -> bool:
        """Return whether only one session mentions a proxy, although others gossip.

        Args:
            name: of the proxy.
            ttl: with which it was mentioned; whoever knows it mentions it again within that.
            now: seconds of CLOCK_BOOTTIME.
        """
        seen = self._seen.get(name)
        if seen is None or seen.by is None or seen.several:
            return False
        return seen.passed_over and now - seen.since >= ttl
