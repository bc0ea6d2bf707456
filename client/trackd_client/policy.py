"""When a pool dials again, and what it counts. No I/O, no clock, no threads of its own.

Two things go wrong with a dial, and they want different answers. A *failed* dial reached no
proxy, or lost it at once: the pool backs off, exponentially and with full jitter, so that a
host full of agents does not come back in step. A *duplicate* reached a proxy that is claimed
already: the load balancer is asked again after a short pause that grows slowly. Many
duplicates in a row that meet the same few proxies mean that the balancer is *sticky*: it keeps
sending this host to them, and asking faster does not help. Where most of the claimed proxies are
met, it is not: one that is missing is away, or chance has not chosen it yet.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from enum import StrEnum

from trackd_client.errors import BadArgument

__all__ = ["Change", "Policy", "PoolEvent", "PoolStats"]


class Change(StrEnum):
    """What happens to a connection of a pool."""

    CONNECTING = "connecting"
    CLAIMED = "claimed"
    DUPLICATE = "duplicate"
    FAILED = "failed"
    CLOSED = "closed"
    BACKING_OFF = "backing_off"
    STICKY = "sticky"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolEvent:
    """A change of a pool's state, as its hook gets it.

    Attributes:
        change: what happened.
        lease: the id of the lease, or 0 when it is about none.
        name: the proxy that was claimed, closed or met.
        error: what a failed dial raised, or None when it only returned.
        pause: seconds until the next dial, of `BACKING_OFF` and `STICKY`.
        missing: proxies that no dial has reached, for `STICKY`; at most 100.
    """

    change: Change
    lease: int = 0
    name: str | None = None
    error: BaseException | None = None
    pause: float = 0.0
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How a pool paces its dials. All durations are seconds.

    A value that is no number, or less than 0, is a `BadArgument`.

    Attributes:
        failed_base: bound of the first pause after failed dials; it doubles with each.
        failed_cap: the largest that this bound grows.
        stayed_up: a connection that lasted so long ends the counting of failures; one
            that closed sooner by itself counts as a failure.
        duplicate_step: pause after a duplicate; it grows by this with each in a row.
        duplicate_cap: the largest that it grows.
        sticky_after: duplicates in a row that make the balancer sticky, if chance does not
            explain them: where few proxies are missing among many, it may well. Nor do they
            when they have met most of the proxies. The daemon counts those of the whole host, and
            hints at it from 20 on; with an older daemon each pool counts its own.
        sticky_pause: pause between dials while it is; then there is one dial at a time.
    """

    failed_base: float = 0.5
    failed_cap: float = 8.0
    stayed_up: float = 10.0
    duplicate_step: float = 0.025
    duplicate_cap: float = 0.5
    sticky_after: int = 20
    sticky_pause: float = 5.0

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if not isinstance(value, int | float) or not value >= 0:
                raise BadArgument(f"{each.name} must be a number of at least 0, not {value!r:.100}")


@dataclass(slots=True)
class PoolStats:
    """What a pool has done; a service can export it.

    Attributes:
        dialling: dials under way that have not claimed.
        connected: claimed connections.
        dials: dials begun.
        claims: claims that succeeded.
        duplicates: dials that reached a proxy claimed already.
        failures: dials that reached none, or lost it at once.
        sticky: times that the balancer was found sticky.
        pause: seconds of the pause under way or last.
        skipped: entries of gossip that no proxy can be.
    """

    dialling: int = 0
    connected: int = 0
    dials: int = 0
    claims: int = 0
    duplicates: int = 0
    failures: int = 0
    sticky: int = 0
    pause: float = 0.0
    skipped: int = 0


@dataclass(slots=True)
class Pace:
    """The state of a policy: what went wrong in a row, and the pause that follows from it."""

    policy: Policy
    jitter: Callable[[float, float], float] = random.uniform
    failures: int = field(default=0, init=False)
    duplicates: int = field(default=0, init=False)
    reached: set[str] = field(default_factory=set, init=False)  # the proxies of these duplicates
    hinted: bool | None = field(default=None, init=False)  # what the daemon says; None: nothing
    is_sticky: bool = field(default=False, init=False)
    suspicious_at: int = field(init=False)

    def __post_init__(self) -> None:
        self.suspicious_at = self.policy.sticky_after

    def connected(self) -> None:
        """A dial reached a proxy that was free."""
        self.duplicates = 0
        self.reached.clear()
        self.hinted = None
        self.is_sticky = False
        self.suspicious_at = self.policy.sticky_after

    def stayed_up(self) -> None:
        """A connection lasted."""
        self.failures = 0

    def failed(self) -> float:
        """A dial failed; return the seconds to pause: full jitter under a doubling bound."""
        policy = self.policy
        # Far beyond the cap for any sensible base, and never too large for a float.
        bound = min(policy.failed_cap, policy.failed_base * 2 ** min(self.failures, 32))
        self.failures += 1
        return self.jitter(0.0, bound)

    def duplicate(self, name: str, *, hinted: bool | None = None) -> float:
        """A dial reached a claimed proxy; return the seconds to pause.

        Args:
            name: of the proxy.
            hinted: whether the daemon says that the balancer is sticky; None: it is too old.
        """
        self.duplicates += 1
        self.reached.add(name)
        self.hinted = hinted
        if hinted is False:
            self.is_sticky = False
        if self.is_sticky:
            return self.policy.sticky_pause
        return min(self.policy.duplicate_cap, self.policy.duplicate_step * self.duplicates)

    @property
    def is_suspicious(self) -> bool:
        """Whether `judge` is to be asked, after so many duplicates in a row, or after a hint."""
        if self.hinted is not None:
            return self.hinted and not self.is_sticky
        return not self.is_sticky and self.duplicates >= self.suspicious_at

    def judge(self, desired: int, missing: int) -> bool:
        """Tell whether chance does not explain the duplicates, so that the balancer is sticky.

        Args:
            desired: proxies that are wanted.
            missing: how many of them no dial has reached.
        """
        if self.hinted is not None:
            self.is_sticky = self.hinted
            return self.is_sticky
        needed = self.policy.sticky_after
        claimed = desired - missing
        if claimed > 1 and len(self.reached) > claimed / 2:
            self.suspicious_at = self.duplicates + max(needed, 1)  # the next time to be asked
            return False
        if 0 < missing < desired:
            # An even balancer misses all of them so many times in a row once in a hundred.
            needed = max(needed, math.ceil(math.log(0.01) / math.log1p(-missing / desired)))
        self.is_sticky = self.duplicates >= needed
        self.suspicious_at = needed
        return self.is_sticky
