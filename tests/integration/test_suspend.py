"""A host that was suspended while the daemon was down: a time namespace moves CLOCK_BOOTTIME on.

Each part runs in a namespace of its own, in which the clock is ahead by as much as the host is
supposed to have slept until then. CLOCK_MONOTONIC stands still meanwhile, as in a suspended host.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.support import PATIENCE

#: Runs a daemon on a directory, gossips what the arguments say (name=ttl), prints what is known.
PART = """
import sys, time
from pathlib import Path
from trackd_client import Proxy, Tracker
from trackd_client.testing import Daemon
ahead = time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
daemon = Daemon(Path(sys.argv[1]))
daemon.start()
try:
    with Tracker(daemon.endpoint, timeout=60.0) as tracker:
        for said in sys.argv[2:]:
            name, ttl = said.split("=")
            tracker.track_expected(Proxy(name, ttl=float(ttl)))
        names = sorted(row["name"] for row in tracker.rows("proxies"))
        print(round(ahead), *names)
        assert daemon.stop() == 0
finally:
    daemon.close()
"""


def run_asleep_for(seconds: int, directory: Path, *gossip: str) -> list[str]:
    """Run a daemon on a host that has slept for so long; return that, and the proxies there are."""
    unshare = ["unshare", "--time", "--boottime", str(seconds), "--fork"]
    tried = subprocess.run([*unshare, "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        reason = f"no time namespace here: {tried.stderr.strip()}"
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must run this: {reason}")
        pytest.skip(reason)
    done = subprocess.run(
        [*unshare, sys.executable, "-c", PART, directory, *gossip],
        capture_output=True,
        text=True,
        check=False,
        timeout=3 * PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_what_should_have_expired_while_the_host_slept_has_expired(tmp_path: Path) -> None:
    home = tmp_path / "d"
    home.mkdir()
    assert run_asleep_for(0, home, "short=600", "long=7200") == ["0", "long", "short"]
    assert run_asleep_for(3600, home) == ["3600", "long"]
    assert run_asleep_for(7300, home, "new=60") == ["7300", "new"]
