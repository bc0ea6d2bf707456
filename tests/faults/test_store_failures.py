"""A store that fails: nothing acknowledged is lost, nothing refused shows, and it passes.

First the writer alone, with each statement of SQLite failing in turn; then real daemons on a
full disk, under a limit of the kernel, and on files that are damaged.
"""

from __future__ import annotations

import resource
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from helpers.agents import Agent
from helpers.event_watch import Watch
from helpers.hosts import fill, needs_root, small_disk, started_by
from helpers.kept import Kept, KeptInSQLite
from helpers.support import PATIENCE, RawPeer, wait_until
from helpers.writer import AgentOf, Clock, Desk, Faults, Host, observe, sqlite_error
from trackd.host.processes import start_time
from trackd.storage.store import StoreError
from trackd_client import Proxy, Tracker
from trackd_client.core.stream import QUIET_SECONDS
from trackd_client.errors import Code, StoreUnavailable
from trackd_client.testing import Daemon, MakeDaemon
from trackd_client.wire.protocol import decode_reply

# -- every statement in turn -------------------------------------------------------------


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    with host.seen():
        yield host


def steps_of(first: AgentOf, second: AgentOf) -> list[tuple[AgentOf, dict[str, Any]]]:
    """Return a bit of everything that two agents do."""
    a, b = first, second
    rows = [["p1", "", 1, None], ["p2", "", 2**64 - 1, 50.0], ["p3", "", 2**64 - 1, None]]
    script: list[tuple[AgentOf, str, dict[str, Any]]] = [
        (a, "open", {}),
        (b, "open", {}),
        (a, "track_expected", {"proxies": rows}),
        (a, "try_acquire", {}),
        (a, "claim", {"lease": 1, "principals": ["p2"]}),
        (b, "acquire", {}),
        (b, "claim", {"lease": 2, "principals": ["p2"]}),
        (b, "claim", {"lease": 2, "principals": ["p3.example.com"]}),
        (a, "acquire", {}),  # waits
        (b, "acquire", {}),  # waits behind it
        (b, "track_expected", {"proxies": [["p4", "", 2**64 - 1, None]]}),
        (b, "cancel", {"target": 5}),
        (a, "set_connection_count", {"count": 4}),
        (b, "adopt", {"principals": ["p9"]}),
        (a, "release", {"lease": 1}),
        (b, "track_expected", {"proxies": rows}),
        (b, "close", {}),
        (a, "try_acquire", {}),
    ]
    return [(agent, agent.body(op, **fields)) for agent, op, fields in script]


def seen_by_all(desk: Desk) -> dict[str, Any]:
    """Return what a state knows, without what differs between two daemons by nature."""
    seen = observe(desk.state)
    for name in ("epoch", "tracker_id", "waiters", "revision"):  # each start is an event, too
        del seen[name]
    seen["leases"] = {lease: row[:3] + row[4:] for lease, row in seen["leases"].items()}
    seen["sessions"] = {
        token: (*row[:8], *row[9:-2], without_revisions(row[-2]), row[-1])
        for token, row in seen["sessions"].items()
    }
    seen["events"] = [
        (kind, fields) for _, _, _, kind, fields in seen["events"] if kind != "daemon_started"
    ]
    seen["queue"] = [(waiter.session.token, waiter.seq) for waiter in desk.state.queue]
    return seen


def without_revisions(replies: dict[int, Any]) -> dict[int, Any]:
    """Return kept replies without the revision of each, which a start between two changes moves."""
    bodies = {seq: (decode_reply(frame), lease) for seq, (frame, lease) in replies.items()}
    return {
        seq: (reply and reply.body | {"revision": 0}, lease)
        for seq, (reply, lease) in bodies.items()
    }


