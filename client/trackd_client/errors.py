"""Every error that the client raises, and the code under which the daemon sends it.

::

    TrackdError
    ├── DaemonAbsent        (ConnectionError)  no daemon listens on the socket
    ├── NoAnswer            (TimeoutError)     connected, but no reply before the deadline
    ├── AcquireTimeout      (TimeoutError)     no lease became free in time
    ├── SessionLost                            the session and its leases are gone
    ├── TrackerClosed                          used after close()
    ├── SystemRefused       (OSError)          no descriptor or thread is left; it passes
    ├── UsedAfterFork                          used in a child of the process that made it
    ├── WrongLoop           (RuntimeError)     used in another event loop than before
    ├── BadPayload          (ValueError)       a gossip payload that cannot be read
    ├── BadArgument         (ValueError)       an argument that can never be right
    ├── DialFailed                             raised by a dial, to say how it failed
    └── Refused                                the daemon answered, and said no: `code`
        ├── InvalidRequest  (ValueError)       malformed, invalid_argument, unknown_operation
        ├── LimitExceeded                      limit_exceeded
        ├── QuotaExceeded                      quota_exceeded
        ├── WrongCluster                       wrong_cluster
        ├── VersionMismatch                    unsupported_version
        ├── PermissionRefused (PermissionError) permission_denied
        ├── NotOwner                           not_owner
        ├── LeaseExpired                       lease_expired
        ├── StoreUnavailable                   unavailable
        └── DaemonFailed                       internal
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

__all__ = [
    "AcquireTimeout",
    "BadArgument",
    "BadPayload",
    "Code",
    "DaemonAbsent",
    "DaemonFailed",
    "DialFailed",
    "InvalidRequest",
    "LeaseExpired",
    "LimitExceeded",
    "NoAnswer",
    "NotOwner",
    "PermissionRefused",
    "QuotaExceeded",
    "Refused",
    "SessionLost",
    "StoreUnavailable",
    "SystemRefused",
    "TrackdError",
    "TrackerClosed",
    "UsedAfterFork",
    "VersionMismatch",
    "WrongCluster",
    "WrongLoop",
]


class Code:
    """The stable error codes of the wire (docs/protocol.md, "Errors")."""

    MALFORMED = "malformed"
    UNSUPPORTED_VERSION = "unsupported_version"
    UNKNOWN_OPERATION = "unknown_operation"
    INVALID_ARGUMENT = "invalid_argument"
    LIMIT_EXCEEDED = "limit_exceeded"
    QUOTA_EXCEEDED = "quota_exceeded"
    WRONG_CLUSTER = "wrong_cluster"
    PERMISSION_DENIED = "permission_denied"
    SESSION_UNKNOWN = "session_unknown"
    SESSION_ENDED = "session_ended"
    NOT_OWNER = "not_owner"
    LEASE_EXPIRED = "lease_expired"
    UNAVAILABLE = "unavailable"
    STALE = "stale"
    INTERNAL = "internal"


class TrackdError(Exception):
    """The root of all errors of this package.

    Attributes:
        reason: why a session has ended, as in the error `session_ended` of docs/protocol.md, or why
            the daemon does not serve; "" when that is not known.
    """

    reason: str = ""


class DaemonAbsent(TrackdError, ConnectionError):
    """Nobody listens on the socket, or it may not be opened by this user."""


class NoAnswer(TrackdError, TimeoutError):
    """The daemon accepted the connection, but no reply came before the deadline."""


class AcquireTimeout(TrackdError, TimeoutError):
    """No lease was granted within the time that `acquire` was given."""


class SystemRefused(TrackdError, OSError):
    """The system refused this process a descriptor, a socket or a thread. That passes."""


class SessionLost(TrackdError):
    """The daemon no longer knows this session, so its leases are gone.

    The next call opens a fresh session. Tunnels that are still open can be taken
    up again with `Tracker.adopt`, unless `reason` is `cut_off`: then close them at once.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class TrackerClosed(TrackdError):
    """The tracker was closed, and is used all the same."""


class UsedAfterFork(TrackdError):
    """A tracker belongs to the process that made it; a child makes its own."""


class WrongLoop(TrackdError, RuntimeError):
    """An AsyncTracker belongs to the event loop that it was first used in."""


class BadPayload(TrackdError, ValueError):
    """A gossip payload is not Teleport's JSON, or holds what no proxy can be."""


class BadArgument(TrackdError, ValueError):
    """An argument of the caller can never be right; the daemon was not even asked."""


