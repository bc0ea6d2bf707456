"""Sessions of real processes and real users at a real daemon."""

from __future__ import annotations

import grp
import os
import pwd
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.agents import Agent
from helpers.both_clients import Background
from helpers.hosts import (
    IN_A_PID_NAMESPACE,
    as_user,
    let_everybody_in,
    needs_root,
    started_by,
)
from helpers.support import PATIENCE, RawPeer, pack, paused, wait_until
from helpers.trackers import claimed_in_time
from trackd_client import Proxy, Tracker
from trackd_client.errors import Code, LeaseExpired
from trackd_client.testing import Daemon, MakeDaemon
from trackd_client.wire.clock import boottime

NOBODY = pwd.getpwnam("nobody")
GAMES = pwd.getpwnam("games")
MAN = pwd.getpwnam("man")


@pytest.fixture
def daemon(make_trackd_daemon: MakeDaemon) -> Daemon:
    daemon = make_trackd_daemon(socket_mode="0666")
    let_everybody_in(daemon)
    return daemon


@pytest.fixture
def peer(daemon: Daemon) -> Iterator[RawPeer]:
    with RawPeer(daemon.endpoint) as peer:
        yield peer.open()


# -- who may use a session ---------------------------------------------------------------

WITH_A_STOLEN_TOKEN = """
peer = RawPeer(endpoint)
peer.token = bytes.fromhex({token!r})
result = [peer.ask({{"op": op, "seq": seq, "token": peer.token, "lease": 1, "principals": ["p1"]}})
    .get("error") for seq, op in enumerate({ops!r}, 100)]
peer.close()
"""
OPS = ("open", "heartbeat", "try_acquire", "claim", "release", "is_claimed", "close")


@needs_root
def test_a_token_is_worth_nothing_to_another_user(daemon: Daemon, peer: RawPeer) -> None:
    lease = peer.request("try_acquire")["lease"]
    peer.request("claim", lease=lease, principals=["p1"])
    code = WITH_A_STOLEN_TOKEN.format(token=peer.token.hex(), ops=OPS)
    errors = as_user(daemon.endpoint, code, NOBODY.pw_uid, NOBODY.pw_gid)
    assert errors == [Code.PERMISSION_DENIED] * len(OPS)
    assert peer.request("is_claimed", principals=["p1"])["claimed"] is True
    assert peer.request("release", lease=lease)["released"] is True


@needs_root
def test_root_learns_nothing_from_the_token_of_somebody_else(daemon: Daemon) -> None:
    code = """
peer = RawPeer(endpoint)
peer.open()
peer.request("adopt", principals=["p1"])
result = peer.token.hex()
"""
    token = as_user(daemon.endpoint, code, NOBODY.pw_uid, NOBODY.pw_gid)
    with RawPeer(daemon.endpoint) as thief:
        wait_until(lambda: thief.request("status")["sessions"] == 0)
        thief.token = bytes.fromhex(token)
        for op in ("open", "try_acquire", "close"):
            assert thief.request(op)["error"] == Code.PERMISSION_DENIED


def test_another_process_cannot_open_a_session_with_the_same_token(
    daemon: Daemon, peer: RawPeer
) -> None:
    code = WITH_A_STOLEN_TOKEN.format(token=peer.token.hex(), ops=("open",))
    (error,) = as_user(daemon.endpoint, code, os.getuid(), os.getgid(), tuple(os.getgroups()))
    assert error == Code.PERMISSION_DENIED
    assert "error" not in peer.request("open")


def test_only_the_session_that_holds_a_lease_may_use_it(daemon: Daemon) -> None:
    with Agent(daemon.endpoint) as owner, RawPeer(daemon.endpoint) as other:
        owner.do("track", [["p1", "", 1]])
        lease = owner.do("acquire")
        other.open()
        for op in ("claim", "release"):
            reply = other.request(op, lease=lease, principals=["p1"])
            assert reply["error"] == Code.NOT_OWNER
        assert owner.do("claim", lease, "p1") == "p1"
        assert other.request("release", lease=lease)["error"] == Code.NOT_OWNER
        assert owner.do("is_claimed", "p1") is True


# -- roles -------------------------------------------------------------------------------

SET_COUNT = """
try:
    with Tracker(endpoint) as tracker:
        tracker.set_connection_count({count})
    result = None
except errors.PermissionRefused as error:
    result = error.code
"""


def set_count_as(
    daemon: Daemon, count: int, user: pwd.struct_passwd, groups: tuple[int, ...] = ()
) -> Any:
    """Set the count as a user, and return the code of the error, if there was one."""
    return as_user(daemon.endpoint, SET_COUNT.format(count=count), user.pw_uid, user.pw_gid, groups)


