"""Every kind of change survives: applied live or replayed, states and events are the same.

`helpers.random_state` has the histories; they run on the other store in `tests/fleet`.
"""

from __future__ import annotations

import typing
from collections import Counter
from typing import Any

import msgpack
import pytest

from helpers.kept import KeptInSQLite
from helpers.random_state import World
from trackd.sessions.identity import Process
from trackd.state import changes
from trackd.state.changes import CODES, KINDS, META, Moment, pack, unpack
from trackd.state.events import count_events, derive_events, pack_events


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    KeptInSQLite.small_steps(monkeypatch)


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("block", range(10))
def test_after_every_batch_of_random_histories_a_restart_finds_the_same(block: int) -> None:
    for seed in range(12 * block, 12 * block + 12):
        World(seed, KeptInSQLite(None)).run(40)


@pytest.mark.usefixtures("small_steps")
def test_the_random_histories_hold_every_kind_of_change() -> None:
    kinds: Counter[str] = Counter()
    for seed in range(60):
        world = World(seed, KeptInSQLite(None))
        for _ in range(60):
            world.act()
            world.end_batch()
        kinds += world.kinds
    never = {kind.__name__ for kind in KINDS.values()} - kinds.keys()
    assert never == {"Configured", "DialSpent", "Probed"}  # other settings, another caller


def example(kind: type[Any]) -> Any:
    """Return a change of a kind; its fields hold values of their types."""
    hints = typing.get_type_hints(kind)
    values: dict[Any, Any] = {bytes: b"t", int: 1, str: "s", float: 1.5, bool: True}
    values |= {kind | None: value for kind, value in values.items()}
    fields = {name: values.get(hint, ()) for name, hint in hints.items()}
    fields |= {"by": (0, 7)} if isinstance(hints.get("by"), type(changes.By)) else {}
    if kind is changes.Tracked:
        fields |= {"rows": (("p", "g", 1, None),), "changed": (0,), "leaves": (1,)}
    if kind is changes.Marked:
        fields |= {"rows": (("p", 7.5, None),), "flipped": (("p", True),)}
    if kind is changes.Addressed:
        fields |= {"rows": (("p", "a:1", 0, 1.5, 0, None), ("q",)), "changed": (("p", "a:1"),)}
    if kind is changes.Expired:
        fields |= {"rows": (("p", "g", 1),)}
    if kind is changes.GroupForgotten:
        fields |= {"rows": (("p", 1),)}
    for name in ("labels", "notice"):
        if name in hints:
            fields[name] = {"key": "value"}
    return kind(**fields)


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.__name__)
def test_a_change_comes_back_from_the_journal_as_it_was(kind: type[Any]) -> None:
    change = example(kind)
    ((at, wall, (again,)),) = unpack(pack([Moment(1.5, 2.5, [change])]))
    assert (at, wall, type(again)) == (1.5, 2.5, kind)
    assert pack([Moment(1.5, 2.5, [again])]) == pack([Moment(1.5, 2.5, [change])])
    assert list(again.edits()) == list(change.edits())
    assert count_events(again) == len(list(derive_events(again)))


def test_a_change_names_all_that_it_edits_and_the_revision_where_it_has_events() -> None:
    """What is not named would not be in a checkpoint that is being written."""
    rows = (("a", "", 1, None), ("b", "", 1, 5.0), ("c", "", 1, 5.0), ("d", "", 1, None))
    edits = changes.Tracked(7, 1, 30.0, rows, (0,), (3, 4)).edits()
    kinds = ("mention", "names")
    assert set(edits) == {META, *((kind, number) for kind in kinds for number in (3, 4, 7, 8, 9))}
    marks = (("a", 5.0, None), ("b", None, None))
    keys = {("mark", "a"), ("mark", "b")}
    assert set(changes.Marked(1, marks, ()).edits()) == keys
    assert set(changes.Marked(1, marks, (("a", True),)).edits()) == {META, *keys}
    assert set(changes.Resumed(None, None, "asked", None).edits()) == {META}
    assert set(changes.Resumed(b"t", None, "asked", None).edits()) == {META, ("pause", b"t")}


