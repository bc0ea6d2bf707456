"""What is counted, as `metrics` replies it."""

from __future__ import annotations

from helpers.admin import ROWS, World, claimed


def test_the_counters_tell_what_was_granted_refused_claimed_and_released(world: World) -> None:
    world.agent.ask(world.desk, "track_expected", proxies=ROWS)
    world.agent.ask(world.desk, "track_expected", proxies=[["q1", "g", 6, None]])
    first = claimed(world, "p1")
    assert world.counted("trackd_group_claimed_proxies") == {"": 1}
    assert world.counted("trackd_group_missing_proxies") == {"": 1, "g": 1}
    second = world.agent.ask(world.desk, "try_acquire")["lease"]
    world.agent.ask(world.desk, "claim", lease=second, principals=["p1"])
    world.agent.ask(world.desk, "set_connection_count", count=1)
    assert world.agent.ask(world.desk, "try_acquire")["lease"] is None
    world.agent.ask(world.desk, "release", lease=first)
    world.agent.ask(world.desk, "release", lease=first)
    world.agent.ask(world.desk, "close")
    assert world.counted("trackd_grants") == {"bootstrap": 1, "need": 1}
    assert world.counted("trackd_refusals") == {"satisfied": 1}
    assert world.counted("trackd_claims") == {"": 1}
    assert world.counted("trackd_duplicates") == {"": 1}
    assert world.counted("trackd_releases") == {"asked": 1, "closed": 1}
    assert world.counted("trackd_gossip_messages") == {"": 2}
    assert world.counted("trackd_gossip_proxies") == {"": 4}
    assert world.counted("trackd_gossip_lowered_generations") == {"": 1}
    assert world.counted("trackd_sessions_ended") == {"closed": 1}
    assert world.counted("trackd_tracked_proxies") == {"": 2, "g": 1}
    assert world.counted("trackd_sessions") == {"": 1}


def test_an_error_is_counted_by_its_code(world: World) -> None:
    world.read("snapshot", of="nothing")
    world.read("teleport")
    counted = world.counted("trackd_errors")
    assert (counted["invalid_argument"], counted["unknown_operation"]) == (1, 1)


def test_requests_are_timed_by_their_operation_and_unknown_ones_together(world: World) -> None:
    for op in ("ping", "ping", "teleport", "transmogrify"):
        world.read(op)
    ((_, kind, _, labels, samples),) = world.read("metrics", names=["trackd_request_seconds"])[
        "families"
    ]
    assert (kind, labels) == ("histogram", ["operation"])
    counts = {sample[0][0]: sample[1][-1] for sample in samples}
    assert counts["ping"] == ["+Inf", 2]
    assert counts["unknown"] == ["+Inf", 2]
