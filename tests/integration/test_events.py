"""Events, snapshots and the history, from a real daemon, by both clients."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import pytest
import zmq

from helpers.both_clients import Background, Maker
from helpers.event_watch import Watch, assert_complete, assert_same, assert_truthful
from helpers.support import PATIENCE, open_files, paused, run_script, wait_until
from trackd_client import AsyncTracker, DaemonAbsent, Proxy, Tracker
from trackd_client.core.base_tracker import ConnectionState
from trackd_client.errors import InvalidRequest, TrackerClosed, WrongCluster
from trackd_client.testing import Daemon, MakeDaemon

#: More than the subscriber and the daemon keep unread of messages with one event each.
MANY = 2_000


def revision(endpoint: str) -> int:
    with Tracker(endpoint) as tracker:
        return int(tracker.status()["revision"])


def work(tracker: Any, chance: random.Random, times: int) -> None:
    """Do random things with a tracker."""
    leases: list[Any] = []
    for _ in range(times):
        name = f"p{chance.randrange(8)}"
        match chance.randrange(5):
            case 0:
                tracker.track_expected(Proxy(name, chance.choice("ab"), chance.randrange(3)))
            case 1 if (lease := tracker.try_acquire()) is not None:
                leases.append(lease)
            case 2 if leases:
                chance.choice(leases).claim(name)
            case 3 if leases:
                leases.pop(chance.randrange(len(leases))).release()
            case _:
                lease = tracker.adopt(name)
                if lease is not None:
                    leases.append(lease)
    for lease in leases[1:]:
        lease.release()


Watching = Callable[..., Watch]


@pytest.fixture
def watching(maker: Maker) -> Iterator[Watching]:
    """Begin to watch with a tracker; its iteration ends with the test."""
    with contextlib.ExitStack() as watches:

        def watch(tracker: Any, **options: Any) -> Watch:
            begun = Watch(tracker, **options)
            watches.callback(begun.close)
            return begun

        yield watch


@pytest.fixture
def agent(daemon: Daemon) -> Iterator[Tracker]:
    """Somebody who does something."""
    with Tracker(daemon.endpoint) as tracker:
        yield tracker


# -- what happens -----------------------------------------------------------------------------


def test_each_change_is_told_once_and_in_order(
    daemon: Daemon, maker: Maker, watching: Watching, agent: Tracker
) -> None:
    watch = watching(maker.tracker(daemon.endpoint)).begun()
    agent.track_expected(Proxy("p1", "east", 3), Proxy("p2", "east", 2))
    agent.track_expected(Proxy("p2", "east", 3))
    lease = agent.try_acquire()
    assert lease is not None
    lease.claim("p1.example.com", "p1")
    lease.release()
    agent.set_connection_count(5)
    agent.set_connection_count(0)
    watch.until(lambda: watch.kinds.count("connection_count") == 2)
    assert watch.kinds == [
        *("snapshot", "session_opened", "proxy_tracked", "proxy_tracked", "proxy_changed"),
        *("lease_granted", "proxy_claimed", "lease_released", "connection_count"),
        "connection_count",
    ]
    assert_complete(watch.told)
    session = watch.told[1].fields["session"]
    assert watch.told[1].fields["pid"] == os.getpid()
    assert watch.told[2].fields == {
        "name": "p1",
        "group": "east",
        "generation": 3,
        "session": session,
    }
    assert watch.told[6].fields == {"name": "p1", "lease": lease.id, "session": session}
    times = [event.time for event in watch.told[1:]]
    assert times == sorted(times)


def test_without_snapshots_only_what_changes_is_told(
    daemon: Daemon, maker: Maker, watching: Watching, agent: Tracker
) -> None:
    agent.track_expected(Proxy("p1"))
    before = revision(daemon.endpoint)
    tracker = maker.tracker(daemon.endpoint)
    watch = watching(tracker, snapshot=False)
    wait_until(lambda: tracker.state is ConnectionState.CONNECTED)
    generations = itertools.count(1)

    def has_begun_after_a_change() -> bool:
        agent.track_expected(Proxy("p1", generation=next(generations)))
        return bool(watch.told) or watch.ended

    wait_until(has_begun_after_a_change)
    for _ in range(50):
        has_begun_after_a_change()
    watch.reaches(before + next(generations) - 1)
    assert set(watch.kinds) == {"proxy_changed"}
    assert_complete(watch.told)


@pytest.mark.parametrize("seed", range(3))
def test_events_make_of_the_first_snapshot_what_the_last_one_says(
    daemon: Daemon, maker: Maker, watching: Watching, agent: Tracker, seed: int
) -> None:
    chance = random.Random(seed)
    work(agent, chance, 30)
    tracker = maker.tracker(daemon.endpoint)
    busy = [Background(work, agent, random.Random(f"{seed}.{i}"), 60) for i in range(3)]
    watch = watching(tracker).begun()  # while they work
    for each in busy:
        each.result()
    snapshot = tracker.snapshot()
    watch.reaches(snapshot["revision"])
    assert watch.kinds.count("snapshot") == 1
    assert_complete(watch.told)
    assert_same(watch.mirror, snapshot)


def test_who_only_looks_opens_no_session(daemon: Daemon, maker: Maker, watching: Watching) -> None:
    tracker = maker.tracker(daemon.endpoint)
    watch = watching(tracker).begun()
    tracker.snapshot()
    tracker.log()
    tracker.explain("p1")
    assert tracker.metrics()["families"]
    assert {"name", "value", "default"} <= set(tracker.config()["settings"][0])
    assert tracker.status()["sessions"] == 0
    assert watch.kinds == ["snapshot"]
    assert watch.told[0].fields["sessions"] == []
    assert tracker.state is ConnectionState.CONNECTED


# -- listings, and the history ----------------------------------------------------------------


def test_listings_and_histories_of_many_pages_are_read_whole(
    make_trackd_daemon: MakeDaemon, maker: Maker
) -> None:
    daemon = make_trackd_daemon(history=2_300)
    tracker = maker.tracker(daemon.endpoint)
    names = [f"p{i}" for i in range(2_500)]
    tracker.track_expected(*map(Proxy, names))
    snapshot = tracker.snapshot()
    assert sorted(row["name"] for row in snapshot["proxies"]) == sorted(names)
    assert all(row["tracked"] and row["desired"] for row in snapshot["proxies"])
    assert [row["session"] for row in snapshot["sessions"]] == [1]
    rows = list(tracker.rows("proxies"))
    assert sorted(row["name"] for row in rows) == sorted(names)
    log = tracker.log()
    assert_complete(log["events"])
    assert len(log["events"]) >= 2_300
    assert log["events"][-1].revision == log["newest"] == snapshot["revision"]
    assert log["events"][0].revision == log["oldest"]
    assert [event.revision for event in tracker.log(log["newest"] - 2)["events"]] == [
        log["newest"] - 1,
        log["newest"],
    ]
    with pytest.raises(InvalidRequest):
        list(tracker.rows("nothing"))


def test_more_may_read_long_listings_at_once_than_the_daemon_remembers(
    make_trackd_daemon: MakeDaemon, maker: Maker
) -> None:
    daemon = make_trackd_daemon()
    tracker = maker.tracker(daemon.endpoint, timeout=PATIENCE)
    tracker.track_expected(*(Proxy(f"p{i}") for i in range(5_000)))
    calls = [Background(tracker.snapshot) for _ in range(8)]
    calls += [Background(lambda: {"proxies": list(tracker.rows("proxies"))}) for _ in range(4)]
    for call in calls:
        assert len({row["name"] for row in call.result()["proxies"]}) == 5_000


# -- losses -----------------------------------------------------------------------------------


def lose(daemon: Daemon, watch: Watch, agent: Tracker, times: int) -> int:
    """Have many things happen while a watch does not read; return the last revision."""
    watch.may_read.clear()
    told = len(watch.told)
    agent.track_expected(Proxy("p"))
    watch.until(lambda: len(watch.told) > told)  # and there it stops
    for generation in range(1, times):
        agent.track_expected(Proxy("p", generation=generation))
    watch.may_read.set()
    return revision(daemon.endpoint)


def test_who_reads_too_slowly_is_told_everything_as_long_as_the_history_has_it(
    make_trackd_daemon: MakeDaemon, maker: Maker, watching: Watching
) -> None:
    daemon = make_trackd_daemon()
    watch = watching(maker.tracker(daemon.endpoint)).begun()
    with Tracker(daemon.endpoint) as agent:
        watch.reaches(lose(daemon, watch, agent, MANY))
    assert_complete(watch.told)
    assert watch.kinds.count("snapshot") == 1


def test_who_reads_too_slowly_is_told_of_the_gap_when_nobody_has_it_any_more(
    make_trackd_daemon: MakeDaemon, maker: Maker, watching: Watching
) -> None:
    daemon = make_trackd_daemon(history=10)
    tracker = maker.tracker(daemon.endpoint)
    watch = watching(tracker).begun()
    with Tracker(daemon.endpoint) as agent:
        watch.reaches(lose(daemon, watch, agent, MANY))
        assert "gap" in watch.kinds
        assert_truthful(watch.told)
        snapshot = tracker.snapshot()
        watch.reaches(snapshot["revision"])
        assert_same(watch.mirror, snapshot)


@pytest.mark.parametrize("history", [0, 10_000])
def test_a_daemon_that_cannot_publish_is_asked_every_second(
    make_trackd_daemon: MakeDaemon, maker: Maker, watching: Watching, history: int
) -> None:
    short = make_trackd_daemon(start=False)
    deep = short.directory / ("d" * (107 - len(str(short.directory)) - len("//trackd.sock")))
    deep.mkdir()
    daemon = Daemon(deep, history=history)
    daemon.start()
    try:
        tracker = maker.tracker(daemon.endpoint)
        assert tracker.status()["events"] == ""
        with Tracker(daemon.endpoint) as agent:
            agent.is_claimed("p1")  # opens its session, so that what follows is one change
            watch = watching(tracker).begun()
            agent.track_expected(Proxy("p1"), Proxy("p2"))
            snapshot = tracker.snapshot()
            watch.reaches(snapshot["revision"])
            kinds = [
                "snapshot",
                *(("proxy_tracked", "proxy_tracked") if history else ("gap", "snapshot")),
            ]
            assert watch.kinds == kinds
            assert_same(watch.mirror, snapshot)
        assert tracker.state is ConnectionState.CONNECTED
        daemon.kill()
        wait_until(lambda: tracker.state is ConnectionState.RECONNECTING)
        daemon.start()
        wait_until(lambda: tracker.state is ConnectionState.CONNECTED)
    finally:
        daemon.close()


def test_the_event_socket_is_found_beside_the_one_that_is_used(
    make_trackd_daemon: MakeDaemon, maker: Maker, watching: Watching
) -> None:
    """As in a container, where the daemon's directory has another path."""
    daemon = make_trackd_daemon(history=0)  # so that only what is published comes without a gap
    there = daemon.directory.rename(daemon.directory.with_name("elsewhere"))
    endpoint = f"ipc://{there}/trackd.sock"
    watch = watching(maker.tracker(endpoint)).begun()
    with Tracker(endpoint) as agent:
        agent.track_expected(Proxy("p1"))
        watch.until(lambda: "proxy_tracked" in watch.kinds)
    assert "gap" not in watch.kinds


