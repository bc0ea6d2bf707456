"""What agents do with a tracker, against a real daemon: leases, claims, gossip, sessions."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from helpers.both_clients import Background, Maker
from helpers.support import PATIENCE, run_script, socket_path, unmeasured, wait_until
from helpers.trackers import acquire, in_thread
from trackd_client import (
    AsyncTracker,
    BadPayload,
    Explanation,
    LeaseRow,
    Proxy,
    ProxyExplanation,
    ProxyRow,
    SessionRow,
    Snapshot,
    Status,
    Tracker,
)
from trackd_client.core.conversation import Conversation
from trackd_client.errors import BadArgument, InvalidRequest
from trackd_client.testing import Daemon, MakeDaemon

# -- what agents do --------------------------------------------------------------------------


def test_an_agent_leases_claims_feeds_gossip_and_releases(daemon: Daemon, maker: Maker) -> None:
    tracker = maker.tracker(daemon.endpoint, cluster="example.com")
    lease = tracker.try_acquire()
    assert lease.id > 0
    assert (lease.claimed_name, lease.released) == (None, False)
    assert lease.claim("p1.example.com", "p1") is True
    assert lease.claimed_name == "p1"
    tracker.track_expected(Proxy("p1"), Proxy("p2"))
    assert tracker.is_claimed("p1.example.com")
    assert tracker.is_claimed("nobody", "p1") is True
    assert not tracker.is_claimed("p2")
    other = tracker.try_acquire()
    assert other.id == lease.id + 1
    assert tracker.try_acquire() is None
    other.release()
    lease.release()
    assert not tracker.is_claimed("p1")
    status = tracker.status()
    assert (status["claimed"], status["inflight"]) == (0, 0)


def test_an_agent_goes_all_the_way_from_gossip_to_release(tracker: Tracker) -> None:
    tracker.track_expected(Proxy("p1", generation=2), Proxy("p2", generation=2))
    lease = tracker.acquire(timeout=30.0)
    assert (lease.id, lease.claimed_name, lease.released) == (1, None, False)
    assert lease.claim("p1.example.com", "p1") is True
    assert (lease.claimed_name, lease.released) == ("p1", False)
    assert tracker.is_claimed("p1")
    assert tracker.is_claimed("p1.example.com")
    assert not tracker.is_claimed("p2")

    status = tracker.status()
    assert (status["tracked"], status["desired"], status["target"]) == (2, 2, 2)
    assert (status["claimed"], status["inflight"], status["sessions"]) == (1, 0, 1)
    assert (status["cluster"], status["mode"], status["store"]) == (
        "example.com",
        "agent mesh",
        "ok",
    )

    lease.release()
    assert (lease.claimed_name, lease.released) == ("p1", True)
    assert not tracker.is_claimed("p1")


def test_a_released_lease_keeps_its_name_and_claims_no_more(daemon: Daemon, maker: Maker) -> None:
    tracker = maker.tracker(daemon.endpoint)
    lease = tracker.try_acquire()
    assert lease.claim("p1")
    lease.release()
    lease.release()
    assert lease.released
    assert lease.claimed_name == "p1"
    assert not lease.claim("p2")
    assert not lease.lost
    assert not tracker.is_claimed("p2")


def test_releasing_twice_is_releasing_once(tracker: Tracker) -> None:
    tracker.track_expected(Proxy("p1"))
    first = acquire(tracker)
    assert first.claim("p1")
    first.release()
    second = acquire(tracker)
    assert second.claim("p1")
    first.release()
    assert tracker.is_claimed("p1")
    assert not first.claim("p2")


def test_leaving_a_leases_block_releases_it_also_by_an_exception(
    daemon: Daemon, maker: Maker
) -> None:
    tracker = maker.tracker(daemon.endpoint)
    tracker.track_expected(Proxy("p1"), Proxy("p2"))
    claimed, in_flight = tracker.acquire(), tracker.acquire()
    assert claimed.claim("p1")
    for lease in (claimed, in_flight):
        with pytest.raises(RuntimeError, match="the dial failed"), lease:
            raise RuntimeError("the dial failed")
        assert lease.released
    assert not tracker.is_claimed("p1")
    assert tracker.status()["inflight"] == 0


def test_a_proxy_is_claimed_once_and_the_loser_may_try_another(
    daemon: Daemon, maker: Maker
) -> None:
    tracker, rival = maker.tracker(daemon.endpoint), maker.tracker(daemon.endpoint)
    tracker.track_expected(Proxy("p1"), Proxy("p2"))
    first, second = tracker.try_acquire(), rival.try_acquire()
    assert tracker.try_acquire() is None
    assert first.claim("p1")
    assert second.is_claimed("p1")
    assert second.claim("p1") is False
    assert second.claim("p1.example.com") is False
    assert (second.claimed_name, second.released) == (None, False)
    assert second.claim("p2")
    assert second.claim("p3") is False, "a lease claims once"
    assert second.claim("p1") is False, "it has claimed already"
    assert second.claimed_name == "p2"


def test_an_open_tunnel_is_adopted_unless_another_lease_holds_its_proxy(
    daemon: Daemon, maker: Maker
) -> None:
    tracker, rival = maker.tracker(daemon.endpoint), maker.tracker(daemon.endpoint)
    tracker.track_expected(Proxy("p1"), Proxy("p2"))
    tracker.set_connection_count(1)
    adopted = tracker.adopt("p1.example.com", "x")
    assert adopted.claimed_name == "p1"
    assert tracker.adopt("p2").claimed_name == "p2", "whatever the count says"
    assert rival.adopt("p1") is None
    assert tracker.adopt("p1") is None
    adopted.release()
    assert rival.adopt("p1").claimed_name == "p1"


# -- gossip, the count, and what is said of them ---------------------------------------------


@pytest.mark.rule(15)
def test_gossip_and_a_lease_mark_proxies_as_terminating(daemon: Daemon, maker: Maker) -> None:
    # Names of their own: a retired one stays marked for some seconds, in the next tests too.
    tracker = maker.tracker(daemon.endpoint)
    tracker.set_connection_count(1)
    tracker.track_expected(Proxy("m1"), Proxy("m2"), Proxy("m3", terminating=True))
    lease = tracker.adopt("m1")
    assert (lease.terminating, tracker.try_acquire()) == (False, None)
    assert lease.retire() is True
    assert lease.retire() is True, "a second time changes nothing"
    status = tracker.status()
    assert (status.desired, status.claimed_desired, status.claimed_terminating) == (1, 0, 1)
    assert terminating(tracker) == {"m1", "m3"}
    replacement = tracker.try_acquire()
    with pytest.raises(InvalidRequest):
        replacement.retire()
    assert replacement.claim("m3") is True
    assert replacement.terminating is True
    replacement.release()
    assert replacement.retire() is False
    tracker.track_expected(Proxy("m3", terminating=False))
    wait_until(lambda: terminating(tracker) == {"m1"})  # a mark flips once in a second at most
    adopted = tracker.adopt("m3")
    assert adopted.terminating is False
    tracker.track_expected(Proxy("m3", terminating=True))
    wait_until(lambda: terminating(tracker) == {"m1", "m3"})
    adopted.release()
    assert tracker.adopt("m3").terminating is True
    tracker.close()
    assert lease.retire() is False


def terminating(tracker: Any) -> set[str]:
    """Return the names of the proxies that are terminating."""
    return {row.name for row in tracker.snapshot().proxies if row.terminating}


@pytest.mark.rule(15)
def test_a_client_does_without_what_an_older_daemon_cannot(
    make_trackd_daemon: MakeDaemon, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = maker.tracker(make_trackd_daemon().endpoint)
    known = Conversation.take_hello

    def take_hello(self: Conversation, fields: dict[str, Any]) -> None:
        known(self, {**fields, "minor": 1, "features": ["state_in_replies", 7]})

    monkeypatch.setattr(Conversation, "take_hello", take_hello)
    lease = tracker.adopt("p1")
    assert lease.retire() is False
    assert tracker.status().get("claimed_terminating") is None
    tracker.track_expected(Proxy("p1"))
    assert [row.terminating for row in tracker.snapshot().proxies] == [False]


@pytest.mark.rule(15)
def test_what_the_daemon_can_is_asked_for_again_after_its_restart(
    make_trackd_daemon: MakeDaemon, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = make_trackd_daemon()
    tracker = maker.tracker(own.endpoint)
    known, seen = Conversation.take_hello, Counter[Conversation]()

    def take_hello(self: Conversation, fields: dict[str, Any]) -> None:
        known(self, fields if self in seen else {**fields, "features": []})
        seen[self] += 1

    monkeypatch.setattr(Conversation, "take_hello", take_hello)
    lease = tracker.adopt("p1")
    assert lease.retire() is False, "it is too old"
    own.restart()
    wait_until(lambda: tracker.is_claimed("p1") and max(seen.values()) > 1)
    assert lease.retire() is True


@pytest.mark.rule(15)
def test_teleports_json_has_the_mark_in_an_object_of_its_own(daemon: Daemon, maker: Maker) -> None:
    tracker = maker.tracker(daemon.endpoint)
    entries = [
        {"metadata": {"name": name}, "ttl": 60_000_000_000, "trackd": more}
        for name, more in [
            ("p1", {"terminating": True, "later": 1}),
            ("p2", {"terminating": "yes"}),
            ("p3", 7),
            ("p4", None),
        ]
    ]
    assert tracker.track_discovery(json.dumps({"proxies": entries})) == 0
    rows = tracker.snapshot().proxies
    assert {row.name: row.terminating for row in rows} == {
        "p1": True,
        **dict.fromkeys(["p2", "p3", "p4"], False),
    }


def test_teleports_gossip_is_understood_and_the_largest_generation_survives(
    daemon: Daemon, maker: Maker
) -> None:
    tracker = maker.tracker(daemon.endpoint)
    said = [
        {"version": "v2", "metadata": {"name": "p1"}, "gid": "blue", "ggen": 2**64 - 1},
        {"version": "v2", "metadata": {"name": "p2"}, "gid": "blue", "ggen": 1, "odd": []},
        {"version": "v2", "metadata": {"name": "p3"}, "ttl": 60_000_000_000, "new": 1},
    ]
    tracker.track_discovery(json.dumps({"proxies": said}))
    tracker.track_discovery(json.dumps({"proxies": said}).encode())
    status = tracker.status()
    assert (status["tracked"], status["desired"]) == (3, 2)
    groups = {group["group"]: group["generation"] for group in status["groups"]}
    assert groups.items() >= {"": 0, "blue": 2**64 - 1}.items()
    assert tracker.track_discovery('{"proxies": [{"metadata": {}}, null]}') == 2
    with pytest.raises(BadPayload, match='an array "proxies"'):
        tracker.track_discovery("{}")
    for broken in ("{", b"\xff{"):
        with pytest.raises(BadPayload, match="not JSON"):
            tracker.track_discovery(broken)
    assert tracker.status()["tracked"] == 3


def test_one_bad_entry_does_not_cost_the_message(
    daemon: Daemon, maker: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = maker.tracker(daemon.endpoint)
    entries = [
        {"metadata": {"name": "p1"}},
        {"metadata": {"name": ""}},
        None,
        {"metadata": {"name": "x" * 300}},
        {"metadata": {"name": "p2"}, "ggen": "7"},
        {"Metadata": {"Name": "p3"}},
    ]
    for _ in range(3):
        assert tracker.track_discovery(json.dumps({"proxies": entries})) == 4
    assert tracker.status()["tracked"] == 2
    assert caplog.text.count("4 of its entries skipped") == 1, "said once in a while"


def test_gossip_that_is_too_large_for_one_message_arrives_whole(
    daemon: Daemon, maker: Maker
) -> None:
    tracker = maker.tracker(daemon.endpoint)
    entries = [{"metadata": {"name": f"p{n}".ljust(200, "x")}} for n in range(10_500)]
    assert tracker.track_discovery(json.dumps({"proxies": entries})) == 0
    assert tracker.status()["tracked"] == 10_500


def test_a_mistake_is_an_error_of_ours_that_names_it(daemon: Daemon, maker: Maker) -> None:
    tracker = maker.tracker(daemon.endpoint)
    lease = tracker.try_acquire()
    mistakes: dict[str, Callable[[], object]] = {
        "takes Proxy objects, not 'p1'": lambda: tracker.track_expected("p1"),
        "takes Proxy objects, not 5": lambda: tracker.track_expected(Proxy("p"), 5),
        "timeout must be a number of seconds, not '3'": lambda: tracker.acquire("3"),
        "unpack it with \\*": lambda: lease.claim(["p1", "p2"]),
        "a principal must be text, not 5": lambda: tracker.adopt("p1", 5),
    }
    for words, mistake in mistakes.items():
        with pytest.raises(BadArgument, match=words):
            mistake()
    assert not lease.released
    lease.release()


def test_a_claim_that_can_mean_nothing_fails_and_is_logged(
    daemon: Daemon, maker: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = maker.tracker(daemon.endpoint)
    lease = tracker.try_acquire()
    assert not lease.claim()
    assert not tracker.is_claimed()
    assert "no principals were given" in caplog.text
    lease.release()
    assert not lease.claim("p1")
    assert f"lease {lease.id} was released and cannot claim" in caplog.text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cluster": 5}, "cluster must be text, not 5"),
        ({"timeout": "3"}, "timeout must be a number of seconds, not '3'"),
        ({"name": b"x"}, "name must be text"),
        ({"labels": "ab"}, "labels must be a mapping"),
        ({"labels": {"a": 1}}, "labels must be a mapping"),
        ({"on_session_lost": 5}, "on_session_lost must be a function"),
        ({"on_state_change": "x"}, "on_state_change must be a function"),
        ({"endpoint": 5}, "endpoint must be text, not 5"),
        ({"endpoint": "example.com"}, "for a cluster pass cluster='example.com'"),
    ],
)
@pytest.mark.parametrize("kind", [Tracker, AsyncTracker])
def test_a_tracker_with_a_wrong_argument_is_not_made(
    kind: Callable[..., object], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(BadArgument, match=words):
        kind(**options)


def test_a_proxy_whose_ttl_has_passed_is_wanted_no_more(tracker: Tracker) -> None:
    tracker.track_expected(Proxy("short", ttl=0.05), Proxy("long"))
    wait_until(lambda: tracker.status()["tracked"] == 1)
    assert tracker.explain()["missing"] == ["long"]


def test_the_connection_count_bounds_the_leases_and_explain_says_so(
    daemon: Daemon, maker: Maker
) -> None:
    tracker = maker.tracker(daemon.endpoint)
    tracker.track_expected(*(Proxy(f"p{i}") for i in range(5)))
    tracker.set_connection_count(1)
    lease = tracker.try_acquire()
    explained = tracker.explain()
    assert (explained["target"], explained["inflight"]) == (1, 1)
    assert (explained["would_grant"], explained["reason"]) == (False, "satisfied")
    assert explained["missing_count"] == 5
    assert tracker.try_acquire() is None
    tracker.set_connection_count(2)
    assert tracker.try_acquire() is not None
    lease.release()


def test_the_connection_count_chooses_between_mesh_and_peering(tracker: Tracker) -> None:
    tracker.track_expected(*(Proxy(f"p{i}") for i in range(5)))
    tracker.set_connection_count(3)
    assert tracker.status()["mode"] == "proxy peering"
    assert tracker.status()["target"] == 3
    leases = [tracker.try_acquire() for _ in range(4)]
    assert [lease is not None for lease in leases] == [True, True, True, False]
    tracker.set_connection_count(-1)
    assert tracker.status()["mode"] == "agent mesh"
    assert tracker.try_acquire() is not None


def test_explain_tells_the_numbers_behind_a_refusal(tracker: Tracker) -> None:
    tracker.track_expected(Proxy("p1"), Proxy("p2"))
    assert acquire(tracker).claim("p1")
    before = tracker.explain()
    assert (before["would_grant"], before["reason"], before["missing"]) == (True, "need", ["p2"])
    acquire(tracker)
    after = tracker.explain()
    assert (after["would_grant"], after["target"], after["inflight"]) == (False, 2, 1)
    assert tracker.try_acquire() is None


def test_results_are_frozen_classes_and_the_dictionaries_of_the_reply(
    daemon: Daemon, maker: Maker
) -> None:
    tracker = maker.tracker(daemon.endpoint)
    tracker.track_expected(Proxy("p1", group="east", generation=3))
    lease = tracker.acquire()
    assert lease.claim("p1.example.com", "p1")

    status = tracker.status()
    assert type(status) is Status
    assert (status.cluster, status.pid, status.claimed) == ("example.com", daemon.pid, 1)
    assert status.groups[0].generation == 3
    assert status["groups"] == [dict(group) for group in status.groups]
    assert json.loads(json.dumps(status)) == status
    assert set(status) == set(Status.__annotations__) - {
        "http_problem",
        "claimed_terminating",
        "offered",
        "pause",
        "paused_sessions",
        "tunnels",
        "leader",
    }
    explained, about = tracker.explain(), tracker.explain("p1.example.com")
    assert type(explained) is Explanation
    assert explained.reason == "satisfied"
    assert explained.recent.claims >= 1
    assert set(explained) == set(Explanation.__annotations__) - {
        "retry_after",
        "claimed_terminating",
        "hint",
        "pause",
        "offered",
        "outcomes",
    }
    assert type(about) is ProxyExplanation
    assert (about.why, about.proxy.lease) == ("claimed", lease.id)
    reports = {"reported", "rtt", "stale"}  # where a lease has reported
    offers = {"offered", "target", "address", "only_source"}
    assert set(about) == set(ProxyExplanation.__annotations__) - reports - offers

    snapshot = tracker.snapshot()
    assert type(snapshot) is Snapshot
    for of, kind in (("proxies", ProxyRow), ("leases", LeaseRow), ("sessions", SessionRow)):
        (row,) = tracker.rows(of)
        (same,) = getattr(snapshot, of)
        assert type(row) is type(same) is kind
        optional = {"terminating", "pause", "host", *offers, *reports}
        assert set(row) == set(same) == set(kind.__annotations__) - optional
    assert about.proxy == snapshot.proxies[0]
    assert snapshot.leases[0].principals == ["p1.example.com", "p1"]
    assert snapshot.sessions[0].session == snapshot.leases[0].session


# -- sessions and places ---------------------------------------------------------------------


@unmeasured
def test_a_client_loads_neither_pykka_nor_the_daemon(shared_daemon: Daemon) -> None:
    code = """
