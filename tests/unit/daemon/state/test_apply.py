"""What each change makes of the state, where no larger test would notice, and what does not fit."""

from __future__ import annotations

from typing import Any

import pytest

from trackd.rules.marks import Mark
from trackd.rules.targets import Address, Aim
from trackd.rules.tombstones import GroupTombstone
from trackd.sessions.sessions import EXPIRED_LEASES
from trackd.state import changes
from trackd.state.apply import apply
from trackd.state.changes import META, Change
from trackd.state.sources import Source
from trackd.state.state import State

TOKEN, OTHER = b"t" * 16, b"u" * 16
AT, WALL = 100.0, 1e9


def opened(token: bytes = TOKEN, number: int = 1, **fields: Any) -> changes.SessionOpened:
    about = {"name": "n", "version": "1", "labels": {}, "command": "c"} | fields
    return changes.SessionOpened(token, number, 1000, 1001, 42, 7, **about)


def state_after(*done: Change) -> State:
    """Return a state with one session, after more changes."""
    state = State("example.com", dial_rate=1.0, dial_burst=9)
    do(state, opened(), *done)
    return state


def do(state: State, *done: Change) -> None:
    for change in done:
        apply(state, change, AT, WALL)


def granted(*leases: int, token: bytes = TOKEN) -> list[changes.Granted]:
    return [changes.Granted(lease, token, 1, "need") for lease in leases]


def test_a_start_and_its_settings_are_kept() -> None:
    state = state_after(changes.EpochBegan(3, "id", "example.com", 7, 5, None, "1.0", 42))
    assert (state.epoch, state.tracker_id, state.cluster) == (3, "id", "example.com")
    assert (state.configured_count, state.tracker.connection_count) == (5, 7)
    do(state, changes.Configured(6), changes.CountSet(8, 7), changes.Probed())
    assert (state.configured_count, state.tracker.connection_count) == (6, 8)
    do(state, changes.DialSpent(2.5, 90.0))
    assert state.budget.level() == (2.5, 90.0)


def test_a_session_is_what_its_client_said() -> None:
    state = state_after(opened(OTHER, 2, labels={"a": "b"}))
    one, two = state.sessions
    assert (one.labels, two.labels) == ({}, {"a": "b"})
    assert (two.opened, two.wall, two.name, two.version, two.command) == (AT, WALL, "n", "1", "c")
    assert two.peer == (1000, 1001, 42, "")


@pytest.mark.parametrize("same", [{"token": TOKEN, "number": 2}, {"token": OTHER, "number": 1}])
def test_a_session_begins_once(same: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="there already"):
        do(state_after(), opened(**same))


@pytest.mark.parametrize(
    "left", [granted(1), [changes.Parked(TOKEN, 1, 1, None, 1)]], ids=["leases", "waiters"]
)
def test_a_session_ends_after_all_that_it_has(left: list[Change]) -> None:
    end = changes.SessionEnded(TOKEN, 1, "closed", "n", 42, 7, 1000, (), None)
    state = state_after(*left)
    with pytest.raises(ValueError, match="still has leases or waits"):
        do(state, end)
    done = [
        changes.Released(1, 1, None, "released", None)
        if left[0] == granted(1)[0]
        else changes.Unparked(TOKEN, 1, served=False)
    ]
    do(state, *done, end)
    assert (len(state.sessions), len(state.queue)) == (0, 0)
    assert state.sessions.ended[TOKEN][:3] == ("closed", AT, 1000)
    do(state, changes.EndedDropped((TOKEN,)))
    assert state.sessions.ended == {}


def test_what_a_session_is_done_with_is_known_with_and_without_replies_that_it_covers() -> None:
    state = state_after(
        changes.Replied(TOKEN, 1, b"one", None, [], ()),
        changes.Replied(TOKEN, 2, b"two", None, [1, 1], (1,)),
    )
    session = state.sessions.by_token[TOKEN]
    assert (session.done.ranges, list(session.replies)) == ([1, 1], [2])
    do(state, changes.Replied(TOKEN, 5, b"five", 9, [1, 1, 3, 4], ()))
    assert (session.done.ranges, list(session.replies)) == ([1, 1, 3, 4], [2, 5])
    do(state, changes.Acknowledged(TOKEN, [1, 5], (2, 5)))
    assert (session.done.ranges, list(session.replies)) == ([1, 5], [])


def test_those_who_wait_and_what_is_held_count_for_their_user() -> None:
    state = state_after(
        changes.Parked(TOKEN, 1, 1, None, 4), changes.Parked(TOKEN, 2, 2, None, 5), *granted(1, 2)
    )
    use = state.sessions.by_token[TOKEN].use
    assert (use.waiters, use.leases) == (2, 2)
    do(state, changes.Unparked(TOKEN, 1, served=False))
    assert (use.waiters, state.queue.last_served) == (1, 0)
    do(state, changes.Unparked(TOKEN, 2, served=True))
    assert (use.waiters, state.queue.last_served) == (0, 5)
    do(state, changes.Claimed(1, 1, "p", ("p.example.com", "p")))
    assert state.leases[1].principals == ("p.example.com", "p")
    assert list(state.in_flight) == [2]
    do(state, changes.Released(1, 1, "p", "released", None))
    assert (use.leases, dict(state.tracker.leases)) == (1, {2: None})
    do(state, changes.Released(2, 1, None, "released", None))
    assert (use.leases, state.leases, list(state.in_flight)) == (0, {}, [])


