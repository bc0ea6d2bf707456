"""The simulated host, whose daemon keeps its state in three members of etcd.

Each call of etcd is a statement of the simulated disk: it fails, its answer gets lost, or the
daemon is killed before it or after it.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest

from fleet.cluster import Cluster
from fleet.stores import FaultyEtcd, KeptInEtcd
from helpers.long_form import choose
from simulation.disk import COMMIT, FLIP, STEP, Disk, Fate
from simulation.plan import plan_of, plan_of_statement
from simulation.run import run
from trackd.fleet import fenced
from trackd.fleet.buckets import Buckets
from trackd.fleet.etcd import (
    Ambiguous,
    Compare,
    NoSpace,
    Operation,
    Put,
    RangeResult,
    Refused,
    TxnResult,
)
from trackd.fleet.store import EtcdStore
from trackd.storage.store import StoreError

SEEDS = choose(8, 100)
STATEMENTS = range(4, 30, choose(9, 1))
#: What must have been reached; the names are those of `simulation.disk`.
RARE = (
    "batch undone",
    "failed commit that did not happen",
    "failed commit that happened",
    "failed just after the flip of a checkpoint",
    "failed just before the flip of a checkpoint",
    "failed within a checkpoint",
    "killed between commit and reply",
    "killed between two steps of a checkpoint",
    "killed just after a commit",
    "killed just before a commit",
    "parked over a restart",
    "refused while the store fails",
)


class _Etcd(FaultyEtcd):
    """A client whose calls are statements of a disk."""

    disk: Disk

    def txn(
        self,
        compares: Sequence[Compare],
        then: Sequence[Operation],
        otherwise: Sequence[Operation] = (),
    ) -> TxnResult:
        result = None
        try:
            with self.disk.around(statement_of(then)):
                result = super().txn(compares, then, otherwise)
        except sqlite3.Error as error:
            if result is not None:
                raise Ambiguous(str(error)) from None
            raise (NoSpace if self.disk.full and compares else Refused)(str(error)) from None
        return result

    def range(
        self,
        key: bytes,
        end: bytes | None = None,
        *,
        revision: int | None = None,
        limit: int | None = None,
    ) -> RangeResult:
        try:
            with self.disk.around("SELECT"):
                return super().range(key, end, revision=revision, limit=limit)
        except sqlite3.Error as error:
            raise Ambiguous(str(error)) from None


def statement_of(operations: Sequence[Operation]) -> str:
    """Return what a transaction is on the simulated disk."""
    first = operations[0]
    if not isinstance(first, Put):
        return "SELECT" if type(first).__name__ == "Get" else STEP[1]
    kind = first.key.split(b"/")[3]
    return {b"journal": COMMIT, b"manifest": FLIP, b"state": STEP[0]}.get(kind, "INSERT")


class _Kept(KeptInEtcd):
    def __init__(self, cluster: Cluster, disk: Disk) -> None:
        self._disk = disk
        super().__init__(cluster)

    def client(self) -> FaultyEtcd:
        made = _Etcd(self._cluster.endpoints, timeout=30.0)
        made.disk = self._disk
        return made


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    KeptInEtcd.small_steps(monkeypatch)
    monkeypatch.setattr(fenced, "_UNSURE_SECONDS", 0.05)  # these are real
    monkeypatch.setattr(fenced, "_READ_SECONDS", 0.05)


@pytest.mark.usefixtures("etcd")
def test_hosts_with_every_fault_keep_every_promise_in_etcd(cluster: Cluster) -> None:
    reached: Counter[str] = Counter()
    for seed in range(SEEDS):
        outcome = run(plan_of(seed), partial(_Kept, cluster))
        assert outcome.problem is None, (seed, outcome.problem)
        reached.update(outcome.reached)
    print(sorted(reached.items()))
    assert not [state for state in RARE if not reached[state]], reached


def a_commit_that_failed_counts_as_done() -> Any:
    right = EtcdStore.append

    def append(store: EtcdStore, changes: bytes) -> None:
        with suppress(StoreError):
            right(store, changes)

    return patch.object(EtcdStore, "append", append)


def a_checkpoint_keeps_nothing_aside() -> Any:
    return patch.object(Buckets, "touch", Buckets.add)


def a_restart_skips_the_last_batch() -> Any:
    right = EtcdStore.batches
    return patch.object(EtcdStore, "batches", lambda store: iter(list(right(store))[:-1]))


@pytest.mark.usefixtures("etcd")
@pytest.mark.parametrize(
    "plant",
    [
        a_commit_that_failed_counts_as_done,
        a_restart_skips_the_last_batch,
        a_checkpoint_keeps_nothing_aside,
    ],
)
def test_a_planted_bug_of_the_store_is_found(cluster: Cluster, plant: Callable[[], Any]) -> None:
    for seed in range(40):
        with plant():
            if run(plan_of(seed), partial(_Kept, cluster)).problem is not None:
                return
    pytest.fail("not found in 40 runs")


@pytest.mark.usefixtures("etcd")
@pytest.mark.parametrize("fate", list(Fate), ids=[fate.name.lower() for fate in Fate])
def test_a_host_survives_the_fault_of_any_call_of_etcd(cluster: Cluster, fate: Fate) -> None:
    for number in STATEMENTS:
        outcome = run(plan_of_statement(number, fate), partial(_Kept, cluster))
        assert outcome.problem is None, (number, outcome.problem)
