"""What a tracker returns: frozen classes, which are the dictionaries that they were as well."""

from __future__ import annotations

import copy
import json
import pickle
import re
from collections.abc import Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, assert_type

import pytest

from helpers.protocol_document import messages, pack, sections, table
from trackd_client import results
from trackd_client.results import (
    EtcdAlarm,
    EtcdHealth,
    EtcdMember,
    Explanation,
    Fleet,
    FleetCandidate,
    FleetHost,
    Group,
    GroupGap,
    Hint,
    LeaseRow,
    Outcomes,
    Pause,
    ProxyExplanation,
    ProxyRow,
    ProxyTarget,
    RecentClaims,
    Reload,
    Result,
    SessionRow,
    Snapshot,
    Source,
    Status,
    Tombstone,
    Tunnels,
    UserUsage,
)

CLASSES: list[type[Result]] = [
    each for each in (getattr(results, name) for name in results.__all__) if each is not Result
]


def reply(name: str) -> dict[str, Any]:
    """Return the fields of a reply that the protocol document shows, without its number."""
    (body,) = [m.body for m in messages() if m.name == name]
    return {field: value for field, value in body.items() if field != "seq"}


STATUS = reply("status reply")
EXPLANATION = reply("explain reply")
ABOUT_PROXY = reply("explain reply, of a proxy")
(PROXY,) = reply("snapshot reply, the first page")["rows"]
(LEASE,) = reply("snapshot reply, of leases")["rows"]
(SESSION,) = reply("snapshot reply, of sessions")["rows"]
SNAPSHOT = {"revision": 6, "proxies": [PROXY], "leases": [LEASE], "sessions": [SESSION]}
EVERY: list[tuple[type[Result], dict[str, Any]]] = [
    (Status, STATUS),
    (Explanation, EXPLANATION),
    (Explanation, reply("explain reply, with a hint")),
    (ProxyExplanation, ABOUT_PROXY),
    (Fleet, reply("fleet reply")),
    (Snapshot, SNAPSHOT),
    (ProxyRow, PROXY),
    (LeaseRow, LEASE),
    (SessionRow, SESSION),
]


# -- the classes are those of docs/protocol.md ----------------------------------------------

#: What the types of the document are here.
TYPES = {
    "text": "str",
    "name": "str",
    "integer": "int",
    "number": "float",
    "boolean": "bool",
    "array of names": "Sequence[str]",
    "map of integers": "Mapping[str, int]",
    "map of text": "Mapping[str, str]",
}
#: Fields that are results themselves, or lists of them.
NESTED = {
    "reload": "Reload",
    "groups": "Sequence[Group]",
    "missing_by_group": "Sequence[GroupGap]",
    "users": "Sequence[UserUsage]",
    "recent": "RecentClaims",
    "tombstone": "Tombstone",
    "source": "Source",
    "group_source": "Source",
    "proxy": "ProxyRow",
    "hosts": "Sequence[FleetHost]",
    "candidates": "Sequence[FleetCandidate]",
    "etcd": "EtcdHealth",
    "members": "Sequence[EtcdMember]",
    "alarms": "Sequence[EtcdAlarm]",
}
#: Fields that no event has: None in a row that appeared while a snapshot was read.
UNKNOWN_TO_EVENTS = {(LeaseRow, "pid"), (SessionRow, "gid"), (SessionRow, "visible")}


def documented(kind: type[Result], rows: list[list[str]]) -> dict[str, str]:
    """Return the annotations that the rows of a table ask for."""
    found = {}
    for cell, told, _ in rows:
        field = cell.strip("`")
        type_, _, nil = told.partition(" or ")
        assert nil in {"", "nil"}, told
        here = NESTED[field] if type_ in {"map", "array of maps"} else TYPES[type_]
        optional = nil or (kind, field) in UNKNOWN_TO_EVENTS
        found[field] = f"{here} | None" if optional else here
    return found


def tables(section: str) -> list[list[list[str]]]:
    """Return the rows of each table of a section, without its head."""
    found = []
    for each in re.findall(r"^\|.+\n\| ---.+\n((?:\|.+\n)+)", sections()[section], re.MULTILINE):
        lines = each.splitlines()
        found.append([[cell.strip() for cell in line.strip("|").split("|")] for line in lines])
    return found


