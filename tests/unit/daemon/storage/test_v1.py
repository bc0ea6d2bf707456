"""Files of versions 1 and 2: what records of 1 mean, and that this trackd goes on with both.

The files in `v1/` and `v2/` were made by the last trackd that wrote that version: one whose state
is all in the journal, and one in the midst of a checkpoint. Beside each is what that trackd knew.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers.writer import CLUSTER, AgentOf, Clock, Desk, through_msgpack
from trackd.sessions.identity import Process
from trackd.state.restore import restore
from trackd.state.state import State
from trackd.storage.files import FILE_NAME
from trackd.storage.sqlite import SQLiteStore
from trackd.storage.v1 import Image, LeaseRow, Record

HERE = Path(__file__).parent
FILES = ["v1/journal", "v1/checkpoint", "v2/journal", "v2/checkpoint"]
BOOT = "the boot"

TOKENS = (b"\x01" * 16, b"\x02" * 16)
SESSION = [1, 0, 0, 10, 5, "name", "1", {"a": "b"}, 1.0, 2.0]


def image_of(*records: Record) -> Image:
    image = Image()
    for record in records:
        image.replay(through_msgpack(record))
    return image


def test_each_record_says_what_became_of_one_thing() -> None:
    token = TOKENS[0]
    image = image_of(
        ["open", token, SESSION],
        ["meta", "revision", 7],
        ["lease", 3, [token, None, 5.0, 6.0]],
        ["lease", 3, [token, "p1", 5.0, 6.0]],
        ["lease", 4, [token, None, 5.0, 6.0]],
        ["free", 4],
        ["gossip", 100.0, 180.0, [["p1", "g", 2**64 - 1, None], ["p2", "", 1, 5.0]]],
        ["wait", token, 8, 1, None],
        ["wait", token, 9, 2, 50.0],
        ["unwait", token, 9],
        ["reply", token, 5, b"frame", 3, [1, 4]],
        ["lease", 6, [token, None, 5.0, 6.0]],
        ["expire", token, 6],
    )
    assert image.meta == {"revision": 7, "last_lease": 6}
    assert image.leases == {3: LeaseRow(token, "p1", 5.0, 6.0)}
    assert image.proxies == {"p1": ["g", 2**64 - 1, 280.0], "p2": ["", 1, 105.0]}
    session = image.sessions[token]
    assert session.waits == {8: [1, None]}
    assert session.replies == {5: [b"frame", 3]}
    assert session.done == [1, 4]
    assert session.expired == [6]
    assert (session.pid, session.start, session.labels) == (10, 5, {"a": "b"})


def test_a_reply_ends_the_wait_of_its_request() -> None:
    token = TOKENS[0]
    image = image_of(
        ["open", token, SESSION],
        ["wait", token, 8, 1, None],
        ["reply", token, 8, b"granted", 1, []],
    )
    assert image.sessions[token].waits == {}


def test_what_is_done_is_forgotten() -> None:
    token = TOKENS[0]
    image = image_of(
        ["open", token, SESSION],
        ["reply", token, 1, b"one", None, []],
        ["reply", token, 2, b"two", None, []],
        ["done", token, [1, 1]],
    )
    assert list(image.sessions[token].replies) == [2]
    assert image.sessions[token].done == [1, 1]


def test_the_end_of_a_session_is_remembered_with_its_reason_and_its_user() -> None:
    image = image_of(["open", TOKENS[0], SESSION], ["end", TOKENS[0], "closed", 9.0, 1000])
    assert image.sessions == {}
    assert image.ended == {TOKENS[0]: ["closed", 9.0, 1000]}


def test_records_of_a_session_that_the_checkpoint_knows_to_be_over_change_nothing() -> None:
    image = Image()
    image.take([("ended", TOKENS[0], ["closed", 9.0, 1000])])
    for record in (
        ["reply", TOKENS[0], 1, b"one", None, []],
        ["done", TOKENS[0], [1, 1]],
        ["wait", TOKENS[0], 2, 1, None],
        ["unwait", TOKENS[0], 2],
        ["expire", TOKENS[0], 3],
        ["end", TOKENS[0], "closed", 9.0, 1000],
    ):
        image.replay(record)
    assert image == Image(ended={TOKENS[0]: ["closed", 9.0, 1000]})


def test_what_a_newer_version_left_in_the_checkpoint_is_passed_over() -> None:
    image = Image()
    image.take([("weather", "today", "rain"), ("meta", "epoch", 3)])
    assert image == Image(meta={"epoch": 3})


@pytest.mark.parametrize(
    "record",
    [
        ["meta"],
        ["gossip", 1.0, 2.0, [["p1"]]],
        ["lease", 1, [b"token"]],
        ["open", b"token", [1, 2]],
        ["reply", b"token"],
    ],
)
def test_a_record_that_makes_no_sense_raises_what_the_actor_takes_for_damage(
    record: Record,
) -> None:
    image = image_of(["open", b"token", SESSION])
    with pytest.raises((ValueError, TypeError, LookupError, AttributeError)):
        image.replay(record)


# -- whole files -------------------------------------------------------------------------


def shown(value: Any) -> Any:
    """Return a value as JSON has it; bytes become hexadecimal."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {
            key.hex() if isinstance(key, bytes) else str(key): shown(each)
            for key, each in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [shown(each) for each in value]
    return value


