"""The state file and a restart after much gossip: both are bounded by what there is to know."""

from __future__ import annotations

import contextlib
import random
import sqlite3
from pathlib import Path

from helpers.hosts import needs_root, small_disk
from helpers.support import PATIENCE, peak_rss, rss, wait_until
from trackd_client import Proxy, Tracker
from trackd_client.testing import Daemon, MakeDaemon

#: How many proxies there are, how many one message mentions, and how many messages come.
PROXIES, MENTIONED, MESSAGES = 100_000, 10_000, 60


def gossip_much(daemon: Daemon, messages: int) -> None:
    """Send messages about random proxies out of many: no message mentions those of another."""
    names = [f"{number}.proxy.example" for number in range(PROXIES)]
    chance = random.Random(1)
    with Tracker(daemon.endpoint, timeout=PATIENCE) as tracker:
        for start in range(0, PROXIES, MENTIONED):
            tracker.track_expected(*map(Proxy, names[start : start + MENTIONED]))
        for _ in range(messages):
            tracker.track_expected(*map(Proxy, chance.sample(names, MENTIONED)))


def checkpoint_bytes(path: Path) -> int:
    """Return the bytes of the checkpoint in a state file that no daemon has open."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        sql = "SELECT sum(length(kind) + length(key) + length(value)) FROM state"
        return int(database.execute(sql).fetchone()[0])


def state_bytes(directory: Path) -> int:
    return sum((directory / name).stat().st_size for name in ("trackd.db", "trackd.db-wal"))


def test_much_gossip_does_not_outgrow_the_checkpoint_and_a_restart_does_not_peak(
    make_trackd_daemon: MakeDaemon, tmp_path: Path
) -> None:
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    daemon = make_trackd_daemon(state_dir=directory)
    gossip_much(daemon, MESSAGES)
    steady = rss(daemon.pid)
    daemon.kill()
    grown, needed = state_bytes(directory), checkpoint_bytes(directory / "trackd.db")
    assert grown <= 4 * needed + 16 * 2**20
    daemon.start()
    with Tracker(daemon.endpoint, timeout=PATIENCE) as tracker:
        assert tracker.status()["tracked"] == PROXIES
    assert peak_rss(daemon.pid) <= 1.5 * steady
    print(f"\nfile {grown / 2**20:.1f} MiB, checkpoint {needed / 2**20:.1f} MiB;", end=" ")
    print(
        f"memory {steady / 2**20:.0f} MiB, peak of the restart {peak_rss(daemon.pid) / 2**20:.0f}"
    )


@needs_root
def test_a_small_disk_is_not_filled_by_gossip(
    make_trackd_daemon: MakeDaemon, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "60m") as disk:
        daemon = make_trackd_daemon(state_dir=disk)
        gossip_much(daemon, MESSAGES)
        with Tracker(daemon.endpoint, timeout=PATIENCE) as tracker:
            for count in range(400):
                tracker.set_connection_count(count)
            assert tracker.status()["store"] == "ok"
        wait_until(lambda: state_bytes(disk) < 40 * 2**20)
        daemon.stop()
