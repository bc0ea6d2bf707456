"""Hosts that lie, speak garbage, or have no right to speak; and leaders of the past."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

from fleet.cluster import Cluster
from fleet.fleet import CLUSTER, LONG, Fleet
from fleet.raw_host import BOOT, RawHost
from helpers.support import RawPeer, pack, wait_until
from trackd.config import exits
from trackd.fleet.etcd import Etcd
from trackd.fleet.hop import Answer, Events, Exited, Here
from trackd.fleet.keys import make_keys, read_secret
from trackd_client import Proxy, Tracker
from trackd_client.errors import Code

HOSTILE = "hostile"
PREFIX = f"trackd/1/{CLUSTER}/".encode()
TTL = 3


@pytest.fixture
def fleet(cluster: Cluster, etcd: Etcd) -> Iterator[Fleet]:
    """Two candidates, the relays of two hosts, and the keys of a third."""
    with Fleet(cluster, ttl=TTL, host_ttl=LONG) as made:
        made.admit(HOSTILE)
        leader = made.leader()
        leader.signal(signal.SIGHUP)
        wait_until(lambda: leader.says("reloaded"), LONG)
        for relay in made.relays:
            made.wait_until_served(relay)
        yield made


def tracker_of(fleet: Fleet, host: int) -> Tracker:
    """Return a tracker of an agent on a host, by its number."""
    return Tracker(fleet.relays[host - 1].endpoint, timeout=LONG)


def opened(host: RawHost, uid: int) -> bytes:
    """Open a session of a user of a host, and return its token."""
    token = secrets.token_bytes(16)
    reply = host.ask({"op": "open", "seq": 1, "token": token, "done": []}, uid=uid)
    assert "error" not in reply
    return token


def test_a_token_is_worth_nothing_on_another_host(fleet: Fleet) -> None:
    with (
        tracker_of(fleet, 1) as a,
        RawPeer(fleet.relays[1].endpoint) as thief,
        RawHost(fleet, HOSTILE, fleet.leader()).agree() as hostile,
    ):
        a.track_expected(Proxy("p1"))
        lease = a.try_acquire()
        assert lease is not None
        assert lease.claim("p1")
        session = a._conversation.session
        assert session is not None
        thief.token = session.token
        calls: list[tuple[str, dict[str, Any]]] = [
            ("open", {"name": "thief"}),
            ("release", {"lease": lease.id}),
            ("adopt", {"principals": ["p1"]}),
            ("claim", {"lease": lease.id, "principals": ["p1"]}),
            ("cancel", {"target": 1}),
            ("watch_session", {}),
            ("close", {}),
        ]
        for seq, (op, more) in enumerate(calls, 1000):
            body = {"op": op, "seq": seq, "token": session.token, "done": [1, 999], **more}
            for reply in (
                thief.ask(body),
                hostile.ask(body, uid=0),
                hostile.ask(body, uid=0, pid=os.getpid()),
            ):
                assert reply["error"] == Code.PERMISSION_DENIED, (op, reply)
        assert a.is_claimed("p1")
        lease.release()

        # The same uid on two hosts is two users.
        token = opened(hostile, uid=1000)
        thief.token = token
        body = {"op": "try_acquire", "seq": 2, "token": token, "done": [1, 1]}
        assert thief.ask(body)["error"] == Code.PERMISSION_DENIED
        assert hostile.ask(body, uid=1000)["lease"] is not None
        assert hostile.ask({**body, "seq": 3}, uid=1001)["error"] == Code.PERMISSION_DENIED


def test_a_host_without_a_known_key_never_gets_a_frame_in(fleet: Fleet, tmp_path: Path) -> None:
    leader = fleet.leader()
    unknown = read_secret(make_keys("unknown", tmp_path).secret_file)
    body = {"op": "open", "seq": 1, "token": secrets.token_bytes(16), "done": []}
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    plain = context.socket(zmq.DEALER)
    plain.linger = 0
    plain.connect(fleet.addresses[leader.name])
    with (
        RawHost(fleet, "unknown", leader, unknown) as host,
        tracker_of(fleet, 1) as tracker,
        tracker_of(fleet, 2) as other,
    ):
        tracker.set_connection_count(1)
        before = tracker.status()
        for _ in range(100):
            host.word(Here(BOOT, 0, events=True))
            host.send(body)
            with contextlib.suppress(zmq.Again):
                plain.send(b"hello", zmq.DONTWAIT)
        wait_until(lambda: leader.says("refused a connection"), LONG)
        host.listen(1.0)
        assert host.heard == []
        assert not plain.poll(0)
        assert other.status().connection_count == 1
        after = tracker.status()
        assert (after.sessions, after.revision) == (before.sessions, before.revision)
        assert not leader.says("host=unknown")
    plain.close()
    context.term()


def test_a_removed_key_gets_no_reply_and_no_event_on_a_live_connection(fleet: Fleet) -> None:
    leader = fleet.leader()
    with RawHost(fleet, HOSTILE, leader).agree() as removed, tracker_of(fleet, 1) as tracker:
        token = opened(removed, uid=1000)
        tracker.track_expected(Proxy("before"))
        wait_until(lambda: removed.hears(Events), LONG)
        (fleet.hosts / f"{HOSTILE}.pub").unlink()
        reloads = leader.log.read_text().count("reloaded")
        leader.signal(signal.SIGHUP)
        wait_until(lambda: leader.log.read_text().count("reloaded") > reloads, LONG)
        tracker.set_connection_count(1)  # the leader has taken the reload in
        removed.listen(0.5)
        removed.heard.clear()
        removed.word(Here(BOOT, 0, events=True))
        body = {"op": "set_connection_count", "seq": 2, "token": token, "done": [1, 1], "count": 9}
        removed.send(body, uid=1000)
        removed.word(Exited([(os.getpid(), 1)]))
        tracker.track_expected(Proxy("after"))
        removed.listen(2.0)
        assert removed.heard == []
        assert tracker.status().connection_count == 1


def test_a_relay_that_speaks_garbage_harms_nobody(fleet: Fleet) -> None:
    chance = random.Random(7)
    leader = fleet.leader()
    with tracker_of(fleet, 1) as a, tracker_of(fleet, 2) as b:
        a.track_expected(Proxy("p1"), Proxy("p2"))
        lease, other = a.try_acquire(), b.try_acquire()
        assert lease is not None
        assert other is not None
        assert lease.claim("p1")
        assert other.claim("p2")
        before = a.status()
        with RawHost(fleet, HOSTILE, leader).agree() as hostile:
            token = opened(hostile, uid=0)
            for _ in range(300):
                hostile.say(chance.randbytes(chance.choice([0, 1, 10, 1000])))
            hostile.say(b"", b"")
            hostile.say(*[b"x"] * 100)
            asker = [0, 0, 42, 7, "raw", True, None]
            frame = pack({"op": "forget", "seq": 2, "token": token, "name": "p1"})
            for number in (-1, 0, True, None, "1", 1.5, 2**64 - 1, [1], {1: 1}, b"1"):
                hostile.say(msgpack.packb([number, asker, frame]))
            values: list[Any] = [None, -1, 2**63, "\n" * 80, "x" * 2000, float("nan"), [[]], {}]
            for field in range(len(asker)):
                for value in values:
                    wrong = [*asker[:field], value, *asker[field + 1 :]]
                    hostile.say(msgpack.packb([5, wrong, frame]))
                    hostile.say(msgpack.packb([5, wrong]))
            for _ in range(500):
                hostile.say(msgpack.packb([77, asker, frame]))
            for word in ("here", "exited", "leads", "events", "", 5, None):
                for value in (None, -1, "x" * 3000, [[1]], [[1, -1]], [[2**40, 1]], {}):
                    hostile.say(msgpack.packb([0, word, value, value]))
            hostile.say(b"\x91" * 100_000)
            # It says that the processes of others have ended: all that there can be here.
            session = next(row for row in a.rows("sessions") if row.host == "host-1")
            start = int(
                Path(f"/proc/{session.pid}/stat").read_text().rpartition(")")[2].split()[19]
            )
            hostile.word(Exited([(session.pid, start)]))
            for pid in range(0, 64_000, 32):
                hostile.word(Exited([(each, start) for each in range(pid, pid + 32)]))
            for number in range(200):
                hostile.word(Here(f"boot-{number}", number, events=True))
            assert hostile.ask({"op": "status", "seq": 9})["seq"] == 9
            reply = hostile.ask({"op": "forget", "seq": 10, "token": token, "name": "p1"}, uid=0)
            assert reply["error"] in (Code.PERMISSION_DENIED, Code.SESSION_ENDED)
            with RawHost(fleet, HOSTILE, leader) as huge:
                huge.say(bytes(2_000_000))
                huge.say(msgpack.packb([6, asker, bytes(2_000_000)]))
                assert a.is_claimed("p1")
        assert a.status().epoch == before.epoch
        assert a.status().claimed == 2
        for mine in (lease, other):
            assert not mine.released
            mine.release()
        assert {row.host for row in b.rows("sessions")} >= {"host-1", "host-2"}


def rows_since(etcd: Etcd, revision: int) -> list[tuple[bytes, bytes, int]]:
    """Return key, value and create revision of each row of the journal that is newer."""
    found = etcd.range(PREFIX + b"journal/", PREFIX + b"journal0").kvs
    return [(kv.key, kv.value, kv.create_revision) for kv in found if kv.create_revision > revision]


def test_a_leader_that_was_stopped_for_twice_its_ttl_writes_and_says_nothing(
    fleet: Fleet, etcd: Etcd
) -> None:
    leader = fleet.leader()
    (old,) = etcd.range(PREFIX + b"leader").kvs
    with RawHost(fleet, HOSTILE, leader).agree() as host, tracker_of(fleet, 1) as tracker:
        token = opened(host, uid=0)
        host.ask(
            {"op": "set_connection_count", "seq": 2, "token": token, "done": [1, 1], "count": 5}
        )
        with leader.paused():
            paused = time.monotonic()
            tracker.set_connection_count(1)  # by the next one
            (new,) = etcd.range(PREFIX + b"leader").kvs
            assert new.create_revision > old.create_revision
            # What it finds when it wakes: changes, reads and signs of life of a host that has
            # not heard of its successor.
            host.listen()
            host.heard.clear()
            body = {"op": "set_connection_count", "token": token, "done": [1, 2]}
            for seq in range(3, 50):
                host.send({**body, "seq": seq, "count": 100 + seq})
                host.send({"op": "status", "seq": seq})
                host.word(Here(BOOT, old.create_revision, events=True))
            while time.monotonic() < paused + 2 * TTL:
                tracker.set_connection_count(2)
                time.sleep(0.1)
            tracker.set_connection_count(3)
            written = rows_since(etcd, new.create_revision)
            assert written
        wait_until(lambda: leader.has_ended, LONG)
        assert leader.end() == exits.DEPOSED == 6
        host.listen(0.5)
        said = [each for each in host.heard if isinstance(each, Answer)]
        assert not said, "it has answered"
        assert rows_since(etcd, new.create_revision) == written
        assert [kv.create_revision for kv in etcd.range(PREFIX + b"leader").kvs] == [
            new.create_revision
        ]
        assert tracker.status().connection_count == 3
        for relay in fleet.relays:
            _, _, since = relay.log.read_text().rpartition(f"term={new.create_revision}")
            assert f"term={old.create_revision}" not in since


def test_a_message_that_is_too_large_for_the_leader_harms_no_other_agent(
    cluster: Cluster, etcd: Etcd
) -> None:
    fleet = Fleet(cluster, host_ttl=LONG)
    for part, most in zip(fleet.parts, (1 << 16, 1 << 16, 1 << 20, 1 << 14), strict=True):
        part.file.write_text(f"{part.file.read_text()}[limits]\nmax_frame = {most}\n")
    with fleet:
        for relay in fleet.relays:
            fleet.wait_until_served(relay)
        leader = fleet.leader()
        with (
            tracker_of(fleet, 1) as tracker,
            RawPeer(fleet.relays[0].endpoint) as peer,
            RawPeer(fleet.relays[1].endpoint) as small,
        ):
            peer.open()
            limits = [each.request("hello")["limits"]["max_frame"] for each in (peer, small)]
            assert limits == [1 << 16, 1 << 14]
            connections = leader.log.read_text().count("host connected")
            rows = [[f"p{number}", "", 0, None] for number in range(20_000)]
            reply = peer.request("track_expected", proxies=rows)
            assert reply["error"] == Code.LIMIT_EXCEEDED
            assert "65536" in reply["message"]
            # One that came while nobody led is refused by what the next leader allows.
            leader.kill()
            wait_until(lambda: fleet.relays[0].says("no leader"), LONG)
            assert peer.request("track_expected", proxies=rows)["error"] == Code.LIMIT_EXCEEDED
            tracker.set_connection_count(3)
            (other,) = [each for each in fleet.candidates if each is not leader]
            assert leader.log.read_text().count("host connected") == connections
            for relay in fleet.relays:
                fleet.wait_until_served(relay)

            def connected() -> int:
                return other.log.read_text().count("host connected")

            wait_until(lambda: connected() >= len(fleet.relays), LONG)
            assert connected() == len(fleet.relays)
