"""The tracker against a model that keeps plain dictionaries and recomputes everything."""

import math
from collections.abc import Sequence

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trackd.rules.marks import RETIRE_HOLD
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
        self.ttls: dict[str, float] = {}
        self.said: dict[str, float] = {}  # until when gossip says that a proxy is terminating
        self.retired: set[int] = set()  # leases
        self.held: dict[str, float] = {}  # names after the release of their retired lease
        self.offered: set[int] = set()  # leases
        # Text and since when the name is missing; aims of it that failed, and the end of its hold.
        self.addresses: dict[str, tuple[str, float]] = {}
        self.failed: dict[str, tuple[int, float | None]] = {}
        self.aims: dict[int, tuple[str, str]] = {}
        self.untargeted = 0
        self.failures = 0  # in a row; -1 after a success
        self.judged = 0  # the lease granted last before the last failure

    def track(self, proxies: Sequence[Proxy]) -> set[str]:
        before = dict(self.tracked)
        for proxy in proxies:
            given = proxy.ttl is not None and proxy.ttl > 0
            ttl = proxy.ttl if given and proxy.ttl is not None else self.proxy_expiry
            self.ttls[proxy.name] = ttl
            self.tracked[proxy.name] = TrackedProxy(
                proxy.name, proxy.group, proxy.generation, self.now + ttl
            )
        for proxy in {proxy.name: proxy for proxy in proxies}.values():
            old = before.get(proxy.name)
            if old is None or (old.group, old.generation) != (proxy.group, proxy.generation):
                self.said.pop(proxy.name, None)
            if proxy.terminating is not None:
                self.said.pop(proxy.name, None)
            if proxy.terminating:
                self.said[proxy.name] = self.tracked[proxy.name].expiry
            self.address(proxy, old)
        return {
            name
            for name, new in self.tracked.items()
            if (old := before.get(name)) is None
            or (old.group, old.generation) != (new.group, new.generation)
        }

    def address(self, proxy: Proxy, old: TrackedProxy | None) -> None:
        name, text = proxy.name, proxy.address
        moved = old is None or (old.group, old.generation) != (proxy.group, proxy.generation)
        before = self.addresses.get(name)
        if moved or (text is not None and (before is None or before[0] != text)):
            self.failed.pop(name, None)
        if moved or text == "":
            self.addresses.pop(name, None)
        if text:
            since = self.addresses[name][1] if name in self.addresses else self.now
            self.addresses[name] = text, since

    def candidates(self) -> set[str]:
        """Return of each group the name that a grant may be aimed at."""
        aimed = {name for name, _ in self.aims.values()}
        ready = {
            name
            for name in self.addresses
            if name in self.desired() - self.blocked() - aimed
            and self.failed.get(name, (0, None))[1] is None
        }
        first: dict[str, str] = {}
        for name in sorted(ready, key=lambda name: (self.addresses[name][1], name)):
            first.setdefault(self.tracked[name].group, name)
        return set(first.values())

    def aim(self, lease: int, aim: tuple[str, str] | None) -> None:
        """Take over what a grant was aimed at, if that may be."""
        if self.addresses and self.untargeted:
            self.untargeted -= 1
            assert aim is None
        elif (self.failures > 0 and self.aims) or not (first := self.candidates()):
            assert aim is None
        else:
            assert aim is not None
            assert aim[0] in first
            assert aim[1] == self.addresses[aim[0]][0]
            self.aims[lease] = aim

    def judge(self, lease: int, reached: str | None) -> None:
        if lease not in self.aims:
            return
        name, text = self.aims[lease]
        if reached == name:
            self.failures, self.untargeted = -1, 0
            return
        if name in self.addresses and self.addresses[name][0] == text:
            times = self.failed.get(name, (0, None))[0]
            self.failed[name] = times + 1, self.now + min(600.0, 30.0 * 2**times)
        if lease > self.judged:
            self.untargeted = min(48, 3 * 2**self.failures) if self.failures >= 0 else 0
            self.failures, self.judged = self.failures + 1, self.last_lease

    def sweep(self) -> set[str]:
        expired = {name for name, proxy in self.tracked.items() if proxy.expiry < self.now}
        for name in expired:
            del self.tracked[name]
            self.said.pop(name, None)
            self.addresses.pop(name, None)
            self.failed.pop(name, None)
        for name, (times, until) in self.failed.items():
            if until is not None and until < self.now:
                self.failed[name] = times, None
        self.said = {name: end for name, end in self.said.items() if end >= self.now}
        self.held = {name: end for name, end in self.held.items() if end >= self.now}
        return expired

    def marked(self) -> set[str]:
        retired = {name for lease, name in self.leases.items() if name and lease in self.retired}
        return {*self.said, *self.held, *retired} & set(self.tracked)

    def claimed(self) -> set[str]:
        return {name for name in self.leases.values() if name is not None}

    def inflight(self) -> int:
        return sum(name is None for name in self.leases.values())

    def desired(self) -> set[str]:
        found = set()
        for group in {p.group for p in self.tracked.values()}:
            there = [p for p in self.tracked.values() if p.group == group]
            wanted = [p for p in there if p.name not in self.marked()] or there
            largest = max(p.generation for p in wanted)
            found |= {p.name for p in wanted if p.generation == largest}
        return found

    def terminating(self) -> set[str]:
        marked = self.marked()
        kept = {p.group for p in self.tracked.values() if p.name not in marked}
        return {name for name in marked if self.tracked[name].group in kept}

    def target(self) -> int:
        return min(len(self.desired()), self.count) if self.count > 0 else len(self.desired())

    def bootstrap(self) -> bool:
        return self.inflight() == 0 and (not self.claimed() or not self.tracked)

    def counted(self) -> set[str]:
        """Return the desired proxies that are claimed and not offered."""
        offered = {name for lease, name in self.leases.items() if name and lease in self.offered}
        return (self.claimed() & self.desired()) - offered

    def need(self) -> bool:
        return self.target() > len(self.counted()) + self.inflight()

    def replaced(self) -> list[int]:
        is_met = self.target() > 0 and len(self.counted()) >= self.target()
        return sorted(self.offered) if is_met else []

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

    def holders(self, name: str | None) -> list[int]:
        return [lease for lease, held in self.leases.items() if name is not None and held == name]

    def blocked(self) -> set[str]:
        """Return the names that no other lease can claim."""
        offered = {name for lease, name in self.leases.items() if name and lease in self.offered}
        return self.claimed() - (offered - self.terminating())

    def take(self, principals: Sequence[str]) -> str | None:
        """Return the name that a lease can claim; an offered lease that holds it is released."""
        name = self.resolve(principals)
        if name is None or name in self.blocked():
            return None
        for lease in self.holders(name):
            self.release(lease)
        self.held.pop(name, None)
        self.failed.pop(name, None)
        return name

    def claim(self, lease: int, principals: Sequence[str]) -> str | None:
        if lease not in self.leases or self.leases[lease] is not None:
            return None
        if (meant := self.resolve(principals)) is not None:
            self.judge(lease, meant)
            self.aims.pop(lease, None)
        name = self.take(principals)
        self.leases[lease] = name
        return name

    def adopt(self, principals: Sequence[str]) -> tuple[int, str] | None:
        name = self.take(principals)
        if name is None:
            return None
        lease = self.grant()
        self.leases[lease] = name
        return lease, name

    def retire(self, lease: int) -> None:
        self.retired.add(lease)

    def offer(self, lease: int) -> None:
        name = self.leases[lease]
        if lease not in self.offered and name in self.addresses:
            self.addresses[name] = self.addresses[name][0], self.now
        self.offered.add(lease)

    def release(self, lease: int, *, failed: bool = False) -> bool:
        held = lease in self.leases
        if failed:
            self.judge(lease, None)
        self.aims.pop(lease, None)
        name = self.leases.pop(lease, None)
        self.offered.discard(lease)
        if name in self.addresses:
            self.addresses[name] = self.addresses[name][0], self.now
        if name is not None and lease in self.retired:
            hold = min(RETIRE_HOLD, self.ttls[name]) if name in self.tracked else RETIRE_HOLD
            self.held[name] = self.now + hold
        return held

    def groups(self) -> list[GroupSummary]:
        summaries = []
        for group in sorted({p.group for p in self.tracked.values()}):
            generations = [p.generation for p in self.tracked.values() if p.group == group]
            desired = {name for name in self.desired() if self.tracked[name].group == group}
            summaries.append(
                GroupSummary(
                    name=group,
                    generation=max(self.tracked[name].generation for name in desired),
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
words = st.sampled_from([None, None, None, True, False])
addresses = st.sampled_from([None, None, "a:1", "b:1", ""])
proxies = st.builds(Proxy, names, groups, generations, ttls, words, addresses)
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
        last = {p.name: p.terminating for p in message}
        said = {name: word for name, word in last.items() if word is not None}
        texts = {p.name: p.address for p in message}
        at = {name: text for name, text in texts.items() if text is not None}
        assert set(self.tracker.track_rows(rows, said, at)) == self.model.track(message)

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
        model = self.model
        ends = [proxy.expiry for proxy in model.tracked.values()]
        holds = {end for _, end in model.failed.values() if end is not None}
        expiries = sorted({*ends, *model.said.values(), *model.held.values(), *holds})
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
            lease = self.tracker.try_acquire()
            assert lease == self.model.try_acquire()
            if lease is not None:
                self.model.aim(lease, self.tracker.target_of(lease))

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

    @rule(lease=leases, failed=st.booleans())
    def release(self, lease: int, failed: bool) -> None:
        lease = self.recent(lease)
        released = self.tracker.release(lease, failed=failed)
        assert released == self.model.release(lease, failed=failed)

    @precondition(lambda self: self.model.aims)
    @rule(data=st.data(), ends=st.sampled_from(["claim", "release", "fail"]))
    def end_an_aim(self, data: st.DataObject, ends: str) -> None:
        lease = data.draw(st.sampled_from(sorted(self.model.aims)))
        if ends == "claim":
            names = [self.model.aims[lease][0]]
            assert self.tracker.claim(lease, names) == self.model.claim(lease, names)
        else:
            failed = ends == "fail"
            assert self.tracker.release(lease, failed=failed)
            self.model.release(lease, failed=failed)

    @precondition(lambda self: self.model.claimed())
    @rule(data=st.data())
    def retire(self, data: st.DataObject) -> None:
        claimed = [lease for lease, name in self.model.leases.items() if name is not None]
        lease = data.draw(st.sampled_from(claimed))
        assert self.tracker.retire(lease)
        self.model.retire(lease)

    @precondition(lambda self: self.model.retired)
    @rule(data=st.data())
    def release_a_retired_lease(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(sorted(self.model.retired)))
        assert self.tracker.release(lease) == self.model.release(lease)

    @precondition(lambda self: self.model.claimed())
    @rule(data=st.data())
    def offer(self, data: st.DataObject) -> None:
        claimed = [lease for lease, name in self.model.leases.items() if name is not None]
        lease = data.draw(st.sampled_from(claimed))
        assert self.tracker.offer(lease)
        self.model.offer(lease)

    @precondition(lambda self: self.model.offered)
    @rule(data=st.data(), cluster=st.booleans())
    def adopt_what_is_offered(self, data: st.DataObject, cluster: bool) -> None:
        name = self.model.leases[data.draw(st.sampled_from(sorted(self.model.offered)))]
        principals = [f"{name}.{CLUSTER}", f"{name}"] if cluster else [f"{name}"]
        assert self.tracker.adopt(principals) == self.model.adopt(principals)

    @rule(principals=principals)
    def adopt(self, principals: list[str]) -> None:
        assert self.tracker.adopt(principals) == self.model.adopt(principals)

    @rule(principals=principals)
    def ask(self, principals: list[str]) -> None:
        name = self.model.resolve(principals)
        assert self.tracker.resolve(principals) == name
        assert self.tracker.is_claimed(principals) == (name in self.model.blocked())

    @rule()
    def next_expiry(self) -> None:
        expiries = [proxy.expiry for proxy in self.model.tracked.values()]
        assert self.tracker.next_expiry == min(expiries, default=None)
        ends = [*self.model.said.values(), *self.model.held.values()]
        assert self.tracker.marks.next_end() == min(ends, default=None)

    @rule()
    def restart(self) -> None:
        tracker = self.fresh()
        tracker.restore(
            proxies=[(*each, self.tracker.ttl_of(each.name)) for each in self.tracker],
            leases=self.tracker.leases,
            last_lease=self.tracker.last_lease,
            connection_count=self.tracker.connection_count,
            marks=self.tracker.marks.by_name,
            offered=[lease for lease in self.tracker.leases if self.tracker.is_offered(lease)],
        )
        before = self.tracker.targets
        tracker.targets.trust = before.trust
        for lease, aim in before.aims.items():
            tracker.aim(lease, aim)
        for name, address in before.by_name.items():
            tracker.put_address(name, address)
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
        marked, terminating = model.marked(), model.terminating()
        assert {name for name in model.tracked if tracker.is_marked(name)} == marked
        assert {name for name in model.tracked if tracker.is_terminating(name)} == terminating
        assert tracker.claimed_terminating_count == len(claimed & terminating)
        kept = model.counted()
        assert tracker.offered_desired_count == len((claimed & desired) - kept)
        assert tracker.replaced == model.replaced()
        missing = model.target() - len(claimed & desired) - len(claimed & terminating)
        assert tracker.missing_count == max(0, missing)
        assert {lease for lease in model.leases if tracker.is_offered(lease)} == model.offered
        self.agree_on_targets()
        for lease, name in model.leases.items():
            assert lease in tracker.leases
            assert tracker.lease_name(lease) == name
            if name is not None:
                assert tracker.holder(name) == lease

    def agree_on_targets(self) -> None:
        targets, model = self.tracker.targets, self.model
        known = {name: (each.text, each.since) for name, each in targets.by_name.items()}
        assert known == model.addresses
        failed = {
            name: (each.failures, each.held)
            for name, each in targets.by_name.items()
            if each.failures
        }
        assert failed == model.failed
        assert targets.aims == model.aims
        assert targets.aimed == {name: lease for lease, (name, _) in model.aims.items()}
        assert targets.trust == (model.failures, model.untargeted, model.judged)
        ends = [end for _, end in model.failed.values() if end is not None]
        assert targets.next_end() == min(ends, default=None)
        assert bool(targets._turns) == bool(model.candidates())


TrackerAgainstModel.TestCase.settings = settings(
    max_examples=200,
    stateful_step_count=50,
    deadline=None,
    report_multiple_bugs=False,  # shrinking each of them takes minutes
    suppress_health_check=[HealthCheck.too_slow],  # a busy machine is no defect
)
TestTrackerAgainstModel = TrackerAgainstModel.TestCase
