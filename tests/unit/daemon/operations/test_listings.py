"""Listings: long tables in pages, with rows that come and go between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest

from trackd.operations.listings import IDLE_SECONDS, MOST_BYTES, Listings, Page
from trackd.sessions.identity import Peer

READER = Peer(uid=1000, gid=1000, pid=10)


def begin(
    listings: Listings, of: str, base: int, keys: Iterable[Any], peer: Peer = READER, now: float = 0
) -> list[int]:
    return listings.begin(peer, of, base, keys, now)


def page_of(
    listings: Listings,
    of: str,
    cursor: Sequence[int],
    limit: int,
    row: Callable[[Any], dict[str, Any] | None],
    peer: Peer = READER,
    now: float = 0,
) -> Page | None:
    return listings.page(peer, of, cursor, limit, row, now)


def reads_on(listings: Listings, cursor: Sequence[int], peer: Peer = READER) -> bool:
    """Return whether a listing is under way."""
    return page_of(listings, "things", cursor, 1, lambda _: {}, peer) is not None


def test_pages_follow_one_another_to_the_end() -> None:
    listings = Listings()
    cursor: list[int] | None = begin(listings, "things", 7, range(10))
    seen: list[int] = []
    while cursor is not None:
        page = page_of(listings, "things", cursor, 4, lambda key: {"key": key})
        assert page is not None
        assert (page.listing.base, len(page.listing.keys)) == (7, 10)
        seen += [row["key"] for row in page.rows]
        cursor = page.cursor
    assert seen == list(range(10))


def test_what_is_no_more_is_left_out_and_what_is_new_does_not_show() -> None:
    table: dict[str, int] = dict.fromkeys("abcd", 1)
    listings = Listings()
    cursor = begin(listings, "letters", 1, table)
    del table["b"]
    table["e"] = 1

    def row(key: str) -> dict[str, Any] | None:
        return {"key": key} if key in table else None

    page = page_of(listings, "letters", cursor, 10, row)
    assert page is not None
    assert [each["key"] for each in page.rows] == ["a", "c", "d"]


def test_an_empty_listing_is_one_page() -> None:
    listings = Listings()
    page = page_of(listings, "things", begin(listings, "things", 1, ()), 10, lambda _: {})
    assert page is not None
    assert (page.rows, page.cursor) == ([], None)


def test_a_listing_that_is_over_or_of_something_else_has_no_page() -> None:
    listings = Listings()
    cursor = begin(listings, "things", 1, range(3))
    assert page_of(listings, "others", cursor, 9, lambda _: {}) is None
    assert page_of(listings, "things", [cursor[0] + 1, 0], 9, lambda _: {}) is None
    assert page_of(listings, "things", cursor, 9, lambda _: {}) is not None
    assert page_of(listings, "things", cursor, 9, lambda _: {}) is None


def test_a_cursor_beyond_the_end_finds_nothing() -> None:
    listings = Listings()
    number, _ = begin(listings, "things", 1, range(3))
    page = page_of(listings, "things", [number, 2**64 - 1], 9, lambda key: {"key": key})
    assert page is not None
    assert (page.rows, page.cursor) == ([], None)


def test_a_process_that_abandons_listings_loses_its_own_and_the_oldest_first() -> None:
    listings = Listings()
    first = begin(listings, "things", 1, range(3))
    second = begin(listings, "things", 1, range(3))
    assert reads_on(listings, first)  # so that the second one is the oldest
    last = second
    while second[0] in listings._open:
        last = begin(listings, "things", 1, range(3))
        assert last[0] < 1000
    assert not reads_on(listings, second)
    assert reads_on(listings, first)
    assert reads_on(listings, last)


@pytest.mark.parametrize(
    "greedy", [Peer(uid=1000, gid=1000, pid=11), Peer(uid=2000, gid=2000, pid=11)]
)
@pytest.mark.parametrize(("size", "count"), [(2, 200), (500_000, 30)])
def test_what_a_process_abandons_costs_another_one_nothing(
    greedy: Peer, size: int, count: int
) -> None:
    listings = Listings()
    mine = [begin(listings, "things", 1, [0] * size) for _ in range(3)]
    for _ in range(count):
        begin(listings, "things", 1, [0] * size, greedy)
        assert listings._size <= MOST_BYTES
    assert all(reads_on(listings, cursor) for cursor in mine)


def test_the_processes_of_one_user_take_no_listing_of_another_user() -> None:
    listings = Listings()
    mine = [begin(listings, "things", 1, range(2)) for _ in range(3)]
    for pid in range(200):
        begin(listings, "things", 1, range(2), Peer(uid=2000, gid=2000, pid=pid))
    assert all(reads_on(listings, cursor) for cursor in mine)


def test_long_lists_make_room_sooner_than_short_ones() -> None:
    listings = Listings()
    keys = [0] * 1_000_000
    cursors = [begin(listings, "things", 1, keys) for _ in range(10)]
    assert [reads_on(listings, cursor) for cursor in cursors] == [False] * 3 + [True] * 7


def test_one_list_beyond_all_bounds_is_read_while_it_is_the_only_one() -> None:
    listings = Listings()
    old = begin(listings, "things", 1, range(2))
    long = begin(listings, "things", 1, [0] * (MOST_BYTES // 8))
    assert reads_on(listings, long)
    assert not reads_on(listings, old)


def test_only_the_process_that_began_a_listing_reads_it() -> None:
    listings = Listings()
    cursor = begin(listings, "things", 1, range(3))
    other = Peer(uid=1000, gid=1000, pid=11)
    assert page_of(listings, "things", [cursor[0], 3], 9, lambda _: {}, other) is None
    assert reads_on(listings, cursor)


def test_a_listing_ends_when_nobody_reads_on() -> None:
    listings = Listings()
    assert listings.next_idle() is None
    cursor = begin(listings, "things", 1, range(3), now=1.0)
    assert page_of(listings, "things", cursor, 1, lambda _: {}, now=11.0) is not None
    assert listings.next_idle() == 11.0 + IDLE_SECONDS
    listings.drop_idle(10.0 + IDLE_SECONDS)
    assert reads_on(listings, cursor)
    listings.drop_idle(11.0 + IDLE_SECONDS)
    assert not reads_on(listings, cursor)
    assert listings._size == 0
