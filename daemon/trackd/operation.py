"""What an operation of the protocol is: the words that requests and operators' tables share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

Fields = dict[str, Any]
#: A request that waits: its reply comes later.
PARKED: Final = object()


class Operation(NamedTuple):
    """One operation of the protocol.

    Attributes:
        run: does it, given the `Requests`, the call and, within a session, the session.
        changes: whether it can change the state; then its reply is remembered.
        never_stale: whether it is done however late it arrives.
        admin: whether it needs the role admin.
    """

    run: Callable[..., Any]
    changes: bool = False
    never_stale: bool = False
    admin: bool = False
