"""The mark: what it says is what was written, or nothing."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trackd.storage.mark import Mark

TOKENS = [bytes([number]) * 16 for number in range(8)]
Open = Callable[[], Mark]


@pytest.fixture
def reopen(tmp_path: Path) -> Iterator[Open]:
    """Open the mark as the next process does, or the first one."""
    marks: list[Mark] = []

    def reopen() -> Mark:
        marks.append(Mark(tmp_path / "mark", "boot"))
        return marks[-1]

    yield reopen
    for mark in marks:
        mark.close(remove=False)


def test_the_last_note_of_each_session_is_there_after_a_kill(reopen: Open) -> None:
    mark = reopen()
    mark.write(7)
    for last in (3, 9, 2**64 - 1):
        for token in TOKENS:
            assert mark.note(token, [1, 2, 4, last])
    mark.write(8)
    again = reopen()
    assert again.notes == {token: [1, 2, 4, 2**64 - 1] for token in TOKENS}
    assert again.read() == 8


def test_a_note_is_written_to_the_place_of_a_session_that_has_ended(
    reopen: Open, tmp_path: Path
) -> None:
    mark = reopen()
    for token in TOKENS[:4]:
        mark.note(token, [1, 5])
    size = (tmp_path / "mark").stat().st_size
    mark.forget(TOKENS[1])
    mark.forget(TOKENS[7])  # it never had one
    assert mark.note(TOKENS[5], [1, 6])
    assert (tmp_path / "mark").stat().st_size == size
    assert reopen().notes == {
        TOKENS[0]: [1, 5],
        TOKENS[2]: [1, 5],
        TOKENS[3]: [1, 5],
        TOKENS[5]: [1, 6],
    }


def test_places_are_found_again_after_a_restart(reopen: Open, tmp_path: Path) -> None:
    mark = reopen()
    for token in TOKENS[:4]:
        mark.note(token, [1, 5])
    size = (tmp_path / "mark").stat().st_size
    again = reopen()
    again.forget(TOKENS[2])
    assert again.note(TOKENS[0], [1, 8])
    assert again.note(TOKENS[6], [1, 7])
    assert (tmp_path / "mark").stat().st_size == size
    assert reopen().notes == {
        TOKENS[0]: [1, 8],
        TOKENS[1]: [1, 5],
        TOKENS[3]: [1, 5],
        TOKENS[6]: [1, 7],
    }


def test_more_ranges_than_a_note_holds_are_not_noted(reopen: Open) -> None:
    mark = reopen()
    six = [bound for first in range(1, 24, 4) for bound in (first, first + 2)]
    assert mark.note(TOKENS[0], six)
    assert not mark.note(TOKENS[0], [*six, 30, 31])
    assert reopen().notes == {TOKENS[0]: six}


def test_notes_of_another_boot_say_nothing(reopen: Open, tmp_path: Path) -> None:
    reopen().note(TOKENS[0], [1, 5])
    other = Mark(tmp_path / "mark", "another boot")
    assert other.notes == {}
    assert other.note(TOKENS[1], [1, 2])
    other.close(remove=False)
    assert reopen().notes == {}


def test_a_file_with_a_note_stays_when_the_store_is_closed(reopen: Open, tmp_path: Path) -> None:
    mark = Mark(tmp_path / "mark", "boot")
    mark.note(TOKENS[0], [1, 5])
    mark.close(remove=True)
    again = reopen()
    assert again.notes == {TOKENS[0]: [1, 5]}
    again.forget(TOKENS[0])
    Mark(tmp_path / "mark", "boot").close(remove=True)  # the note is still in the file
    assert (tmp_path / "mark").exists()
    last = Mark(tmp_path / "mark", "boot")
    last.forget(TOKENS[0])
    last.close(remove=True)
    assert not (tmp_path / "mark").exists()


def test_whatever_is_damaged_each_note_is_what_was_written_or_missing(
    reopen: Open, tmp_path: Path
) -> None:
    mark = reopen()
    written = {token: [1, 5 + number] for number, token in enumerate(TOKENS)}
    for token, ranges in written.items():
        mark.note(token, ranges)
    whole = (tmp_path / "mark").read_bytes()
    rng = random.Random(4)
    for _ in range(300):
        damaged = bytearray(whole[: rng.randint(0, len(whole))])
        for _ in range(rng.randint(0, 3)):
            if damaged:
                damaged[rng.randrange(len(damaged))] ^= rng.randint(1, 255)
        (tmp_path / "mark").write_bytes(damaged)
        damaged_mark = reopen()
        assert damaged_mark.notes.items() <= written.items()
        assert damaged_mark.note(TOKENS[0], [1, 99])
        assert reopen().notes[TOKENS[0]] == [1, 99]


def test_a_note_that_finds_no_room_is_not_noted(reopen: Open) -> None:
    mark = reopen()
    mark.note(TOKENS[0], [1, 5])
    file, full = mark._descriptor, os.open("/dev/full", os.O_RDWR)
    mark._descriptor = full
    assert not mark.note(TOKENS[0], [1, 6])
    assert not mark.note(TOKENS[1], [1, 6])
    mark._descriptor = file
    os.close(full)
    assert mark.notes == reopen().notes == {TOKENS[0]: [1, 5]}
