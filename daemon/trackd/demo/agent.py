"""The demo's agent: keeps reverse tunnels open, each under a lease of trackd.

Written as one would write one's own: it knows `trackd_client` and nothing else of trackd. Its pool
waits for leases; for each one it dials the load balancer once, claims the proxy that the dial
reached, and keeps the tunnel open, passing the proxy's gossip on. When the proxy was already
claimed, it hangs up and the pool gives the lease back. It never decides by itself whether to dial.
"""

import argparse
import json
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from trackd_client import AgentPool, Lease, Policy, PoolEvent, Tracker

DIAL_TIMEOUT = 5.0  # seconds to reach a proxy and learn its principals
CLOSE_TIMEOUT = 2.0  # seconds that a proxy has to confirm the end of a tunnel
POLICY = Policy(failed_base=0.1, failed_cap=0.5, stayed_up=0.5)  # people watch

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Tunnel:
    """One connection through the load balancer, to whichever proxy that chose."""

    def __init__(self, connection: socket.socket, agent: str) -> None:
        self._connection = connection
        self._lines = connection.makefile("rb")
        self.say(f"dial {agent}")
        self.principals: list[str] = json.loads(self._lines.readline())["principals"]

    def say(self, words: str) -> None:
        """Sends one line to the proxy."""
        self._connection.sendall(words.encode() + b"\n")

    def gossip(self) -> Iterator[bytes]:
        """Yields what the proxy says of its peers, until either side closes the tunnel."""
        self._connection.settimeout(None)
        with suppress(ConnectionError):
            yield from self._lines

    def hang_up(self) -> None:
        """Sends the proxy the end of the tunnel; it closes its side in return."""
        with suppress(OSError):  # the proxy was faster
            self._connection.shutdown(socket.SHUT_WR)

    def wait_closed(self) -> None:
        """Waits until the proxy has closed its side."""
        self._connection.settimeout(CLOSE_TIMEOUT)
        with suppress(OSError):
            while self._lines.read1():
                pass


class Agent:
    """All tunnels of this process: the pool says when to dial, each dial runs in its thread."""

    def __init__(self, tracker: Tracker, balancer: tuple[str, int], name: str) -> None:
        self._balancer = balancer
        self._name = name
        self.pool = AgentPool(tracker, self.dial, policy=POLICY, on_event=show)

    def dial(self, lease: Lease) -> None:
        """Dials once and, if that reached a proxy which no lease holds, keeps the tunnel.

        The pool releases the lease after this, with the tunnel closed, so that the next
        claim of the proxy cannot overlap with this one.
        """
        with self._connect() as tunnel:
            if not lease.claim(*tunnel.principals):
                tunnel.say("duplicate")
                return
            tunnel.say("keep")
            for payload in tunnel.gossip():
                self.pool.feed(payload)
                if lease.should_close:
                    break

    @contextmanager
    def _connect(self) -> Iterator[Tunnel]:
        with socket.create_connection(self._balancer, timeout=DIAL_TIMEOUT) as connection:
            tunnel = Tunnel(connection, self._name)
            try:
                yield tunnel
            finally:
                tunnel.hang_up()
                tunnel.wait_closed()


def show(event: PoolEvent) -> None:
    """Writes what went wrong to stderr, which the demo shows when a scene fails."""
    if event.error is not None:
        complain(event.error)


def complain(error: BaseException) -> None:
    """Writes one line to stderr, which the demo shows when a scene fails."""
    sys.stderr.write(f"{type(error).__name__}: {error}\n")
    sys.stderr.flush()


def main() -> None:
    """Reads where everything is from the command line, and runs until SIGTERM."""
    parser = argparse.ArgumentParser(prog="agent", description=__doc__)
    parser.add_argument("--endpoint", required=True, help="the daemon's endpoint")
    parser.add_argument("--balancer", required=True, help="HOST:PORT of the load balancer")
    parser.add_argument("--name", required=True, help="how this agent calls itself")
    options = parser.parse_args()
    host, _, port = options.balancer.rpartition(":")
    # Blocked here, before any thread starts, so that they arrive in sigwait() and only there.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    with (
        Tracker(options.endpoint, name=options.name) as tracker,
        Agent(tracker, (host, int(port)), options.name).pool,
    ):
        signal.sigwait(STOP_SIGNALS)


if __name__ == "__main__":
    main()
