"""What an operation of the protocol is: how it runs, and what it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from trackd.operations.call import Call
from trackd_client.errors import Code
from trackd_client.wire.errors import ProtocolError

Fields = dict[str, Any]
#: The result of an operation whose request is parked: its reply comes later.
PARKED: Final = object()


class Operation(NamedTuple):
    """One operation of the protocol.

    Attributes:
        run: runs it, given the context, the call and, within a session, the session.
        changes: whether it can change the state; then its reply is remembered.
        repeatable: whether it may run again after a restart, however old it is, without harm.
        never_stale: whether it runs however late it arrives.
        admin: whether it needs the role admin.
        costly: whether one request may cost as much as a hundred others: its reply may be large,
            or it walks.
    """

    run: Callable[..., Any]
    changes: bool = False
    repeatable: bool = False
    never_stale: bool = False
    admin: bool = False
    costly: bool = False


#: The daemon's own request to itself; not a part of the protocol.
PROBE: Final = "probe"


def value_of(body: Mapping[str, Any], field: str, default: Any) -> Any:
    """Return an optional field of a request, or its default when it is missing or nil."""
    value = body.get(field)
    return default if value is None else value


def names_of(call: Call) -> list[Any] | None:
    """Return the names that a request asks for, or None for all."""
    names = call.body.get("names")
    if names is not None and type(names) is not list:
        raise ProtocolError(Code.INVALID_ARGUMENT, "names must be an array")
    return names