# -- restarts ---------------------------------------------------------------------------------


@pytest.mark.both_stores
def test_a_kill_of_the_daemon_loses_no_event(
    make_trackd_daemon: MakeDaemon, maker: Maker, watching: Watching
) -> None:
    daemon = make_trackd_daemon()
    tracker = maker.tracker(daemon.endpoint)
    watch = watching(tracker).begun()
    with Tracker(daemon.endpoint) as agent:
        for i in range(3):
            agent.track_expected(Proxy(f"p{i}"))
            daemon.restart()
            agent.track_expected(Proxy(f"q{i}"))
        snapshot = tracker.snapshot()
        watch.reaches(snapshot["revision"])
        assert_complete(watch.told)
        assert "gap" not in watch.kinds
        epochs = [e.fields["epoch"] for e in watch.told if e.kind == "daemon_started"]
        assert epochs == [2, 3, 4]
        assert_same(watch.mirror, snapshot)


@pytest.mark.both_stores
def test_a_daemon_that_is_away_is_waited_for_and_the_state_says_so(
    make_trackd_daemon: MakeDaemon, maker: Maker, watching: Watching
) -> None:
    daemon = make_trackd_daemon()
    states: list[ConnectionState] = []
    tracker = maker.tracker(daemon.endpoint, timeout=PATIENCE, on_state_change=states.append)
    watch = watching(tracker).begun()
    assert tracker.state is ConnectionState.CONNECTED
    tracker.timeout = 0.2
    daemon.kill()
    wait_until(lambda: tracker.state is ConnectionState.RECONNECTING)
    with pytest.raises(DaemonAbsent):
        tracker.ping()
    with pytest.raises(DaemonAbsent):
        next(tracker.events())
    assert not watch.ended
    tracker.timeout = PATIENCE
    daemon.start()
    watch.until(lambda: "daemon_started" in watch.kinds)
    assert tracker.state is ConnectionState.CONNECTED
    wait_until(lambda: len(states) >= 3)
    assert states == [
        ConnectionState.CONNECTED,
        ConnectionState.RECONNECTING,
        ConnectionState.CONNECTED,
    ]


