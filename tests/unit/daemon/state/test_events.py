"""What the events of a change say, for those that do not always say the same."""

from __future__ import annotations

from helpers.decisions import World
from trackd.sessions.identity import Peer, Process
from trackd.state import gossip
from trackd.state.changes import Change
from trackd.state.events import count_events, derive_events


def events(world: World) -> dict[str, dict[str, object]]:
    """Return the last event of each kind since the last call."""
    made: list[Change] = [each for moment in world.decide.take() for each in moment.changes]
    found = [(change, list(derive_events(change))) for change in made]
    assert all(count_events(change) == len(derived) for change, derived in found)
    return {kind: fields for _, derived in found for kind, fields in derived}


def test_a_proxy_that_changes_says_what_it_was() -> None:
    world = World()
    gossip.track(world.decide, world.gossip, [("p1", "a", 7, None)])
    events(world)
    gossip.track(world.decide, world.gossip, [("p1", "b", 8, None)])
    assert events(world)["proxy_changed"] == {
        "name": "p1",
        "group": "b",
        "generation": 8,
        "old_group": "a",
        "old_generation": 7,
        "session": 0,
    }


def test_a_pause_says_whose_it_is_and_for_how_long_the_other_end_asked() -> None:
    world = World()
    session = world.open(Process(10, 1))
    lease = world.acquire(session)
    world.decide.report(session, lease, "refused", None)
    found = events(world)
    assert found["dials_paused"]["scope"] == "host"
    assert "retry_after" not in {**found["dials_paused"], **found["dial_failed"]}
    world.decide.report(session, lease, "auth", 9.0)
    found = events(world)
    assert found["dials_paused"]["scope"] == "session"
    assert found["dials_paused"]["retry_after"] == found["dial_failed"]["retry_after"] == 9.0


def test_a_session_and_an_admin_of_another_host_say_which() -> None:
    world = World()
    near = world.open(Process(10, 1))
    assert "host" not in events(world)["session_opened"]
    peer = Peer(1000, 1000, 10, "web-1")
    far = world.decide.open_session(b"t" * 16, peer, None, "", "1", {}, "agent")
    assert events(world)["session_opened"]["host"] == "web-1"
    world.decide.end_session(far, "admin", Peer(0, 0, 5, "web-2"))
    ended = events(world)["session_ended"]
    assert (ended["host"], ended["by_uid"], ended["by_pid"]) == ("web-1", 0, 5)
    assert ended["by_host"] == "web-2"
    world.decide.end_session(near, "closed")
    assert not {"host", "by_uid", "by_pid", "by_host"} & events(world)["session_ended"].keys()
