"""The fleet clock: seconds that go on from leader to leader. Pure.

The times in a fleet's journal are no host's clock: each host has another CLOCK_BOOTTIME, and wall
clocks are set. Each batch carries the fleet time at which it was made. While a leader lasts, fleet
time goes on with its CLOCK_BOOTTIME. The next leader goes on from the last batch:

- *hot*: while it stood by, it saw a batch arrive. Fleet time is that of the batch, and the time
  since it arrived, however long nothing has happened since.
- *cold*: it found the batch when it started. Then its wall clock says how old the batch is, from
  nothing to COLD_MOST seconds.

So fleet time never goes back. Hot it never goes faster than time itself: it loses what the batch
took to arrive. Cold it may be ahead by what the wall clocks differ, by at most COLD_MOST seconds
for each takeover; after a longer outage it is behind. Behind is harmless: what expires, expires
late.
"""

from __future__ import annotations

from typing import Final, NamedTuple

#: Seconds that a wall clock may add, at most.
COLD_MOST: Final = 60.0


class Stamp(NamedTuple):
    """The time that a batch carries.

    Attributes:
        fleet: seconds of fleet time.
        wall: Unix time by the clock of the leader's host.
    """

    fleet: float
    wall: float


#: Of a fleet without a batch.
BEGINNING: Final = Stamp(0.0, 0.0)


class FleetClock:
    """Fleet time, at a candidate. One thread owns it.

    `boottime` is always CLOCK_BOOTTIME of this host, in seconds.
    """

    def __init__(self, last: Stamp, boottime: float, wall: float) -> None:
        """Begin with a batch whose arrival nobody here saw.

        Args:
            last: of the last batch; `BEGINNING` when there is none.
            boottime: when it was read.
            wall: Unix time then.
        """
        age = 0.0 if last == BEGINNING else wall - last.wall
        self._fleet = last.fleet + min(max(0.0, age), COLD_MOST)
        self._since = boottime

    def follow(self, stamp: Stamp, boottime: float) -> None:
        """Take in that a batch of the leader has arrived, while this candidate waits.

        Args:
            stamp: of the batch; they are taken in in their order.
            boottime: when it arrived.
        """
        self._fleet, self._since = stamp.fleet, boottime

    def catch_up(self, stamp: Stamp, boottime: float) -> None:
        """Take in a batch that was found, and may have arrived long ago: it is not after now.

        Args:
            stamp: of the batch.
            boottime: when it was found.
        """
        self._fleet, self._since = max(stamp.fleet, self.now(boottime)), boottime

    def now(self, boottime: float) -> float:
        """Return the fleet time."""
        return self._fleet + max(0.0, boottime - self._since)

    def stamp(self, boottime: float, wall: float) -> Stamp:
        """Return what a batch of this leader carries."""
        return Stamp(self.now(boottime), wall)
