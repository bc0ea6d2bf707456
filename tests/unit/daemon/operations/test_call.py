"""Agents of several hosts, as the leader of a fleet serves them: a user is a host and a uid."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest

from helpers.writer import AgentOf, Clock, Desk, Host, assert_same_after_reload, observe
from trackd.operations.listings import MOST_BYTES, Listings
from trackd.operations.operation import PROBE
from trackd.operations.quotas import is_exempt
from trackd.sessions.identity import Peer, Process
from trackd_client.core.event import Event
from trackd_client.core.mirror import Mirror
from trackd_client.errors import Code

UID = 1000


@pytest.fixture
def desk(request: pytest.FixtureRequest, clock: Clock, host: Host) -> Iterator[Desk]:
    assert not host.alive
    desk = Desk(None, clock, **getattr(request, "param", {}))
    yield desk
    desk.kill()


def on(host: str, number: int, pid: int = 10, uid: int = UID) -> AgentOf:
    """Return an agent on a host; "" is the daemon's own, which does not see it."""
    process = Process(pid, 7, host, f"boot of {host}") if host else None
    return AgentOf(number, process, uid)


def opened(desk: Desk, *args: Any, **more: Any) -> AgentOf:
    agent = on(*args, **more)
    assert "error" not in agent.ask(desk, "open", name=f"agent {args[1]}")
    return agent


def events(desk: Desk) -> list[tuple[str, dict[str, Any]]]:
    return [(event[3], event[4]) for event in on("", 99).ask(desk, "log")["events"]]


# -- tokens --------------------------------------------------------------------------------


@pytest.mark.parametrize("thief", ["", "b"])
@pytest.mark.parametrize("op", ["open", "try_acquire", "heartbeat", "close"])
def test_a_token_is_of_no_use_to_the_same_uid_and_pid_on_another_host(
    desk: Desk, thief: str, op: str
) -> None:
    agent = opened(desk, "a", 1)
    granted = agent.body("try_acquire")
    desk.ask(granted, agent.peer)
    before, done = observe(desk.state), list(agent.session(desk).live.done.ranges)
    body = agent.body(op, done=[1, granted["seq"]])
    reply = desk.ask(body, agent.peer._replace(host=thief))
    assert reply is not None
    assert reply["error"] == Code.PERMISSION_DENIED
    assert observe(desk.state) == before
    assert agent.session(desk).live.done.ranges == done


@pytest.mark.parametrize("op", ["open", "try_acquire", "close"])
def test_nobody_on_another_host_learns_how_a_session_ended(desk: Desk, op: str) -> None:
    agent = opened(desk, "a", 1)
    agent.ask(desk, "close")
    reply = desk.ask(agent.body(op), agent.peer._replace(host="b"))
    assert reply is not None
    assert reply["error"] == Code.PERMISSION_DENIED
    assert agent.ask(desk, "try_acquire")["error"] == Code.SESSION_ENDED


# -- quotas --------------------------------------------------------------------------------


@pytest.mark.parametrize("desk", [{"quota_sessions": 1}], indirect=True)
def test_the_same_uid_has_a_quota_on_each_host(desk: Desk) -> None:
    opened(desk, "a", 1)
    opened(desk, "b", 2)
    opened(desk, "", 3)
    refused = on("a", 4, pid=11).ask(desk, "open")
    assert (refused["error"], refused["used"]) == (Code.QUOTA_EXCEEDED, 1)
    assert refused["message"].startswith(f"user {UID} of host a has 1 ")
    users = on("", 99).ask(desk, "status")["users"]
    shown = {(user.get("host"), user["uid"], user["sessions"]) for user in users}
    assert shown == {("a", UID, 1), ("b", UID, 1), (None, UID, 1)}


def test_root_of_another_host_has_quotas() -> None:
    assert is_exempt(("", 0))
    assert is_exempt(("", os.geteuid()))
    assert not is_exempt(("a", 0))
    assert not is_exempt(("a", os.geteuid()))