def test_a_lost_state_is_a_gap_and_a_fresh_snapshot(
    make_trackd_daemon: MakeDaemon, maker: Maker, watching: Watching
) -> None:
    daemon = make_trackd_daemon(state_dir="")
    tracker = maker.tracker(daemon.endpoint)
    watch = watching(tracker).begun()
    with Tracker(daemon.endpoint) as agent:
        agent.track_expected(*(Proxy(f"p{i}") for i in range(5)))
        last = revision(daemon.endpoint)
        watch.reaches(last)
        daemon.restart()
        watch.until(lambda: watch.kinds[-2:] == ["gap", "snapshot"])
        assert watch.told[-2].fields == {"after": last, "newest": 1}
        assert watch.told[-1].fields["proxies"] == []
    with Tracker(daemon.endpoint) as fresh:  # the other may not know yet that its session is gone
        fresh.track_expected(Proxy("p9"))
        watch.until(lambda: watch.kinds[-1] == "proxy_tracked")
        assert_complete(watch.told[watch.kinds.index("gap") + 1 :])


def test_rubbish_on_the_event_socket_is_skipped(
    make_trackd_daemon: MakeDaemon, maker: Maker, watching: Watching
) -> None:
    daemon = make_trackd_daemon()
    tracker = maker.tracker(daemon.endpoint)
    with zmq.Context() as context, context.socket(zmq.XPUB) as rogue:
        rogue.linger = 0
        rogue.rcvtimeo = int(PATIENCE * 1000)
        rogue.bind(f"{daemon.endpoint}.events")  # in place of the daemon's own
        watch = watching(tracker)
        assert rogue.recv() == b"\x01"  # the watch has found it
        event = [99, 1.0, 1.0, "proxy_tracked", {"name": "rogue"}]
        for message in (
            [b""],
            [b"\xc1"],
            [os.urandom(100)],
            [b"several", b"frames"],
            [msgpack.packb([1, 3, {"epoch": 1, "tracker_id": "x", "revision": 99, "events": 1}])],
            [msgpack.packb([1, 3, {"tracker_id": "x", "revision": 99, "events": [event]}])],
            [bytes(5 * 1024 * 1024)],
        ):
            rogue.send_multipart(message)
        assert rogue.recv() == b"\x00"  # the last one was too large, and ended the connection
    watch.begun()
    with Tracker(daemon.endpoint) as agent:
        agent.track_expected(Proxy("p1"))
    watch.until(lambda: "session_ended" in watch.kinds)
    assert watch.kinds == ["snapshot", "session_opened", "proxy_tracked", "session_ended"]
    assert_complete(watch.told)


