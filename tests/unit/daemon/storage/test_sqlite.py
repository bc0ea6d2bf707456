"""The store: what it keeps, what it refuses to keep, and what a failure leaves of it."""

from __future__ import annotations

import logging
import os
import random
import sqlite3
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from helpers.hosts import fill, needs_root, small_disk
from helpers.writer import Faults, sqlite_error
from trackd.storage import checkpoint as checkpoint_module
from trackd.storage.database import connect
from trackd.storage.files import FILE_NAME
from trackd.storage.reserve import RESERVE_BYTES
from trackd.storage.sqlite import SQLiteStore
from trackd.storage.store import DamagedError, Key, NewerError, StoreError

BOOT = "this boot"

#: Opens stores that are closed after the test.
Open = Callable[..., SQLiteStore]


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Open]:
    stores: list[SQLiteStore] = []

    def opened(
        directory: Path | None = tmp_path, boot: str = BOOT, connect: Any = connect
    ) -> SQLiteStore:
        stores.append(SQLiteStore(directory, boot, connect))
        return stores[-1]

    yield opened
    for store in stores:
        store.close()


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a checkpoint step end after about three looks at the clock, one row or deletion each."""
    ticks = iter(range(10**6))
    fake = types.SimpleNamespace(perf_counter=lambda: next(ticks) * 0.0004, time_ns=lambda: 1)
    monkeypatch.setattr(checkpoint_module, "time", fake)
    monkeypatch.setattr(checkpoint_module, "_STEP_SECONDS", 0.001)
    monkeypatch.setattr(checkpoint_module, "_STEP_ROWS", 1)


def select(store: SQLiteStore, sql: str) -> list[tuple[Any, ...]]:
    """Look into a store without its knowing; what ought to fail does not fail here."""
    return sqlite3.Connection.execute(store._db, sql).fetchall()


#: The kinds of rows of these tests.
KINDS = ("lease", "meta", "proxy", "session")


def append(store: SQLiteStore, *changes: Any) -> None:
    """Store a batch; what the changes mean is up to a test."""
    store.append(msgpack.packb(changes))


def touch(store: SQLiteStore, *keys: Key) -> None:
    store.touch(keys)


def loaded(store: SQLiteStore) -> tuple[dict[Key, Any], list[Any]]:
    """Return the rows and the batches that a start would read."""
    store.begin_reading()
    rows = {(kind, key): value for kind in KINDS for key, value in store.rows(kind)}
    return rows, [list(msgpack.unpackb(batch, use_list=False)) for batch in store.batches()]


def batches_of(store: SQLiteStore) -> list[Any]:
    """Return the batches after the base, without the store's knowing."""
    sql = "SELECT changes FROM journal WHERE id > (SELECT base FROM head) ORDER BY id"
    return [list(msgpack.unpackb(blob[4:], use_list=False)) for (blob,) in select(store, sql)]


def checkpoint_of(store: SQLiteStore) -> dict[Key, Any]:
    """Return the valid rows of the checkpoint, without the store's knowing."""
    found: dict[Key, Any] = {}
    sql = (
        "SELECT kind, key, value FROM state WHERE generation <= (SELECT generation FROM head)"
        " ORDER BY generation"
    )
    for kind, key, value in select(store, sql):
        name = kind, msgpack.unpackb(key, use_list=False)
        found.pop(name, None)
        if value is not None:
            found[name] = msgpack.unpackb(value[4:])
    return found


def after_replay(store: SQLiteStore) -> dict[Key, Any]:
    """Return what a restart would make of changes that say what a name became."""
    found = checkpoint_of(store)
    for batch in batches_of(store):
        for name, value in batch:
            found["meta", name] = value
    return found


def journal_rows(store: SQLiteStore) -> int:
    return len(select(store, "SELECT id FROM journal"))


def copy_of(directory: Path, name: str) -> Path:
    """Return a directory with the files of a store as they are, as a kill would leave them."""
    copy = directory / name
    copy.mkdir()
    for file in directory.glob(f"{FILE_NAME}*"):
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def is_busy(store: SQLiteStore) -> bool:
    """Return whether a checkpoint is under way, its tidying included."""
    return not store._checkpoint.is_tidy()


def step(store: SQLiteStore, row_of: Callable[[Key], Any]) -> None:
    """Take a step of a checkpoint, which begins if none is under way."""
    store.row_of = row_of
    if not is_busy(store):
        store._checkpoint._begin()
    store.step()


