"""Agents that exist to be killed: `python -m benchmarks.victims ENDPOINT`.

For each line on the standard input the process forks one. It opens a session, takes the one
lease, claims the one proxy, prints its pid, and waits for the end.
"""

from __future__ import annotations

import os
import signal
import sys

import zmq

from benchmarks.clients import Dealer
from benchmarks.mixes import HELD, Mix


def main(endpoint: str) -> None:
    """Fork an agent for each line."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    while os.read(0, 1):  # not through a buffer, which a fork would share
        if os.fork() == 0:
            client = Dealer(zmq.Context(), endpoint, Mix.IS_CLAIMED)
            lease = client.request("try_acquire")["lease"]
            client.request("claim", lease=lease, principals=[HELD])
            print(os.getpid(), flush=True)
            signal.pause()


if __name__ == "__main__":
    main(sys.argv[1])
