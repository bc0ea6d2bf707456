"""Roles: which peers may do what an admin may."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
from collections.abc import Iterable

from trackd.sessions.identity import Peer


class Roles:
    """The admins: root, the daemon's own user, and the users and groups of the settings."""

    def __init__(self, users: Iterable[str | int], groups: Iterable[str | int]) -> None:
        """Look up the names, and the members of the groups.

        The host's name service may be a server that does not answer. So it is asked here only,
        at the start and at each reload, and never while a request is served.

        Args:
            users: names or uids.
            groups: names or gids. A peer counts whose process has the group as its own, or
                whose user is listed as a member of it.

        Raises:
            ValueError: there is no such user or group.
        """
        self._uids = {0, os.geteuid(), *(_uid(user) for user in users)}
        self._groups = frozenset(_group(group) for group in groups)
        for group in self._groups:
            self._uids |= _members(group)

    def is_admin(self, peer: Peer) -> bool:
        """Return whether a peer has the role admin."""
        return peer.uid in self._uids or peer.gid in self._groups


def _members(group: int) -> set[int]:
    """Return the uids of a group's members; names that the host does not know are left out."""
    try:
        names = grp.getgrgid(group).gr_mem
    except KeyError:
        return set()
    found = set()
    for name in names:
        with contextlib.suppress(KeyError):
            found.add(pwd.getpwnam(name).pw_uid)
    return found


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