@pytest.mark.parametrize(
    ("kind", "section"),
    [
        (ProxyRow, "A row of the proxies"),
        (LeaseRow, "A row of the leases"),
        (SessionRow, "A row of the sessions"),
    ],
)
def test_a_row_has_the_fields_and_types_of_the_document(kind: type[Result], section: str) -> None:
    optional = {"pause": "Pause | None"} if kind is SessionRow else {}
    assert kind.__annotations__ == {**documented(kind, table(section)), **optional}


def test_a_status_has_the_fields_and_types_of_the_document() -> None:
    assert "`http_problem`, a text" in sections()["status"]
    assert Status.__annotations__ == {
        "revision": "int",
        **documented(Status, table("status")),
        "claimed_terminating": "int",
        "offered": "int",
        "http_problem": "str | None",
        "pause": "Pause | None",
        "paused_sessions": "int",
        "tunnels": "Tunnels | None",
        "leader": "str",
    }


def test_a_fleet_has_the_fields_and_types_of_the_document() -> None:
    assert Fleet.__annotations__ == {"revision": "int", **documented(Fleet, table("fleet"))}
    assert FleetHost.__annotations__ == documented(FleetHost, table("A row of the hosts"))
    candidate = documented(FleetCandidate, table("A row of the candidates"))
    assert FleetCandidate.__annotations__ == candidate
    health, member, alarm = tables("How etcd is")
    assert EtcdHealth.__annotations__ == documented(EtcdHealth, health)
    assert EtcdMember.__annotations__ == documented(EtcdMember, member)
    assert EtcdAlarm.__annotations__ == documented(EtcdAlarm, alarm)


def test_an_explanation_has_the_fields_and_types_of_the_document() -> None:
    _, about_leases, _ = tables("explain")
    before = sections()["explain"].partition("Without `name` the reply has")[2]
    shared = re.findall(r"`(\w+)`", before.partition("as in [`status`]")[0])
    assert len(shared) == 8
    assert Explanation.__annotations__ == {
        "revision": "int",
        **{field: Status.__annotations__[field] for field in shared},
        **documented(Explanation, about_leases),
        "claimed_terminating": "int",
        "offered": "int",
        "hint": "Hint | None",
        "retry_after": "float | None",
        "pause": "Pause | None",
        "outcomes": "Outcomes | None",
    }


def test_the_explanation_of_a_proxy_has_the_fields_and_types_of_the_document() -> None:
    _, _, about_proxy = tables("explain")
    assert ProxyExplanation.__annotations__ == {
        "revision": "int",
        **documented(ProxyExplanation, about_proxy),
        "target": "ProxyTarget | None",
        **{name: LeaseRow.__annotations__[name] for name in ("reported", "rtt", "stale")},
        "offered": "bool",
        "only_source": "bool",
    }


@pytest.mark.parametrize(
    ("kind", "section", "field"),
    [
        (Reload, "status", "reload"),
        (Group, "status", "groups"),
        (GroupGap, "status", "missing_by_group"),
        (RecentClaims, "explain", "recent"),
        (Tombstone, "explain", "tombstone"),
    ],
)
def test_a_map_in_a_field_has_the_fields_of_the_document(
    kind: type[Result], section: str, field: str
) -> None:
    (told,) = [
        row[2]
        for rows in tables(section)
        for row in rows
        if row[0] == f"`{field}`" and len(row) == 3
    ]
    found = re.findall(r"(?<!\[)`(\w+)`", told)
    assert list(kind.__annotations__) == found


def test_a_hint_has_the_fields_of_the_document() -> None:
    told = sections()["explain"].partition("It has [`hint`]")[2].partition("\n\n")[0]
    assert list(Hint.__annotations__) == re.findall(r"`(\w+)`", told)


def test_what_a_user_uses_is_what_has_a_quota() -> None:
    quotas = [row[0].strip("`") for row in table("Quotas")]
    assert list(UserUsage.__annotations__) == ["uid", "host", "exempt", *quotas]


def test_the_target_of_a_proxy_has_the_fields_of_the_document() -> None:
    told = sections()["explain"].partition("When its address is known")[2]
    fields = set(ProxyTarget.__annotations__)
    assert fields <= set(re.findall(r"(?<!\[)`(\w+)`", told))


