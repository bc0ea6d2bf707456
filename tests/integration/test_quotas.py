"""Quotas: a user at all of them is refused with a sentence, and others have their share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.hosts import as_user, let_everybody_in, needs_root, running_as
from helpers.support import PATIENCE, wait_until
from helpers.trackctl import trackctl
from trackd_client import Proxy, Tracker
from trackd_client.testing import Daemon, MakeDaemon

pytestmark = needs_root

GREEDY, OTHER = 54_321, 54_322
QUOTAS: dict[str, Any] = {
    "quota_sessions": 3,
    "quota_leases": 4,
    "quota_waiters": 1,
    "quota_reply_bytes": 1 << 16,
    "quota_subscriptions": 2,
}

#: Uses up all quotas, prints what it was refused and what it gave back, and waits.
_TAKE_ALL = """
import zmq
refused = {}
def ask(peer, op, **fields):
    reply = peer.request(op, **fields)
    if "error" in reply:
        refused[reply["quota"]] = [reply[name] for name in ("error", "used", "allowed", "message")]
    return reply
peers = [RawPeer(endpoint).open() for _ in range(3)]
ask(RawPeer(endpoint), "open")
ask(peers[0], "set_connection_count", count=2)
held = [ask(peers[0], "try_acquire")["lease"] for _ in range(2)]
for lease, name in zip(held, ("p0", "p1")):
    assert ask(peers[0], "claim", lease=lease, principals=[name])["claimed"]
parked = peers[1].body("acquire")
peers[1].send(pack(parked))
assert peers[1].request("status")["waiting"] == 1
ask(peers[2], "acquire")
ask(peers[0], "set_connection_count", count=0)
assert peers[1].receive()["lease"]
assert ask(peers[0], "try_acquire")["lease"]
ask(peers[2], "try_acquire")
context, sockets = zmq.Context(), []
events = ask(peers[0], "status")["events"]
for _ in range(4):
    sockets.append(context.socket(zmq.SUB))
    sockets[-1].connect(events)
    sockets[-1].subscribe(b"")
for seq in range(1000, 2000):
    fields = {"seq": seq, "token": peers[2].token, "proxies": []}
    reply = peers[2].ask({"op": "track_expected", **fields})
    if "error" in reply:
        refused[reply["quota"]] = [reply[each] for each in ("error", "used", "allowed", "message")]
        break
back = ask(peers[0], "release", lease=held[1])["released"]
print(json.dumps([refused, back]), flush=True)
sys.stdin.read()
"""

_DO_ALL = """
with Tracker(endpoint, timeout=20) as tracker:
    events = tracker.events()
    next(events)
    lease = tracker.acquire(timeout=20)
    claimed = lease.claim("p7")
    kinds = []
    for event in events:
        kinds.append(event.kind)
        if event.kind == "proxy_claimed":
            break
result = [claimed, kinds]
"""


@pytest.fixture
def daemon(make_trackd_daemon: MakeDaemon) -> Daemon:
    daemon = make_trackd_daemon(socket_mode="0666", claim_timeout=0, **QUOTAS)
    let_everybody_in(daemon)
    return daemon


def use_of(tracker: Tracker, uid: int) -> dict[str, Any]:
    users: list[dict[str, Any]] = tracker.status()["users"]
    return next(({**user} for user in users if user["uid"] == uid), {})


def test_a_user_at_all_quotas_leaves_others_their_share(daemon: Daemon) -> None:
    with Tracker(daemon.endpoint, timeout=PATIENCE) as tracker:
        tracker.track_expected(*(Proxy(f"p{n}") for n in range(10)))
        with running_as(daemon.endpoint, _TAKE_ALL, GREEDY) as (refused, back):
            assert back, "what is given back never meets a quota"
            sentences = {name: each[3] for name, each in refused.items()}
            assert {name: each[:3] for name, each in refused.items()} == {
                "sessions": ["quota_exceeded", 3, 3],
                "waiters": ["quota_exceeded", 1, 1],
                "leases": ["quota_exceeded", 4, 4],
                "reply_bytes": ["quota_exceeded", refused["reply_bytes"][1], 1 << 16],
            }
            assert sentences["sessions"] == (
                f"user {GREEDY} has 3 sessions; quota_sessions allows 3"
            )
            wait_until(lambda: use_of(tracker, GREEDY)["subscriptions"] == 2)
            wait_until(lambda: "too many subscriptions: hung up" in daemon.log.read_text())

            claimed, kinds = as_user(daemon.endpoint, _DO_ALL, OTHER, OTHER)
            assert claimed
            assert kinds[-2:] == ["lease_granted", "proxy_claimed"]

            use = use_of(tracker, GREEDY)
            assert (use["sessions"], use["leases"], use["waiters"]) == (3, 3, 0)
            assert use["reply_bytes"] >= 1 << 16
            told = trackctl("--endpoint", daemon.endpoint, "status").stdout
            assert f"user {GREEDY} uses 3 of 3 sessions, " in told
            assert "2 of 2 subscriptions" in told
            text = trackctl("--endpoint", daemon.endpoint, "metrics").stdout
            assert f'quota="sessions",uid="{GREEDY}"}} 3.0' in text
        wait_until(lambda: not use_of(tracker, GREEDY))
        assert use_of(tracker, 0)["exempt"]


def test_root_has_no_quotas(daemon: Daemon) -> None:
    with Tracker(daemon.endpoint, timeout=PATIENCE) as tracker:
        tracker.track_expected(*(Proxy(f"p{n}") for n in range(10)))
        assert all(tracker.try_acquire() for _ in range(8))
        assert use_of(tracker, 0)["leases"] == 8


def reload(tracker: Tracker) -> None:
    number = tracker.reload()["reloads"]
    wait_until(lambda: tracker.status()["reloads"] >= number)
    assert tracker.status()["reload"]["error"] is None


_SECOND = """
with Tracker(endpoint, timeout=20) as first, Tracker(endpoint, timeout=20) as second:
    result = None
    try:
        first.is_claimed("p0")
        second.is_claimed("p0")
    except errors.QuotaExceeded as error:
        result = [error.quota, error.used, error.allowed]
"""


def test_quotas_follow_a_reload_and_end_nothing(
    make_trackd_daemon: MakeDaemon, tmp_path: Path
) -> None:
    file = tmp_path / "trackd.toml"
    file.write_text("[quotas]\nquota_sessions = 1\n")
    daemon = make_trackd_daemon(socket_mode="0666", config=file)
    let_everybody_in(daemon)
    assert as_user(daemon.endpoint, _SECOND, OTHER, OTHER) == ["sessions", 1, 1]
    with Tracker(daemon.endpoint, timeout=PATIENCE) as tracker:
        file.write_text("[quotas]\nquota_sessions = 2\n")
        reload(tracker)
        with running_as(daemon.endpoint, _TWO, OTHER) as opened:
            assert opened == 2
            file.write_text("[quotas]\nquota_sessions = 1\n")
            reload(tracker)
            assert use_of(tracker, OTHER)["sessions"] == 2, "what is there stays"
            assert as_user(daemon.endpoint, _SECOND, OTHER, OTHER) == ["sessions", 2, 1]
            daemon.restart()
            assert use_of(tracker, OTHER)["sessions"] == 2, "a restart counts again"


_TWO = """
peers = [RawPeer(endpoint).open() for _ in range(2)]
print(json.dumps(len(peers)), flush=True)
sys.stdin.read()
"""
