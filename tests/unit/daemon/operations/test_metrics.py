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


def test_a_dial_is_timed_by_its_outcome_and_a_tunnel_by_the_cause_of_its_end(world: World) -> None:
    ask, desk, clock = world.agent.ask, world.desk, world.clock
    world.agent.ask(desk, "track_expected", proxies=[[f"p{n}", "", 1, None] for n in range(9)])
    assert ask(desk, "adopt", principals=["p8"])["lease"]  # it had no dial
    for failed in ("held", "tls", None):
        lease = ask(desk, "try_acquire")["lease"]
        clock.now += 2
        ask(desk, "release", lease=lease, **({} if failed is None else {"failed": failed}))
        clock.now += 30  # the pause after the failure is over
    lease = ask(desk, "try_acquire")["lease"]
    clock.now += 0.25
    assert ask(desk, "claim", lease=lease, principals=["p8"])["reason"] == "held"
    clock.now += 0.25
    ask(desk, "release", lease=lease)
    lease = ask(desk, "try_acquire")["lease"]
    clock.now += 0.25
    assert ask(desk, "claim", lease=lease, principals=["p8"])["reason"] == "held"
    clock.now += 0.25
    assert ask(desk, "claim", lease=lease, principals=["p1"])["claimed"]
    clock.now += 20
    ask(desk, "release", lease=lease, failed="auth")
    clock.now += 30
    ask(desk, "try_acquire")
    clock.now += 4
    ask(desk, "close")
    assert world.timed("trackd_dial_seconds") == {
        "claimed": (1, 0.5),
        "held": (2, 2.5),
        "tls": (1, 2.0),
        "unreported": (2, 6.0),
    }
    adopted = 32 * 3 + 0.5 + 0.5 + 20 + 30 + 4
    assert world.timed("trackd_tunnel_lifetime_seconds") == {
        "asked": (1, 20.0),
        "closed": (1, adopted),
    }


def test_a_dial_that_claims_too_late_counts_as_a_timeout(world: World) -> None:
    world.restart(claim_timeout=5.0)
    world.agent.ask(world.desk, "track_expected", proxies=ROWS)
    assert world.agent.ask(world.desk, "try_acquire")["lease"]
    for _ in range(2):  # the first sweep is late, and only makes sure that no claim waits
        world.clock.now += 6
        world.desk.sweep()
    assert world.counted("trackd_releases") == {"claim_timeout": 1}
    assert world.timed("trackd_dial_seconds") == {"timeout": (1, 12.0)}


def test_what_began_before_a_restart_counts_in_no_duration_but_a_claim_after_it_does(
    world: World,
) -> None:
    world.agent.ask(world.desk, "track_expected", proxies=ROWS)
    before = claimed(world, "p1")
    dialling = world.agent.ask(world.desk, "try_acquire")["lease"]
    world.restart()
    world.clock.now += 7
    world.agent.ask(world.desk, "release", lease=before)
    assert world.agent.ask(world.desk, "claim", lease=dialling, principals=["p2"])["claimed"]
    world.clock.now += 8
    world.agent.ask(world.desk, "release", lease=dialling)
    assert world.timed("trackd_dial_seconds") == {}
    assert world.timed("trackd_tunnel_lifetime_seconds") == {"asked": (1, 8.0)}
