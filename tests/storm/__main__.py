"""A storm from the command line: `make torture ARGS="--minutes 60 --seed 5"`."""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from pathlib import Path

from storm.storm import Storm


def main() -> None:
    """Run a storm and print its numbers; an exception is its failure."""
    parser = argparse.ArgumentParser(prog="python -m storm", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long faults follow")
    parser.add_argument("--seed", type=int, help="what they are drawn from; default: at random")
    options = parser.parse_args()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    again = f'make torture ARGS="--minutes {options.minutes:g} --seed {seed}"'
    print(f"storm: {again}", flush=True)
    root = Path(tempfile.mkdtemp(prefix="storm-"))
    storm = Storm(root, seed, 60 * options.minutes)
    begun = time.monotonic()
    is_whole = False
    try:
        storm.run()
        is_whole = True
    finally:
        print(f"{time.monotonic() - begun:.0f} s")
        for name, times in storm.count.most_common():
            print(f"{times:8} {name}")
        if not is_whole:
            print(f"FAILED; all files are in {root}; to repeat it: {again}", flush=True)
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
