"""What a tracker refuses, or the daemon for it: names, fields, numbers, arguments."""

from __future__ import annotations

import math
from typing import Any

import pytest

from helpers.both_clients import Maker
from helpers.trackers import held
from trackd_client import Proxy, Refused, TrackdError, Tracker
from trackd_client.errors import BadArgument, InvalidRequest, LimitExceeded
from trackd_client.testing import Daemon, MakeDaemon

# -- both clients ----------------------------------------------------------------------------


def test_what_cannot_be_right_is_refused_and_changes_nothing(daemon: Daemon, maker: Maker) -> None:
    tracker = maker.tracker(daemon.endpoint)
    revision = tracker.explain()["revision"]
    for wrong in (Proxy(""), Proxy("x" * 256), Proxy("p", generation=-1), Proxy("a\nb")):
        with pytest.raises((InvalidRequest, LimitExceeded)):
            tracker.track_expected(Proxy("good"), wrong)
    with pytest.raises(LimitExceeded):
        tracker.track_expected(*(Proxy(f"p{i}") for i in range(10_001)))
    with pytest.raises(InvalidRequest):
        tracker.track_expected(Proxy("p", generation=2**64))
    with pytest.raises(TrackdError):
        tracker.is_claimed(*["p"] * 65)
    assert tracker.status()["tracked"] == 0
    assert tracker.explain()["revision"] == revision + 1, "the session, and nothing else"


def test_a_request_larger_than_a_frame_is_refused_before_it_is_sent(
    daemon: Daemon, maker: Maker
) -> None:
    tracker = maker.tracker(daemon.endpoint)
    served = tracker.status()["requests"]
    with pytest.raises(LimitExceeded, match="fewer proxies"):
        tracker.track_expected(*(Proxy(f"{i:0250}") for i in range(9_999)))
    # The session was opened, and its notices are awaited.
    assert tracker.status()["requests"] - served <= 3
    tracker.track_expected(Proxy("p1"))
    assert tracker.status()["tracked"] == 1


def test_an_argument_that_can_never_be_right_is_an_error_of_ours_and_a_value_error(
    daemon: Daemon, maker: Maker
) -> None:
    assert issubclass(BadArgument, ValueError)
    assert issubclass(BadArgument, TrackdError)
    tracker = maker.tracker(daemon.endpoint)
    for wrong in (-1.0, math.nan):
        with pytest.raises(BadArgument, match="timeout must be a"):
            tracker.acquire(timeout=wrong)
    for wrong in (0.0, -1.0, math.nan):
        with pytest.raises(BadArgument, match="timeout must be a"):
            maker.tracker(daemon.endpoint, timeout=wrong)
    for place in ("", "tcp://127.0.0.1:1", "/" + "x" * 107):
        with pytest.raises(BadArgument):
            maker.tracker(place)
    with pytest.raises(BadArgument, match="cluster's name is empty"):
        maker.tracker(endpoint=None, cluster="")
    with pytest.raises(BadArgument, match="max_concurrent_dials"):
        maker.pool(tracker, print, max_concurrent_dials=0)


@pytest.mark.parametrize("endpoint", ["", "tcp://127.0.0.1:1", "ipc://@x", "/" + "x" * 107, "a/"])
def test_an_endpoint_that_cannot_be_is_refused_at_once(endpoint: str) -> None:
    with pytest.raises(ValueError, match=r"ipc://|too long"):
        Tracker(endpoint)


# -- names -----------------------------------------------------------------------------------


LONGEST = "é" * 127 + "x"


RIGHT_NAMES = ["p", "x" * 255, LONGEST, " ", "p\u00a01", "日本", "🦊"]


WRONG_NAMES = {
    "empty": ("", InvalidRequest, "empty"),
    "256 bytes": ("x" * 256, LimitExceeded, "256 bytes; 255"),
    "256 bytes in 128 characters": ("é" * 128, LimitExceeded, "256 bytes; 255"),
    "a newline": ("p\n1", InvalidRequest, "control"),
    "NUL": ("p\0", InvalidRequest, "control"),
    "DEL": ("p\x7f", InvalidRequest, "control"),
    "C1": ("p\x85", InvalidRequest, "control"),
}


wrong_names = pytest.mark.parametrize(
    ("name", "error", "says"), WRONG_NAMES.values(), ids=WRONG_NAMES
)


@pytest.mark.parametrize("name", RIGHT_NAMES)
def test_a_name_of_up_to_255_bytes_is_served(shared_daemon: Daemon, name: str) -> None:
    with Tracker(shared_daemon.endpoint) as tracker:
        tracker.track_expected(Proxy(name, group=name, ttl=0.001))
        assert held(tracker, name).claimed_name == name
        assert tracker.is_claimed(name)


@wrong_names
def test_a_wrong_name_in_gossip_is_refused_with_its_place(
    shared_daemon: Daemon, name: str, error: type[Refused], says: str
) -> None:
    with Tracker(shared_daemon.endpoint) as tracker:
        with pytest.raises(error, match=rf"proxies\[1\]\.name.*{says}"):
            tracker.track_expected(Proxy("right"), Proxy(name))
        assert not tracker.explain("right")["proxy"]["tracked"], "a refused message changes nothing"


@wrong_names
def test_a_wrong_principal_is_refused(
    shared_daemon: Daemon, name: str, error: type[Refused], says: str
) -> None:
    with Tracker(shared_daemon.endpoint) as tracker, tracker.acquire() as lease:
        for ask in (lease.claim, tracker.is_claimed, tracker.adopt):
            with pytest.raises(error, match=f"principal.*{says}"):
                ask("right", name)
        assert lease.claimed_name is None


