"""The tracker against a model that keeps plain dictionaries and recomputes everything."""

import math
from collections.abc import Sequence

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trackd.rules.tracker import GroupSummary, TrackedProxy, Tracker
from trackd_client.proxy import Proxy

CLUSTER = "c"


class Model:
    """The rules as docs/rules.md says them, each recomputed from all there is."""

    def __init__(self) -> None:
        self.now = 0.0
        self.proxy_expiry = 180.0
        self.count = 0
        self.last_lease = 0
        self.tracked: dict[str, TrackedProxy] = {}
        self.leases: dict[int, str | None] = {}

    def track(self, proxies: Sequence[Proxy]) -> set[str]:
        before = dict(self.tracked)
        for proxy in proxies:
            given = proxy.ttl is not None and proxy.ttl > 0
            ttl = proxy.ttl if given and proxy.ttl is not None else self.proxy_expiry
            self.tracked[proxy.name] = TrackedProxy(
                proxy.name, proxy.group, proxy.generation, self.now + ttl
            )
        return {
            name
            for name, new in self.tracked.items()
            if (old := before.get(name)) is None
            or (old.group, old.generation) != (new.group, new.generation)
        }

    def sweep(self) -> set[str]:
        expired = {name for name, proxy in self.tracked.items() if proxy.expiry < self.now}
        for name in expired:
            del self.tracked[name]
        return expired

    def claimed(self) -> set[str]:
        return {name for name in self.leases.values() if name is not None}

    def inflight(self) -> int:
        return sum(name is None for name in self.leases.values())

    def desired(self) -> set[str]:
        largest = {
            group: max(p.generation for p in self.tracked.values() if p.group == group)
            for group in {p.group for p in self.tracked.values()}
        }
        return {p.name for p in self.tracked.values() if p.generation == largest[p.group]}

    def target(self) -> int:
        return min(len(self.desired()), self.count) if self.count > 0 else len(self.desired())

    def bootstrap(self) -> bool:
        return self.inflight() == 0 and (not self.claimed() or not self.tracked)

    def need(self) -> bool:
        return self.target() > len(self.claimed() & self.desired()) + self.inflight()

    def try_acquire(self) -> int | None:
        self.sweep()
        return self.grant() if self.bootstrap() or self.need() else None

    def grant(self) -> int:
        self.last_lease += 1
        self.leases[self.last_lease] = None
        return self.last_lease

    def resolve(self, principals: Sequence[str]) -> str | None:
        known = [p for p in principals if p in self.tracked or p in self.claimed()]
        if known:
            return known[0] or None
        if not principals:
            return None
        return principals[0].removesuffix("." + CLUSTER) or None

    def free_name(self, principals: Sequence[str]) -> str | None:
        name = self.resolve(principals)
        return None if name in self.claimed() else name

    def claim(self, lease: int, principals: Sequence[str]) -> str | None:
        name = self.free_name(principals)
        if lease not in self.leases or self.leases[lease] is not None or name is None:
            return None
        self.leases[lease] = name
        return name

    def adopt(self, principals: Sequence[str]) -> tuple[int, str] | None:
        name = self.free_name(principals)
        if name is None:
            return None
        lease = self.grant()
        self.leases[lease] = name
        return lease, name

    def release(self, lease: int) -> bool:
        held = lease in self.leases
        self.leases.pop(lease, None)
        return held

    def groups(self) -> list[GroupSummary]:
        summaries = []
        for group in sorted({p.group for p in self.tracked.values()}):
            generations = [p.generation for p in self.tracked.values() if p.group == group]
            desired = {name for name in self.desired() if self.tracked[name].group == group}
            summaries.append(
                GroupSummary(
                    name=group,
                    generation=max(generations),
                    tracked=len(generations),
                    desired=len(desired),
                    claimed=len(desired & self.claimed()),
                    generations={g: generations.count(g) for g in generations},
                )
            )
        return summaries


names = st.sampled_from(["a", "b", "d", "e", "f", "a.c", "b.c", "a.c.c", "", ".c", "c", "A.C"])
groups = st.sampled_from(["", "g", "h"])
generations = st.sampled_from([0, 1, 2, 3, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1])
ttls = st.sampled_from([None, None, 0, -1.5, 1, 10.0, 10.1, 30.0, 180.0, 1e-9, 1e6])
proxies = st.builds(Proxy, names, groups, generations, ttls)
messages = st.lists(proxies, max_size=8)
principals = st.lists(st.one_of(names, st.sampled_from(["x", "x.c", "a.c.c.c"])), max_size=3)
leases = st.integers(0, 12)


class TrackerAgainstModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.tracker = self.fresh()

    def fresh(self) -> Tracker:
        return Tracker(CLUSTER, self.model.proxy_expiry, lambda: self.model.now)

    def recent(self, lease: int) -> int:
        """Turn a small number into one of the ids granted last, or the next one."""
        return self.model.last_lease + 1 - lease

    @rule(message=messages)
    def track(self, message: list[Proxy]) -> None:
        changed = self.tracker.track_expected(message)
        assert len(changed) == len(set(changed))
        assert set(changed) == self.model.track(message)

    @rule(message=messages)
    def track_rows(self, message: list[Proxy]) -> None:
        rows = [(p.name, p.group, p.generation, p.ttl) for p in message]
        assert set(self.tracker.track_rows(rows)) == self.model.track(message)

    @rule(name=names, group=groups, generation=generations, first=st.integers(0, 50))
    def flap(self, name: str, group: str, generation: int, first: int) -> None:
        """Mention one name with ever other TTLs and generations, as a broken proxy might."""
        for i in range(20):
            message = [Proxy(name, group, abs(generation - first - i), 1.0 + first + i)]
            assert set(self.tracker.track_expected(message)) == self.model.track(message)

    @rule()
    def say_again(self) -> None:
        """Refresh all that is tracked, as gossip does most of the time."""
        again = [Proxy(p.name, p.group, p.generation) for p in self.model.tracked.values()]
        assert self.tracker.track_expected(again) == []
        self.model.track(again)

    @rule(seconds=st.sampled_from([0.0, 1e-9, 0.1, 1.0, 9.9, 10.0, 179.9, 1e5]))
    def advance(self, seconds: float) -> None:
        self.model.now += seconds

    @precondition(lambda self: self.model.tracked)
    @rule(data=st.data(), past=st.booleans())
    def advance_to_an_expiry(self, data: st.DataObject, past: bool) -> None:
        expiries = sorted({proxy.expiry for proxy in self.model.tracked.values()})
        expiry = data.draw(st.sampled_from(expiries))
        self.model.now = max(self.model.now, math.nextafter(expiry, math.inf) if past else expiry)

    @rule(count=st.sampled_from([-1, 0, 1, 2, 3, 5, 100]))
    def set_connection_count(self, count: int) -> None:
        self.tracker.set_connection_count(count)
        self.model.count = count

    @rule(seconds=st.sampled_from([0, -1.0, 10.0, 60]))
    def set_proxy_expiry(self, seconds: float) -> None:
        self.tracker.proxy_expiry = seconds
        self.model.proxy_expiry = seconds if seconds > 0 else 180.0

    @rule()
    def sweep(self) -> None:
        expired = self.tracker.sweep()
        assert len(expired) == len(set(expired))
        assert set(expired) == self.model.sweep()

    @rule(most=st.integers(1, 4))
    def try_acquire(self, most: int) -> None:
        for _ in range(most):
            assert self.tracker.try_acquire() == self.model.try_acquire()

    @rule(lease=leases, principals=principals)
    def claim(self, lease: int, principals: list[str]) -> None:
        lease = self.recent(lease)
        assert self.tracker.claim(lease, principals) == self.model.claim(lease, principals)

    @precondition(lambda self: self.model.inflight())
    @rule(data=st.data(), principals=principals)
    def claim_in_flight(self, data: st.DataObject, principals: list[str]) -> None:
        waiting = [lease for lease, name in self.model.leases.items() if name is None]
        lease = data.draw(st.sampled_from(waiting))
        assert self.tracker.claim(lease, principals) == self.model.claim(lease, principals)

    @rule(lease=leases)
    def release(self, lease: int) -> None:
        lease = self.recent(lease)
        assert self.tracker.release(lease) == self.model.release(lease)

    @rule(principals=principals)
    def adopt(self, principals: list[str]) -> None:
        assert self.tracker.adopt(principals) == self.model.adopt(principals)

    @rule(principals=principals)
    def ask(self, principals: list[str]) -> None:
        name = self.model.resolve(principals)
        assert self.tracker.resolve(principals) == name
        assert self.tracker.is_claimed(principals) == (name in self.model.claimed())

    @rule()
    def next_expiry(self) -> None:
        expiries = [proxy.expiry for proxy in self.model.tracked.values()]
        assert self.tracker.next_expiry == min(expiries, default=None)

    @rule()
    def restart(self) -> None:
        tracker = self.fresh()
        tracker.restore(
            proxies=self.tracker,
            leases=self.tracker.leases,
            last_lease=self.tracker.last_lease,
            connection_count=self.tracker.connection_count,
        )
        self.tracker = tracker

    @invariant()
    def agree(self) -> None:
        tracker, model = self.tracker, self.model
        claimed, desired = model.claimed(), model.desired()
        assert {proxy.name: proxy for proxy in tracker} == model.tracked
        assert tracker.tracked_count == len(model.tracked)
        assert dict(tracker.leases) == model.leases
        assert tracker.last_lease == model.last_lease
        assert tracker.inflight == model.inflight()
        assert tracker.claimed_count == len(claimed)
        assert tracker.desired_count == len(desired)
        assert tracker.claimed_desired_count == len(claimed & desired)
        assert tracker.target == model.target()
        assert (tracker.bootstrap, tracker.need) == (model.bootstrap(), model.need())
        assert tracker.connection_count == model.count
        assert tracker.proxy_expiry == model.proxy_expiry
        assert set(tracker.missing(1000)) == desired - claimed
        assert tracker.groups() == model.groups()
        assert tracker.first_groups() == [group[:-1] for group in model.groups()]
        assert tracker.group_count == len(model.groups())
        assert {name for name in model.tracked if tracker.is_desired(name)} == desired
        for lease, name in model.leases.items():
            assert lease in tracker.leases
            assert tracker.lease_name(lease) == name
            if name is not None:
                assert tracker.holder(name) == lease


TrackerAgainstModel.TestCase.settings = settings(
    max_examples=200,
    stateful_step_count=50,
    deadline=None,
    report_multiple_bugs=False,  # shrinking each of them takes minutes
    suppress_health_check=[HealthCheck.too_slow],  # a busy machine is no defect
)
TestTrackerAgainstModel = TrackerAgainstModel.TestCase
