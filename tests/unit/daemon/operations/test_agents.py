"""What agents ask: leases, gossip, waiting, giving up, adopting, and the end of a session."""

from __future__ import annotations

import dataclasses
from unittest.mock import ANY

import pytest

from helpers.writer import ROWS, AgentOf, Clock, Desk, Host, open_session
from trackd.actors.messages import Reload, ReloadOutcome
from trackd.rules.flips import FLIP_INTERVAL
from trackd.sessions.identity import Peer, Process
from trackd_client.errors import Code

LARGEST = 2**64 - 1

# giving up


def test_a_cancel_that_overtakes_its_target_keeps_it_from_running(
    desk: Desk, agent: AgentOf
) -> None:
    target = agent.body("acquire")
    cancel = agent.body("cancel", target=target["seq"])
    assert desk.ask(cancel, agent.peer) == {
        "seq": cancel["seq"],
        "revision": desk.state.revision,
        "cancelled": True,
    }
    assert desk.ask(target, agent.peer) is None
    assert not desk.state.leases
    assert not desk.state.queue


@pytest.mark.parametrize("op", ["try_acquire", "acquire", "adopt"])
def test_a_cancel_takes_back_what_its_target_was_granted(
    desk: Desk, agent: AgentOf, op: str
) -> None:
    target = agent.body(op, principals=["p1"])
    granted = desk.ask(target, agent.peer)
    assert granted is not None
    assert granted["lease"] == 1
    cancel = agent.body("cancel", target=target["seq"])
    first = desk.ask(cancel, agent.peer)
    assert first is not None
    assert first["cancelled"] is True
    assert not desk.state.leases
    assert desk.ask(cancel, agent.peer) == first
    assert desk.ask(target, agent.peer) is None
    assert desk.state.tracker.inflight == 0


def test_what_a_cancel_frees_goes_to_whoever_waits(desk: Desk, agent: AgentOf, host: Host) -> None:
    targets = [agent.body("try_acquire") for _ in ROWS]
    for target in targets:
        desk.ask(target, agent.peer)
    waiter = open_session(desk, host, 2)
    assert desk.ask(waiter.body("acquire"), waiter.peer, route=b"waiter") is None
    desk.send(agent.body("cancel", target=targets[0]["seq"]), agent.peer)
    assert [sent.body["lease"] for sent in desk.end_batch() if sent.route == b"waiter"] == [3]


def test_a_cancel_takes_nothing_from_another_session(
    desk: Desk, agent: AgentOf, host: Host
) -> None:
    target = agent.body("try_acquire")
    desk.ask(target, agent.peer)
    other = open_session(desk, host, 2)
    other.ask(desk, "cancel", target=target["seq"])
    assert list(desk.state.leases) == [1]


# waiting


def test_a_parked_request_sent_again_keeps_its_place_and_the_newest_connection_is_answered(
    desk: Desk, agent: AgentOf, host: Host
) -> None:
    leases = [agent.ask(desk, "try_acquire")["lease"] for _ in ROWS]
    first, second = open_session(desk, host, 2), open_session(desk, host, 3)
    waits = first.body("acquire")
    assert desk.ask(waits, first.peer, route=b"old") is None
    assert desk.ask(second.body("acquire"), second.peer, route=b"second") is None
    for route in (b"old", b"older", b"new"):
        assert desk.ask(waits, first.peer, route=route) is None
    assert len(desk.state.queue) == 2
    desk.send(agent.body("release", lease=leases[0]), agent.peer)
    desk.send(agent.body("release", lease=leases[1]), agent.peer)
    granted = [
        (sent.route, sent.body["lease"]) for sent in desk.end_batch() if "lease" in sent.body
    ]
    assert granted == [(b"new", 3), (b"second", 4)]


def test_the_parked_watch_of_a_session_is_answered_over_its_newest_connection(
    desk: Desk, agent: AgentOf
) -> None:
    watch = agent.body("watch_session")
    assert desk.ask(watch, agent.peer, route=b"old") is None
    assert desk.ask(watch, agent.peer, route=b"new") is None
    desk.send(agent.body("watch_session"), agent.peer)
    assert [(sent.route, sent.body["seq"]) for sent in desk.end_batch()] == [(b"new", watch["seq"])]


