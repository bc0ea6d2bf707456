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
