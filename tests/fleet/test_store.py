"""The store of a fleet on three real members of etcd: the contract of every store, and its own.

Faults that need a certain moment are made in the client: a call that is refused, whose answer is
lost, or that is held back and delivered later. The others are made in etcd itself.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fleet.cluster import Cluster
from fleet.stores import KeptInEtcd, heal
from helpers.store_contract import Model, StoreContract, load
from trackd.fleet import fenced as fenced_module
from trackd.fleet.etcd import NO_END, Delete, Etcd, Operation
from trackd.fleet.rows import Keys, Meta, pack, read_head, split_batch, unpack
from trackd.fleet.store import EtcdStore
from trackd.storage.store import DamagedError, DeposedError, NewerError, StoreError


@pytest.fixture
def kept(cluster: Cluster, etcd: Etcd) -> Iterator[KeptInEtcd]:
    with KeptInEtcd(cluster) as kept:
        yield kept


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    KeptInEtcd.small_steps(monkeypatch)


class TestEtcdStore(StoreContract):
    """What every store must do; the fixtures are those above."""


# -- ambiguity ---------------------------------------------------------------------------


def test_a_row_held_back_and_delivered_after_its_own_success_changes_nothing(
    kept: KeptInEtcd, etcd: Etcd
) -> None:
    model = Model(kept)
    model.edit(a=1)
    kept.etcd.hold_next()
    assert model.edit(a=2)  # its repetition
    before = everything(etcd)
    assert not kept.etcd.deliver()
    assert everything(etcd) == before
    model.edit(a=3)
    kept.etcd.hold_next()
    model.edit(b=1)
    model.edit(b=2)
    model.edit(b=3)
    before = everything(etcd)
    assert not kept.etcd.deliver()
    assert everything(etcd) == before
    model.reopen()


def test_whatever_is_held_back_and_delivered_later_changes_nothing(
    kept: KeptInEtcd, etcd: Etcd, small_steps: None
) -> None:
    """Each kind of write in turn: rows, parts of buckets, the manifest, deletions."""
    model = Model(kept)
    kinds = set()
    for number in range(40):
        kept.etcd.hold_next()
        model.edit(**{f"n{number % 7}": number})
        for _ in range(6):
            kept.etcd.hold_next()
            model.store.step()
            before = everything(etcd)
            for held in list(kept.etcd.held):
                kinds |= {kind_of(each) for each in held.then}
            assert not kept.etcd.deliver()
            assert everything(etcd) == before
    kept.fail_no_more()
    model.reopen()
    assert kinds == {"head", "journal", "state", "manifest", "meta", "deletion"}


def test_a_deletion_of_a_tail_that_comes_late_deletes_no_row_that_was_written_since(
    kept: KeptInEtcd, etcd: Etcd
) -> None:
    model = Model(kept)
    model.edit(a=1)
    leave_a_tail(model, kept)
    kept.etcd.hold_next()
    assert model.edit(a=2)
    (held,) = kept.etcd.held
    assert isinstance(held.then[0], Delete)
    assert not kept.etcd.deliver()
    model.reopen()
    assert model.values == {("meta", "a"): 2}


def leave_a_tail(model: Model, kept: KeptInEtcd) -> None:
    """Let a batch of several rows be refused after its first one."""
    noise = random.Random(1).randbytes(2_000_000)
    kept.etcd.refuse_after = 1
    with pytest.raises(StoreError):
        model.store.append(noise)


def test_an_unfinished_tail_is_ignored_and_deleted_before_the_next_write(
    kept: KeptInEtcd, etcd: Etcd
) -> None:
    model = Model(kept)
    model.edit(a=1)
    leave_a_tail(model, kept)
    model.reopen()
    assert head(etcd) == 2, "reading has changed something"
    model.reopen()
    model.edit(a=2)
    assert head(etcd) == 2
    assert len(journal(etcd)) == 2
    model.reopen()
    leave_a_tail(model, kept)
    assert model.edit(a=3)  # by the same process
    model.reopen()


def test_a_refused_repetition_of_what_may_have_happened_is_no_refusal(
    kept: KeptInEtcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(kept)
    model.edit(a=1)
    kept.etcd.hold_next()
    kept.etcd.refuse_after = 0
    assert model.edit(a=2)
    monkeypatch.setattr(fenced_module, "_UNSURE_SECONDS", 0.2)
    kept.etcd.hold_next()
    kept.etcd.refuse_all = True
    with pytest.raises(DeposedError, match="not known"):
        model.edit(a=3)
    model.values["meta", "a"] = 2
    kept.etcd.refuse_all = False
    assert kept.etcd.deliver(), "it was done, after this process had given it up"
    model.values["meta", "a"] = 3
    model.reopen()


# -- whose store ---------------------------------------------------------------------------


def test_a_leader_that_was_replaced_writes_nothing_more(kept: KeptInEtcd, etcd: Etcd) -> None:
    old = Model(kept)
    old.edit(a=1)
    store = kept.leave()
    new = Model(kept, old.values)
    before = everything(etcd)
    with pytest.raises(DeposedError, match="another process leads"):
        store.append(b"late")
    with pytest.raises(DeposedError, match="another process leads"):
        store.begin_reading()
    assert everything(etcd) == before
    assert new.edit(a=2)
    new.reopen()
    store.close()


def test_a_leader_whose_key_is_gone_writes_nothing_more(kept: KeptInEtcd, etcd: Etcd) -> None:
    model = Model(kept)
    model.edit(a=1)
    etcd.delete_range(kept.leader)
    with pytest.raises(DeposedError):
        model.store.append(b"late")
    assert head(etcd) == 1


def test_whoever_does_not_know_that_it_leads_repeats_nothing(kept: KeptInEtcd) -> None:
    model = Model(kept)
    model.edit(a=1)
    kept.leads = False
    kept.etcd.hold_next()
    with pytest.raises(DeposedError, match="does not lead"):
        model.store.append(b"late")


def test_whoever_leads_by_the_clock_has_the_store_and_nobody_else(kept: KeptInEtcd) -> None:
    store = Model(kept).store
    store.check_owner()
    kept.leads = False
    with pytest.raises(DeposedError, match="is over"):
        store.check_owner()


def test_another_etcd_begins_empty(kept: KeptInEtcd, etcd: Etcd, small_steps: None) -> None:
    """As after a restored backup: what is there may be older than what was acknowledged."""
    model = Model(kept)
    for number in range(9):
        model.edit(a=number)
        model.store.step()
    keys = Keys(kept.prefix)
    meta = Meta(*unpack(etcd.range(keys.meta).kvs[0].value))
    etcd.put(keys.meta, pack(meta._replace(etcd=meta.etcd ^ 1)))
    model.values = {}
    model.reopen()
    before = everything(etcd)
    model.reopen()
    assert everything(etcd) == before, "reading has changed something"
    assert model.edit(b=1)
    model.reopen()
    assert len(journal(etcd)) == 1


def test_an_etcd_that_has_lost_acknowledged_rows_begins_empty_under_its_old_id_too(
    kept: KeptInEtcd, etcd: Etcd, tmp_path: Path
) -> None:
    """So it is after a restore under the same names and token: the cluster id is the same."""
    one, other = tmp_path / "one.mark", tmp_path / "other.mark"
    kept.marks = one
    model = Model(kept)
    model.edit(a=1)
    backup = {key: value for key, (value, _) in everything(etcd).items()}
    model.reopen()  # nothing is lost
    kept.marks = other
    model.reopen()  # nor has another host a mark
    model.edit(a=2)
    etcd.delete_range(kept.prefix, kept.prefix + b"\xff")
    for key, value in backup.items():
        etcd.put(key, value)
    kept.marks = one
    model.values = {("meta", "a"): 1}
    model.reopen()  # this host has not led since the backup: it cannot know
    kept.marks = other
    model.values = {}
    model.reopen()
    assert model.edit(a=3)
    for kept.marks in (one, other, None):
        model.reopen()  # marks of the time before say nothing


def test_what_a_newer_trackd_has_written_stops_the_start(kept: KeptInEtcd, etcd: Etcd) -> None:
    model = Model(kept)
    model.edit(a=1)
    keys = Keys(kept.prefix)
    meta = Meta(*unpack(etcd.range(keys.meta).kvs[0].value))
    etcd.put(keys.meta, pack(meta._replace(format=99)))
    before = everything(etcd)
    with pytest.raises(NewerError, match="format 99"):
        kept.open().begin_reading()
    assert everything(etcd) == before


def lose_a_row(etcd: Etcd, keys: Keys) -> None:
    etcd.delete_range(keys.row(2))


def lose_the_last_row(etcd: Etcd, keys: Keys) -> None:
    etcd.delete_range(keys.row(3))


def lose_the_head(etcd: Etcd, keys: Keys) -> None:
    etcd.delete_range(keys.head)


def garble_a_row(etcd: Etcd, keys: Keys) -> None:
    etcd.put(keys.row(2), b"\1garbled")


def forget_a_mark(etcd: Etcd, keys: Keys) -> None:
    etcd.put(keys.row(2), b"x" + split_batch(b"x")[0][1:])


def garble_the_manifest(etcd: Etcd, keys: Keys) -> None:
    etcd.put(keys.manifest, b"\xc1")


def garble_a_bucket(etcd: Etcd, keys: Keys) -> None:
    etcd.put(keys.manifest, pack((5, 0, 0)))
    etcd.put(keys.bucket(5, 3, 0), b"garbled")


@pytest.mark.parametrize(
    "damage",
    [
        lose_a_row,
        lose_the_last_row,
        lose_the_head,
        garble_a_row,
        forget_a_mark,
        garble_the_manifest,
        garble_a_bucket,
    ],
)
def test_what_cannot_be_read_is_damage_and_is_not_put_away(
    kept: KeptInEtcd, etcd: Etcd, damage: Callable[[Etcd, Keys], None]
) -> None:
    model = Model(kept)
    for number in range(3):
        model.edit(a=number)
    damage(etcd, Keys(kept.prefix))
    store = kept.open()
    with pytest.raises(DamagedError):
        load(store)
    before = everything(etcd)
    with pytest.raises(StoreError, match="etcdctl del --prefix trackd/1/"):
        store.set_aside("for the test")
    assert everything(etcd) == before


# -- in etcd -------------------------------------------------------------------------------


def test_whoever_waits_for_the_reading_sees_that_it_goes_on(
    kept: KeptInEtcd, etcd: Etcd, small_steps: None
) -> None:
    model = Model(kept)
    for number in range(20):
        model.edit(**{f"n{number}": number})
    model.finish_checkpoint()
    model.edit(a=1)
    model.edit(a=2)
    read: list[None] = []
    with Etcd(etcd.endpoints, timeout=30.0) as other:
        store = EtcdStore(other, kept.prefix, kept.fence, note_read=lambda: read.append(None))
        store.begin_reading()
        from_etcd = len(read)
        assert from_etcd >= 3  # a bucket at least, and two rows
        assert len([*store.batches()]) == len(read) - from_etcd == 2


def test_a_checkpoint_leaves_no_row_and_no_other_generation(
    kept: KeptInEtcd, etcd: Etcd, small_steps: None
) -> None:
    model = Model(kept)
    for number in range(30):
        model.edit(**{f"n{number}": number})
        model.store.step()
        if number % 10 == 0:
            model.reopen()  # leaves a generation that is not valid
    model.finish_checkpoint()
    generations = {each.split(b"/")[4] for each in everything(etcd) if b"/state/" in each}
    assert len(generations) == 1
    assert not journal(etcd)
    model.reopen()


def test_compaction_while_it_is_read_begins_the_reading_again(
    kept: KeptInEtcd, etcd: Etcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trackd.fleet.store._PAGE", 2)
    model = Model(kept)
    for number in range(9):
        model.edit(a=number)
    compacted = []

    def compact(read: int) -> None:
        if read == 3:
            revision = etcd.put(b"other", b"")
            etcd.compact(revision)
            compacted.append(revision)

    store = kept.open()
    kept.etcd.before_read = compact
    assert load(store) == model.values
    assert compacted
    kept.etcd.before_read = lambda _: etcd.compact(etcd.put(b"other", b""))
    with pytest.raises(StoreError, match="compacts"):
        store.begin_reading()


def test_members_paused_in_mid_stream_each_batch_is_stored_once(
    cluster: Cluster, kept: KeptInEtcd, small_steps: None
) -> None:
    """Pauses of the leader of etcd and of others, while batches are stored one after the other.

    It goes on until a batch was not answered and turned out to have been stored.
    """
    kept.timeout = 0.4
    model = Model(kept)
    store = model.store
    assert isinstance(store, EtcdStore)
    over = threading.Event()
    chance = random.Random(time.time_ns())

    def pause_members() -> None:
        while not over.is_set():
            over.wait(chance.uniform(0.0, 0.3))
            with chance.choice(cluster.members).paused():
                over.wait(chance.uniform(0.3, 1.2))

    pauses = threading.Thread(target=pause_members)
    pauses.start()
    stored = 0
    try:
        until = time.monotonic() + 120
        while not (store.found_done >= 2 and stored > 50) and time.monotonic() < until:
            stored += model.edit(**{f"n{stored % 20}": stored})
            with contextlib.suppress(StoreError):
                store.step()
    finally:
        over.set()
        pauses.join()
    assert store.found_done >= 2, "no batch that had happened went unanswered"
    cluster.wait_until_healthy()
    kept.timeout = 5.0
    model.reopen()


def test_without_space_it_refuses_reads_on_and_heals(
    small_steps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        Cluster("--quota-backend-bytes=4194304", size=1) as cluster,
        KeptInEtcd(cluster) as kept,
    ):
        model = Model(kept)
        noise = random.Random(2)
        tried = refused = 0
        while refused < 6:
            refused += not model.edit(a=noise.randbytes(100_000))
            try:
                model.finish_checkpoint()
            except StoreError:
                refused += 1
            tried += 1
            assert tried < 200, "etcd has no quota"
        assert not model.edit(b=1)  # and what it reads is what it had stored
        monkeypatch.setattr("trackd.fleet.store._DUE_ROWS", 0)
        with pytest.raises(StoreError, match="space"):
            model.store.step()
        monkeypatch.setattr("trackd.fleet.store._DUE_ROWS", 2)
        assert load(kept.again()) == model.values
        heal(cluster)
        assert model.edit(b=2)
        model.finish_checkpoint()
        model.reopen()


def everything(etcd: Etcd) -> dict[bytes, tuple[bytes, int]]:
    """Return all keys but the leader's, with their values and revisions."""
    found = etcd.range(b"\0", NO_END).kvs
    return {
        each.key: (each.value, each.mod_revision)
        for each in found
        if not each.key.endswith(b"/leader")
    }


def journal(etcd: Etcd) -> list[bytes]:
    return [key for key in everything(etcd) if b"/journal/" in key]


def head(etcd: Etcd) -> int:
    (value,) = [value for key, (value, _) in everything(etcd).items() if key.endswith(b"/head")]
    return read_head(value).row


def kind_of(operation: Operation) -> str:
    """Return what an operation writes."""
    if isinstance(operation, Delete):
        return "deletion"
    return operation.key.split(b"/")[3].decode()