def knowledge_of(state: State) -> Any:
    tracker, mentions = state.tracker, state.tracker.mentions
    return shown(
        {
            "revision": state.revision,
            "epoch": state.epoch,
            "tracker_id": state.tracker_id,
            "cluster": state.cluster,
            "count": tracker.connection_count,
            "last_lease": tracker.last_lease,
            "last_session": state.sessions.last_id,
            "proxies": sorted(
                [*proxy, mentions.of(proxy.name).by, tracker.ttl_of(proxy.name)]
                for proxy in tracker
            ),
            "leases": {
                lease: [
                    held.session.id,
                    tracker.lease_name(lease),
                    held.granted,
                    held.wall,
                    held.principals,
                ]
                for lease, held in state.leases.items()
            },
            "sessions": {
                session.token: [
                    session.id,
                    session.peer[:3],
                    session.process and session.process.start,
                    session.name,
                    session.version,
                    session.labels,
                    session.opened,
                    session.wall,
                    session.command,
                    session.done.ranges,
                    sorted(session.expired),
                    {seq: tuple(reply) for seq, reply in sorted(session.replies.items())},
                    session.notices,
                ]
                for session in state.sessions
            },
            "ended": {token: each[:3] for token, each in state.sessions.ended.items()},
            "tombstones": dict(state.tombstones),
            "waiters": [
                [waiter.session.id, waiter.seq, waiter.tag, waiter.deadline]
                for waiter in state.queue
            ],
            "budget": state.budget.level(),
            "last_served": state.queue.last_served,
            "events": state.history.after(0, 10**6, 1 << 40),
        }
    )


@pytest.mark.parametrize("name", FILES)
def test_everything_in_a_file_of_an_earlier_version_is_there(tmp_path: Path, name: str) -> None:
    shutil.copy(HERE / f"{name}.db", tmp_path / FILE_NAME)
    for _ in range(2):  # the second time it is a file of the newest version
        store = SQLiteStore(tmp_path, BOOT)
        state = State(CLUSTER, dial_rate=5.0, dial_burst=50, history=10_000)
        store.begin_reading()
        restore(state, store.rows, store.batches(), store.touch)
        store.close()
        assert {user[0] for user in state.sessions.users} == {""}, "it knows of no hosts"
        assert all(ended.host == "" for ended in state.sessions.ended.values())
        assert knowledge_of(state) == json.loads((HERE / f"{name}.json").read_text())


@pytest.mark.parametrize("name", FILES)
def test_a_daemon_goes_on_where_that_of_an_earlier_version_was(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(HERE / f"{name}.db", tmp_path / FILE_NAME)
    monkeypatch.setattr("helpers.writer.boot_id", lambda: BOOT)
    monkeypatch.setattr("trackd.actors.writer.start_time", lambda pid: pid - 100)
    desk = Desk(tmp_path, Clock(5070.0), claim_timeout=50.0)
    before = json.loads((HERE / f"{name}.json").read_text())
    assert desk.state.epoch == before["epoch"] + 1
    assert desk.state.tracker_id == before["tracker_id"]
    agent = AgentOf(2, Process(102, 2))
    assert agent.ask(desk, "open", seq=100)["session"] == 2
    desk.kill()


def test_a_file_of_version_1_of_another_boot_is_empty(tmp_path: Path) -> None:
    shutil.copy(HERE / "v1/journal.db", tmp_path / FILE_NAME)
    store = SQLiteStore(tmp_path, "another boot")
    store.begin_reading()
    assert not list(store.rows("session"))
    assert not list(store.batches())
    store.close()
