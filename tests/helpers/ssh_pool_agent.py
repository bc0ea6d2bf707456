"""An agent in threads on `AgentPool`: an ssh to each bastion, by the files of docs/examples/ssh.

It does with `claim.sh` what `trackctl keep` does, in one file. Usage: ssh_pool_agent.py
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import threading
from pathlib import Path

from trackd_client import AgentPool, DialFailed, Lease, Tracker
from trackd_client.cli.quick_claim import VARIABLE

CONFIG = Path(os.environ["TRACKD_SSH"]) / "ssh_config"


def serve(door: socket.socket, lease: Lease) -> None:
    """Reply to `trackctl claim` until the socket is shut down."""
    while True:
        try:
            asking, _ = door.accept()
        except OSError:
            return
        with asking, asking.makefile("rw") as lines:
            names = lines.readline().split()
            # ssh may ask twice: for the address, and for the name.
            got = lease.claimed_name is not None or lease.claim(*names)
            lines.write(f"claimed {names[0]}\n" if got else f"held {names[0]}\n")


def dial(lease: Lease) -> None:
    """Run ssh until either side closes the tunnel."""
    with tempfile.TemporaryDirectory() as place, socket.socket(socket.AF_UNIX) as door:
        path = f"{place}/claim"
        door.bind(path)
        door.listen()
        claims = threading.Thread(target=serve, args=(door, lease))
        claims.start()
        try:
            run_ssh(lease, path)
        finally:
            door.shutdown(socket.SHUT_RDWR)
            claims.join()


def run_ssh(lease: Lease, claim_socket: str) -> None:
    """Run one ssh, whose KnownHostsCommand claims by a socket.

    Raises:
        DialFailed: it ended before it reached a bastion that could be claimed.
    """
    with subprocess.Popen(
        ["ssh", "-F", CONFIG, "bastions"],
        env={**os.environ, VARIABLE: claim_socket},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as ssh:
        assert ssh.stdout is not None
        assert ssh.stderr is not None
        lease.on_close(ssh.terminate)
        for gossip in ssh.stdout:
            pool.feed(gossip)
        complaint = ssh.stderr.read()
    if lease.claimed_name is None and "another lease holds" not in complaint:
        raise DialFailed("timeout" if "timed out" in complaint else "refused")


stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
with Tracker(name="ssh in threads") as tracker:
    pool = AgentPool(tracker, dial)
    with pool:
        stop.wait()
