"""Run a daemon under load for long, and see whether anything of it grows. `make soak MINUTES=60`.

Agents come, gossip, dial, claim, release and go all the time. Of the last half of the run,
what is higher in the second part than in the first, by more than is allowed, fails the run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from trackd_client import Proxy, TrackdError, Tracker
from trackd_client.testing import Daemon

SAMPLES: Final = 240
#: Requests that are timed for each sample.
TIMED: Final = 100
BARS: Final = "▁▂▃▄▅▆▇█"


class Sample(NamedTuple):
    """What a daemon has at a moment: MB in memory, descriptors, threads, MB of state, p99 in ms."""

    memory: float
    descriptors: int
    threads: int
    file: float
    p99: float


#: By how much each may rise over the last half: absolutely, and as a share. No time is judged.
ALLOWED: Final = {
    "memory": (2.0, 0.03),
    "descriptors": (3.0, 0.0),
    "threads": (0.0, 0.0),
    "file": (2.0, 0.25),
}


def rises(samples: Sequence[Sample]) -> list[str]:
    """Return a sentence for each thing that rose over the last half of the samples."""
    half = samples[len(samples) // 2 :]
    first, second = half[: len(half) // 2], half[len(half) // 2 :]
    found = []
    for name, (most, share) in ALLOWED.items():
        before, after = (
            statistics.median(getattr(sample, name) for sample in part) for part in (first, second)
        )
        if after - before > max(most, share * before):
            found.append(f"{name} rose from {before:g} to {after:g} in the last half")
    return found


def soak(seconds: float, agents: int = 4, count: int = SAMPLES) -> list[Sample]:
    """Run a daemon and its agents, and return samples at even distances."""
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory(prefix="trackd-") as directory:
        daemon = Daemon(Path(directory), log_level="warning")
        daemon.start()
        try:
            with _load(daemon.endpoint, agents), Tracker(daemon.endpoint) as tracker:
                began = time.monotonic()
                for i in range(count):
                    time.sleep(max(0.0, began + i * seconds / count - time.monotonic()))
                    samples.append(_sample(daemon, tracker))
                    _show(i / count, samples[-1])
        finally:
            daemon.close()
    return samples


def _sample(daemon: Daemon, tracker: Tracker) -> Sample:
    times = []
    for _ in range(TIMED):
        started = time.perf_counter()
        tracker.ping()
        times.append(time.perf_counter() - started)
    process = Path(f"/proc/{daemon.pid}")
    status = dict(
        line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line
    )
    size = 0
    for path in daemon.directory.rglob("*"):
        with suppress(OSError):
            size += path.stat().st_size if path.is_file() else 0
    return Sample(
        int(status["VmRSS"].split()[0]) / 1024,
        len(os.listdir(process / "fd")),  # noqa: PTH208 - only how many
        int(status["Threads"]),
        size / (1 << 20),
        sorted(times)[int(TIMED * 0.99)] * 1000,
    )


@contextmanager
def _load(endpoint: str, agents: int) -> Iterator[None]:
    """Run agents in processes of their own for as long as the block runs."""
    command = [sys.executable, __file__, "--agent", endpoint]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(agents)]
    try:
        yield
        ended = [process.pid for process in processes if process.poll() is not None]
        if ended:
            sys.exit(f"agents ended: {ended}")
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def be_an_agent(endpoint: str) -> None:
    """Open a session, work, and close it, again and again, until the process is ended."""
    chance = random.Random(os.getpid())
    while True:
        with suppress(TrackdError), Tracker(endpoint) as tracker:
            for _ in range(chance.randrange(1, 60)):
                names = [f"p{chance.randrange(200)}" for _ in range(20)]
                tracker.track_expected(*(Proxy(name, ttl=60.0) for name in names))
                lease = tracker.try_acquire()
                if lease is not None and lease.claim(chance.choice(names)):
                    if chance.random() < 0.1:
                        continue  # it ends with the session
                    lease.release()
                time.sleep(0.002)


def _show(done: float, sample: Sample) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{done:4.0%}  {sample.memory:.1f} MB ")


def draw(samples: Sequence[Sample]) -> str:
    """Return a line for each figure: its course, and its smallest, median and largest value."""
    lines = []
    for name in Sample._fields:
        values = [float(getattr(sample, name)) for sample in samples]
        low, high = min(values), max(values)
        steps = [values[i * len(values) // 60] for i in range(60)]
        scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
        bars = "".join(BARS[int((value - low) * scale)] for value in steps)
        middle = statistics.median(values)
        lines.append(f"{name:>11} {bars} {low:.4g} / {middle:.4g} / {high:.4g}")
    return "\n".join(lines)


def main() -> None:
    """Soak, draw, and judge."""
    parser = argparse.ArgumentParser(
        prog="python -m soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (default: 60)")
    parser.add_argument("--json", type=Path, help="write all samples there as well")
    parser.add_argument("--agent", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.agent is not None:
        be_an_agent(arguments.agent)
    samples = soak(arguments.minutes * 60)
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps([sample._asdict() for sample in samples], indent=1))
    print("\r" + draw(samples))
    found = rises(samples)
    if found:
        sys.exit("; ".join(found))
    print(f"nothing rose in the last half of {arguments.minutes:g} minutes")


if __name__ == "__main__":
    main()