def test_a_pause_and_the_outcomes_have_the_fields_of_the_document() -> None:
    told = sections()["A pause"].partition("is a map of")[2]
    assert list(Pause.__annotations__) == re.findall(r"(?<!\[)`(\w+)`", told)
    told = sections()["status"].partition("has `tunnels`, a\nmap of")[2]
    assert list(Tunnels.__annotations__) == re.findall(r"`(\w+)`", told)
    told = sections()["explain"].partition("`outcomes`, a map of")[2].partition(": `claimed`")[0]
    assert list(Outcomes.__annotations__) == re.findall(r"`(\w+)`", told)


def test_a_source_has_the_fields_of_the_document() -> None:
    told = sections()["Who said it"].partition("ended too")[0]
    assert set(Source.__annotations__) == set(re.findall(r"`(\w+)`", told))


@pytest.mark.parametrize(("kind", "fields"), EVERY)
def test_the_fields_of_a_message_are_attributes_of_the_annotated_types(
    kind: type[Result], fields: dict[str, Any]
) -> None:
    missing = set(kind.__annotations__) - set(fields)
    assert missing <= {
        *("claimed_terminating", "http_problem", "outcomes", "pause", "paused_sessions"),
        *("offered", "retry_after", "terminating", "tunnels", "reported", "rtt", "stale"),
        *("address", "hint", "host", "leader", "only_source", "target"),
    }
    assert set(fields) <= set(kind.__annotations__)
    check(kind(fields))


def check(result: Result) -> None:
    """Check the values of all attributes against their annotations, within nested results too."""
    plain: dict[str, Any] = {"str": str, "int": int, "float": (int, float), "bool": bool}
    for name, annotation in type(result).__annotations__.items():
        value = getattr(result, name)
        here = annotation.removesuffix(" | None")
        if value is None and (here != annotation or name not in result):
            continue
        if here in plain:
            assert isinstance(value, plain[here]), name
        elif here.startswith("Mapping["):
            assert isinstance(value, Mapping), name
        elif here.startswith("Sequence["):
            assert isinstance(value, list), name
            inner = here.removeprefix("Sequence[").removesuffix("]")
            for each in value:
                assert type(each).__name__ == inner or inner.startswith("Sequence["), name
                if isinstance(each, Result):
                    check(each)
        else:
            assert type(value).__name__ == here, name
            check(value)


# -- old use goes on ------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "fields"), EVERY)
def test_a_result_is_the_dictionary_of_the_reply(
    kind: type[Result], fields: dict[str, Any]
) -> None:
    result = kind(fields)
    assert isinstance(result, dict)
    assert result == fields
    assert fields == result
    assert list(result) == list(fields), "in the same order"
    assert dict(result) == {**result} == fields
    assert [*result.items()] == [*fields.items()]
    assert result.get("revision") == fields.get("revision")
    assert result.get("nothing", 5) == 5
    assert "nothing" not in result
    assert json.dumps(result, indent=2) == json.dumps(fields, indent=2)
    assert pack(result) == pack(fields)
    with pytest.raises(KeyError):
        result["nothing"]


def test_a_field_of_a_newer_daemon_is_an_item_and_no_attribute() -> None:
    status = Status({**STATUS, "weather": "fine", "reload": {"wall": 1.0, "by": 0}})
    assert status["weather"] == "fine"
    assert list(status)[-1] == "weather"
    assert not hasattr(status, "weather")
    assert isinstance(status.reload, Reload)
    assert status.reload["by"] == 0


def test_a_field_that_an_older_daemon_does_not_send_has_its_default_or_none() -> None:
    status = Status({"claimed": 3})
    assert (status.claimed, status.http, status.events, status.users) == (3, "", "", ())
    assert status.http_problem is None
    assert status.reload is None
    assert dict(status) == {"claimed": 3}
    with pytest.raises(KeyError):
        status["http"]


def test_a_newer_daemon_may_send_something_else_in_the_place_of_a_map() -> None:
    assert Status({"reload": "soon"})["reload"] == "soon"
    assert Status({"groups": [1, {"group": "a"}]}).groups[1].group == "a"


# -- types ----------------------------------------------------------------------------------