def test_notices_wait_in_their_order_until_they_are_fetched() -> None:
    state = state_after(changes.Notified(TOKEN, {"n": 1}), changes.Notified(TOKEN, {"n": 2}))
    session = state.sessions.by_token[TOKEN]
    assert session.notices == [{"n": 1}, {"n": 2}]
    do(state, changes.Fetched(TOKEN))
    assert list(session.notices) == []


def test_each_event_raises_the_revision() -> None:
    state = state_after()
    assert state.revision == 1, "a session began"
    do(state, tracked(("a", "g", 1, None), ("b", "g", 1, None)), changes.Probed())
    assert state.revision == 3


def test_a_lease_that_is_not_the_next_one_does_not_fit() -> None:
    with pytest.raises(ValueError, match="not the next one"):
        do(state_after(), *granted(2))


def test_a_name_is_claimed_once() -> None:
    state = state_after(*granted(1, 2), changes.Claimed(1, 1, "p", ()))
    with pytest.raises(ValueError, match="claimed already"):
        do(state, changes.Claimed(2, 1, "p", ()))


def test_a_lease_takes_another_name_instead_of_the_untracked_one_that_it_holds() -> None:
    held: list[Change] = [changes.Claimed(1, 1, "a", ()), changes.Claimed(2, 1, "b", ())]
    held += [changes.Claimed(3, 1, "c", ()), tracked(("b", "g", 1, None))]
    state = state_after(*granted(1, 2, 3), *held)
    for lease, before in ((1, "x"), (2, "b")):
        with pytest.raises(ValueError, match="does not hold"):
            do(state, changes.Renamed(lease, 1, "new", before))
    with pytest.raises(ValueError, match="claimed already"):
        do(state, changes.Renamed(1, 1, "c", "a"))
    do(state, changes.Renamed(1, 1, "new", "a"))
    assert state.tracker.leases == {1: "new", 2: "b", 3: "c"}


def test_the_oldest_leases_that_never_claimed_are_forgotten() -> None:
    state = state_after()
    for lease in range(1, EXPIRED_LEASES + 3):
        do(state, changes.ClaimTimedOut(TOKEN, lease))
    expired = state.sessions.by_token[TOKEN].expired
    assert expired == set(range(3, EXPIRED_LEASES + 3))


def tracked(*rows: tuple[str, str, int, float | None]) -> changes.Tracked:
    return changes.Tracked(1, 7, 30.0, rows, tuple(range(len(rows))), ())


def test_gossip_is_kept_with_its_source_and_until_its_ttl_is_over() -> None:
    rows = [("a", "g", 1, None), ("b", "g", 1, 0.0), ("c", "g", 1, 0.5), ("d", "g", 1, 1.0)]
    state = state_after(tracked(*rows))
    tracker = state.tracker
    assert {each.name: each.expiry - AT for each in tracker} == {
        "a": 30.0,
        "b": 30.0,
        "c": 0.5,
        "d": 1.0,
    }
    assert tracker.source_of("g") == 7
    assert tracker.mentions.of("a").by == 7
    numbers = tuple(tracker.mentions.by_number)
    with pytest.raises(ValueError, match="zip"):
        do(state, changes.RenewedEach(numbers, 8, (5.0,)))
    do(state, changes.RenewedEach(numbers, 8, (5.0,) * len(numbers)))
    assert {each.expiry - AT for each in tracker} == {5.0}
    assert tracker.mentions.of("a").by == 8


def test_further_gossip_moves_proxies_and_puts_their_expiry_off() -> None:
    state = state_after(tracked(("a", "g", 1, None), ("b", "g", 1, None)))
    tracker = state.tracker
    (number,) = tracker.mentions.by_number
    do(state, changes.Renewed(number, 8, 40.0))
    assert [each.expiry - AT for each in tracker] == [40.0, 40.0]
    do(state, changes.Mentioned(5, 9, 50.0, ("b",), ()))
    assert {each.name: each.expiry - AT for each in tracker} == {"a": 40.0, "b": 50.0}
    assert (tracker.mentions.of("b").number, tracker.mentions.of("b").by) == (5, 9)
    rows = (("b", "g", 1, None), ("a", "h", 2, None))
    do(state, changes.Tracked(6, 7, 30.0, rows, ((1, "g", 1),), (number, 5)))
    assert (tracker.place("a"), tracker.place("b")) == (("h", 2), ("g", 1))
    do(state, changes.Expired((("b", "g", 1),), ()))
    assert [each.name for each in tracker] == ["a"]


