"""Mentions: which names expire when, compared with a plain dictionary."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trackd.rules.mentions import Mentions

pytestmark = pytest.mark.rule(3)

NAMES = [f"p{i}" for i in range(6)]
messages = st.lists(
    st.tuples(
        st.lists(st.sampled_from(NAMES), min_size=1, max_size=6, unique=True),
        st.sampled_from((1.0, 5.0, 40.0)),
        st.sampled_from((0.0, 0.5, 3.0, 30.0)),
    ),
    max_size=30,
)


@given(messages, st.integers(1, 8))
def test_it_equals_a_plain_dictionary(
    said: list[tuple[list[str], float, float]], most: int
) -> None:
    mentions, model, now = Mentions(), dict[str, float](), 0.0
    for names, ttl, pause in said:
        renewed = mentions.renewable(names)
        if renewed is not None:
            assert mentions.left_by(names) == [renewed.number]
            mentions.renew(renewed.number, now + ttl, ttl, 7)
        else:
            mentions.add(mentions.last + 1, names, now + ttl, ttl, 7)
        model.update(dict.fromkeys(names, now + ttl))
        assert {name: mentions.of(name).expiry for name in model} == model
        assert mentions.next_expiry() == min(model.values())
        now += pause
        late = {name for name, expiry in model.items() if expiry < now}
        assert sorted(mentions.due(now)) == sorted(late)
        while due := mentions.due(now, most):
            assert len(due) <= most
            mentions.drop(due)
            for name in due:
                del model[name]
        assert mentions.left_by(NAMES) == sorted(mentions.by_number)
        living = [name for number in mentions.by_number for name in mentions.living(number)]
        assert sorted(living) == sorted(model)


def test_the_earliest_expire_first() -> None:
    mentions = Mentions()
    mentions.add(1, ["late"], 9.0, 9.0, 0)
    mentions.add(2, ["early"], 3.0, 3.0, 0)
    assert mentions.due(10.0) == ["early", "late"]
    assert mentions.due(10.0, 1) == ["early"]


def test_the_same_names_renew_a_mention_and_others_do_not() -> None:
    mentions = Mentions()
    mentions.add(1, ["p1", "p2"], 5.0, 5.0, 0)
    assert mentions.renewable(["p1", "p2"]) is mentions.by_number[1]
    assert mentions.renewable(["p2", "p1"]) is None
    assert mentions.renewable(["p1"]) is None
    assert mentions.renewable([]) is None
    mentions.add(2, ["p2"], 6.0, 6.0, 0)
    assert mentions.renewable(["p1", "p2"]) is None, "p2 has left it"


def test_a_mention_that_most_names_have_left_forgets_them() -> None:
    mentions = Mentions()
    mentions.add(1, [f"p{i}" for i in range(100)], 5.0, 5.0, 0)
    for i in range(60):
        mentions.add(2 + i, [f"p{i}"], 9.0, 9.0, 0)
    assert len(mentions.by_number[1].names) <= 50
    assert mentions.by_number[1].left == 40


def test_mentions_that_went_are_dropped_when_they_outnumber_the_others_by_64() -> None:
    """The first expiry of those that stay is still known."""
    mentions = Mentions()
    expiries = [20.0, 50.0, 10.0, 40.0, 30.0]
    for number, expiry in enumerate(expiries, 1):
        mentions.add(number, [f"s{number}"], expiry, 1.0, 0)
    sizes = []
    for number in range(6, 78):
        mentions.add(number, ["p"], 1.0, 1.0, 0)
        sizes.append(len(mentions._heap))
    most = 2 * 6 + 64
    assert sizes == [*range(6, most + 1), 6]
    mentions.drop(["p"])
    for expiry in sorted(expiries):
        assert mentions.next_expiry() == expiry
        (name,) = mentions.due(expiry + 1.0)
        mentions.drop([name])
    assert mentions.next_expiry() is None


@pytest.mark.parametrize(("names", "left", "kept"), [(32, 15, 15), (32, 16, 32), (31, 15, 31)])
def test_a_mention_of_many_names_lets_go_of_those_that_left_when_they_are_most(
    names: int, left: int, kept: int
) -> None:
    mentions = Mentions()
    all_names = [f"p{number}" for number in range(names)]
    mentions.add(1, all_names, 10.0, 1.0, 0)
    mentions.drop(all_names[left:])
    assert (mentions.of("p0").left, len(mentions.of("p0").names)) == (left, kept)
    assert mentions.living(1) == all_names[:left]


def test_names_know_their_mention_and_who_sent_it() -> None:
    mentions = Mentions()
    assert mentions.last == 0
    mentions.add(3, ["a", "b", "a"], 10.0, 4.0, 7)
    mentions.add(5, ["c"], 11.0, 5.0, 8)
    assert mentions.last == 5
    first, second = mentions.of("a"), mentions.get("c")
    assert second is not None
    assert (first.number, first.names, first.left, first.by) == (3, ["a", "b"], 2, 7)
    assert (second.number, second.names, second.left, second.by) == (5, ["c"], 1, 8)
    assert (first.expiry, first.ttl) == (10.0, 4.0)
    assert mentions.get("b") is first
    assert mentions.get("d") is None
    with pytest.raises(KeyError):
        mentions.of("d")
    assert mentions.left_by(["c", "d", "b", "a"]) == [3, 5]
    mentions.renew(3, 12.0, 6.0, 9)
    assert (first.expiry, first.ttl, first.by) == (12.0, 6.0, 9)
    assert mentions.next_expiry() == 11.0


def test_no_more_names_are_due_than_are_asked_for() -> None:
    mentions = Mentions()
    mentions.add(1, ["a", "b"], 1.0, 1.0, 0)
    mentions.add(2, ["c", "d", "e", "f"], 2.0, 1.0, 0)
    mentions.add(3, ["g"], 3.0, 1.0, 0)
    assert mentions.due(9.0, 2) == ["a", "b"]
    assert mentions.due(9.0, 3) == ["a", "b", "c"]
    assert mentions.due(9.0, 7) == ["a", "b", "c", "d", "e", "f", "g"]
    assert mentions.due(2.0, 7) == ["a", "b"], "an expiry is passed after it"


def test_a_mention_that_is_renewed_for_as_long_as_before_takes_no_more_room() -> None:
    mentions = Mentions()
    mentions.add(1, ["a"], 5.0, 5.0, 0)
    for _ in range(10):
        mentions.renew(1, 5.0, 5.0, 0)
    assert len(mentions._heap) == 1
    mentions.renew(1, 4.0, 5.0, 0)
    assert (len(mentions._heap), mentions.next_expiry()) == (2, 4.0)
    assert mentions.due(4.5) == ["a"]


def test_who_keeps_the_names_of_a_mention_shares_its_list() -> None:
    mentions = Mentions()
    names = ["a", "b"]
    assert mentions.shared(names) is names
    mentions.add(1, names, 5.0, 5.0, 7)
    shared = mentions.shared(names)
    assert shared is mentions.of("a").names
    assert mentions.renewable(shared) is mentions.of("a")
    for others in (["b", "a"], ["a"], ["a", "b", "c"], ["c"]):
        assert mentions.shared(others) is others
    mentions.add(2, ["b"], 5.0, 5.0, 7)
    assert mentions.shared(names) is names
    assert mentions.renewable(shared) is None
