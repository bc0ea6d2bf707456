"""Elections among real processes, on three real members: who leads, and who believes so."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from fleet.candidates import (
    KEY,
    ROWS,
    TTL,
    Process,
    no_row_of_a_former_term,
    one_leader_at_a_time,
)
from fleet.cluster import Cluster
from helpers.support import wait_until
from helpers.web import free_port
from trackd.config.exits import LockHeldError
from trackd.fleet import election
from trackd.fleet.election import Candidate
from trackd.fleet.etcd import (
    Ambiguous,
    Compare,
    Etcd,
    Operation,
    Put,
    RangeResult,
    TxnResult,
    create_revision_is,
)
from trackd_client.wire.clock import boottime

T = TypeVar("T")


Start = Callable[[str], Process]


@pytest.fixture
def start(cluster: Cluster, etcd: Etcd, tmp_path: Path) -> Iterator[Start]:
    """Starts candidates; at the end checks that no two of them believed to lead at once."""
    started: list[Process] = []

    def begin(name: str) -> Process:
        made = Process(cluster, tmp_path, name)
        started.append(made)
        wait_until(lambda: made.says("stands") or made.process.poll() is not None)
        return made

    try:
        yield begin
    finally:
        for each in started:
            each.end()
    one_leader_at_a_time(started)
    no_row_of_a_former_term(etcd, started)


def wait_for_leader(*candidates: Process) -> Process:
    wait_until(lambda: any(each.sure() for each in candidates))
    (leader,) = (each for each in candidates if each.sure())
    return leader


def test_one_of_several_leads(etcd: Etcd, start: Start) -> None:
    candidates = [start(name) for name in "abc"]
    leader = wait_for_leader(*candidates)
    (kv,) = etcd.range(KEY).kvs
    assert kv.create_revision == leader.fence
    assert kv.value.decode() == leader.directory.name
    # It goes on for longer than its lease would without keepalives.
    wait_until(lambda: leader.sure()[-1] - leader.sure()[0] > 2 * TTL)
    assert [each.fence for each in candidates if each is not leader] == [0, 0]
    assert etcd.range(KEY).kvs == (kv,)


def test_a_killed_leader_is_replaced(start: Start) -> None:
    candidates = [start(name) for name in "ab"]
    leader = wait_for_leader(*candidates)
    leader.signal(signal.SIGKILL)
    killed = boottime()
    (other,) = (each for each in candidates if each is not leader)
    wait_until(other.sure)
    print(f"replaced after {other.sure()[0] - killed:.1f} s with a TTL of {TTL} s")


def test_a_leader_that_stops_is_replaced_at_once(etcd: Etcd, start: Start) -> None:
    leader = start("a")
    wait_for_leader(leader)
    other = start("b")
    leader.signal(signal.SIGTERM)
    assert leader.process.wait() == 0
    wait_until(other.sure)
    gap = other.sure()[0] - leader.sure()[-1]
    print(f"replaced after {gap:.3f} s")
    assert etcd.range(KEY).kvs[0].create_revision == other.fence > leader.fence


def test_a_candidate_that_stands_by_stops_at_once(start: Start) -> None:
    wait_for_leader(start("a"))
    other = start("b")
    other.signal(signal.SIGTERM)
    assert other.process.wait() == 0
    assert other.fence == 0


def test_a_paused_leader_knows_when_it_wakes_that_its_term_is_over(start: Start) -> None:
    candidates = [start(name) for name in "ab"]
    leader = wait_for_leader(*candidates)
    (other,) = (each for each in candidates if each is not leader)
    leader.signal(signal.SIGSTOP)
    wait_until(other.sure)
    paused = len(leader.sure())
    leader.signal(signal.SIGCONT)
    assert leader.process.wait() == 3
    # One line at the most was under way when it was paused.
    assert len(leader.sure()) <= paused + 1
    assert leader.says("over")


def test_the_next_candidate_of_a_host_ends_the_lease_of_a_killed_one(
    etcd: Etcd, start: Start
) -> None:
    leader = start("a")
    wait_for_leader(leader)
    leader.signal(signal.SIGKILL)
    leader.process.wait()
    (left,) = etcd.range(KEY).kvs
    again = start("a")
    wait_until(again.sure)
    assert etcd.keepalive(left.lease) == 0
    assert again.fence > leader.fence


def test_there_is_one_candidate_of_a_fleet_on_a_host(start: Start) -> None:
    leader = start("a")
    wait_for_leader(leader)
    second = start("a")
    assert second.process.wait() == 1
    assert "is held by pid" in (second.directory / "errors").read_text()
    assert leader.process.poll() is None


def test_the_leader_of_etcd_is_killed_and_one_leads_again(cluster: Cluster, start: Start) -> None:
    candidates = [start(name) for name in "ab"]
    leader = wait_for_leader(*candidates)
    cluster.leader().kill()
    killed = boottime()
    wait_until(lambda: any(each.sure() and each.sure()[-1] > killed + TTL for each in candidates))
    print("the same leads" if leader.sure()[-1] > killed + TTL else "another leads")


def test_while_etcd_has_no_majority_nobody_leads_for_longer_than_the_ttl(
    cluster: Cluster, start: Start
) -> None:
    candidates = [start(name) for name in "ab"]
    leader = wait_for_leader(*candidates)
    (other,) = (each for each in candidates if each is not leader)
    frozen = cluster.followers()
    for member in frozen:
        member.pause()
    try:
        began = boottime()
        assert leader.process.wait() == 3
        # Etcd's leader goes on to prolong leases until it notices that it is alone.
        print(f"over after {leader.sure()[-1] - began:.1f} s with a TTL of {TTL} s")
        assert not other.sure()
    finally:
        for member in frozen:
            member.resume()
    wait_until(other.sure)
    print(f"led again {other.sure()[0] - began:.1f} s after the majority was lost")


def test_a_term_is_over_when_its_lease_is_gone(
    cluster: Cluster, etcd: Etcd, tmp_path: Path
) -> None:
    with candidate(cluster, tmp_path) as mine:
        term = mine.campaign()
        assert term is not None
        assert term.is_valid()
        assert not term.is_valid(margin=TTL + 1)
        (kv,) = etcd.range(KEY).kvs
        assert (kv.create_revision, kv.key) == (term.fence, term.key)
        etcd.revoke(kv.lease)
        wait_until(lambda: not term.is_valid())
    assert not etcd.range(KEY).kvs


class NeverKeepsAlive(Etcd):
    """A client whose keepalives get no answer."""

    def keepalive(self, lease: int) -> int:
        raise Ambiguous("no answer")


def test_a_term_is_over_as_soon_as_its_key_is_deleted(
    cluster: Cluster, etcd: Etcd, tmp_path: Path
) -> None:
    """Etcd may revoke a lease that lives; that is seen without a keepalive."""

    def connect(timeout: float) -> Etcd:
        return NeverKeepsAlive(cluster.endpoints, timeout=timeout)

    with candidate(cluster, tmp_path, connect, ttl=600) as mine:
        term = mine.campaign()
        assert term is not None
        assert term.is_valid(margin=300)
        etcd.revoke(etcd.range(KEY).kvs[0].lease)
        wait_until(lambda: not term.is_valid())


def test_stepping_down_ends_the_term_first_and_the_lease_then(
    cluster: Cluster, etcd: Etcd, tmp_path: Path
) -> None:
    with candidate(cluster, tmp_path) as mine:
        term = mine.campaign()
        assert term is not None
        mine.step_down()
        assert not term.is_valid()
        assert not etcd.range(KEY).kvs
        mine.step_down()


def test_two_candidates_of_a_process_never_share_a_lock(cluster: Cluster, tmp_path: Path) -> None:
    with candidate(cluster, tmp_path), pytest.raises(LockHeldError), candidate(cluster, tmp_path):
        pytest.fail("both have it")
    with candidate(cluster, tmp_path):
        pass


def test_an_election_goes_on_when_etcd_is_back(
    cluster: Cluster, etcd: Etcd, tmp_path: Path
) -> None:
    for member in cluster.members:
        member.kill()
    with candidate(cluster, tmp_path) as mine:
        elected: list[object] = []
        thread = threading.Thread(target=lambda: elected.append(mine.campaign()))
        thread.start()
        try:
            for member in cluster.members:
                member.start()
            wait_until(lambda: elected)
        finally:
            mine.stop()
            thread.join()
        assert elected[0] is not None


def test_what_a_former_leader_still_sends_is_not_admitted(
    cluster: Cluster, etcd: Etcd, tmp_path: Path
) -> None:
    with candidate(cluster, tmp_path) as first:
        former = first.campaign()
    assert former is not None
    held_back = [create_revision_is(former.key, former.fence)], [Put(ROWS, b"late")]
    assert not etcd.txn(*held_back).succeeded
    with candidate(cluster, tmp_path) as second:
        term = second.campaign()
        assert term is not None
        assert term.fence > former.fence
        assert not etcd.txn(*held_back).succeeded
        assert etcd.txn([create_revision_is(term.key, term.fence)], [Put(ROWS, b"now")]).succeeded
    assert etcd.range(ROWS).kvs[0].value == b"now"


class LosesAnswers(Etcd):
    """A client that loses the answer of its first call of a kind, which etcd has done."""

    lost: str

    def txn(
        self,
        compares: Sequence[Compare],
        then: Sequence[Operation],
        otherwise: Sequence[Operation] = (),
    ) -> TxnResult:
        return self._once("txn", super().txn(compares, then, otherwise))

    def grant(self, ttl: int, id: int | None = None) -> int:  # noqa: A002
        return self._once("grant", super().grant(ttl, id))

    def _once(self, kind: str, answer: T) -> T:
        if self.lost == kind:
            self.lost = ""
            raise Ambiguous("the answer is lost")
        return answer


@pytest.mark.parametrize("lost", ["grant", "txn"])
def test_an_election_whose_answer_is_lost_is_won_once(
    cluster: Cluster, etcd: Etcd, tmp_path: Path, lost: str
) -> None:
    def connect(timeout: float) -> Etcd:
        made = LosesAnswers(cluster.endpoints, timeout=timeout)
        made.lost = lost
        return made

    with candidate(cluster, tmp_path, connect) as mine:
        term = mine.campaign()
        assert term is not None
        (kv,) = etcd.range(KEY).kvs
        assert kv.create_revision == term.fence
        assert (kv.version, etcd.keepalive(kv.lease)) == (1, TTL)
    assert etcd.keepalive(kv.lease) == 0


def candidate(
    cluster: Cluster,
    directory: Path,
    connect: Callable[[float], Etcd] | None = None,
    ttl: int = TTL,
) -> Candidate:
    return Candidate(
        connect or (lambda timeout: Etcd(cluster.endpoints, timeout=timeout)),
        b"trackd/1/test/",
        b"here",
        ttl=ttl,
        directory=directory,
        name="test",
    )


class Asked(Etcd):
    """A client that counts how often it is asked for a key."""

    def __init__(self, endpoints: Sequence[str], *, timeout: float) -> None:
        super().__init__(endpoints, timeout=timeout)
        self.count = 0

    def range(self, *words: Any, **options: Any) -> RangeResult:
        self.count += 1
        return super().range(*words, **options)


def test_while_etcd_is_away_the_log_says_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(election, "_AGAIN_SECONDS", 0.01)
    clients: list[Asked] = []

    def connect(timeout: float) -> Etcd:
        clients.append(Asked([f"127.0.0.1:{free_port()}"], timeout=timeout))
        return clients[-1]

    candidate = Candidate(
        connect, b"trackd/1/test/", b"a", ttl=TTL, directory=tmp_path, name="test"
    )
    with candidate:
        waits = threading.Thread(target=candidate.campaign)
        waits.start()
        wait_until(lambda: clients[0].count >= 5)
        candidate.stop()
        waits.join()
    said = [each for each in caplog.messages if each.startswith("etcd cannot be asked who leads: ")]
    assert len(said) == 1
