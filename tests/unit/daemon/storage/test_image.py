"""What records mean: replaying them over a checkpoint, however far that has come already."""

from __future__ import annotations

import re
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.writer import through_msgpack
from trackd.storage import image as image_module
from trackd.storage.image import Image, LeaseRow, SessionRow
from trackd.storage.records import Key, Record, StoredRow

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


def test_a_notice_that_the_checkpoint_has_already_is_there_once() -> None:
    token, notice = TOKENS[0], {"notice": "lease_expired", "lease": 1}
    told = ["notice", token, notice]
    image = image_of(
        ["open", token, SESSION], told, told, ["notice", token, {**notice, "lease": 2}]
    )
    assert image.sessions[token].notices == [notice, {**notice, "lease": 2}]


def test_the_end_of_a_session_is_remembered_with_its_reason_and_its_user() -> None:
    image = image_of(["open", TOKENS[0], SESSION], ["end", TOKENS[0], "closed", 9.0, 1000])
    assert image.sessions == {}
    assert image.ended == {TOKENS[0]: ["closed", 9.0, 1000]}


def test_records_of_a_session_that_the_checkpoint_knows_to_be_over_change_nothing() -> None:
    image = Image()
    image.take([StoredRow("ended", TOKENS[0], ["closed", 9.0, 1000])])
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
    image.take([StoredRow("weather", "today", "rain"), StoredRow("meta", "epoch", 3)])
    assert image == Image(meta={"epoch": 3})


def test_rows_come_back_as_they_were_stored() -> None:
    token = TOKENS[0]
    image = image_of(
        ["open", token, SESSION],
        ["reply", token, 5, b"frame", 3, [1, 4, 6, 6]],
        ["wait", token, 8, 1, 50.0],
        ["lease", 3, [token, "p1", 5.0, 6.0]],
        ["expire", token, 2],
    )
    again = Image()
    again.take(
        [
            StoredRow("session", token, through_msgpack(image.sessions[token].values())),
            StoredRow("lease", 3, through_msgpack(image.leases[3].values())),
            StoredRow("meta", "last_lease", 3),
        ]
    )
    assert again == image


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


def test_the_table_names_every_record_and_no_other() -> None:
    assert image_module.__doc__ is not None
    told = set(re.findall(r"^``(\w+)``", image_module.__doc__, re.MULTILINE))
    token = TOKENS[0]
    records: dict[str, Record] = {
        "meta": ["meta", "revision", 1],
        "open": ["open", token, SESSION],
        "reply": ["reply", token, 1, b"f", None, []],
        "notice": ["notice", token, {"notice": "lease_revoked", "lease": 1}],
        "fetched": ["fetched", token],
        "done": ["done", token, [1, 1]],
        "wait": ["wait", token, 1, 1, None],
        "unwait": ["unwait", token, 1],
        "expire": ["expire", token, 1],
        "lease": ["lease", 1, [token, None, 0.0, 0.0]],
        "free": ["free", 1],
        "gossip": ["gossip", 0.0, 1.0, [["p", "", 1, None]]],
        "mention": ["mention", 2.0, ["p"], 1],
        "end": ["end", token, "closed", 0.0, 0],
        "drop": ["drop", ["p"]],
        "forget": ["forget", "p", "", 1, 9.0],
        "events": ["events", 1, [b"packed"]],
        "source": ["source", 1, 1000, 77, "agent"],
    }
    assert told == records.keys()
    image = Image()
    keys = {kind: {key[0] for key in image.replay(record)} for kind, record in records.items()}
    assert keys["end"] == {"session", "ended"}
    assert keys["expire"] == {"session", "lease"}
    assert keys["lease"] == {"lease", "meta"}
    assert keys["gossip"] == keys["mention"] == {"proxy"}
    assert {kind for kind, found in keys.items() if found == {"session"}} == {
        "open",
        "reply",
        "done",
        "notice",
        "fetched",
        "wait",
        "unwait",
    }


