"""Quotas: how much of the daemon one user may use, so that every other user has a share.

A quota bounds what all sessions of one uid of one host have together. What is over it is refused
with `quota_exceeded`, which says which quota, how much is used and how much is allowed; nothing
that the user has already is taken away. Root and the daemon's own user have no quotas, so that a
daemon for one user bounds nobody; those of another host have. The limits of the whole daemon
(`[limits]`) hold for them too, but of sessions and replies some are kept for them, so that an
administrator always gets in.
"""

from __future__ import annotations

import heapq
import os
from typing import Final

from trackd.config.settings import Config
from trackd.operations.context import Context, host_fields
from trackd.operations.operation import Fields
from trackd.rules.user import User, describe_user
from trackd.sessions.sessions import Session
from trackd.sessions.use import Use
from trackd.state import exactly_once
from trackd_client.errors import Code
from trackd_client.wire.errors import ProtocolError

#: The quotas, and what each counts. The setting of a quota is called `quota_` and its name.
QUOTAS: Final = {
    "sessions": "sessions",
    "leases": "leases, those that it waits for included",
    "waiters": "requests that wait for a lease",
    "reply_bytes": "bytes of replies that are not marked as done",
    "subscriptions": "subscriptions to events",
}
#: Sessions, and bytes of replies, beyond `max_sessions` and `max_reply_bytes` for users without
#: quotas.
KEPT_SESSIONS: Final = 16
KEPT_REPLY_BYTES: Final = 1024 * 1024
#: Users that `status` and `metrics` name: those that are nearest to a quota.
MOST_USERS: Final = 10


def is_exempt(user: User) -> bool:
    """Return whether a user has no quotas: root and the user that the daemon runs as, here."""
    host, uid = user
    return not host and (uid == 0 or uid == os.geteuid())


def allowed_by(config: Config) -> dict[str, int]:
    """Return how much each quota allows, by its name."""
    return {name: getattr(config, f"quota_{name}") for name in QUOTAS}


def used_by(context: Context, use: Use) -> dict[str, int]:
    """Return how much a user uses of each quota, by its name."""
    host, uid = use.user
    return {
        "sessions": use.sessions,
        "leases": use.leases + use.waiters,
        "waiters": use.waiters,
        "reply_bytes": use.reply_bytes,
        "subscriptions": 0 if host else context.runtime.subscribers.count(uid),
    }


def check_session(context: Context, user: User) -> None:
    """Refuse another session to a user at the quota, and to any when the daemon is at its limit.

    Some sessions are kept for root and the daemon's own user.
    """
    most = context.config.max_sessions
    if len(context.state.sessions) >= most + (KEPT_SESSIONS if is_exempt(user) else 0):
        raise ProtocolError(
            Code.LIMIT_EXCEEDED, f"the daemon has {most} sessions, which is the limit"
        )
    used = context.state.sessions.use_of(user).sessions
    _check(context, user, "sessions", used, context.config.quota_sessions)


def check_lease(context: Context, session: Session) -> None:
    """Refuse a user another lease who holds, and waits for, as many as the quota allows."""
    use = session.use
    _check(context, use.user, "leases", use.leases + use.waiters, context.config.quota_leases)


def check_waiter(context: Context, session: Session) -> None:
    """Refuse to park another request of a user who has as many parked as the quota allows."""
    use = session.use
    _check(context, use.user, "waiters", use.waiters, context.config.quota_waiters)


def check_reply(context: Context, session: Session) -> None:
    """Refuse a change whose reply finds no room, in the quota or in that of all sessions."""
    if has_reply_room(context, session):  # nearly always
        return
    use, config = session.use, context.config
    _make_room(context, use)
    _check(context, use.user, "reply_bytes", use.reply_bytes, config.quota_reply_bytes)
    if not _has_total_room(context, use):
        raise ProtocolError(
            Code.LIMIT_EXCEEDED,
            f"the daemon keeps {config.max_reply_bytes} bytes of replies that are not marked as"
            " done, which is the limit",
        )


def has_reply_room(context: Context, session: Session) -> bool:
    """Return whether there is room to remember another reply of a session."""
    use = session.use
    return _has_total_room(context, use) and _has_own_room(context, use)


def _make_room(context: Context, use: Use) -> None:
    """Drop replies that sessions are done with, while there is no room without that."""
    while use.covering and not _has_own_room(context, use):
        exactly_once.drop_covered(context.decide, next(iter(use.covering)))
    total = context.state.sessions.total
    while total.covering and not _has_total_room(context, use):
        exactly_once.drop_covered(context.decide, next(iter(total.covering)))


def _has_own_room(context: Context, use: Use) -> bool:
    """Return whether the quota of a user leaves room for another reply."""
    return use.reply_bytes < context.config.quota_reply_bytes or is_exempt(use.user)


def _has_total_room(context: Context, use: Use) -> bool:
    """Return whether all sessions together leave room for another reply of a user."""
    room = context.config.max_reply_bytes - context.state.sessions.total.reply_bytes
    return room > 0 or (room > -KEPT_REPLY_BYTES and is_exempt(use.user))


def _check(context: Context, user: User, quota: str, used: int, allowed: int) -> None:
    if used < allowed or is_exempt(user):
        return
    context.runtime.metrics.quota_refusals[quota] += 1
    raise ProtocolError(
        Code.QUOTA_EXCEEDED,
        f"{describe_user(user)} has {used} {QUOTAS[quota]}; quota_{quota} allows {allowed}",
        quota=quota,
        used=used,
        allowed=allowed,
    )


def list_users(context: Context) -> list[Fields]:
    """Return what the users nearest to a quota use, the nearest first."""
    allowed = allowed_by(context.config)
    users = context.state.sessions.users
    all_users = {*users, *(("", uid) for uid in context.runtime.subscribers.uids())}

    def share(fields: Fields) -> tuple[bool, float, int]:
        nearest = max(fields[name] / allowed[name] for name in QUOTAS)
        return not fields["exempt"], nearest, -fields["uid"]

    rows = (
        {
            "uid": user[1],
            **host_fields(user[0]),
            "exempt": is_exempt(user),
            **used_by(context, context.state.sessions.use_of(user)),
        }
        for user in sorted(all_users)
    )
    return heapq.nlargest(MOST_USERS, rows, key=share)