class DialFailed(TrackdError):
    """Raised by the `dial` of a pool, to say how it failed where its exception does not.

    Attributes:
        failed: `refused`, `timeout`, `tls` or `rate`, which may pause the dials of the whole host;
            or `auth` or `other`, which may pause those of this agent.
        retry_after: seconds for which the other end asked not to dial, or None; 60 count at most.

    Raises:
        BadArgument: `failed` is none of them.
    """

    reasons: ClassVar[tuple[str, ...]] = ("refused", "timeout", "tls", "rate", "auth", "other")

    def __init__(self, failed: str, retry_after: float | None = None) -> None:
        if failed not in self.reasons:
            raise BadArgument(
                f"failed must be one of {', '.join(self.reasons)}, not {failed!r:.100}"
            )
        super().__init__(f"the dial failed: {failed}")
        self.failed = failed
        self.retry_after = retry_after


class Refused(TrackdError):
    """The daemon answered, and said no.

    Attributes:
        code: one of `Code`, stable over versions.
        retry_after: seconds after which another try makes sense, or None.
    """

    codes: ClassVar[tuple[str, ...]] = ()

    def __init__(self, message: str, code: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after = retry_after


class InvalidRequest(Refused, ValueError):
    """A field of the request is missing, of the wrong type, or out of range."""

    codes = (Code.INVALID_ARGUMENT, Code.MALFORMED, Code.UNKNOWN_OPERATION)


class LimitExceeded(Refused):
    """The request, or what the session holds, is over a limit of the daemon."""

    codes = (Code.LIMIT_EXCEEDED,)


class QuotaExceeded(Refused):
    """The user of this process has all that a quota of the daemon allows one user.

    Attributes:
        quota: which one: `sessions`, `leases`, `waiters`, `reply_bytes` or `subscriptions`.
        used: how much the user has.
        allowed: how much one user may have.
    """

    codes = (Code.QUOTA_EXCEEDED,)
    quota: str = ""
    used: int = 0
    allowed: int = 0


class WrongCluster(Refused):
    """The daemon serves another cluster than the one that was asked for."""

    codes = (Code.WRONG_CLUSTER,)


class VersionMismatch(Refused):
    """The daemon does not speak this version of the protocol."""

    codes = (Code.UNSUPPORTED_VERSION,)


class PermissionRefused(Refused, PermissionError):
    """The daemon does not allow this to this user."""

    codes = (Code.PERMISSION_DENIED,)


class NotOwner(Refused):
    """The lease belongs to another session."""

    codes = (Code.NOT_OWNER,)


class LeaseExpired(Refused):
    """The lease was in flight for longer than the daemon's `claim_timeout`."""

    codes = (Code.LEASE_EXPIRED,)


class StoreUnavailable(Refused):
    """The daemon cannot store changes just now; it goes on trying by itself."""

    codes = (Code.UNAVAILABLE,)


class DaemonFailed(Refused):
    """The daemon met an error of its own; its log has more."""

    codes = (Code.INTERNAL,)


_BY_CODE: dict[str, type[Refused]] = {
    code: error for error in Refused.__subclasses__() for code in error.codes
}

#: The reason that a host gives which is cut off from its fleet: others dial its proxies soon.
CUT_OFF = "cut_off"
#: Codes which say that the session is gone.
LOST = frozenset({Code.SESSION_UNKNOWN, Code.SESSION_ENDED})
#: Codes of troubles that pass: the same request, sent again later, is served.
PASSING = frozenset({Code.UNAVAILABLE, Code.INTERNAL})
#: The same, and no answer at all, as they are raised.
TROUBLES = (NoAnswer, DaemonAbsent, StoreUnavailable, DaemonFailed, SystemRefused)


def refusal(
    code: str,
    message: str,
    retry_after: float | None = None,
    fields: Mapping[str, Any] = MappingProxyType({}),
) -> TrackdError:
    """Return the exception for an error reply.

    Args:
        code: the reply's error code; one that this version does not know gives `Refused`.
        message: the daemon's sentence.
        retry_after: seconds, or None.
        fields: all fields of the reply.
    """
    reason = str(fields.get("reason") or "")
    if code in LOST:
        return SessionLost(message, reason)
    error = _BY_CODE.get(code, Refused)(message, code, retry_after)
    error.reason = reason
    if isinstance(error, QuotaExceeded):
        error.quota = str(fields.get("quota", ""))
        error.used, error.allowed = fields.get("used", 0), fields.get("allowed", 0)
    return error
