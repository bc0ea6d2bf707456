"""Networks that lose what is sent: between a host and the leader, and the leader and etcd."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from fleet.cluster import Cluster
from fleet.fleet import LONG, Fleet
from fleet.network import ETCD, Network
from helpers.support import wait_until
from trackd.config import exits
from trackd_client import Proxy, Tracker

CONTROL = ("control-1", "control-2")


@pytest.fixture
def network() -> Iterator[Network]:
    """Two control hosts and two agent hosts."""
    with Network([*CONTROL, "host-1", "host-2"]) as made:
        yield made


@pytest.fixture
def fleet(network: Network) -> Iterator[Fleet]:
    """A fleet on them, and one member of etcd."""
    with (
        Cluster(size=1, address=network.address[ETCD]) as cluster,
        Fleet(cluster, network=network) as made,
    ):
        for relay in made.relays:
            made.wait_until_served(relay)
        yield made


def tracker_of(fleet: Fleet, host: int) -> Tracker:
    """Return a tracker of an agent on a host, by its number."""
    return Tracker(fleet.relays[host - 1].endpoint, timeout=LONG)


def test_a_leader_that_is_cut_off_from_etcd_ends_and_another_leads(
    fleet: Fleet, network: Network
) -> None:
    leader = fleet.leader()
    with tracker_of(fleet, 1) as a, tracker_of(fleet, 2) as b:
        a.track_expected(Proxy("p1"))
        lease = a.try_acquire()
        assert lease is not None
        assert lease.claim("p1")
        network.cut(leader.name, ETCD)
        began = time.monotonic()
        b.set_connection_count(3)
        print(f"the next leader answers {time.monotonic() - began:.1f} s after the cut")
        wait_until(lambda: leader.has_ended, LONG)
        assert leader.end() == exits.DEPOSED
        assert (b.status().claimed, b.status().connection_count) == (1, 3)
        assert not lease.lost.is_set()
        network.mend(leader.name, ETCD)
        leader.start()
        assert fleet.leader() is not leader


@pytest.mark.parametrize("lost", ["to the leader", "from the leader", "both ways"])
def test_a_host_that_is_cut_off_keeps_its_tunnels_until_it_is_connected_again(
    fleet: Fleet, network: Network, lost: str
) -> None:
    ways = []
    for control in CONTROL:
        ways += [("host-1", control)] if lost != "from the leader" else []
        ways += [(control, "host-1")] if lost != "to the leader" else []
    with tracker_of(fleet, 1) as a, tracker_of(fleet, 2) as b:
        a.track_expected(Proxy("p1"))
        kept = a.try_acquire()
        assert kept is not None
        assert kept.claim("p1")
        began = time.monotonic()
        for way in ways:
            network.cut(*way)
        other = b.acquire()
        assert other is not None
        assert other.claim("p1")
        free = time.monotonic() - began
        assert not kept.lost.is_set()  # nothing has told it
        for way in ways:
            network.mend(*way)
        began = time.monotonic()
        assert kept.lost.wait(LONG)
        healed = time.monotonic() - began
        print(f"lost {lost}: free after {free:.1f} s, no surplus {healed:.1f} s after healing")
        assert [row.name for row in b.rows("leases")] == ["p1"]
