"""What every store of the writer must do (`trackd.storage.store`), as tests of any of them.

A test module has a subclass of `StoreContract` whose fixture `kept` returns a `Kept`: what outlives
the processes that open it, and how its faults are made.
"""

from __future__ import annotations

import contextlib
import random
from typing import Any

import msgpack
import pytest

from helpers.kept import Kept
from trackd.storage.store import DamagedError, Key, Store, StoreError

KINDS = ("lease", "meta", "session")


class Model:
    """A store and what must be in it: values by key, edited as the writer edits its state."""

    def __init__(self, kept: Kept, values: dict[Key, Any] | None = None) -> None:
        self.kept = kept
        self.values: dict[Key, Any] = dict(values or {})
        self.store = kept.open()
        self.read()

    def read(self) -> None:
        """Load what is stored as the writer does, and compare it with the values."""
        found = load(self.store)
        assert found == self.values
        self.store.row_of = self.values.get

    def edit(self, **named: Any) -> bool:
        """Store a batch that gives names new values (None: gone); return whether it is stored."""
        before = dict(self.values)
        for name, value in named.items():
            key: Key = ("meta", name)
            self.store.touch([key])
            if value is None:
                self.values.pop(key, None)
            else:
                self.values[key] = value
        try:
            self.store.append(msgpack.packb(list(named.items())))
        except StoreError:
            self.values = before
            self.store.begin_reading()
            self.read()
            return False
        return True

    def reopen(self) -> None:
        """Let the process be killed, and the next one load what is stored."""
        self.store = self.kept.open()
        self.store.begin_reading()
        self.read()

    def finish_checkpoint(self) -> None:
        """Take steps until nothing is left to do."""
        for _ in range(100_000):
            if not self.store.has_work:
                return
            self.store.step()
        raise AssertionError("a checkpoint never ends")


def load(store: Store) -> dict[Key, Any]:
    """Return the values that a start would find."""
    store.begin_reading()
    found = {(kind, key): value for kind in KINDS for key, value in store.rows(kind)}
    for batch in store.batches():
        for name, value in msgpack.unpackb(batch):
            store.touch([("meta", name)])
            found.pop(("meta", name), None)
            if value is not None:
                found["meta", name] = value
    return found


