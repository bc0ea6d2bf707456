"""The damper against a tracker that hears all: what the leader knows is exact but for expiries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trackd.fleet.damping import GRACE, Damper
from trackd.rules.tracker import Tracker
from trackd_client.proxy import Proxy
from trackd_client.wire.checks import addresses_of, check_row, terminating_of
from trackd_client.wire.errors import ProtocolError

DEFAULT_TTL = 160.0
MAX_TTL = 320.0

Row = list[Any]


def row(name: str = "p", group: str = "", generation: int = 1, ttl: float | None = 100.0) -> Row:
    return [name, group, generation, ttl]


def damper(**settings: int) -> Damper:
    return Damper(DEFAULT_TTL, MAX_TTL, **settings)


def tell(one: Damper, rows: Sequence[Any], now: float) -> list[Any]:
    """Return what is due; the leader takes it in at once."""
    due = one.due(rows, now)
    one.settle(due, now, taken=True)
    return due.rows


# --- examples ------------------------------------------------------------------------------------


def test_a_mention_that_repeats_is_due_after_a_quarter_of_its_ttl() -> None:
    one = damper()
    assert tell(one, [row()], 0.0) == [row()]
    assert [t for t in range(1, 101) if tell(one, [row()], float(t))] == [25, 50, 75, 100]


def test_rows_are_judged_one_by_one_and_stay_as_they_were_received() -> None:
    one = damper()
    first = [row("a"), row("b", ttl=None), row("c", ttl=0)]
    assert tell(one, first, 0.0) == first
    assert tell(one, [*first, row("d")], 1.0) == [row("d")]
    assert tell(one, first, 25.0) == [row("a")]
    assert tell(one, first, 40.0) == first[1:]


@pytest.mark.parametrize(
    "news",
    [
        row(group="g"),
        row(generation=2),
        row(generation=0),
        row(ttl=1.0),  # how a proxy is withdrawn
        row(ttl=126.0),
        [*row(), {"terminating": True}],
        [*row(), {"terminating": False}],
        [*row(), {"address": "10.0.0.1:22"}],
        [*row(), {"address": ""}],
    ],
)
def test_news_are_due_at_once_and_once(news: Row) -> None:
    one = damper()
    tell(one, [row()], 0.0)
    assert tell(one, [news], 0.125) == [news]
    assert tell(one, [news], 0.25) == []


@pytest.mark.parametrize(
    "same", [row(), row(ttl=90.0), row(ttl=110.0), [*row(), {}], [*row(), 7], [*row(), {"x": 1}]]
)
def test_what_is_no_news_is_not_due(same: Row) -> None:
    one = damper()
    tell(one, [row()], 0.0)
    assert tell(one, [same], 1.0) == []


def test_a_mark_lives_as_long_as_it_is_said_whatever_others_say_of_the_name() -> None:
    one = damper()
    marked = [*row(), {"terminating": True}]
    assert tell(one, [marked], 0.0) == [marked]
    assert tell(one, [row()], 25.0) == [row()]
    assert tell(one, [marked], 26.0) == [marked]  # its mark would have ended at 100
    assert tell(one, [marked, row()], 50.0) == []


def test_after_its_expiry_or_a_move_nothing_counts_that_was_said_of_a_name() -> None:
    one = damper()
    full = [*row(), {"terminating": True, "address": "a:1"}]
    tell(one, [full], 0.0)
    assert tell(one, [row()], 101.0) == [row()]
    assert tell(one, [full], 102.0) == [full]
    assert tell(one, [row(generation=2)], 103.0) == [row(generation=2)]
    full[2] = 2
    assert tell(one, [full], 104.0) == [full]


def test_of_a_name_that_is_there_twice_the_last_row_counts() -> None:
    one = damper()
    tell(one, [row()], 0.0)
    assert tell(one, [row(generation=2), row()], 1.0) == []
    assert tell(one, [row(), row(generation=2)], 2.0) == [row(generation=2)]


def test_a_ttl_that_the_leader_lowers_counts_as_it_lowers_it() -> None:
    one = damper()
    assert tell(one, [row(ttl=1e12)], 0.0)
    assert tell(one, [row(ttl=1e12)], MAX_TTL * GRACE - 1) == []
    assert tell(one, [row(ttl=1e12)], MAX_TTL * GRACE)


def test_what_was_refused_or_changed_elsewhere_is_due_again() -> None:
    one = damper()
    tell(one, [row("a"), row("b")], 0.0)
    one.forget(["a", "never heard of"])
    assert tell(one, [row("a"), row("b")], 1.0) == [row("a")]
    one.clear()
    assert tell(one, [row("a"), row("b")], 2.0) == [row("a"), row("b")]


def test_what_is_on_its_way_is_due_for_all_until_the_leader_has_taken_it_in() -> None:
    one = damper()
    first = one.due([row("a"), row("b")], 0.0)
    assert one.due([row("b"), row("c")], 1.0).rows == [row("b"), row("c")]
    one.settle(first, 2.0, taken=True)
    assert one.due([row("a"), row("b"), row("c")], 3.0).rows == [row("c")]


def test_where_mentions_come_faster_than_the_leader_answers_the_first_one_counts() -> None:
    one = damper()
    first = one.due([row()], 0.0)
    others = [one.due([row()], float(now)) for now in range(1, 5)]
    assert [other.rows for other in others] == [[row()]] * 4
    one.settle(first, 5.0, taken=True)
    assert one.due([row()], 6.0).rows == []
    for other in others:
        one.settle(other, 7.0, taken=False)
    assert one.due([row()], 8.0).rows == []


@pytest.mark.parametrize("news", [row(generation=2), row(ttl=1.0), [*row(), {"terminating": True}]])
def test_what_differs_from_what_is_on_its_way_counts_in_its_place(news: Row) -> None:
    one = damper()
    first, last = one.due([row()], 0.0), one.due([news], 0.125)
    one.settle(first, 0.25, taken=True)
    assert len(one) == 0
    one.settle(last, 0.25, taken=True)
    assert one.due([news], 0.25).rows == []


def test_what_was_told_before_does_not_count_while_something_else_is_on_its_way() -> None:
    one = damper()
    tell(one, [row()], 0.0)
    moved = one.due([row(generation=2)], 1.0)
    assert one.due([row()], 2.0).rows == [row()]
    one.settle(moved, 3.0, taken=True)
    assert one.due([row(generation=2)], 4.0).rows == [row(generation=2)]


def test_what_was_refused_or_is_lost_stays_due_and_takes_no_room() -> None:
    one = damper()
    for now in range(3):
        due = one.due([row()], float(now))
        assert due.rows == [row()]
        one.settle(due, now + 0.5, taken=False)
    assert len(one) == 0
    assert one._waits == {}
    assert tell(one, [row()], 3.0) == [row()]
    assert one.due([row()], 4.0).rows == []


@pytest.mark.parametrize("forget", [lambda one: one.forget(["p"]), Damper.clear])
def test_what_has_moved_while_it_was_on_its_way_stays_due(forget: Callable[[Damper], None]) -> None:
    one = damper()
    first = one.due([row()], 0.0)
    forget(one)
    one.settle(first, 1.0, taken=True)
    assert one.due([row()], 2.0).rows == [row()]


def test_what_is_lost_says_nothing_of_what_comes_after() -> None:
    one = damper()
    tell(one, [[*row(), {"terminating": True, "address": "a:1"}]], 0.0)
    one.settle(one.due([[*row(), {"terminating": False}]], 1.0), 2.0, taken=False)
    assert tell(one, [row()], 2.0) == [row()]
    assert tell(one, [[*row(), {"address": "a:1"}]], 3.0)
    assert tell(one, [[*row(), {"terminating": True}]], 4.0)


def test_a_name_that_expires_before_it_would_be_heard_again_is_named() -> None:
    one = damper()
    tell(one, [row("a"), row("b"), row("c")], 0.0)
    due = one.due([row("a", ttl=14.0), row("b", ttl=16.0), row("c", generation=2, ttl=1.0)], 10.0)
    assert due.sooner == ["a", "c"]


@pytest.mark.parametrize(
    "wrong", [None, [], row("")[:3], row(""), row(generation=-1), row(ttl=1e999)]
)
def test_a_message_that_the_leader_would_refuse_is_an_error_and_changes_nothing(wrong: Any) -> None:
    one = damper()
    with pytest.raises(ProtocolError):
        tell(one, [row("a"), wrong], 0.0)
    assert tell(one, [row("a")], 0.0) == [row("a")]


@pytest.mark.parametrize(
    "wrong",
    [
        ["p", "", True, 100.0],
        ["p", "", 1.0, 100.0],
        ["p", "", 1, float("nan")],
        ["p", "", 1, float("inf")],
        ["p", "", 1, "100"],
        ["p", "", 1, True],
        ("p", "", 1, 100.0),
    ],
)
def test_a_row_that_only_looks_like_a_known_one_is_an_error_as_well(wrong: Any) -> None:
    one = damper()
    tell(one, [row()], 0.0)
    with pytest.raises(ProtocolError):
        tell(one, [wrong], 1.0)


def test_memory_is_bounded_and_what_is_not_remembered_is_always_due() -> None:
    one = damper(most=3)
    known = [row(name) for name in "abc"]
    assert tell(one, known, 0.0) == known
    for time in (1.0, 2.0):
        assert tell(one, [*known, row("d")], time) == [row("d")]
        assert len(one) == 3
    # Names that the leader has let expire make room.
    assert tell(one, [row("d")], 101.0) == [row("d")]
    assert tell(one, [row("d")], 102.0) == []
    assert len(one) == 1


def test_a_flood_of_names_looks_for_room_once_and_not_for_each() -> None:
    one = damper(most=1000)
    tell(one, [row(str(i)) for i in range(1000)], 0.0)
    remembered = one._told
    tell(one, [row(f"more {i}") for i in range(1000)], 1.0)
    looked = one._told
    assert looked is not remembered
    tell(one, [row(f"more {i}") for i in range(1000)], 2.0)
    assert one._told is looked


# --- against a tracker that hears all ------------------------------------------------------------


class Leader:
    """A tracker, fed as the daemon feeds it."""

    def __init__(self, grace: float) -> None:
        self.now = 0.0
        self.grace = grace
        self.tracker = Tracker("c", DEFAULT_TTL * (1 + grace), lambda: self.now)

    def hear(self, rows: Sequence[Row], now: float) -> None:
        self.now = now
        checked = [check_row(each, i, 255) for i, each in enumerate(rows)]
        longer = [
            (name, group, generation, ttl and min(ttl, MAX_TTL) * (1 + self.grace))
            for name, group, generation, ttl in checked
        ]
        self.tracker.track_rows(longer, terminating_of(rows), addresses_of(rows))
        self.tracker.sweep()

    def sweep(self, now: float) -> None:
        self.now = now
        self.tracker.sweep()

    def expiries(self) -> dict[str, float]:
        return {each.name: each.expiry for each in self.tracker}

    def places(self) -> dict[str, tuple[str, int]]:
        return {each.name: (each.group, each.generation) for each in self.tracker}

    def marked(self) -> dict[str, float]:
        marks = self.tracker.marks.by_name
        return {name: each.said for name, each in marks.items() if each.said is not None}

    def addresses(self) -> dict[str, str]:
        return {name: each.text for name, each in self.tracker.targets.by_name.items()}


said = st.one_of(
    st.none(),
    st.fixed_dictionaries(
        {},
        optional={
            "terminating": st.sampled_from([True, True, False, 3]),
            "address": st.sampled_from(["", "a:1", "b:1", " "]),
        },
    ),
)


def make_row(
    name: str, group: str, generation: int, ttl: float | None, more: dict[str, Any] | None
) -> Row:
    made = [name, group, generation, ttl]
    return made if more is None else [*made, more]


# Of times that floats hold exactly, also a quarter of each.
rows = st.builds(
    make_row,
    st.sampled_from("pppq"),
    st.sampled_from(["", *[""] * 8, "g"]),
    st.sampled_from([1] * 9 + [2]),
    st.sampled_from([16] * 9 + [None, 0, 1, 4, 16.0, 20, 40, 400]),
    said,
)
messages = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.25, 1.0, 2.0, 3.0, 3.75, 4.0, 5.0, 9.0, 16.0, 40.0, 79.0]),
        st.lists(rows, min_size=1, max_size=2),
    ),
    max_size=40,
)


@settings(max_examples=400)
@given(messages)
def test_with_the_grace_the_leader_expires_nothing_before_one_that_hears_all(
    messages: list[tuple[float, list[Row]]],
) -> None:
    one, all_heard, damped = damper(), Leader(0.0), Leader(GRACE)
    now = 0.0
    for seconds, message in messages:
        now += seconds
        all_heard.hear(message, now)
        damped.hear(tell(one, message, now), now)
        assert all_heard.places().items() <= damped.places().items()
        for name, until in all_heard.marked().items():
            assert damped.marked()[name] >= until
        assert all_heard.addresses().items() <= damped.addresses().items()
        for name, word in terminating_of(message).items():
            assert (name in damped.marked()) == word
        for name, address in addresses_of(message).items():
            assert damped.addresses().get(name, "") == address


@settings(max_examples=400)
@given(messages)
def test_without_it_what_the_leader_knows_is_wrong_by_less_than_a_quarter_of_the_ttl(
    messages: list[tuple[float, list[Row]]],
) -> None:
    one, all_heard, damped = damper(), Leader(0.0), Leader(0.0)
    now, ttls = 0.0, dict[str, float]()
    for seconds, message in messages:
        now += seconds
        all_heard.hear(message, now)
        damped.hear(tell(one, message, now), now)
        ttls |= {each[0]: min(each[3] or DEFAULT_TTL, MAX_TTL) for each in message}
        right, found = all_heard.expiries(), damped.expiries()
        for name, expiry in right.items():
            if name in found:
                assert abs(found[name] - expiry) < GRACE * ttls[name]
                assert damped.places()[name] == all_heard.places()[name]
            else:
                assert expiry - GRACE * ttls[name] < now
        for name in found.keys() - right.keys():
            assert found[name] < now + GRACE * ttls[name]


@given(st.integers(1, 30), st.sampled_from([16.0, 100.0, None]), st.integers(1, 5))
def test_while_a_name_is_mentioned_in_time_it_never_expires_and_four_times_a_ttl_are_enough(
    interval: int, ttl: float | None, sources: int
) -> None:
    used = ttl or DEFAULT_TTL
    one, leader = damper(), Leader(0.0)
    told, now = 0, 0.0
    for i in range(60):
        now = i * interval * used / 31
        for _ in range(sources):
            due = tell(one, [row(ttl=ttl)], now)
            told += len(due)
            leader.sweep(now)
            leader.hear(due, now)
        assert leader.expiries()
    assert told <= 1 + now / (used * GRACE)


def test_a_thousand_messages_of_a_thousand_names_are_one() -> None:
    one = damper()
    message = [row(f"p{i}") for i in range(1000)]
    told = sum(len(tell(one, message, i / 1000)) for i in range(1000))
    assert told == 1000


def test_the_public_proxy_says_what_the_wire_says() -> None:
    proxy = Proxy("p", "g", 3, ttl=5.0)
    assert row("p", "g", 3, 5.0) == [proxy.name, proxy.group, proxy.generation, proxy.ttl]