def test_whoever_waits_learns_of_the_end_of_the_session(desk: Desk, agent: AgentOf) -> None:
    for _ in ROWS:
        agent.ask(desk, "try_acquire")
    waits = agent.body("acquire")
    assert desk.ask(waits, agent.peer, route=b"waits") is None
    desk.send(agent.body("close"), agent.peer)
    told = {sent.route: sent.body for sent in desk.end_batch()}
    assert told[b"waits"]["error"] == Code.SESSION_ENDED
    assert (told[b"waits"]["seq"], told[b"waits"]["reason"]) == (waits["seq"], "closed")


# adopting


@pytest.mark.rule(14)
def test_adopting_is_for_names_that_nobody_holds(desk: Desk, agent: AgentOf, host: Host) -> None:
    lease = agent.ask(desk, "try_acquire")["lease"]
    agent.ask(desk, "claim", lease=lease, principals=["p1"])
    other = open_session(desk, host, 2)
    assert other.ask(desk, "adopt", principals=["p1"])["lease"] is None
    assert other.ask(desk, "adopt", principals=["p1.example.com"])["lease"] is None
    adopted = other.ask(desk, "adopt", principals=["p2.example.com"])
    assert (adopted["lease"], adopted["name"]) == (2, "p2")
    assert desk.state.tracker.inflight == 0


@pytest.mark.rule(14)
def test_adopting_asks_neither_the_count_nor_the_queue(
    desk: Desk, agent: AgentOf, host: Host
) -> None:
    agent.ask(desk, "set_connection_count", count=1)
    agent.ask(desk, "try_acquire")
    waiter = open_session(desk, host, 2)
    assert desk.ask(waiter.body("acquire"), waiter.peer) is None
    assert agent.ask(desk, "adopt", principals=["unheard of"])["lease"] == 2
    assert len(desk.state.queue) == 1


# the end


def test_whoever_comes_to_a_session_that_has_ended_is_told_why(desk: Desk, agent: AgentOf) -> None:
    assert agent.process is not None
    desk.exited(agent.process)
    reply = agent.ask(desk, "try_acquire")
    assert (reply["error"], reply["reason"]) == (Code.SESSION_ENDED, "process_exited")
    assert agent.ask(desk, "open")["error"] == Code.SESSION_ENDED
    assert "error" not in agent.ask(desk, "close")


def test_a_session_that_was_never_here_is_unknown_but_may_be_closed(desk: Desk) -> None:
    stranger = AgentOf(9, Process(10, 1))
    assert stranger.ask(desk, "try_acquire")["error"] == Code.SESSION_UNKNOWN
    assert "error" not in stranger.ask(desk, "close")


def test_a_process_whose_pid_was_reused_is_another_one(
    desk: Desk, agent: AgentOf, host: Host
) -> None:
    assert agent.process is not None
    first = agent.process
    heir = AgentOf(2, host.start(first.pid))
    heir.ask(desk, "open")
    desk.exited(first)
    assert [each.token for each in desk.state.sessions] == [heir.token]


def test_a_process_that_cannot_be_seen_lives_by_its_signs_of_life(desk: Desk, clock: Clock) -> None:
    hidden = AgentOf(5)
    assert hidden.ask(desk, "open")["heartbeat_ttl"] == 30.0
    hidden.ask(desk, "try_acquire")
    for _ in range(10):
        clock.now += 29
        hidden.ask(desk, "heartbeat")
        desk.sweep()
    assert len(desk.state.sessions) == 1
    clock.now += 30.001
    desk.sweep()
    assert not desk.state.leases
    reply = hidden.ask(desk, "heartbeat")
    assert (reply["error"], reply["reason"]) == (Code.SESSION_ENDED, "no_heartbeat")


