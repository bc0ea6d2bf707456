"""A bad line between one client and the daemon: frames come late, twice, in another order, or not.

It runs in the process of the client, since the daemon asks the kernel whose connection it is.
"""

from __future__ import annotations

import heapq
import itertools
import random
import threading
import time
from pathlib import Path

import zmq

#: How often of a thousand frames each fate comes; all others pass at once.
FATES = {"dropped": 15, "twice": 20, "late": 30, "truncated": 4}
LATE = 0.4  # seconds at most


class Link(threading.Thread):
    """Passes frames between a ROUTER for the client and a DEALER for each of its connections.

    Attributes:
        endpoint: where the client connects.
    """

    def __init__(self, endpoint: str, daemon: str, seed: str, report: Path) -> None:
        """Serve an endpoint.

        Args:
            endpoint: where the client will connect.
            daemon: where the daemon serves.
            seed: what the fates of frames are drawn from.
            report: a file for the fate of each frame that did not pass at once, one a line.
        """
        super().__init__(daemon=True)
        self.endpoint = endpoint
        self._report = report
        self._daemon = daemon
        self._chance = random.Random(f"link {seed}")
        self._late: list[tuple[float, int, zmq.Socket[bytes], list[bytes]]] = []
        self._numbers = itertools.count()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._front = self._context.socket(zmq.ROUTER)
        self._front.bind(endpoint)

    def run(self) -> None:
        backs: dict[bytes, zmq.Socket[bytes]] = {}
        poller = zmq.Poller()
        poller.register(self._front, zmq.POLLIN)
        while True:
            due = self._late[0][0] - time.monotonic() if self._late else 1.0
            for ready, _ in poller.poll(max(0, int(due * 1000))):
                if ready is self._front:
                    identity, frame = self._front.recv_multipart()
                    if identity not in backs:
                        backs[identity] = back = self._context.socket(zmq.DEALER)
                        back.linger = 0
                        back.connect(self._daemon)
                        poller.register(back, zmq.POLLIN)
                    self._pass_on(backs[identity], [], frame)
                else:
                    (identity,) = (key for key, back in backs.items() if back is ready)
                    self._pass_on(self._front, [identity], ready.recv())
            while self._late and self._late[0][0] <= time.monotonic():
                _, _, to, frames = heapq.heappop(self._late)
                self._send(to, frames)

    def _pass_on(self, to: zmq.Socket[bytes], head: list[bytes], frame: bytes) -> None:
        drawn = self._chance.randrange(1000)
        fate = "passed"
        for name, share in FATES.items():
            if 0 <= drawn < share:
                fate = name
            drawn -= share
        if fate != "passed":
            self._write(fate)
        if fate == "truncated":
            frame = frame[: self._chance.randrange(len(frame))]
        if fate in ("late", "twice"):
            due = time.monotonic() + self._chance.uniform(0.0, LATE)
            heapq.heappush(self._late, (due, next(self._numbers), to, [*head, frame]))
        if fate not in ("dropped", "late"):
            self._send(to, [*head, frame])

    def _send(self, to: zmq.Socket[bytes], frames: list[bytes]) -> None:
        try:
            to.send_multipart(frames, zmq.DONTWAIT)
        except zmq.Again:
            self._write("dropped")

    def _write(self, fate: str) -> None:
        with self._report.open("a") as file:
            file.write(f"{fate}\n")
