"""Who subscribes to events: by user and connection, as long as the kernel has the connection."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from trackd.actors.subscribers import MOST_OF_CONNECTION, PeerOfEvents, Subscribers, find_peer

UID = 1000
ADDRESS = f"@:{UID}:100:77"


@pytest.fixture
def connections() -> Iterator[list[socket.socket]]:
    pairs = [*socket.socketpair(), *socket.socketpair()]
    yield pairs
    for each in pairs:
        each.close()


def peer_of(connection: socket.socket) -> PeerOfEvents:
    peer = find_peer(connection.fileno(), ADDRESS)
    assert peer is not None
    return peer


def test_a_peer_is_known_by_its_descriptor_its_socket_and_the_end_of_its_address(
    connections: list[socket.socket],
) -> None:
    peer = peer_of(connections[0])
    assert [peer.lives] == [True]
    assert peer[2:] == (UID, 100, 77)
    descriptor = connections[0].fileno()
    connections[0].close()
    assert [peer.lives] == [False]
    assert find_peer(descriptor, ADDRESS) is None
    with pytest.raises(ValueError, match="invalid literal"):
        find_peer(connections[1].fileno(), "someone")


def test_a_user_subscribes_up_to_the_quota_and_again_after_connections_have_ended(
    connections: list[socket.socket],
) -> None:
    subscribers = Subscribers()
    subscribers.quota = 2
    first, second, third = (peer_of(each) for each in connections[:3])
    assert subscribers.add(first, exempt=False)
    assert subscribers.add(second, exempt=False)
    assert not subscribers.add(third, exempt=False)
    assert (subscribers.count(UID), subscribers.refused, subscribers.uids()) == (2, 1, [UID])
    assert subscribers.add(third._replace(uid=UID + 1), exempt=False), "another user"
    connections[0].close()
    assert subscribers.count(UID) == 1
    assert subscribers.add(third, exempt=False)
    assert not subscribers.add(peer_of(connections[3]), exempt=False)


def test_a_connection_has_a_bound_that_holds_for_everybody(
    connections: list[socket.socket],
) -> None:
    subscribers = Subscribers()
    peer, other = (peer_of(each) for each in connections[:2])
    assert all(subscribers.add(peer, exempt=True) for _ in range(MOST_OF_CONNECTION))
    assert all(subscribers.add(other, exempt=True) for _ in range(MOST_OF_CONNECTION))
    assert not subscribers.add(peer, exempt=True)
    assert subscribers.count(UID) == MOST_OF_CONNECTION
    assert subscribers.count(UID + 1) == 0
