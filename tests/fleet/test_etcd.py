"""The client of etcd, against real members: what it asks, and what its errors promise."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.cluster import Cluster, Member, free_ports
from helpers.support import wait_until
from trackd.fleet.etcd import (
    NO_END,
    Ambiguous,
    Change,
    Compacted,
    Compare,
    Delete,
    Etcd,
    EtcdError,
    Get,
    NoSpace,
    Put,
    RangeResult,
    Refused,
    Watch,
    create_revision_is,
    mod_revision_is,
    value_is,
    version_is,
)


def keys(found: RangeResult) -> list[bytes]:
    return [kv.key for kv in found.kvs]


def expected(watch: Watch, count: int) -> list[Change]:
    """The next changes of a watch; its own thread would wait for ever for one that is missing."""
    seen: list[Change] = []

    def follow() -> None:
        while len(seen) < count:
            seen.append(next(watch))

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        wait_until(lambda: not thread.is_alive())
    finally:
        watch.cancel()
        thread.join()
    return seen


def test_what_is_put_is_found_with_its_revisions(etcd: Etcd) -> None:
    first = etcd.put(b"a", b"1")
    second = etcd.put(b"a", b"2")
    found = etcd.range(b"a")
    assert found.kvs == ((b"a", b"2", first, second, 2, 0),)
    assert found.revision == second == first + 1
    assert found.cluster_id != 0
    assert etcd.range(b"a", revision=first).kvs[0].value == b"1"
    assert etcd.range(b"nothing").kvs == ()


def test_a_range_ends_before_its_end_and_says_whether_there_is_more(etcd: Etcd) -> None:
    for key in (b"a", b"b", b"c"):
        etcd.put(key, b"")
    assert keys(etcd.range(b"a", b"c")) == [b"a", b"b"]
    assert keys(etcd.range(b"b", NO_END)) == [b"b", b"c"]
    some = etcd.range(b"a", NO_END, limit=2)
    assert (keys(some), some.more) == ([b"a", b"b"], True)
    assert not etcd.range(b"a", NO_END, limit=3).more
    assert etcd.delete_range(b"a", b"c") == 2
    assert keys(etcd.range(b"a", NO_END)) == [b"c"]


def test_a_transaction_does_one_of_two_things(etcd: Etcd) -> None:
    etcd.put(b"old", b"1")
    free = [version_is(b"a", 0)]
    done = etcd.txn(free, [Put(b"a", b"1"), Get(b"old"), Delete(b"old")], [Get(b"a")])
    assert done.succeeded
    put, found, deleted = done.responses
    assert put is None
    assert isinstance(found, RangeResult)
    assert keys(found) == [b"old"]
    assert deleted == 1
    again = etcd.txn(free, [Put(b"a", b"2")], [Get(b"a")])
    assert not again.succeeded
    (found,) = again.responses
    assert isinstance(found, RangeResult)
    assert found.kvs[0].value == b"1"
    assert again.revision == done.revision == found.kvs[0].create_revision
    assert again.cluster_id == etcd.range(b"a").cluster_id


def test_each_comparison_holds_for_what_it_names_and_for_nothing_else(etcd: Etcd) -> None:
    created = etcd.put(b"a", b"1")
    changed = etcd.put(b"a", b"2")

    def holds(compare: Compare) -> bool:
        return etcd.txn([compare], [Get(b"a")]).succeeded

    for make, true, false in (
        (create_revision_is, created, changed),
        (mod_revision_is, changed, created),
        (version_is, 2, 1),
    ):
        assert holds(make(b"a", true))
        assert not holds(make(b"a", false))
        assert not holds(make(b"a", 0))
        assert holds(make(b"absent", 0))
        assert not holds(make(b"absent", true))
    assert holds(value_is(b"a", b"2"))
    assert not holds(value_is(b"a", b"1"))
    assert not holds(value_is(b"absent", b""))
    assert not etcd.txn([version_is(b"a", 2), version_is(b"a", 1)], []).succeeded


def test_a_lease_takes_its_keys_with_it(etcd: Etcd) -> None:
    lease = etcd.grant(60)
    etcd.put(b"a", b"", lease=lease)
    etcd.txn([], [Put(b"b", b"", lease)])
    assert {kv.lease for kv in etcd.range(b"a", NO_END).kvs} == {lease}
    assert etcd.keepalive(lease) == 60
    etcd.revoke(lease)
    assert etcd.range(b"a", NO_END).kvs == ()
    assert etcd.keepalive(lease) == 0
    with pytest.raises(Refused):
        etcd.revoke(lease)
    with pytest.raises(Refused):
        etcd.put(b"a", b"", lease=lease)


def test_a_lease_that_is_not_kept_alive_ends(etcd: Etcd) -> None:
    etcd.put(b"a", b"", lease=etcd.grant(1))
    wait_until(lambda: not etcd.range(b"a").kvs)


def test_a_lease_of_a_given_id_is_granted_once(etcd: Etcd) -> None:
    assert etcd.grant(60, id=4711) == 4711
    with pytest.raises(Refused, match="already exists"):
        etcd.grant(60, id=4711)
    etcd.revoke(4711)


def test_a_watch_shows_past_and_coming_changes_in_order(etcd: Etcd) -> None:
    first = etcd.put(b"a/1", b"1")
    etcd.put(b"b", b"")
    watch = etcd.watch(b"a/", b"a0", first)
    etcd.delete_range(b"a/1")
    etcd.put(b"a/2", b"2")
    seen = expected(watch, 3)
    assert [(each.kv.key, each.kv.value, each.deleted) for each in seen] == [
        (b"a/1", b"1", False),
        (b"a/1", b"", True),
        (b"a/2", b"2", False),
    ]
    assert [each.kv.mod_revision - first for each in seen] == [0, 2, 3]


def test_a_cancelled_watch_ends_and_leaves_no_thread(etcd: Etcd) -> None:
    before = threading.active_count()
    watch = etcd.watch(b"a", None, etcd.range(b"a").revision)
    seen: list[Change] = []
    thread = threading.Thread(target=lambda: seen.extend(watch))
    thread.start()
    watch.cancel()
    watch.cancel()
    thread.join(60)
    assert not thread.is_alive()
    assert seen == []
    wait_until(lambda: threading.active_count() <= before)


def test_what_is_compacted_away_is_refused_as_such(etcd: Etcd) -> None:
    old = etcd.put(b"a", b"1")
    new = etcd.put(b"a", b"2")
    etcd.compact(new)
    with pytest.raises(Compacted):
        etcd.range(b"a", revision=old)
    assert etcd.range(b"a", revision=new).kvs[0].value == b"2"
    with etcd.watch(b"a", None, old) as watch, pytest.raises(Compacted) as gone:
        next(watch)
    assert gone.value.revision == new
    with pytest.raises(Compacted):
        etcd.compact(old)


def test_what_is_too_large_or_too_much_is_refused(etcd: Etcd) -> None:
    with pytest.raises(Refused, match="too large"):
        etcd.put(b"a", bytes(2_000_000))
    with pytest.raises(Refused, match=r"too large|larger than max"):
        etcd.put(b"a", bytes(20_000_000))
    with pytest.raises(Refused, match="too many operations"):
        etcd.txn([], [Put(b"%d" % number, b"") for number in range(129)])
    assert etcd.range(b"\0", NO_END).kvs == ()


def test_each_member_tells_how_it_is(cluster: Cluster, etcd: Etcd) -> None:
    told = [etcd.status(endpoint) for endpoint in cluster.endpoints]
    assert len({each.member_id for each in told}) == 3
    assert len({each.leader for each in told}) == 1
    assert all(each.version.startswith("3.") and each.db_size > 0 for each in told)
    assert all(each.errors == () for each in told)
    assert etcd.alarms() == ()


def test_without_a_connection_it_is_refused() -> None:
    (port,) = free_ports(1)
    with Etcd([f"127.0.0.1:{port}"], timeout=30) as etcd, pytest.raises(Refused):
        etcd.put(b"a", b"")


def test_a_member_that_does_not_answer_from_the_start_gets_no_write(
    cluster: Cluster, etcd: Etcd
) -> None:
    silent = cluster.followers()[0]
    with Etcd([silent.endpoint], timeout=0.5) as mine:
        with silent.paused(), pytest.raises(Refused):
            mine.put(b"a", b"")
        with cluster.client():
            cluster.wait_until_healthy()
        mine.put(b"b", b"")
    assert keys(etcd.range(b"a", NO_END)) == [b"b"]


def test_the_next_call_goes_to_another_member(cluster: Cluster, etcd: Etcd) -> None:
    silent, other = cluster.followers()
    with Etcd([silent.endpoint, other.endpoint], timeout=2.0) as mine:
        mine.put(b"a", b"1")
        with silent.paused():
            with pytest.raises(Ambiguous):
                mine.put(b"a", b"2")
            mine.put(b"b", b"3")
            mine.put(b"b", b"4")  # and it stays there
    assert etcd.range(b"b").kvs[0].value == b"4"


def test_a_member_that_is_back_is_used_again(cluster: Cluster, etcd: Etcd) -> None:
    member = cluster.followers()[0]
    with Etcd([member.endpoint], timeout=5.0) as mine:
        mine.put(b"a", b"1")
        member.kill()
        with pytest.raises(EtcdError):
            mine.put(b"a", b"2")
        with pytest.raises(Refused):
            mine.put(b"a", b"3")
        member.start()
        wait_until(lambda: written(mine, b"b", b"4"))
    assert etcd.range(b"b").kvs[0].value == b"4"


def written(etcd: Etcd, key: bytes, value: bytes) -> bool:
    try:
        etcd.put(key, value)
    except EtcdError:
        return False
    return True


def test_an_ambiguous_write_may_have_been_done(cluster: Cluster, etcd: Etcd) -> None:
    """The majority is paused for less than an election takes, and the client waits for less."""
    happened: list[bytes] = []

    def try_once() -> bool:
        key = b"try/%d" % time.monotonic_ns()
        leader = cluster.leader()
        with Etcd([leader.endpoint], timeout=5.0) as first:
            first.range(b"a")
        with Etcd([leader.endpoint], timeout=0.3) as mine:
            try:
                mine.range(b"a")
                with pause_all([each for each in cluster.members if each is not leader]):
                    mine.put(key, b"")
            except Refused:
                return False
            except Ambiguous:
                cluster.wait_until_healthy()
                if etcd.range(key).kvs:
                    happened.append(key)
        return bool(happened)

    wait_until(try_once, 300)


class pause_all:  # noqa: N801 - used like a function
    """Pause several members for a `with` block."""

    def __init__(self, members: list[Member]) -> None:
        self._members = members

    def __enter__(self) -> None:
        for member in self._members:
            member.pause()

    def __exit__(self, *_: object) -> None:
        for member in self._members:
            member.resume()


def test_a_watch_ends_when_its_member_is_cut_off(cluster: Cluster, etcd: Etcd) -> None:
    alone, *others = cluster.members
    with Etcd([alone.endpoint], timeout=5.0) as mine:
        watch = mine.watch(b"a", None, etcd.range(b"a").revision)
        etcd.put(b"a", b"")
        assert next(watch).kv.key == b"a"
        ended: list[EtcdError] = []

        def follow() -> None:
            try:
                next(watch)
            except EtcdError as error:
                ended.append(error)

        thread = threading.Thread(target=follow)
        thread.start()
        try:
            with pause_all(others):
                wait_until(lambda: ended)
        finally:
            watch.cancel()
            thread.join()


def test_a_watch_ends_when_its_member_is_killed(cluster: Cluster, etcd: Etcd) -> None:
    member = cluster.followers()[0]
    with (
        Etcd([member.endpoint], timeout=5.0) as mine,
        mine.watch(b"a", None, etcd.range(b"a").revision + 1) as watch,
    ):
        etcd.put(b"a", b"")
        assert next(watch).kv.key == b"a"
        member.kill()
        with pytest.raises(EtcdError):
            next(watch)
        assert list(watch) == []


def test_a_closed_client_sends_nothing(cluster: Cluster, etcd: Etcd) -> None:
    mine = cluster.client()
    mine.put(b"a", b"")
    mine.close()
    mine.close()
    with pytest.raises(Refused, match="closed"):
        mine.put(b"b", b"")
    with pytest.raises(Refused, match="closed"):
        mine.watch(b"a", None, 1)
    assert keys(etcd.range(b"\0", NO_END)) == [b"a"]


def test_a_write_that_finds_no_space_may_have_been_done_and_is_decided() -> None:
    """Several at once: what etcd has let in when the quota is reached, it applies."""
    refused: list[bytes] = []
    with Cluster("--quota-backend-bytes=16777216", size=1) as small:

        def fill(number: int) -> None:
            with small.client(timeout=60) as mine:
                for count in range(1000):
                    key = b"%d/%d" % (number, count)
                    try:
                        mine.put(key, bytes(300_000))
                    except NoSpace:
                        refused.append(key)
                        return

        threads = [threading.Thread(target=fill, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with small.client(timeout=60) as mine:
            assert len(refused) == 8
            done = [key for key in refused if mine.range(key).kvs]
            assert done
            assert [alarm.kind for alarm in mine.alarms()] == ["NOSPACE"]
            assert "NOSPACE" in mine.status(small.endpoints[0]).errors[0]
            with pytest.raises(NoSpace):
                mine.put(b"more", b"")
            assert not mine.range(b"more").kvs
            assert [key for key in refused if mine.range(key).kvs] == done


@pytest.mark.parametrize(
    ("ca", "cert", "key"), [(None, "c", "k"), ("ca", "c", None), ("ca", None, "k")]
)
def test_half_a_certificate_is_wrong_usage(
    ca: str | None, cert: str | None, key: str | None
) -> None:
    ca_path, cert_path, key_path = (
        None if each is None else Path(each) for each in (ca, cert, key)
    )
    with pytest.raises(ValueError, match="certificate needs"):
        Etcd(["127.0.0.1:1"], ca=ca_path, cert=cert_path, key=key_path, timeout=1)


@pytest.fixture(scope="module")
def locked(certificates: Path) -> Iterator[Cluster]:
    """One member that wants TLS and a client certificate."""
    with Cluster(size=1, tls=certificates) as made:
        yield made


def test_a_client_certificate_lets_in(locked: Cluster, certificates: Path) -> None:
    with locked.client() as etcd:
        etcd.put(b"a", b"1")
        assert etcd.range(b"a").kvs[0].value == b"1"


@pytest.mark.parametrize("ca", [None, "ca.pem"])
def test_without_a_client_certificate_it_is_refused(
    locked: Cluster, certificates: Path, ca: str | None
) -> None:
    path = None if ca is None else certificates / ca
    with Etcd(locked.endpoints, ca=path, timeout=5) as etcd, pytest.raises(Refused):
        etcd.put(b"a", b"2")


def test_a_member_that_another_authority_signed_is_refused(
    locked: Cluster, certificates: Path
) -> None:
    files = {"cert": certificates / "client.pem", "key": certificates / "client.key"}
    with (
        Etcd(locked.endpoints, ca=certificates / "client.pem", timeout=5, **files) as etcd,
        pytest.raises(Refused),
    ):
        etcd.put(b"a", b"2")
