"""Gossip that a relay answers by itself, since the leader knows it: what it says is true."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from fleet.cluster import Cluster
from fleet.fleet import LONG, Fleet
from helpers.support import RawPeer, pack, wait_until
from trackd.fleet.etcd import Etcd
from trackd_client import Tracker


@pytest.fixture
def fleet(cluster: Cluster, etcd: Etcd) -> Iterator[Fleet]:
    """Two candidates, and the relays of two hosts, on which nobody listens to events."""
    with Fleet(cluster) as made:
        for relay in made.relays:
            made.wait_until_served(relay)
        yield made


def known(peer: RawPeer, *place: object) -> RawPeer:
    """Open a session whose relay knows that the leader has heard of p1."""
    peer.open()
    for _ in range(2):  # the first gossip of a session is always passed on
        assert "error" not in peer.request("track_expected", proxies=[["p1", *place, 600.0]])
    return peer


def test_a_mention_is_known_only_when_the_leader_has_answered_the_first_one(fleet: Fleet) -> None:
    with RawPeer(fleet.relays[0].endpoint) as peer:
        known(peer, "", 1)
        for generation in range(2, 12):
            moved = [["p1", "", generation, 600.0]]
            first, second = (peer.body("track_expected", proxies=moved) for _ in range(2))
            peer.send(pack(first))
            peer.send(pack(second))
            replies: dict[int, dict[str, Any]] = {}
            while len(replies) < 2:
                reply = peer.receive(LONG)
                assert reply is not None
                replies[reply["seq"]] = reply
            assert replies[first["seq"]]["changed"] == 1
            assert replies[second["seq"]]["revision"] >= replies[first["seq"]]["revision"]


@pytest.mark.parametrize("listens", [False, True])
def test_a_mention_is_not_known_any_more_when_another_host_has_moved_the_proxy(
    fleet: Fleet, listens: bool
) -> None:
    with ExitStack() as stack:
        a, b = (stack.enter_context(RawPeer(relay.endpoint)) for relay in fleet.relays)
        if listens:
            tracker = stack.enter_context(Tracker(fleet.relays[0].endpoint, timeout=LONG))
            events = tracker.events()
            stack.callback(events.close)
            assert next(events).kind == "snapshot"
        known(a, "", 1)
        known(b, "", 2)
        back = {"proxies": [["p1", "", 1, 600.0]]}
        # Its relay hears of it soon; without that it would pass this on after 150 s.
        wait_until(lambda: a.request("track_expected", **back)["changed"] == 1, LONG)
