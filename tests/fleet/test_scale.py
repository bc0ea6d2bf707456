"""A large fleet: a failover with many leases and proxies, and what gossip of many hosts writes.

`make torture` runs the long form: 10,000 leases, 100,000 proxies and 1,000 hosts; `make test-fleet`
a hundredth of that.
"""

from __future__ import annotations

import re
import signal
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack

import msgpack
import pytest
import zmq

from fleet.cluster import Cluster
from fleet.fleet import LONG, Fleet
from helpers.long_form import choose
from helpers.support import wait_until
from trackd.fleet.damping import Damper, Due
from trackd.fleet.etcd import Etcd
from trackd.fleet.hop import (
    Answer,
    Asker,
    Here,
    Hop,
    Leads,
    Moved,
    decode_answer,
    encode,
    encode_word,
)
from trackd.fleet.keys import read_public, read_secret
from trackd_client import Proxy, Tracker
from trackd_client.wire.protocol import REQUEST
from trackd_client.wire.protocol import encode as encode_message

LEASES = choose(100, 10_000)
PROXIES = choose(1_000, 100_000)
HOSTS = choose(10, 1_000)
#: Seconds for which gossip runs, and between two messages of a host.
GOSSIP_SECONDS = choose(10, 120)
GOSSIP_EACH = float(choose(5, 30))
#: Names that each host mentions, of those that there are.
NAMES = choose(100, 1_000)


@pytest.fixture
def fleet(cluster: Cluster, etcd: Etcd) -> Iterator[Fleet]:
    """Two candidates, one relay, and quotas that let one user have all."""
    quotas = "[quotas]\nquota_leases = 1000000\nquota_sessions = 10000\n"
    with Fleet(cluster, hosts=1, ttl=5, host_ttl=30.0, tables=quotas) as made:
        made.wait_until_served(made.relays[0])
        yield made


