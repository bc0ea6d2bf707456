"""Who may do what an admin does."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Iterable

from trackd.sessions.identity import Peer


class Roles:
    """Who may do what an administrator may: root, the daemon's own user, and who is named."""

    def __init__(self, users: Iterable[str | int], groups: Iterable[str | int]) -> None:
        """Look up the names.

        Args:
            users: names or uids.
            groups: names or gids; their members count, whatever their primary group is.

        Raises:
            ValueError: there is no such user or group.
        """
        self._uids = {0, os.geteuid(), *(_uid(user) for user in users)}
        self._groups = [_group(group) for group in groups]

    def is_admin(self, peer: Peer) -> bool:
        """Tell whether a peer has the role admin."""
        if peer.uid in self._uids or peer.gid in self._groups:
            return True
        if not self._groups:
            return False
        try:
            user = pwd.getpwuid(peer.uid)
        except KeyError:
            return False
        memberships = os.getgrouplist(user.pw_name, user.pw_gid)
        return any(gid in memberships for gid in self._groups)


def _uid(user: str | int) -> int:
    if isinstance(user, int):
        return user
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise ValueError(f"there is no user {user!r} on this host") from None


def _group(group: str | int) -> int:
    if isinstance(group, int):
        return group
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ValueError(f"there is no group {group!r} on this host") from None
