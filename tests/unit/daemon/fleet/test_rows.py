"""How a fleet's store stands in etcd: keys that sort, rows small enough, buckets that stay."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from trackd.fleet.clock import Stamp
from trackd.fleet.rows import (
    BUCKETS,
    ROW_BYTES,
    Head,
    Keys,
    bucket_of,
    is_last,
    join_rows,
    pack_bucket,
    read_head,
    split_batch,
    unpack_bucket,
)
from trackd.storage.store import Key

KEYS = Keys(b"trackd/1/example.com@a/")


def test_keys_are_those_of_the_documents_and_sort_by_their_numbers() -> None:
    assert KEYS.meta == b"trackd/1/example.com@a/meta"
    assert KEYS.head == b"trackd/1/example.com@a/head"
    assert KEYS.manifest == b"trackd/1/example.com@a/manifest"
    assert KEYS.row(255) == b"trackd/1/example.com@a/journal/00000000000000ff"
    assert KEYS.bucket(16, 1023, 0) == b"trackd/1/example.com@a/state/0000000000000010/03ff"
    rows = [KEYS.row(number) for number in (1, 9, 10, 255, 2**40)]
    assert rows == sorted(rows)
    assert [KEYS.number(row) for row in rows] == [1, 9, 10, 255, 2**40]
    assert KEYS.journal < rows[0] < rows[-1] < KEYS.journal_end
    parts = [KEYS.bucket(7, 3, 0), KEYS.bucket(7, 3, 1), KEYS.bucket(7, 4, 0)]
    assert parts == sorted(parts)
    assert KEYS.generation(7) < parts[0] < parts[-1] < KEYS.generation(8) < KEYS.state_end
    with pytest.raises(ValueError, match="invalid"):
        KEYS.number(KEYS.journal + b"other")


@pytest.mark.parametrize("size", [0, 1, ROW_BYTES - 100, ROW_BYTES, 3 * ROW_BYTES])
def test_a_batch_is_rows_of_a_size_that_etcd_takes_of_which_the_last_is_marked(size: int) -> None:
    batch = random.Random(size).randbytes(size)
    rows = split_batch(batch)
    assert all(len(row) <= ROW_BYTES for row in rows)
    assert [is_last(row) for row in rows] == [False] * (len(rows) - 1) + [True]
    assert join_rows(rows) == batch
    assert len(rows) == 1 or size > ROW_BYTES - 200


def test_what_packs_well_is_one_row() -> None:
    assert len(split_batch(b"proxy number 7" * 500_000)) == 1


def test_rows_that_are_damaged_are_an_error() -> None:
    rows = split_batch(random.Random(1).randbytes(2 * ROW_BYTES))
    for damaged in (rows[:-1], rows[1:], [rows[1], rows[0], rows[2]], []):
        with pytest.raises(ValueError, match="Error"):
            join_rows(damaged)
    for row in (b"", b"x"):
        with pytest.raises(ValueError, match="mark"):
            is_last(row)


def test_keys_are_spread_over_the_buckets() -> None:
    counts = Counter(bucket_of(("lease", number)) for number in range(20 * BUCKETS))
    assert len(counts) == BUCKETS
    assert max(counts.values()) < 60


def test_a_bucket_comes_back_in_parts_of_a_size_that_etcd_takes() -> None:
    chance = random.Random(4)
    rows: dict[Key, bytes] = {
        ("names", number): chance.randbytes(chance.choice((10, 100_000))) for number in range(60)
    }
    rows["reply", (b"token", 2**64 - 1)] = b""
    parts = pack_bucket(rows.items())
    assert len(parts) > 2
    assert all(len(part) < 2 * ROW_BYTES for part in parts)
    assert dict(row for part in parts for row in unpack_bucket(part)) == rows
    assert pack_bucket([]) == []


@pytest.mark.parametrize("part", [b"", b"garbled", pack_bucket([(("a", 1), b"x")])[0][:-1]])
def test_a_damaged_bucket_is_an_error(part: bytes) -> None:
    with pytest.raises((ValueError, TypeError)):
        list(unpack_bucket(part))


def test_the_head_carries_the_time_of_the_last_write() -> None:
    head = Head(7, Stamp(12.5, 1_800_000_000.25))
    assert head.pack() == b"7 12.500000 1800000000.250000"
    assert read_head(head.pack()) == head
    for wrong in (b"", b"7", b"7 1", b"x 1 2", b"7 x 2", b"7 1 2 3"):
        with pytest.raises(ValueError, match=r"."):
            read_head(wrong)
