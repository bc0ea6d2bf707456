"""The writer alone: batches, what it sends to other actors, and a store that fails."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest

from helpers.writer import (
    ROWS,
    AgentOf,
    Clock,
    Desk,
    Faults,
    Host,
    Sent,
    observe,
    open_session,
    sqlite_error,
)
from trackd.actors.mailbox import MailboxFailed
from trackd.actors.messages import (
    Publish,
    Reload,
    ReloadOutcome,
    UnwatchProcess,
    WakeAt,
    WatchProcess,
)
from trackd.actors.writer import TrackerActor
from trackd.host.roles import Roles
from trackd.operations.listings import IDLE_SECONDS
from trackd.storage.store import DeposedError, StoreError
from trackd_client.errors import Code


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def desk(tmp_path: Path, clock: Clock, faults: Faults, host: Host) -> Iterator[Desk]:
    desk = Desk(tmp_path, clock, faults)
    yield desk
    desk.kill()


def commits(faults: Faults) -> int:
    return sum(sql.startswith("INSERT INTO journal") for sql in faults.statements)


# -- batches -------------------------------------------------------------------------------


def test_no_reply_leaves_before_its_batch_is_stored(
    desk: Desk, agent: AgentOf, faults: Faults
) -> None:
    before, stored = len(desk.sent), commits(faults)
    for _ in ROWS:
        desk.send(agent.body("try_acquire"), agent.peer)
    assert (len(desk.sent), commits(faults)) == (before, stored)
    assert [sent.body["lease"] for sent in desk.end_batch()] == [1, 2]
    assert commits(faults) == stored + 1, "one commit, whatever is in the batch"


def test_a_batch_that_changes_nothing_does_not_write(
    desk: Desk, agent: AgentOf, faults: Faults
) -> None:
    stored = commits(faults)
    for op in ("ping", "status", "explain", "is_claimed", "heartbeat"):
        assert "error" not in agent.ask(desk, op, principals=["p1"])
    assert commits(faults) == stored


def test_a_message_that_the_writer_does_not_know_ends_it(desk: Desk, agent: AgentOf) -> None:
    with patch.object(TrackerActor, "stop") as stop:  # it has no thread
        desk.send(agent.body("try_acquire"), agent.peer)
        desk.actor.on_receive("gossip")
    stop.assert_called_once()
    assert desk.ended
    assert desk.sent[-1].body["error"] == Code.INTERNAL
    desk.send(agent.body("ping"), agent.peer)
    assert desk.end_batch() == [], "it takes nothing on after that"


def test_a_mailbox_that_fails_ends_the_writer(desk: Desk) -> None:
    with patch.object(TrackerActor, "stop") as stop:
        desk.actor.on_receive(MailboxFailed(OSError("no descriptors")))
    stop.assert_called_once()
    assert desk.ended


def test_new_settings_and_roles_count_from_the_next_request(desk: Desk) -> None:
    agent = AgentOf(2, uid=54321)
    agent.ask(desk, "open")
    assert agent.ask(desk, "forget", name="p2")["error"] == Code.PERMISSION_DENIED
    config = replace(desk.actor._config, max_principals=1)
    outcome = ReloadOutcome(("max_principals",), (("endpoint", "it is in use"),))
    desk.actor.on_receive(Reload(config, Roles([agent.peer.uid], []), outcome))
    refused = agent.ask(desk, "is_claimed", principals=["p1", "p2"])
    assert refused["error"] == Code.LIMIT_EXCEEDED
    assert "error" not in agent.ask(desk, "forget", name="p2")
    status = agent.ask(desk, "status")
    assert status["reloads"] == 1
    assert status["reload"]["changed"] == ["max_principals"]
    assert status["reload"]["refused"] == [["endpoint", "it is in use"]]


def test_a_reload_that_was_refused_changes_nothing_but_what_status_says(
    desk: Desk, agent: AgentOf
) -> None:
    before = observe(desk.state)
    desk.actor.on_receive(ReloadOutcome(error="line 3: no such setting"))
    assert agent.ask(desk, "status")["reload"]["error"] == "line 3: no such setting"
    assert observe(desk.state) == before


# -- what other actors get -----------------------------------------------------------------


def test_the_watcher_gets_a_process_with_its_first_session_and_loses_it_with_the_last(
    desk: Desk, host: Host
) -> None:
    first = open_session(desk, host, 2)
    assert first.process is not None
    second = AgentOf(3, first.process)
    second.ask(desk, "open")
    assert desk.watcher.messages == [WatchProcess(first.process)]
    first.ask(desk, "close")
    assert desk.watcher.messages == [WatchProcess(first.process)]
    second.ask(desk, "close")
    assert desk.watcher.messages == [WatchProcess(first.process), UnwatchProcess(first.process)]


def test_the_ticker_gets_a_time_only_when_it_is_earlier_than_the_last(
    desk: Desk, agent: AgentOf, clock: Clock
) -> None:
    assert [message.time for message in desk.ticker.messages] == [clock.now + 180]
    agent.ask(desk, "track_expected", proxies=[["p3", "", 1, 500.0]])
    assert len(desk.ticker.messages) == 1
    agent.ask(desk, "track_expected", proxies=[["p4", "", 1, 30.0]])
    assert desk.ticker.messages[1:] == [WakeAt(clock.now + 30)]
    clock.now += 31
    desk.sweep()
    assert desk.ticker.messages[2:] == [WakeAt(clock.now + 149)], "after a sweep: what is next"


def test_a_listing_that_nobody_reads_on_ends_at_a_sweep_of_its_own(
    desk: Desk, agent: AgentOf, clock: Clock
) -> None:
    agent.ask(desk, "track_expected", proxies=[["p3", "", 1, 500.0]])
    begin = {"op": "snapshot", "seq": 7, "of": "proxies", "limit": 1}
    page = desk.ask(begin, agent.peer)
    assert page is not None
    assert desk.ticker.messages[-1] == WakeAt(clock.now + IDLE_SECONDS)
    clock.now += IDLE_SECONDS + 0.1
    desk.sweep()
    reply = desk.ask({**begin, "cursor": page["cursor"]}, agent.peer)
    assert reply is not None
    assert reply["error"] == Code.INVALID_ARGUMENT


def test_the_publisher_gets_what_is_stored_and_only_while_somebody_listens(
    desk: Desk, agent: AgentOf, faults: Faults
) -> None:
    agent.ask(desk, "try_acquire")
    assert desk.publisher.messages == []
    desk.audience.listening = True
    desk.send(agent.body("try_acquire"), agent.peer)
    assert desk.publisher.messages == [], "not before the batch is stored"
    desk.end_batch()
    (published,) = desk.publisher.messages
    assert isinstance(published, Publish)
    assert published.revision == desk.state.revision
    assert len(published.events) == 1
    faults.writes = True
    agent.ask(desk, "release", lease=1)
    assert desk.publisher.messages == [published], "what was not stored did not happen"


# -- a start -------------------------------------------------------------------------------


def test_sessions_of_processes_that_are_gone_end_before_anything_is_served(
    clock: Clock, host: Host, tmp_path: Path
) -> None:
    before = Desk(tmp_path, clock)
    process, reused, lives = host.start(20), host.start(21), host.start(22)
    agents = [AgentOf(n, each) for n, each in enumerate((process, reused, lives), 1)]
    for each in agents:
        each.ask(before, "open")
        each.ask(before, "adopt", principals=[f"proxy {each.token[-1]}"])
    before.kill()
    del host.alive[process.pid]
    host.start(reused.pid)
    after = Desk(tmp_path, clock)
    assert [each.token for each in after.state.sessions] == [agents[2].token]
    assert list(after.state.leases) == [3]
    assert agents[0].ask(after, "try_acquire")["error"] == Code.SESSION_ENDED
    after.kill()


# -- time ----------------------------------------------------------------------------------


class RestlessClock(Clock):
    """A clock that goes on with every reading, as a real one does."""

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def test_a_message_has_one_moment_so_that_no_expiry_slips_in_between(host: Host) -> None:
    """Whatever expires while a message is handled is counted, and leaves the store too."""
    for ttl in range(1, 12):
        desk = Desk(None, RestlessClock())
        agent = AgentOf(1, host.start(10))
        agent.ask(desk, "open")
        agent.ask(desk, "track_expected", proxies=[["p1", "", 1, float(ttl)]])
        store = desk.sqlite
        store._checkpoint._rows_since = 10**9
        while store.has_work:
            store.step()
        revision = desk.state.revision
        while desk.state.tracker.tracked_count:
            agent.ask(desk, "release", lease=agent.ask(desk, "try_acquire")["lease"] or 99)
            assert desk.state.revision >= revision
        assert any(kind == "names" for kind, _ in store._checkpoint._dirty), f"a TTL of {ttl}"
        desk.kill()


# -- a store that fails --------------------------------------------------------------------


def recover(desk: Desk, clock: Clock, faults: Faults) -> list[Sent]:
    """Let the store work again, and the daemon find out."""
    faults.writes = False
    clock.now += 1.0
    return desk.sweep()


def test_changes_are_refused_and_reads_go_on_while_nothing_can_be_stored(
    desk: Desk, clock: Clock, faults: Faults, host: Host
) -> None:
    agent = AgentOf(1, host.start(10))
    agent.ask(desk, "open")
    agent.ask(desk, "track_expected", proxies=[["p1", "", 1, None], ["p2", "", 1, None]])
    lease = agent.ask(desk, "try_acquire")["lease"]
    agent.ask(desk, "claim", lease=lease, principals=["p1"])
    before = observe(desk.state)
    faults.writes = True
    for op, fields in {
        "try_acquire": {},
        "acquire": {},
        "claim": {"lease": lease, "principals": ["p2"]},
        "release": {"lease": lease},
        "adopt": {"principals": ["p2"]},
        "track_expected": {"proxies": [["p3", "", 1, None]]},
        "set_connection_count": {"count": 1},
        "cancel": {"target": 3},
        "close": {},
    }.items():
        reply = agent.ask(desk, op, **fields)
        assert reply["error"] == Code.UNAVAILABLE, op
        assert reply["retry_after"] > 0
    other = AgentOf(2, host.start(11))
    assert other.ask(desk, "open")["error"] == Code.UNAVAILABLE
    assert agent.ask(desk, "is_claimed", principals=["p1"])["claimed"] is True
    assert agent.ask(desk, "open")["session"] == 1
    status = agent.ask(desk, "status")
    assert status["store"] == "failing"
    assert "full" in status["store_problem"]
    assert agent.ask(desk, "explain")["reason"] == "store"
    assert observe(desk.state) == before
    recover(desk, clock, faults)
    assert agent.ask(desk, "status")["store"] == "ok"
    assert agent.ask(desk, "release", lease=lease)["released"] is True


def test_a_refused_change_may_be_sent_again_and_then_happens(
    desk: Desk, clock: Clock, faults: Faults, host: Host
) -> None:
    agent = AgentOf(1, host.start(10))
    agent.ask(desk, "open")
    body = agent.body("try_acquire")
    faults.writes = True
    refused = desk.ask(body, agent.peer)
    assert refused is not None
    assert refused["error"] == Code.UNAVAILABLE
    recover(desk, clock, faults)
    granted = desk.ask(body, agent.peer)
    assert granted is not None
    assert granted["lease"] == 1


def test_whoever_was_served_by_a_batch_that_got_lost_is_served_when_the_store_works(
    desk: Desk, clock: Clock, faults: Faults, host: Host
) -> None:
    holder, waiter = AgentOf(1, host.start(10)), AgentOf(2, host.start(11))
    holder.ask(desk, "open")
    waiter.ask(desk, "open")
    lease = holder.ask(desk, "try_acquire")["lease"]
    parked = waiter.body("acquire")
    assert desk.ask(parked, waiter.peer, route=b"waiter") is None
    faults.writes = True
    assert holder.ask(desk, "release", lease=lease)["error"] == Code.UNAVAILABLE
    recover(desk, clock, faults)
    desk.send(holder.body("release", lease=lease), holder.peer)
    answers = {sent.route: sent.body for sent in desk.end_batch()}
    assert answers[b"waiter"]["seq"] == parked["seq"]
    assert answers[b"waiter"]["lease"] == 2


@pytest.mark.parametrize("ends_by", ["close", "cancel", "exit"])
def test_whoever_left_the_queue_in_a_batch_that_got_lost_waits_on_with_its_connection(
    desk: Desk, clock: Clock, faults: Faults, host: Host, ends_by: str
) -> None:
    process = host.start(11)
    holder, waiter = AgentOf(1, host.start(10)), AgentOf(2, process)
    holder.ask(desk, "open")
    waiter.ask(desk, "open")
    holder.ask(desk, "try_acquire")
    parked = waiter.body("acquire")
    assert desk.ask(parked, waiter.peer, route=b"waiter") is None
    faults.writes = True
    if ends_by == "exit":
        desk.exited(process)
    else:
        waiter.ask(desk, ends_by, target=parked["seq"])
    (still,) = desk.state.queue
    assert still.session.live.routes == {still.seq: b"waiter"}


def test_notices_of_a_batch_that_got_lost_are_asked_for_again(
    tmp_path: Path, clock: Clock, faults: Faults, host: Host
) -> None:
    desk = Desk(tmp_path, clock, faults, claim_timeout=5.0)
    agent = AgentOf(1, host.start(10))
    agent.ask(desk, "open")
    lease = agent.ask(desk, "try_acquire")["lease"]
    watch = agent.body("watch_session")
    assert desk.ask(watch, agent.peer) is None
    faults.writes = True
    clock.now += 5.001
    (answer,) = desk.sweep()  # the lease would have expired; now somebody must ask again
    assert (answer.body["seq"], answer.body["notices"]) == (watch["seq"], [])
    assert answer.body["revision"] == desk.state.revision, "it is that of the batch that got lost"
    again = agent.body("watch_session")
    assert desk.ask(again, agent.peer) is None
    assert not recover(desk, clock, faults), "the time to claim begins again"
    clock.now += 5.001
    (told,) = desk.sweep()
    assert told.body["seq"] == again["seq"]
    assert told.body["notices"] == [{"notice": "lease_expired", "lease": lease}]
    desk.kill()


def test_the_store_is_probed_every_second_whatever_else_the_timer_was_set_for(
    desk: Desk, clock: Clock, faults: Faults, host: Host
) -> None:
    ticker = desk.ticker
    agent = AgentOf(1, host.start(10))
    agent.ask(desk, "open")
    agent.ask(desk, "track_expected", proxies=[["p1", "", 1, None]])
    assert ticker.messages[-1].time == clock.now + 180
    faults.writes = True
    for _ in range(3):
        agent.ask(desk, "try_acquire")
        assert ticker.messages[-1].time == clock.now + 1
        clock.now += 1
        desk.sweep()
        assert ticker.messages[-1].time == clock.now + 1
    recover(desk, clock, faults)
    assert ticker.messages[-1].time == clock.now + 176


def test_agents_that_die_while_nothing_can_be_stored_are_cleared_away_afterwards(
    desk: Desk, clock: Clock, faults: Faults, host: Host
) -> None:
    process = host.start(10)
    agent = AgentOf(1, process)
    agent.ask(desk, "open")
    agent.ask(desk, "try_acquire")
    faults.writes = True
    del host.alive[process.pid]
    desk.exited(process)
    assert desk.state.leases, "freed in memory alone: a restart would bring it back"
    recover(desk, clock, faults)
    assert not desk.state.leases
    assert not len(desk.state.sessions)


@pytest.mark.parametrize("known", [False, True], ids=["new store", "known store"])
def test_a_start_that_cannot_be_stored_is_counted_once_the_store_works(
    tmp_path: Path, clock: Clock, host: Host, *, known: bool
) -> None:
    if known:
        Desk(tmp_path, clock).kill()
    faults = Faults()
    faults.writes = True
    desk = Desk(tmp_path, clock, faults)
    assert desk.actor._runtime.store_problem is not None
    agent = AgentOf(1, host.start(10))
    hello = agent.ask(desk, "hello")
    assert (hello["epoch"], len(hello["tracker_id"])) == (1 + known, 16)
    recover(desk, clock, faults)
    assert agent.ask(desk, "open")["session"] == 1
    assert agent.ask(desk, "hello")["tracker_id"] == hello["tracker_id"]
    desk.kill()
    again = Desk(tmp_path, clock)
    hello_again = agent.ask(again, "hello")
    assert hello_again["epoch"] == hello["epoch"] + 1
    assert hello_again["tracker_id"] == hello["tracker_id"]
    again.kill()


def test_no_checkpoint_holds_a_start_that_could_not_be_stored(
    desk: Desk, tmp_path: Path, clock: Clock, agent: AgentOf
) -> None:
    desk.kill()
    faults = Faults()
    faults.writes = True
    with patch("trackd.storage.checkpoint._DUE_ROWS", 1):
        again = Desk(tmp_path, clock, faults)
        for _ in range(5):  # some statements succeed before the disk is of use again
            clock.now += 1
            again.sweep()
        recover(again, clock, faults)
    hello = agent.ask(again, "hello")
    assert hello["epoch"] == 2
    events = again.state.history.after(0, 1_000)
    assert [event[0] for event in events] == list(range(1, again.state.revision + 1))
    again.kill()


def test_a_file_found_damaged_at_work_is_replaced_and_clients_hear_that_all_is_new(
    desk: Desk, tmp_path: Path, clock: Clock, faults: Faults, host: Host
) -> None:
    agent = AgentOf(1, host.start(10))
    agent.ask(desk, "open")
    before = agent.ask(desk, "hello")
    faults.error = sqlite_error(sqlite3.SQLITE_CORRUPT, "database disk image is malformed")
    faults.fail = {len(faults.statements) + 1}
    assert agent.ask(desk, "try_acquire")["error"] == Code.SESSION_UNKNOWN
    recover(desk, clock, faults)
    after = agent.ask(desk, "hello")
    assert after["tracker_id"] != before["tracker_id"]
    assert after["epoch"] == 1
    newcomer = AgentOf(2, host.start(11))
    assert newcomer.ask(desk, "open")["session"] == 1
    assert newcomer.ask(desk, "try_acquire")["lease"] == 1
    assert len(list(tmp_path.glob("*.damaged-*[0-9]"))) == 1


def test_a_failure_that_nobody_foresaw_ends_the_daemon_and_keeps_what_was_acknowledged(
    desk: Desk, tmp_path: Path, clock: Clock, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = AgentOf(1, host.start(10))
    agent.ask(desk, "open")
    agent.ask(desk, "try_acquire")
    before = observe(desk.state)

    def break_down(*_: object) -> None:
        raise ZeroDivisionError("for the test")

    with monkeypatch.context() as context:
        context.setattr(desk.actor, "stop", lambda: None)  # it has no thread
        context.setattr(desk.actor._decide, "adopt", break_down)
        desk.send(agent.body("release", lease=1), agent.peer)  # in the same batch
        desk.send(agent.body("adopt", principals=["p1"]), agent.peer)
    assert desk.ended
    assert {sent.body["error"] for sent in desk.sent[-2:]} == {Code.INTERNAL}
    desk.end_batch()
    desk.kill()
    again = Desk(tmp_path, clock)
    now = observe(again.state)
    assert [event[3] for event in now["events"][len(before["events"]) :]] == ["daemon_started"]
    before |= {"epoch": 2, "revision": before["revision"] + 1, "events": now["events"]}
    assert now == before
    again.kill()


# time that the daemon lost


def due_of(desk: Desk) -> float:
    """Return when the ticker was asked last to wake the writer."""
    times = [each.time for each in desk.ticker.messages if isinstance(each, WakeAt)]
    assert times[-1] is not None
    return times[-1]


def test_heartbeats_that_a_stopped_daemon_did_not_read_keep_their_session(clock: Clock) -> None:
    desk = Desk(None, clock, heartbeat_ttl=2.0)
    speaks, silent = AgentOf(1), AgentOf(2)
    speaks.ask(desk, "open")
    silent.ask(desk, "open")
    clock.now = due_of(desk) + 3.0  # the process was stopped
    desk.sweep()
    speaks.ask(desk, "heartbeat")  # read after the sweep
    assert len(desk.state.sessions) == 2
    clock.now += 2.0
    speaks.ask(desk, "heartbeat")
    clock.now += 0.001
    desk.sweep()
    assert [session.token for session in desk.state.sessions] == [speaks.token]
    desk.kill()


def test_a_silent_session_ends_though_every_sweep_comes_late(clock: Clock) -> None:
    desk = Desk(None, clock, heartbeat_ttl=2.0)
    AgentOf(1).ask(desk, "open")
    for _ in range(2):
        assert len(desk.state.sessions) == 1
        clock.now = due_of(desk) + 5.0
        desk.sweep()
    assert not len(desk.state.sessions)
    desk.kill()


def test_a_claim_that_a_stopped_daemon_did_not_read_is_not_too_late(
    clock: Clock, host: Host
) -> None:
    desk = Desk(None, clock, claim_timeout=5.0)
    agent = open_session(desk, host, 1)
    agent.ask(desk, "track_expected", proxies=ROWS)
    leases = [agent.ask(desk, "try_acquire")["lease"] for _ in ROWS]
    clock.now += 5.0 + 3.0
    desk.sweep()
    assert agent.ask(desk, "claim", lease=leases[0], principals=["p1"])["claimed"]
    clock.now = due_of(desk) + 0.001
    desk.sweep()
    assert list(desk.state.leases) == leases[:1], "one that never claims is taken back"
    desk.kill()


def test_the_time_to_claim_begins_when_the_daemon_serves_and_can_store(
    tmp_path: Path, clock: Clock, host: Host
) -> None:
    faults = Faults()
    desk = Desk(tmp_path, clock, faults, claim_timeout=5.0)
    agent = open_session(desk, host, 1)
    lease = agent.ask(desk, "try_acquire")["lease"]
    desk.kill()
    clock.now += 60.0  # it was away
    desk = Desk(tmp_path, clock, faults, claim_timeout=5.0)
    assert list(desk.state.leases) == [lease]
    faults.writes = True
    assert agent.ask(desk, "claim", lease=lease, principals=["p1"])["error"] == Code.UNAVAILABLE
    clock.now += 60.0
    faults.writes = False
    desk.sweep()
    assert agent.ask(desk, "claim", lease=lease, principals=["p1"])["claimed"]
    desk.kill()


def test_a_notice_comes_when_the_store_works_again(
    tmp_path: Path, clock: Clock, host: Host
) -> None:
    desk = Desk(tmp_path, clock, admin_users=(1000,))
    agent, admin = open_session(desk, host, 1), open_session(desk, host, 2)
    lease = agent.ask(desk, "try_acquire")["lease"]
    admin.ask(desk, "force_release", lease=lease)
    desk.fail_store("the disk is full")
    watch = agent.body("watch_session")
    assert desk.ask(watch, agent.peer) is None
    replies = [sent.body for sent in desk.sweep() if sent.body["seq"] == watch["seq"]]
    assert [reply["notices"] for reply in replies] == [
        [{"notice": "lease_revoked", "lease": lease}]
    ]
    desk.kill()


# -- a store that belongs to another process -----------------------------------------------


@pytest.mark.parametrize("at", ["append", "step", "begin_reading", "probe"])
def test_a_writer_whose_store_has_another_owner_ends_and_answers_nothing(
    desk: Desk, clock: Clock, faults: Faults, host: Host, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    agent = AgentOf(1, host.start(10))
    agent.ask(desk, "open")
    ends = []
    monkeypatch.setattr(desk.actor, "stop", lambda: ends.append(at))  # it has no thread

    def belong_to_another(*_: object) -> None:
        raise DeposedError("for the test")

    faults.writes = at in ("begin_reading", "probe")
    if at == "probe":
        assert agent.ask(desk, "try_acquire")["error"] == Code.UNAVAILABLE
    method = "append" if at == "probe" else at
    monkeypatch.setattr(desk.sqlite, method, belong_to_another)
    if at == "step":
        monkeypatch.setattr("trackd.storage.checkpoint._DUE_ROWS", 1)
    before = len(desk.sent)
    if at == "probe":
        clock.now += 1.0
        desk.sweep()
    desk.send(agent.body("try_acquire"), agent.peer, b"last")
    desk.end_batch()
    stored = at == "step"  # its batch was stored and answered before
    assert [sent.route for sent in desk.sent[before:]] == ([b"last"] if stored else [])
    assert desk.ended
    assert ends == [at]
    desk.send(agent.body("try_acquire"), agent.peer)
    desk.end_batch()
    assert len(desk.sent) == before + stored


def test_a_writer_that_may_have_lost_its_store_answers_what_it_has_stored_and_nothing_else(
    desk: Desk, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = AgentOf(1, host.start(10))
    agent.ask(desk, "open")
    ends = []
    monkeypatch.setattr(desk.actor, "stop", lambda: ends.append(1))  # it has no thread

    def belong_to_another() -> None:
        raise DeposedError("for the test")

    monkeypatch.setattr(desk.sqlite, "check_owner", belong_to_another)
    before = len(desk.sent)
    desk.send(agent.body("try_acquire"), agent.peer, b"stored")
    desk.end_batch()
    desk.send(agent.body("status"), agent.peer, b"read")
    desk.end_batch()
    assert [sent.route for sent in desk.sent[before:]] == [b"stored"]
    assert desk.ended
    assert ends == [1]


# -- a store that cannot say what it has stored ------------------------------------------------


def stores(desk: Desk) -> bool:
    return desk.actor._runtime.store_problem is None


@pytest.fixture
def unsure(faults: Faults) -> None:
    """Let the next commit happen, though it raises, and so does the question whether it did."""
    faults.error = sqlite_error(sqlite3.SQLITE_IOERR, "disk I/O error")

    class Unsure(set[int]):
        fails = 0

        def __contains__(self, number: object) -> bool:
            asked = self.fails and faults.statements[-1].startswith("SELECT max(id)")
            stores = not self.fails and faults.statements[-1].startswith("INSERT INTO journal")
            self.fails += bool(asked or stores)
            return bool(self.fails <= 2 and (asked or stores))

    faults.fail, faults.late = Unsure(), True


def test_a_batch_that_was_stored_after_all_is_answered_and_its_events_are_published(
    desk: Desk, agent: AgentOf, unsure: None
) -> None:
    desk.audience.listening = True
    before = desk.state.revision
    granted = agent.ask(desk, "try_acquire")
    assert not stores(desk), "it could not tell"
    assert granted["lease"] == 1
    published = [each for each in desk.publisher.messages if isinstance(each, Publish)]
    assert [each.revision for each in published] == [before + 1]
    assert len(published[0].events) == 1


def test_a_start_that_cannot_be_read_again_is_tried_again(
    tmp_path: Path, clock: Clock, faults: Faults
) -> None:
    Desk(tmp_path, clock).kill()
    faults.writes = True
    desk = Desk(tmp_path, clock, faults)
    faults.writes = False
    assert not stores(desk)
    clock.now += 1
    with patch.object(desk.sqlite, "begin_reading", side_effect=StoreError("disk I/O error")):
        desk.sweep()
    assert not desk.ended
    assert not stores(desk)
    clock.now += 1
    desk.sweep()
    assert stores(desk)
    assert desk.state.epoch == 2
    desk.kill()
