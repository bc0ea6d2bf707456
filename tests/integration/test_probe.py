"""The daemon's own request proves that the store works; a store that refuses is not stuck."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.writer import Clock, Desk, Faults
from trackd.sessions.identity import Peer

SELF = Peer(0, 0, os.getpid())


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def desk(tmp_path: Path, faults: Faults) -> Iterator[Desk]:
    desk = Desk(tmp_path, Clock(), faults)
    yield desk
    desk.kill()


def test_a_probe_is_answered_after_a_commit_of_its_own(desk: Desk, faults: Faults) -> None:
    desk.ask({"op": "probe", "seq": 1}, SELF)  # whatever the start left to store is stored
    faults.statements.clear()
    desk.send({"op": "probe", "seq": 2}, SELF)
    assert not any(sent.body["seq"] == 2 for sent in desk.sent)
    (sent,) = desk.end_batch()
    assert any(statement.startswith("INSERT INTO journal") for statement in faults.statements)
    assert (sent.body["claimed"], sent.body["store"]) == (0, "ok")


def test_a_probe_is_answered_while_nothing_can_be_stored(desk: Desk, faults: Faults) -> None:
    faults.writes = True
    for seq in (1, 2):
        reply = desk.ask({"op": "probe", "seq": seq}, SELF)
        assert reply is not None
        assert "error" not in reply
        assert reply["store"].startswith("failing")
    faults.writes = False
    desk.sweep()
    reply = desk.ask({"op": "probe", "seq": 3}, SELF)
    assert reply is not None
    assert reply["store"] == "ok"


def test_a_probe_changes_nothing(desk: Desk) -> None:
    before = desk.state.revision
    assert desk.ask({"op": "probe", "seq": 1}, SELF)
    assert desk.state.revision == before
    assert desk.reloaded().revision == before
