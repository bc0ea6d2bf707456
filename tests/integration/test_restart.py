"""A daemon that is killed and started again: what it finds, and what its agents notice."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgpack
import pytest

from helpers.agents import Agent
from helpers.hosts import needs_root, process_with_pid
from helpers.support import PATIENCE, RawPeer, pack, wait_until
from trackd.state.state import State
from trackd.storage.files import FILE_NAME
from trackd_client import Proxy, SessionLost, Tracker
from trackd_client.errors import DaemonAbsent
from trackd_client.testing import Daemon, MakeDaemon

LARGEST = 2**64 - 1


@pytest.fixture
def daemon(trackd_daemon: Daemon) -> Daemon:
    return trackd_daemon


@pytest.fixture
def peer(daemon: Daemon) -> Iterator[RawPeer]:
    with RawPeer(daemon.endpoint) as peer:
        yield peer.open()


def state_file(daemon: Daemon) -> Path:
    """Return the store of a daemon, wherever it keeps it."""
    (found,) = daemon.directory.rglob(FILE_NAME)
    return found


def wait_for(peer: RawPeer, name: str, value: object) -> None:
    """Return when a field of the status has a value."""
    wait_until(lambda: peer.request("status")[name] == value)


def log_of(daemon: Daemon) -> str:
    return daemon.log.read_text()


# -- what is there again -----------------------------------------------------------------


@pytest.mark.both_stores
def test_agents_carry_on_with_their_sessions_and_leases(daemon: Daemon) -> None:
    lost: list[Exception] = []
    with Tracker(daemon.endpoint, on_session_lost=lost.append) as tracker:
        tracker.track_expected(Proxy("p1"), Proxy("p2"), Proxy("p3"))
        claimed, in_flight, released = (tracker.acquire(timeout=20) for _ in range(3))
        claimed.claim("p1")
        released.release()
        for _ in range(3):
            daemon.restart()
        assert in_flight.claim("p2")
        assert tracker.is_claimed("p1")
        assert not in_flight.claim("p3"), "it has claimed already"
        claimed.release()
        assert not tracker.is_claimed("p1")
        assert tracker.status()["sessions"] == 1
    assert not lost


@pytest.mark.both_stores
def test_each_start_is_an_epoch_of_the_same_tracker(daemon: Daemon, peer: RawPeer) -> None:
    first = peer.request("hello")
    assert first["epoch"] == 1
    daemon.restart()
    second = peer.request("hello")
    assert second["epoch"] == 2
    assert daemon.stop() == 0
    daemon.start()
    third = peer.request("hello")
    assert third["epoch"] == 3
    for name in ("tracker_id", "boot_id", "cluster"):
        assert first[name] == second[name] == third[name]
    assert peer.request("status")["epoch"] == 3


@pytest.mark.both_stores
def test_lease_ids_and_revisions_go_on_counting(daemon: Daemon, peer: RawPeer) -> None:
    seen = []
    revision = 0
    for _ in range(3):
        granted = peer.request("try_acquire")
        seen.append(granted["lease"])
        assert granted["revision"] > revision
        revision = peer.request("release", lease=granted["lease"])["revision"]
        daemon.restart()
        revision += 1  # the start
        assert peer.request("ping")["revision"] == revision
    assert seen == [1, 2, 3]


@pytest.mark.both_stores
@pytest.mark.parametrize("ends", ["kill", "stop"])
def test_gossip_acknowledged_a_moment_before_the_end_is_there_after_it(
    daemon: Daemon, peer: RawPeer, ends: str
) -> None:
    for number in range(4):
        rows = [[f"p{number}.{n}", "g", LARGEST, 1000.0] for n in range(50)]
        peer.request("track_expected", proxies=rows)
        getattr(daemon, ends)()
        daemon.start()
        status = peer.request("status")
        assert status["tracked"] == 50 * (number + 1)
        assert status["groups"][0]["generation"] == LARGEST


@pytest.mark.both_stores
def test_ten_thousand_proxies_in_one_message_survive(daemon: Daemon, peer: RawPeer) -> None:
    rows = [[f"proxy {n}", "", LARGEST - n % 2, None] for n in range(10_000)]
    assert peer.request("track_expected", proxies=rows)["changed"] == 10_000
    daemon.restart()
    status = peer.request("status")
    assert (status["tracked"], status["desired"]) == (10_000, 5000)


@pytest.mark.both_stores
def test_a_time_to_live_runs_on_while_no_daemon_does(daemon: Daemon, peer: RawPeer) -> None:
    peer.request("track_expected", proxies=[["short", "", 1, 1.0], ["long", "", 1, 1000.0]])
    lease = peer.request("try_acquire")["lease"]
    peer.request("claim", lease=lease, principals=["short"])
    daemon.kill()
    begun = os.times().elapsed
    wait_until(lambda: os.times().elapsed > begun + 1.2)
    daemon.start()
    status = peer.request("status")
    assert (status["tracked"], status["claimed"]) == (1, 1)
    assert peer.request("explain")["missing"] == ["long"]


@pytest.mark.both_stores
def test_a_count_that_was_set_holds_until_the_configured_one_changes(
    make_trackd_daemon: MakeDaemon,
) -> None:
    daemon = make_trackd_daemon(connection_count=2)
    with Tracker(daemon.endpoint) as tracker:
        tracker.set_connection_count(7)
        daemon.restart()
        assert tracker.status()["connection_count"] == 7
        daemon.kill()
        daemon._flags = [flag.replace("count=2", "count=3") for flag in daemon._flags]
        daemon.start()
        assert tracker.status()["connection_count"] == 3
        daemon.restart()
        assert tracker.status()["connection_count"] == 3


@pytest.mark.both_stores
def test_waiters_and_their_order_survive_a_restart_that_nobody_notices(
    daemon: Daemon, peer: RawPeer
) -> None:
    lease = peer.request("try_acquire")["lease"]
    waiters = [RawPeer(daemon.endpoint).open() for _ in range(5)]
    try:
        parked = [waiter.body("acquire") for waiter in waiters]
        for number, waiter in enumerate(waiters, 1):
            waiter.send(pack(parked[number - 1]))
            wait_for(peer, "waiting", number)
        daemon.restart()
        for waiter, body in reversed(list(zip(waiters, parked, strict=True))):
            waiter.send(pack(body))  # as a client does after a new handshake
        wait_until(lambda: peer.request("status")["requests"] >= 5)
        assert peer.request("status")["waiting"] == 5
        for waiter, body in zip(waiters, parked, strict=True):
            peer.request("release", lease=lease)
            granted = waiter.receive()
            assert granted is not None
            assert granted["seq"] == body["seq"]
            lease = granted["lease"]
            waiter.request("release", lease=lease)
    finally:
        for waiter in waiters:
            waiter.close()


@pytest.mark.both_stores
def test_what_was_granted_while_its_waiter_was_away_is_told_when_it_comes_back(
    daemon: Daemon, peer: RawPeer
) -> None:
    lease = peer.request("try_acquire")["lease"]
    with RawPeer(daemon.endpoint) as waiter:
        waiter.open()
        parked = waiter.body("acquire")
        waiter.send(pack(parked))
        wait_until(lambda: peer.request("status")["waiting"] == 1)
        daemon.restart()
        peer.request("release", lease=lease)
        status = peer.request("status")
        assert (status["waiting"], status["inflight"]) == (0, 1)
        assert waiter.ask(parked)["lease"] == 2


@pytest.mark.both_stores
def test_a_grant_that_was_cancelled_before_a_kill_stays_taken_back(
    daemon: Daemon, peer: RawPeer
) -> None:
    target = peer.body("try_acquire")
    peer.ask(target)
    cancel = peer.body("cancel", target=target["seq"]) | {"done": []}
    assert peer.ask(cancel)["cancelled"] is True
    daemon.restart()
    peer.send(pack(target))
    status = peer.request("status")
    assert (status["inflight"], status["last_lease"]) == (0, 1)


def test_a_checkpoint_and_a_journal_together_give_what_was_there(
    daemon: Daemon, peer: RawPeer
) -> None:
    """Eight megabytes of gossip make a checkpoint due, which takes small steps between batches."""
    messages = 80
    for number in range(messages):
        rows = [[f"proxy number {n}", "", number, 1000.0] for n in range(number, 5000 + number)]
        peer.request("track_expected", proxies=rows)
    for _ in range(300):
        peer.request("ping")
    peer.request("track_expected", proxies=[["another", "", 1, 1000.0]])
    peer.request("adopt", principals=["proxy number 3"])
    before = peer.request("status")
    daemon.restart()
    after = peer.request("status")
    for name in ("tracked", "desired", "claimed", "claimed_desired", "groups", "last_lease"):
        assert after[name] == before[name]
    daemon.kill()
    with sqlite3.connect(state_file(daemon)) as database:
        (rows,) = database.execute("SELECT count(*) FROM journal").fetchone()
        (kept,) = database.execute("SELECT count(*) FROM state WHERE kind = 'names'").fetchone()
    database.close()
    assert rows < messages, "the journal was never taken into a checkpoint"
    assert kept > 0


# -- who is gone -------------------------------------------------------------------------


@pytest.mark.both_stores
def test_agents_that_died_meanwhile_are_cleared_away_before_anybody_is_served(
    daemon: Daemon, peer: RawPeer
) -> None:
    agents = [Agent(daemon.endpoint) for _ in range(3)]
    for number, agent in enumerate(agents):
        agent.do("adopt", f"p{number}")
    daemon.kill()
    agents[0].kill()
    agents[1].kill()
    first = peer.body("status")
    peer.send(pack(first))  # it is there before the socket is
    daemon.start()
    status = peer.receive()
    assert status is not None
    assert status["seq"] == first["seq"]
    assert (status["sessions"], status["claimed"]) == (2, 1)
    assert agents[2].do("is_claimed", "p2") is True
    agents[2].close()


@pytest.mark.both_stores
@needs_root
def test_a_reused_pid_does_not_inherit_a_session(daemon: Daemon, peer: RawPeer) -> None:
    agent = Agent(daemon.endpoint)
    agent.do("adopt", "p1")
    daemon.kill()
    pid = agent.pid
    agent.kill()
    with process_with_pid(pid) as heir:
        daemon.start()
        assert peer.request("is_claimed", principals=["p1"])["claimed"] is False
        assert peer.request("status")["sessions"] == 1
        heir.kill()


# -- what cannot be kept -----------------------------------------------------------------


def test_a_daemon_without_a_state_directory_says_so_and_forgets(
    make_trackd_daemon: MakeDaemon,
) -> None:
    daemon = make_trackd_daemon(state_dir="")
    assert not list(daemon.directory.rglob(FILE_NAME))
    wait_until(lambda: "memory alone" in log_of(daemon))  # a thread of its own writes the log
    lost: list[SessionLost] = []
    with Tracker(daemon.endpoint, on_session_lost=lost.append) as tracker:
        tracker.track_expected(Proxy("p1"), Proxy("p2"))
        first, second = tracker.acquire(timeout=20), tracker.acquire(timeout=20)
        first.claim("p1")
        hello = tracker.status()
        assert hello["store"] == "off"
        daemon.restart()
        with pytest.raises(SessionLost):
            first.claim("p1")
        for lease in (first, second):
            assert lease.lost
            assert lease.released
            lease.release()
        assert (first.claimed_name, second.claimed_name) == ("p1", None)
        with pytest.raises(SessionLost):
            second.claim("p2")
        again = tracker.try_acquire()  # in a fresh session
        assert again is not None
        assert again.id == 1
        assert again.claim("p1")
        status = tracker.status()
        assert (status["sessions"], status["claimed"], status["epoch"]) == (1, 1, 1)
        assert status["tracker_id"] != hello["tracker_id"]
        wait_until(lambda: lost)  # another thread tells it
    assert len(lost) == 1


def damage(path: Path, how: str) -> None:
    whole = path.read_bytes()
    match how:
        case "random bytes":
            path.write_bytes(os.urandom(len(whole)))
        case "cut short":
            path.write_bytes(whole[: len(whole) // 2])
        case "flipped bits":
            flipped = bytearray(whole)
            for place in range(3000, len(flipped), 97):
                flipped[place] ^= 0x55
            path.write_bytes(flipped)
        case "another program's":
            path.unlink()
            with sqlite3.connect(path) as database:
                database.execute("CREATE TABLE cookies (name TEXT)")
            database.close()
        case "a newer trackd's":
            with sqlite3.connect(path) as database:
                database.execute("PRAGMA user_version = 99")
            database.close()


@pytest.mark.parametrize(
    "how", ["random bytes", "cut short", "flipped bits", "another program's", "a newer trackd's"]
)
def test_a_file_that_cannot_be_used_is_moved_aside_and_agents_begin_afresh(
    daemon: Daemon, how: str
) -> None:
    with Tracker(daemon.endpoint) as tracker:
        tracker.track_expected(*(Proxy(f"p{n}") for n in range(200)))
        lease = tracker.acquire(timeout=20)
        lease.claim("p1")
        daemon.stop()
        path = state_file(daemon)
        damage(path, how)
        content = path.read_bytes()
        daemon.start()
        (aside,) = path.parent.glob(f"{FILE_NAME}.damaged-*[0-9]")
        assert aside.read_bytes() == content
        said = " error state file unusable, moved aside; starting empty"
        wait_until(lambda: said in log_of(daemon))
        assert lease.lost.wait(PATIENCE)
        assert tracker.status()["tracked"] == 0
        assert tracker.adopt("p1") is not None
        daemon.restart()
        assert tracker.is_claimed("p1"), "the new file is as good as any"


def test_what_another_boot_left_is_no_longer_true(daemon: Daemon, peer: RawPeer) -> None:
    peer.request("track_expected", proxies=[["p1", "", 1, None]])
    first = peer.request("hello")
    daemon.stop()
    with sqlite3.connect(state_file(daemon)) as database:
        value = msgpack.packb("the boot before")
        changed = database.execute("UPDATE head SET boot = ?", (value,))
        assert changed.rowcount == 1
    database.close()
    daemon.start()
    second = peer.request("hello")
    assert second["epoch"] == 1
    assert second["tracker_id"] != first["tracker_id"]
    assert peer.request("status")["tracked"] == 0
    assert not list(daemon.directory.rglob("*.damaged-*"))


def test_the_state_of_another_cluster_is_kept_aside_and_the_new_one_is_durable(
    make_trackd_daemon: MakeDaemon, tmp_path: Path
) -> None:
    first = make_trackd_daemon("one.example.com", state_dir=tmp_path)
    with Tracker(first.endpoint) as tracker:
        tracker.track_expected(Proxy("of the first"))
    first.kill()
    second = make_trackd_daemon("two.example.com", state_dir=tmp_path)
    with Tracker(second.endpoint) as tracker:
        assert tracker.status()["tracked"] == 0
        tracker.track_expected(Proxy("p1"), Proxy("p2"))
        lease = tracker.acquire(timeout=20)
        lease.claim("p1")
        second.restart()
        assert tracker.is_claimed("p1")
        assert tracker.status()["tracked"] == 2
    assert len(list(tmp_path.glob("*.damaged-*[0-9]"))) == 1


@pytest.mark.both_stores
def test_the_store_holds_what_the_daemon_said(
    daemon: Daemon, peer: RawPeer, read_stored: Callable[[Daemon], State]
) -> None:
    peer.request("track_expected", proxies=[["p1", "g", LARGEST, 500.0]])
    lease = peer.request("try_acquire")["lease"]
    peer.request("claim", lease=lease, principals=["p1"])
    in_flight = peer.request("adopt", principals=["p2"])["lease"]
    daemon.kill()
    state = read_stored(daemon)
    assert dict(state.tracker.leases) == {1: "p1", in_flight: "p2"}
    assert state.tracker.place("p1") == ("g", LARGEST)
    (session,) = state.sessions
    assert (session.peer.uid, session.peer.pid) == (os.getuid(), os.getpid())
    daemon.start()


# -- the client over a restart -----------------------------------------------------------


@pytest.mark.both_stores
def test_a_call_made_while_there_is_no_daemon_is_answered_by_the_next_one(
    daemon: Daemon,
) -> None:
    with Tracker(daemon.endpoint, timeout=20) as tracker:
        lease = tracker.try_acquire()
        assert lease is not None
        for number in range(3):
            daemon.kill()
            with ThreadPoolExecutor() as threads:
                adopting = threads.submit(tracker.adopt, f"p{number}")
                asking = threads.submit(tracker.is_claimed, "p")
                daemon.start()
                assert adopting.result() is not None
                assert asking.result() is False
            assert tracker.is_claimed(f"p{number}")
        status = tracker.status()
        assert (status["claimed"], status["inflight"], status["last_lease"]) == (3, 1, 4)


@pytest.mark.both_stores
def test_a_call_gives_up_at_its_deadline_and_leaves_nothing_behind(daemon: Daemon) -> None:
    with Tracker(daemon.endpoint, timeout=20) as tracker:
        assert tracker.try_acquire() is not None
        daemon.kill()
        tracker.timeout = 0.4
        for _ in range(2):
            with pytest.raises(DaemonAbsent):
                tracker.adopt("p1")
        tracker.timeout = 20
        daemon.start()
        wait_until(lambda: tracker.status()["requests"] > 2)  # the cancels have come
        wait_until(lambda: tracker.status()["claimed"] == 0)
        assert tracker.status()["inflight"] == 1


@pytest.mark.both_stores
def test_a_release_made_while_there_is_no_daemon_is_delivered_to_the_next_one(
    daemon: Daemon,
) -> None:
    with Tracker(daemon.endpoint, timeout=20) as tracker:
        lease = tracker.adopt("p1")
        assert lease is not None
        daemon.kill()
        tracker.timeout = 0.3
        lease.release()
        assert lease.released
        tracker.timeout = 20
        daemon.start()
        wait_until(lambda: not tracker.is_claimed("p1"))