import sys
from trackd_client import Proxy, Tracker
with Tracker(sys.argv[1]) as tracker:
    tracker.track_expected(Proxy("a"))
    with tracker.acquire() as lease:
        lease.claim("a")
roots = {name.partition(".")[0] for name in sys.modules}
print(sorted(roots & {"pykka", "trackd", "sqlite3", "asyncio", "rich", "click", "pytest"}))
"""
    done = run_script(code, shared_daemon.endpoint)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_a_tracker_asks_for_no_session_before_it_needs_one(shared_daemon: Daemon) -> None:
    with Tracker(shared_daemon.endpoint) as tracker:
        tracker.ping()
        assert tracker.status()["sessions"] == 0
        tracker.explain()
        assert tracker.status()["sessions"] == 0
        tracker.is_claimed("p")
        assert tracker.status()["sessions"] == 1


def test_threads_that_begin_together_open_one_session(daemon: Daemon, maker: Maker) -> None:
    tracker, operator = maker.tracker(daemon.endpoint), maker.tracker(daemon.endpoint)
    start = threading.Barrier(8)

    def begin() -> None:
        start.wait()
        tracker.is_claimed("p1")

    for call in [Background(begin) for _ in range(8)]:
        call.result()
    assert operator.status()["sessions"] == 1


def test_calls_of_many_threads_all_get_their_own_answers(daemon: Daemon, maker: Maker) -> None:
    tracker = maker.tracker(daemon.endpoint)
    tracker.track_expected(*(Proxy(f"p{i}") for i in range(40)))

    def claim(name: str) -> str:
        lease = tracker.acquire(PATIENCE)
        assert lease.claim(name)
        return str(lease.claimed_name)

    calls = {f"p{i}": Background(claim, f"p{i}") for i in range(40)}
    assert {name: call.result() for name, call in calls.items()} == {name: name for name in calls}
    assert tracker.status()["claimed"] == 40
    assert tracker.status()["sessions"] == 1


def test_many_threads_share_one_session_and_get_their_own_answers(tracker: Tracker) -> None:
    names = [f"p{i}" for i in range(200)]
    tracker.track_expected(*(Proxy(name) for name in names))
    claimed: list[tuple[int, str]] = []

    def work() -> None:
        for _ in range(25):
            lease = acquire(tracker)
            assert any(lease.claim(name) for name in names[lease.id - 1 :])
            assert lease.claimed_name is not None
            claimed.append((lease.id, lease.claimed_name))

    threads = [in_thread(work) for _ in range(8)]
    for thread, outcome in threads:
        thread.join(PATIENCE)
        assert outcome == [None]
    assert len({number for number, _ in claimed}) == len({name for _, name in claimed}) == 200
    status = tracker.status()
    assert (status["claimed"], status["inflight"], status["sessions"]) == (200, 0, 1)


def test_the_endpoint_may_be_a_path_or_come_from_the_environment(
    shared_daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(socket_path(shared_daemon))
    with Tracker(path) as tracker:
        tracker.ping()
        assert tracker.endpoint == shared_daemon.endpoint
    monkeypatch.setenv("TRACKD_ENDPOINT", path)
    with Tracker() as tracker:
        tracker.ping()
