"""Who an agent is: its user and its process, on one of several hosts."""

from __future__ import annotations

from trackd.sessions.identity import Peer


def test_a_user_is_one_uid_of_one_host() -> None:
    one = Peer(1000, 1000, 42)
    assert one.user == ("", 1000)
    assert one.has_user_of(Peer(1000, 5, 6))
    assert not one.has_user_of(Peer(1001, 1000, 42))
    assert not one.has_user_of(Peer(1000, 1000, 42, "h"))
    assert Peer(1000, 1000, 42, "h").has_user_of(Peer(1000, 5, 6, "h"))
