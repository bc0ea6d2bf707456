"""Gossip as the state takes it in: what is stored, and what a restart makes of it."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.decisions import World
from trackd.rules.flips import FLIP_INTERVAL
from trackd.sessions.identity import Peer, Process
from trackd.sessions.sessions import Session
from trackd.state import forgetting, gossip, timers
from trackd.state.changes import Mentioned, Renewed, RenewedEach


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.rule(12)
def test_a_ttl_runs_through_the_time_without_a_daemon(world: World) -> None:
    world.track("short", ttl=10.0)
    world.track("long", ttl=100.0)
    world.commit()
    world.clock.now += 50
    world.restart()
    timers.sweep(world.decide)
    assert [proxy.name for proxy in world.state.tracker] == ["long"]


def test_gossip_without_ttl_keeps_the_default_of_the_moment_it_was_heard(world: World) -> None:
    world.restart(proxy_expiry=60.0)
    world.track("p1")
    expiry = world.clock.now + 60.0
    reloaded = world.reloaded(proxy_expiry=5.0)
    found = reloaded.tracker.get("p1")
    assert found is not None
    assert found.expiry == expiry


def test_a_further_mention_does_what_gossip_that_is_looked_at_closely_does(world: World) -> None:
    rows: list[tuple[str, str, int, float | None]]
    rows = [("p1", "", 1, None), ("p2", "", 1, 9.0), ("p3", "", 1, 9.0)]
    rows.append(("p1", "", 1, 50.0))
    others = World()
    for each in (world, others):
        gossip.track(each.decide, each.gossip, [(f"p{i}", "", 1, 30.0 * i) for i in (1, 2, 3)])
        each.check()
        each.clock.now += 1.0
    speaker = Session(7, b"", Peer(0, 0, 0), None, "", "", {}, 0.0, 0.0)
    revision = world.state.revision
    gossip.mention(world.decide, speaker, rows)
    gossip.track(others.decide, speaker, rows)
    assert world.state.revision == revision
    assert sorted(world.state.tracker) == sorted(others.state.tracker)
    for each in (world, others):
        mentions = each.state.tracker.mentions
        assert [mentions.of(name).by for name in ("p1", "p2", "p3")] == [7, 7, 7]
    assert world.metrics.gossip_proxies == others.metrics.gossip_proxies
    world.check()


def test_gossip_repeated_with_a_ttl_for_each_proxy_is_one_change(world: World) -> None:
    """Else such a message would cost as much as a change for each proxy."""
    names = [f"p{i}" for i in range(100)]
    gossip.track(
        world.decide, world.gossip, [(name, "", 1, 100.0 + i) for i, name in enumerate(names)]
    )
    world.check()
    rows = [(name, "", 1, 200.0 + i) for i, name in enumerate(names)]
    rows[50] = ("p50", "", 1, 1.0)
    made = world.decide.made
    gossip.mention(world.decide, world.gossip, rows)
    assert world.decide.made == made + 1
    ttls = [world.state.tracker.mentions.of(name).ttl for name in names]
    assert ttls == [row[3] for row in rows]
    assert world.state.tracker.next_expiry == world.clock.now + 1.0
    world.check()


def ttls(world: World) -> dict[str, float]:
    mentions = world.state.tracker.mentions
    return {proxy.name: mentions.of(proxy.name).ttl for proxy in world.state.tracker}


@pytest.mark.rule(12)
def test_what_gossip_says_last_of_each_proxy_counts_whatever_it_repeats(world: World) -> None:
    """Parts of a message that repeat earlier ones are renewed, the others begin anew."""
    world.track("a", "b", ttl=10.0)
    world.track("c", ttl=20.0)
    world.track("d", "e", ttl=30.0)
    for times, rows in enumerate(
        (
            [("a", 11.0), ("b", 11.0), ("c", 21.0), ("d", 31.0), ("e", 31.0)],
            [("a", 12.0), ("c", 22.0), ("b", 13.0), ("e", 14.0), ("d", 15.0)],
            [("a", 16.0), ("b", 17.0)],
            [("d", 18.0), ("e", 18.0), ("a", 19.0)],
        )
    ):
        world.clock.now += 1
        before = ttls(world)
        gossip.track(world.decide, world.gossip, [(name, "", 1, ttl) for name, ttl in rows])
        assert ttls(world) == before | dict(rows), times
        assert world.state.tracker.next_expiry == min(
            world.state.tracker.mentions.of(name).expiry for name in before
        )
        assert world.state.revision == 6, "an expiry is no event"
        world.check()


def test_each_message_and_each_of_its_proxies_is_counted(world: World) -> None:
    session = world.open(Process(10, 1))
    rows: list[tuple[str, str, int, float | None]] = [("p1", "", 5, None), ("p2", "", 5, None)]
    assert gossip.track(world.decide, session, rows) == 2
    assert gossip.track(world.decide, session, rows) == 0
    gossip.mention(world.decide, session, rows)
    metrics = world.metrics
    assert (session.live.gossip, metrics.gossip_messages, metrics.gossip_proxies) == (3, 3, 6)
    assert metrics.lowered_generations == 0
    assert gossip.track(world.decide, session, [("p1", "", 4, None), ("p2", "", 6, None)]) == 2
    assert metrics.lowered_generations == 1
    assert gossip.track(world.decide, session, [("p1", "other", 3, None)]) == 1
    assert gossip.track(world.decide, session, [("p3", "", 1, None)]) == 1
    assert metrics.lowered_generations == 1, "another group has its own generations"


def test_of_a_proxy_that_is_named_twice_the_last_row_counts(world: World) -> None:
    assert gossip.track(world.decide, world.gossip, [("p", "a", 1, 5.0), ("p", "b", 2, 9.0)]) == 1
    assert [tuple(proxy)[:3] for proxy in world.state.tracker] == [("p", "b", 2)]
    assert ttls(world) == {"p": 9.0}
    gossip.track(world.decide, world.gossip, [("p", "a", 1, 5.0), ("p", "b", 2, 7.0)])
    assert ttls(world) == {"p": 7.0}
    world.check()


def test_gossip_of_what_was_forgotten_is_passed_over(world: World) -> None:
    rows: list[tuple[str, str, int, float | None]] = [("p1", "", 1, 50.0), ("p2", "", 1, 50.0)]
    gossip.track(world.decide, world.gossip, rows)
    forgetting.forget_proxy(world.decide, "p1", Peer(0, 0, 1))
    assert gossip.track(world.decide, world.gossip, rows) == 0
    assert [proxy.name for proxy in world.state.tracker] == ["p2"]
    assert gossip.track(world.decide, world.gossip, rows[:1]) == 0
    world.clock.now += 50.1
    assert gossip.track(world.decide, world.gossip, rows) == 1
    world.check()


@pytest.mark.rule(15)
@pytest.mark.parametrize("way", [gossip.track, gossip.mention])
def test_a_word_of_gossip_that_only_repeats_marks_too(world: World, way: Any) -> None:
    rows = [("p1", "", 1, 50.0), ("p2", "", 1, 50.0)]
    gossip.track(world.decide, world.gossip, rows)
    way(world.decide, world.gossip, rows, {"p1": True})
    tracker = world.state.tracker
    assert [tracker.is_marked(name) for name in ("p1", "p2")] == [True, False]
    made = world.decide.made
    way(world.decide, world.gossip, rows)
    assert world.decide.made == made + 1, "no word, no change of marks"
    world.check()


@pytest.mark.rule(15)
def test_a_proxy_that_moves_loses_its_mark_unless_gossip_says_it_again(world: World) -> None:
    rows = [("p1", "g", 1, None), ("p2", "g", 1, None), ("p3", "g", 1, None)]
    gossip.track(world.decide, world.gossip, rows, dict.fromkeys(("p1", "p2", "p3"), True))
    moved = [("p1", "g", 2, None), ("p2", "g", 2, None), ("p3", "g", 1, None)]
    gossip.track(world.decide, world.gossip, moved, {"p2": True})
    tracker = world.state.tracker
    assert [tracker.is_marked(name) for name in ("p1", "p2", "p3")] == [False, True, True]
    world.check()


@pytest.mark.rule(15)
def test_a_word_that_waits_is_dropped_when_its_proxy_moves(world: World) -> None:
    def say(generation: int, *, terminating: bool) -> None:
        rows = [("p1", "g", generation, None), ("p2", "g", 1, None)]
        gossip.track(world.decide, world.gossip, rows, dict.fromkeys(("p1", "p2"), terminating))

    say(1, terminating=False)
    say(1, terminating=True)
    say(1, terminating=False)
    assert world.decide.flips.waiting.keys() == {"p1", "p2"}
    say(2, terminating=True)
    assert "p1" not in world.decide.flips.waiting
    world.clock.now += FLIP_INTERVAL
    timers.sweep(world.decide)
    assert world.state.tracker.is_marked("p1"), "the old word was of another generation"


@pytest.mark.rule(15)
def test_of_the_words_of_a_message_some_count_and_some_wait(world: World) -> None:
    rows = [("p1", "g", 1, None), ("p2", "g", 1, None)]
    gossip.track(world.decide, world.gossip, rows)
    gossip.track(world.decide, world.gossip, rows, {"p1": True})
    gossip.track(world.decide, world.gossip, rows, {"p1": False, "p2": True})
    tracker = world.state.tracker
    assert [tracker.is_marked(name) for name in ("p1", "p2")] == [True, True]
    assert world.decide.flips.waiting.keys() == {"p1"}
    world.check()


@pytest.mark.rule(16)
def test_an_address_is_kept_and_goes_when_the_proxy_moves(world: World) -> None:
    rows = [("p1", "g", 1, None), ("p2", "g", 1, None)]
    gossip.track(world.decide, world.gossip, rows)
    known = world.state.tracker.targets.by_name
    gossip.track(world.decide, world.gossip, rows, {}, {"p1": "a:1", "p2": "b:1"})
    assert {name: address.text for name, address in known.items()} == {"p1": "a:1", "p2": "b:1"}
    gossip.track(world.decide, world.gossip, rows)
    assert len(known) == 2
    gossip.track(world.decide, world.gossip, [("p1", "g", 2, None), rows[1]])
    assert known.keys() == {"p2"}
    gossip.track(world.decide, world.gossip, rows[1:], {}, {"p2": ""})
    assert not known
    world.check()


@pytest.mark.rule(7)
def test_gossip_of_a_new_name_renames_who_follows_it_and_no_other(world: World) -> None:
    session = world.open(Process(10, 1))
    world.decide.adopt(session, ["host1", "group"], follow=True)
    gossip.track(world.decide, world.gossip, [("uuid2", "group", 1, None)])
    assert world.state.tracker.lease_name(1) == "host1"
    gossip.track(world.decide, world.gossip, [("group", "", 1, None)])
    assert world.state.tracker.lease_name(1) == "group"
    world.check()


def test_a_missing_proxy_that_one_session_mentions_and_others_do_not_is_known(
    world: World,
) -> None:
    """Its claim or a mention by another one ends that."""
    one, other = world.open(Process(10, 1)), world.open(Process(11, 1))
    lone = world.decide.lone

    def spoken(name: str) -> bool:
        return lone.has(name, 10.0, world.clock.now)

    for way in (gossip.track, gossip.mention):
        gossip.track(world.decide, one, [("p1", "g", 1, 10.0), ("p2", "g", 1, 10.0)])
        gossip.track(world.decide, other, [("p2", "g", 1, 10.0)])
        for _ in range(2):
            world.clock.now += 5
            way(world.decide, one, [("p1", "g", 1, 10.0), ("p2", "g", 1, 10.0)])
            way(world.decide, other, [("p2", "g", 1, 10.0)])
        assert (spoken("p1"), spoken("p2"), spoken("g")) == (True, False, False)
        _, name = world.decide.adopt(one, ["p1"])
        assert name == "p1"
        assert not spoken("p1")
        world.decide.end_session(one, "closed")
        world.clock.now += 100
        timers.sweep(world.decide)
        one = world.open(Process(10, 1))


@pytest.mark.parametrize("way", ["repeats", "is looked at", "tracks"])
def test_whoever_gossips_passes_over_the_missing_proxies_that_it_does_not_mention(
    world: World, way: str
) -> None:
    one, other = world.open(Process(10, 1)), world.open(Process(11, 1))
    gossip.track(world.decide, world.gossip, [("p2", "g", 1, 10.0)])
    gossip.track(world.decide, one, [("p1", "g", 1, 10.0)])
    world.clock.now += 10
    assert not world.decide.lone.has("p1", 10.0, world.clock.now)
    match way:
        case "repeats":
            gossip.mention(world.decide, other, [("p2", "g", 1, 10.0)])
        case "is looked at":
            gossip.track(world.decide, other, [("p2", "g", 1, 10.0)])
        case _:
            gossip.track(world.decide, other, [("p3", "g", 1, 10.0)])
    assert world.decide.lone.has("p1", 10.0, world.clock.now)


@pytest.mark.rule(7)
def test_a_proxy_that_a_lease_follows_to_is_not_missing(world: World) -> None:
    one, other = world.open(Process(10, 1)), world.open(Process(11, 1))
    world.decide.adopt(other, ["host1", "uuid1"], follow=True)
    gossip.track(world.decide, one, [("uuid1", "", 1, 10.0)])
    gossip.track(world.decide, other, [("p2", "", 1, 10.0)])
    world.clock.now += 10
    assert world.state.tracker.lease_name(1) == "uuid1"
    assert not world.decide.lone.has("uuid1", 10.0, world.clock.now)


def test_of_a_message_what_is_renewed_and_what_begins_anew_is_one_change_each(
    world: World,
) -> None:
    world.track("a", "b", ttl=10.0)
    world.track("c", ttl=20.0)
    world.track("d", "e", ttl=30.0)
    world.decide.take()
    rows = [("a", "", 1, 11.0), ("b", "", 1, 11.0), ("c", "", 1, 21.0), ("d", "", 1, 31.0)]
    gossip.track(world.decide, world.gossip, rows)
    made = [type(each) for moment in world.decide.take() for each in moment.changes]
    assert made == [RenewedEach, Mentioned]
    gossip.track(world.decide, world.gossip, [*rows[:2], ("e", "", 1, 5.0)])
    made = [type(each) for moment in world.decide.take() for each in moment.changes]
    assert made == [Renewed, Mentioned]


def test_a_message_whose_proxies_have_all_moved_on_leaves_the_checkpoint(world: World) -> None:
    world.track("p1", "p2")
    number = world.state.tracker.mentions.of("p1").number
    rows = {("mention", number), ("names", number)}
    world.take_checkpoint()
    assert rows <= world.checkpoint
    world.track("p2", generation=2)
    world.take_checkpoint()
    assert rows <= world.checkpoint
    world.track("p1", generation=2)
    world.take_checkpoint()
    assert not rows & world.checkpoint
