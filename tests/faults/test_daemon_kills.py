"""SIGKILLs of the daemon while sixteen agents work: all that it ever said stays true."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from helpers.ledgers import AGENTS_EACH, NAMES, PROCESSES, Judge, Workers
from helpers.long_form import choose
from helpers.support import wait_until
from trackd.state.state import State
from trackd_client.testing import Daemon, MakeDaemon

KILLS = choose(10, 100)


def compare_with_the_store(judge: Judge, state: State) -> None:
    """Compare what a killed daemon has stored: who holds what, to the last field."""
    stored = {
        lease: (held.session.token.hex(), state.tracker.lease_name(lease))
        for lease, held in state.leases.items()
    }
    known = {
        lease: (ledger.token, name)
        for ledger in judge.ledgers
        for lease, name in ledger.held.items()
    }
    assert stored == known


@pytest.mark.both_stores
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_after_each_kill_every_reply_that_an_agent_received_is_true(
    make_trackd_daemon: MakeDaemon, read_stored: Callable[[Daemon], State]
) -> None:
    # However slow the machine is, no lease is taken back while the agents rest.
    trackd_daemon = make_trackd_daemon(claim_timeout=0.0)
    chance = random.Random(5)
    begun = time.monotonic()
    with ExitStack() as stack:
        judge = Judge(trackd_daemon.endpoint)
        stack.callback(judge.peer.close)
        # Half of the proxies come from the agents' gossip.
        rows = [[f"p{n}", "", 2**64 - 1, None] for n in range(NAMES // 2)]
        judge.peer.request("track_expected", proxies=rows)
        workers = [Workers(trackd_daemon.endpoint, seed) for seed in range(PROCESSES)]
        for each in workers:
            stack.callback(each.end)
        wait_until(lambda: judge.status()["sessions"] == PROCESSES * AGENTS_EACH + 1)
        for _ in range(KILLS):
            for _ in range(chance.randrange(60)):
                judge.peer.request("ping")
            trackd_daemon.kill()
            trackd_daemon.start()
            for each in workers:
                each.rest()
            judge.compare([ledger for each in workers for ledger in each.ledgers()])
            for each in workers:
                each.go_on()
        for each in workers:
            each.rest()
        judge.compare([ledger for each in workers for ledger in each.ledgers()])
        trackd_daemon.kill()
        compare_with_the_store(judge, read_stored(trackd_daemon))
        trackd_daemon.start()
        assert judge.status()["epoch"] == KILLS + 2
    calls = sum(ledger.calls for ledger in judge.ledgers)
    granted = sum(len(ledger.granted) for ledger in judge.ledgers)
    assert granted > KILLS
    print(
        f"\n{KILLS} kills in {time.monotonic() - begun:.0f} s; {calls} calls answered,"
        f" {granted} leases granted, {sum(ledger.refused for ledger in judge.ledgers)} refused"
    )
