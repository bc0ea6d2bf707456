"""What a user is. Pure."""

from __future__ import annotations

#: A user: the host, "" for the daemon's own, and the uid there. One uid on two hosts is two users.
User = tuple[str, int]


def describe_user(user: User) -> str:
    """Return words for a user."""
    host, uid = user
    return f"user {uid} of host {host}" if host else f"user {uid}"