def count_of(daemon: Daemon) -> int:
    with Tracker(daemon.endpoint) as tracker:
        return int(tracker.status()["connection_count"])


@needs_root
def test_every_client_may_set_the_count_unless_that_is_for_admins(daemon: Daemon) -> None:
    assert set_count_as(daemon, 4, NOBODY) is None
    assert count_of(daemon) == 4


@needs_root
def test_the_count_may_be_for_admins_alone(make_trackd_daemon: MakeDaemon) -> None:
    group = grp.getgrgid(MAN.pw_gid).gr_name
    daemon = make_trackd_daemon(
        socket_mode="0666", count_role="admin", admin_users="games", admin_groups=group
    )
    let_everybody_in(daemon)
    assert set_count_as(daemon, 1, NOBODY) == Code.PERMISSION_DENIED
    assert count_of(daemon) == 0
    assert set_count_as(daemon, 2, GAMES) is None
    assert count_of(daemon) == 2
    assert set_count_as(daemon, 3, MAN) is None
    assert count_of(daemon) == 3
    with Tracker(daemon.endpoint) as root:
        root.set_connection_count(4)
    assert count_of(daemon) == 4
    # What a process says of its further groups, the kernel does not tell; the host does.
    assert set_count_as(daemon, 5, NOBODY, (MAN.pw_gid,)) == Code.PERMISSION_DENIED


@needs_root
def test_a_member_of_an_admin_group_is_an_admin_whatever_his_own_group_is(
    make_trackd_daemon: MakeDaemon, tmp_path: Path
) -> None:
    """The daemon sees a host where nobody is a member of one more group."""
    groups = tmp_path / "group"
    groups.write_text(Path("/etc/group").read_text() + "tunnellers:x:4242:nobody\n")
    wrapper = f'exec unshare --mount sh -c \'mount --bind {groups} /etc/group; exec "$@"\' sh "$@"'
    with started_by(wrapper, tmp_path):
        daemon = make_trackd_daemon(
            socket_mode="0666", count_role="admin", admin_groups="4242", start=False
        )
        daemon.start()
    let_everybody_in(daemon)
    assert set_count_as(daemon, 1, GAMES) == Code.PERMISSION_DENIED
    assert set_count_as(daemon, 2, NOBODY) is None
    assert count_of(daemon) == 2
    assert "tunnellers" not in Path("/etc/group").read_text()


# -- processes that can be seen need no signs of life ------------------------------------


def test_a_stopped_agent_keeps_its_leases_far_beyond_the_time_to_live(
    make_trackd_daemon: MakeDaemon,
) -> None:
    daemon = make_trackd_daemon(heartbeat_ttl=1)
    with Agent(daemon.endpoint) as agent, Tracker(daemon.endpoint) as observer:
        agent.do("adopt", "p1")
        begun = observer.status()["uptime"]
        with paused(agent.pid):
            wait_until(lambda: observer.status()["uptime"] > begun + 2.5)
            assert observer.is_claimed("p1")
            assert observer.status()["sessions"] == 2
        assert agent.do("is_claimed", "p1") is True


# -- processes that cannot be seen -------------------------------------------------------


#: Seconds that agents which cannot be seen may be silent.
BLIND_TTL = 4.0


