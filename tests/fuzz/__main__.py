"""Feed inputs that are almost right to all that reads what others wrote. `make fuzz`.

The same seed gives the same inputs. The first input that breaks something ends the run, with the
command that repeats it.
"""

from __future__ import annotations

import argparse
import logging
import random
import secrets
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Final

from fuzz import targets
from trackd_client.testing import Daemon

#: For each target its share of the inputs, which shows how quick it is.
SHARES: Final = {"socket": 1.0, "transport": 0.05, "gossip": 0.5, "replies": 0.5, "state": 0.01}


def main() -> None:
    """Fuzz each target in turn, and print what was done."""
    parser = argparse.ArgumentParser(
        prog="python -m fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--inputs",
        type=int,
        default=1_000_000,
        help="for the socket; other targets get a share (default: a million)",
    )
    parser.add_argument(
        "--seed", type=int, help="of a run before; by default another one each time"
    )
    parser.add_argument("--only", choices=SHARES, help="this target alone")
    arguments = parser.parse_args()
    seed = secrets.randbits(32) if arguments.seed is None else arguments.seed
    logging.disable()  # thousands of damaged files
    for name in [arguments.only] if arguments.only else SHARES:
        count = max(targets.LOOK, int(arguments.inputs * SHARES[name]))
        started = time.monotonic()
        try:
            more = fuzz(name, random.Random(seed), count, _show(name, count))
        except targets.Broken as broken:
            sys.exit(
                f"\n{name}: {broken}\nagain with: PYTHONPATH=tests python -m fuzz"
                f" --only {name} --inputs {arguments.inputs} --seed {seed}"
            )
        seconds = time.monotonic() - started
        print(f"\r{name}: {count} inputs in {seconds:.0f} s, seed {seed}{more}")


def fuzz(name: str, chance: Random, count: int, progress: targets.Progress) -> str:
    """Fuzz a target; return what else there is to say.

    Raises:
        Broken: an input broke something.
    """
    with tempfile.TemporaryDirectory(prefix="trackd-") as directory:
        if name == "state":
            targets.fuzz_state(Path(directory), chance, count, progress)
        elif name in {"socket", "transport"}:
            run = targets.fuzz_socket if name == "socket" else targets.fuzz_transport
            return fuzz_daemon(Path(directory), run, chance, count, progress)
        else:
            run_here = targets.fuzz_gossip if name == "gossip" else targets.fuzz_replies
            run_here(chance, count, progress)
    return ""


def fuzz_daemon(
    directory: Path,
    run: Callable[[Daemon, Random, int, targets.Progress], None],
    chance: Random,
    count: int,
    progress: targets.Progress,
) -> str:
    """Fuzz a real daemon, and check that it lives, has no error in its log, and does not grow.

    The first tenth fills what is bounded; after that its memory may grow by 16 MB at most.

    Raises:
        Broken: an input broke something.
    """
    daemon = Daemon(directory)
    daemon.start()
    try:
        run(daemon, chance, max(targets.LOOK, count // 10), lambda _: None)
        before = resident(daemon.pid)
        run(daemon, chance, count, progress)
        grown = resident(daemon.pid) - before
        log = daemon.log.read_text()
    finally:
        daemon.close()
    if grown > 16 << 20:
        raise targets.Broken(f"the daemon grew by {grown >> 20} MB")
    if " error " in log or " critical " in log:
        raise targets.Broken(f"the daemon logged: {log[-2000:]}")
    return f", memory {grown / (1 << 20):+.1f} MB"


def resident(pid: int | None) -> int:
    """Return the bytes of a process that are in memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


def _show(name: str, count: int) -> targets.Progress:
    step = max(1, count // 50)

    def show(done: int) -> None:
        if done % step == 0 and sys.stderr.isatty():
            sys.stderr.write(f"\r{name}: {done} of {count}")

    return show


if __name__ == "__main__":
    main()
