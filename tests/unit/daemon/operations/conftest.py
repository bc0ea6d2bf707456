"""A world with an admin and an agent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.admin import World
from helpers.writer import Host


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    with Host().seen():
        yield world
    world.desk.kill()