if TYPE_CHECKING:  # mypy checks it; nothing runs
    from trackd_client import AsyncTracker, Tracker

    def check_types(tracker: Tracker) -> None:
        status = tracker.status()
        assert_type(status, Status)
        assert_type(status.claimed, int)
        assert_type(status.store_problem, str | None)
        assert_type(status.groups[0].generation, int)
        assert_type(tracker.explain(), Explanation)
        assert_type(tracker.explain().recent.duplicates, int)
        assert_type(tracker.explain("p1"), ProxyExplanation)
        assert_type(tracker.explain("p1").proxy.expires, float | None)
        assert_type(tracker.snapshot().leases[0].granted, float)
        for row in tracker.rows("proxies"):
            assert_type(row, ProxyRow)
        for lease in tracker.rows("leases"):
            assert_type(lease, LeaseRow)
        for session in tracker.rows("sessions"):
            assert_type(session, SessionRow)

    async def check_async_types(tracker: AsyncTracker) -> None:
        assert_type(await tracker.status(), Status)
        assert_type(await tracker.explain(), Explanation)
        assert_type(await tracker.explain("p1"), ProxyExplanation)
        assert_type(await tracker.snapshot(), Snapshot)
        async for row in tracker.rows("proxies"):
            assert_type(row, ProxyRow)
        async for lease in tracker.rows("leases"):
            assert_type(lease, LeaseRow)
        async for session in tracker.rows("sessions"):
            assert_type(session, SessionRow)


# -- frozen ---------------------------------------------------------------------------------

CHANGES: list[Callable[[MutableMapping[str, Any]], object]] = [
    lambda result: result.__setitem__("claimed", 1),
    lambda result: result.__delitem__("claimed"),
    lambda result: result.pop("claimed"),
    lambda result: result.popitem(),
    lambda result: result.clear(),
    lambda result: result.update(claimed=1),
    lambda result: result.setdefault("claimed", 1),
    lambda result: result.__ior__({"claimed": 1}),  # type: ignore[attr-defined]
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_result_refuses_each_change(
    change: Callable[[MutableMapping[str, Any]], object],
) -> None:
    status = Status(STATUS)
    with pytest.raises(TypeError, match=r"a Status cannot be changed; dict\(...\) returns a copy"):
        change(status)
    assert status == STATUS


@pytest.mark.parametrize("kind", CLASSES)
def test_an_attribute_cannot_be_set(kind: type[Result]) -> None:
    result = kind({})
    for name in [*kind.__annotations__, "weather"]:
        with pytest.raises(AttributeError):
            setattr(result, name, 1)
    assert not hasattr(result, "__dict__")


@pytest.mark.parametrize("kind", CLASSES)
def test_no_attribute_hides_what_dictionaries_have(kind: type[Result]) -> None:
    assert not set(kind.__annotations__) & set(dir(dict))


@pytest.mark.parametrize("kind", CLASSES)
def test_the_docstring_has_each_attribute_in_order(kind: type[Result]) -> None:
    assert kind.__doc__ is not None
    found = re.findall(r"^ {8}(\w+): \S", kind.__doc__, re.MULTILINE)
    assert found == list(kind.__annotations__)


def test_a_result_does_not_change_with_the_fields_that_it_was_made_from() -> None:
    fields = dict(STATUS)
    status = Status(fields)
    fields["claimed"] = 99
    assert status.claimed == STATUS["claimed"]


@pytest.mark.parametrize(("kind", "fields"), EVERY)
def test_a_result_survives_copies_and_pickles(kind: type[Result], fields: dict[str, Any]) -> None:
    result = kind(fields)
    for other in (copy.copy(result), copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert type(other) is kind
        assert other == result
        check(other)
    changed = result.copy()
    changed["weather"] = "fine"
    assert type(changed) is dict
    assert "weather" not in result


def test_the_repr_is_short_and_names_the_first_fields() -> None:
    text = repr(Status(STATUS))
    assert text.startswith("Status(revision=11, cluster='example.com', server='0.1.0', pid=4711,")
    assert text.endswith(f", ... {len(STATUS)} fields)")
    assert len(text) < 250
    assert repr(Source({"session": 1, "agent": "a" * 90})) == (
        f"Source(session=1, agent='{'a' * 39}...)"
    )
    assert len(repr(Snapshot({"revision": 1, "proxies": [PROXY] * 1000}))) < 250