def test_a_session_begins_and_ends_with_the_process_that_its_host_sees() -> None:
    """The watcher watches the one, and forgets the other."""
    for kind in (changes.SessionOpened, changes.SessionEnded):
        change = example(kind)._replace(pid=42, start=7, host="h", boot="b")
        assert change.process == Process(42, 7, "h", "b")
        assert change._replace(start=None).process is None


HOSTED = [kind for kind in KINDS.values() if "host" in kind._fields]


def stored_fields(change: Any) -> list[Any]:
    ((_, _, ((_, *values),)),) = msgpack.unpackb(pack([Moment(1.5, 2.5, [change])]))
    return list(values)


@pytest.mark.parametrize("kind", HOSTED, ids=lambda kind: kind.__name__)
def test_no_field_of_the_journal_names_the_daemon_s_own_host(kind: type[Any]) -> None:
    here = example(kind)._replace(host="", **({"boot": ""} if "boot" in kind._fields else {}))
    before = kind._fields.index("host")
    assert len(stored_fields(here)) == before, "as before there were hosts"
    assert len(stored_fields(example(kind))) == len(kind._fields)
    assert set(kind._fields[before:]) == set(kind._field_defaults) <= {"host", "boot"}


def test_a_row_names_a_host_that_is_not_the_daemon_s_own() -> None:
    assert changes.hostless((1, "", "h")) == (1, "", "h")
    assert changes.hostless((1, "a", "")) == (1, "a")


def test_a_claim_of_a_file_from_before_leases_followed_does_not_follow() -> None:
    ((_, _, (claimed,)),) = unpack(msgpack.packb([[1.0, 2.0, [[31, 1, 2, "p", ["p"]]]]]))
    assert claimed == changes.Claimed(1, 2, "p", ["p"], follows=False)


def test_these_kinds_have_a_host() -> None:
    names = {kind.__name__ for kind in HOSTED}
    assert names == {"SessionOpened", "SessionEnded", "SourceRemembered", "Paused"}


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.__name__)
def test_no_token_is_in_an_event(kind: type[Any]) -> None:
    change = example(kind)._replace(**({"token": b"SECRET"} if "token" in kind._fields else {}))
    packed = pack_events([Moment(1.0, 2.0, [change])], 1)
    assert not any(b"SECRET" in event for event in packed)


def test_codes_are_those_of_the_files_that_exist() -> None:
    assert {kind.__name__: code for kind, code in CODES.items()} == {
        "EpochBegan": 1,
        "CountSet": 2,
        "Configured": 3,
        "Probed": 4,
        "SessionOpened": 10,
        "SessionEnded": 11,
        "EndedDropped": 12,
        "Replied": 13,
        "Acknowledged": 14,
        "Parked": 15,
        "Unparked": 16,
        "Notified": 17,
        "Fetched": 18,
        "Granted": 30,
        "Claimed": 31,
        "Released": 32,
        "ClaimTimedOut": 33,
        "DialSpent": 34,
        "Renamed": 35,
        "Tracked": 50,
        "Mentioned": 51,
        "Renewed": 52,
        "Expired": 53,
        "Forgotten": 54,
        "TombstonesDropped": 55,
        "GroupForgotten": 56,
        "SourceRemembered": 57,
        "RenewedEach": 58,
        "Marked": 60,
        "DialFailed": 70,
        "Paused": 71,
        "Resumed": 72,
        "Addressed": 90,
        "Aimed": 91,
        "TargetsTrusted": 92,
        "ReportsBegan": 100,
        "LeaseStale": 101,
        "Offered": 80,
    }


def test_a_kind_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(ValueError, match="no change 999"):
        unpack(msgpack.packb([[1.0, 2.0, [[999, 1]]]]))


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.__name__)
def test_a_change_with_events_edits_the_revision(kind: type[Any]) -> None:
    change = example(kind)
    if count_events(change):
        assert changes.META in list(change.edits())