@pytest.fixture
def blind(make_trackd_daemon: MakeDaemon, tmp_path: Path) -> Daemon:
    """A daemon in a pid namespace of its own; to it all agents have the pid 0."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a pid namespace")
    with started_by(IN_A_PID_NAMESPACE, tmp_path):
        return make_trackd_daemon(heartbeat_ttl=BLIND_TTL)


def test_an_agent_that_cannot_be_seen_lives_by_its_signs_of_life(blind: Daemon) -> None:
    with Tracker(blind.endpoint) as tracker, RawPeer(blind.endpoint) as silent:
        lease = tracker.adopt("p1")
        assert lease is not None
        silent.open()
        silent.request("adopt", principals=["p2"])
        # The one that is silent ends, the one that began before it and breathes does not.
        for _ in range(2):
            wait_until(lambda: not tracker.is_claimed("p2"))
            assert tracker.is_claimed("p1")
            assert silent.request("try_acquire")["reason"] == "no_heartbeat"
            silent.token = os.urandom(16)
            silent.open()
            silent.request("adopt", principals=["p2"])
        assert not lease.lost


def test_an_agent_that_cannot_be_seen_and_dies_is_missed_after_its_time_to_live(
    blind: Daemon,
) -> None:
    agent = Agent(blind.endpoint)
    begun = time.monotonic()
    agent.do("adopt", "p1")
    with Tracker(blind.endpoint) as observer:
        agent.kill()
        wait_until(lambda: not observer.is_claimed("p1"))
    assert time.monotonic() - begun >= BLIND_TTL, "and not before"


def test_an_agent_that_cannot_be_seen_and_closes_is_gone_at_once(
    make_trackd_daemon: MakeDaemon, tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make a pid namespace")
    with started_by(IN_A_PID_NAMESPACE, tmp_path):
        daemon = make_trackd_daemon(heartbeat_ttl=3600)
    with Tracker(daemon.endpoint) as observer:
        with Tracker(daemon.endpoint) as tracker:
            assert tracker.adopt("p1") is not None
            assert observer.is_claimed("p1")
        assert not observer.is_claimed("p1")


def test_agents_that_cannot_be_seen_get_a_full_time_to_live_after_a_restart(
    make_trackd_daemon: MakeDaemon, tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make a pid namespace")
    with started_by(IN_A_PID_NAMESPACE, tmp_path):
        daemon = make_trackd_daemon(heartbeat_ttl=3)
        with RawPeer(daemon.endpoint) as peer:
            peer.open()
            peer.request("adopt", principals=["p1"])
            daemon.kill()
            begun = os.times().elapsed
            wait_until(lambda: os.times().elapsed > begun + 3.2)  # longer than it may be silent
            asked = peer.body("is_claimed", principals=["p1"])
            peer.send(pack(asked))  # before the daemon serves, so that it is in time
            daemon.start()
            reply = peer.receive()
            assert reply is not None
            assert (reply["seq"], reply["claimed"]) == (asked["seq"], True)


def test_an_agent_in_a_pid_namespace_is_seen_from_outside(daemon: Daemon) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make a pid namespace")
    code = """
