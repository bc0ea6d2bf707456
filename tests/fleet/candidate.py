"""A candidate as a process. While it leads it writes fenced rows, and logs when it is sure to lead.

Each line that it writes is a word and a time of CLOCK_BOOTTIME: `leads FENCE TIME`, `sure TIME`,
`row KEY`, `over TIME`. It exits with 0 after SIGTERM, and with 3 when its term is over.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

from trackd.fleet.election import Candidate
from trackd.fleet.etcd import Etcd, EtcdError, Put, create_revision_is
from trackd_client.wire.clock import boottime


def run(endpoints: list[str], ttl: int, directory: Path, name: str) -> int:
    """Stand by, lead, and return the exit code."""
    candidate = Candidate(
        lambda timeout: Etcd(endpoints, timeout=timeout),
        b"trackd/1/test/",
        name.encode(),
        ttl=ttl,
        directory=directory,
        name="test",
    )
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True
        candidate.stop()

    signal.signal(signal.SIGTERM, stop)
    with candidate, Etcd(endpoints, timeout=ttl / 3) as etcd:
        print("stands by", boottime(), flush=True)
        term = candidate.campaign()
        if term is None:
            return 0
        print("leads", term.fence, boottime(), flush=True)
        number = 0
        while not stopped:
            now = boottime()
            if now >= term.valid_until:
                print("over", now, flush=True)
                return 3
            print("sure", now, flush=True)
            key = b"trackd/1/test/rows/%d/%d" % (term.fence, number)
            try:
                fenced = etcd.txn([create_revision_is(term.key, term.fence)], [Put(key, b"")])
            except EtcdError:
                continue
            if not fenced.succeeded:
                print("fenced", boottime(), flush=True)
            number += 1
            time.sleep(0.01)
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[4:], int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
