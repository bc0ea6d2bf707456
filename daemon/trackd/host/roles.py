"""Roles: which peers may do what an admin may."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
from collections.abc import Iterable
from typing import Literal

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

        A name that the host does not know gives no rights, and stands in `unknown`. It is not
        an error: a user may be deleted while the daemon is down, and must not keep it down.
        """
        #: Sentences about names that the host does not know.
        self.unknown: list[str] = []
        uids = {self._look_up("user", user) for user in users}
        gids = {self._look_up("group", group) for group in groups}
        self._uids = {0, os.geteuid(), *(uid for uid in uids if uid is not None)}
        self._groups = frozenset(gid for gid in gids if gid is not None)
        for group in self._groups:
            self._uids |= _members(group)

    def _look_up(self, word: Literal["user", "group"], name: str | int) -> int | None:
        if isinstance(name, int):
            return name
        try:
            return pwd.getpwnam(name).pw_uid if word == "user" else grp.getgrnam(name).gr_gid
        except KeyError:
            self.unknown.append(f"there is no {word} {name!r} on this host; it gives no rights")
            return None

    def is_admin(self, peer: Peer) -> bool:
        """Return whether a peer has the role admin; these roles give it to none of another host."""
        return not peer.host and (peer.uid in self._uids or peer.gid in self._groups)


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