# -- replaying over a newer checkpoint -----------------------------------------------------

numbers = st.integers(1, 6)
_DRAWN = ("reply", "done", "wait", "lease", "free", "gossip", "mention", "end")


@st.composite
def histories(draw: st.DrawFn) -> list[Record]:
    """Return records as a state writes them: each says what a thing became."""
    records: list[Record] = []
    living: set[bytes] = set()
    waiting: set[tuple[bytes, int]] = set()
    lease = 0
    done = dict.fromkeys(TOKENS, 0)
    tracked: set[str] = set()
    for _ in range(draw(st.integers(0, 25))):
        token = draw(st.sampled_from(TOKENS))
        if token not in living:
            if any(record[:2] == ["end", token] for record in records):
                continue  # a token is never opened twice
            living.add(token)
            records.append(["open", token, SESSION])
            continue
        seq = draw(numbers) + done[token]
        match draw(st.sampled_from(_DRAWN)):
            case "reply":
                waiting.discard((token, seq))
                ranges = [1, done[token]] if done[token] else []
                records.append(["reply", token, seq, b"%d" % seq, None, ranges])
            case "done":
                done[token] += 1
                if (token, done[token]) in waiting:
                    waiting.discard((token, done[token]))
                    records.append(["unwait", token, done[token]])
                records.append(["done", token, [1, done[token]]])
            case "wait":
                waiting.add((token, seq))
                records.append(["wait", token, seq, len(records), None])
            case "lease":
                lease += 1
                records.append(["lease", lease, [token, None, 1.0, 2.0]])
            case "free" if lease:
                records.append(["free", draw(st.integers(1, lease))])
            case "gossip":
                name = draw(st.sampled_from(("p1", "p2")))
                tracked.add(name)
                records.append(["gossip", float(len(records)), 9.0, [[name, "", 1, None]]])
            case "mention" if tracked:
                names = sorted(tracked)[: draw(st.integers(1, 2))]
                records.append(["mention", float(len(records)) + 5.0, names, 3])
            case "end":
                living.discard(token)
                records.append(["end", token, "closed", float(len(records)), 0])
            case _:
                pass
    return records


def test_a_mention_of_a_proxy_that_is_gone_does_not_bring_it_back() -> None:
    image = Image()
    assert image.replay(["mention", 9.0, ["p1"], 1]) == [("proxy", "p1")]
    assert image.proxies == {}


def value_of(image: Image, key: Key) -> Any:
    kind, name = key
    match kind:
        case "session":
            session: SessionRow | None = image.sessions.get(name)
            return None if session is None else deepcopy(session.values())
        case "lease":
            row = image.leases.get(name)
            return None if row is None else row.values()
        case "proxy":
            return image.proxies.get(name)
        case "ended":
            return image.ended.get(name)
        case _:
            return image.meta.get(name)


@given(histories(), st.data())
def test_replaying_over_values_that_are_newer_comes_out_right(
    records: list[Record], data: st.DataObject
) -> None:
    """A checkpoint that was cut off has some values newer than the journal's first row."""
    now = Image()
    keys = [key for record in records for key in now.replay(deepcopy(record))]
    overtaken = data.draw(st.integers(0, len(records)))
    at_cut = Image()
    covered = [key for record in records[:overtaken] for key in at_cut.replay(deepcopy(record))]
    checkpoint = {key: value_of(at_cut, key) for key in covered}
    for key in data.draw(st.lists(st.sampled_from(keys), unique=True) if keys else st.just([])):
        checkpoint[key] = value_of(now, key)  # written by a later step, from memory
    found = Image()
    found.take([StoredRow(*key, value) for key, value in checkpoint.items() if value is not None])
    for record in records[overtaken:]:
        found.replay(record)
    assert found.leases == now.leases
    assert found.proxies == now.proxies
    assert found.ended == now.ended
    assert found.meta == now.meta
    assert {k: v.values() for k, v in found.sessions.items()} == {
        k: v.values() for k, v in now.sessions.items()
    }
