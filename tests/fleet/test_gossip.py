"""Gossip, of which a relay holds back what the leader knows: all is as with one daemon."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from fleet.cluster import Cluster
from fleet.fleet import LONG, Fleet
from fleet.raw_host import RawHost
from helpers.support import RawPeer, pack, wait_until
from trackd.fleet.etcd import Etcd
from trackd.fleet.hop import Leads, Moved
from trackd_client import Tracker

#: Seconds for which a mention is held back that repeats one with this TTL: longer than all of this.
TTL = 2400.0
#: Of a name that soon expires.
SHORT = 0.3


@pytest.fixture
def fleet(cluster: Cluster, etcd: Etcd) -> Iterator[Fleet]:
    """Two candidates, and the relays of two hosts."""
    with Fleet(cluster, tables="[limits]\nmax_outstanding = 4\n") as made:
        for relay in made.relays:
            made.wait_until_served(relay)
        yield made


@pytest.fixture(params=["nobody listens", "a listens"])
def peers(fleet: Fleet, request: pytest.FixtureRequest) -> Iterator[tuple[RawPeer, RawPeer]]:
    """Sessions on both hosts; with or without somebody who listens to events on the first."""
    with ExitStack() as stack:
        a, b = (stack.enter_context(RawPeer(relay.endpoint)).open() for relay in fleet.relays)
        if request.param == "a listens":
            tracker = stack.enter_context(Tracker(fleet.relays[0].endpoint, timeout=LONG))
            events = tracker.events()
            stack.callback(events.close)
            assert next(events).kind == "snapshot"
        yield a, b


def row(generation: int = 1, ttl: float = TTL, *, name: str = "p1", **more: Any) -> list[Any]:
    made = [name, "", generation, ttl]
    return [*made, more] if more else made


def mention(peer: RawPeer, *rows: list[Any], **fields: Any) -> int:
    """Mention proxies; return how many changed."""
    reply = peer.request("track_expected", proxies=list(rows), **fields)
    assert "error" not in reply, reply
    return int(reply["changed"])


def seen(peer: RawPeer, name: str = "p1") -> dict[str, Any] | None:
    """Return the row of a proxy, as the leader has it."""
    rows = peer.request("snapshot", of="proxies")["rows"]
    return next((each for each in rows if each["name"] == name and each["tracked"]), None)


def test_a_mention_is_known_only_when_the_leader_has_answered_the_first_one(fleet: Fleet) -> None:
    with RawPeer(fleet.relays[0].endpoint) as peer:
        mention(peer.open(), row(1))
        for generation in range(2, 12):
            first, second = (
                peer.body("track_expected", proxies=[row(generation)]) for _ in range(2)
            )
            peer.send(pack(first))
            peer.send(pack(second))
            replies: dict[int, dict[str, Any]] = {}
            while len(replies) < 2:
                reply = peer.receive(LONG)
                assert reply is not None
                replies[reply["seq"]] = reply
            assert replies[first["seq"]]["changed"] == 1
            assert replies[second["seq"]]["revision"] >= replies[first["seq"]]["revision"]


def test_a_mention_is_news_again_when_another_host_has_moved_the_proxy(
    peers: tuple[RawPeer, RawPeer],
) -> None:
    a, b = peers
    mention(a, row(1))
    mention(b, row(2))
    wait_until(lambda: mention(a, row(1)) == 1, LONG)


@pytest.mark.parametrize("then", [None, 7])
def test_a_mention_is_news_again_when_another_host_has_let_the_proxy_expire(
    peers: tuple[RawPeer, RawPeer], then: int | None
) -> None:
    a, b = peers
    mention(a, row())
    mention(b, row(ttl=SHORT))
    wait_until(lambda: seen(b) is None, LONG)
    if then is not None:
        mention(b, row(then))
    wait_until(lambda: mention(a, row()) == 1, LONG)


def test_a_mention_that_is_repeated_outlives_a_short_one_of_another_host(
    peers: tuple[RawPeer, RawPeer],
) -> None:
    a, b = peers
    mention(a, row())
    mention(b, row(ttl=30.0))

    def is_long() -> bool:
        mention(a, row())
        found = seen(b)
        assert found is not None
        return bool(found["expires"] > b.request("hello")["clock"] + 600)

    wait_until(is_long, 30)


def test_a_mention_is_news_again_when_others_have_marked_or_addressed_the_proxy(
    peers: tuple[RawPeer, RawPeer],
) -> None:
    a, b = peers
    mine = row(terminating=False, address="10.0.0.1:22")
    mention(a, mine)
    for other in (a, b):
        mention(other, row(terminating=True, address="10.0.0.2:22"))
        wait_until(lambda: (seen(b) or {}).get("terminating") is True, LONG)

        def is_back() -> bool:
            mention(a, mine)
            found = seen(b)
            assert found is not None
            return not found.get("terminating") and found.get("address") == "10.0.0.1:22"

        wait_until(is_back, LONG)


def test_a_mention_that_was_ignored_is_news_again(peers: tuple[RawPeer, RawPeer]) -> None:
    a, _ = peers
    mention(a, row(ttl=3.0))
    assert a.request("forget", name="p1")["forgotten"]
    assert mention(a, row()) == 0
    wait_until(lambda: mention(a, row()) == 1, LONG)


def test_a_late_copy_of_what_only_repeated_does_nothing(fleet: Fleet) -> None:
    with RawPeer(fleet.relays[0].endpoint) as peer:
        mention(peer.open(), row(1))
        repeats, moves = (peer.body("track_expected", proxies=[row(n)], done=[]) for n in (1, 2))
        first = peer.ask(repeats)
        assert first["changed"] == 0
        assert peer.ask(moves)["changed"] == 1
        assert peer.ask(repeats) == first
        assert (seen(peer) or {})["generation"] == 2


@pytest.mark.parametrize("other", [row(3), row(2, ttl=30.0)])
def test_the_reply_to_a_copy_says_nothing_of_now(fleet: Fleet, other: list[Any]) -> None:
    relay = fleet.relays[0]
    with RawPeer(relay.endpoint) as a, RawPeer(fleet.relays[1].endpoint) as b:
        mention(a.open(), row(1))
        moves = a.body("track_expected", proxies=[row(2)], done=[])
        assert a.ask(moves)["changed"] == 1
        mention(b.open(), other)
        relay.kill()
        relay.start()
        fleet.wait_until_served(relay)
        assert a.ask(moves, LONG)["changed"] == 1
        mention(a, row(2))
        found = seen(b)
        assert found is not None
        assert found["generation"] == 2
        assert found["expires"] > b.request("hello")["clock"] + 600


def test_the_last_word_counts_while_an_earlier_one_waits(fleet: Fleet) -> None:
    with RawPeer(fleet.relays[0].endpoint) as a, RawPeer(fleet.relays[1].endpoint) as b:
        mention(a.open(), row(terminating=False))
        b.open()
        for word in (True, False, True):  # a proxy flips once in a second
            mention(a if word is False else b, row(terminating=word))

        def is_unmarked() -> bool:
            mention(a, row(terminating=False))
            return not (seen(b) or {"terminating": True}).get("terminating")

        wait_until(is_unmarked, LONG)


def test_what_is_done_is_heard_with_gossip_that_only_repeats(fleet: Fleet) -> None:
    with RawPeer(fleet.relays[0].endpoint) as peer:
        mention(peer.open(), row())
        for number in range(6):
            assert mention(peer, row(name=f"q{number}"), done=[]) == 1
            mention(peer, row())


def test_who_has_no_session_is_told_so_by_gossip_that_only_repeats(fleet: Fleet) -> None:
    with RawPeer(fleet.relays[0].endpoint) as peer, RawPeer(fleet.relays[0].endpoint) as other:
        mention(peer.open(), row())
        peer.request("close")
        assert peer.request("track_expected", proxies=[row()])["error"] == "session_ended"
        for _ in range(3):
            reply = other.request("track_expected", proxies=[row()])
            assert reply["error"] == "session_unknown"


def test_a_host_without_room_is_told_later_that_any_proxy_may_have_moved(
    cluster: Cluster, etcd: Etcd
) -> None:
    with Fleet(cluster, host_ttl=300.0) as fleet:
        relay, silent = fleet.relays
        fleet.wait_until_served(relay)
        silent.kill()  # this host says what the test wants
        with RawHost(fleet, silent.name, fleet.leader(), receives=1) as host:
            host.agree()
            with RawPeer(relay.endpoint) as a:
                mention(a.open(), row(1))
                for seq in range(1, 10_000):  # more than a connection takes, and than wait for it
                    host.send({"op": "status", "seq": seq})
                host.send({"op": "open", "seq": 1, "token": bytes(16)})
                wait_until(lambda: a.request("status")["sessions"] == 2, LONG)
                host.heard.clear()
                mention(a, row(2))
            wait_until(lambda: host.hears(Leads) or host.hears(Moved), LONG)
