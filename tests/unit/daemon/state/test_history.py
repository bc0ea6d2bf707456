"""The history: which events are kept, what the checkpoint holds of them, what comes back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trackd.state.history import CHUNK, EVENT_BYTES, History, pack

HOUR = 3600.0


def event(revision: int) -> bytes:
    return pack((revision, 1.5, 1e9, "kind", {"name": "p1"}))


def events(first: int, count: int) -> list[bytes]:
    return [event(revision) for revision in range(first, first + count)]


def sized(revision: int, size: int) -> bytes:
    """Return an event of so many bytes: 300 to 60,000."""

    def named(length: int) -> bytes:
        return pack((revision, 0.0, 1e9, "proxy_claimed", {"name": "x" * length}))

    return named(256 + size - len(named(256)))


def revisions(history: History, after: int = 0, limit: int = 10**9) -> list[int]:
    return [each[0] for each in history.after(after, limit)]


def test_an_event_comes_back_as_it_was() -> None:
    history = History(10)
    history.extend(1, [event(1)])
    assert [list(each) for each in history.after(0, 9)] == [[1, 1.5, 1e9, "kind", {"name": "p1"}]]


def test_the_newest_events_are_those_that_were_kept() -> None:
    history = History(1000)
    history.extend(1, events(1, 3 * CHUNK))
    for after in (0, 1, CHUNK - 1, CHUNK, 3 * CHUNK - 1, 3 * CHUNK, 3 * CHUNK + 5):
        assert list(history.newest(after)) == events(1, 3 * CHUNK)[after:]
    history.keep(10)
    assert history.oldest is not None
    assert list(history.newest(0)) == events(history.oldest, 3 * CHUNK + 1 - history.oldest)


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
    assert history.extend(1, events(1, 5)) == []
    assert len(history) == 0


def test_keeping_less_drops_the_oldest_chunks_and_tells_which() -> None:
    history = History(10 * CHUNK)
    history.extend(1, events(1, 10 * CHUNK))
    dropped = history.keep(CHUNK)
    assert dropped == [number * CHUNK for number in range(9)]
    assert all(history.chunk(key) is None for key in dropped)
    assert len(history) >= CHUNK
    assert history.keep(0) != []
    assert len(history) == 0


def test_what_begins_after_a_gap_begins_anew() -> None:
    history = History(1000)
    history.extend(1, events(1, 10))
    assert history.extend(50, events(50, 3)) == [0]
    assert revisions(history) == [50, 51, 52]
    assert history.chunk(0) == [50, events(50, 3)]


@pytest.mark.parametrize("known", [1, 2, 5])
def test_events_that_are_known_already_are_passed_over(known: int) -> None:
    history = History(1000)
    history.extend(1, events(1, 5))
    history.extend(6 - known, events(6 - known, known + 3))
    assert list(history.newest(0)) == events(1, 8)


def test_a_chunk_is_dropped_as_soon_as_enough_events_follow_it() -> None:
    history = History(CHUNK)
    history.extend(1, events(1, 2 * CHUNK - 2))
    assert history.oldest == 1
    history.extend(2 * CHUNK - 1, events(2 * CHUNK - 1, 1))
    assert (history.oldest, len(history)) == (CHUNK, CHUNK)


@pytest.mark.parametrize(("last", "oldest"), [(511, 1), (512, 1), (513, CHUNK)])
def test_fewer_events_are_kept_when_they_are_above_512_bytes_on_average(
    last: int, oldest: int
) -> None:
    history = History(2 * CHUNK)
    history.extend(1, [sized(revision, 512) for revision in range(1, 2 * CHUNK)])
    history.extend(2 * CHUNK, [sized(2 * CHUNK, last)])
    assert history.oldest == oldest


def test_events_that_were_dropped_take_no_room() -> None:
    history = History(2 * CHUNK)
    for first in range(1, 20 * CHUNK, CHUNK):
        history.extend(first, [sized(first + number, 340) for number in range(CHUNK)])
    assert len(history) >= 2 * CHUNK


def test_a_reply_ends_once_its_bytes_are_used_up() -> None:
    newest, older = History(1000), History(1000, HOUR)
    for history in (newest, older):
        history.extend(1, [sized(revision, 1024) for revision in range(1, 301)])
    older.extend(1000, events(1000, 1))  # after a gap
    for found in (newest.after(0, 1000), older.after(0, 1000, older=True)):
        assert len(found) == 256, "256 KiB"
    for most_bytes, count in ((0, 0), (1, 1), (2047, 2), (2048, 2), (2049, 3)):
        assert len(newest.after(0, 1000, most_bytes)) == count
        assert len(older.after(0, 1000, most_bytes, older=True)) == count


@given(st.integers(1, 600), st.lists(st.integers(1, 200), min_size=1, max_size=12))
def test_the_chunks_that_changed_are_enough_to_come_back(most: int, batches: list[int]) -> None:
    history, following = History(most), 1
    stored: dict[int, list[Any]] = {}
    for count in batches:
        for key in history.extend(following, events(following, count)):
            chunk = history.chunk(key)
            if chunk is None:
                stored.pop(key, None)
            else:
                stored[key] = chunk
        following += count
    again = History(most)
    again.restore(
        {
            first + number: packed
            for first, chunk in stored.values()
            for number, packed in enumerate(chunk)
        }
    )
    assert revisions(again) == revisions(history)
    assert again.oldest == history.oldest


@pytest.mark.parametrize("first", [1, CHUNK - 1, CHUNK, CHUNK + 1])
def test_a_batch_may_span_chunks(first: int) -> None:
    history = History(10 * CHUNK)
    changed = history.extend(first, events(first, 3 * CHUNK))
    assert len(changed) in (3, 4)
    assert revisions(history) == list(range(first, first + 3 * CHUNK))


# -- older events ------------------------------------------------------------------------

#: Kinds of events with the fields that decide how long they are kept.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "grant": ("lease_granted", {"lease": 1}),
    "lost": ("lease_released", {"lease": 1, "name": None}),
    "claim": ("proxy_claimed", {"name": "p1"}),
    "end": ("lease_released", {"lease": 1, "name": "p1"}),
    "session": ("session_opened", {"session": 1}),
    "gossip": ("proxy_tracked", {"name": "p1"}),
}


class Diary:
    """A history with a clock and a checkpoint, both of which a test moves."""

    def __init__(self, most: int, age: float) -> None:
        self.history = History(most, age)
        self.now, self.revision = 0.0, 0
        self.stored: dict[int, list[Any]] = {}

    def add(self, *names: str) -> None:
        packed = [
            pack((self.revision + number, self.now, 1e9, *KINDS[name]))
            for number, name in enumerate(names, 1)
        ]
        self.store(self.history.extend(self.revision + 1, packed, self.now))
        self.revision += len(names)

    def store(self, keys: list[int]) -> None:
        """Write the changed chunks to the checkpoint, as the store does."""
        for key in keys:
            chunk = self.history.chunk(key)
            if chunk is None:
                self.stored.pop(key, None)
            else:
                self.stored[key] = [chunk[0], *(list(part) for part in chunk[1:])]

    def restored(self) -> History:
        """Return what a restart makes of the checkpoint."""
        again = History(self.history.most, self.history.age)
        newest = {
            first + number: packed
            for first, events, *_ in self.stored.values()
            for number, packed in enumerate(events)
        }
        older = {key: value[2:] for key, value in self.stored.items() if value[2:]}
        again.restore(newest, older, self.now)
        return again

    def kinds(self) -> list[str]:
        return [each[3] for each in self.history.after(0, 10**9, 10**9, older=True)]


def everything(history: History) -> list[Any]:
    return history.after(0, 10**9, 10**9, older=True)


def test_lost_dials_push_out_only_lost_dials() -> None:
    diary = Diary(2 * CHUNK, HOUR)
    diary.add("session", "gossip", "grant", "claim")
    for _ in range(50 * CHUNK):
        diary.add("grant", "lost")
    diary.add("end")
    older = [kind for kind in diary.kinds() if kind != "lease_granted"]
    assert older[:3] == ["session_opened", "proxy_tracked", "proxy_claimed"]
    assert diary.history.oldest is not None
    assert diary.history.oldest > 90 * CHUNK
    first = revisions(diary.history)
    assert first == list(range(diary.history.oldest, diary.revision + 1)), "without a gap"


def test_sessions_and_gossip_push_out_no_claims() -> None:
    diary = Diary(2 * CHUNK, HOUR)
    diary.add(*["claim", "end"] * 20)
    diary.add(*["session"] * 1000, *["gossip"] * 1000, *["grant", "lost"] * 1000)
    kinds = diary.kinds()
    assert kinds.count("proxy_claimed") == 20
    assert kinds.count("session_opened") == kinds.count("proxy_tracked") == CHUNK
    diary.add(*["claim"] * 1000)
    assert diary.kinds().count("lease_released") < 1000, "but claims push out older claims"
    assert len(diary.kinds()) <= 3 * CHUNK + 2 * CHUNK + CHUNK


def test_older_events_end_by_their_age_and_the_newest_do_not() -> None:
    diary = Diary(CHUNK, HOUR)
    diary.add("claim", *["lost"] * 4 * CHUNK)
    assert "proxy_claimed" in diary.kinds()
    diary.now = 2 * HOUR
    assert len(diary.kinds()) > CHUNK, "nothing happens, and nothing is dropped"
    diary.add("claim", *["lost"] * 4 * CHUNK)
    assert diary.kinds().count("proxy_claimed") == 1
    diary.store(diary.history.keep(CHUNK, 0.0, diary.now))
    assert "proxy_claimed" not in diary.kinds()
    assert everything(diary.restored()) == everything(diary.history)


def test_a_gap_makes_older_events_of_those_before_it() -> None:
    diary = Diary(1000, HOUR)
    diary.add("claim", "grant")
    diary.revision += 10
    diary.add("claim")
    assert [each[0] for each in everything(diary.history)] == [1, 13]
    assert (diary.history.oldest, revisions(diary.history)) == (13, [13])
    assert everything(diary.restored()) == everything(diary.history)


def test_older_events_come_in_parts_too() -> None:
    diary = Diary(CHUNK, HOUR)
    diary.add(*["claim", "session", "gossip", "lost"] * CHUNK)
    whole = everything(diary.history)
    parts: list[Any] = []
    while part := diary.history.after(parts[-1][0] if parts else 0, 7, older=True):
        assert len(part) <= 7
        parts += part
    assert parts == whole
    assert len(diary.history.after(0, 10**9, 1, older=True)) == 1, "a reply ends by its bytes"


def test_the_history_is_bounded_in_bytes() -> None:
    history = History(10 * CHUNK, HOUR)
    for first in range(1, 200 * CHUNK, CHUNK):
        large = [
            pack((revision, 0.0, 1e9, "proxy_claimed", {"name": "x" * 10_000}))
            for revision in range(first, first + CHUNK)
        ]
        history.extend(first, large)
    kept = sum(len(pack(event)) for event in everything(history))
    assert kept <= 10 * CHUNK * EVENT_BYTES * 1.5 + CHUNK * 10_100
    assert history.oldest is not None
    assert revisions(history)[-1] == first + CHUNK - 1


def test_sessions_gossip_and_all_others_have_a_share_each() -> None:
    shares = [
        ["proxy_claimed", "lease_waits"],
        ["session_opened", "session_ended"],
        ["proxy_tracked", "proxy_changed", "proxy_marked", "proxy_addressed", "proxy_expired"],
    ]
    kinds = [kind for share in shares for kind in share]
    packed = [pack((number, 0.0, 1e9, kind, {})) for number, kind in enumerate(kinds, 1)]
    history = History(1000, HOUR)
    history.extend(1, packed)
    history.extend(1000, events(1000, 1))  # after a gap
    assert history.chunk(0) == [1000, [], packed[:2], packed[2:4], packed[4:]]


@pytest.mark.parametrize(("last", "dropped"), [(512, []), (513, [0])])
def test_a_share_is_bounded_in_bytes_and_says_which_chunks_changed(
    last: int, dropped: list[int]
) -> None:
    history = History(2 * CHUNK, HOUR)
    history.extend(1, [sized(revision, 512) for revision in range(1, CHUNK)])
    history.extend(CHUNK, [sized(CHUNK, last)])
    history.extend(1000, events(1000, 1))  # after a gap
    assert history.keep(2 * CHUNK, HOUR) == dropped
    assert len(everything(history)) == CHUNK + 1 - len(dropped)


def test_an_older_event_is_kept_for_all_of_the_age() -> None:
    diary = Diary(1000, HOUR)
    diary.add("claim")
    diary.revision += 10
    diary.add("claim")
    assert diary.history.keep(1000, HOUR, HOUR) == []
    assert diary.history.keep(1000, HOUR, HOUR + 0.5) == [0]
    assert [each[0] for each in everything(diary.history)] == [12]


def test_without_a_time_no_event_is_too_old() -> None:
    history = History(CHUNK, 0.5)
    history.extend(1, [sized(revision, 300) for revision in range(1, 2 * CHUNK)])
    kept, chunk = everything(history), history.chunk(0)
    assert len(kept) == CHUNK // 2 + CHUNK
    assert history.keep(CHUNK, 0.5) == []
    assert chunk is not None
    again = History(CHUNK, 0.5)
    again.restore(dict(enumerate(history.newest(0), CHUNK)), {0: chunk[2:]})
    assert everything(again) == kept


def test_an_older_event_that_is_among_the_newest_comes_once() -> None:
    """Its chunk may be newer in the checkpoint than what the journal begins with."""
    history = History(1000, HOUR)
    history.restore({}, {0: [events(1, 2), [], []]})
    history.extend(1, events(1, 3))
    assert [each[0] for each in everything(history)] == [1, 2, 3]


def test_a_restart_brings_older_events_into_their_order() -> None:
    history = History(1000, HOUR)
    history.restore({1: event(1), 300: event(300)}, {2 * CHUNK: [[event(260)], [], []]})
    assert [each[0] for each in everything(history)] == [1, 260, 300]
    assert (history.oldest, revisions(history)) == (300, [300])


def test_older_events_in_a_wrong_number_of_shares_are_refused() -> None:
    for shares in (2, 4):
        with pytest.raises(ValueError, match="zip"):
            History(1000, HOUR).restore({}, {0: [[event(1)]] * shares})


@given(
    st.integers(1, 600),
    st.lists(
        st.tuples(st.lists(st.sampled_from(sorted(KINDS)), min_size=1), st.integers(1, 90)),
        max_size=12,
    ),
    st.lists(st.integers(0, 2000), max_size=3),
)
def test_a_restart_keeps_older_events(
    most: int, batches: list[tuple[list[str], int]], waits: list[int]
) -> None:
    diary = Diary(most, HOUR)
    for number, (names, times) in enumerate(batches):
        diary.add(*names * times)
        diary.now += waits[number] if number < len(waits) else 1
        again = diary.restored()
        diary.store(diary.history.keep(most, HOUR, diary.now))
        assert everything(again) == everything(diary.history)
        assert again.oldest == diary.history.oldest