def test_the_metric_of_quotas_names_hosts_only_when_there_are_some(desk: Desk) -> None:
    def used() -> Any:
        families = on("", 99).ask(desk, "metrics", names=["trackd_quota_used"])["families"]
        return families[0][3:]

    first = opened(desk, "", 1)
    labels, samples = used()
    assert labels == ["uid", "quota"]
    assert [[str(UID), "sessions"], 1] in samples
    opened(desk, "a", 2)
    labels, samples = used()
    assert labels == ["host", "uid", "quota"]
    assert [["a", str(UID), "sessions"], 1] in samples
    assert [["", str(UID), "sessions"], 1] in samples
    first.ask(desk, "close")


def test_a_listing_makes_room_among_those_of_the_same_user_of_the_same_host() -> None:
    listings = Listings()
    cursors = {}
    for host, pid, share in (("a", 10, 0.4), ("b", 10, 0.3), ("b", 11, 0.25), ("b", 11, 0.1)):
        peer = Peer(UID, UID, pid, host)
        keys = range(int(share * MOST_BYTES / 8))
        cursors[peer, share] = listings.begin(peer, "leases", 1, keys, 1.0)
    kept = {
        (peer.host, share)
        for (peer, share), cursor in cursors.items()
        if listings.page(peer, "leases", cursor, 1, lambda key: {"key": key}, 2.0) is not None
    }
    assert kept == {("a", 0.4), ("b", 0.3), ("b", 0.1)}


# -- targets -------------------------------------------------------------------------------


@pytest.mark.parametrize("desk", [{"targets": "same_uid"}], indirect=True)
def test_an_address_is_given_to_the_user_of_the_host_that_said_it(desk: Desk) -> None:
    speaker, other = opened(desk, "a", 1), opened(desk, "b", 2)
    row = ["p1", "", 1, None, {"address": "p1:1"}]
    reply = speaker.ask(desk, "track_expected", proxies=[row, ["p2", "", 1, None]])
    assert reply["changed"] == 2
    assert "target" not in other.ask(desk, "try_acquire")
    target = on("", 99).ask(desk, "explain", name="p1")["target"]
    assert (target["uid"], target["host"], target["state"]) == (UID, "a", "ready")
    assert speaker.ask(desk, "try_acquire")["target"] == {"name": "p1", "address": "p1:1"}
    assert_same_after_reload(desk.state, desk.reloaded())


# -- admins --------------------------------------------------------------------------------


def test_the_roles_of_this_host_make_nobody_of_another_one_an_admin(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "trackd")
    root, victim = opened(desk, "a", 1, uid=0), opened(desk, "b", 2)
    body = root.body("end_session", session=2)
    refused = desk.ask(body, root.peer)
    assert refused is not None
    assert refused["error"] == Code.PERMISSION_DENIED
    done = desk.ask(root.body("end_session", session=2), root.peer, admin=True)
    assert done is not None
    assert done["ended"] is True
    assert victim.ask(desk, "heartbeat")["error"] == Code.SESSION_ENDED
    told = {record.message: vars(record)["fields"] for record in caplog.records}
    assert told["admin act refused"].items() >= {"uid": 0, "pid": 10, "host": "a"}.items()
    assert told["admin act"].items() >= {"uid": 0, "pid": 10, "host": "a"}.items()
    kind, fields = events(desk)[-1]
    assert (kind, fields["host"]) == ("session_ended", "b")
    assert (fields["by_uid"], fields["by_pid"], fields["by_host"]) == (0, 10, "a")
    assert_same_after_reload(desk.state, desk.reloaded())


def test_a_call_may_say_that_root_of_this_host_is_no_admin(desk: Desk) -> None:
    root = opened(desk, "", 1, uid=0)
    reply = desk.ask(root.body("resume"), root.peer, admin=False)
    assert reply is not None
    assert reply["error"] == Code.PERMISSION_DENIED
    assert root.ask(desk, "resume")["resumed"] == 0


