"""Rule 17 over the wire: what clients and pools report, to this daemon and to an older one."""

from __future__ import annotations

import contextlib
import json
import os
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Self

import msgpack
import pytest
import zmq

from helpers.both_clients import Maker
from helpers.support import PATIENCE, wait_until
from helpers.trackctl import trackctl
from trackd_client import AcquireTimeout, DialFailed, Policy, PoolEvent, Proxy, Tracker
from trackd_client.core.conversation import Conversation
from trackd_client.errors import BadArgument
from trackd_client.policy import Change
from trackd_client.testing import Daemon
from trackd_client.wire.protocol import decode

pytestmark = pytest.mark.rule(17)


class Way:
    """A way to a daemon, on which the reply to `hello` may lack the feature `outcomes`.

    Attributes:
        requests: the requests that went along it.
    """

    def __init__(self, daemon: Daemon, path: Path, *, outcomes: bool) -> None:
        self.requests: list[dict[str, Any]] = []
        self._daemon, self._path, self._outcomes = daemon, path, outcomes
        self._ready, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._pass_on)

    def of(self, op: str) -> list[dict[str, Any]]:
        return [body for body in list(self.requests) if body["op"] == op]

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _pass_on(self) -> None:
        peers: dict[bytes, zmq.Socket[bytes]] = {}
        with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
            router.linger = 0
            router.bind(f"ipc://{self._path}")
            self._ready.set()
            while not self._over.is_set():
                while router.poll(10):
                    name, frame = router.recv_multipart()
                    if name not in peers:
                        peers[name] = context.socket(zmq.DEALER)
                        peers[name].connect(self._daemon.endpoint)
                    decoded = decode(frame)
                    assert decoded is not None
                    self.requests.append(decoded[1])
                    peers[name].send(frame)
                for name, peer in peers.items():
                    while peer.poll(0):
                        router.send_multipart([name, self._altered(peer.recv())])
            for peer in peers.values():
                peer.close(linger=0)

    def _altered(self, frame: bytes) -> bytes:
        version, kind, body = msgpack.unpackb(frame)
        if "features" not in body or self._outcomes:
            return frame
        features = [name for name in body["features"] if name != "outcomes"]
        altered: bytes = msgpack.packb([version, kind, {**body, "features": features}])
        return altered


@pytest.fixture
def operator(daemon: Daemon) -> Iterator[Tracker]:
    with Tracker(daemon.endpoint) as operator:
        operator.track_expected(Proxy("p0"), Proxy("p1"))
        yield operator
        operator.resume()


@contextlib.contextmanager
def running(
    maker: Maker, endpoint: str, dial: Callable[[Any], object]
) -> Iterator[tuple[Any, list[PoolEvent]]]:
    """Run a pool whose dial fails; yield it, and its events."""
    events: list[PoolEvent] = []
    policy = Policy(failed_base=0.01, failed_cap=0.01)
    tracker = maker.tracker(endpoint)
    pool = maker.pool(tracker, dial, policy=policy, on_event=events.append)
    with pool:
        yield pool, events
    tracker.close()


def raising(error: BaseException | None) -> Callable[[Any], object]:
    def dial(_lease: Any) -> None:
        if error is not None:
            raise error

    return dial


def takes_outcomes(tracker: Any, wanted: bool) -> bool:
    return tracker._conversation.takes_outcomes is wanted


def test_a_release_says_how_the_dial_failed(
    daemon: Daemon, maker: Maker, operator: Tracker
) -> None:
    tracker = maker.tracker(daemon.endpoint, name="dialler")
    tracker.acquire(PATIENCE).release(failed="rate", retry_after=30)
    pause = operator.status().pause
    assert pause is not None
    assert (pause.reason, pause.retry_after, pause.agent) == ("rate", 30.0, "dialler")
    assert tracker.try_acquire() is None
    assert operator.resume() == {"resumed": 1, "revision": operator.status().revision}
    lease = tracker.try_acquire()
    lease.release()
    assert operator.status().pause is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"failed": "tired"},
        {"failed": 7},
        {"retry_after": 3},
        {"failed": "held", "retry_after": 3},
        {"failed": "rate", "retry_after": 61},
        {"failed": "rate", "retry_after": -1},
        {"failed": "rate", "retry_after": float("nan")},
        {"failed": "rate", "retry_after": "soon"},
    ],
)
def test_what_release_cannot_say_is_refused(
    daemon: Daemon, maker: Maker, operator: Tracker, wrong: dict[str, Any]
) -> None:
    lease = maker.tracker(daemon.endpoint).acquire(PATIENCE)
    with pytest.raises(BadArgument):
        lease.release(**wrong)
    assert not lease.released
    lease.release()
    assert operator.status().pause is None


