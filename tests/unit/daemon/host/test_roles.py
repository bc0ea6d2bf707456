"""Who is an admin: users and groups, by name or number."""

from __future__ import annotations

import grp
import os
import pwd

import pytest

from trackd.host.roles import Roles
from trackd.sessions.identity import Peer

NOBODY = pwd.getpwnam("nobody")


GAMES = pwd.getpwnam("games")


def peer_of(user: pwd.struct_passwd) -> Peer:
    return Peer(user.pw_uid, user.pw_gid, 1)


def test_root_and_the_daemons_own_user_are_admins() -> None:
    roles = Roles((), ())
    assert roles.is_admin(Peer(0, 0, 1))
    assert roles.is_admin(Peer(os.geteuid(), 12345, 1))
    assert not roles.is_admin(peer_of(NOBODY))


def test_nobody_of_another_host_is_an_admin_by_these_roles() -> None:
    roles = Roles((NOBODY.pw_uid,), (GAMES.pw_gid,))
    for peer in (Peer(0, 0, 1), peer_of(NOBODY), peer_of(GAMES)):
        assert roles.is_admin(peer)
        assert not roles.is_admin(peer._replace(host="a"))


@pytest.mark.parametrize("user", ["nobody", NOBODY.pw_uid])
def test_a_user_that_is_named_is_an_admin_and_no_other(user: str | int) -> None:
    roles = Roles((user,), ())
    assert roles.is_admin(peer_of(NOBODY))
    assert not roles.is_admin(peer_of(GAMES))


@pytest.mark.parametrize("group", [grp.getgrgid(GAMES.pw_gid).gr_name, GAMES.pw_gid])
def test_whoever_has_a_group_for_his_own_is_an_admin(group: str | int) -> None:
    roles = Roles((), (group,))
    assert roles.is_admin(peer_of(GAMES))
    assert not roles.is_admin(peer_of(NOBODY))


def test_a_group_that_a_process_took_on_counts_though_its_user_is_no_member() -> None:
    roles = Roles((), (GAMES.pw_gid,))
    assert roles.is_admin(Peer(NOBODY.pw_uid, GAMES.pw_gid, 1))


def test_members_count_whatever_their_own_group_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which users a group has is for the host to say; no group of this one has any."""
    group = grp.struct_group(("staff", "x", 4242, ["games", "one who is gone"]))
    monkeypatch.setattr(grp, "getgrgid", {4242: group}.__getitem__)
    roles = Roles((), (4242,))
    assert roles.is_admin(peer_of(GAMES))
    assert not roles.is_admin(peer_of(NOBODY))


def test_the_name_service_is_not_asked_while_requests_are_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    roles = Roles((), (4242,))
    asked: list[object] = []

    def ask(*what: object) -> object:
        asked.append(what)
        raise KeyError(what)

    for module, name in ((pwd, "getpwuid"), (pwd, "getpwnam"), (grp, "getgrgid")):
        monkeypatch.setattr(module, name, ask)
    monkeypatch.setattr(os, "getgrouplist", ask)
    assert not roles.is_admin(peer_of(NOBODY))
    assert asked == []


def test_a_uid_without_a_user_is_no_admin() -> None:
    nameless = 3_999_999_999
    with pytest.raises(KeyError):
        pwd.getpwuid(nameless)
    assert not Roles((), (4242,)).is_admin(Peer(nameless, nameless, 1))
    assert Roles((nameless,), ()).is_admin(Peer(nameless, nameless, 1))


def test_users_and_groups_that_are_not_there_give_no_rights_and_are_named() -> None:
    roles = Roles(("noone at all", 1), ("no group at all",))
    assert [problem.partition(" on ")[0] for problem in roles.unknown] == [
        "there is no user 'noone at all'",
        "there is no group 'no group at all'",
    ]
    assert roles.is_admin(Peer(1, 1, 1))
    assert not roles.is_admin(peer_of(NOBODY))