@pytest.mark.parametrize("desk", [{"count_role": "admin"}], indirect=True)
def test_who_sets_the_connection_count_is_asked_in_the_same_way(desk: Desk) -> None:
    root = opened(desk, "a", 1, uid=0)
    assert root.ask(desk, "set_connection_count", count=3)["error"] == Code.PERMISSION_DENIED
    assert desk.ask(root.body("set_connection_count", count=3), root.peer, admin=True)
    assert desk.state.tracker.connection_count == 3


def test_the_probe_is_for_this_process_alone_and_not_for_its_pid_elsewhere(desk: Desk) -> None:
    body = {"op": PROBE, "seq": 1}
    here = Peer(UID, UID, os.getpid())
    assert "error" not in (desk.ask(body, here) or {})
    reply = desk.ask(body, here._replace(host="a"))
    assert reply is not None
    assert reply["error"] == Code.UNKNOWN_OPERATION


# -- processes -----------------------------------------------------------------------------


def test_a_process_of_another_host_is_taken_as_that_host_attests_it(desk: Desk) -> None:
    def look(_pid: int) -> int:
        raise AssertionError("the pid is of another host")

    with (
        patch("trackd.operations.agents.start_time", look),
        patch("trackd.operations.agents.command_of", look),
        patch("trackd.operations.agents.has_exited", look),
        patch("trackd.actors.writer.start_time", look),
    ):
        agent = opened(desk, "a", 1)
        session = agent.session(desk)
        assert (session.process, session.command) == (agent.process, "relayed")
        desk.actor._end_gone_sessions()
        assert_same_after_reload(desk.state, desk.reloaded())
        assert desk.watcher.messages == [], "it watches processes of this host alone"
        assert agent.process is not None
        desk.exited(agent.process._replace(boot="another boot"))
        desk.exited(agent.process._replace(host="b"))
        desk.exited(Process(agent.process.pid, agent.process.start))
        assert not session.ended
        desk.exited(agent.process)
    assert not desk.state.sessions.by_token
    assert desk.watcher.messages == []
    assert desk.state.sessions.ended[agent.token].user == ("a", UID)


def test_a_process_that_its_host_does_not_see_must_send_heartbeats(desk: Desk) -> None:
    agent = AgentOf(1)
    reply = desk.ask(agent.body("open"), Peer(UID, UID, 10, "a"))
    assert reply is not None
    assert reply["heartbeat_ttl"] is not None
    assert agent.session(desk).process is None


# -- what people see -----------------------------------------------------------------------


def test_a_host_is_shown_where_a_uid_or_pid_is(desk: Desk) -> None:
    there, here = opened(desk, "a", 1), opened(desk, "", 2)
    for agent, name in ((there, "p1"), (here, "p2")):
        agent.ask(desk, "track_expected", proxies=[[name, "", 1, None]])
        lease = agent.ask(desk, "try_acquire")["lease"]
        agent.ask(desk, "claim", lease=lease, principals=[name])
    reader = on("", 99)
    mirror = Mirror()
    for event in reader.ask(desk, "log")["events"]:
        mirror.apply(Event(*event))
    mirrored = mirror.snapshot()
    for of in ("sessions", "leases", "proxies"):
        for rows in (reader.ask(desk, "snapshot", of=of)["rows"], mirrored[of]):
            assert [row.get("host") for row in rows] == ["a", None], of
    for name, expected in (("p1", "a"), ("p2", None)):
        source = reader.ask(desk, "explain", name=name)["source"]
        assert source.get("host") == expected
    failed = there.ask(desk, "adopt", principals=["p3"])["lease"]
    there.ask(desk, "release", lease=failed, failed="refused")
    assert reader.ask(desk, "status")["pause"]["host"] == "a"
    told = [fields.get("host") for kind, fields in events(desk) if kind == "session_opened"]
    assert told == ["a", None]
    there.ask(desk, "close")
    source = reader.ask(desk, "explain", name="p1")["source"]
    assert (source["host"], source["ended"]) == ("a", True)
    assert_same_after_reload(desk.state, desk.reloaded())