tracker = Tracker(endpoint)
tracker.adopt("p1")
result = tracker.status()["sessions"]
"""
    with Tracker(daemon.endpoint) as observer:
        command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        assert inside(command, daemon.endpoint, code) == 1
        wait_until(lambda: not observer.is_claimed("p1"))  # not after a time to live of 30 s


def inside(command: list[str], endpoint: str, code: str) -> Any:
    """Run code as `as_user` does, by a command, and return once the process is gone."""
    real = subprocess.run

    def run(args: list[str], **options: Any) -> Any:
        return real([*command, *args], **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(subprocess, "run", run)
        return as_user(endpoint, code, 0, 0)


# -- leases that do not claim ------------------------------------------------------------


def test_a_lease_that_never_claims_is_taken_back_and_goes_to_whoever_waits(
    make_trackd_daemon: MakeDaemon,
) -> None:
    daemon = make_trackd_daemon(claim_timeout=2.0)
    with Tracker(daemon.endpoint) as idle, Tracker(daemon.endpoint) as waiting:
        idle.track_expected(Proxy("p1"))
        lease = idle.try_acquire()
        assert lease is not None
        claimed_in_time(lambda: waiting.acquire(timeout=PATIENCE), "p1")
        with pytest.raises(LeaseExpired):
            lease.claim("p1")
        assert lease.lost.wait(PATIENCE)
        lease.release()  # nothing to do, and no error
        status = waiting.status()
        assert (status["inflight"], status["claimed"]) == (0, 1)


@pytest.mark.both_stores
def test_the_time_to_claim_begins_again_when_the_daemon_serves_again(
    make_trackd_daemon: MakeDaemon,
) -> None:
    daemon = make_trackd_daemon(claim_timeout=5.0)
    with Tracker(daemon.endpoint, timeout=PATIENCE) as tracker:
        begun = boottime()
        lease = tracker.try_acquire()
        assert lease is not None
        remaining = lease.remaining_claim_time
        assert remaining is not None
        assert 5 - (boottime() - begun) <= remaining <= 5
        daemon.kill()
        wait_until(lambda: lease.remaining_claim_time == 0)
        claims = Background(lease.claim, "p1")  # is there as soon as the daemon serves
        daemon.start()
        assert claims.result() is True
        assert tracker.status()["inflight"] == 0


# -- exactly once, over the wire ---------------------------------------------------------


@pytest.mark.both_stores
def test_whatever_is_sent_again_in_any_order_before_and_after_restarts_changes_nothing(
    daemon: Daemon,
) -> None:
    chance = random.Random(11)
    with RawPeer(daemon.endpoint) as peer, RawPeer(daemon.endpoint) as elsewhere:
        peer.open()

        def undone(op: str, **fields: Any) -> dict[str, Any]:
            return peer.body(op, **fields) | {"done": []}

        made: list[tuple[dict[str, Any], dict[str, Any]]] = []

        def make(op: str, **fields: Any) -> dict[str, Any]:
            body = undone(op, **fields)
            made.append((body, peer.ask(body)))
            return made[-1][1]

        make("track_expected", proxies=[[f"p{n}", "", 2**64 - 1, 600.0] for n in range(6)])
        make("set_connection_count", count=5)
        leases = [make("try_acquire")["lease"] for _ in range(4)]
        make("claim", lease=leases[0], principals=["p0"])
        make("claim", lease=leases[1], principals=["p1.example.com"])
        make("adopt", principals=["p5"])
        make("release", lease=leases[0])
        make("release", lease=leases[2])
        make("cancel", target=made[5][0]["seq"])  # the fourth try_acquire
        assert len({reply["revision"] for _, reply in made}) == len(made)  # each changed something
        before = peer.request("status")
        for restarts in range(2):
            for _ in range(3):
                chance.shuffle(made)
                for body, reply in made:
                    for sender in (peer, elsewhere):
                        if body["op"] == "try_acquire" and reply["lease"] == leases[3]:
                            sender.send(pack(body))  # given up: never answered again
                        else:
                            assert sender.ask(body) == reply
            after = peer.request("status")
            changing = {"seq", "uptime", "requests", "pid", "epoch", "store_bytes", "revision"}
            changing |= {"history", "missing_seconds", "missing_by_group", "full_at", "leader"}
            assert {k: v for k, v in after.items() if k not in changing} == {
                k: v for k, v in before.items() if k not in ("seq", *changing)
            }
            assert after["revision"] == before["revision"] + restarts  # each start is a change
            daemon.restart()


@pytest.mark.both_stores
def test_an_acquire_that_is_parked_twice_is_answered_once_over_the_newest_connection(
    daemon: Daemon, peer: RawPeer
) -> None:
    with RawPeer(daemon.endpoint) as old, RawPeer(daemon.endpoint) as new:
        lease = peer.request("try_acquire")["lease"]
        old.open()
        parked = old.body("acquire")
        old.send(pack(parked))
        wait_until(lambda: peer.request("status")["waiting"] == 1)
        new.token = old.token
        new.send(pack(parked))
        new.ask({"op": "hello", "seq": 1000})  # what came before it has been read
        assert peer.request("status")["waiting"] == 1
        peer.request("release", lease=lease)
        granted = new.receive()
        assert granted is not None
        assert (granted["seq"], granted["lease"]) == (parked["seq"], 2)
        assert old.receive(0) is None


@pytest.mark.both_stores
def test_requests_that_wait_for_an_absent_daemon_and_are_too_late_then_do_nothing(
    daemon: Daemon, peer: RawPeer
) -> None:
    clock = peer.request("hello")["clock"]
    daemon.kill()
    peer.send(pack(peer.body("try_acquire", deadline=clock)))
    peer.send(pack(peer.body("track_expected", proxies=[["p1", "", 1, None]], deadline=clock)))
    daemon.start()
    status = peer.request("status")
    assert (status["inflight"], status["tracked"], status["last_lease"]) == (0, 0, 0)


@pytest.mark.rule(12)
@needs_root
def test_the_clock_of_the_daemon_is_the_one_that_counts_the_time_of_a_suspend(
    make_trackd_daemon: MakeDaemon, tmp_path: Path
) -> None:
    """The daemon lives where this clock alone is 100,000 s ahead, as after a suspend."""
    with started_by('exec unshare --time --boottime 100000 "$@"', tmp_path):
        daemon = make_trackd_daemon(start=False)
        daemon.start()
    with RawPeer(daemon.endpoint) as peer:
        ahead = peer.request("hello")["clock"] - time.clock_gettime(time.CLOCK_BOOTTIME)
    assert 99_000 < ahead < 101_000


@pytest.mark.rule(14)
def test_a_tunnel_that_outlived_its_session_is_adopted(make_trackd_daemon: MakeDaemon) -> None:
    daemon = make_trackd_daemon(state_dir="")
    lost: list[Exception] = []
    with Tracker(daemon.endpoint, on_session_lost=lost.append) as tracker:
        tracker.track_expected(Proxy("p1"))
        lease = tracker.acquire(timeout=20)
        assert lease.claim("p1")
        daemon.restart()
        assert lease.lost.wait(PATIENCE)
        again = tracker.adopt("p1.example.com", "p1")
        assert again is not None
        assert (again.claimed_name, lease.claimed_name) == ("p1", "p1")
        assert tracker.is_claimed("p1")
        wait_until(lambda: lost)  # another thread tells it
        assert len(lost) == 1
        with Tracker(daemon.endpoint) as other:
            assert other.adopt("p1") is None