def test_half_of_a_surrogate_pair_is_refused(shared_daemon: Daemon) -> None:
    with Tracker(shared_daemon.endpoint) as tracker:
        with pytest.raises(InvalidRequest):
            tracker.is_claimed("\ud800")
        assert not tracker.is_claimed("p")


# -- fields and numbers ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (Proxy("wrong", generation=-1), "generation"),
        (Proxy("wrong", generation=True), "generation"),
        (Proxy("wrong", generation=1.0), "generation"),  # type: ignore[arg-type]
        (Proxy("wrong", generation=2**64), "cannot be sent"),
        (Proxy("wrong", group=None), "group"),  # type: ignore[arg-type]
        (Proxy("wrong", group="a\tb"), "group"),
        (Proxy("wrong", ttl=float("nan")), "ttl"),
        (Proxy("wrong", ttl=float("inf")), "ttl"),
        (Proxy("wrong", ttl="1"), "ttl"),  # type: ignore[arg-type]
        (Proxy(b"p"), "name"),  # type: ignore[arg-type]
        (Proxy(None), "name"),  # type: ignore[arg-type]
    ],
    ids=repr,
)
def test_a_wrong_field_of_gossip_is_refused(shared_daemon: Daemon, wrong: Proxy, says: str) -> None:
    with Tracker(shared_daemon.endpoint) as tracker:
        with pytest.raises(InvalidRequest, match=says):
            tracker.track_expected(wrong)
        assert "wrong" not in tracker.explain()["missing"]


def test_sixty_four_principals_are_served_and_one_more_is_not(shared_daemon: Daemon) -> None:
    most = [f"p{i}" for i in range(64)]
    with Tracker(shared_daemon.endpoint) as tracker, tracker.acquire() as lease:
        assert not tracker.is_claimed(*most)
        assert lease.claim(*most)
        for ask in (lease.claim, tracker.is_claimed, tracker.adopt):
            with pytest.raises(LimitExceeded, match="65 principals; 64 are allowed"):
                ask(*most, "p64")


def test_ten_thousand_proxies_are_served_and_one_more_is_not(tracker: Tracker) -> None:
    most = [Proxy(f"proxy-{i}", generation=2**64 - 1) for i in range(10_000)]
    tracker.track_expected(*most)
    assert tracker.status()["tracked"] == 10_000
    with pytest.raises(LimitExceeded, match="10001 proxies in one message; 10000 are allowed"):
        tracker.track_expected(*most, Proxy("one more"))
    assert tracker.status()["tracked"] == 10_000


def test_a_message_beyond_a_mebibyte_is_refused_before_it_is_sent(shared_daemon: Daemon) -> None:
    with Tracker(shared_daemon.endpoint) as tracker:
        tracker.ping()
        with pytest.raises(LimitExceeded, match="send fewer proxies at a time"):
            tracker.track_expected(*(Proxy(f"{i:0255}") for i in range(5_000)))
        assert tracker.status()["pid"] == shared_daemon.pid


@pytest.mark.parametrize("count", [2**63, -(2**63) - 1, 2**64, 1.0, True, "3", None])
def test_a_wrong_connection_count_is_refused(shared_daemon: Daemon, count: Any) -> None:
    with Tracker(shared_daemon.endpoint) as tracker:
        with pytest.raises(InvalidRequest):
            tracker.set_connection_count(count)
        assert tracker.status()["connection_count"] == 0


def test_what_a_client_says_of_itself_is_bounded(shared_daemon: Daemon) -> None:
    with Tracker(
        shared_daemon.endpoint, name="x" * 255, labels={str(i): "v" for i in range(16)}
    ) as it:
        assert not it.is_claimed("p")
    for wrong in (
        Tracker(shared_daemon.endpoint, name="x" * 256),
        Tracker(shared_daemon.endpoint, name="a\nb"),
        Tracker(shared_daemon.endpoint, labels={str(i): "v" for i in range(17)}),
        Tracker(shared_daemon.endpoint, labels={"": "v"}),
        Tracker(shared_daemon.endpoint, labels={"k": "v" * 256}),
    ):
        with wrong, pytest.raises(Refused):
            wrong.is_claimed("p")


# -- what all agents together may have -------------------------------------------------------


def test_gossip_that_would_track_too_many_proxies_is_refused_whole(
    make_trackd_daemon: MakeDaemon,
) -> None:
    daemon = make_trackd_daemon(max_tracked=3)
    with Tracker(daemon.endpoint) as tracker:
        tracker.track_expected(Proxy("a"), Proxy("b"))
        with pytest.raises(LimitExceeded, match="2 proxies are tracked, and 2 would be new; 3 are"):
            tracker.track_expected(Proxy("a", generation=7), Proxy("c"), Proxy("d"))
        assert tracker.status()["groups"][0]["generation"] == 0
        tracker.track_expected(Proxy("a"), Proxy("b"), Proxy("c"))
        tracker.track_expected(Proxy("a"), Proxy("b"), Proxy("c"))
        assert tracker.status()["tracked"] == 3


def test_no_more_leases_are_granted_than_are_allowed(make_trackd_daemon: MakeDaemon) -> None:
    daemon = make_trackd_daemon(max_leases=2)
    with Tracker(daemon.endpoint) as tracker, Tracker(daemon.endpoint) as other:
        first = tracker.adopt("a")
        assert first is not None
        assert other.adopt("b") is not None
        for call in (tracker.try_acquire, lambda: tracker.acquire(1), lambda: tracker.adopt("c")):
            with pytest.raises(LimitExceeded, match="2 leases are held, which is the limit"):
                call()
        first.release()
        assert tracker.adopt("c") is not None
