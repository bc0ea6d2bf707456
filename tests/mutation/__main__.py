"""Runs the fast tests of a module against each of its mutants, and lists those that survive.

    make mutants ARGS="daemon/trackd/sessions/queue.py"
    make mutants ARGS="daemon/trackd/rules/marks.py --tests tests/model/test_tracker_model.py"

A mutant that survives is a mistake that no test notices, or no mistake at all. Nothing is written:
each mutant is compiled in a process of its own, instead of the file.
"""

from __future__ import annotations

import argparse
import ast
import importlib.machinery
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import hypothesis
import msgpack
import pykka
import pytest
import zmq

from mutation.mutants import Mutant, mutants_of

REPOSITORY = Path(__file__).resolve().parents[2]
#: Loaded once for all mutants; the daemon itself is loaded by each of them.
LOADED = (hypothesis, msgpack, pykka, zmq)
#: How much longer than without a mistake tests may take before they count as hanging.
HANGS = 5.0


def fast_tests_of(path: Path) -> list[str]:
    """Return the fast tests of a module: its own ones first, then those of its package."""
    package = REPOSITORY / "tests/unit" / path.relative_to(REPOSITORY).parent
    package = Path(str(package).replace("/daemon/trackd/", "/daemon/"))
    own = package / f"test_{path.name}"
    return [str(own), str(package)] if own.exists() else [str(package)]


def run(path: Path, tree: ast.Module | None, tests: list[str], seconds: float) -> int | None:
    """Run tests against a module with a mistake, or None: as it is; return pytest's exit code.

    None means that they were not done in time.
    """
    pid = os.fork()
    if pid == 0:
        os._exit(_run_here(path, tree, tests))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def _run_here(path: Path, tree: ast.Module | None, tests: list[str]) -> int:
    os.setpgid(0, 0)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    right = importlib.machinery.SourceFileLoader.get_code

    def get_code(loader: Any, name: str) -> Any:
        if tree is not None and Path(loader.path).resolve() == path:
            return compile(tree, str(path), "exec")
        return right(loader, name)

    patch.object(importlib.machinery.SourceFileLoader, "get_code", get_code).start()
    hypothesis.settings.register_profile("mutants", database=None, derandomize=True)
    hypothesis.settings.load_profile("mutants")
    quiet = ["-q", "-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of what is LOADED
    options = ["-x", "-m", "not slow", "-p", "no:cacheprovider", "-p", "no:xdist", *quiet]
    return int(pytest.main([*options, "--rootdir", str(REPOSITORY), *tests]))


def main() -> None:
    """Print what survives, and how many there were."""
    parser = argparse.ArgumentParser(prog="python -m mutation", description=__doc__)
    parser.add_argument("module", type=Path, nargs="+", help="files of the daemon")
    parser.add_argument("--tests", nargs="*", default=[], help="more tests to run")
    options = parser.parse_args()
    for path in (each.resolve() for each in options.module):
        tests = [*fast_tests_of(path), *options.tests]
        begun = time.monotonic()
        if run(path, None, tests, 600.0) != 0:
            sys.exit(f"the tests fail without any mistake: {' '.join(tests)}")
        most = 10.0 + HANGS * (time.monotonic() - begun)
        found = mutants_of(path.read_text())
        survivors = [mutant for mutant in found if run(path, mutant.tree, tests, most) == 0]
        name = path.relative_to(REPOSITORY)
        for mutant in survivors:
            print(f"{name}:{mutant.line}: {_short(mutant)}")
        print(f"{name}: {len(found)} mutants, {len(survivors)} survived", flush=True)


def _short(mutant: Mutant) -> str:
    """Return the lines that differ."""
    before, after = mutant.before.splitlines(), mutant.after.splitlines()
    gone = [line.strip() for line in before if line not in after]
    new = [line.strip() for line in after if line not in before]
    return f"{' '.join(gone)}  ->  {' '.join(new)}"


if __name__ == "__main__":
    main()
