"""What an operation of the protocol is: how it runs, and what it needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from trackd.config.settings import Config
from trackd_client.wire.requests import RequestFields

Fields = dict[str, Any]
#: The result of an operation whose request is parked: its reply comes later.
PARKED: Final = object()


class Operation(NamedTuple):
    """One operation of the protocol.

    Attributes:
        decode: returns the fields of its requests, given a request's body and the settings.
        run: runs it, given the context, the call, within a session the session, and the fields.
        changes: whether it can change the state; then its reply is remembered.
        repeatable: whether it may run again after a restart, however old it is, without harm.
        never_stale: whether it runs however late it arrives.
        admin: whether it needs the role admin.
        costly: whether one request may cost as much as a hundred others: its reply may be large,
            or it walks.
    """

    decode: Callable[[dict[str, Any], Config], RequestFields]
    run: Callable[..., Any]
    changes: bool = False
    repeatable: bool = False
    never_stale: bool = False
    admin: bool = False
    costly: bool = False


#: The daemon's own request to itself; not a part of the protocol.
PROBE: Final = "probe"
