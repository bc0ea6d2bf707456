"""A fleet with real members of etcd: candidates that lead, and relays that agents reach."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from functools import partial

import pytest

from fleet.cluster import Cluster
from fleet.fleet import CLUSTER, LONG, Fleet
from helpers.agents import Agent
from helpers.support import RESEND_SECONDS, RawPeer, pack, wait_until
from trackd.config import exits
from trackd.fleet.etcd import Etcd
from trackd.fleet.pending import WINDOW
from trackd_client import Proxy, Tracker
from trackd_client.errors import AcquireTimeout, NoAnswer, Refused, StoreUnavailable


@pytest.fixture
def fleet(cluster: Cluster, etcd: Etcd) -> Iterator[Fleet]:
    """Two candidates, and the relays of two hosts."""
    with Fleet(cluster) as made:
        for relay in made.relays:
            made.wait_until_served(relay)
        yield made


def tracker_of(fleet: Fleet, host: int, timeout: float = LONG) -> Tracker:
    """Return a tracker of an agent on a host, by its number."""
    return Tracker(fleet.relays[host - 1].endpoint, timeout=timeout)


def test_agents_of_two_hosts_share_one_tracker(fleet: Fleet) -> None:
    with tracker_of(fleet, 1) as a, tracker_of(fleet, 2) as b:
        a.track_expected(Proxy("p1"), Proxy("p2"))
        first, second = a.try_acquire(), b.try_acquire()
        assert first is not None
        assert second is not None
        assert a.try_acquire() is None
        assert first.claim("p1")
        assert not second.claim("p1")
        second.release()
        third = b.acquire()
        assert third is not None
        assert third.claim("p2")
        assert a.status().cluster == CLUSTER
        assert [row.host for row in a.rows("sessions")] == ["host-1", "host-2"]
        first.release()
        assert b.acquire() is not None


def test_the_next_leader_knows_all_that_was_acknowledged(fleet: Fleet) -> None:
    with tracker_of(fleet, 1) as a, tracker_of(fleet, 2) as b:
        a.track_expected(Proxy("p1"))
        lease = a.try_acquire()
        assert lease is not None
        assert lease.claim("p1")
        before = a.status()
        fleet.leader().kill()
        assert b.try_acquire() is None
        after = b.status()
        assert after.tracker_id == before.tracker_id
        assert after.epoch == before.epoch + 1
        assert after.claimed == 1
        assert not lease.released


def test_a_leader_that_stops_hands_over(fleet: Fleet) -> None:
    leader = fleet.leader()
    assert leader.end() == exits.OK
    with tracker_of(fleet, 1) as tracker:
        tracker.track_expected(Proxy("p1"))
    leader.start()
    wait_until(lambda: leader.log.read_text().count("standing by") >= 1, LONG)


def test_a_leader_that_was_paused_past_its_term_says_nothing_more(fleet: Fleet) -> None:
    leader = fleet.leader()
    with tracker_of(fleet, 1) as tracker:
        tracker.track_expected(Proxy("p1"))
        with leader.paused():
            wait_until(
                lambda: any(each.says("leads") for each in fleet.candidates if each is not leader),
                LONG,
            )
            tracker.set_connection_count(3)
        wait_until(lambda: leader.has_ended, LONG)
        assert leader.end() == exits.DEPOSED
        assert tracker.status().connection_count == 3


def test_a_process_that_ends_frees_its_leases(fleet: Fleet) -> None:
    with Agent(fleet.relays[0].endpoint) as agent, tracker_of(fleet, 2) as other:
        other.track_expected(Proxy("p1"))
        assert agent.do("acquire") is not None
        agent.kill()
        assert other.acquire() is not None


def test_a_host_that_is_lost_frees_its_leases(fleet: Fleet) -> None:
    with tracker_of(fleet, 1) as lost, tracker_of(fleet, 2) as other:
        other.track_expected(Proxy("p1"))
        lease = lost.try_acquire()
        assert lease is not None
        assert lease.claim("p1")
        fleet.relays[0].kill()
        assert other.acquire() is not None
        ended = [each for each in other.log()["events"] if each.kind == "session_ended"]
        reasons = [each.fields["reason"] for each in ended]
        assert "host_lost" in reasons
        fleet.relays[0].start()
        fleet.wait_until_served(fleet.relays[0])


def test_a_relay_that_comes_back_finds_its_sessions(fleet: Fleet) -> None:
    with tracker_of(fleet, 1) as a, tracker_of(fleet, 2) as b:
        a.track_expected(Proxy("p1"))
        lease = a.try_acquire()
        assert lease is not None
        fleet.relays[0].kill()
        fleet.relays[0].start()
        assert lease.claim("p1")
        assert b.status().sessions == 1


def test_events_and_listings_reach_every_host(fleet: Fleet) -> None:
    with tracker_of(fleet, 1) as a, tracker_of(fleet, 2) as b:
        seen = []
        events = b.events()
        seen.append(next(events))
        a.track_expected(Proxy("p1"))
        while seen[-1].kind != "proxy_tracked":
            seen.append(next(events))
        fleet.leader().kill()
        a.track_expected(Proxy("p2"))
        while not (seen[-1].kind == "proxy_tracked" and seen[-1].fields["name"] == "p2"):
            seen.append(next(events))
        events.close()
        assert "gap" not in [event.kind for event in seen]


def test_a_removed_key_stops_at_once(fleet: Fleet) -> None:
    with tracker_of(fleet, 1, 2.0) as a, tracker_of(fleet, 2) as b:
        a.track_expected(Proxy("p1"))
        (fleet.hosts / "host-1.pub").unlink()
        leader = fleet.leader()
        leader.signal(signal.SIGHUP)
        wait_until(lambda: leader.says("reloaded"), LONG)
        with pytest.raises(NoAnswer):
            a.set_connection_count(7)
        assert b.status().connection_count == 0


def test_only_listed_hosts_have_admins(fleet: Fleet) -> None:
    with tracker_of(fleet, 1) as a, tracker_of(fleet, 2) as b:
        b.track_expected(Proxy("p1"))
        with pytest.raises(Refused, match="admin"):
            b.forget("p1")
        assert a.forget("p1")["forgotten"]


def test_deadlines_hold_across_hosts(fleet: Fleet) -> None:
    with tracker_of(fleet, 1) as tracker:
        tracker.set_connection_count(1)
        assert tracker.acquire() is not None
        began = time.monotonic()
        with pytest.raises(AcquireTimeout):
            tracker.acquire(timeout=2.0)
        assert time.monotonic() - began >= 1.9


def test_a_reload_is_that_of_the_host(fleet: Fleet) -> None:
    relay = fleet.relays[1]
    with tracker_of(fleet, 2) as tracker:
        relay.file.write_text(relay.file.read_text().replace('"debug"', '"info"'))
        number = tracker.reload()["reloads"]
        wait_until(lambda: tracker.status().reloads >= number, LONG)
        done = tracker.status().reload
        assert done is not None
        assert done["changed"] == ["log_level"]
        assert tracker.status().events == f"{relay.endpoint}.events"
    with tracker_of(fleet, 1) as other:
        assert other.status().reloads == 0


def test_who_looks_is_told_that_there_is_no_leader(fleet: Fleet) -> None:
    for candidate in fleet.candidates:
        candidate.kill()
    with tracker_of(fleet, 1) as tracker:
        wait_until(lambda: _says_no_leader(tracker), LONG)
    fleet.candidates[0].start()
    with tracker_of(fleet, 1) as tracker:
        tracker.set_connection_count(2)
        assert tracker.status().connection_count == 2


def _says_no_leader(tracker: Tracker) -> bool:
    try:
        tracker.status()
    except StoreUnavailable as error:
        return "no leader for" in str(error)
    return False


def test_an_agent_that_asks_for_everything_leaves_others_their_share(fleet: Fleet) -> None:
    flood = 5_000
    with RawPeer(fleet.relays[0].endpoint) as greedy, tracker_of(fleet, 1) as other:
        other.set_connection_count(1)
        for number in range(flood):
            greedy.send(pack({"op": "explain", "seq": number + 1}))
        other.set_connection_count(2)
        answered = {reply["seq"] for reply in iter(partial(greedy.receive, 0.0), None)}
        assert len(answered) < flood, "it had to wait for all that had come before"
        asked = set(range(1, flood + 1))
        while answered != asked:
            reply = greedy.receive(RESEND_SECONDS)
            if reply is None:  # the relay keeps none for long: agents ask again
                for seq in asked - answered:
                    greedy.send(pack({"op": "explain", "seq": seq}))
                continue
            assert "error" not in reply, reply
            answered.add(reply["seq"])


def test_requests_that_get_no_reply_do_not_stop_a_host(fleet: Fleet) -> None:
    with RawPeer(fleet.relays[0].endpoint) as peer, tracker_of(fleet, 1) as other:
        peer.open()
        for _ in range(2 * WINDOW):
            peer.request("heartbeat")
        peer.request("heartbeat")
        for seq in range(2, 2 * WINDOW):  # copies of what is done are never answered
            peer.send(pack({"op": "heartbeat", "seq": seq, "token": peer.token}))
        other.set_connection_count(2)
        assert other.status().connection_count == 2