def test_a_release_without_a_reply_says_it_all_the_same(
    daemon: Daemon, maker: Maker, operator: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = maker.tracker(daemon.endpoint).acquire(PATIENCE)
    with monkeypatch.context() as patched:
        patched.setattr("trackd_client.core.calls.release", raising(RuntimeError("interrupted")))
        with pytest.raises(RuntimeError):
            lease.release(failed="timeout")
    wait_until(lambda: operator.status().pause is not None)


ERRORS = [
    (ConnectionRefusedError(111, "refused"), "refused"),
    (TimeoutError(), "timeout"),
    (ssl.SSLError(1, "handshake"), "tls"),
    (DialFailed("rate", retry_after=9), "rate"),
    (DialFailed("rate", retry_after=3600), "rate"),
]


@pytest.mark.parametrize(("error", "reason"), ERRORS)
def test_a_pool_reports_what_a_dial_raises_and_leaves_the_pause_to_the_daemon(
    daemon: Daemon, maker: Maker, operator: Tracker, error: BaseException, reason: str
) -> None:
    with running(maker, daemon.endpoint, raising(error)) as (_, events):
        wait_until(lambda: operator.status().pause is not None)
        pause = operator.status().pause
        assert pause is not None
        assert pause.reason == reason
        asked = getattr(error, "retry_after", None)
        assert pause.retry_after == (None if asked is None else min(asked, 60))
        wait_until(lambda: any(event.change is Change.FAILED for event in events))
    assert not [event for event in events if event.change is Change.BACKING_OFF]


@pytest.mark.parametrize("error", [OSError("no route"), DialFailed("auth"), None])
def test_any_other_failure_pauses_the_agent_only(
    daemon: Daemon, maker: Maker, operator: Tracker, error: BaseException | None
) -> None:
    with running(maker, daemon.endpoint, raising(error)) as (_, events):
        wait_until(lambda: operator.status().paused_sessions == 1)
        assert operator.status().pause is None
        with operator.acquire(PATIENCE):
            pass
        shown = trackctl("--endpoint", daemon.endpoint, "sessions", "--paused", "--json").stdout
        (session,) = json.loads(shown)["sessions"]
        assert session["pid"] == os.getpid()
        assert session["pause"]["failures"] >= 1
        assert session["pause"]["seconds"] >= 0
        listed = trackctl("--endpoint", daemon.endpoint, "sessions").stdout
        assert re.search(rf"\d failed dials?, {session['pause']['reason']}\n", listed)
    assert not [event for event in events if event.change is Change.BACKING_OFF]
    assert "pauses after" not in trackctl("--endpoint", daemon.endpoint, "sessions").stdout


def test_trouble_with_the_daemon_is_no_failed_dial(
    daemon: Daemon, maker: Maker, operator: Tracker
) -> None:
    before = operator.status().revision
    with running(maker, daemon.endpoint, raising(BadArgument("a mistake"))) as (pool, events):
        wait_until(lambda: pool.stats().failures >= 3)
    assert any(event.change is Change.BACKING_OFF for event in events)
    assert "dial_failed" not in {event.kind for event in operator.log(after=before)["events"]}
    assert not {"pause", "paused_sessions"} & set(operator.status())


def test_a_dial_that_met_a_held_proxy_early_ends_the_pause(
    daemon: Daemon, maker: Maker, operator: Tracker
) -> None:
    holder = operator.acquire(PATIENCE)
    assert holder.claim("p0")
    operator.acquire(PATIENCE).release(failed="refused")

    def dial(lease: Any) -> None:
        assert lease.is_claimed("p0")

    with running(maker, daemon.endpoint, dial):
        wait_until(lambda: operator.status().pause is None)
    events = [event for event in operator.log()["events"] if event.kind == "dials_resumed"]
    assert events[-1].fields["why"] == "held"
    holder.release()


def test_an_older_daemon_is_told_nothing_and_the_pool_pauses_by_itself(
    daemon: Daemon, maker: Maker, operator: Tracker, tmp_path: Path
) -> None:
    path = tmp_path / "old"
    with Way(daemon, path, outcomes=False) as way:
        with running(maker, str(path), raising(ConnectionRefusedError())) as (pool, events):
            wait_until(lambda: pool.stats().failures >= 3)
        assert any(event.change is Change.BACKING_OFF for event in events)
        tracker = maker.tracker(str(path))
        tracker.acquire(PATIENCE).release(failed="timeout", retry_after=3)
        assert len(way.of("release")) >= 4
        assert not [b for b in way.of("release") if {"failed", "retry_after"} & set(b)]
        assert operator.status().pause is None
        tracker.close()


def test_what_a_daemon_can_do_is_read_again_after_a_reconnect(
    daemon: Daemon, maker: Maker, operator: Tracker, tmp_path: Path
) -> None:
    path = tmp_path / "way"
    tracker = maker.tracker(str(path))
    for outcomes in (False, True, False):
        with Way(daemon, path, outcomes=outcomes) as way:
            lease = tracker.acquire(PATIENCE)
            wait_until(lambda: way.of("hello") != [])
            wait_until(partial(takes_outcomes, tracker, outcomes))
            lease.release(failed="other")
            released = way.of("release")[0]  # on a busy machine it is sent again
            assert ("failed" in released) == outcomes
            operator.resume()
            if not outcomes:
                assert operator.status().paused_sessions == 0
    with Way(daemon, path, outcomes=True):
        tracker.close()


def test_an_old_client_obeys_a_pause_and_reports_nothing(
    daemon: Daemon, maker: Maker, operator: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator.acquire(PATIENCE).release(failed="refused", retry_after=60)
    monkeypatch.setattr(Conversation, "take_features", lambda *_: None)
    old = maker.tracker(daemon.endpoint)
    assert old.try_acquire() is None
    with pytest.raises(AcquireTimeout):
        old.acquire(0.1)
    operator.resume()
    old.acquire(PATIENCE).release(failed="refused")
    assert operator.status().pause is None
