"""The simulated network: proxies, a load balancer before them, tunnels, gossip, ground truth.

A dial takes `dial_seconds`; the balancer chooses its proxy when it begins, and the dial learns
which one at its end. All that is counted here is what really is, not what an agent believes.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from trackd_client import Proxy

BALANCERS = ("random", "round-robin", "least-connections", "sticky")
#: Seconds that a dial takes until it knows which proxy it has reached, and one that is refused.
DIAL_SECONDS = 0.05
REFUSED_SECONDS = 0.005
#: Seconds until the balancer notices that a proxy died which did not say so before.
HEALTH_SECONDS = 1.0
#: Seconds after which the other proxies mention what is new of one.
MENTION_SECONDS = 0.5
#: Seconds between two messages of gossip to an agent, and for how long a mention counts.
GOSSIP_SECONDS = 5.0
TTL_SECONDS = 15.0


class DialRefusedError(ConnectionRefusedError):
    """The dial reached no proxy."""


@dataclass(eq=False, slots=True)
class Site:
    """A proxy.

    Attributes:
        name: its name.
        up: whether it takes dials.
        drained: whether the balancer leaves it out: it said that it goes, or is known to be down.
        terminating: whether it has said that it is about to go.
        mentioned: whether gossip mentions it.
        tunnels: the open tunnels to it.
        dials: dials under way to it, for a balancer that counts connections.
    """

    name: str
    up: bool = True
    drained: bool = False
    terminating: bool = False
    mentioned: bool = True
    tunnels: dict[Tunnel, None] = field(default_factory=dict)
    dials: int = 0


@dataclass(eq=False, slots=True)
class Tunnel:
    """An open tunnel; `closed` is set when either end closes it."""

    site: Site
    closed: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class Truth:
    """What really happened since the last `reset`.

    Attributes:
        dials: when each dial began.
        futile: dials that began while none could have added a tunnel.
        to_terminating: dials that ended at a proxy which was about to go.
        short_seconds: tunnel-seconds below the target.
        surplus_seconds: tunnel-seconds of second and further tunnels to one proxy.
        short_now: tunnels below the target at this moment.
        full_at: when the target was last reached, or None while it is not.
    """

    dials: list[float] = field(default_factory=list)
    futile: int = 0
    to_terminating: int = 0
    short_seconds: float = 0.0
    surplus_seconds: float = 0.0
    short_now: int = 0
    full_at: float | None = None


class Network:
    """Proxies p0, p1, ... behind a balancer.

    Attributes:
        sites: the proxies.
        target: tunnels that are wanted: one to each proxy, or fewer.
        truth: what is counted.
        on_gossip: called when there is something new to say about proxies.
        has_addresses: whether gossip says where each proxy is, past the balancer.
    """

    def __init__(
        self,
        chance: random.Random,
        proxies: int,
        balancer: str,
        *,
        target: int | None = None,
        dial_seconds: float = DIAL_SECONDS,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.sites = [Site(f"p{number}") for number in range(proxies)]
        self.target = proxies if target is None else target
        self.truth = Truth(short_now=self.target)
        self.on_gossip: list[Callable[[], None]] = []
        self.has_addresses = False
        self.dial_seconds = dial_seconds
        self._chance = chance
        self._balancer = balancer
        self._turn = chance.randrange(proxies)
        self._order = chance.sample(self.sites, proxies)  # which the sticky one prefers
        self._counted = self.loop.time()
        self._surplus = 0
        self._full = asyncio.Event()
        self._gossip: list[Proxy] | None = None
        self._announces = False  # whether gossip has ever said that a proxy is about to go

    # -- dials and tunnels ------------------------------------------------------------------

    async def dial(self, site: Site | None = None) -> Site:
        """Return the proxy that a dial reaches: the balancer's choice, or the one that is given.

        Raises:
            DialRefusedError: there is none, or it is down.
        """
        self.truth.dials.append(self.loop.time())
        self.truth.futile += not self._can_gain()
        chosen = site or self._choose()
        if chosen is None or not chosen.up:
            await asyncio.sleep(REFUSED_SECONDS)
            raise DialRefusedError
        chosen.dials += 1
        try:
            await asyncio.sleep(self.dial_seconds)
        finally:
            chosen.dials -= 1
        if not chosen.up:
            raise DialRefusedError
        self.truth.to_terminating += chosen.terminating
        return chosen

    def open(self, site: Site) -> Tunnel:
        """Open a tunnel to a proxy that a dial has reached.

        Raises:
            DialRefusedError: it went down since.
        """
        if not site.up:
            raise DialRefusedError
        tunnel = Tunnel(site)
        site.tunnels[tunnel] = None
        self._count()
        return tunnel

    def close(self, tunnel: Tunnel) -> None:
        """Close a tunnel; a second call does nothing."""
        if tunnel.site.tunnels.pop(tunnel, tunnel) is None:
            tunnel.closed.set()
            self._count()

    def _choose(self) -> Site | None:
        known = [site for site in self.sites if not site.drained]
        if not known:
            return None
        match self._balancer:
            case "random":
                return self._chance.choice(known)
            case "round-robin":
                self._turn += 1
                return known[self._turn % len(known)]
            case "least-connections":
                least = min(len(site.tunnels) + site.dials for site in known)
                return self._chance.choice(
                    [site for site in known if len(site.tunnels) + site.dials == least]
                )
            case _:
                return next(site for site in self._order if not site.drained)

    def _can_gain(self) -> bool:
        """Return whether a dial that begins now could end at a proxy that has no tunnel."""
        return any(not site.tunnels and not site.drained and site.up for site in self.sites)

    # -- what happens to proxies --------------------------------------------------------------

    def announce(self, site: Site) -> None:
        """Let a proxy say that it is about to go: the balancer leaves it out, gossip says so."""
        site.terminating = site.drained = True
        self._spread()

    def stop(self, site: Site) -> None:
        """Take a proxy down; its tunnels close at once."""
        site.up = False
        for tunnel in list(site.tunnels):
            self.close(tunnel)
        self.loop.call_later(HEALTH_SECONDS, self._note_health, site)

    def start(self, site: Site) -> None:
        """Bring a proxy up again; the balancer sends dials to it at once."""
        site.up = True
        site.drained = site.terminating = False
        site.mentioned = True
        self._spread()

    def forget(self, site: Site) -> None:
        """Let gossip mention a proxy no more, because it was away for long."""
        site.mentioned = False
        self._gossip = None

    def _note_health(self, site: Site) -> None:
        site.drained = site.drained or not site.up

    def _spread(self) -> None:
        """Let the other proxies say what is new, after a moment."""
        self.loop.call_later(MENTION_SECONDS, self._mention)

    def _mention(self) -> None:
        self._gossip = None
        for mention in self.on_gossip:
            mention()

    def gossip(self) -> list[Proxy]:
        """Return what each proxy says of all now."""
        if self._gossip is None:
            self._announces = self._announces or any(site.terminating for site in self.sites)
            self._gossip = [
                Proxy(
                    site.name,
                    generation=1,
                    ttl=TTL_SECONDS,
                    terminating=site.terminating if self._announces else None,
                    address=f"{site.name}:443" if self.has_addresses else None,
                )
                for site in self.sites
                if site.mentioned
            ]
        return self._gossip

    # -- ground truth ---------------------------------------------------------------------------

    def _count(self) -> None:
        """Add up what was missing until now, and see what is missing from now on."""
        now, truth = self.loop.time(), self.truth
        truth.short_seconds += truth.short_now * (now - self._counted)
        truth.surplus_seconds += self._surplus * (now - self._counted)
        self._counted = now
        tunnels = self.covered
        truth.short_now = max(0, self.target - tunnels)
        self._surplus = sum(len(site.tunnels) for site in self.sites) - tunnels
        if truth.short_now:
            truth.full_at = None
            self._full.clear()
        elif truth.full_at is None:
            truth.full_at = now
            self._full.set()

    @property
    def covered(self) -> int:
        """How many proxies have a tunnel."""
        return sum(1 for site in self.sites if site.tunnels)

    def reset(self) -> Truth:
        """Begin to count afresh; return what was counted until now."""
        self._count()
        before = self.truth
        self.truth = Truth(short_now=before.short_now, full_at=before.full_at)
        return before

    async def full(self, limit: float) -> float | None:
        """Wait until the target is reached, and return when it was; None after `limit` seconds."""
        if self.truth.full_at is None:
            try:
                async with asyncio.timeout(limit):
                    await self._full.wait()
            except TimeoutError:
                return None
        return self.truth.full_at