def test_a_process_that_is_seen_is_told_to_send_no_signs_of_life(
    desk: Desk, agent: AgentOf, clock: Clock
) -> None:
    assert agent.ask(desk, "open")["heartbeat_ttl"] is None
    agent.ask(desk, "try_acquire")
    clock.now += 1e6
    desk.sweep()
    assert len(desk.state.sessions) == 1


# roles


def test_an_admin_alone_may_set_the_count_where_it_is_configured_so(
    clock: Clock, host: Host
) -> None:
    desk = Desk(None, clock, count_role="admin", admin_users=(1001,), admin_groups=(2002,))
    results = {}
    for number, (uid, gid) in enumerate([(0, 0), (1000, 1000), (1001, 9), (1002, 2002)], 1):
        agent = AgentOf(number, host.start(number))
        agent.peer = Peer(uid, gid, number)
        agent.ask(desk, "open")
        results[uid] = agent.ask(desk, "set_connection_count", count=number).get("error")
    assert results == {0: None, 1000: Code.PERMISSION_DENIED, 1001: None, 1002: None}
    assert desk.state.tracker.connection_count == 4
    desk.kill()


# what agents may ask of gossip and of a dial


def test_a_ttl_above_the_limit_counts_as_the_limit_also_when_it_is_repeated(
    desk: Desk, agent: AgentOf, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    day = desk.actor._config.max_ttl
    assert day == 86_400.0
    rows = [["far", "g", LARGEST, 1e300], ["whole", "g", LARGEST, 2**63], ["near", "g", 1, 30.0]]
    for _ in range(3):  # the first is new, the others only move expiries
        clock.now += 10.0
        agent.ask(desk, "track_expected", proxies=rows)
        expiries = {proxy.name: proxy.expiry - clock.now for proxy in desk.state.tracker}
        assert expiries == {"far": day, "whole": day, "near": 30.0, "p1": ANY, "p2": ANY}
    assert desk.actor._runtime.metrics.limited_ttls == 6
    assert [record.msg for record in caplog.records if "max_ttl" in record.msg] == [
        "gossip with a TTL above max_ttl; counted from now on, and not logged again"
    ]
    assert {proxy.name: proxy for proxy in desk.reloaded().tracker} == {
        proxy.name: proxy for proxy in desk.state.tracker
    }
    clock.now += day + 0.1
    desk.sweep()
    assert desk.state.tracker.get("far") is None


def test_the_longest_ttl_follows_a_reload(desk: Desk, agent: AgentOf, clock: Clock) -> None:
    rows = [["p1", "", 1, 500.0]]
    agent.ask(desk, "track_expected", proxies=rows)
    outcome = ReloadOutcome(changed=("max_ttl",))
    config = dataclasses.replace(desk.actor._config, max_ttl=60.0)
    desk.actor.on_receive(Reload(config, desk.actor._roles, outcome))
    agent.ask(desk, "track_expected", proxies=rows)
    tracked = desk.state.tracker.get("p1")
    assert tracked is not None
    assert tracked.expiry == clock.now + 60.0


@pytest.mark.rule(15)
def test_a_word_that_only_repeats_replaces_the_one_that_waits(
    desk: Desk, agent: AgentOf, clock: Clock
) -> None:
    def say(*, terminating: bool) -> None:
        agent.ask(
            desk, "track_expected", proxies=[["p1", "", 1, 60.0, {"terminating": terminating}]]
        )

    say(terminating=True)
    clock.now += FLIP_INTERVAL
    say(terminating=False)
    clock.now += FLIP_INTERVAL / 4
    say(terminating=True)
    clock.now += FLIP_INTERVAL / 4
    assert not desk.state.tracker.marks.by_name
    say(terminating=False)  # as it is
    clock.now += FLIP_INTERVAL
    desk.sweep()
    assert not desk.state.tracker.is_marked("p1")


def test_a_dial_that_hangs_gives_its_lease_back_by_default(
    desk: Desk, agent: AgentOf, clock: Clock
) -> None:
    granted = agent.ask(desk, "try_acquire")
    assert granted["claim_by"] == clock.now + 30.0
    clock.now += 30.001
    desk.sweep()
    assert granted["lease"] not in desk.state.leases
