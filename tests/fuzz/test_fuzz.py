"""The short form of `make fuzz`: the corpus as it stands, and some thousands of inputs."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path

import msgpack
import pytest

from fuzz import inputs, targets
from fuzz.__main__ import SHARES, fuzz
from fuzz.targets import Broken, fuzz_gossip, fuzz_replies
from helpers.writer import Clock, Desk
from trackd.operations.dispatch import OPERATIONS
from trackd.storage.database import seal
from trackd.storage.files import FILE_NAME
from trackd_client.core.discovery import read_gossip
from trackd_client.core.stream import read_published
from trackd_client.wire.protocol import decode_reply

#: For each target: few enough for some seconds.
COUNTS = {"socket": 4_000, "transport": 200, "gossip": 4_000, "replies": 2_000, "state": 60}


def test_the_corpus_has_every_operation_and_is_right_as_it_stands() -> None:
    asked = {value[2].get("op") for _, value in inputs.requests()}
    assert OPERATIONS.keys() - asked <= {"probe"}
    read = [read_gossip([inputs.to_json(payload)]) for payload in inputs.gossip()]
    assert not [skipped for reading in read for skipped in reading.skipped]
    frames = [frame for frame, _ in inputs.replies()]
    assert any(decode_reply(frame) for frame in frames)
    assert any(read_published(frame) for frame in frames)


@pytest.mark.parametrize("name", SHARES)
def test_inputs_that_are_almost_right_break_nothing(name: str) -> None:
    fuzz(name, random.Random(7), COUNTS[name], lambda _: None)


def test_the_same_seed_gives_the_same_inputs() -> None:
    def some(seed: int) -> list[bytes]:
        chance = random.Random(seed)
        return [inputs.damage(chance, inputs.pack(inputs.change(chance, {"a": 1})))] * 20

    assert some(1) == some(1) != some(2)


def test_a_state_whose_number_of_starts_is_none_is_set_aside(tmp_path: Path) -> None:
    targets.fill(tmp_path / "state", random.Random(1))
    with closing(sqlite3.connect(tmp_path / "state" / FILE_NAME)) as db, db:
        ((sealed,),) = db.execute("SELECT changes FROM journal WHERE id = 1")
        batch = msgpack.unpackb(sealed[4:])
        assert batch[0][2][0][:2] == [1, 1], "the first change counts the first start"
        batch[0][2][0][1] = b"one"
        db.execute("UPDATE journal SET changes = ? WHERE id = 1", (seal(msgpack.packb(batch)),))
    desk = Desk(tmp_path / "state", Clock())
    assert desk.state.epoch == 1
    desk.kill()


def test_a_reader_that_breaks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def break_once(*_: object) -> None:
        raise KeyError("name")

    monkeypatch.setattr("fuzz.targets.read_gossip", break_once)
    with pytest.raises(Broken, match="KeyError"):
        fuzz_gossip(random.Random(1), 10, lambda _: None)
    monkeypatch.setattr("fuzz.targets.read_published", break_once)
    with pytest.raises(Broken, match="KeyError"):
        fuzz_replies(random.Random(1), 10, lambda _: None)
