"""The rules: which leases are granted, and who holds which proxy.

Agents on a host keep one connection to every desired proxy, but nobody can choose which proxy a
dial reaches. So an agent takes a lease before it dials, and claims the proxy that it finds at the
other end, by any of the names that the proxy presents. The tracker grants no more leases than
there are proxies without a connection, and lets no two leases claim the same proxy. It learns
from gossip which proxies exist; a proxy that gossip stops mentioning expires.

What is known, and the single steps of a change, are in `registry`; here are the whole operations.

Everything here is pure: no I/O, no threads, no logging, the clock is an argument. It knows nothing
of sessions, waiters or the store. Rule numbers in comments are those of docs/rules.md.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import groupby
from math import inf
from operator import itemgetter
from types import MappingProxyType

from trackd.rules.checks import check_int, check_proxies, check_proxy, check_seconds, check_str
from trackd.rules.desired import GroupCounts, GroupSummary
from trackd.rules.gossip import last_rows, runs
from trackd.rules.marks import Mark
from trackd.rules.mentions import GossipRow
from trackd.rules.registry import DEFAULT_PROXY_EXPIRY, Place, Registry, TrackedProxy
from trackd.rules.targets import Address, Aim
from trackd_client.proxy import Proxy

__all__ = [
    "DEFAULT_PROXY_EXPIRY",
    "GossipRow",
    "GroupCounts",
    "GroupSummary",
    "Place",
    "TrackedProxy",
    "Tracker",
]

_UNKNOWN = object()


class Tracker(Registry):
    """Proxies, leases and claims of one cluster, and the rules that join them.

    Whatever is wrong in an argument is a ValueError that names it, and changes nothing. Not safe
    for threads: one writer owns it.

    Args:
        cluster_name: Names that end in `.<cluster_name>` are resolved without it; not empty.
        proxy_expiry: Seconds until a mention without TTL expires; 0 or less means 180.
        clock: Returns seconds and never goes back. The tracker has no other clock.
    """

    __slots__ = ("_clock",)

    def __init__(
        self,
        cluster_name: str,
        proxy_expiry: float = DEFAULT_PROXY_EXPIRY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(cluster_name, proxy_expiry)
        if not callable(clock):
            raise ValueError(f"clock must be callable, not {clock!r}")  # noqa: TRY004
        self._clock = clock

    # -- gossip ---------------------------------------------------------------------------

    def track_expected(self, proxies: Iterable[Proxy]) -> list[str]:
        """Take in gossip: insert or overwrite each proxy by name (rule 2).

        Absence from a message never removes a proxy.

        Args:
            proxies: What one message mentions; the last mention of a name wins.

        Returns:
            The names that are new, or whose group or generation is another now; empty when only
            expiries have moved.
        """
        checked = check_proxies(proxies)
        rows = [(each.name, each.group, each.generation, each.ttl) for each in checked]
        words = {each.name: each.terminating for each in checked}  # of each name the last one
        said = {name: word for name, word in words.items() if word is not None}
        addresses = {each.name: each.address for each in checked}
        at = {name: text for name, text in addresses.items() if text is not None}
        return list(self.track_rows(rows, said, at))

    def track_rows(
        self,
        rows: Sequence[GossipRow],
        said: Mapping[str, bool] = MappingProxyType({}),
        addresses: Mapping[str, str] = MappingProxyType({}),
    ) -> dict[str, Place | None]:
        """Insert or overwrite each proxy by name (rule 2), without checking any field.

        Args:
            rows: One message of gossip; the last row of a name wins.
            said: The names of which it says whether they are terminating (rule 15).
            addresses: What it says of addresses, by name (rule 16); checked.

        Returns:
            The names that are new, or whose group or generation has changed, each with its place
            before the message; None for a new one.
        """
        rows = last_rows(rows)
        before = {rows[i][0]: place for i, place in self.changed_by(rows)}
        now = self._clock()
        self.put(rows)
        for ttl, names in runs(rows):
            ttl = self.ttl_used(ttl)  # noqa: PLW2901
            renewed = self._mentions.renewable(names)
            if renewed is not None:
                self._mentions.renew(renewed.number, now + ttl, ttl, 0)
            else:
                self._mentions.add(self._mentions.last + 1, names, now + ttl, ttl, 0)
        marks = self.marks.after(rows, before, said, now, self._proxy_expiry)
        for name, mark in marks.items():
            self.mark(name, mark)
        if addresses or self.targets.by_name:
            self._put_addresses(self.targets.after(rows, before, addresses, ("", 0), now))
        return before

    def sweep(self) -> list[str]:
        """Drop the proxies whose expiry has passed, and return their names (rules 3, 4).

        A claim on one of them stays (rule 5). Marks and holds that have passed end as well (rules
        15 and 16).
        """
        now = self._clock()
        expired = self._mentions.due(now)
        self._untrack(expired)
        for name, mark in self.marks.due(now).items():
            self.mark(name, mark)
        self._put_addresses(self.targets.due(now))
        return expired

    def forget(self, name: str) -> Place | None:
        """Drop a proxy before its expiry, because an administrator asks; a claim on it stays.

        Returns:
            Where it was; None when it is not tracked.
        """
        check_str(name, "name")
        if name not in self._tracked:
            return None
        place = self.place(name)
        self._untrack([name])
        return place

    def _untrack(self, names: list[str]) -> None:
        for name, mark in self.without_gossip(names).items():
            self.mark(name, mark)
        self._put_addresses(dict.fromkeys(self.targets.known(names)))
        self.drop(names)

    def _put_addresses(self, addresses: Mapping[str, Address | None]) -> None:
        for name, address in addresses.items():
            self.put_address(name, address)

    # -- leases ---------------------------------------------------------------------------

    def try_acquire(self) -> int | None:
        """Drop what has expired, then grant a lease by rule 6.

        Returns:
            The id of the lease, in flight; None when no further connection is wanted now.
        """
        self.sweep()
        if not (self.bootstrap or self.need):
            return None
        lease = self.grant()
        if self.targets.by_name:
            aim, trust = self.targets.next_aim(("", 0)), self.targets.trust
            if trust.untargeted:
                self.targets.trust = trust.left_out()
            elif aim is not None:
                self.aim(lease, aim)
        return lease

    def target_of(self, lease: int) -> Aim | None:
        """Return the name and address that a lease in flight is aimed at (rule 16), or None."""
        return self.targets.aims.get(lease)

    def claim(self, lease: int, principals: Sequence[str]) -> str | None:
        """Let a lease that is in flight hold the proxy that presents these names (rule 8).

        Args:
            lease: The id that `try_acquire` returned.
            principals: The names that the dialled proxy presents, in its order.

        Returns:
            The name that the lease holds now. None when the lease is not in flight, no name is
            meant, or another lease holds it that is not offered (rule 20); then nothing has
            changed, but that a lease that met another proxy than its target is not aimed any more
            (rule 16).
        """
        check_int(lease, "lease")
        name = self.resolve(principals)
        if self._leases.get(lease, _UNKNOWN) is not None or name is None:
            return None
        held = not self.is_available(name)
        if lease in self.targets.aims:
            self._judge_aim(lease, reached=name)
            if held:
                self.aim(lease, None)
        if held:
            return None
        self._take(lease, name)
        return name

    def _judge_aim(self, lease: int, *, reached: str | None) -> None:
        """Take in whether the aim of a lease has reached its name, or failed (rule 16)."""
        targets = self.targets
        if reached == targets.aims[lease].name:
            targets.trust = targets.trust.succeeded()
        else:
            self._put_addresses(targets.after_failure(lease, self._clock()))
            targets.trust = targets.trust.failed(lease, self._last_lease)

    def adopt(self, principals: Sequence[str]) -> tuple[int, str] | None:
        """Grant a lease and claim in one step, for a tunnel that is open already (rule 14).

        The connection count does not apply.

        Returns:
            The lease and the name that it holds; None when no name is meant or a lease holds it.
        """
        name = self.resolve(principals)
        if name is None or not self.is_available(name):
            return None
        lease = self.grant()
        self._take(lease, name)
        return lease, name

    def _take(self, lease: int, name: str) -> None:
        """Let a lease in flight hold a name, after the release of the lease that offers it.

        The hold of a name that was retired before ends (rule 15).
        """
        holder = self._holders.get(name)
        if holder is not None:
            self.release(holder)
        mark = self.marks.get(name)
        if mark.retired is not None:
            self.mark(name, mark._replace(retired=None))
        self._put_addresses(self.targets.after_claim(name))
        self.hold(lease, name)

    def retire(self, lease: int) -> bool:
        """Mark the proxy that a lease holds as terminating, for as long as it holds it (rule 15).

        Returns:
            Whether the lease is held.

        Raises:
            ValueError: It has not claimed.
        """
        check_int(lease, "lease")
        if lease not in self._leases:
            return False
        name = self._leases[lease]
        if name is None:
            raise ValueError(f"lease {lease} has not claimed, and so holds no proxy to retire")
        self.mark(name, self.marks.get(name)._replace(retired=inf))
        return True

    def offer(self, lease: int) -> bool:
        """Offer the proxy that a lease holds to the next lease that reaches it (rule 20).

        Returns:
            Whether the lease is held.

        Raises:
            ValueError: It has not claimed.
        """
        check_int(lease, "lease")
        if lease not in self._leases:
            return False
        if self._leases[lease] is None:
            raise ValueError(f"lease {lease} has not claimed, and so holds no proxy to offer")
        if lease not in self._offered:
            self.put_offer(lease)
            name = self._leases[lease] or ""
            self._put_addresses(self.targets.after_release(name, self._clock()))
        return True

    def release(self, lease: int, *, failed: bool = False) -> bool:
        """Free what a lease claims, or take it out of flight (rule 9).

        A name that the lease has retired stays marked for a moment (rule 15).

        Args:
            lease: Its id.
            failed: Whether its dial has failed; that is one of its target (rule 16).

        Returns:
            Whether the lease was held until now.
        """
        check_int(lease, "lease")
        if lease not in self._leases:
            return False
        if failed and lease in self.targets.aims:
            self._judge_aim(lease, reached=None)
        name = self.free(lease)
        if name is not None and self.marks.get(name).retired is not None:
            self.mark(name, self.retire_hold(name, self._clock()))
        if name is not None:
            self._put_addresses(self.targets.after_release(name, self._clock()))
        return True

    def is_claimed(self, principals: Sequence[str]) -> bool:
        """Return whether a lease holds the proxy that presents these names (rule 10).

        One that is offered, so that a claim succeeds, does not count.
        """
        name = self.resolve(principals)
        return name is not None and not self.is_available(name)

    # -- restart --------------------------------------------------------------------------

    def restore(
        self,
        *,
        proxies: Iterable[tuple[str, str, int, float] | tuple[str, str, int, float, float | None]],
        leases: Mapping[int, str | None],
        last_lease: int,
        connection_count: int,
        marks: Mapping[str, Mark] = MappingProxyType({}),
        offered: Collection[int] = (),
    ) -> None:
        """Take over what an earlier process left, into a tracker that has seen nothing.

        Args:
            proxies: Name, group, generation and absolute expiry of each tracked proxy, as
                iterating over a tracker yields them; then the TTL of its last mention, if known.
            leases: What each lease holds, None while in flight.
            last_lease: The id granted last.
            connection_count: See `set_connection_count`.
            marks: Of the names that are marked as terminating.
            offered: The leases that are offered.

        Raises:
            ValueError: This tracker has tracked or granted already, or the state makes no sense.
        """
        if self._tracked or self._last_lease:
            raise ValueError("restore needs a tracker that has neither tracked nor granted")
        check_int(last_lease, "last_lease")
        check_int(connection_count, "connection_count")
        if last_lease < 0:
            raise ValueError(f"last_lease must not be negative, not {last_lease}")
        holders: dict[str, int] = {}
        for lease, held in leases.items():
            check_int(lease, "lease")
            if not 0 < lease <= last_lease:
                raise ValueError(f"lease {lease} is not between 1 and last_lease {last_lease}")
            if held is None:
                continue
            check_str(held, f"the name that lease {lease} holds")
            if not held or held in holders:
                raise ValueError(f"lease {lease} cannot hold {held!r}")
            holders[held] = lease
        rows = {}
        for name, group, generation, expiry, *known in proxies:
            ttl = known[0] if known else None
            check_proxy(name, group, generation, ttl)
            if ttl is not None and ttl <= 0:
                raise ValueError(f"the ttl of {name!r} must be positive, not {ttl}")
            check_seconds(expiry, f"the expiry of {name!r}")
            if name in rows:
                raise ValueError(f"proxy {name!r} is there twice")
            rows[name] = group, generation, expiry, ttl
        for lease in offered:
            if leases.get(lease) is None:
                raise ValueError(f"lease {lease} cannot be offered: it holds no name")
        self._leases = dict(leases)
        self._holders = holders
        self._offered = set(offered)
        self._last_lease = last_lease
        self._connection_count = connection_count
        for name, mark in marks.items():
            self.mark(name, mark)
        self.put((name, *row[:2], None) for name, row in rows.items())
        mentioned = sorted(
            (expiry, self.ttl_used(ttl), name) for name, (_, _, expiry, ttl) in rows.items()
        )
        for (expiry, ttl), run in groupby(mentioned, itemgetter(0, 1)):
            number = self._mentions.last + 1
            self._mentions.add(number, [name for _, _, name in run], expiry, ttl, 0)
