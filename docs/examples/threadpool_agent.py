"""An agent in threads: a tunnel to every proxy. Usage: threadpool_agent.py HOST:PORT."""

import json
import signal
import socket
import sys
import threading

from trackd_client import AgentPool, Lease, Tracker


def main(address: str) -> None:
    """Keep tunnels open until the process ends."""
    host, port = address.rsplit(":", 1)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())

    def dial(lease: Lease) -> None:
        with socket.create_connection((host, int(port))) as tunnel, tunnel.makefile("rw") as lines:
            if not lease.claim(*json.loads(lines.readline())["principals"]):
                return  # the pool dials again
            lease.on_close(lambda: tunnel.shutdown(socket.SHUT_RDWR))
            lines.write("keep\n")
            lines.flush()
            for gossip in lines:  # until either side closes the tunnel
                pool.feed(gossip)

    with Tracker(name="threads example") as tracker:
        pool = AgentPool(tracker, dial)
        with pool:
            stop.wait()


if __name__ == "__main__":
    main(sys.argv[1])