def finish_checkpoint(store: SQLiteStore, row_of: Callable[[Key], Any]) -> int:
    """Take steps until a checkpoint is done, and return how many they were."""
    steps = 0
    while steps == 0 or is_busy(store):
        step(store, row_of)
        steps += 1
        assert steps < 10_000
    return steps


# -- what it keeps -----------------------------------------------------------------------


def test_batches_come_back_in_their_order_after_a_restart(open_store: Open) -> None:
    store = open_store()
    append(store, ("a", 1))
    append(store, ("a", 2), ["free", 7])
    store.close()
    again = open_store()
    assert batches_of(again) == [[("a", 1)], [("a", 2), ("free", 7)]]


def test_a_batch_survives_a_process_that_never_closed_the_file(
    open_store: Open, tmp_path: Path
) -> None:
    store = open_store()
    append(store, ("a", 1))
    copy = tmp_path / "as a kill leaves it"
    copy.mkdir()
    for file in tmp_path.glob(f"{FILE_NAME}*"):
        (copy / file.name).write_bytes(file.read_bytes())
    assert (copy / f"{FILE_NAME}-wal").stat().st_size > 0  # WAL, as designed
    assert batches_of(open_store(copy)) == [[("a", 1)]]


def test_it_writes_ahead_and_leaves_syncing_to_the_kernel(open_store: Open) -> None:
    database = open_store()._db
    assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert database.execute("PRAGMA synchronous").fetchone() == (0,)
    assert database.execute("PRAGMA locking_mode").fetchone() == ("exclusive",)


def test_integers_of_64_bits_without_sign_come_back_intact(open_store: Open) -> None:
    largest = 2**64 - 1
    store = open_store()
    append(store, ["p1", largest])
    touch(store, ("proxy", "p2"))
    finish_checkpoint(store, lambda _: ["", largest, 1.0])
    append(store, ["p1", largest])
    store.close()
    again = open_store()
    assert batches_of(again)[-1][0][1] == largest
    assert checkpoint_of(again)["proxy", "p2"][1] == largest


def test_keys_may_be_text_bytes_or_integers(open_store: Open) -> None:
    keys: list[Key] = [("proxy", "p1"), ("session", b"\x00" * 16), ("lease", 2**63 + 5)]
    store = open_store()
    append(store, ("a", 1))
    touch(store, *keys)
    finish_checkpoint(store, lambda key: [key[1]])
    store.close()
    assert checkpoint_of(open_store()) == {key: [key[1]] for key in keys}


def test_nothing_is_written_to_disk_without_a_directory(open_store: Open, tmp_path: Path) -> None:
    store = open_store(None)
    append(store, ("a", 1))
    assert batches_of(store) == [[("a", 1)]]
    assert not list(tmp_path.iterdir())