class StoreContract:
    """The tests; a subclass has the fixtures `kept` and `small_steps`."""

    def test_what_a_note_says_is_stored_is_there_for_the_next_process(self, kept: Kept) -> None:
        model = Model(kept)
        noted: dict[bytes, list[int]] = {}
        for number in range(1, 40):
            token = bytes([number % 5]) * 16
            ranges = [1, number] if number % 2 else [1, 2, 4, number + 8]
            if model.store.note_done(token, ranges):
                noted[token] = ranges
            if number % 7 == 0:
                assert model.edit(a=number)
            if number % 11 == 0:
                model.store.forget_done(token)
                noted.pop(token, None)
            if number % 9 == 0:
                model.reopen()
                for gone in model.store.noted_done().keys() - noted.keys():
                    model.store.forget_done(gone)
            assert model.store.noted_done() == noted

    def test_batches_come_back_in_their_order_from_the_next_process(self, kept: Kept) -> None:
        model = Model(kept)
        for number in range(20):
            assert model.edit(a=number, b=2**64 - 1, c=None if number % 2 else "c")
        model.reopen()
        assert model.values["meta", "a"] == 19

    def test_a_batch_of_some_megabytes_comes_back(self, kept: Kept) -> None:
        model = Model(kept)
        noise = random.Random(1).randbytes(3_000_000)
        assert model.edit(a=noise, b="x" * 3_000_000)
        assert model.edit(c=1)
        model.reopen()
        assert model.edit(c=2)
        model.reopen()

    def test_keys_may_be_text_bytes_integers_or_lists_and_come_in_their_order(
        self, kept: Kept, small_steps: None
    ) -> None:
        model = Model(kept)
        keys: list[Key] = [("lease", 2**63 + 5), ("lease", 7), ("lease", 300)]
        keys += [("session", bytes(16)), ("session", (b"token", 4)), ("session", "name")]
        for key in keys:
            model.store.touch([key])
            model.values[key] = {"value": [key[1], 2**64 - 1]}
        for number in range(3):
            model.edit(a=number)
        model.finish_checkpoint()
        store = kept.open()
        store.begin_reading()
        for kind in ("lease", "session"):
            found = [key for key, _ in store.rows(kind)]
            wanted = [key for each, key in keys if each == kind]
            assert found == sorted(wanted, key=lambda key: bytes(msgpack.packb(key)))
        assert [value["value"][1] for _, value in store.rows("lease")] == [2**64 - 1] * 3
        assert not list(store.rows("unknown"))
        assert not list(store.batches())

    def test_a_checkpoint_takes_in_the_journal_and_then_nothing_is_left_to_do(
        self, kept: Kept, small_steps: None
    ) -> None:
        model = Model(kept)
        for number in range(60):
            model.edit(**{f"n{number}": number})
        model.edit(n1=None)
        assert model.store.has_work
        model.finish_checkpoint()
        store = kept.open()
        store.begin_reading()
        assert dict(store.rows("meta")) == {f"n{n}": n for n in range(60) if n != 1}
        assert not list(store.batches())

    def test_a_refused_batch_leaves_nothing_and_the_next_one_is_stored(self, kept: Kept) -> None:
        model = Model(kept)
        assert model.edit(a=1)
        kept.refuse_next()
        assert not model.edit(a=2, b=2)
        assert model.edit(c=3)
        kept.refuse_next()
        assert not model.edit(a=4)
        model.reopen()
        assert model.values == {("meta", "a"): 1, ("meta", "c"): 3}

    def test_a_batch_whose_answer_got_lost_is_stored_once(self, kept: Kept) -> None:
        model = Model(kept)
        for number in range(3):
            kept.lose_next_answer()
            assert model.edit(a=number)
        model.store.begin_reading()
        list(model.store.rows("meta"))
        assert len(list(model.store.batches())) == 3
        assert model.edit(b=1)
        model.reopen()

    @pytest.mark.parametrize("seed", range(3))
    def test_at_every_step_a_kill_loses_nothing_and_makes_nothing_up(
        self, kept: Kept, small_steps: None, seed: int
    ) -> None:
        """Random edits, steps, refusals, lost answers and kills: what is read is the model."""
        chance = random.Random(seed)
        model = Model(kept)
        finished = refused = lost = kills = 0
        for _ in range(300):
            roll = chance.random()
            if roll < 0.05:
                kept.refuse_next()
                refused += 1
            elif roll < 0.1:
                kept.lose_next_answer()
                lost += 1
            elif roll < 0.13:
                kept.fail_no_more()
                model.reopen()
                kills += 1
            elif roll < 0.16:
                kept.fail_no_more()
                model.store.begin_reading()
                model.read()
            names = {f"n{chance.randrange(40)}" for _ in range(chance.randint(1, 3))}
            model.edit(**{name: chance.choice((None, 1, 2, "x" * 50)) for name in names})
            for _ in range(chance.choice((0, 1, 3, 40))):
                busy = model.store.has_work
                with contextlib.suppress(StoreError):
                    model.store.step()
                finished += busy and not model.store.has_work
        kept.fail_no_more()
        model.reopen()
        assert min(finished, refused, lost, kills) > 2, "this has not tried much"

    def test_to_set_it_aside_begins_empty_or_changes_nothing(self, kept: Kept) -> None:
        model = Model(kept)
        model.edit(a=1)
        try:
            model.store.set_aside("for the test")
        except StoreError:
            pass
        else:
            model.values = {}
        with contextlib.suppress(DamagedError):
            model.store.begin_reading()
            model.read()
            model.edit(b=1)
            model.reopen()

    def test_its_size_is_known(self, kept: Kept) -> None:
        model = Model(kept)
        for number in range(50):
            model.edit(a=random.Random(number).randbytes(10_000))
        size = model.store.size()
        assert size is None or size > 100_000