def test_tombstones_make_room_for_others() -> None:
    state = state_after(tracked(("a", "g", 1, None), ("b", "g", 2, None), ("c", "h", 1, None)))
    do(state, changes.Forgotten("a", "g", 1, 200.0, (), (), None))
    do(state, changes.Forgotten("b", "g", 2, 201.0, (), ("a",), None))
    assert list(state.tombstones) == [("b", ("g", 2, 201.0))]
    do(state, changes.GroupForgotten("h", 1, 1, 300.0, (("c", 1),), (), (), None))
    assert state.tombstones.get_group("h") == GroupTombstone(1, 1, 300.0)
    assert state.tracker.tracked_count == 0
    do(state, changes.GroupForgotten("i", 1, 2, 300.0, (), (), ("h",), None))
    assert state.tombstones.get_group("h") is None
    do(state, changes.TombstonesDropped(("b",), ("i",)))
    assert len(state.tombstones) == 0


def test_sources_that_ended_make_room_for_others() -> None:
    state = state_after(changes.SourceRemembered(1, 1000, 42, "agent", ()))
    assert state.sources.get(1) == Source(1000, 42, "agent")
    do(state, changes.SourceRemembered(2, 1000, 43, "agent", (1,), "h"))
    assert state.sources.get(1) is None
    assert state.sources.get(2) == Source(1000, 43, "agent", "h")


def test_marks_and_addresses_are_those_of_the_last_change() -> None:
    state = state_after(
        tracked(("a", "g", 1, None), ("b", "g", 1, None)),
        changes.Marked(7, (("a", 150.0, None),), (("a", True),)),
        changes.Addressed(7, (("a", "a:1", 1000, 5.0, 1, 120.0), ("b", "b:1", 1000, 5.0)), ()),
        changes.TargetsTrusted(2, 6, 1),
        changes.DialFailed(1, 1, "refused", None),
    )
    tracker = state.tracker
    assert tracker.marks.by_name == {"a": Mark(150.0, None)}
    assert tracker.targets.by_name == {
        "a": Address("a:1", 1000, 5.0, 1, 120.0),
        "b": Address("b:1", 1000, 5.0),
    }
    assert tracker.targets.trust == (2, 6, 1)
    assert state.reports_outcomes is True
    do(state, changes.Marked(None, (("a", None, None),), (("a", False),)))
    do(state, changes.Addressed(None, (("a",),), ()))
    assert (tracker.marks.by_name, list(tracker.targets.by_name)) == ({}, ["b"])


def test_an_aim_has_a_name_and_an_address() -> None:
    state = state_after(*granted(1), changes.Aimed(1, "p", "p:1"))
    assert state.tracker.target_of(1) == Aim("p", "p:1")
    do(state, changes.Aimed(1, None, None))
    assert state.tracker.target_of(1) is None


def test_a_lease_reports_for_the_first_time_once() -> None:
    state = state_after(*granted(1), changes.ReportsBegan(1))
    for lease in (1, 2):
        with pytest.raises(ValueError, match="gone, or has reported"):
            do(state, changes.ReportsBegan(lease))
    do(state, changes.LeaseStale(1, 1, None))
    assert state.lives.stale == 1
    do(state, changes.Released(1, 1, None, "stale", None))
    assert state.lives.stale == 0


def test_a_session_offers_one_lease_at_a_time() -> None:
    state = state_after(*granted(1, 2))
    do(
        state,
        changes.Claimed(1, 1, "p", ()),
        changes.Claimed(2, 1, "q", ()),
        changes.Offered(1, 1, "p"),
    )
    with pytest.raises(ValueError, match="offers lease 1 already"):
        do(state, changes.Offered(2, 1, "q"))
    do(state, changes.Released(1, 1, "p", "released", None), changes.Offered(2, 1, "q"))
    assert state.sessions.by_token[TOKEN].offered == 2
    assert state.tracker.is_offered(2)


@pytest.mark.parametrize("token", [None, TOKEN])
def test_a_pause_is_that_of_the_host_or_of_one_session(token: bytes | None) -> None:
    pause = changes.Paused(token, 1, 2, 130.0, "refused", None, 1000, 42, "agent")
    state = state_after(*granted(1), pause)
    session = state.sessions.by_token[TOKEN]
    backoff = state.backoff if token is None else session.backoff
    assert backoff is not None
    assert backoff.pause == (2, 130.0, 1, "refused", None, 1, 1000, 42, "agent", "")
    assert set(pause.edits()) == ({META} if token is None else {META, ("pause", token)})
    assert list(state.paused) == ([] if token is None else [token])
    assert (session.backoff is None) == (token is None)
    do(state, changes.Resumed(token, None, "asked", None))
    assert (state.backoff.pause, session.backoff, state.paused) == (None, None, {})
