"""A plain synchronous agent: one tunnel at a time. Usage: sync_agent.py HOST:PORT."""

import json
import socket
import sys
import time
from contextlib import suppress

from trackd_client import Lease, Tracker


def dial(tracker: Tracker, lease: Lease, address: str) -> None:
    """Dial, and serve the tunnel unless another agent has a tunnel to that proxy."""
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port))) as tunnel, tunnel.makefile("rw") as lines:
        principals = json.loads(lines.readline())["principals"]
        if not lease.claim(*principals):
            return  # another agent has this proxy; the next dial may reach another one
        lines.write("keep\n")
        lines.flush()
        for gossip in lines:  # until the proxy closes the tunnel
            tracker.track_discovery(gossip)
            if lease.should_close:
                break


def main(address: str) -> None:
    """Keep a tunnel open until the process ends."""
    with Tracker(name="sync example") as tracker:
        while True:
            # Waits until a tunnel is missing. Leaving the block releases the lease.
            with tracker.acquire() as lease, suppress(OSError, ValueError):
                dial(tracker, lease, address)
            time.sleep(0.1)


if __name__ == "__main__":
    main(sys.argv[1])
