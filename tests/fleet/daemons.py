"""A fleet in the place of the daemon of one host: `pytest --store etcd` runs tests on it.

A plugin of pytest. Its `make_trackd_daemon` makes two candidates of two control hosts and the relay
of an agent host; the endpoint is the relay's. Tests marked `both_stores` need nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from fleet.cluster import Cluster
from fleet.fleet import CLUSTER, Fleet, Part
from fleet.members import cluster, etcd
from helpers.writer import read_state
from trackd.fleet.etcd import Etcd
from trackd.fleet.fenced import Fence
from trackd.fleet.store import EtcdStore
from trackd.state.state import State
from trackd_client.testing import Daemon, MakeDaemon

__all__ = ["cluster", "etcd", "make_trackd_daemon", "read_stored"]

#: Seconds. A leader that comes back ends its own old lease, so this is long for slow machines only.
TTL = 30
#: Seconds that a host may be silent: a relay that starts on a slow machine is not lost.
HOST_TTL = 120.0


class FleetDaemon(Daemon):
    """What a test starts, stops and kills as it does with a daemon; the state is in etcd.

    A kill ends the whole fleet. A restart kills the leader alone: the other candidate leads next,
    or the killed one does again, and the relay goes on.
    """

    def __init__(self, cluster: Cluster, **settings: object) -> None:
        self.fleet = Fleet(cluster, hosts=1, ttl=TTL, host_ttl=HOST_TTL)
        self.relay = self.fleet.relays[0]
        super().__init__(self.fleet.folder, CLUSTER, **settings)
        self.endpoint, self.log = self.relay.endpoint, self.relay.log
        self._commands = {part: part.command for part in self.fleet.parts}

    @property
    def pid(self) -> int:
        """The pid of the leader."""
        process = self.fleet.leader().process
        assert process is not None
        return process.pid

    def start(self) -> None:
        for part, command in self._commands.items():
            part.command = [*command, *self._flags[2:]]  # besides the cluster and the endpoint
            if part.process is None:
                part.start()
        self.fleet.wait_until_served(self.relay)

    def stop(self) -> int:
        leader = self.fleet.leader()  # the last to end: nobody takes over
        return max(part.end() for part in (*set(self._running) - {leader}, leader))

    def kill(self) -> None:
        for part in self._running:
            part.kill()

    def restart(self) -> None:
        self.fleet.leader().kill()
        self.start()

    def close(self) -> None:
        self.kill()
        self.fleet.__exit__(None, None, None)

    @property
    def _running(self) -> list[Part]:
        return [part for part in self.fleet.parts if part.process is not None]


@pytest.fixture
def make_trackd_daemon(cluster: Cluster, etcd: Etcd) -> Iterator[MakeDaemon]:
    """Make the fleet of a test."""
    members = cluster
    with ExitStack() as stack:

        def make(cluster: str = CLUSTER, *, start: bool = True, **settings: object) -> Daemon:
            assert cluster == CLUSTER
            daemon = FleetDaemon(members, **settings)
            stack.callback(daemon.close)
            if start:
                daemon.start()
            return daemon

        yield make


@pytest.fixture
def read_stored(cluster: Cluster, etcd: Etcd) -> Callable[[Daemon], State]:
    """Read what is stored of a fleet that does not run, as its next leader would."""
    prefix = f"trackd/1/{CLUSTER}/".encode()
    leader = prefix + b"leader"

    def read(_daemon: Daemon) -> State:
        etcd.delete_range(leader)
        fence = Fence(leader, etcd.put(leader, b""))
        state = read_state(EtcdStore(cluster.client(), prefix, fence))
        etcd.delete_range(leader)
        return state

    return read
