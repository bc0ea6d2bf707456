"""Fixtures: three members of etcd, shared by the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fleet.cluster import Cluster
from trackd.fleet.etcd import NO_END, Etcd


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three members of etcd, which a test may stop and pause."""
    with Cluster() as made:
        yield made


@pytest.fixture
def etcd(cluster: Cluster) -> Iterator[Etcd]:
    """A client of an empty etcd whose members are all well, whatever the last test did to them."""
    for member in cluster.members:
        if member.pid is None:
            member.start()
    cluster.wait_until_healthy()
    with cluster.client() as made:
        made.delete_range(b"\0", NO_END)
        yield made
