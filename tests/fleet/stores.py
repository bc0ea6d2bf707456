"""Stores of a fleet on real members of etcd, and a client whose calls fail as a test says."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fleet.cluster import Cluster
from helpers.kept import Kept
from trackd.fleet.etcd import (
    Ambiguous,
    Compare,
    Etcd,
    Operation,
    RangeResult,
    Refused,
    TxnResult,
)
from trackd.fleet.etcd_messages import MESSAGES
from trackd.fleet.fenced import Fence
from trackd.fleet.store import EtcdStore

_numbers = itertools.count(1)


class Held(NamedTuple):
    """A transaction that is still under way to etcd."""

    compares: Sequence[Compare]
    then: Sequence[Operation]
    otherwise: Sequence[Operation]


class FaultyEtcd(Etcd):
    """A client whose writes fail when a test asks for it.

    Attributes:
        plan: what becomes of which write of all clients, counted from 0: `refuse`, `lose`, `hold`.
        writes: how many there were.
        held: transactions that have not arrived yet.
        refuse_after: writes that are done before one is refused; None: none is refused.
        refuse_all: whether all writes are refused, until this is changed.
        lose_next: whether the answer to the next write gets lost.
        before_read: called with the number of each `range`.
    """

    def __init__(self, endpoints: Sequence[str], **settings: Any) -> None:
        super().__init__(endpoints, **settings)
        self.plan: dict[int, str] = {}
        self.writes = 0
        self.held: list[Held] = []
        self.refuse_after: int | None = None
        self.refuse_all = False
        self.lose_next = False
        self.before_read: Callable[[int], object] = lambda _: None
        self._hold = False
        self._reads = itertools.count(1)

    def hold_next(self) -> None:
        """Let the next write arrive only when `deliver` is called; it gets no answer."""
        self._hold = True

    def deliver(self) -> bool:
        """Let what was held back arrive; return whether any of it was done."""
        held, self.held = self.held, []
        done = [super(FaultyEtcd, self).txn(*each).succeeded for each in held]
        return any(done)

    def txn(
        self,
        compares: Sequence[Compare],
        then: Sequence[Operation],
        otherwise: Sequence[Operation] = (),
    ) -> TxnResult:
        if not compares:  # it only reads
            return super().txn(compares, then, otherwise)
        fate = self.plan.get(self.writes)
        self.writes += 1
        if self._hold or fate == "hold":
            self._hold = False
            self.held.append(Held(compares, then, otherwise))
            raise Ambiguous("held back by the test")
        if self.refuse_all or fate == "refuse":
            raise Refused("refused by the test")
        if self.refuse_after is not None:
            if self.refuse_after == 0:
                self.refuse_after = None
                raise Refused("refused by the test")
            self.refuse_after -= 1
        result = super().txn(compares, then, otherwise)
        if self.lose_next or fate == "lose":
            self.lose_next = False
            raise Ambiguous("the answer got lost in the test")
        return result

    def range(
        self,
        key: bytes,
        end: bytes | None = None,
        *,
        revision: int | None = None,
        limit: int | None = None,
    ) -> RangeResult:
        self.before_read(next(self._reads))
        return super().range(key, end, revision=revision, limit=limit)


class _Shared(Etcd):
    """A client of several stores, none of which closes it."""

    def close(self) -> None:
        pass


class KeptInEtcd(Kept):
    """The keys of one fleet, and one leader after the other.

    Attributes:
        prefix: of the keys.
        leader: the key of who leads.
        etcd: the client of the present leader.
        leads: what the present leader believes of itself.
        timeout: of the next leader's calls, in seconds.
        marks: where the host of the next leader keeps its mark, if anywhere.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.prefix = b"trackd/1/test-%d/" % next(_numbers)
        self.leader = self.prefix + b"leader"
        self.leads = True
        self.timeout = 5.0
        self.marks: Path | None = None
        self._cluster = cluster
        self.etcd = self.client()
        self._reader = _Shared(cluster.endpoints, timeout=30.0)
        self._store: EtcdStore | None = None

    def client(self) -> FaultyEtcd:
        """Return the client of the next leader."""
        return FaultyEtcd(self._cluster.endpoints, timeout=self.timeout)

    def open(self) -> EtcdStore:
        """Open the store as the next leader; the client of the one before is closed."""
        if self._store is not None:
            self._store.close()
        self._reader.delete_range(self.leader)
        self.fence = Fence(self.leader, self._reader.put(self.leader, b""))
        before = self.etcd
        self.etcd = self.client()
        self.etcd.plan, self.etcd.writes = before.plan, before.writes
        self.etcd.held = before.held
        self._store = EtcdStore(
            self.etcd,
            self.prefix,
            self.fence,
            lambda: self.leads,
            mark_path=self.marks,
            boot_id="this boot",
        )
        return self._store

    def again(self) -> EtcdStore:
        return EtcdStore(self._reader, self.prefix, self.fence)

    def leave(self) -> EtcdStore:
        """Return the store of the present leader, which does not end when it is replaced."""
        store, self._store = self._store, None
        assert store is not None
        return store

    def refuse_next(self, after: int = 0) -> None:
        self.etcd.refuse_after = after

    def lose_next_answer(self) -> None:
        self.etcd.lose_next = True

    def fail_no_more(self) -> None:
        self.etcd.refuse_after, self.etcd.lose_next, self.etcd._hold = None, False, False
        self.etcd.plan = {}

    def close(self) -> None:
        if self._store is not None:
            self._store.close()
        self.etcd.close()
        Etcd.close(self._reader)

    @staticmethod
    def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("trackd.fleet.store._DUE_ROWS", 2)
        monkeypatch.setattr("trackd.fleet.store._STEP_BYTES", 1)
        monkeypatch.setattr("trackd.fleet.store._STEP_PARTS", 1)
        monkeypatch.setattr("trackd.fleet.store._STEP_ROWS", 3)


def heal(cluster: Cluster) -> None:
    """Compact, defragment, and take the alarms back, as an administrator does with etcdctl."""
    with cluster.client(timeout=60.0) as etcd:
        etcd.compact(etcd.range(b"any").revision)
        for member in cluster.members:
            empty = MESSAGES["StatusRequest"]()
            etcd._call("Maintenance/Defragment", empty, "StatusResponse", endpoint=member.endpoint)
        for alarm in etcd.alarms():
            off = MESSAGES["AlarmRequest"](action=2, member_id=alarm.member_id, alarm=1)
            etcd._call("Maintenance/Alarm", off, "AlarmResponse")
