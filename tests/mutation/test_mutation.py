"""What `make mutants` makes of a module, and that the tests of a module notice a mistake."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

import pytest

from mutation.__main__ import REPOSITORY
from mutation.mutants import mutants_of

SOURCE = """
def wait(late: bool = False, most: "int | 7" = 3):
    if late and most <= 2:
        note(most)
        return most - 1
    most += 1
"""


def test_each_mutant_has_one_mistake_and_none_is_in_an_annotation() -> None:
    mutants = mutants_of(SOURCE)
    right = ast.unparse(ast.parse(SOURCE)).splitlines()
    changed = []
    for mutant in mutants:
        lines = ast.unparse(mutant.tree).splitlines()
        changed += [line.strip() for line in lines if line not in right]
    assert sorted(changed) == sorted(
        [
            "def wait(late: bool=True, most: 'int | 7'=3):",
            "def wait(late: bool=False, most: 'int | 7'=4):",
            "if not (late and most <= 2):",
            "if late or most <= 2:",
            "if late and most < 2:",
            "if late and most <= 3:",
            "pass",
            "return None",
            "return most + 1",
            "return most - 2",
            "pass",
            "most -= 1",
            "most += 2",
        ]
    )


def test_a_mistake_is_noticed_and_the_module_as_it_is_passes() -> None:
    """In a process of its own: this one has loaded the module already."""
    code = (
        "from pathlib import Path; from mutation.__main__ import REPOSITORY, fast_tests_of, run;"
        "from mutation.mutants import mutants_of;"
        "path = REPOSITORY / 'daemon/trackd/sessions/queue.py';"
        "tests = [each for each in fast_tests_of(path) if Path(each).is_file()];"
        "found = mutants_of(path.read_text());"
        "wrong = next(m for m in found if 'self._turns[0][1] in self._waiters' in m.after);"
        "print(*(int(run(path, tree, tests, 300.0)) for tree in (None, wrong.tree)))"
    )
    environ = os.environ | {"PYTHONPATH": str(REPOSITORY / "tests")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environ,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["0", str(int(pytest.ExitCode.TESTS_FAILED))]
