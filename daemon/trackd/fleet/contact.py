"""Until when a host that is cut off may keep its tunnels, with `on_partition = "close"`.

The leader gives a host's leases to others when it has heard nothing of the host for `host_ttl`. It
counts from the receipt of a sign of life; the relay counts from when it *sent* the last one that
the leader has answered, which was before, and ends the sessions after EARLY of that time. So the
agents have the rest of it to close their tunnels, and no proxy ever has two. Clocks need not agree:
both count seconds of their own.

A relay that starts again goes on counting: what it counts from is in a file that the next boot does
not find.
"""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path
from typing import Final

#: The share of `host_ttl` after which sessions end. Agents close their tunnels in the rest.
EARLY: Final = 0.8
#: The file, in the state directory.
NAME: Final = "contact"
_BYTES: Final = 128  # of its only line: each is written over the last one, at once


class Contact:
    """What the leader has heard of this host, and whether the sessions here have ended. No clock.

    Times are seconds of CLOCK_BOOTTIME.

    Attributes:
        ended: when the sessions here were ended; None: they were not, or the leader knows it.
    """

    def __init__(self, file: Path, boot: str) -> None:
        """Go on from what the last relay of this boot has noted.

        Args:
            file: where it is noted.
            boot: the boot id of this host.

        Raises:
            OSError: the file cannot be used.
        """
        self.ended: float | None = None
        self._heard: float | None = None
        self._host_ttl = math.inf
        self._boot = boot
        self._fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with contextlib.suppress(ValueError):  # there is none, or it is of another version
            noted, heard, host_ttl = os.pread(self._fd, _BYTES, 0).decode().split()
            if noted == boot:
                self._heard, self._host_ttl = float(heard), float(host_ttl)

    @property
    def ends(self) -> float | None:
        """When the sessions here end; None: they have, or no leader was ever reached."""
        if self.ended is not None or self._heard is None:
            return None
        return self._heard + EARLY * self._host_ttl

    def end(self, now: float) -> None:
        """Note that the sessions here end now."""
        self.ended = now

    def take(self, sent: float, host_ttl: float | None = None) -> bool:
        """Take in that a leader has heard what was sent at a moment.

        Args:
            sent: the moment.
            host_ttl: of this leader; None: as before.

        Returns:
            Whether it has learned so that the sessions here have ended.

        Raises:
            OSError: that cannot be noted for the next relay; all else is done.
        """
        if self.ended is not None and sent < self.ended:
            return False  # it was sent before the sessions ended, and says nothing of that
        has_learned, self.ended = self.ended is not None, None
        self._heard = max(sent, self._heard or sent)
        self._host_ttl = host_ttl or self._host_ttl
        line = f"{self._boot} {self._heard!r} {self._host_ttl!r}"
        os.pwrite(self._fd, line.ljust(_BYTES).encode(), 0)
        return has_learned

    def close(self) -> None:
        """Close the file, which stays."""
        os.close(self._fd)
