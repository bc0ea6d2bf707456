"""An agent to be run in the machine: keeps one claim, and dials others until its input ends.

    agent.py CLUSTER NAME

A line of its input asks for one more round; it prints a line when that is done. At the end it
prints every lease that it was granted, so that a test can compare them with the daemon's.
"""

from __future__ import annotations

import json
import os
import select
import sys

from trackd_client import Proxy, Tracker


def main() -> None:
    cluster, name = sys.argv[1:]
    with Tracker(cluster=cluster, timeout=60, name=name) as tracker:
        tracker.track_expected(*(Proxy(f"{name}-{number}") for number in range(3)))
        kept = tracker.acquire(timeout=60)
        assert kept.claim(f"{name}-0")
        granted = [kept.id]
        print(os.getpid(), flush=True)
        asked = True
        while asked:
            ready, _, _ = select.select([sys.stdin], [], [], 0.02)
            # os.read, since a buffered reader would hide further lines from select.
            asked = not ready or bool(os.read(sys.stdin.fileno(), 1))
            lease = tracker.acquire(timeout=60)
            granted.append(lease.id)
            assert lease.claim(f"{name}-1")
            assert tracker.is_claimed(f"{name}-0"), "the claim is lost"
            lease.release()
            if ready and asked:
                print("done", flush=True)
        assert kept.claimed_name == f"{name}-0"
        assert not kept.released
        print(json.dumps(granted), flush=True)
        kept.release()


if __name__ == "__main__":
    main()
