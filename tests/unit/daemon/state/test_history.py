"""The history: which events are kept, what the checkpoint holds of them, what comes back."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trackd.state.history import CHUNK, History


def event(revision: int) -> bytes:
    return msgpack.packb((revision, 1.5, 1e9, "kind", {"name": "p1"}))


def events(first: int, count: int) -> list[bytes]:
    return [event(revision) for revision in range(first, first + count)]


def revisions(history: History, after: int = 0, limit: int = 10**9) -> list[int]:
    return [each[0] for each in history.after(after, limit)]


def test_an_event_comes_back_as_it_was() -> None:
    history = History(10)
    history.extend(1, [event(1)])
    assert [list(each) for each in history.after(0, 9)] == [[1, 1.5, 1e9, "kind", {"name": "p1"}]]


def test_without_events_there_is_no_oldest() -> None:
    history = History(10)
    assert (len(history), history.oldest, revisions(history)) == (0, None, [])


def test_as_many_as_were_asked_for_are_kept_and_a_chunk_more_at_the_most() -> None:
    history = History(1000)
    for first in range(1, 5000, 7):
        history.extend(first, events(first, 7))
        assert min(1000, first + 6) <= len(history) <= 1000 + CHUNK
    kept = revisions(history)
    assert kept == list(range(kept[0], 5006))
    assert history.oldest == kept[0]


@given(
    st.integers(1, 500),
    st.lists(st.integers(1, 300), min_size=1, max_size=20),
    st.integers(0, 3000),
    st.integers(1, 400),
)
def test_after_a_revision_come_the_next_ones_in_order(
    most: int, batches: list[int], after: int, limit: int
) -> None:
    history, following = History(most), 1
    for count in batches:
        history.extend(following, events(following, count))
        following += count
    assert history.oldest is not None
    wanted = range(max(after + 1, history.oldest), following)
    assert revisions(history, after, limit) == list(wanted[:limit])


def test_off_it_keeps_nothing() -> None:
    history = History(0)
    assert history.edited_by(1, 5) == []
    history.extend(1, events(1, 5))
    assert len(history) == 0


def test_keeping_less_drops_the_oldest_chunks_and_tells_which() -> None:
    history = History(10 * CHUNK)
    history.extend(1, events(1, 10 * CHUNK))
    dropped = history.dropped_by(CHUNK)
    history.keep(CHUNK)
    assert dropped == [number * CHUNK for number in range(9)]
    assert all(history.chunk(key) is None for key in dropped)
    assert len(history) >= CHUNK
    assert history.dropped_by(0) != []
    history.keep(0)
    assert len(history) == 0


def test_what_begins_after_a_gap_begins_anew() -> None:
    history = History(1000)
    history.extend(1, events(1, 10))
    assert history.edited_by(50, 3) == [0]
    history.extend(50, events(50, 3))
    assert revisions(history) == [50, 51, 52]
    assert history.chunk(0) == [50, events(50, 3)]


@given(st.integers(1, 600), st.lists(st.integers(1, 200), min_size=1, max_size=12))
def test_the_chunks_that_changed_are_enough_to_come_back(most: int, batches: list[int]) -> None:
    history, following = History(most), 1
    stored: dict[int, list[Any]] = {}
    for count in batches:
        edited = history.edited_by(following, count)
        history.extend(following, events(following, count))
        for key in edited:
            chunk = history.chunk(key)
            if chunk is None:
                stored.pop(key, None)
            else:
                stored[key] = chunk
        following += count
    again = History(most)
    for _, (first, chunk) in sorted(stored.items()):
        again.extend(first, chunk)
    assert revisions(again) == revisions(history)
    assert again.oldest == history.oldest


@pytest.mark.parametrize("first", [1, CHUNK - 1, CHUNK, CHUNK + 1])
def test_a_batch_may_span_chunks(first: int) -> None:
    history = History(10 * CHUNK)
    assert len(history.edited_by(first, 3 * CHUNK)) in (3, 4)
    history.extend(first, events(first, 3 * CHUNK))
    assert revisions(history) == list(range(first, first + 3 * CHUNK))
