"""What each call requests, and how its reply is read."""

from __future__ import annotations

import inspect
import math
import threading
from typing import Any, Final

import pytest

from trackd_client import Explanation, Fleet, Proxy, ProxyExplanation, Status
from trackd_client.core import calls
from trackd_client.core.calls import BY_TIMEOUT, Call, Grant, deadline_of
from trackd_client.errors import BadArgument
from trackd_client.wire.clock import boottime
from trackd_client.wire.requests import Release

#: For each call: the arguments, the fields of the request, those of a reply, the result, and
#: whether it needs a session.
CALLS: Final[list[tuple[str, tuple[Any, ...], dict[str, Any], dict[str, Any], Any, bool]]] = [
    (
        "track_expected",
        ((Proxy("p", "g", 2, 5.0),),),
        {"proxies": [["p", "g", 2, 5.0]]},
        {},
        None,
        True,
    ),
    ("set_connection_count", (3,), {"count": 3}, {}, None, True),
    ("is_claimed", (("p", "p.c"),), {"principals": ["p", "p.c"]}, {"claimed": True}, True, True),
    ("release", (Release(4),), {"lease": 4}, {"released": True}, None, True),
    (
        "release",
        (Release(4, "rate", 9.0),),
        {"lease": 4, "failed": "rate", "retry_after": 9.0},
        {"released": True},
        None,
        True,
    ),
    ("retire", (7,), {"lease": 7}, {"retired": True}, True, True),
    ("offer", (7,), {"lease": 7}, {"offered": True}, True, True),
    ("ping", (), {}, {}, None, False),
    ("status", (), {}, {"tracked": 3}, Status({"tracked": 3}), False),
    ("explain", (None,), {}, {"desired": 3}, Explanation({"desired": 3}), False),
    (
        "explain",
        ("p",),
        {"name": "p"},
        {"known": False},
        ProxyExplanation({"known": False}),
        False,
    ),
    ("metrics", (), {}, {"families": {}}, {"families": {}}, False),
    ("config", (), {}, {"settings": {}}, {"settings": {}}, False),
    ("fleet", (), {}, {"leader": "c"}, Fleet({"leader": "c"}), False),
    ("drop_host", ("h",), {"host": "h"}, {"sessions": 2}, {"sessions": 2}, True),
    ("yield_lead", (9,), {"term": 9}, {"yielded": True}, {"yielded": True}, True),
    ("force_release", (4,), {"lease": 4}, {"released": True}, {"released": True}, True),
    ("end_session", (5,), {"session": 5}, {"ended": True}, {"ended": True}, True),
    ("forget", ("p", None, None), {"name": "p"}, {"count": 1}, {"count": 1}, True),
    (
        "forget",
        (None, "g", 0),
        {"group": "g", "generation": 0},
        {"count": 1},
        {"count": 1},
        True,
    ),
    ("resume", (), {}, {"resumed": 2}, {"resumed": 2}, True),
    ("reload", (), {}, {"reloads": 2}, {"reloads": 2}, True),
]


@pytest.mark.parametrize(("name", "args", "fields", "reply", "result", "in_session"), CALLS)
def test_a_call_has_its_fields_and_reads_its_reply(
    name: str,
    args: tuple[Any, ...],
    fields: dict[str, Any],
    reply: dict[str, Any],
    result: Any,
    in_session: bool,
) -> None:
    call: Call[Any] = getattr(calls, name)(*args)
    assert (call.op, call.fields, call.in_session) == (name, fields, in_session)
    read = call.read({"seq": 9, **reply})
    assert read == result
    assert type(read) is type(result)
    assert call.never_stale == (name == "release"), "a lease is not lost with a late release"


def test_no_call_is_missing_above() -> None:
    functions = {
        name: inspect.signature(value, eval_str=True).return_annotation
        for name, value in vars(calls).items()
        if inspect.isfunction(value) and value.__module__ == calls.__name__ and name[0] != "_"
    }
    made = {name for name, kind in functions.items() if getattr(kind, "__origin__", 0) is Call}
    assert made == {case[0] for case in CALLS}


def test_what_grants_a_lease_waits_as_long_as_it_was_told() -> None:
    assert calls.try_acquire() == Grant("try_acquire", {}, BY_TIMEOUT, parks=False, refused="")
    assert calls.adopt(("p",)) == Grant("adopt", {"principals": ["p"]})
    assert calls.acquire(None)[:4] == ("acquire", {}, None, True)
    assert calls.acquire(0) == Grant("try_acquire", {}, refused="no lease was granted at once")
    before = boottime()
    grant = calls.acquire(0.5)
    assert grant.parks
    assert grant.deadline is not None
    assert before + 0.5 <= grant.deadline <= boottime() + 0.5
    assert grant.refused == "no lease was granted within 0.5 s"
    assert calls.acquire(5.0).refused == "no lease was granted within 5 s"


def test_a_deadline_is_a_moment_or_never() -> None:
    assert deadline_of(None) is None
    assert deadline_of(threading.TIMEOUT_MAX) is None
    assert deadline_of(math.inf) is None


@pytest.mark.parametrize("timeout", [-1, math.nan, "5", b""])
def test_what_is_no_time_to_wait_is_refused(timeout: Any) -> None:
    with pytest.raises(BadArgument, match="timeout"):
        calls.acquire(timeout)
