"""A whole fleet whose etcd was restored from a backup, which has forgotten some of it."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from pathlib import Path

from fleet.cluster import Cluster, Member
from fleet.etcd_program import etcd_program
from fleet.fleet import LONG, Fleet
from helpers.support import wait_until
from trackd_client import Proxy, Tracker
from trackd_client.errors import StoreUnavailable


def restore(member: Member, backup: Path) -> None:
    """Give a stopped member what was in a backup, as docs/fleet.md says."""
    shutil.rmtree(member.data)
    peer = member.peer
    subprocess.run(
        [
            str(etcd_program().with_name("etcdutl")),
            *("snapshot", "restore", str(backup), "--skip-hash-check"),
            *("--name", "m0", "--data-dir", str(member.data)),
            *("--initial-cluster", f"m0={peer}", "--initial-advertise-peer-urls", peer),
            *("--initial-cluster-token", "restored"),
        ],
        check=True,
        capture_output=True,
    )


def test_a_restored_etcd_begins_an_empty_fleet_and_agents_adopt_their_tunnels(
    tmp_path: Path,
) -> None:
    with Cluster(size=1) as cluster, Fleet(cluster, hosts=1) as fleet:
        relay, member = fleet.relays[0], cluster.members[0]
        fleet.wait_until_served(relay)
        backup = tmp_path / "backup.db"
        member.stop()
        shutil.copy(member.data / "member/snap/db", backup)
        member.start()
        cluster.wait_until_healthy()
        fleet.keep_candidates()
        with Tracker(relay.endpoint, timeout=LONG) as tracker:
            tracker.track_expected(Proxy("p1"))
            lease = tracker.acquire()
            assert lease is not None
            assert lease.claim("p1")
            before = tracker.status()
            for _ in range(2):  # so that terms of the restored etcd begin below the last one
                fleet.leader().kill()
                fleet.keep_candidates()
                tracker.set_connection_count(0)
            member.stop()
            restore(member, backup)
            member.start()
            cluster.wait_until_healthy()

            def is_new() -> bool:
                fleet.keep_candidates()
                with contextlib.suppress(StoreUnavailable):  # there is no leader yet
                    return tracker.status().tracker_id != before.tracker_id
                return False

            wait_until(is_new, LONG)
            assert lease.lost.wait(LONG)
            tracker.track_expected(Proxy("p1"))
            adopted = tracker.adopt("p1")
            assert adopted is not None
            assert adopted.claimed_name == "p1"
            assert tracker.try_acquire() is None