def test_a_failover_with_many_leases_and_proxies(fleet: Fleet) -> None:
    with ExitStack() as stack:
        trackers = [
            stack.enter_context(Tracker(fleet.relays[0].endpoint, timeout=LONG))
            for _ in range(max(1, LEASES // 500))
        ]
        first = trackers[0]
        names = [f"proxy-{number:06}" for number in range(PROXIES)]
        for start in range(0, PROXIES, 10_000):
            first.track_expected(
                *(Proxy(name, ttl=3600.0) for name in names[start : start + 10_000])
            )
        for number in range(LEASES):
            lease = trackers[number % len(trackers)].try_acquire()
            assert lease is not None
            assert lease.claim(names[number])
        began = time.monotonic()
        fleet.leader().kill()
        killed = time.monotonic()
        first.set_connection_count(-1)
        served = time.monotonic() - killed
        status = first.status()
        assert (status.claimed, status.tracked) == (LEASES, PROXIES)
        print(
            f"\n{LEASES:,} leases and {PROXIES:,} proxies: served {served:.2f} s after the kill"
            f" (leader_ttl 5 s; found the leader in {killed - began:.2f} s)"
        )


class SimulatedRelay:
    """A relay without agents: it beats, damps, and sends what is due of its gossip."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], fleet: Fleet, number: int) -> None:
        name = f"simulated-{number}"
        fleet.admit(name)
        self._own = read_secret(fleet.keys / f"{name}.key")
        self._context = context
        self._number = number
        self._term = self._sent = 0
        self.rows_sent = self.rows_said = 0
        self._token = number.to_bytes(16)
        self._damper = Damper(180.0, 86_400.0)
        self._waiting: dict[int, Due] = {}  # rows on their way, by the request's number

    def connect(self, endpoint: str, key: str) -> None:
        """Connect to the leader, and open a session."""
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.curve_serverkey = key.encode()
        self.socket.curve_publickey = self._own.public.encode()
        self.socket.curve_secretkey = self._own.secret.encode()
        self.socket.connect(endpoint)
        self.beat()
        self._ask({"op": "open", "name": "simulated"})

    def beat(self) -> None:
        """Show that the host lives."""
        self.socket.send(encode_word(Here("boot", self._term, events=False)))

    def gossip(self, rows: list[list[object]]) -> None:
        """Mention proxies."""
        self.rows_said += len(rows)
        due = self._damper.due(rows, time.monotonic())
        self.rows_sent += len(due.rows)
        self._ask({"op": "track_expected", "proxies": due.rows, "done": [1, self._sent]})
        self._waiting[self._sent] = due

    def read(self) -> None:
        """Take in what the leader says."""
        while self.socket.poll(0):
            said = decode_answer(self.socket.recv())
            if isinstance(said, Leads):
                self._term = said.term
            if isinstance(said, Answer):
                assert "error" not in msgpack.unpackb(said.frame)[2], said.frame
                due = self._waiting.pop(said.number, None)
                if due is not None:
                    self._damper.settle(due, time.monotonic(), taken=True)
            if isinstance(said, Moved):
                if said.names:
                    self._damper.forget(said.names)
                else:
                    self._damper.clear()

    def _ask(self, fields: dict[str, object]) -> None:
        self._sent += 1
        body = {"seq": self._sent, "token": self._token, **fields}
        asker = Asker(1000, 1000, 1000 + self._number, 1, "simulated", admin=False, remaining=None)
        self.socket.send(encode(Hop(self._sent, asker, encode_message(REQUEST, body))))


def test_what_the_gossip_of_many_hosts_writes(fleet: Fleet, cluster: Cluster) -> None:
    leader = fleet.leader()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.max_sockets = 4 * HOSTS + 100
    relays = [SimulatedRelay(context, fleet, number) for number in range(1, HOSTS + 1)]
    leader.signal(signal.SIGHUP)
    wait_until(lambda: leader.says("reloaded"), LONG)
    address = next(
        line.split('"')[1] for line in leader.file.read_text().splitlines() if "listen" in line
    )
    key = read_public(fleet.leaders / f"{leader.name}.pub")[0]
    for relay in relays:
        relay.connect(f"tcp://{address}", key)
    with Tracker(fleet.relays[0].endpoint, timeout=LONG) as tracker:

        def beat_all() -> None:
            for relay in relays:
                relay.read()
                relay.beat()

        def are_open() -> bool:
            beat_all()
            return tracker.status().sessions >= HOSTS

        wait_until(are_open, 10 * LONG)
        before = bytes_written(cluster)
        began = time.monotonic()
        due = [began + GOSSIP_EACH * number / HOSTS for number in range(HOSTS)]
        beats = began
        while time.monotonic() < began + GOSSIP_SECONDS:
            now = time.monotonic()
            if now >= beats:
                beats = now + 1.0
                beat_all()
            for number, relay in enumerate(relays):
                if due[number] <= now:
                    due[number] += GOSSIP_EACH
                    relay.gossip(
                        [
                            [f"proxy-{(number * 97 + each) % PROXIES:06}", "", 0, 180.0]
                            for each in range(NAMES)
                        ]
                    )
            time.sleep(0.005)
        took = time.monotonic() - began
        status = tracker.status()
        written = bytes_written(cluster) - before
    said, sent = (
        sum(each.rows_said for each in relays),
        sum(each.rows_sent for each in relays),
    )
    for relay in relays:
        relay.socket.close()
    context.term()
    assert status.sessions >= HOSTS
    assert status.tracked == min(PROXIES, HOSTS * 97 + NAMES - 97)
    assert said > sent
    print(
        f"\n{HOSTS:,} hosts that each mention {NAMES:,} of {status.tracked:,} proxies every"
        f" {GOSSIP_EACH:g} s for {took:.0f} s: {said:,} mentions, {sent:,} sent to the leader,"
        f" {written / took / 1e6:.3f} MB/s written by a member of etcd"
    )


def bytes_written(cluster: Cluster) -> float:
    """Return how many bytes a member of etcd has written to its log."""
    with urllib.request.urlopen(f"http://{cluster.endpoints[0]}/metrics", timeout=LONG) as reply:
        text = reply.read().decode()
    found = re.search(r"(?m)^etcd_disk_wal_write_bytes_total (\S+)$", text)
    assert found is not None
    return float(found[1])