class Trial:
    """One run of the script on a store that fails, beside a twin on one that works.

    The twin is told what the failing one has acknowledged, and nothing else; whenever the store
    works, and after a restart, the two must know the same.
    """

    def __init__(self, kept: Kept, twin: Kept, host: Host) -> None:
        self.clock = Clock()
        self.kept = kept
        self.kept_twin = twin
        self.desk = Desk(None, self.clock, kept=kept)
        self.twin = Desk(None, self.clock, kept=twin)
        self.first = AgentOf(1, host.start(10))
        self.second = AgentOf(2, host.start(11))
        self.acknowledged = self.unavailable = self.deaths = 0

    def run(self) -> None:
        try:
            self.go_through_the_script()
        finally:
            self.desk.kill()
            self.twin.kill()

    def go_through_the_script(self) -> None:
        for agent, body in steps_of(self.first, self.second):
            self.tell(agent, body)
            self.second_passes()
        self.clock.now += 60  # p2 expires
        self.second_passes()
        self.kept.fail_no_more()
        self.restart()
        self.compare()

    def tell(self, agent: AgentOf, body: dict[str, Any]) -> None:
        """Make a request as a client does, which sends it again to the next daemon."""
        try:
            reply = self.desk.ask(body, agent.peer)
        except StoreError:  # it cannot even read what is committed; such a daemon ends
            self.restart()
            self.tell(agent, body)
            return
        if reply is not None and reply.get("error") == Code.UNAVAILABLE:
            self.unavailable += 1
            return
        twin = self.twin.ask(body, agent.peer)
        assert (reply and reply | {"revision": 0}) == (twin and twin | {"revision": 0})
        self.acknowledged += 1

    def second_passes(self) -> None:
        """Let a second pass, after which a store that fails no more is at work again."""
        self.clock.now += 1
        self.twin.sweep()
        try:
            self.desk.sweep()
        except StoreError:
            self.restart()
        self.compare()

    def compare(self) -> None:
        if self.desk.actor._runtime.store_problem is None:
            assert seen_by_all(self.desk) == seen_by_all(self.twin)

    def restart(self) -> None:
        """Kill both daemons, and start them until they run, whatever the store does."""
        self.deaths += 1
        self.twin.kill()
        self.twin = Desk(None, self.clock, kept=self.kept_twin)
        while True:
            self.desk.kill()
            try:
                self.desk = Desk(None, self.clock, kept=self.kept)
            except StoreError:
                continue
            return


def trial_in(directory: Path, host: Host, faults: Faults) -> Trial:
    """Return a trial of SQLite stores in a directory."""
    stores = []
    for name in ("failing", "twin"):
        (directory / name).mkdir(parents=True)
        stores.append(KeptInSQLite(directory / name))
    stores[0].faults = faults
    return Trial(stores[0], stores[1], host)


@pytest.mark.parametrize("late", [False, True], ids=["not executed", "executed all the same"])
@pytest.mark.parametrize("length", [1, 2, 7], ids=lambda length: f"{length} in a row")
def test_with_any_statement_failing_nothing_acknowledged_is_lost_and_nothing_refused_shows(
    tmp_path: Path, host: Host, monkeypatch: pytest.MonkeyPatch, length: int, *, late: bool
) -> None:
    monkeypatch.setattr("trackd.storage.checkpoint._DUE_ROWS", 3)  # checkpoints too
    faults = Faults()
    quiet = trial_in(tmp_path / "quiet", host, faults)
    opening = len(faults.statements)
    quiet.run()
    assert quiet.unavailable == 0
    total = len(faults.statements)
    assert total > opening + 60
    unavailable = deaths = 0
    for number in range(opening + 1, total + 1):
        faults = Faults()
        faults.late = late
        if length == 1:  # a full disk that has room again at once is never seen: see the reserve
            faults.error = sqlite_error(sqlite3.SQLITE_IOERR_WRITE, "disk I/O error")
        faults.fail = set(range(number, number + length))
        trial = trial_in(tmp_path / str(number), host, faults)
        trial.run()
        unavailable += trial.unavailable
        deaths += trial.deaths - 1  # each run ends with one
        assert trial.acknowledged
    if length == 1:
        assert deaths == 0
        assert (unavailable > 0) != late  # what was executed is found, and acknowledged
    elif length > 2:
        assert deaths > 0  # it could not even read what it had stored


# -- real daemons --------------------------------------------------------------------------


def names(count: int) -> list[Proxy]:
    return [Proxy(f"proxy number {n}", generation=2**64 - 1) for n in range(count)]


def change(tracker: Tracker, count: int) -> bool:
    """Set the count; tell whether that could be stored."""
    try:
        tracker.set_connection_count(count)
    except StoreUnavailable:
        return False
    return True


def change_until_refused(tracker: Tracker) -> int:
    """Set the count to 1, 2, 3, ... until that is refused; return what was acknowledged last."""
    for count in range(1, 100_000):
        if not change(tracker, count):
            return count - 1
    raise AssertionError("the store never failed")


