"""The bookkeeping of a pool, with leases that belong to no daemon."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from trackd_client import BadPayload, Policy, PoolEvent, PoolStats, Proxy
from trackd_client.core.conversation import Conversation, Session
from trackd_client.core.dial import Dial
from trackd_client.core.discovery import read_gossip
from trackd_client.core.lease import BaseLease
from trackd_client.core.pool_core import PoolCore, replace_until
from trackd_client.errors import (
    CUT_OFF,
    Code,
    DaemonAbsent,
    InvalidRequest,
    SessionLost,
    StoreUnavailable,
    TrackerClosed,
)
from trackd_client.policy import Change
from trackd_client.sync.lease import Flag
from trackd_client.wire.clock import boottime

STILL = Policy(failed_base=0.0, duplicate_step=0.0, sticky_after=3)


class NoTracker:
    """What a pool and its leases use of a tracker.

    Attributes:
        released: the leases that were released without waiting for the daemon's reply.
    """

    def __init__(self) -> None:
        self._conversation = Conversation(cluster=None, name=None, labels=None, clock=boottime)
        self.released: list[object] = []

    def _release_later(self, lease: object) -> None:
        self.released.append(lease)


NO_TRACKER: Any = NoTracker()


class BareLease(BaseLease):
    """A lease and its events, without a tracker."""

    lost: Flag
    should_close: Flag

    def __init__(self, number: int) -> None:
        super().__init__(NO_TRACKER, Session(b""), {"lease": number}, None)
        self.lost = Flag()
        self.should_close = Flag()

    def claims(self, name: str) -> None:
        """Be told that a claim succeeded."""
        self._take_claim({"claimed": True, "name": name})

    def meets(self, name: str | None, **hint: object) -> None:
        """Be told that a claim failed: another lease holds the proxy, or the names mean none."""
        reason = "held" if name else "unresolved"
        self._take_claim({"claimed": False, "name": name, "reason": reason, **hint})

    def sees(self, name: str, **hint: object) -> None:
        """Be told that another lease holds the proxy that is being dialled."""
        self._take_claimed({"claimed": True, "name": name, **hint})


class Core(PoolCore[BareLease]):
    """A pool that dials nothing."""

    def __init__(
        self,
        policy: Policy = STILL,
        *,
        dials: int = 2,
        tunnels: int | None = None,
        hook: Callable[[PoolEvent], None] | None = None,
        alive: Callable[[BareLease], object] | None = None,
    ) -> None:
        self.told: list[PoolEvent] = []
        self.changes = 0
        super().__init__(
            NO_TRACKER,
            max_concurrent_dials=dials,
            max_tunnels=tunnels,
            policy=policy,
            on_event=hook or self.told.append,
            drain_timeout=None,
            alive=alive,
        )
        self.followed: list[Dial[BareLease]] = []

    def _changed(self) -> None:
        self.changes += 1

    def _spawn(self, dial: Dial[BareLease]) -> None:
        raise RuntimeError("no room")

    def _follow(self, dial: Dial[BareLease]) -> None:
        self.followed.append(dial)

    def begin(self, number: int = 1) -> Dial[BareLease]:
        return self._begin(BareLease(number))

    def end(self, dial: Dial[BareLease], error: BaseException | None = None) -> None:
        self._end(dial, error)
        self._gone(dial)

    def kinds(self) -> list[Change]:
        return [event.change for event in self.told]


def test_a_dial_that_claims_and_closes_is_told_and_counted() -> None:
    core = Core(Policy(stayed_up=0.0))
    dial = core.begin(7)
    assert core.stats() == PoolStats(dialling=1, dials=1)
    dial.lease.claims("p1")
    assert core.stats() == PoolStats(connected=1, dials=1, claims=1)
    core.end(dial)
    assert core.stats() == PoolStats(dials=1, claims=1)
    assert [(e.change, e.lease, e.name) for e in core.told] == [
        (Change.CONNECTING, 7, None),
        (Change.CLAIMED, 7, "p1"),
        (Change.CLOSED, 7, "p1"),
    ]


def test_a_dial_that_reaches_nobody_is_a_failure_with_its_error() -> None:
    core = Core()
    error = OSError("no route")
    core.end(core.begin(3), error)
    assert core.stats() == PoolStats(dials=1, failures=1)
    assert core.kinds() == [Change.CONNECTING, Change.FAILED, Change.BACKING_OFF]
    assert core.told[1].error is error


def test_principals_that_name_nothing_are_a_failure_not_a_duplicate() -> None:
    core = Core()
    dial = core.begin()
    dial.lease.meets(None)
    core.end(dial)
    assert (core.stats().failures, core.stats().duplicates) == (1, 0)


def test_a_dial_that_met_a_claimed_proxy_and_then_claimed_another_is_no_duplicate() -> None:
    core = Core(Policy(stayed_up=0.0))
    dial = core.begin()
    dial.lease.meets("p1")
    dial.lease.claims("p2")
    core.end(dial)
    assert (core.stats().duplicates, core.stats().claims) == (0, 1)


def test_a_connection_lost_at_once_is_a_failure_unless_it_was_asked_to_close() -> None:
    core = Core(Policy(failed_base=0.0, stayed_up=1000.0))
    dial = core.begin()
    dial.lease.claims("p1")
    core.end(dial)
    assert core.stats().failures == 1
    assert core.kinds()[-2:] == [Change.CLOSED, Change.BACKING_OFF]
    dial = core.begin()
    dial.lease.claims("p1")
    dial.lease.should_close.set()
    core.end(dial)
    assert core.stats().failures == 1
    assert core.kinds()[-1] == Change.CLOSED


def test_a_connection_that_stayed_up_ends_the_counting_of_failures() -> None:
    core = Core(Policy(stayed_up=0.0, failed_base=0.0))
    core.end(core.begin())
    core.end(core.begin())
    assert core._pace.failures == 2
    dial = core.begin()
    dial.lease.claims("p1")
    core.end(dial)
    assert core._pace.failures == 0


def test_a_sticky_balancer_is_reported_once_for_each_time_that_it_is() -> None:
    core = Core()
    for time in (1, 2):
        reported = 0
        for _ in range(5):
            dial = core.begin()
            dial.lease.meets("p1")
            core.end(dial)
            if core._is_suspicious():
                core._judge({"desired": 2, "missing_count": 2, "missing": ["p2"]})
                reported += 1
        assert reported == 1
        assert core.stats().sticky == time
        dial = core.begin()
        dial.lease.claims("p2")
        dial.lease.should_close.set()
        core.end(dial)
    sticky = [event for event in core.told if event.change is Change.STICKY]
    assert [(event.name, event.missing) for event in sticky] == [("p1", ("p2",))] * 2


@pytest.mark.parametrize("way", ["meets", "sees"])
def test_a_pool_dials_one_at_a_time_while_the_daemon_says_that_the_balancer_is_sticky(
    monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    core = Core(Policy(duplicate_step=0.0, sticky_after=3), dials=4)
    monkeypatch.setattr(core._conversation, "features", frozenset({"hints"}))

    def meet(**hint: object) -> None:
        dial = core.begin()
        getattr(dial.lease, way)("p1", **hint)
        core.end(dial)
        if core._is_suspicious():
            core._judge({"desired": 6, "missing_count": 1, "missing": ["p6"]})

    for hint in ({}, {"hint": {"balancer": "even", "in_a_row": 40}}, {"hint": "sticky"}) * 10:
        meet(**hint)
    assert core.stats().sticky == 0
    for in_a_row in (2, None, 3, 4):  # the policy wants 3
        meet(hint={"balancer": "sticky", "in_a_row": in_a_row})
        assert core.stats().sticky == (in_a_row in {3, 4})
    assert core._pause() > 0
    assert core._may_dial()
    core.begin()
    assert not core._may_dial(), "another dial meets the same proxy"
    meet()
    assert core._may_dial(), "another agent has claimed its proxy meanwhile"
    sticky = [event for event in core.told if event.change is Change.STICKY]
    assert [(event.name, event.missing) for event in sticky] == [("p1", ("p6",))]


@pytest.mark.rule(20)
@pytest.mark.parametrize(("explained", "sticky"), [({}, 1), ({"offered": 1}, 0)])
def test_dials_for_one_offered_tunnel_among_many_are_no_sign_of_a_sticky_balancer(
    explained: dict[str, int], sticky: int
) -> None:
    core = Core()
    for _ in range(10):
        dial = core.begin()
        dial.lease.meets("p1")
        core.end(dial)
    core._judge({"desired": 30, "missing_count": 0, "missing": [], **explained})
    assert core.stats().sticky == sticky


@pytest.mark.rule(20)
def test_a_drain_that_replaces_first_keeps_tunnels_open_and_ends_dials(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    core = Core(dials=3)
    monkeypatch.setattr(core._conversation, "features", frozenset({"offers"}))
    first, second, dialling = core.begin(1), core.begin(2), core.begin(3)
    first.lease.claims("p1")
    second.lease.claims("p2")
    core._begin_drain(replace_first=True)
    assert [bool(each.lease.should_close) for each in (first, second, dialling)] == [0, 0, 1]
    assert core._may_dial(), "the dispatcher must wake, and find that the pool ends"
    assert core._next_to_replace() is first
    first.lease.should_close.set()
    assert core._next_to_replace() is second
    core._begin_drain()
    assert second.lease.should_close
    assert core._next_to_replace() is None


@pytest.mark.rule(20)
def test_an_older_daemon_replaces_no_tunnel() -> None:
    core = Core()
    dial = core.begin(1)
    dial.lease.claims("p1")
    core._begin_drain(replace_first=True)
    assert core._next_to_replace() is None


@pytest.mark.rule(20)
def test_a_part_of_the_time_of_a_drain_is_for_closing() -> None:
    assert replace_until(None) is None
    for seconds, kept in ((8.0, 2.0), (20.0, 5.0), (60.0, 5.0)):
        before = boottime()
        until = replace_until(seconds)
        assert until is not None
        assert before - 0.001 <= until - seconds + kept <= boottime() + 0.001


def test_room_for_a_dial_is_made_by_a_claim_and_by_an_end() -> None:
    core = Core(dials=2)
    first, second = core.begin(1), core.begin(2)
    assert not core._may_dial()
    first.lease.claims("p1")
    assert core._may_dial()
    core.begin(3)
    assert not core._may_dial()
    core.end(second)
    assert core._may_dial()


def test_while_it_drains_nothing_is_a_failure_and_nothing_waits_for_room() -> None:
    core = Core(dials=1)
    dial = core.begin()
    core._begin_drain()
    assert core._may_dial(), "whoever waits for room is to see that it drains"
    core.end(dial, OSError())
    assert core.stats().failures == 0
    assert Change.FAILED not in core.kinds()


def test_the_daemons_own_pause_wins_over_the_policy() -> None:
    core = Core(Policy(failed_base=1000.0, failed_cap=1000.0))
    core._refused(StoreUnavailable("no", "unavailable", 0.25))
    assert core.stats().pause == 0.25
    assert 0.0 < core._pause() <= 0.25
    core._refused(DaemonAbsent("gone"))
    assert core._pace.failures == 1


def test_the_longest_of_several_pauses_is_kept() -> None:
    core = Core()
    core._back_off(1000.0)
    core._back_off(1.0)
    assert core._pause() > 900.0


def test_lost_tunnels_are_those_that_claimed_until_they_are_adopted_or_given_up() -> None:
    core = Core()
    dials = [core.begin(number) for number in range(1, 5)]
    for number, dial in enumerate(dials[:3]):
        dial.lease.claims(f"p{number}")
    for dial in dials[1:]:
        dial.lease.lost.set()
    assert core._lost_dials() == dials[1:3]
    again = BareLease(9)
    core._adopted(dials[1], again)
    core._adopted(dials[2], None)
    assert core._lost_dials() == []
    assert dials[2].lease.should_close
    again.should_close.set()
    assert dials[1].lease.should_close, "the dial hears it by the lease that it knows"
    again.lost.set()
    assert core._lost_dials() == [dials[1]], "a second time"


def test_a_hook_that_raises_is_logged_and_stops_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def hook(event: PoolEvent) -> None:
        raise ZeroDivisionError

    core = Core(hook=hook)
    dial = core.begin()
    dial.lease.claims("p1")
    core.end(dial)
    assert core.stats().connected == 0
    assert core._dials == {}
    assert "ZeroDivisionError" in caplog.text


def test_stats_are_a_copy() -> None:
    core = Core()
    core.stats().dials = 100
    assert core.stats().dials == 0


def test_there_are_never_more_dials_than_wanted_claimed_ones_included() -> None:
    core = Core(tunnels=2, dials=4)
    first, second = core.begin(), core.begin(2)
    assert not core._may_dial()
    second.lease.claims("p1")
    assert not core._may_dial(), "it has claimed, and is a tunnel still"
    core._end(first, None)
    assert not core._may_dial(), "its leases are still to be released"
    core._gone(first)
    assert core._may_dial()


def test_counts_hold_when_many_threads_dial() -> None:
    core = Core(Policy(stayed_up=0.0, sticky_after=10**9, duplicate_step=0.0), dials=8)

    def dial(seed: int) -> None:
        for number in range(300):
            dial = core.begin(number + 1)
            if number % 2:
                dial.lease.claims("p")
            else:
                dial.lease.meets("p")
            core.end(dial)

    threads = [threading.Thread(target=dial, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = core.stats()
    assert (stats.dials, stats.claims, stats.duplicates) == (1200, 600, 600)
    assert (stats.dialling, stats.connected, len(core._dials)) == (0, 0, 0)


def test_gossip_is_proxies_and_teleports_json_in_any_mixture() -> None:
    said = '{"proxies":[{"version":"v2","metadata":{"name":"p2"},"gid":"g","ggen":4}]}'
    assert read_gossip([Proxy("p1"), said, said.encode()]).proxies == [
        Proxy("p1"),
        Proxy("p2", group="g", generation=4),
        Proxy("p2", group="g", generation=4),
    ]
    with pytest.raises(BadPayload):
        read_gossip([Proxy("p1"), "nonsense"])


def test_an_exception_of_a_dial_leaves_one_line_of_its_kind_in_a_while(
    caplog: pytest.LogCaptureFixture,
) -> None:
    core = Core()
    for number in range(1, 21):
        core.end(core.begin(number), TypeError("no such field"))
        core.end(core.begin(100 + number), OSError("no route"))
        core.end(core.begin(200 + number), SessionLost("its tracker says so"))
    mistake, trouble = caplog.records
    assert mistake.getMessage() == "the dial with lease 1 raised TypeError('no such field')"
    assert mistake.exc_info, "the traceback shows where the mistake is"
    assert trouble.getMessage() == "the dial with lease 101 raised OSError('no route')"
    assert not trouble.exc_info


def test_a_daemon_that_is_away_leaves_one_line_of_its_kind_in_a_while(
    caplog: pytest.LogCaptureFixture,
) -> None:
    core = Core()
    for _ in range(20):
        assert core._goes_on(DaemonAbsent("nobody listens"))
        assert core._goes_on(StoreUnavailable("the disk is full"))
    assert caplog.messages == [
        "no lease for now: nobody listens",
        "no lease for now: the disk is full",
    ]


def test_a_lease_that_is_granted_when_its_dial_has_ended_is_given_back() -> None:
    core = Core()
    dial = core.begin()
    dial.lease.claims("p1")
    dial.lease.lost.set()
    assert core._lost_dials() == [dial]
    first, second = BareLease(2), BareLease(3)
    assert core._adopted(dial, first)
    assert core._leases_of(dial) == [dial.lease, first]
    assert not core._adopted(dial, second)
    assert core._leases_of(dial) == [dial.lease, first]
    assert NO_TRACKER.released[-1] is second


def test_a_lease_that_cannot_be_used_is_given_back() -> None:
    core = Core()
    lease = BareLease(4)
    with pytest.raises(RuntimeError, match="no room"):
        core._use(lease)
    assert NO_TRACKER.released[-1] is lease
    assert core.kinds() == [Change.CONNECTING]
    core._back_off(1000.0)
    other = BareLease(5)
    core._use(other)
    assert NO_TRACKER.released[-1] is other
    assert core.stats().dials == 1, "it dials with none before its pause is over"


def test_a_pool_ends_with_its_tracker_and_goes_on_after_all_else() -> None:
    core = Core()
    assert core._goes_on(SessionLost("gone"))
    assert core.told == [], "what was lost is adopted at once"
    assert core._goes_on(DaemonAbsent("none"))
    assert core.kinds() == [Change.BACKING_OFF]
    assert not core._goes_on(TrackerClosed("closed"))
    assert core._ends(TrackerClosed("closed"))
    assert not core._ends(MemoryError())
    core._begin_drain()
    assert core._goes_on(TrackerClosed("closed")), "the drain ends it"


def test_a_tunnel_is_given_up_when_its_host_is_cut_off() -> None:
    core = Core()
    dial = core.begin()
    dial.lease.claims("p1")
    dial.lease.lost.set()
    error = StoreUnavailable("no leader", Code.UNAVAILABLE)
    assert not core._abandon(dial, error), "it is adopted later"
    error.reason = CUT_OFF
    assert core._abandon(dial, error)
    assert dial.lease.should_close.is_set()
    assert core._lost_dials() == []


def test_a_tunnel_abandon_when_no_later_try_can_adopt_it() -> None:
    core = Core()
    dial = core.begin()
    dial.lease.claims("p1")
    assert not core._abandon(dial, DaemonAbsent("none"))
    assert not dial.lease.should_close
    assert core._abandon(dial, InvalidRequest("no"))
    assert dial.lease.should_close


def test_a_pool_must_be_allowed_one_dial() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Core(dials=0)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
