"""The limit of this transport in Python: a bare pyzmq ROUTER that sends each frame back.

A program of its own: `python -m benchmarks.echo ENDPOINT`.
"""

from __future__ import annotations

import sys

import zmq

_MORE = int(zmq.SNDMORE)  # a plain integer: the flags of pyzmq are enums, and slow


def main(endpoint: str) -> None:
    """Echo until killed."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.bind(endpoint)
    while True:
        route = router.recv()
        frame = router.recv()
        router.send(route, _MORE)
        router.send(frame)


if __name__ == "__main__":
    main(sys.argv[1])
