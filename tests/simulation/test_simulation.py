"""Simulated hosts: daemon, clients and pools on a simulated clock, network and disk, by a seed.

The short form of `python -m simulation`, and tests of the simulation itself: it finds bugs that are
planted in the daemon, it reaches the rare states, and a seed gives the same run everywhere.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from simulation.bugs import BUGS
from simulation.disk import Fate
from simulation.plan import plan_of, plan_of_statement
from simulation.run import Outcome, explain, run, shrink

TESTS = Path(__file__).resolve().parents[1]
#: Virtual seconds of faults of a run, runs without a bug, and runs within which each bug is found.
SECONDS = 40.0
CLEAN_SEEDS = 20
BUG_SEEDS = 40
#: Statements that fail, one in each run, in each of the four ways.
STATEMENTS = range(12, 80, 23)
#: Seeds whose runs are compared between two processes.
SEEDS = [3]
#: Seeds in whose runs a promise was broken, and the faults that did it.
FOUND = {
    100071: [2],  # a cancel at the limit of kept replies was answered in two ways
    100086: [17, 18, 19],  # events of a commit that could not tell were never published
    100232: [8, 10, 11, 13],  # a read that failed while the store healed ended the daemon
    100275: [*range(9), 10, 11, 13],  # a copy of a refused adopt was granted what nobody knew of
}
#: States that some clean run must reach.
RARE = (
    "a parked request was sent again",
    "a request that is done came late",
    "a request was given up",
    "a tunnel was adopted",
    "answered from the table after a restart",
    "answered from the table by the same process",
    "batch undone",
    "failed commit that did not happen",
    "failed commit that happened",
    "failed within a checkpoint",
    "killed before its batch is stored",
    "killed between commit and reply",
    "killed between two steps of a checkpoint",
    "killed just after a commit",
    "killed just after the flip of a checkpoint",
    "killed just before a commit",
    "killed just before the flip of a checkpoint",
    "killed while requests are parked",
    "killed while the store fails",
    "killed within a checkpoint",
    "lease released: claim_timeout",
    "lease released: given_up",
    "lease released: handed_over",
    "lease released: process_exited",
    "message doubled",
    "message lost",
    "parked over a restart",
    "refused by a limit",
    "refused while the store fails",
    "session ended: closed",
    "session ended: no_heartbeat",
    "session ended: process_exited",
)


def checked(outcome: Outcome) -> Outcome:
    assert outcome.problem is None, explain(outcome)
    return outcome


def test_hosts_with_every_fault_keep_every_promise_and_reach_every_rare_state() -> None:
    reached: Counter[str] = Counter()
    for seed in range(CLEAN_SEEDS):
        reached.update(checked(run(plan_of(seed, SECONDS))).reached)
    assert not [state for state in RARE if not reached[state]], reached


@pytest.mark.parametrize("seed", FOUND)
def test_what_was_found_stays_mended(seed: int) -> None:
    checked(run(plan_of(seed, SECONDS).only(FOUND[seed])))


@pytest.mark.parametrize("fate", list(Fate), ids=[fate.name.lower() for fate in Fate])
def test_a_host_survives_the_fault_of_any_statement(fate: Fate) -> None:
    for number in STATEMENTS:
        checked(run(plan_of_statement(number, fate)))


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str) -> None:
    for seed in range(BUG_SEEDS):
        with BUGS[bug]():
            if run(plan_of(seed, SECONDS)).problem is not None:
                return
    pytest.fail(f"not found in {BUG_SEEDS} runs: {bug}")


def test_there_are_more_than_twenty_bugs_to_find() -> None:
    assert len(BUGS) > 20


def test_a_counterexample_is_made_short_and_fails_again() -> None:
    plan = plan_of(0, SECONDS)
    with BUGS["the changes of a failed commit stay in memory"]():
        kept = shrink(plan)
        assert len(kept) <= 4 < len(plan.faults)
        assert run(plan.only(kept)).problem is not None


def test_a_seed_gives_the_same_run_in_every_process() -> None:
    here = [run(plan_of(seed, SECONDS)) for seed in SEEDS]
    code = (
        "from simulation.plan import plan_of; from simulation.run import run;"
        f"there = [run(plan_of(seed, {SECONDS})) for seed in {SEEDS}];"
        "print([(run.seconds, run.revision, sorted(run.reached.items())) for run in there])"
    )
    environ = os.environ | {"PYTHONPATH": str(TESTS), "PYTHONHASHSEED": "7"}
    there = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    expected = [(run.seconds, run.revision, sorted(run.reached.items())) for run in here]
    assert there.stdout == f"{expected}\n"
