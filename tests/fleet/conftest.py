"""Three members of etcd, shared by the tests of a module, which may stop and pause them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from conftest import children
from fleet.cluster import Cluster
from trackd.fleet.etcd import NO_END, Etcd


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three members."""
    with Cluster() as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_is_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """As elsewhere; but a member that a test has started again is the cluster's."""
    shared = request.getfixturevalue("cluster") if "cluster" in request.fixturenames else None
    before = children()
    yield
    members = set() if shared is None else {member.pid for member in shared.members}
    left = children() - before - members
    assert not left, f"processes left behind: {left}"


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