# -- the end ----------------------------------------------------------------------------------


def test_closing_the_tracker_elsewhere_ends_the_iteration(
    daemon: Daemon, maker: Maker, watching: Watching
) -> None:
    tracker = maker.tracker(daemon.endpoint)
    watch = watching(tracker).begun()
    tracker.close()
    watch.result()
    assert watch.kinds == ["snapshot"]
    with pytest.raises(TrackerClosed):
        next(tracker.events())


def test_closing_the_tracker_ends_an_iteration_that_waits_for_a_daemon(
    make_trackd_daemon: MakeDaemon, maker: Maker, watching: Watching
) -> None:
    daemon = make_trackd_daemon()
    tracker = maker.tracker(daemon.endpoint, timeout=60.0)
    watch = watching(tracker).begun()
    daemon.kill()
    wait_until(lambda: tracker.state is ConnectionState.RECONNECTING)
    tracker.close()
    watch.result()


def test_an_iteration_that_ends_leaves_nothing_behind(daemon: Daemon, maker: Maker) -> None:
    tracker = maker.tracker(daemon.endpoint)
    tracker.ping()
    before = open_files()
    for _ in range(20):
        events = tracker.events()
        assert next(events).kind == "snapshot"
        assert open_files() - before
        events.close()
    # One for each iteration would be left; a connection that the tracker keeps for later is not.
    wait_until(lambda: len(open_files() - before) < 20)
    before = open_files()
    tracker.snapshot()
    events = tracker.events()
    next(events)
    tracker.close()  # with an iteration under way
    with pytest.raises(StopIteration):
        next(events)
    wait_until(lambda: before - open_files())


