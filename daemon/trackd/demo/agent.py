"""The demo's agent: keeps reverse tunnels open, each under a lease of trackd.

Written as one would write one's own: it knows `trackd_client` and nothing else of trackd. It asks
for a lease; when it gets one it dials the load balancer once, claims the proxy that the dial
reached, and keeps the tunnel open, passing the proxy's gossip on. When the proxy was already
claimed, it hangs up and gives the lease back. It never decides by itself whether to dial.
"""

import argparse
import json
import random
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from trackd_client import Lease, TrackdError, Tracker

DIAL_TIMEOUT = 5.0  # seconds to reach a proxy and learn its principals
CLOSE_TIMEOUT = 2.0  # seconds that a proxy has to confirm the end of a tunnel
PAUSE = (0.05, 0.2)  # seconds between two questions for a lease; jitter keeps agents apart

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
        """Tells the proxy that the tunnel is over; it closes its side in return. Thread-safe."""
        with suppress(OSError):  # the proxy was faster
            self._connection.shutdown(socket.SHUT_WR)

    def wait_closed(self) -> None:
        """Waits until the proxy has closed its side."""
        self._connection.settimeout(CLOSE_TIMEOUT)
        with suppress(OSError):
            while self._lines.read1():
                pass


class Agent:
    """All tunnels of this process. One thread for each; they share the Tracker."""

    def __init__(self, tracker: Tracker, balancer: tuple[str, int], name: str) -> None:
        self._tracker = tracker
        self._balancer = balancer
        self._name = name
        self._lock = threading.Lock()
        self._stopping = False
        self._tunnels: set[Tunnel] = set()
        self._threads: list[threading.Thread] = []

    def run(self) -> None:
        """Keeps tunnels until a stop signal arrives, then closes them all."""
        try:
            while signal.sigtimedwait(STOP_SIGNALS, random.uniform(*PAUSE)) is None:  # noqa: S311
                self._use_a_lease()
        finally:
            with self._lock:
                self._stopping = True
                for tunnel in self._tunnels:
                    tunnel.hang_up()
            for thread in self._threads:
                thread.join()

    def _use_a_lease(self) -> None:
        try:
            lease = self._tracker.try_acquire()
        except TrackdError as error:
            complain(error)
            return
        if lease is None:
            return
        thread = threading.Thread(target=self._serve, args=(lease,))
        thread.start()
        self._threads = [one for one in self._threads if one.is_alive()] + [thread]

    def _serve(self, lease: Lease) -> None:
        """Dials once and, if that reached a proxy which nobody holds, keeps the tunnel."""
        try:
            # The order matters: the tunnel is closed before the lease is released, so that
            # whoever is next to claim this proxy cannot overlap with us.
            with lease, self._dial() as tunnel:
                if lease.claim(*tunnel.principals):
                    tunnel.say("keep")
                    self._pass_on_gossip(tunnel)
                else:
                    tunnel.say("duplicate")
        except (OSError, ValueError, TrackdError) as error:
            if not self._stopping:
                complain(error)

    @contextmanager
    def _dial(self) -> Iterator[Tunnel]:
        with socket.create_connection(self._balancer, timeout=DIAL_TIMEOUT) as connection:
            tunnel = Tunnel(connection, self._name)
            with self._lock:
                self._tunnels.add(tunnel)
                if self._stopping:
                    tunnel.hang_up()
            try:
                yield tunnel
            finally:
                with self._lock:
                    self._tunnels.discard(tunnel)
                tunnel.hang_up()
                tunnel.wait_closed()

    def _pass_on_gossip(self, tunnel: Tunnel) -> None:
        for payload in tunnel.gossip():
            try:
                self._tracker.track_discovery(payload)
            except TrackdError as error:
                complain(error)  # the tunnel is good, and the next gossip says it all again


def complain(error: Exception) -> None:
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
    # Blocked here, before any thread starts, so that they arrive in sigtimedwait() and only there.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    with Tracker(options.endpoint, name=options.name) as tracker:
        Agent(tracker, (host, int(port)), options.name).run()


if __name__ == "__main__":
    main()