class Burdened:
    """A daemon with an agent, which holds one proxy and one lease in flight."""

    def __init__(self, daemon: Daemon, tracker: Tracker) -> None:
        self.daemon = daemon
        self.tracker = tracker
        tracker.track_expected(*names(3))
        claimed, self.in_flight = tracker.acquire(timeout=20), tracker.acquire(timeout=20)
        assert claimed.claim("proxy number 0")

    def check_it_refuses_and_reads(self, count: int) -> None:
        """Check that what was acknowledged is there, that changes are refused and reads are not."""
        tracker = self.tracker
        status = tracker.status()
        assert status["store"] == "failing"
        assert (status["connection_count"], status["tracked"]) == (count, 3)
        assert (status["claimed"], status["inflight"]) == (1, 1)
        assert tracker.is_claimed("proxy number 0")
        with pytest.raises(StoreUnavailable):
            tracker.track_expected(*names(5))
        with pytest.raises(StoreUnavailable):
            self.in_flight.claim("proxy number 1")
        with pytest.raises(StoreUnavailable):
            tracker.adopt("proxy number 2")
        assert tracker.status()["tracked"] == 3
        assert not tracker.is_claimed("proxy number 1")

    def check_it_recovers(self, count: int) -> None:
        """Check that changes are stored again, by the same process, and survive its death."""
        pid = self.tracker.status()["pid"]
        wait_until(lambda: change(self.tracker, count + 1))
        assert self.tracker.status()["pid"] == pid
        assert self.in_flight.claim("proxy number 1")
        self.daemon.restart()
        status = self.tracker.status()
        assert (status["connection_count"], status["tracked"]) == (count + 1, 3)
        assert (status["claimed"], status["inflight"]) == (2, 0)


@contextmanager
def nothing_may_grow(pid: int) -> Iterator[None]:
    """Let a process write no file beyond its first byte: an error of the disk, to SQLite."""
    unlimited = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, unlimited[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)


def test_a_daemon_that_may_not_write_refuses_changes_and_recovers_by_itself(
    trackd_daemon: Daemon,
) -> None:
    with Tracker(trackd_daemon.endpoint) as tracker:
        burdened = Burdened(trackd_daemon, tracker)
        with nothing_may_grow(trackd_daemon.pid):
            count = change_until_refused(tracker)
            burdened.check_it_refuses_and_reads(count)
        burdened.check_it_recovers(count)


@needs_root
def test_a_full_disk_refuses_changes_and_room_on_it_is_found_without_a_restart(
    make_trackd_daemon: MakeDaemon, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "2m") as disk:
        daemon = make_trackd_daemon(state_dir=disk)
        with Tracker(daemon.endpoint) as tracker:
            burdened = Burdened(daemon, tracker)
            filler = fill(disk)
            count = change_until_refused(tracker)
            burdened.check_it_refuses_and_reads(count)
            filler.unlink()
            burdened.check_it_recovers(count)
        daemon.stop()


@needs_root
def test_a_kill_on_a_full_disk_loses_nothing_that_was_acknowledged(
    make_trackd_daemon: MakeDaemon, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "2m") as disk:
        daemon = make_trackd_daemon(state_dir=disk)
        with Tracker(daemon.endpoint, timeout=20) as tracker:
            burdened = Burdened(daemon, tracker)
            filler = fill(disk)
            count = change_until_refused(tracker)
            daemon.kill()
            filler.unlink()
            daemon.start()
            assert tracker.status()["connection_count"] == count
            burdened.check_it_recovers(count)
        daemon.stop()


@needs_root
def test_a_daemon_started_on_a_full_disk_reads_on_and_stores_when_there_is_room(
    make_trackd_daemon: MakeDaemon, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "2m") as disk:
        daemon = make_trackd_daemon(state_dir=disk)
        with Tracker(daemon.endpoint, timeout=20) as tracker:
            burdened = Burdened(daemon, tracker)
            filler = fill(disk)
            count = change_until_refused(tracker)
            daemon.restart()
            burdened.check_it_refuses_and_reads(count)
            assert tracker.status()["epoch"] == 2
            filler.unlink()
            burdened.check_it_recovers(count)
            assert tracker.status()["epoch"] == 3
        daemon.stop()