@pytest.mark.parametrize(
    "maker", ["asyncio", pytest.param("uvloop", marks=pytest.mark.slow)], indirect=True
)
def test_a_cancelled_iteration_leaves_nothing_behind(daemon: Daemon, maker: Maker) -> None:
    assert maker.loop is not None

    async def cancel_at(steps: int) -> None:
        """Cancel it when it has been resumed so often: in requests, and while it listens."""
        async with AsyncTracker(daemon.endpoint) as tracker:
            await tracker.ping()

            async def watch() -> None:
                async for _ in tracker.events():
                    pass

            task = asyncio.create_task(watch())
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            assert task.cancelled()
            assert tracker._opened == []
            await tracker.ping()

    before = open_files()
    for steps in (0, 1, 2, 3, 5, 8, 13, 21, 100, 300):
        maker.loop.run(cancel_at, steps)
    wait_until(lambda: open_files() <= before)


def test_a_tracker_that_is_dropped_with_its_iteration_does_not_hang(daemon: Daemon) -> None:
    before = open_files()

    def drop() -> None:
        tracker = Tracker(daemon.endpoint)
        events = tracker.events()
        next(events)
        tracker.knot = [events, tracker]  # type: ignore[attr-defined] # only the collector finds it

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        drop()
        wait_until(lambda: gc.collect() >= 0 and open_files() <= before)


def test_a_child_process_is_told_to_make_its_own(daemon: Daemon) -> None:
    code = """
import os, sys
from trackd_client import Tracker
from trackd_client.errors import UsedAfterFork
with Tracker(sys.argv[1]) as tracker:
    events = tracker.events()
    next(events)
    if os.fork() == 0:
        try:
            next(events)
        except UsedAfterFork:
            os.write(1, b"refused ")
        os._exit(0)
    os.wait()
    tracker.track_expected()
    print(next(events).kind)
"""
    done = run_script(code, daemon.endpoint)
    assert done.stdout == "refused session_opened\n", done.stderr