def test_others_may_not_read_the_files(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    append(store, ("a", 1))
    files = list(tmp_path.iterdir())
    assert files
    for file in files:
        assert file.stat().st_mode & 0o077 == 0, file.name


# -- whose file, of which boot, of which schema ------------------------------------------


def test_notes_are_written_again_when_their_file_was_removed(
    open_store: Open, tmp_path: Path
) -> None:
    store = open_store()
    batches_of(store)
    token = b"t" * 16
    assert store.note_done(token, [1, 5])
    (tmp_path / "trackd.mark").unlink()
    store.restore_files()
    store._db.close()  # a kill
    assert open_store().noted_done() == {token: [1, 5]}


def test_another_boot_begins_empty(open_store: Open) -> None:
    store = open_store()
    append(store, ("a", 1))
    touch(store, ("meta", "a"))
    finish_checkpoint(store, lambda _: 1)
    append(store, ("a", 2))
    store.close()
    again = open_store(boot="the next boot")
    assert batches_of(again) == []
    assert checkpoint_of(again) == {}
    again.close()
    assert batches_of(open_store(boot="the next boot")) == []


def test_the_same_boot_is_never_emptied(open_store: Open) -> None:
    for number in range(3):
        store = open_store()
        assert len(loaded(store)[1]) == number
        append(store, ("a", number))
        store.close()


def test_what_comes_after_a_full_checkpoint_and_a_restart_stays_until_it_is_taken_in_too(
    open_store: Open,
) -> None:
    store = open_store()
    for number in range(3):
        append(store, ("a", number))
    finish_checkpoint(store, lambda _: None)
    store.close()
    again = open_store()
    assert loaded(again) == ({}, [])  # so its rows begin at one again
    append(again, ("a", 8))
    touch(again, ("meta", "a"))
    step(again, lambda _: 8)  # takes in what was there when it began
    append(again, ("a", 9))
    again.close()
    assert loaded(open_store())[1][-1] == [("a", 9)]


def test_a_file_of_a_newer_trackd_stops_the_start_and_stays_as_it_was(
    open_store: Open, tmp_path: Path
) -> None:
    store = open_store()
    append(store, ("a", 1))
    store.close()
    path = tmp_path / FILE_NAME
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
        database.execute("UPDATE head SET version = 99")
    database.close()
    content = path.read_bytes()
    with pytest.raises(NewerError, match=rf"newer trackd.*version 99.*mv {path} "):
        open_store()
    assert path.read_bytes() == content
    assert not list(tmp_path.glob(f"{FILE_NAME}.damaged-*"))


def test_a_file_of_version_2_is_read_and_becomes_one_of_version_3(
    open_store: Open, tmp_path: Path
) -> None:
    store = open_store()
    append(store, ("a", 1))
    store.close()
    path = tmp_path / FILE_NAME
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 2")
        database.execute("UPDATE head SET version = 2")
    database.close()
    store = open_store()
    assert loaded(store)[1] == [[("a", 1)]]
    assert store._db.execute("PRAGMA user_version").fetchone() == (3,)
    assert store._db.execute("SELECT version FROM head").fetchone() == (3,)
    store.close()
    assert loaded(open_store())[1] == [[("a", 1)]]
    assert not list(tmp_path.glob(f"{FILE_NAME}.damaged-*"))


# -- what is unusable --------------------------------------------------------------------


def foreign_database(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE cookies (name TEXT)")
        database.execute("INSERT INTO cookies VALUES ('crumbs')")
    database.close()


def without_its_tables(path: Path) -> None:
    SQLiteStore(path.parent, BOOT).close()
    with sqlite3.connect(path) as database:
        database.execute("DROP TABLE state")
    database.close()


def with_another_table(path: Path) -> None:
    SQLiteStore(path.parent, BOOT).close()
    with sqlite3.connect(path) as database:
        database.execute("ALTER TABLE journal RENAME COLUMN changes TO notes")
    database.close()


def rubbish_in_the_journal(path: Path) -> None:
    store = SQLiteStore(path.parent, BOOT)
    store._db.execute("INSERT INTO journal (changes) VALUES (?)", (b"\xc1",))
    store.close()


def text_for_a_blob(path: Path) -> None:
    store = SQLiteStore(path.parent, BOOT)
    store._db.execute("INSERT INTO state VALUES ('meta', 'key', 1, 'value')")
    store.close()


UNUSABLE: dict[str, Callable[[Path], object]] = {
    "random bytes": lambda path: path.write_bytes(random.Random(1).randbytes(50_000)),
    "a text": lambda path: path.write_text("Dear SQLite,\n" * 100),
    "an SQLite database of another program": foreign_database,
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_what_is_no_store_of_ours_is_moved_aside_with_a_loud_word(
    open_store: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    path = tmp_path / FILE_NAME
    UNUSABLE[kind](path)
    content = path.read_bytes()
    store = open_store()
    (aside,) = tmp_path.glob(f"{FILE_NAME}.damaged-*[0-9]")
    assert aside.read_bytes() == content  # nothing of it is lost
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "moved aside" in record.getMessage()
    assert vars(record)["fields"]["moved_to"] == str(aside)
    append(store, ("a", 1))
    store.close()
    assert batches_of(open_store()) == [[("a", 1)]]


@pytest.mark.parametrize(
    "damage", [without_its_tables, with_another_table, rubbish_in_the_journal, text_for_a_blob]
)
def test_a_store_that_cannot_be_read_is_damaged_not_merely_out_of_order(
    open_store: Open, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    damage(tmp_path / FILE_NAME)
    try:
        loaded(open_store())
    except DamagedError:
        return
    assert list(tmp_path.glob(f"{FILE_NAME}.damaged-*")), "neither refused nor moved aside"


def test_what_a_flipped_bit_has_changed_is_never_believed(tmp_path: Path) -> None:
    whole = filled(tmp_path)
    store = SQLiteStore(tmp_path, BOOT)
    rows, batches = loaded(store)
    store.close()
    chance = random.Random(3)
    damaged = 0
    for _ in range(300):
        bit = chance.randrange(len(whole) * 8)
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        for file in tmp_path.iterdir():
            file.unlink()
        (tmp_path / FILE_NAME).write_bytes(flipped)
        store = SQLiteStore(tmp_path, BOOT)
        try:
            found = loaded(store)
        except DamagedError:
            damaged += 1
        else:
            assert all(rows.get(key) == value for key, value in found[0].items())
            assert all(batch in batches for batch in found[1])
        store.close()
    assert damaged > 60  # much of the file is content


def test_a_value_is_believed_at_its_own_place_alone(open_store: Open) -> None:
    store = open_store()
    append(store, ("a", 1))
    touch(store, ("lease", 1), ("lease", 2))
    finish_checkpoint(store, lambda key: [key[1]])
    store._db.execute("UPDATE state SET value = (SELECT value FROM state WHERE key = x'01')")
    with pytest.raises(DamagedError):
        loaded(store)


def test_an_empty_file_is_a_new_store(open_store: Open, tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).touch()
    assert batches_of(open_store()) == []
    assert not list(tmp_path.glob(f"{FILE_NAME}.damaged-*"))


def filled(directory: Path) -> bytes:
    """Make a store with a checkpoint and a journal, and return the file's bytes."""
    store = SQLiteStore(directory, BOOT)
    for number in range(40):
        append(store, (f"name {number}", number))
    touch(store, *(("meta", f"name {number}") for number in range(40)))
    finish_checkpoint(store, lambda key: key[1])
    for number in range(40):
        append(store, *([f"p{number}", "", number, None] for _ in range(20)))
    store.close()
    return (directory / FILE_NAME).read_bytes()


@pytest.mark.parametrize("length", [1, 16, 99, 100, 512, 4095, 4096, 4097, 8192, 12_288, 20_000])
def test_a_file_cut_short_is_read_moved_aside_or_damaged_and_never_breaks_the_start(
    open_store: Open, tmp_path: Path, length: int
) -> None:
    whole = filled(tmp_path)
    assert len(whole) > 20_000
    (tmp_path / FILE_NAME).write_bytes(whole[:length])
    store = open_store()  # never a StoreError: that would stop the daemon for good
    try:
        loaded(store)
    except DamagedError as error:
        store.set_aside(str(error))
        assert loaded(store)[1] == []


def use_in_earnest(directory: Path) -> None:
    """Read a store and write to it, as a daemon does that finds out about damage at any point."""
    store = SQLiteStore(directory, BOOT)
    try:
        loaded(store)
        append(store, ("a", 1))
    except DamagedError as error:
        store.set_aside(str(error))
        append(store, ("a", 1))
    finally:
        store.close()
    store = SQLiteStore(directory, BOOT)
    assert batches_of(store)[-1] == [("a", 1)]
    store.close()


def use_with_flipped(directory: Path, whole: bytes, bits: list[int]) -> str:
    """Return why a file with these bits flipped stops a daemon for good, or nothing."""
    for file in directory.iterdir():
        file.unlink()
    flipped = bytearray(whole)
    for bit in bits:
        flipped[bit // 8] ^= 1 << bit % 8
    (directory / FILE_NAME).write_bytes(flipped)
    try:
        use_in_earnest(directory)
    except StoreError as error:
        return f"{bits}: {error}"
    return ""


def test_a_flipped_bit_anywhere_in_the_header_never_stops_the_start_for_good(
    tmp_path: Path,
) -> None:
    whole = filled(tmp_path)
    assert not [why for bit in range(100 * 8) if (why := use_with_flipped(tmp_path, whole, [bit]))]


def test_flipped_bits_anywhere_in_the_file_never_stop_the_start_for_good(tmp_path: Path) -> None:
    whole = filled(tmp_path)
    chance = random.Random(7)
    for _ in range(300):
        bits = [chance.randrange(len(whole) * 8) for _ in range(chance.choice((1, 3, 100)))]
        assert not use_with_flipped(tmp_path, whole, bits)


def test_a_wal_that_is_rubbish_costs_no_more_than_what_it_held(
    open_store: Open, tmp_path: Path
) -> None:
    filled(tmp_path)
    (tmp_path / f"{FILE_NAME}-wal").write_bytes(random.Random(2).randbytes(30_000))
    assert len(batches_of(open_store())) == 40


def test_what_was_moved_aside_does_not_take_the_new_file_with_it(
    open_store: Open, tmp_path: Path
) -> None:
    """SQLite deletes a WAL by its name when it closes the file; here that is another file's."""
    store = open_store()
    append(store, ("of another cluster", 1))
    store.set_aside("of another cluster")
    append(store, ("a", 2))
    copy = tmp_path / "as a kill leaves it"
    copy.mkdir()
    for suffix in ("", "-wal"):
        (copy / f"{FILE_NAME}{suffix}").write_bytes(
            (tmp_path / f"{FILE_NAME}{suffix}").read_bytes()
        )
    assert batches_of(open_store(copy)) == [[("a", 2)]]


def test_a_store_in_memory_that_is_damaged_is_an_error(open_store: Open) -> None:
    with pytest.raises(StoreError):
        open_store(None).set_aside("no reason")


def test_a_directory_that_is_not_there_is_an_error_and_nothing_is_made(
    open_store: Open, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match="nowhere"):
        open_store(tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


def test_a_path_that_is_a_directory_is_an_error_not_damage(
    open_store: Open, tmp_path: Path
) -> None:
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(StoreError):
        open_store()
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


# -- checkpoints -------------------------------------------------------------------------


def test_a_checkpoint_is_due_when_the_journal_has_many_rows_or_many_bytes(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_module, "_DUE_ROWS", 3)
    monkeypatch.setattr(checkpoint_module, "_DUE_BYTES", 1000)
    store = open_store()
    due = []
    for size in (1, 1, 1, 1000):
        append(store, ("a", "x" * size))
        due.append(store._checkpoint._is_due())
        if store._checkpoint._is_due():
            finish_checkpoint(store, lambda _: None)
    assert due == [False, False, True, True]
    assert not store._checkpoint._is_due()


def test_a_restart_counts_what_is_left_of_the_journal(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_module, "_DUE_ROWS", 3)
    store = open_store()
    for _ in range(3):
        append(store, ("a", 1))
    store.close()
    again = open_store()
    loaded(again)
    assert again._checkpoint._is_due()


def test_a_checkpoint_takes_the_journal_in_and_deletes_it(open_store: Open) -> None:
    store = open_store()
    values: dict[Key, Any] = {("meta", f"n{i}"): i for i in range(300)}
    for key, value in values.items():
        append(store, (key[1], value))
        touch(store, key)
    finish_checkpoint(store, values.get)
    assert journal_rows(store) == 0
    assert checkpoint_of(store) == values


def test_what_is_no_more_leaves_the_checkpoint(open_store: Open) -> None:
    store = open_store()
    append(store, ("lease", 1))
    touch(store, ("lease", 1))
    finish_checkpoint(store, lambda _: ["row"])
    assert checkpoint_of(store) == {("lease", 1): ["row"]}
    append(store, ("free", 1))
    touch(store, ("lease", 1))
    finish_checkpoint(store, lambda _: None)
    assert checkpoint_of(store) == {}


def test_what_comes_and_goes_before_a_checkpoint_costs_it_nothing(open_store: Open) -> None:
    faults = Faults()
    store = open_store(connect=faults)
    values: dict[Key, Any] = {("meta", "a"): 1}
    store.row_of = values.get
    for _ in range(2):  # the first checkpoint of a file, and the next one
        for number in range(100):
            touch(store, ("lease", number))
            values["lease", number] = ["row"]
            append(store, ("lease", number))
            touch(store, ("lease", number))
            del values["lease", number]
            append(store, ("free", number))
        touch(store, ("meta", "a"))
        faults.statements.clear()
        finish_checkpoint(store, values.get)
        assert sum(sql.startswith("INSERT OR REPLACE") for sql in faults.statements) == 1
        assert checkpoint_of(store) == values


@pytest.mark.usefixtures("steps")
def test_what_a_killed_process_has_written_of_a_thing_that_is_gone_never_comes_back(
    open_store: Open, tmp_path: Path
) -> None:
    store = open_store()
    values: dict[Key, Any] = {("lease", number): ["row"] for number in range(20)}
    for _, number in values:
        append(store, ("lease", number))
        touch(store, ("lease", number))
    copies = 0
    while copies == 0 or is_busy(store):
        step(store, values.get)
        copies += 1
        again = open_store(copy_of(tmp_path, str(copies)))
        rows, batches = loaded(again)
        again.row_of = rows.get
        for batch in batches:
            for _, number in batch:
                touch(again, ("lease", number))
                rows["lease", number] = ["row"]
        for number in range(20):
            append(again, ("free", number))
            touch(again, ("lease", number))
            del rows["lease", number]
        for _ in range(2):  # the first one may only tidy up after the killed process
            finish_checkpoint(again, rows.get)
        assert checkpoint_of(again) == {}
    assert copies > 4


@pytest.mark.usefixtures("steps")
def test_a_step_writes_a_bounded_number_of_rows(open_store: Open) -> None:
    faults = Faults()
    store = open_store(connect=faults)
    for number in range(100):
        append(store, (f"n{number}", 1))
        touch(store, ("meta", f"n{number}"))
    most = 0
    while is_busy(store) or most == 0:
        faults.statements.clear()
        step(store, lambda _: 1)
        rows = sum(sql.startswith("INSERT OR REPLACE") for sql in faults.statements)
        deletions = sum(sql.startswith("DELETE FROM journal") for sql in faults.statements)
        most = max(most, rows + deletions)
    assert 1 <= most <= 4
    assert journal_rows(store) == 0


def test_a_real_step_looks_at_the_clock_every_fifty_rows(open_store: Open) -> None:
    """The bound is time; what bounds the time between two looks is rows."""
    faults = Faults()
    store = open_store(connect=faults)
    append(store, ("a", 1))
    touch(store, *(("meta", f"n{number}") for number in range(20_000)))
    counts = []
    while len(store._checkpoint._todo) + len(store._checkpoint._dirty):
        faults.statements.clear()
        step(store, lambda _: 1)
        counts.append(sum(sql.startswith("INSERT OR REPLACE") for sql in faults.statements))
    assert sum(counts) == 20_000
    assert len(counts) > 2  # it was not done in one go
    assert all(count % 50 == 0 for count in counts)


@pytest.mark.usefixtures("steps")
def test_changes_during_a_checkpoint_are_kept_whatever_step_it_is_at(open_store: Open) -> None:
    store = open_store()
    values: dict[Key, Any] = {}

    def change(name: str, value: int) -> None:
        touch(store, ("meta", name))
        values["meta", name] = value
        append(store, (name, value))

    for number in range(20):
        change(f"n{number}", number)
    for number in range(60):
        step(store, values.get)
        change(f"n{number % 25}", 1000 + number)
        assert after_replay(store) == values


@pytest.mark.usefixtures("steps")
def test_a_checkpoint_cut_off_by_a_kill_anywhere_loses_nothing(
    open_store: Open, tmp_path: Path
) -> None:
    """Every step is one transaction, so to stop between two steps is to stop anywhere."""
    store = open_store()
    values: dict[Key, Any] = {("meta", f"n{number}"): number for number in range(12)}
    for key, value in values.items():
        append(store, (key[1], value))
        touch(store, key)
    touch(store, ("meta", "gone"))
    copies = 0
    while copies == 0 or is_busy(store):
        step(store, values.get)
        copies += 1
        again = open_store(copy_of(tmp_path, str(copies)))
        assert after_replay(again) == values
    assert copies > 4


@pytest.mark.parametrize("late", [False, True], ids=["not executed", "executed all the same"])
@pytest.mark.usefixtures("steps")
def test_a_checkpoint_whose_statement_fails_is_tried_again_and_loses_nothing(
    open_store: Open, *, late: bool
) -> None:
    faults = Faults()
    faults.late = late
    store = open_store(connect=faults)
    values: dict[Key, Any] = {("meta", f"n{number}"): number for number in range(9)}
    for key, value in values.items():
        append(store, (key[1], value))
        touch(store, key)
    failures = steps = 0
    while steps == 0 or is_busy(store):
        faults.fail = {len(faults.statements) + 1 + steps % 5} if steps % 2 else set()
        try:
            step(store, values.get)
        except StoreError:
            failures += 1
        faults.fail.clear()
        steps += 1
        assert after_replay(store) == values
        assert steps < 200
    assert failures >= 3


# -- failures ----------------------------------------------------------------------------


def test_a_batch_that_cannot_be_stored_is_a_store_error_and_leaves_nothing(
    open_store: Open,
) -> None:
    faults = Faults()
    store = open_store(connect=faults)
    append(store, ("a", 1))
    faults.writes = True
    with pytest.raises(StoreError, match="full"):
        append(store, ("a", 2))
    faults.writes = False
    append(store, ("a", 3))
    assert batches_of(store) == [[("a", 1)], [("a", 3)]]


def test_what_is_stored_after_a_checkpoint_could_not_even_be_rolled_back_is_really_stored(
    open_store: Open, tmp_path: Path
) -> None:
    faults = Faults()
    store = open_store(connect=faults)
    append(store, ("a", 1))
    touch(store, ("meta", "a"))
    faults.fail = {len(faults.statements) + n for n in range(2, 10)}  # all but BEGIN
    with pytest.raises(StoreError):
        step(store, lambda _: 1)
    faults.fail.clear()
    append(store, ("a", 2))  # returned: so it was acknowledged
    copy = tmp_path / "as a kill leaves it"
    copy.mkdir()
    for file in tmp_path.glob(f"{FILE_NAME}*"):
        (copy / file.name).write_bytes(file.read_bytes())
    assert batches_of(open_store(copy))[-1] == [("a", 2)]


def test_opening_fails_at_any_statement_without_harm(tmp_path: Path) -> None:
    """A new file and a file with content, each with one statement of the opening failing."""
    for filled_before in (False, True):
        for late in (False, True):
            number = 0
            while True:
                number += 1
                directory = tmp_path / f"{filled_before} {late} {number}"
                directory.mkdir()
                if filled_before:
                    store = SQLiteStore(directory, BOOT)
                    append(store, ("a", 1))
                    store.close()
                faults = Faults()
                faults.fail = {number}
                faults.late = late
                try:
                    SQLiteStore(directory, BOOT, faults).close()
                except StoreError:
                    pass
                else:
                    assert len(faults.statements) < number, "a failure was overlooked"
                    break
                again = SQLiteStore(directory, BOOT)
                assert len(batches_of(again)) == filled_before
                append(again, ("a", 2))
                again.close()
                assert not list(directory.glob(f"{FILE_NAME}.damaged-*"))
            assert number > 5


def test_a_failure_to_read_is_told_apart_from_damage(open_store: Open) -> None:
    faults = Faults()
    store = open_store(connect=faults)
    append(store, ("a", 1))
    faults.fail = {len(faults.statements) + 1}
    faults.error = sqlite_error(sqlite3.SQLITE_IOERR_READ, "disk I/O error")
    with pytest.raises(StoreError):
        loaded(store)
    assert batches_of(store) == [[("a", 1)]]


# -- what is lost is noticed ----------------------------------------------------------------


def left_by_a_kill(store: SQLiteStore, tmp_path: Path) -> Path:
    """Return a copy of the files as a kill of the process leaves them."""
    copy = tmp_path / "killed"
    copy.mkdir()
    for file in tmp_path.glob("trackd.*"):
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def remove_wal(wal: Path) -> None:
    wal.unlink()


def cut_wal(wal: Path) -> None:
    os.truncate(wal, wal.stat().st_size - 1)


def zero_last_frame(wal: Path) -> None:
    with wal.open("r+b") as file:
        file.seek(-4096, os.SEEK_END)
        file.write(bytes(4096))


def garble_middle(wal: Path) -> None:
    with wal.open("r+b") as file:
        file.seek(wal.stat().st_size // 2)
        file.write(b"garbled")


@pytest.mark.parametrize("damage", [remove_wal, cut_wal, zero_last_frame, garble_middle])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_damaged_or_missing_wal_never_takes_back_acknowledged_changes_silently(
    open_store: Open, tmp_path: Path, damage: Callable[[Path], None], checkpointed: bool
) -> None:
    store = open_store()
    for number in range(20):
        append(store, ("a", number))
    if checkpointed:
        touch(store, ("meta", "a"))
        finish_checkpoint(store, lambda _: 19)
        append(store, ("a", 20))
    killed = left_by_a_kill(store, tmp_path)
    damage(killed / f"{FILE_NAME}-wal")
    again = SQLiteStore(killed, BOOT)
    with pytest.raises(DamagedError, match="lost"):
        loaded(again)
    again.set_aside("it is behind its mark")
    append(again, ("a", 1))
    assert loaded(again)[1] == [[("a", 1)]]
    again.close()


@pytest.mark.parametrize("rows_after", [0, 3])
def test_a_kill_loses_nothing_and_is_no_damage(
    open_store: Open, tmp_path: Path, rows_after: int
) -> None:
    store = open_store()
    append(store, ("a", 1))
    touch(store, ("meta", "a"))
    finish_checkpoint(store, lambda _: 1)
    for number in range(rows_after):
        append(store, ("a", number))
    again = SQLiteStore(left_by_a_kill(store, tmp_path), BOOT)
    rows, batches = loaded(again)
    assert rows == {("meta", "a"): 1}
    assert len(batches) == rows_after
    append(again, ("b", 1))
    assert len(loaded(again)[1]) == rows_after + 1
    again.close()


def test_a_mark_of_another_boot_says_nothing(open_store: Open, tmp_path: Path) -> None:
    store = open_store()
    append(store, ("a", 1))
    again = SQLiteStore(left_by_a_kill(store, tmp_path), "another boot")
    assert loaded(again) == ({}, [])
    again.close()


def test_what_is_stored_after_a_store_was_set_aside_is_never_deleted_by_the_old_checkpoint(
    open_store: Open, steps: None
) -> None:
    store = open_store()
    for number in range(30):
        append(store, (str(number), number))
        touch(store, ("meta", str(number)))
    step(store, lambda _: 0)  # begun, and not done
    assert is_busy(store)
    store.set_aside("damage was found")
    for number in range(20):
        append(store, (str(number), number))
        touch(store, ("meta", str(number)))
    assert not store._checkpoint._is_due()
    for _ in range(10):
        step(store, lambda key: int(key[1]))
    store.close()
    again = open_store()
    rows, batches = loaded(again)
    names = {key[1] for key in rows} | {change[0] for batch in batches for change in batch}
    assert names == {str(number) for number in range(20)}


@pytest.mark.usefixtures("steps")
def test_however_fast_the_journal_grows_a_checkpoint_keeps_up(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes in while a checkpoint is written is bounded: then the rest is done at once."""
    monkeypatch.setattr(checkpoint_module, "_DUE_BYTES", 100_000)
    store = open_store()
    keys = [("proxy", f"{number}.proxy.example") for number in range(500)]
    for _ in range(400):
        touch(store, *keys)
        append(store, "x" * 10_000)
        store.row_of = lambda _: ["", 0, 180.0, 1]
        while store.has_work and not store._checkpoint._is_due():
            store.step()
        store.step()
        assert sum(size for _, size in store._checkpoint._journal) <= 3 * 100_000


def test_a_file_that_holds_much_less_than_before_is_cut_down(
    open_store: Open, tmp_path: Path
) -> None:
    store = open_store()
    things: dict[Key, Any] = {("lease", number): "x" * 1000 for number in range(30_000)}
    touch(store, *things)
    append(store, "many")
    finish_checkpoint(store, things.get)
    store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    large = (tmp_path / FILE_NAME).stat().st_size
    touch(store, *things)
    append(store, "none")
    finish_checkpoint(store, lambda _: None)
    while store.has_work:
        store.step()
    store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    small = (tmp_path / FILE_NAME).stat().st_size
    assert large > 30_000_000
    assert small < 16_000_000
    assert loaded(store) == ({}, [])


@needs_root
def test_a_disk_that_others_have_filled_takes_changes_without_end(
    open_store: Open, tmp_path: Path
) -> None:
    """A checkpoint finds room in the reserve, and makes the room that the next changes need."""
    with small_disk(tmp_path / "disk", "48m") as disk:
        store = open_store(disk)
        store.row_of = lambda _: "x" * 2000
        filler = fill(disk)
        assert (disk / "trackd.reserve").stat().st_size == RESERVE_BYTES
        for number in range(20_000):
            touch(store, ("lease", number % 100))
            append(store, "x" * 2000)
            if store.has_work:
                store.step()
        assert (disk / "trackd.reserve").stat().st_size == 0
        assert store._db.execute("SELECT max(id) FROM journal").fetchone() == (20_000,)
        filler.unlink()
        append(store, "x")
        finish_checkpoint(store, store.row_of)
        assert (disk / "trackd.reserve").stat().st_size == RESERVE_BYTES
        store.close()
        assert not (disk / "trackd.reserve").exists()


@needs_root
def test_a_small_disk_is_not_filled_by_the_reserve(open_store: Open, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "20m") as disk:
        store = open_store(disk)
        append(store, "x")
        assert (disk / "trackd.reserve").stat().st_size == 0
        store.close()
