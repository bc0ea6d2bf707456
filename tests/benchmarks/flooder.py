"""Peers that ask for as much as they can: `python -m benchmarks.flooder ENDPOINT`.

Each line on the standard input begins a flood, and the next line ends it:

    status COUNT CONNECTIONS    so many requests at once, and no more
    pages COUNT CONNECTIONS     as many under way all the time
    http PATH CONNECTIONS       GET requests to the unix socket PATH, one after the other

"begun" is printed once the flood is under way, and the number of replies at its end.
"""

from __future__ import annotations

import itertools
import socket
import sys
import threading
from collections.abc import Callable

import zmq

from trackd_client.wire.protocol import REQUEST, encode

_OPERATIONS = {"status": {"op": "status"}, "pages": {"op": "snapshot", "of": "proxies"}}
_GET = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"


def main(endpoint: str) -> None:
    """Make one flood after the other."""
    while line := sys.stdin.readline():
        kind, what, connections = line.split()
        stop = threading.Event()
        replies = [0] * int(connections)
        begun = threading.Barrier(len(replies) + 1)

        def run(
            place: int,
            kind: str = kind,
            what: str = what,
            stop: threading.Event = stop,
            replies: list[int] = replies,
            begun: threading.Barrier = begun,
        ) -> None:
            if kind == "http":
                replies[place] = _ask_http(what, stop, begun.wait)
            else:
                count = int(what) // len(replies)
                replies[place] = _ask(endpoint, kind, count, stop, begun.wait)

        threads = [threading.Thread(target=run, args=[place]) for place in range(len(replies))]
        for thread in threads:
            thread.start()
        begun.wait()
        print("begun", flush=True)
        sys.stdin.readline()
        stop.set()
        for thread in threads:
            thread.join()
        print(sum(replies), flush=True)


def _ask(
    endpoint: str, kind: str, count: int, stop: threading.Event, begin: Callable[[], object]
) -> int:
    """Have so many requests under way; for pages, a new one after each reply."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.linger = 0
        peer.sndhwm = peer.rcvhwm = 0
        peer.connect(endpoint)
        numbers = itertools.count(1)

        def send() -> None:
            peer.send(encode(REQUEST, {**_OPERATIONS[kind], "seq": next(numbers)}))

        send()
        peer.recv()  # connected
        for _ in range(count):
            send()
        begin()
        under_way, replies = count, 0
        while under_way:
            peer.recv()
            replies += 1
            if kind == "pages" and not stop.is_set():
                send()
            else:
                under_way -= 1
        return replies


def _ask_http(path: str, stop: threading.Event, begin: Callable[[], object]) -> int:
    """Ask for metrics in a loop over one connection."""
    replies = 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.connect(path)
        begin()
        with peer.makefile("rb") as stream:
            while not stop.is_set():
                peer.sendall(_GET)
                length = 0
                while (line := stream.readline()) not in (b"\r\n", b""):
                    name, _, value = line.partition(b":")
                    length = int(value) if name.lower() == b"content-length" else length
                stream.read(length)
                replies += 1
    return replies


if __name__ == "__main__":
    main(sys.argv[1])