def test_another_cluster_is_refused(daemon: Daemon, maker: Maker) -> None:
    tracker = maker.tracker(daemon.endpoint, cluster="elsewhere")
    with pytest.raises(WrongCluster):
        next(tracker.events())


def test_a_daemon_that_stands_still_is_waited_for(
    daemon: Daemon, maker: Maker, watching: Watching, agent: Tracker
) -> None:
    tracker = maker.tracker(daemon.endpoint, timeout=PATIENCE)
    watch = watching(tracker).begun()
    agent.track_expected(Proxy("p1"))
    watch.until(lambda: "proxy_tracked" in watch.kinds)
    tracker.timeout = 0.2
    with paused(daemon.pid):
        assert Background(lambda: watch.ended).result() is False
        with Tracker(daemon.endpoint, timeout=2.5) as other, contextlib.suppress(TimeoutError):
            other.ping()  # for longer than the watch asks
    tracker.timeout = PATIENCE
    agent.track_expected(Proxy("p2"))
    watch.until(lambda: watch.kinds.count("proxy_tracked") == 2)
    assert_complete(watch.told)


# -- what admins do ---------------------------------------------------------------------------


def test_a_lease_that_an_admin_takes_is_lost_and_the_proxy_free(
    daemon: Daemon, maker: Maker, agent: Tracker
) -> None:
    admin = maker.tracker(daemon.endpoint)
    mine = admin.adopt("p1")
    theirs = agent.adopt("p2")
    assert theirs is not None
    for lease, name in ((mine, "p1"), (theirs, "p2")):
        answer = admin.force_release(lease.id)
        assert (answer["released"], answer["name"]) == (True, name)
        assert lease.lost.wait(PATIENCE)
        assert (lease.released, lease.revoked, bool(lease.should_close)) == (True, True, True)
        lease.release()
        assert not admin.is_claimed(name)
    assert admin.force_release(theirs.id)["released"] is False
    released = [e for e in admin.log()["events"] if e.kind == "lease_released"][-2:]
    assert [(e.fields["cause"], e.fields["by_uid"]) for e in released] == [
        ("admin", os.getuid()),
        ("admin", os.getuid()),
    ]


def test_a_session_that_an_admin_ends_is_lost(daemon: Daemon, maker: Maker, agent: Tracker) -> None:
    lease = agent.adopt("p1")
    assert lease is not None
    admin = maker.tracker(daemon.endpoint)
    (row,) = admin.snapshot()["sessions"]
    answer = admin.end_session(row["session"])
    assert (answer["ended"], answer["freed"]) == (True, [lease.id])
    assert lease.lost.wait(PATIENCE)
    assert admin.end_session(row["session"])["ended"] is False


def test_a_forgotten_proxy_stays_away_until_gossip_is_newer(daemon: Daemon, maker: Maker) -> None:
    admin = maker.tracker(daemon.endpoint)
    name = f"forgotten {maker.kind}"
    admin.track_expected(Proxy(name, generation=3))
    answer = admin.forget(name)
    assert (answer["forgotten"], answer["claimed"]) == (True, False)
    assert answer["until"] > 0
    admin.track_expected(Proxy(name, generation=3))
    explained = admin.explain(name)
    assert explained["why"] == "forgotten"
    assert explained["tombstone"]["generation"] == 3
    admin.track_expected(Proxy(name, generation=4))
    assert admin.explain(name)["why"] == "missing"
    assert admin.forget("nobody")["forgotten"] is False


def test_a_reload_is_asked_for_and_its_outcome_stands_in_the_status(
    daemon: Daemon, maker: Maker
) -> None:
    admin = maker.tracker(daemon.endpoint)
    number = admin.reload()["reloads"]
    wait_until(lambda: admin.status()["reloads"] == number)
    assert admin.status()["reload"]["error"] is None
