"""What the tests of the writer find on SQLite's store holds on that of a fleet.

Random histories, random work with every misfortune, and each write failing in turn: the code is
that of `tests/unit`, `tests/model` and `tests/faults`, the store is three members of etcd.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import rule, run_state_machine_as_test

from faults.test_store_failures import Trial
from fleet.cluster import Cluster
from fleet.stores import KeptInEtcd
from helpers.desk_machine import DeskMachine, run_machine
from helpers.long_form import choose
from helpers.random_state import World
from helpers.writer import Host
from model.test_exactly_once import Client, ExactlyOnce
from model.test_follow_model import Follow
from model.test_holds_model import Holds
from model.test_planted_bugs import assert_finds
from model.test_quotas_model import Quotas
from model.test_sessions_model import Sessions
from model.test_waiting_model import Waiting
from trackd.fleet.buckets import Buckets
from trackd.fleet.etcd import Etcd
from trackd.fleet.store import EtcdStore


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    KeptInEtcd.small_steps(monkeypatch)


@pytest.mark.usefixtures("small_steps", "etcd")
@pytest.mark.parametrize("seed", range(8))
def test_after_every_batch_of_random_histories_a_restart_finds_the_same(
    cluster: Cluster, seed: int
) -> None:
    with KeptInEtcd(cluster) as kept:
        World(seed, kept).run(40)


class ExactlyOnceInEtcd(ExactlyOnce):
    """Besides, writes are held back, and arrive after they were repeated."""

    cluster: ClassVar[Cluster]
    held: ClassVar[int]

    def keep(self) -> KeptInEtcd:
        return KeptInEtcd(self.cluster)

    @property
    def in_etcd(self) -> KeptInEtcd:
        assert isinstance(self.kept, KeptInEtcd)
        return self.kept

    def send(self, client: Client, body: dict[str, Any]) -> None:
        if not self.failing and body["seq"] % 3 == 0:
            self.in_etcd.etcd.hold_next()
        super().send(client, body)

    @rule()
    def what_was_held_back_arrives(self) -> None:
        if hasattr(self, "kept"):
            type(self).held += len(self.in_etcd.etcd.held)
            assert not self.in_etcd.etcd.deliver(), "it was done a second time"

    def teardown(self) -> None:
        try:
            self.what_was_held_back_arrives()
        finally:
            super().teardown()

    def the_store_keeps_nothing_that_is_no_more(self) -> None:
        if not self.batch and hasattr(self, "desk"):
            assert isinstance(self.desk.actor._store, EtcdStore)


@pytest.mark.usefixtures("small_steps", "etcd")
def test_whatever_happens_each_request_happens_once_and_nothing_is_lost(cluster: Cluster) -> None:
    ExactlyOnceInEtcd.cluster, ExactlyOnceInEtcd.held = cluster, 0
    run_state_machine_as_test(
        ExactlyOnceInEtcd,
        settings=settings(
            max_examples=30,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert ExactlyOnceInEtcd.held > 5


def in_etcd(machine: type[DeskMachine], cluster: Cluster) -> type[DeskMachine]:
    """Return a model whose daemon keeps its state in etcd."""
    return type(machine.__name__, (machine,), {"keep": lambda _self: KeptInEtcd(cluster)})


@pytest.mark.usefixtures("small_steps", "etcd")
@pytest.mark.parametrize("machine", [Waiting, Sessions, Quotas, Holds, Follow])
def test_what_a_model_says_holds(cluster: Cluster, machine: type[DeskMachine]) -> None:
    run_machine(in_etcd(machine, cluster), examples=choose(15, 200), steps=40)


def a_restart_skips_the_last_batch() -> Any:
    right = EtcdStore.batches
    return patch.object(EtcdStore, "batches", lambda store: iter(list(right(store))[:-1]))


def a_checkpoint_keeps_nothing_aside() -> Any:
    return patch.object(Buckets, "touch", Buckets.add)


def a_checkpoint_skips_a_bucket() -> Any:
    right = Buckets.begin

    def begin(buckets: Buckets) -> None:
        right(buckets)
        if len(buckets._todo) > 1:
            buckets._todo.pop()

    return patch.object(Buckets, "begin", begin)


@pytest.mark.usefixtures("small_steps", "etcd")
@pytest.mark.parametrize(
    ("machine", "plant"),
    [
        (Holds, a_restart_skips_the_last_batch),
        (Waiting, a_checkpoint_keeps_nothing_aside),
        (Sessions, a_checkpoint_skips_a_bucket),
    ],
)
def test_a_model_finds_a_planted_bug_of_the_store(
    cluster: Cluster, machine: type[DeskMachine], plant: Callable[[], Any]
) -> None:
    assert_finds(in_etcd(machine, cluster), plant)


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    with host.seen():
        yield host


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("fate", ["refuse", "lose", "hold"])
def test_with_any_write_failing_nothing_acknowledged_is_lost_and_nothing_refused_shows(
    cluster: Cluster, etcd: Etcd, host: Host, monkeypatch: pytest.MonkeyPatch, fate: str
) -> None:
    monkeypatch.setattr("trackd.fleet.store._STEP_PARTS", 64)
    monkeypatch.setattr("trackd.fleet.store._STEP_BYTES", 1_000_000)

    def run(plan: dict[int, str]) -> tuple[Trial, KeptInEtcd]:
        with KeptInEtcd(cluster) as kept, KeptInEtcd(cluster) as twin:
            kept.etcd.plan = plan
            trial = Trial(kept, twin, host)
            trial.run()
        return trial, kept

    quiet, kept = run({})
    assert quiet.unavailable == 0
    total = kept.etcd.writes
    assert total > 40
    unavailable = 0
    for number in range(total):
        trial, _ = run({number: fate})
        unavailable += trial.unavailable
        assert trial.deaths == 1  # each run ends with one
        assert trial.acknowledged
    assert (unavailable > 0) == (fate == "refuse")
