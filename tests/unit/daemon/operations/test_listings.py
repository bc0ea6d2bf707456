"""Listings: long tables in pages, with rows that come and go between them."""

from __future__ import annotations

from typing import Any

from trackd.operations.listings import _MOST, Listings


def test_pages_follow_one_another_to_the_end() -> None:
    listings = Listings()
    cursor: list[int] | None = listings.begin("things", 7, range(10))
    seen: list[int] = []
    while cursor is not None:
        page = listings.page("things", cursor, 4, lambda key: {"key": key})
        assert page is not None
        assert (page.listing.base, len(page.listing.keys)) == (7, 10)
        seen += [row["key"] for row in page.rows]
        cursor = page.cursor
    assert seen == list(range(10))


def test_what_is_no_more_is_left_out_and_what_is_new_does_not_show() -> None:
    table: dict[str, int] = dict.fromkeys("abcd", 1)
    listings = Listings()
    cursor = listings.begin("letters", 1, table)
    del table["b"]
    table["e"] = 1

    def row(key: str) -> dict[str, Any] | None:
        return {"key": key} if key in table else None

    page = listings.page("letters", cursor, 10, row)
    assert page is not None
    assert [each["key"] for each in page.rows] == ["a", "c", "d"]


def test_an_empty_listing_is_one_page() -> None:
    listings = Listings()
    page = listings.page("things", listings.begin("things", 1, ()), 10, lambda _: {})
    assert page is not None
    assert (page.rows, page.cursor) == ([], None)


def test_a_listing_that_is_over_or_of_something_else_has_no_page() -> None:
    listings = Listings()
    cursor = listings.begin("things", 1, range(3))
    assert listings.page("others", cursor, 9, lambda _: {}) is None
    assert listings.page("things", [cursor[0] + 1, 0], 9, lambda _: {}) is None
    assert listings.page("things", cursor, 9, lambda _: {}) is not None
    assert listings.page("things", cursor, 9, lambda _: {}) is None


def test_a_cursor_beyond_the_end_finds_nothing() -> None:
    listings = Listings()
    number, _ = listings.begin("things", 1, range(3))
    page = listings.page("things", [number, 2**64 - 1], 9, lambda key: {"key": key})
    assert page is not None
    assert (page.rows, page.cursor) == ([], None)


def test_those_that_nobody_reads_on_make_room() -> None:
    listings = Listings()
    first = listings.begin("things", 1, range(3))
    second = listings.begin("things", 1, range(3))
    for _ in range(_MOST - 2):
        listings.begin("things", 1, range(3))
    assert listings.page("things", first, 1, lambda _: {}) is not None  # in use
    listings.begin("things", 1, range(3))
    assert listings.page("things", second, 1, lambda _: {}) is None
    assert listings.page("things", first, 1, lambda _: {}) is not None