@needs_root
def test_who_follows_a_daemon_that_starts_on_a_full_disk_misses_nothing(
    make_trackd_daemon: MakeDaemon, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "2m") as disk:
        daemon = make_trackd_daemon(state_dir=disk)
        with (
            Tracker(daemon.endpoint, timeout=PATIENCE) as tracker,
            closing(Watch(Tracker(daemon.endpoint, timeout=PATIENCE))) as watch,
        ):
            watch.begun()
            Burdened(daemon, tracker)
            watch.reaches(tracker.status()["revision"])
            filler = fill(disk)
            change_until_refused(tracker)
            stored = tracker.status()["revision"]
            daemon.restart()
            time.sleep(2 * QUIET_SECONDS)  # in which a client that misses an event gives it up
            replies = tracker.status(), tracker.explain(), tracker.log(after=stored)
            assert [reply["revision"] for reply in replies] == [stored] * 3
            filler.unlink()
            wait_until(lambda: change(tracker, 77))
            watch.reaches(tracker.status()["revision"])
            assert "gap" not in watch.kinds
            assert watch.kinds.count("daemon_started") == 1
        daemon.stop()


@needs_root
def test_waiters_agents_that_die_and_releases_are_seen_to_once_there_is_room(
    make_trackd_daemon: MakeDaemon, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "2m") as disk:
        daemon = make_trackd_daemon(state_dir=disk)
        with Tracker(daemon.endpoint) as tracker, Agent(daemon.endpoint) as waiting:
            dying = Agent(daemon.endpoint)
            tracker.track_expected(Proxy("p1"))
            dying.do("claim", dying.do("acquire"), "p1")
            waiting.tell("wait", 60)
            wait_until(lambda: tracker.status()["waiting"] == 1)
            filler = fill(disk)
            change_until_refused(tracker)
            dying.kill()
            wait_until(lambda: start_time(dying.pid) is None)
            assert tracker.is_claimed("p1"), "nobody may have it before that is stored"
            filler.unlink()
            assert waiting.answer() == 2
            assert not tracker.is_claimed("p1")
            wait_until(lambda: tracker.status()["sessions"] == 2)
        daemon.stop()


@needs_root
def test_a_disk_that_forbids_writing_is_a_clear_error_at_the_start(
    make_trackd_daemon: MakeDaemon, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        daemon = make_trackd_daemon(state_dir=disk, start=False)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(RuntimeError, match=r"trackd: error: .*[Rr]ead-only file system"):
            daemon.start()


#: Loaded by Python before anything else; the store of the daemon that it is loaded by obeys.
INJECTED = """
import os, sqlite3
import trackd.storage.checkpoint, trackd.storage.database

ORDERS = os.environ["FAULTS"]

class Faulty(sqlite3.Connection):
    def execute(self, sql, parameters=(), /):
        if os.path.exists(ORDERS):
            left = int(open(ORDERS).read()) - 1
            if left > 0:
                open(ORDERS + ".new", "w").write(str(left))
                os.replace(ORDERS + ".new", ORDERS)
            else:
                os.unlink(ORDERS)
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE
                raise error
        return super().execute(sql, parameters)

def connect(path):
    return sqlite3.connect(path, isolation_level=None, timeout=0.0, factory=Faulty)

trackd.storage.database.connect = connect
trackd.storage.checkpoint._DUE_ROWS = 4
"""


@pytest.mark.slow
def test_a_real_daemon_whose_statements_fail_one_by_one_never_lies(
    make_trackd_daemon: MakeDaemon, tmp_path: Path
) -> None:
    orders = tmp_path / "orders"
    (tmp_path / "sitecustomize.py").write_text(INJECTED)
    refused = 0
    with (
        started_by(f'exec env PYTHONPATH={tmp_path} FAULTS={orders} "$@"', tmp_path),
        RawPeer((daemon := make_trackd_daemon()).endpoint) as peer,
    ):
        peer.open()
        held: set[str] = set()
        for number in range(1, 16):
            order = tmp_path / "order"
            order.write_text(str(number))
            order.rename(orders)  # whole, whenever the daemon looks
            for step in range(40):
                if not orders.exists():
                    break
                name = f"p{number}.{step}"
                reply = peer.request("adopt", principals=[name])
                if "error" in reply:
                    assert reply["error"] == Code.UNAVAILABLE
                    refused += 1
                else:
                    held.add(name)
            assert not orders.exists(), "nothing failed"
            assert peer.request("status")["claimed"] == len(held)
            if number % 5 == 0:
                daemon.restart()
            wait_until(lambda: peer.request("status")["store"] == "ok")
            assert peer.request("status")["claimed"] == len(held)
        for name in held:
            assert peer.request("is_claimed", principals=[name])["claimed"] is True
    assert refused > 0
