"""A checkpoint of a fleet is the state as it was when it began, whatever happens meanwhile."""

from __future__ import annotations

import random
from typing import Any

import pytest

from trackd.fleet.buckets import Buckets
from trackd.fleet.rows import BUCKETS, bucket_of, pack, unpack_bucket
from trackd.storage.store import Key


class World:
    """Things with values, and what is packed of them."""

    def __init__(self) -> None:
        self.values: dict[Key, Any] = {}
        self.buckets = Buckets(self.values.get)
        self.packed: dict[Key, bytes] = {}

    def edit(self, key: Key, value: Any) -> None:
        self.buckets.touch([key])
        if value is None:
            self.values.pop(key, None)
        else:
            self.values[key] = value

    def begin(self) -> dict[Key, bytes]:
        """Begin a checkpoint, and return what it must hold."""
        self.packed = {}
        self.buckets.begin()
        return {key: pack(value) for key, value in self.values.items()}

    def pack_next(self) -> None:
        number, parts = self.buckets.pack_next()
        rows = {key: value for part in parts for key, value in unpack_bucket(part)}
        assert all(bucket_of(key) == number for key in rows)
        self.packed |= rows

    def finish(self) -> dict[Key, bytes]:
        while not self.buckets.is_packed:
            self.pack_next()
        return self.packed


def test_a_checkpoint_holds_all_that_is_there_and_nothing_that_has_gone() -> None:
    world = World()
    for number in range(3000):
        world.edit(("lease", number), number)
    for number in range(0, 3000, 3):
        world.edit(("lease", number), None)
    assert world.finish() == {}, "none has begun"
    wanted = world.begin()
    assert len(wanted) == 2000
    assert world.finish() == wanted


def test_what_was_loaded_is_in_the_next_checkpoint_though_nobody_touches_it() -> None:
    world = World()
    world.values["meta", ""] = {"revision": 7}
    world.buckets.add(("meta", ""))
    assert world.begin() == world.finish() != {}


@pytest.mark.parametrize("seed", range(20))
def test_it_is_exact_whatever_is_edited_between_two_steps(seed: int) -> None:
    chance = random.Random(seed)
    world = World()
    for _ in range(12):
        for _ in range(200):
            world.edit(("lease", chance.randrange(300)), chance.choice((None, 1, 2)))
        wanted = world.begin()
        while not world.buckets.is_packed:
            for _ in range(chance.choice((0, 0, 3, 40))):
                world.edit(("lease", chance.randrange(300)), chance.choice((None, 3, 4)))
            world.pack_next()
        assert world.packed == wanted


def test_keys_of_things_that_have_gone_are_not_kept() -> None:
    world = World()
    for number in range(5000):
        world.edit(("reply", (b"token", number)), "reply")
        world.edit(("reply", (b"token", number)), None)
    world.begin()
    assert world.finish() == {}
    world.buckets.begin()
    assert world.buckets.is_packed, "buckets without keys are not looked at"
    assert sum(map(len, world.buckets._keys)) == len(world.buckets._number) == 0
    assert len(world.buckets._keys) == BUCKETS
