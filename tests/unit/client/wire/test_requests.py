"""The classes of requests: they are those of docs/protocol.md, and read what they write."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, NamedTuple, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.protocol_document import Message, messages, sections, table
from trackd_client.errors import DialFailed
from trackd_client.wire import requests
from trackd_client.wire.errors import ProtocolError
from trackd_client.wire.protocol import MAX_LABELS, REQUEST, VERSION, decode, encode
from trackd_client.wire.requests import LISTINGS, MAX_ROWS, RequestFields

CLASSES: dict[str, type[RequestFields]] = {
    each.op: each
    for each in vars(requests).values()
    if isinstance(each, type) and issubclass(each, RequestFields) and each is not RequestFields
}
#: Fields that any request may have; all others belong to an operation.
COMMON = {"op", "seq", "token", "done", "deadline", "reply_if_stale", "namespace"}


class Settings(NamedTuple):
    cluster_name: str = "example.com"
    max_name: int = 255
    max_principals: int = 64
    max_proxies: int = 10_000


ACCEPTED = Settings()

texts = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=60)
names = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=60)
ids = st.integers(1, 2**64 - 1)
counts = st.integers(0, 2**64 - 1)
principals = st.lists(names, max_size=5)
limits = st.integers(1, MAX_ROWS)
rows = st.lists(
    st.tuples(names, texts, counts, st.none() | st.floats(0, 1e6)).map(list), max_size=5
)
labels = st.dictionaries(names, texts, max_size=MAX_LABELS)
clusters = st.sampled_from([None, "example.com"])
wanted = st.none() | st.lists(texts, max_size=5)
#: Valid values of the fields of each operation that has any.
VALUES: dict[str, st.SearchStrategy[RequestFields]] = {
    "explain": st.builds(requests.Explain, st.none() | names),
    "snapshot": st.builds(
        requests.Snapshot,
        st.sampled_from(LISTINGS),
        st.none() | st.lists(counts, min_size=2, max_size=2),
        limits,
    ),
    "log": st.builds(requests.Log, counts, limits, st.booleans()),
    "metrics": st.builds(requests.Metrics, wanted),
    "config": st.builds(requests.Config, wanted),
    "open": st.builds(requests.Open, texts, texts, labels, clusters),
    "track_expected": st.builds(requests.TrackExpected, rows),
    "set_connection_count": st.builds(
        requests.SetConnectionCount, st.integers(-(2**63), 2**63 - 1)
    ),
    "is_claimed": st.builds(requests.IsClaimed, principals),
    "claim": st.builds(requests.Claim, ids, principals),
    "retire": st.builds(requests.Retire, ids),
    "report": st.builds(
        requests.Report, st.lists(st.tuples(ids, st.none() | st.floats(0, 60)).map(list))
    ),
    "offer": st.builds(requests.Offer, ids),
    "release": st.builds(requests.Release, ids, st.none() | st.sampled_from(requests.OUTCOMES))
    | st.builds(
        requests.Release, ids, st.sampled_from(DialFailed.reasons), st.none() | st.floats(0, 60)
    ),
    "adopt": st.builds(requests.Adopt, principals),
    "cancel": st.builds(requests.Cancel, ids),
    "force_release": st.builds(requests.ForceRelease, ids),
    "end_session": st.builds(requests.EndSession, ids),
    "drop_host": st.builds(requests.DropHost, names),
    "yield_lead": st.builds(requests.YieldLead, ids),
    "forget": st.builds(requests.Forget, names)
    | st.builds(requests.Forget, st.none(), texts, st.none() | counts),
}
anything = st.sampled_from(sorted(CLASSES)).flatmap(
    lambda op: VALUES.get(op, st.builds(CLASSES[op]))
)

# the tables of the document

#: The types of the document as they are in Python.
TYPES: dict[str, Any] = {
    "text": str,
    "name": str,
    "short text": str,
    "integer": int,
    "number": float,
    "boolean": bool,
    "array of names": list[str],
    "array of two integers": list[int],
    "map of text to short text": dict[str, str],
    # Of these the daemon checks the elements when it uses them, if at all.
    "array of text": list[Any],
    "array of arrays": list[Any],
}
#: Where the type in Python is another: the principals of a claim are checked late.
UNCHECKED = {("claim", "principals"): Any}
#: The defaults of the document as they are in Python; where it names none, it is None.
DEFAULTS: dict[str, Any] = {
    '`""`': "",
    "none": {},
    "all": None,
    "any": None,
    "0": 0,
    "1000": 1000,
    "false": False,
}
#: The fields without which a request is refused.
REQUIRED: dict[str, dict[str, Any]] = {
    "snapshot": {"of": "proxies"},
    "track_expected": {"proxies": []},
    "set_connection_count": {"count": 3},
    "is_claimed": {"principals": []},
    "claim": {"lease": 1, "principals": []},
    "retire": {"lease": 1},
    "report": {"reports": [[1, 0.25], [2, None]]},
    "offer": {"lease": 1},
    "release": {"lease": 1},
    "adopt": {"principals": []},
    "cancel": {"target": 77},
    "force_release": {"lease": 1},
    "end_session": {"session": 99},
    "forget": {"name": "p1"},
    "drop_host": {"host": "host-1"},
    "yield_lead": {"term": 412},
}


class Documented(NamedTuple):
    """A field in a table of the document.

    Attributes:
        op: the operation.
        name: the name of the field.
        type: without bounds.
        optional: whether it can be left out.
        default: as the document has it; None: it has none.
    """

    op: str
    name: str
    type: str
    optional: bool
    default: str | None


def documented(op: str) -> list[Documented]:
    """Return the fields of an operation, in their order."""
    if "No fields" in sections()[op]:
        return []
    found = []
    for name, kind, meaning in table(op):
        default = re.search(r"default: (`\"\"`|[\w]+)", meaning)
        optional = default is not None or re.search("without it|optional|left out", meaning)
        bare = kind.split(",")[0]
        value = None if default is None else default[1]
        found.append(Documented(op, name.strip("`"), bare, bool(optional), value))
    return found


FIELDS = [field for op in CLASSES for field in documented(op)]


def test_there_is_a_class_for_each_operation_of_the_document() -> None:
    assert list(CLASSES) == [re.split(r"`", row[0])[1] for row in table("Operations")]


@pytest.mark.parametrize("op", CLASSES)
def test_a_class_has_the_fields_of_the_document_with_their_types(op: str) -> None:
    hints = get_type_hints(CLASSES[op])
    assert [(field.name, hints[field.name]) for field in dataclasses.fields(CLASSES[op])] == [
        (field.name, UNCHECKED.get((op, field.name)) or wanted_type(field))
        for field in documented(op)
    ]


def wanted_type(field: Documented) -> Any:
    """Return the type of an attribute: None is in it where that is the default."""
    kind = TYPES[field.type]
    return kind | None if field.optional and default_of(field) is None else kind


def default_of(field: Documented) -> Any:
    return None if field.default is None else DEFAULTS[field.default]


def test_all_that_the_document_does_not_call_optional_is_required() -> None:
    required: dict[str, set[str]] = {}
    for field in FIELDS:
        if not field.optional or field == documented("forget")[0]:  # without a group it is
            required.setdefault(field.op, set()).add(field.name)
    assert required == {op: set(fields) for op, fields in REQUIRED.items()}


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: f"{field.op}-{field.name}")
@pytest.mark.parametrize("missing", [{}, None], ids=["missing", "nil"])
def test_a_missing_field_has_its_default_or_is_refused(
    field: Documented, missing: dict[str, Any] | None
) -> None:
    body = dict(REQUIRED.get(field.op, {}))
    needed = body.pop(field.name, None) is not None
    if missing is None:
        body[field.name] = None
    if (field.op, field.name) in UNCHECKED:
        assert getattr(CLASSES[field.op].decode(body, ACCEPTED), field.name) is None
    elif needed:
        with pytest.raises(ProtocolError, match=field.name):
            CLASSES[field.op].decode(body, ACCEPTED)
    else:
        found = getattr(CLASSES[field.op].decode(body, ACCEPTED), field.name)
        assert (found, type(found)) == (default_of(field), type(default_of(field)))


# what is written is read


@given(anything)
def test_a_request_reads_what_it_writes(request: RequestFields) -> None:
    decoded = decode(encode(REQUEST, {"op": request.op, "seq": 1, **request.encode()}))
    assert decoded is not None
    assert type(request).decode(decoded[1], ACCEPTED) == request


@given(anything, st.dictionaries(st.text(min_size=1).map("new {}".format), st.integers()))
def test_unknown_fields_are_ignored(request: RequestFields, unknown: dict[str, int]) -> None:
    assert type(request).decode({**unknown, **request.encode()}, ACCEPTED) == request


SENT = [
    message
    for message in messages()
    if message.kind == REQUEST and message.value[0] == VERSION and message.body["op"] in CLASSES
]


@pytest.mark.parametrize("message", SENT, ids=lambda message: message.name)
def test_the_recorded_requests_are_read_and_written_field_by_field(message: Message) -> None:
    decoded = decode(message.frame)
    assert decoded is not None
    body = decoded[1]
    fields = CLASSES[body["op"]].decode(body, ACCEPTED).encode()
    assert list(fields.items()) == [item for item in body.items() if item[0] not in COMMON]
